//! The precision plan: what becomes of every node, every weight and every activation, with the reason.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::DataType;
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::{Format, Granularity};

/// In what form an operator runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// An integer kernel: inputs and weights are quantized.
    Integer,
    /// The weights are stored in few bits, the arithmetic is float.
    WeightOnly,
    /// The operator moves quantized values or is merged into the operator before it.
    Follows,
    /// Float.
    Float,
}

impl Precision {
    /// The word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::WeightOnly => "weight-only",
            Self::Follows => "follows",
            Self::Float => "float",
        }
    }
}

/// What becomes of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Graph path and name.
    pub key: String,
    /// Operator type.
    pub op_type: String,
    /// The form it runs in.
    pub precision: Precision,
    /// Why, where it is not `Integer`; what it follows, where it follows.
    pub reason: String,
    /// Format of its weights, where they are stored in few bits.
    pub weights: Option<Format>,
    /// Format that it wants for the activations that it reads, where it reads them in few bits.
    pub activations: Option<Format>,
}

/// Quantize/dequantize pairs on an activation.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationPlan {
    /// Format of the codes: one scale for the tensor.
    pub format: Format,
    /// Scale, zero point and code range; `None` until calibration has given a range.
    pub params: Option<QParams>,
    /// Float type of the value: the type of the scale.
    pub float: DataType,
    /// The nodes that read the dequantized value; `None` means every consumer, the graph's output too.
    pub readers: Option<BTreeSet<String>>,
}

/// How a weight is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPlan {
    /// Graph path and name of the initializer.
    pub key: String,
    /// Format of the codes; its granularity is always given.
    pub format: Format,
    /// The axis of the output channels; `None` where the operator has none, or one scale serves the tensor.
    pub axis: Option<usize>,
    /// Where blocks and vectors lie, for formats that have them.
    pub blocks: Option<BlockAxis>,
    /// The nodes that read it in this form, with the input slot.
    pub readers: BTreeSet<(String, usize)>,
    /// The operator gathers rows: codes are gathered first and dequantized after.
    pub gathered: bool,
}

/// The axis that blocks are cut along: the operator's reduction axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockAxis {
    /// This axis of the tensor.
    Axis(usize),
    /// This axis and all behind it, read as one: input channels and kernel of a convolution.
    From(usize),
}

impl WeightPlan {
    /// How many values share a scale.
    pub fn granularity(&self) -> Granularity {
        self.format.weight_granularity()
    }
}

/// What becomes of the whole model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PrecisionPlan {
    /// Every node, in program order.
    pub nodes: Vec<NodePlan>,
    /// Activations by value key.
    pub activations: BTreeMap<String, ActivationPlan>,
    /// Weights, in program order of their first reader. A weight may have several forms until shared weights are split.
    pub weights: Vec<WeightPlan>,
}

impl PrecisionPlan {
    /// The plan of a node.
    pub fn node(&self, key: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|n| n.key == key)
    }

    /// Number of nodes in a form.
    pub fn count(&self, precision: Precision) -> usize {
        self.nodes
            .iter()
            .filter(|n| n.precision == precision)
            .count()
    }
}
