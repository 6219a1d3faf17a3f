//! Stores equal constants once.
//!
//! # What it does
//! Initializers of one graph with the same type, shape and bytes become one: every reader uses the first.
//!
//! # Before → After
//! `Mul(x, A), Mul(y, B)` with `A = B` becomes `Mul(x, A), Mul(y, A)`.
//!
//! # When it does not fire
//! On initializers that are also inputs or outputs of their graph, and on strings.
//!
//! # Invariants kept
//! Every output, bit for bit. Only tensors of equal type and shape are compared, so that a model whose weights differ
//! is not read.
//!
//! # Opset notes
//! None.
//!
//! # References
//! None.

use std::collections::{BTreeMap, HashSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{GraphId, Model, ValueId};

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
        type Kind = (GraphId, i32, Vec<i64>);
        let mut kinds: BTreeMap<Kind, Vec<ValueId>> = BTreeMap::new();
        for graph in model.graph_ids() {
            for &value in &model.graph(graph).initializers {
                let v = model.value(value);
                let mergeable = v.is_constant() && !v.is_output();
                if let Some(t) = v
                    .init
                    .as_ref()
                    .filter(|t| mergeable && t.byte_len().is_ok())
                {
                    let kind = (graph, t.dtype() as i32, t.dims().to_vec());
                    kinds.entry(kind).or_default().push(value);
                }
            }
        }
        let mut gone = HashSet::new();
        for values in kinds.values().filter(|v| v.len() > 1) {
            gone.extend(merge(model, values));
        }
        if !gone.is_empty() {
            cx.note(format!("{} constants were equal to others", gone.len()));
        }
        model.remove_values(&gone);
        Ok((!gone.is_empty()).into())
    }
}

/// Merges values of one type and shape; returns those that nothing uses any more.
fn merge(model: &mut Model, values: &[ValueId]) -> Vec<ValueId> {
    let mut first: BTreeMap<Vec<u8>, ValueId> = BTreeMap::new();
    let mut gone = Vec::new();
    for &value in values {
        let Some(bytes) = model.constant(value).and_then(|t| t.bytes().ok()) else {
            continue;
        };
        let kept = *first.entry(digest(&bytes)).or_insert(value);
        if kept != value {
            model.replace_value(value, kept);
            gone.push(value);
        }
    }
    gone
}

/// What stands for the bytes of a tensor while tensors are compared: the bytes, or their SHA-256 where they are long.
fn digest(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    if bytes.len() <= 64 {
        return bytes.to_vec();
    }
    sha2::Sha256::digest(bytes).to_vec()
}
