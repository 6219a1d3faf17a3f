//! Parts of a model: the nodes between values that are known and values that are wanted.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use onnx_quant_ir::pass::{Pass, PassContext};
use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_passes::drop_unused::DropUnused;

use crate::error::Error;

/// The model that computes `wanted` from `known` and, where those do not suffice, from the model's own inputs. Its
/// outputs are `wanted`, in this order; inputs that nothing reads are gone. Names are those of the model.
///
/// # Errors
/// What a pass says of the part.
pub(super) fn part(model: &Model, known: &[ValueId], wanted: &[ValueId]) -> Result<Model, Error> {
    let needed = needed(model, known, wanted);
    let mut part = model.clone();
    for output in part.main().outputs.clone() {
        part.remove_graph_output(output);
    }
    for &value in known {
        if let Some((node, slot)) = part.producer(value) {
            part.set_output(node, slot, None);
        }
        let ty = part.value(value).ty().cloned();
        part.make_graph_input(value, ty);
    }
    let main = part.main().nodes.clone();
    let unused: HashSet<NodeId> = main.into_iter().filter(|n| !needed.contains(n)).collect();
    part.remove_nodes(&unused);
    for &value in wanted {
        let ty = part.value(value).ty().cloned();
        part.make_graph_output(value, ty);
    }
    DropUnused
        .run(&mut part, &mut PassContext::default())
        .map_err(|e| Error::usage(e.to_string()))?;
    for input in part.main().inputs.clone() {
        if part.is_unused(input) {
            part.remove_graph_input(input);
            part.remove_value(input);
        }
    }
    part.sort().map_err(|e| Error::usage(e.to_string()))?;
    Ok(part)
}

fn needed(model: &Model, known: &[ValueId], wanted: &[ValueId]) -> BTreeSet<NodeId> {
    let known: BTreeSet<ValueId> = known.iter().copied().collect();
    let mut found = BTreeSet::new();
    let mut open: Vec<ValueId> = wanted.to_vec();
    while let Some(value) = open.pop() {
        if known.contains(&value) {
            continue;
        }
        let Some((node, _)) = model.producer(value) else {
            continue;
        };
        if found.insert(node) {
            open.extend(model.inputs(node).into_iter().flatten());
            open.extend(model.captured_by(node));
        }
    }
    found
}

/// Where a model can be cut in two.
pub(super) struct Cuts {
    /// For each boundary (before the node at this place) the values that cross it and depend on a quantized layer.
    crossing: Vec<Vec<ValueId>>,
}

/// The most values that a cut may hold.
const WIDEST: usize = 4;

impl Cuts {
    /// The boundaries of a model, of which `layers` are quantized: what does not depend on them is computed anew.
    pub(super) fn new(model: &Model, layers: &BTreeSet<NodeId>) -> Self {
        let nodes = &model.main().nodes;
        let places: BTreeMap<NodeId, usize> =
            nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
        let mut heavy: BTreeSet<ValueId> = BTreeSet::new();
        let mut spans: Vec<(usize, usize, ValueId)> = Vec::new();
        for (at, &node) in nodes.iter().enumerate() {
            let reads = |v: &ValueId| heavy.contains(v);
            let depends = layers.contains(&node)
                || model.inputs(node).iter().flatten().any(reads)
                || model.captured_by(node).iter().any(reads);
            if !depends {
                continue;
            }
            for value in model.outputs(node).into_iter().flatten() {
                heavy.insert(value);
                let uses = model.consumers(value).into_iter().map(|(n, _)| n);
                let uses = uses.chain(model.captures(value));
                let last = uses.filter_map(|n| places.get(&n)).max();
                if let Some(&last) = last {
                    spans.push((at, last, value));
                }
            }
        }
        let mut crossing = vec![Vec::new(); nodes.len() + 1];
        for (made, last, value) in spans {
            crossing[made + 1..=last]
                .iter_mut()
                .for_each(|c| c.push(value));
        }
        Self { crossing }
    }

    /// The narrowest boundary after `from` and up to `to`, the last of several; `None` where all are too wide.
    pub(super) fn best(&self, from: usize, to: usize) -> Option<usize> {
        (from + 1..=to)
            .rev()
            .filter(|&b| (1..=WIDEST).contains(&self.crossing[b].len()))
            .min_by_key(|&b| self.crossing[b].len())
    }

    /// What crosses a boundary.
    pub(super) fn at(&self, boundary: usize) -> &[ValueId] {
        &self.crossing[boundary]
    }
}
