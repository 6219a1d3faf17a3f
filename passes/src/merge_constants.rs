//! Stores equal constants once.
//!
//! # What it does
//! Initializers of one graph with the same type, shape and bytes become one: every reader uses the first. Equal
//! initializers of 1 KiB and more in different graphs (the branches of an If, most often) move to the innermost graph
//! around them all.
//!
//! # Before → After
//! `Mul(x, A), Mul(y, B)` with `A = B` becomes `Mul(x, A), Mul(y, A)`.
//!
//! # When it does not fire
//! On initializers that are also inputs or outputs of their graph, and on strings.
//!
//! # Invariants kept
//! Every output, bit for bit. Only tensors of equal type and shape that begin alike are compared, so that a model whose
//! weights differ is not read.
//!
//! # Opset notes
//! None.
//!
//! # References
//! None.

use std::collections::{BTreeMap, HashSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{GraphId, Model, ValueId};

/// Bytes from which equal constants of different graphs are merged.
const ACROSS_GRAPHS: usize = 1024;

/// Bytes that are compared before all are.
const HEAD: usize = 256;

/// See the head of this file.
pub struct MergeConstants;

static INFO: PassInfo = PassInfo {
    name: "merge_constants",
    summary: "Stores equal constants once",
    source: include_str!("merge_constants.rs"),
    exact: true,
};

impl Pass for MergeConstants {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut kinds: BTreeMap<(i32, Vec<i64>), Vec<ValueId>> = BTreeMap::new();
        for graph in model.graph_ids() {
            for &value in &model.graph(graph).initializers {
                let v = model.value(value);
                let mergeable = v.is_constant() && !v.is_output();
                if let Some(t) = v
                    .init
                    .as_ref()
                    .filter(|t| mergeable && t.byte_len().is_ok())
                {
                    let kind = (t.dtype() as i32, t.dims().to_vec());
                    kinds.entry(kind).or_default().push(value);
                }
            }
        }
        let mut gone = HashSet::new();
        for values in kinds.values().filter(|v| v.len() > 1) {
            for alike in alike(model, values) {
                gone.extend(merge(model, &alike));
            }
        }
        if !gone.is_empty() {
            cx.note(format!("{} constants were equal to others", gone.len()));
        }
        model.remove_values(&gone);
        Ok((!gone.is_empty()).into())
    }
}

/// Those of some values of one type and shape that begin alike, in groups of two and more: weights that differ do so
/// there already, and are not read to their end.
fn alike(model: &Model, values: &[ValueId]) -> Vec<Vec<ValueId>> {
    let mut groups: BTreeMap<Vec<u8>, Vec<ValueId>> = BTreeMap::new();
    for &value in values {
        if let Some(bytes) = model.constant(value).and_then(|t| t.bytes().ok()) {
            let head = bytes[..bytes.len().min(HEAD)].to_vec();
            groups.entry(head).or_default().push(value);
        }
    }
    groups.into_values().filter(|g| g.len() > 1).collect()
}

/// Merges values of one type and shape; returns those that nothing uses any more.
fn merge(model: &mut Model, values: &[ValueId]) -> Vec<ValueId> {
    let mut equal: BTreeMap<(Option<GraphId>, Vec<u8>), Vec<ValueId>> = BTreeMap::new();
    for &value in values {
        let Some(bytes) = model.constant(value).and_then(|t| t.bytes().ok()) else {
            continue;
        };
        let home = (bytes.len() < ACROSS_GRAPHS).then_some(model.value(value).graph);
        equal.entry((home, digest(&bytes))).or_default().push(value);
    }
    let mut gone = Vec::new();
    for group in equal.values().filter(|g| g.len() > 1) {
        let home = group
            .iter()
            .map(|&v| model.value(v).graph)
            .reduce(|a, b| common_graph(model, a, b))
            .unwrap_or(Model::MAIN);
        let kept = group[0];
        if model.value(kept).graph != home {
            let name = model.names().fresh(&model.value(kept).name);
            model.move_initializer(kept, home, &name);
        }
        for &value in &group[1..] {
            model.replace_value(value, kept);
            gone.push(value);
        }
    }
    gone
}

/// The innermost graph that holds both, or that both stand in.
fn common_graph(model: &Model, a: GraphId, b: GraphId) -> GraphId {
    let around = |mut g: GraphId| {
        let mut path = vec![g];
        while let Some((node, _)) = &model.graph(g).parent {
            g = model.node(*node).graph;
            path.push(g);
        }
        path
    };
    let of_a = around(a);
    around(b)
        .into_iter()
        .find(|g| of_a.contains(g))
        .unwrap_or(Model::MAIN)
}

/// What stands for the bytes of a tensor while tensors are compared: the bytes, or their SHA-256 where they are long.
fn digest(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    if bytes.len() <= 64 {
        return bytes.to_vec();
    }
    sha2::Sha256::digest(bytes).to_vec()
}
