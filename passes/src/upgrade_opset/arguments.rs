//! Attributes that became inputs.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{NodeId, Tensor};

use super::{Refusal, Upgrade};

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_i64(&[values.len() as i64], values)
}

/// Moves a list of integers from an attribute to an input; `false` where the attribute is absent or empty.
fn list_to_input(up: &mut Upgrade<'_>, node: NodeId, attr: &str, slot: usize) -> bool {
    match up.model.node_mut(node).take_attr(attr) {
        Some(a) if !a.ints.is_empty() => {
            up.set_constant(node, slot, attr, ints(&a.ints));
            true
        }
        _ => false,
    }
}

/// `Squeeze`, `ReduceSum` (13) and the other reductions (18): `axes`. Without it all axes, as before.
pub(super) fn axes(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    list_to_input(up, node, "axes", 1);
    Ok(())
}

/// `Unsqueeze` (13): `axes`, which it must have.
pub(super) fn unsqueeze_13(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    if list_to_input(up, node, "axes", 1) {
        Ok(())
    } else {
        Err("it has no axes".to_owned())
    }
}

/// `Split` (13): `split`. Without it equal parts, as before.
pub(super) fn split_13(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    list_to_input(up, node, "split", 1);
    Ok(())
}

/// `Split` (18): equal parts are asked for by `num_outputs`.
pub(super) fn split_18(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    if up.model.input(node, 1).is_none() {
        let parts = up.model.node(node).output_count as i64;
        up.model.node_mut(node).set_attr_i("num_outputs", parts);
    }
    Ok(())
}

/// Puts a float attribute into an input as a scalar of the type of input 0.
fn scalar_to_input(
    up: &mut Upgrade<'_>,
    node: NodeId,
    (slot, suffix): (usize, &str),
    value: f32,
) -> Result<(), Refusal> {
    let x = up.model.input(node, 0).ok_or("it has no input")?;
    let dtype = match up.known.dtype(up.model, x) {
        Some(dtype) => dtype,
        None => {
            let only = up.known.only_float.ok_or(
                "the type of its input is not known, and the model has not just one float type; \
                 infer the model's shapes first",
            )?;
            let what = "the type of its input is not known and taken to be";
            up.note(
                node,
                &format!("{what} {}, as all floats of the model", only.short_name()),
            );
            only
        }
    };
    let t = Tensor::from_f32_as(dtype, &[], &[value]).map_err(|e| e.to_string())?;
    up.set_constant(node, slot, suffix, t);
    Ok(())
}

/// `Clip` (11): `min` and `max`. The defaults were the ends of FP32 and clip nothing.
pub(super) fn clip_11(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    for (slot, attr, end) in [(1, "min", f32::MIN), (2, "max", f32::MAX)] {
        let bound = up.model.node_mut(node).take_attr(attr).and_then(|a| a.f);
        if let Some(bound) = bound.filter(|&b| b != end) {
            scalar_to_input(up, node, (slot, attr), bound)?;
        }
    }
    Ok(())
}

/// `Pad` (11): `pads` and `value`.
pub(super) fn pad_11(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let pads = up.model.node_mut(node).take_attr("pads");
    let pads = pads.ok_or("it has no pads")?.ints;
    up.set_constant(node, 1, "pads", ints(&pads));
    let value = up.model.node_mut(node).take_attr("value");
    let mode = up.model.node(node).attr_s("mode").unwrap_or("constant");
    match value.and_then(|a| a.f) {
        Some(v) if v != 0.0 && mode == "constant" => scalar_to_input(up, node, (2, "value"), v),
        _ => Ok(()),
    }
}

/// `Slice` (10): `starts`, `ends` and `axes`.
pub(super) fn slice_10(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let n = up.model.node_mut(node);
    let list = |a: Option<onnx_quant_ir::proto::AttributeProto>| a.map(|a| a.ints);
    let (starts, ends) = (list(n.take_attr("starts")), list(n.take_attr("ends")));
    let axes = list(n.take_attr("axes")).filter(|a| !a.is_empty());
    let (Some(starts), Some(ends)) = (starts, ends) else {
        return Err("it has no starts or no ends".to_owned());
    };
    if starts.len() != ends.len() || axes.as_ref().is_some_and(|a| a.len() != starts.len()) {
        return Err("its starts, ends and axes differ in number".to_owned());
    }
    up.set_constant(node, 1, "starts", ints(&starts));
    up.set_constant(node, 2, "ends", ints(&ends));
    if let Some(axes) = axes {
        up.set_constant(node, 3, "axes", ints(&axes));
    }
    Ok(())
}

/// `TopK` (10): `k`.
pub(super) fn top_k_10(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let k = up.model.node_mut(node).take_attr("k").and_then(|a| a.i);
    let k = k.ok_or("it has no k")?;
    up.set_constant(node, 1, "k", ints(&[k]));
    Ok(())
}

/// `DFT` (20): `axis`. The default was 1 and is −2 now, so it is always written.
pub(super) fn dft_20(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let axis = up.model.node_mut(node).take_attr("axis").and_then(|a| a.i);
    let axis = Tensor::from_i64(&[], &[axis.unwrap_or(1)]);
    up.set_constant(node, 2, "axis", axis);
    Ok(())
}
