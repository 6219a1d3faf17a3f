//! The pairs around an operator: codes that come in, the QuantizeLinear that the result goes to.

use onnx_quant_ir::{DataType, Model, NodeId, NodeSpec, Tensor, ValueId};

use super::operand_of;
use crate::integer_product::Operand;
use crate::ops;
use crate::qdq::{self, Qdq};

/// Where the result of an operator becomes codes.
#[derive(Debug, Clone)]
pub(super) struct Output {
    /// The codes.
    pub(super) codes: ValueId,
    pub(super) scale: ValueId,
    pub(super) zero: ValueId,
    /// The QuantizeLinear, and the Relu or Clip that the range of the codes makes redundant.
    dead: Vec<NodeId>,
}

/// Whether a conversion has one constant FP32 scale and a zero point of 8 bits.
fn plain(model: &Model, q: &Qdq) -> bool {
    let scale = model.constant(q.scale);
    let zero = q.zero_point.and_then(|z| model.constant(z));
    scale.is_some_and(|s| s.dtype() == DataType::Float && s.element_count() == Ok(1))
        && zero.is_some_and(|z| matches!(z.dtype(), DataType::Int8 | DataType::Uint8))
}

/// The codes behind an input.
pub(super) fn operand(model: &Model, node: NodeId, slot: usize) -> Option<Operand> {
    let dq = qdq::dequantized_by(model, model.input(node, slot)?)?;
    if !plain(model, &dq) || model.constant(dq.input).is_some() {
        return None;
    }
    operand_of(&dq)
}

/// Codes, scale and zero point as inputs.
pub(super) fn triple(x: Operand) -> Vec<Option<ValueId>> {
    vec![Some(x.codes), Some(x.scale), Some(x.zero)]
}

/// The one QuantizeLinear that reads a node's first output.
pub(super) fn output(model: &Model, node: NodeId) -> Option<Output> {
    output_of(model, model.output(node, 0)?)
}

fn only_reader(model: &Model, value: ValueId) -> Option<NodeId> {
    let free = !model.value(value).is_output() && model.captures(value).is_empty();
    match model.consumers(value)[..] {
        [(node, 0)] if free => Some(node),
        _ => None,
    }
}

pub(super) fn output_of(model: &Model, value: ValueId) -> Option<Output> {
    let mut reader = only_reader(model, value)?;
    let mut dead = Vec::new();
    let bounds = ops::clamp_bounds(model, reader);
    if bounds.is_some() {
        dead.push(reader);
        reader = only_reader(model, model.output(reader, 0)?)?;
    }
    let q = qdq::quantize(model, reader).filter(|q| plain(model, q))?;
    if bounds.is_some_and(|b| !redundant(model, &q, b)) {
        return None;
    }
    dead.push(reader);
    Some(Output {
        codes: q.output,
        scale: q.scale,
        zero: q.zero_point?,
        dead,
    })
}

/// Whether codes cannot leave the bounds: `round(low / S) + Z ≤ qmin` and `round(high / S) + Z ≥ qmax`.
fn redundant(model: &Model, q: &Qdq, (low, high): (f32, f32)) -> bool {
    let zero = q.zero_point.and_then(|z| model.constant(z));
    let (Some(scale), Some(zero)) = (qdq::scalar_scale(model, q), zero) else {
        return false;
    };
    let (qmin, qmax) = match zero.dtype() {
        DataType::Int8 => (-128.0, 127.0),
        _ => (0.0, 255.0),
    };
    let z = zero.scalar_i64().unwrap_or(0) as f32;
    let code = |x: f32| (x / scale).round_ties_even() + z;
    code(low) <= qmin && code(high) >= qmax
}

/// Puts an operator on codes in the place of the whole group.
pub(super) fn replace(
    model: &mut Model,
    node: NodeId,
    y: &Output,
    spec: NodeSpec,
    inputs: &[Option<ValueId>],
) {
    let graph = model.node(node).graph;
    for &n in std::iter::once(&node).chain(&y.dead) {
        model.set_outputs(n, &[]);
        model.remove_node(n);
    }
    model.add_node(graph, spec, inputs, &[Some(y.codes)]);
}

/// Lets an operator that moves values move the codes; the parameters are the same on both sides.
pub(super) fn move_codes(model: &mut Model, node: NodeId) -> bool {
    let source = model
        .input(node, 0)
        .and_then(|v| qdq::dequantized_by(model, v));
    let Some(source) = source.filter(|s| plain(model, s) && model.constant(s.input).is_none())
    else {
        return false;
    };
    let outputs = model.outputs(node);
    let quantized: Option<Vec<Option<Qdq>>> = outputs
        .iter()
        .map(|o| match o {
            None => Some(None),
            Some(v) => {
                let q = qdq::quantize(model, only_reader(model, *v)?)?;
                qdq::same_parameters(model, &source, &q).then_some(Some(q))
            }
        })
        .collect();
    let Some(quantized) = quantized.filter(|q| q.iter().any(Option::is_some)) else {
        return false;
    };
    model.set_input(node, 0, Some(source.input));
    for (slot, q) in quantized.into_iter().enumerate() {
        let Some(q) = q else { continue };
        model.set_outputs(q.node, &[]);
        model.remove_node(q.node);
        model.set_output(node, slot, Some(q.output));
    }
    true
}

/// The zero point's data, for tests of equality of types.
pub(super) fn code_type(model: &Model, zero: ValueId) -> Option<DataType> {
    model.constant(zero).map(Tensor::dtype)
}
