//! Quantized types in MLIR's notation (`quant` dialect, uniform types without the `!quant.uniform<>` around them):
//! storage type, its range where narrower than the type, expressed type, axis, scales and zero points.
//!
//! `u8:f32, 0.02:128` · `i8<-127:127>:f32:0, {0.021, 0.034}` · `i4:f32:{0:32}, {0.5, 0.25, … 64}`

use std::fmt;

use super::digest::short_number;
use super::literal;
use crate::dtype::{DataType, DataTypeExt};
use crate::model::{Model, NodeId};
use crate::tensor::Tensor;

/// Scales that are written out; of more, the first ones and the number.
const SHOWN: usize = 4;

/// What a QuantizeLinear or DequantizeLinear node with constant parameters makes of its input.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantType {
    /// The type of the codes.
    pub storage: DataType,
    /// The range of the codes, where constant codes do not use the lowest code of a signed type (narrow range).
    pub range: Option<(i64, i64)>,
    /// The type of the real values.
    pub expressed: DataType,
    /// The axis, where there is a scale for each index or block.
    pub axis: Option<i64>,
    /// Elements of a block on the axis.
    pub block: Option<i64>,
    /// The scales.
    pub scales: Vec<f32>,
    /// The zero points; empty where absent.
    pub zero_points: Vec<i64>,
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.storage.short_name())?;
        if let Some((low, high)) = self.range {
            write!(f, "<{low}:{high}>")?;
        }
        write!(f, ":{}", self.expressed.short_name())?;
        match (self.axis, self.block) {
            (Some(axis), Some(block)) => write!(f, ":{{{axis}:{block}}}")?,
            (Some(axis), None) => write!(f, ":{axis}")?,
            _ => {}
        }
        let one = |i: usize| {
            let scale = short_number(self.scales[i]);
            match self.zero_points.get(i) {
                Some(z) if *z != 0 => format!("{scale}:{z}"),
                _ => scale,
            }
        };
        if self.axis.is_none() && self.scales.len() == 1 {
            return write!(f, ", {}", one(0));
        }
        let mut shown: Vec<String> = (0..self.scales.len().min(SHOWN)).map(one).collect();
        if self.scales.len() > SHOWN {
            shown.push(format!("… {}", self.scales.len()));
        }
        write!(f, ", {{{}}}", shown.join(", "))
    }
}

/// The parts that a type is read from.
pub(super) struct Parts<'a> {
    pub(super) axis: Option<i64>,
    pub(super) block: Option<i64>,
    pub(super) declared: Option<DataType>,
    pub(super) codes: Option<&'a Tensor>,
    pub(super) scale: &'a Tensor,
    pub(super) zero_point: Option<&'a Tensor>,
}

/// The type that the parts describe; `None` where the scale is no float tensor.
pub(super) fn read(parts: &Parts<'_>) -> Option<QuantType> {
    let scales = parts.scale.to_f32().ok()?;
    let storage = parts
        .codes
        .or(parts.zero_point)
        .map(Tensor::dtype)
        .or(parts.declared)
        .unwrap_or(DataType::Uint8);
    let integers = |t: &Tensor| -> Option<Vec<i64>> {
        let codes = literal::integers(t, &t.bytes().ok()?)?;
        Some(codes.into_iter().map(|c| c as i64).collect())
    };
    let codes = parts.codes.and_then(integers).unwrap_or_default();
    let lowest = literal::integer_range(storage).filter(|r| r.0 < 0 && storage != DataType::Int32);
    let range = lowest
        .map(|(low, high)| (low as i64, high as i64))
        .filter(|(low, _)| !codes.is_empty() && !codes.contains(low))
        .map(|(low, high)| (low + 1, high));
    let per_axis = !parts.scale.dims().is_empty() && scales.len() != 1 || parts.block.is_some();
    Some(QuantType {
        storage,
        range,
        expressed: parts.scale.dtype(),
        axis: per_axis.then(|| parts.axis.unwrap_or(1)),
        block: parts.block,
        zero_points: parts.zero_point.and_then(integers).unwrap_or_default(),
        scales,
    })
}

/// The quantized type at a QuantizeLinear or DequantizeLinear node with constant scale; `None` at other nodes.
pub fn quant_type(model: &Model, node: NodeId) -> Option<QuantType> {
    let n = model.node(node);
    if !n.is("QuantizeLinear") && !n.is("DequantizeLinear") {
        return None;
    }
    let declared = n
        .attr_i("output_dtype")
        .and_then(|t| DataType::from_number(t as i32));
    read(&Parts {
        axis: n.attr_i("axis"),
        block: n.attr_i("block_size").filter(|&b| b > 0),
        declared: declared.filter(|_| n.is("QuantizeLinear")),
        codes: model
            .input_constant(node, 0)
            .filter(|_| n.is("DequantizeLinear")),
        scale: model.input_constant(node, 1)?,
        zero_point: model.input_constant(node, 2),
    })
}
