//! What operators are to a quantizer: which input is a weight and where its channels lie, which operators have an
//! integer kernel, which only move values.
//!
//! Source of the kernel table: the fusions of onnxruntime's CPU provider.

use onnx_quant_ir::{DataType, Model, NodeId, ValueId};

use crate::plan::BlockAxis;

/// A linear operator with a constant weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Input slot of the activation.
    pub activation: usize,
    /// Input slot of the weight.
    pub weight: usize,
    /// Input slot of the bias, where the operator has one and it is connected.
    pub bias: Option<usize>,
    /// Axis of the output channels of the weight; `None` where one scale serves the tensor.
    pub axis: Option<usize>,
    /// The reduction axis of the weight, which blocks are cut along.
    pub blocks: BlockAxis,
    /// An integer kernel exists.
    pub kernel: Kernel,
}

/// Which integer kernel a linear operator has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Needs a quantized output (`QLinearConv`).
    QuantizedOutput,
    /// Gives a float output where no quantized one is wanted (`QGemm`, `MatMulIntegerToFloat`).
    AnyOutput,
    /// None, and why: the weight is stored in few bits only.
    None(&'static str),
}

/// Why a linear operator cannot be quantized.
pub type Refusal = String;

/// The linear operator behind a node; `None` for other operators.
pub fn linear(model: &Model, node: NodeId) -> Option<Result<Linear, Refusal>> {
    let n = model.node(node);
    if !n.domain().is_empty() {
        return None;
    }
    match n.op_type() {
        "Conv" => Some(conv(model, node, 0, Kernel::QuantizedOutput)),
        "ConvTranspose" => {
            // With groups, axis 1 counts the outputs of one group; axis 0 keeps the groups apart.
            let axis = usize::from(n.attr_i("group").unwrap_or(1) == 1);
            Some(conv(model, node, axis, Kernel::QuantizedOutput))
        }
        "Gemm" => Some(gemm(model, node)),
        "MatMul" => Some(matmul(model, node)),
        _ => None,
    }
}

fn weight_of(model: &Model, node: NodeId, slot: usize) -> Result<ValueId, Refusal> {
    let value = model
        .input(node, slot)
        .ok_or_else(|| "its weight is missing".to_owned())?;
    let v = model.value(value);
    if v.init.is_none() {
        return Err("its weight is computed at run time".to_owned());
    }
    if v.is_input() {
        return Err(format!(
            "its weight `{}` is also a graph input, which a caller may override",
            v.name
        ));
    }
    match v.dtype() {
        Some(DataType::Float | DataType::Float16) => Ok(value),
        other => Err(format!(
            "its weight is of type {}, and only f32 and f16 are quantized",
            other.map_or("unknown", onnx_quant_ir::dtype::DataTypeExt::short_name)
        )),
    }
}

fn rank(model: &Model, value: ValueId) -> usize {
    model
        .value(value)
        .init
        .as_ref()
        .map_or(0, |t| t.dims().len())
}

fn conv(model: &Model, node: NodeId, axis: usize, kernel: Kernel) -> Result<Linear, Refusal> {
    let weight = weight_of(model, node, 1)?;
    if rank(model, weight) < 3 {
        return Err("its weight has fewer than three dimensions".to_owned());
    }
    Ok(Linear {
        activation: 0,
        weight: 1,
        bias: model.input(node, 2).map(|_| 2),
        axis: Some(axis),
        blocks: match axis {
            0 if kernel_size(model, weight) == 1 => BlockAxis::Axis(1),
            0 => BlockAxis::From(1),
            _ => BlockAxis::Axis(0),
        },
        kernel: match model.input(node, 2) {
            Some(b) if model.constant(b).is_none() => Kernel::None(COMPUTED_BIAS),
            _ => kernel,
        },
    })
}

/// Weights of one input channel that a convolution's output channel reads.
fn kernel_size(model: &Model, weight: ValueId) -> i64 {
    let tensor = model.value(weight).init.as_ref();
    tensor.map_or(1, |t| t.dims().iter().skip(2).product())
}

const COMPUTED_BIAS: &str =
    "its bias is computed at run time, and the integer kernel takes a constant";

fn gemm(model: &Model, node: NodeId) -> Result<Linear, Refusal> {
    let n = model.node(node);
    let weight = weight_of(model, node, 1)?;
    if rank(model, weight) != 2 {
        return Err("its weight is not a matrix".to_owned());
    }
    let axis = usize::from(n.attr_i("transB").unwrap_or(0) == 0);
    let bias = model.input(node, 2);
    let columns = model
        .constant(weight)
        .and_then(|t| t.dims().get(axis).copied());
    let kernel = match bias.map(|b| model.constant(b)) {
        Some(None) => Kernel::None(COMPUTED_BIAS),
        // Without a bias `beta` has no meaning; the runtime looks at it nevertheless.
        _ if n.attr_f("alpha").unwrap_or(1.0) != 1.0 || n.attr_f("beta").unwrap_or(1.0) != 1.0 => {
            Kernel::None("the integer kernel knows no alpha or beta")
        }
        Some(Some(t))
            if t.element_count() != Ok(1)
                && (t.element_count().ok() != columns.map(|c| c as usize)
                    || t.dims().last() != columns.as_ref()) =>
        {
            Kernel::None("its bias has not one value for each output channel")
        }
        _ => Kernel::AnyOutput,
    };
    Ok(Linear {
        activation: 0,
        weight: 1,
        bias: model.input(node, 2).map(|_| 2),
        axis: Some(axis),
        blocks: BlockAxis::Axis(1 - axis),
        kernel,
    })
}

fn matmul(model: &Model, node: NodeId) -> Result<Linear, Refusal> {
    let plain = |activation, weight, axis, blocks| {
        Ok(Linear {
            activation,
            weight,
            bias: None,
            axis,
            blocks: BlockAxis::Axis(blocks),
            kernel: Kernel::AnyOutput,
        })
    };
    let computed = |slot| {
        model
            .input(node, slot)
            .is_some_and(|v| model.value(v).init.is_none())
    };
    match (weight_of(model, node, 1), weight_of(model, node, 0)) {
        (Ok(w), _) if rank(model, w) == 2 => plain(0, 1, Some(1), 0),
        (Ok(w), _) if rank(model, w) > 2 => plain(0, 1, None, rank(model, w) - 2),
        (Err(_), Ok(w)) if rank(model, w) >= 2 => plain(1, 0, None, rank(model, w) - 1),
        (Ok(_), _) | (_, Ok(_)) => Err("its weight is a vector".to_owned()),
        (Err(_), Err(_)) if computed(0) && computed(1) => Err(
            "both its inputs are activations: quantizing both loses accuracy for a small gain"
                .to_owned(),
        ),
        (Err(e), Err(_)) => Err(e),
    }
}

/// Whether the node looks up rows of a constant float table of at least two dimensions on axis 0 (an embedding).
pub fn embedding(model: &Model, node: NodeId) -> Option<ValueId> {
    let n = model.node(node);
    if !n.is("Gather") || n.attr_i("axis").unwrap_or(0) != 0 {
        return None;
    }
    let table = weight_of(model, node, 0).ok()?;
    (rank(model, table) == 2).then_some(table)
}

/// The weight slots of a recurrent operator (input and recurrence weights, channels on axis 1) that hold constants.
pub fn recurrent(model: &Model, node: NodeId) -> Vec<usize> {
    let n = model.node(node);
    if !["LSTM", "GRU", "RNN"].iter().any(|op| n.is(op)) {
        return Vec::new();
    }
    let constant = |&slot: &usize| weight_of(model, node, slot).is_ok_and(|w| rank(model, w) == 3);
    [1, 2].into_iter().filter(constant).collect()
}

/// The linear operator behind a node whose weight is a constant behind a DequantizeLinear.
pub fn dequantized_linear(model: &Model, node: NodeId) -> Option<Linear> {
    let coded = |slot| crate::integer_product::coded_weight(model, node, slot).is_some();
    let n = model.node(node);
    if !n.domain().is_empty() {
        return None;
    }
    let bias = |slot| model.input(node, slot).map(|_| slot);
    let (activation, weight, bias) = match n.op_type() {
        "Conv" | "Gemm" if coded(1) => (0, 1, bias(2)),
        "MatMul" if coded(1) => (0, 1, None),
        "MatMul" if coded(0) => (1, 0, None),
        _ => return None,
    };
    Some(Linear {
        activation,
        weight,
        bias,
        axis: None,
        blocks: BlockAxis::Axis(0),
        kernel: Kernel::AnyOutput,
    })
}

/// Whether the node is a matrix product of two values that are both computed.
pub fn activation_product(model: &Model, node: NodeId) -> bool {
    let computed = |slot| {
        let value = model.input(node, slot);
        value.is_some_and(|v| model.value(v).init.is_none())
    };
    model.node(node).is("MatMul") && computed(0) && computed(1)
}

/// The input slots of an operator that hold data, and not parameters such as sizes or exponents.
pub fn data_slots(op: &str, inputs: usize) -> std::ops::Range<usize> {
    match op {
        "Resize" | "Pow" | "BatchNormalization" | "LayerNormalization" => 0..1,
        "Where" => 1..3,
        _ => 0..inputs,
    }
}

/// Operators that move or select values without computing new ones: codes pass through with the parameters of the
/// first input.
pub fn is_preserving(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    if !n.domain().is_empty() {
        return false;
    }
    match n.op_type() {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" | "Slice" | "Expand"
        | "Tile" | "Split" | "DepthToSpace" | "SpaceToDepth" => true,
        "Gather" | "GatherElements" => true,
        "ReduceMax" | "ReduceMin" => true,
        "MaxPool" => n.output_count < 2 || model.output(node, 1).is_none(),
        "Resize" => n.attr_s("mode").unwrap_or("nearest") == "nearest",
        _ => false,
    }
}

/// The range of an operator's output that is known without data.
pub fn known_range(model: &Model, value: ValueId) -> Option<(f32, f32)> {
    let (node, slot) = model.producer(value)?;
    let n = model.node(node);
    if slot != 0 || !n.domain().is_empty() {
        return None;
    }
    match n.op_type() {
        "Softmax" | "Sigmoid" | "HardSigmoid" => Some((0.0, 1.0)),
        _ => None,
    }
}

/// The bounds that a Relu or a Clip with constant bounds sets; `None` for other operators.
pub fn clamp_bounds(model: &Model, node: NodeId) -> Option<(f32, f32)> {
    let n = model.node(node);
    if n.is("Relu") {
        return Some((0.0, f32::INFINITY));
    }
    if !n.is("Clip") {
        return None;
    }
    let bound = |slot: usize, default: f32| match model.input(node, slot) {
        None => Some(default),
        Some(v) => model
            .constant(v)
            .and_then(onnx_quant_ir::Tensor::scalar_f32),
    };
    Some((bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?))
}
