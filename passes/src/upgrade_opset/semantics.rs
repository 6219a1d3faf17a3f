//! Operators that came to mean another thing, or that lost a form.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::node::attr_s;
use onnx_quant_ir::{NodeId, NodeSpec, Tensor, ValueId};

use super::{Refusal, Upgrade};

/// `Softmax`, `LogSoftmax`, `Hardmax` (13): before, the input was taken for a matrix, all axes from `axis` on as its
/// rows, and `axis` was 1 by default.
pub(super) fn softmax_13(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let axis = up.model.node(node).attr_i("axis").unwrap_or(1);
    let x = up.model.input(node, 0).ok_or("it has no input")?;
    if let Some(dims) = up.known.shape(x) {
        let r = dims.len() as i64;
        let at = if axis < 0 {
            axis.saturating_add(r)
        } else {
            axis
        };
        let rest = usize::try_from(at.saturating_add(1)).unwrap_or(0);
        let single = dims.iter().skip(rest).all(|d| d.known() == Some(1));
        if at == r - 1 || (0..r).contains(&at) && single {
            up.model.node_mut(node).set_attr_i("axis", at);
            return Ok(());
        }
    }
    let y = up.model.output(node, 0).ok_or("it has no output")?;
    let graph = up.model.node(node).graph;
    let op = |up: &mut Upgrade<'_>, spec: NodeSpec, inputs: &[ValueId], suffix: &str| {
        let (name, out) = (
            up.fresh(node, suffix),
            up.fresh(node, &format!("{suffix}_out")),
        );
        up.model.add_op(graph, spec.name(&name), inputs, &out)
    };
    let flat = NodeSpec::new("Flatten").attr_i("axis", axis);
    let flat = op(up, flat, &[x], "Flatten");
    let shape = op(up, NodeSpec::new("Shape"), &[x], "Shape");
    let (matrix, last) = (up.fresh(node, "matrix"), up.fresh(node, "Reshape"));
    let matrix = up.model.add_value(graph, &matrix);
    up.model.set_input(node, 0, Some(flat));
    up.model.set_output(node, 0, Some(matrix));
    up.model.node_mut(node).set_attr_i("axis", -1);
    let mut back = NodeSpec::new("Reshape").name(&last);
    if up.to >= 14 {
        back = back.attr_i("allowzero", 1);
    }
    let inputs = [Some(matrix), Some(shape)];
    up.model.add_node(graph, back, &inputs, &[Some(y)]);
    Ok(())
}

/// `BatchNormalization` (9): `spatial` went; 1, the default, is what stayed.
pub(super) fn batch_normalization_9(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    match up.model.node_mut(node).take_attr("spatial") {
        Some(a) if a.i == Some(0) => Err("spatial = 0 has no counterpart".to_owned()),
        _ => Ok(()),
    }
}

/// `BatchNormalization` (14): before, it trained where it had more than one output.
pub(super) fn batch_normalization_14(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let outputs = up.model.outputs(node);
    if outputs.iter().skip(1).any(Option::is_some) {
        return Err("it is in training mode: it has more than one output".to_owned());
    }
    up.model.set_outputs(node, &outputs[..outputs.len().min(1)]);
    Ok(())
}

/// `Dropout` (10): the mask became boolean.
pub(super) fn dropout_10(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let Some(mask) = up.model.output(node, 1) else {
        return Ok(());
    };
    if !up.model.is_unused(mask) {
        return Err("its mask is used, and its type changes".to_owned());
    }
    up.model.drop_value_info(mask);
    Ok(())
}

/// `Dropout` (12): `ratio` becomes an input, and a mask in inference is defined (it was not).
pub(super) fn dropout_12(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let mask = up.model.output(node, 1);
    if mask.is_some_and(|m| !up.model.is_unused(m)) {
        return Err("its mask is used, which had no meaning in inference".to_owned());
    }
    let ratio = up.model.node_mut(node).take_attr("ratio").and_then(|a| a.f);
    if let Some(ratio) = ratio {
        up.set_constant(node, 1, "ratio", Tensor::from_f32(&[], &[ratio]));
    }
    Ok(())
}

/// `Erf` (13): integers went.
pub(super) fn erf_13(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let dtype = up
        .model
        .input(node, 0)
        .and_then(|x| up.known.dtype(up.model, x));
    match dtype {
        Some(d) if d.is_integer() => Err(format!("it takes no {} any more", d.short_name())),
        _ => Ok(()),
    }
}

/// `Scatter` → `ScatterElements` (11), the same operator under another name.
pub(super) fn scatter_11(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    up.model.node_mut(node).proto.op_type = Some("ScatterElements".to_owned());
    Ok(())
}

/// `OneHot` (11): a negative index counts from the end; before, its row was empty.
pub(super) fn one_hot_11(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let indices = up.model.input_constant(node, 0).map(Tensor::to_i64);
    let made_by = up.model.input(node, 0).and_then(|x| up.model.producer(x));
    let arg = made_by.is_some_and(|(n, _)| {
        let n = up.model.node(n);
        n.is("ArgMax") || n.is("ArgMin")
    });
    match indices {
        Some(Ok(i)) if i.iter().all(|&i| i >= 0) => {}
        Some(_) => return Err("it has negative indices".to_owned()),
        None if arg => {}
        None => up.note(node, "its indices are taken not to be negative"),
    }
    Ok(())
}

/// `RoiAlign` (16): the default moved by half a pixel.
pub(super) fn roi_align_16(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let old = attr_s("coordinate_transformation_mode", "output_half_pixel");
    up.model.node_mut(node).set_attr(old);
    Ok(())
}

/// `GridSample` (20): `bilinear` is `linear` now, `bicubic` is `cubic`.
pub(super) fn grid_sample_20(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let n = up.model.node_mut(node);
    let new = match n.attr_s("mode") {
        None | Some("bilinear") => "linear",
        Some("bicubic") => "cubic",
        Some("nearest") => "nearest",
        Some(other) => return Err(format!("mode `{other}` is none of the standard's")),
    };
    n.set_attr(attr_s("mode", new));
    Ok(())
}

/// `GroupNormalization` (21): scale and bias have one entry for each channel, not for each group.
pub(super) fn group_normalization_21(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let groups = up.model.node(node).attr_i("num_groups");
    let groups = groups.filter(|&g| g > 0).ok_or("it has no num_groups")?;
    let x = up.model.input(node, 0).ok_or("it has no input")?;
    let graph = up.model.node(node).graph;
    let op = |up: &mut Upgrade<'_>, spec: NodeSpec, inputs: &[ValueId], suffix: &str| {
        let (name, out) = (
            up.fresh(node, suffix),
            up.fresh(node, &format!("{suffix}_out")),
        );
        up.model.add_op(graph, spec.name(&name), inputs, &out)
    };
    let count = up.constant(node, "groups", Tensor::from_i64(&[1], &[groups]));
    let last = up.constant(node, "last_axis", Tensor::from_i64(&[1], &[1]));
    let flat = up.constant(node, "flat", Tensor::from_i64(&[1], &[-1]));
    let shape = NodeSpec::new("Shape").attr_i("start", 1).attr_i("end", 2);
    let channels = op(up, shape, &[x], "Shape");
    let each = op(up, NodeSpec::new("Div"), &[channels, count], "Div");
    let concat = NodeSpec::new("Concat").attr_i("axis", 0);
    let wide = op(up, concat, &[count, each], "Concat");
    for (slot, what) in [(1, "scale"), (2, "bias")] {
        let v = up
            .model
            .input(node, slot)
            .ok_or("it has no scale or no bias")?;
        let name = |s: &str| format!("{what}_{s}");
        let v = op(
            up,
            NodeSpec::new("Unsqueeze"),
            &[v, last],
            &name("Unsqueeze"),
        );
        let v = op(up, NodeSpec::new("Expand"), &[v, wide], &name("Expand"));
        let v = op(up, NodeSpec::new("Reshape"), &[v, flat], &name("Reshape"));
        up.model.set_input(node, slot, Some(v));
    }
    Ok(())
}
