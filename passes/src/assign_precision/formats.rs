//! In which format an activation is quantized where the nodes around it want different ones.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::format::Format;

use super::placement::{Mode, Placement, Quantized};

type Formats = BTreeMap<ValueId, Format>;

/// The format of every quantized value. Those that read it decide, and the one with the most bits wins, so that no
/// reader gets less than it asked for. Where nobody reads it in few bits, the operator behind it decides. Operators
/// that move values have the same format on both sides.
pub(super) fn activation_formats(
    model: &Model,
    placement: &Placement<'_>,
    quantized: &Quantized,
) -> Formats {
    let mut formats = Formats::new();
    let nodes = model.all_nodes();
    let moves = |node: NodeId| placement.modes[&node] == Mode::Preserving;
    for &node in nodes.iter().rev() {
        let format = if moves(node) {
            let outputs = model.outputs(node).into_iter().flatten();
            outputs
                .filter_map(|v| formats.get(&v).copied())
                .reduce(wider)
        } else {
            placement.wanted_format(node)
        };
        let Some(format) = format else { continue };
        for (slot, value) in model.inputs(node).into_iter().enumerate() {
            if let Some(v) = value.filter(|_| placement.reads(node, slot)) {
                formats
                    .entry(v)
                    .and_modify(|f| *f = wider(*f, format))
                    .or_insert(format);
            }
        }
    }
    for node in nodes {
        let input = model.input(node, 0).and_then(|v| formats.get(&v).copied());
        let format = match (moves(node), input) {
            (true, Some(f)) => Some(f),
            _ => placement.wanted_format(placement.merged_into(node).unwrap_or(node)),
        };
        let Some(format) = format else { continue };
        for value in model.outputs(node).into_iter().flatten() {
            if moves(node) {
                formats.insert(value, format);
            } else {
                formats.entry(value).or_insert(format);
            }
        }
    }
    formats.retain(|value, _| quantized.contains_key(value));
    formats
}

/// The format with more bits; of two with the same number the one that is listed first.
fn wider(a: Format, b: Format) -> Format {
    let rank = |f: &Format| (f.base.info().bits, std::cmp::Reverse(f.base));
    if rank(&b) > rank(&a) { b } else { a }
}
