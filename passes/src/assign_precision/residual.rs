//! Residual additions: which of the two branches is the skip.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, NodeId, ValueId};

/// Why an addition is not a residual one.
pub(super) const NO_SKIP: &str =
    "is no residual addition: its inputs have no common ancestor, or one of them is a constant";

/// The input slot of the skip branch: the other one lies on the longer path to the nearest common ancestor. With paths
/// of the same length the second input is the skip.
pub(super) fn skip_slot(model: &Model, add: NodeId) -> Option<usize> {
    let (a, b) = (model.input(add, 0)?, model.input(add, 1)?);
    if a == b || model.constant(a).is_some() || model.constant(b).is_some() {
        return None;
    }
    let (from_a, from_b) = (ancestors(model, a), ancestors(model, b));
    let common = from_a
        .iter()
        .filter_map(|(v, &da)| from_b.get(v).map(|&db| (da + db, *v, da, db)));
    let (_, _, da, db) = common.min()?;
    Some(if db > da { 0 } else { 1 })
}

/// Every computed value above `value` (itself included) with the number of nodes on the longest path to it.
fn ancestors(model: &Model, value: ValueId) -> BTreeMap<ValueId, usize> {
    let mut order = Vec::new();
    let mut state: BTreeMap<ValueId, bool> = BTreeMap::new();
    let mut open = vec![(value, false)];
    // Depth first: a value is listed when everything above it is.
    while let Some((v, done)) = open.pop() {
        if done {
            state.insert(v, true);
            order.push(v);
            continue;
        }
        if state.contains_key(&v) || model.constant(v).is_some() {
            continue;
        }
        state.insert(v, false);
        open.push((v, true));
        if let Some((node, _)) = model.producer(v) {
            let inputs = model.inputs(node).into_iter().flatten();
            open.extend(inputs.map(|i| (i, false)));
        }
    }
    let mut longest = BTreeMap::from([(value, 0)]);
    for v in order.into_iter().rev() {
        let Some(&distance) = longest.get(&v) else {
            continue;
        };
        let Some((node, _)) = model.producer(v) else {
            continue;
        };
        for input in model.inputs(node).into_iter().flatten() {
            if state.contains_key(&input) {
                let d = longest.entry(input).or_insert(0);
                *d = (*d).max(distance + 1);
            }
        }
    }
    longest
}
