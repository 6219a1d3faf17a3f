//! The operators of com.microsoft: element by element, pooling, Concat, activation functions.

use onnx_quant_ir::node;
use onnx_quant_ir::{Model, NodeId, NodeSpec, ValueId};

use super::group::{self, Output};
use crate::integer_product::Operand;
use crate::ops;

/// Lowers the node where there is an operator for it and all its data are codes of one type.
pub(super) fn lower(model: &mut Model, node: NodeId) -> bool {
    let Some(y) = group::output(model, node) else {
        return false;
    };
    let n = model.node(node);
    let (op, slots) = (
        n.op_type().to_owned(),
        ops::data_slots(n.op_type(), n.input_count),
    );
    let operands: Option<Vec<Operand>> = slots.map(|s| group::operand(model, node, s)).collect();
    let Some(operands) = operands.filter(|o| same_type(model, o, &y)) else {
        return false;
    };
    let triples: Vec<Option<ValueId>> = operands.iter().copied().flat_map(group::triple).collect();
    let result = [Some(y.scale), Some(y.zero)];
    let mut inputs = triples.clone();
    match (op.as_str(), operands.len()) {
        ("Add" | "Mul", 2)
        | ("LeakyRelu" | "Sigmoid" | "Softmax" | "AveragePool" | "GlobalAveragePool", 1) => {
            inputs.extend(result);
        }
        ("Concat", _) => {
            inputs = result.to_vec();
            inputs.extend(triples);
        }
        ("Where", 2) => {
            inputs = vec![model.input(node, 0)];
            inputs.extend(triples);
            inputs.extend(result);
        }
        _ => return false,
    }
    let spec = spec(model, node, &op);
    group::replace(model, node, &y, spec, &inputs);
    true
}

fn same_type(model: &Model, operands: &[Operand], y: &Output) -> bool {
    let wanted = group::code_type(model, y.zero);
    let same = |o: &Operand| group::code_type(model, o.zero) == wanted;
    !operands.is_empty() && operands.iter().all(same)
}

fn spec(model: &Model, node: NodeId, op: &str) -> NodeSpec {
    let n = model.node(node);
    let mut spec = NodeSpec::new(&format!("QLinear{op}"))
        .domain("com.microsoft")
        .name(n.name());
    for a in n.proto.attribute.clone() {
        spec = spec.attr(a);
    }
    match op {
        "Softmax" => {
            if n.attr("axis").is_none() {
                spec = spec.attr_i("axis", -1);
            }
            spec.attr_i("opset", model.opset("").unwrap_or(13))
        }
        "AveragePool" | "GlobalAveragePool" => spec.attr(node::attr_i("channels_last", 0)),
        _ => spec,
    }
}
