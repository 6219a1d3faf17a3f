//! The type of the values that are not quantized.

use onnx_quant_ir::{DataType, Model, NodeId};
use onnx_quant_numerics::format::Base;

use super::{SelectionError, compile, matches, suggest};

/// Which float type the graph computes in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FloatSettings {
    /// `fp16` or `bf16`; FP32 stays FP32 without it.
    pub base: Option<Base>,
    /// Operators that stay FP32: types, or globs over node names; `None` for the types that are kept by default,
    /// [`KEPT`](crate::cast_floats::KEPT).
    pub keep: Option<Vec<String>>,
    /// Inputs and outputs of the graph change their type too.
    pub cast_io: bool,
    /// Biases that are not quantized are stored in FP16, with a Cast behind them.
    pub half_biases: bool,
}

impl FloatSettings {
    /// The type that values are cast to, where they are.
    pub fn dtype(&self) -> Option<DataType> {
        match self.base? {
            Base::Fp16 => Some(DataType::Float16),
            Base::Bf16 => Some(DataType::Bfloat16),
            _ => None,
        }
    }

    /// Whether an operator is on the list of those that stay FP32.
    ///
    /// # Errors
    /// A pattern that is none or names nothing.
    pub fn kept(&self, model: &Model) -> Result<Vec<NodeId>, SelectionError> {
        const OPTION: &str = "--fp32-ops";
        let nodes = model.all_nodes();
        let Some(patterns) = &self.keep else {
            let kept = |n: &NodeId| crate::cast_floats::KEPT.contains(&model.node(*n).op_type());
            return Ok(nodes.into_iter().filter(kept).collect());
        };
        let mut kept = Vec::new();
        for (pattern, glob) in compile(OPTION, patterns)? {
            let named = |n: &NodeId| matches(&pattern, &glob, model, *n);
            let before = kept.len();
            kept.extend(nodes.iter().copied().filter(named));
            if kept.len() == before {
                return Err(SelectionError::NoMatch {
                    option: OPTION.to_owned(),
                    suggestion: suggest(&pattern, model),
                    pattern,
                });
            }
        }
        Ok(kept)
    }
}
