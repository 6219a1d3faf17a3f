//! Where the channels of a linear operator stand in its weight.

use onnx_quant_ir::{Model, NodeId};

use super::channels::{Channels, Places, Side};
use crate::ops;

/// The input channels in the weight of an operator that reads them.
pub(super) fn reader_side(
    model: &Model,
    node: NodeId,
    linear: &ops::Linear,
    c: Channels,
) -> Result<Side, String> {
    let n = model.node(node);
    let weight = model
        .input_constant(node, linear.weight)
        .ok_or("its weight is not a constant")?;
    let dims: Vec<usize> = weight.dims().iter().map(|&d| d as usize).collect();
    let spread = |d: &[usize]| d.iter().product::<usize>();
    let groups = n.attr_i("group").unwrap_or(1).max(1) as usize;
    let layout = match (n.op_type(), dims.as_slice()) {
        ("Conv", [m, per_group, kernel @ ..]) if c.axis == 1 => Places {
            groups,
            outer: m / groups,
            channels: *per_group,
            inner: spread(kernel),
            repeat: c.repeat,
        },
        ("ConvTranspose", [channels, rest @ ..]) if c.axis == 1 => Places {
            repeat: c.repeat,
            ..Places::plain(1, *channels, spread(rest))
        },
        ("Gemm", [a, b]) if c.axis == 1 && n.attr_i("transA").unwrap_or(0) == 0 => {
            match n.attr_i("transB").unwrap_or(0) {
                0 => Places {
                    repeat: c.repeat,
                    ..Places::plain(1, *a, *b)
                },
                _ => Places {
                    repeat: c.repeat,
                    ..Places::plain(*a, *b, 1)
                },
            }
        }
        ("MatMul", [k, m]) if linear.weight == 1 => Places {
            repeat: c.repeat,
            ..Places::plain(1, *k, *m)
        },
        _ => return Err("the channels are not those of its sums".to_owned()),
    };
    Ok(Side {
        node,
        slot: linear.weight,
        layout,
    })
}

/// The output channels in the weight of an operator that makes them.
pub(super) fn maker_side(
    model: &Model,
    node: NodeId,
    linear: &ops::Linear,
) -> Option<(Side, usize)> {
    let n = model.node(node);
    let weight = model.input_constant(node, linear.weight)?;
    let dims: Vec<usize> = weight.dims().iter().map(|&d| d as usize).collect();
    let spread = |d: &[usize]| d.iter().product::<usize>();
    let groups = n.attr_i("group").unwrap_or(1).max(1) as usize;
    let layout = match (n.op_type(), dims.as_slice()) {
        ("Conv", [m, rest @ ..]) => Places::plain(1, *m, spread(rest)),
        ("ConvTranspose", [c, m, kernel @ ..]) => Places {
            groups,
            outer: c / groups,
            channels: *m,
            inner: spread(kernel),
            repeat: 1,
        },
        ("Gemm", [a, b]) => match n.attr_i("transB").unwrap_or(0) {
            0 => Places::plain(*a, *b, 1),
            _ => Places::plain(1, *a, *b),
        },
        ("MatMul", [k, m]) if linear.weight == 1 => Places::plain(*k, *m, 1),
        _ => return None,
    };
    Some((
        Side {
            node,
            slot: linear.weight,
            layout,
        },
        layout.groups * layout.channels,
    ))
}
