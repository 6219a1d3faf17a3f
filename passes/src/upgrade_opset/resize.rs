//! `Upsample` and `Resize`: from an operator that left its coordinates to the runtime to one that spells them out.
//!
//! Until opset 10 the coordinate was `x / scale`, and `nearest` took the pixel below when it enlarged and the one above
//! when it made smaller (the expected outputs of the standard's `resize_downsample_scales_nearest` at opset 10).

use onnx_quant_ir::node::attr_s;
use onnx_quant_ir::{NodeId, NodeSpec, Tensor, ValueId};

use super::{Refusal, Upgrade};

/// `Upsample` (9): `scales` becomes an input.
pub(super) fn upsample_9(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let scales = up.model.node_mut(node).take_attr("scales");
    let scales = scales.ok_or("it has no scales")?.floats;
    let t = Tensor::from_f32(&[scales.len() as i64], &scales);
    up.set_constant(node, 1, "scales", t);
    Ok(())
}

/// `Upsample` → `Resize` (10), which has the same inputs and attributes.
pub(super) fn upsample_10(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    up.model.node_mut(node).proto.op_type = Some("Resize".to_owned());
    Ok(())
}

/// `Resize` (11): the coordinates are written out, and an empty region of interest comes in between.
pub(super) fn resize_11(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let mut scales = up.model.input(node, 1).ok_or("it has no scales")?;
    let nearest = matches!(up.model.node(node).attr_s("mode"), None | Some("nearest"));
    let factors = up.model.constant(scales).map(Tensor::to_f32);
    let mut take = "floor";
    match factors {
        Some(factors) if nearest => {
            let factors = factors.map_err(|e| e.to_string())?;
            let smaller = factors.iter().any(|&f| f < 1.0);
            if smaller && factors.iter().any(|&f| f > 1.0) {
                scales = enlarge_first(up, node, &factors);
            }
            take = if smaller { "ceil" } else { "floor" };
        }
        None if nearest => up.note(node, "its scales are not constant; it is taken to enlarge"),
        _ => {}
    }
    let roi = if up.to >= 13 {
        None
    } else {
        Some(up.constant(node, "roi", Tensor::from_f32(&[0], &[])))
    };
    let x = up.model.input(node, 0);
    up.model.set_inputs(node, &[x, roi, Some(scales)]);
    spell_out(up, node, take);
    Ok(())
}

fn spell_out(up: &mut Upgrade<'_>, node: NodeId, nearest_mode: &str) {
    let n = up.model.node_mut(node);
    n.set_attr(attr_s("coordinate_transformation_mode", "asymmetric"));
    if matches!(n.attr_s("mode"), None | Some("nearest")) {
        n.set_attr(attr_s("nearest_mode", nearest_mode));
    }
}

/// Axes that grow round down and axes that shrink round up: a node of its own for those that grow. Returns the scales
/// that are left.
fn enlarge_first(up: &mut Upgrade<'_>, node: NodeId, factors: &[f32]) -> ValueId {
    let dims = [factors.len() as i64];
    let part = |keep: fn(f32) -> bool| -> Tensor {
        let f: Vec<f32> = factors
            .iter()
            .map(|&f| if keep(f) { f } else { 1.0 })
            .collect();
        Tensor::from_f32(&dims, &f)
    };
    let grow = up.constant(node, "scales_up", part(|f| f > 1.0));
    let shrink = up.constant(node, "scales_down", part(|f| f < 1.0));
    let (name, out) = (up.fresh(node, "up"), up.fresh(node, "enlarged"));
    let graph = up.model.node(node).graph;
    let x = up.model.input(node, 0);
    let out = up.model.add_value(graph, &out);
    let roi = (up.to < 13).then(|| up.constant(node, "up_roi", Tensor::from_f32(&[0], &[])));
    let spec = NodeSpec::new("Resize")
        .name(&name)
        .attr(attr_s("mode", "nearest"));
    let first = up
        .model
        .add_node(graph, spec, &[x, roi, Some(grow)], &[Some(out)]);
    spell_out(up, first, "floor");
    up.model.set_input(node, 0, Some(out));
    shrink
}

/// `Resize` (13): inputs that were empty by convention are left out, and `tf_half_pixel_for_nn` is gone.
pub(super) fn resize_13(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let mode = up.model.node(node).attr_s("coordinate_transformation_mode");
    match mode {
        Some("tf_half_pixel_for_nn") => half_pixel(up, node)?,
        Some("tf_crop_and_resize") => {}
        _ => up.model.set_input(node, 1, None),
    }
    if up.model.input(node, 3).is_some() {
        up.model.set_input(node, 2, None);
    }
    Ok(())
}

/// `⌊(x + ½) / s⌋` is `(x + ½) / s − ½` rounded to the nearest, halves up.
fn half_pixel(up: &mut Upgrade<'_>, node: NodeId) -> Result<(), Refusal> {
    let n = up.model.node_mut(node);
    let nearest = matches!(n.attr_s("mode"), None | Some("nearest"));
    if !nearest || n.attr_s("nearest_mode") != Some("floor") {
        return Err(
            "tf_half_pixel_for_nn went, and only nearest with floor has a counterpart".to_owned(),
        );
    }
    n.set_attr(attr_s("coordinate_transformation_mode", "half_pixel"));
    n.set_attr(attr_s("nearest_mode", "round_prefer_ceil"));
    up.model.set_input(node, 1, None);
    Ok(())
}
