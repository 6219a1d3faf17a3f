//! Operators of our own in tract: Q/DQ by the standard, and the identity that hands out a watched value.

mod observe;
mod qdq;

use onnx_quant_passes::lower_qdq::EXEC_DOMAIN;
use tract_onnx::Onnx;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::{TractResult, bail};

pub(super) use observe::{OBSERVE, Observe, constant_observations};

/// tract's ONNX reader with our operators. Q/DQ that are not lowered are refused: tract's own are not exact.
pub(super) fn framework() -> Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    let register = &mut onnx.op_register;
    register.insert(OBSERVE, |_, node| Ok((observe::build(node)?, vec![])));
    for op in ["Quantize", "Dequantize", "FakeQuantize"] {
        register.insert(op, |_, node| Ok((qdq::build(node)?, vec![])));
    }
    for op in ["QuantizeLinear", "DequantizeLinear"] {
        register.insert(op, |_, node| {
            bail!("{} of these types is not supported", node.op_type)
        });
    }
    onnx
}

/// An integer attribute of one of our own operators.
fn attr_i(node: &NodeProto, name: &str) -> TractResult<Option<i64>> {
    debug_assert_eq!(node.domain, EXEC_DOMAIN);
    node.get_attr_opt(name)
}
