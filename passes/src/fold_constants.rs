//! **What it does.** Computes what does not depend on the inputs: a node whose inputs are all constants gives way to
//! initializers, and so do `Constant` nodes and the `Shape` or `Size` of a value whose shape is fixed. Works inside the
//! branches and bodies of control flow too.
//!
//! **Before → After.**
//! ```text
//! w = Transpose(w0)          w = <constant>
//! s = Shape(x: [1, 64])  →   y = MatMul(x, w)
//! t = Slice(s, 1, 2)         z = Reshape(y, t = <constant>)
//! y = MatMul(x, w)
//! z = Reshape(y, t)
//! ```
//!
//! **When it does not fire.** An initializer that is also a graph input is no constant. Random operators, training-time
//! `Dropout`, `QuantizeLinear` and `DequantizeLinear` stay. A result that takes more than 1 KiB and more than the
//! constants it comes from stays computed (`Expand`, `Tile`, `ConstantOfShape`). Functions that runtimes round
//! differently (`Exp`, `Tanh`, float sums, matrix products …) stay unless the option `all=yes` is given.
//!
//! **Invariants kept.** Every output bit for bit (but for `all=yes`), names and order of inputs and outputs; a graph
//! output that is constant is the `Identity` of an initializer. Folded values keep their names. Initializers that only
//! folded nodes used go.
//!
//! **Opset notes.** All versions; the one-sided broadcasting of opsets before 7 is left alone.
//!
//! **References.** ONNX standard, the operators' own texts; "Constant folding" in any compiler book.

use std::collections::{HashMap, HashSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, NodeSpec, Tensor, ValueId};

use crate::infer::{self, Facts, Options, Shapes};

static INFO: PassInfo = PassInfo {
    name: "fold_constants",
    summary: "Computes what does not depend on the inputs",
    source: include_str!("fold_constants.rs"),
    exact: true,
};

/// A result of up to this many bytes is stored even where it is larger than what it comes from.
const SMALL: usize = 1024;
/// Largest constant that is computed, in bytes.
const MAX_BYTES: usize = 256 << 20;

/// The pass.
pub struct FoldConstants;

impl Pass for FoldConstants {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let all = match cx.option("all") {
            None | Some("no") => false,
            Some("yes") => true,
            Some(other) => {
                let message = format!("option `all` is `yes` or `no`, not `{other}`");
                return Err(PassError::new(INFO.name, message));
            }
        };
        let options = Options {
            max_bytes: MAX_BYTES,
            exact: !all,
            all_branches: true,
            use_value_info: false,
            ..Options::default()
        };
        let facts = infer::infer(model, &Shapes::new(), &options);
        let folded = choose(model, &facts);
        apply(model, &facts, &folded);
        Ok(Changed::from(!folded.is_empty()))
    }
}

fn bytes(t: &Tensor) -> usize {
    t.byte_len().unwrap_or(usize::MAX)
}

/// The nodes to be folded, in program order.
fn choose(model: &Model, facts: &Facts) -> Vec<NodeId> {
    // Bytes that the file holds for a constant: its own, or those of what it is computed from.
    let mut cost: HashMap<ValueId, usize> = HashMap::new();
    let mut folded = Vec::new();
    for id in model.all_nodes() {
        let node = model.node(id);
        let outputs: Vec<ValueId> = model.outputs(id).into_iter().flatten().collect();
        let known: Option<Vec<&Tensor>> = outputs.iter().map(|&v| facts.value(v)).collect();
        let Some(known) = known.filter(|k| !k.is_empty() && node.subgraphs.is_empty()) else {
            continue;
        };
        let output = outputs.iter().any(|&v| model.value(v).is_output());
        if output && (node.is("Constant") || node.is("Identity")) {
            continue;
        }
        let given = model
            .inputs(id)
            .into_iter()
            .flatten()
            .map(|v| match model.constant(v) {
                Some(t) => bytes(t),
                None => cost.get(&v).copied().unwrap_or(0),
            })
            .fold(0, usize::saturating_add);
        let taken = known
            .iter()
            .map(|t| bytes(t))
            .fold(0, usize::saturating_add);
        let fold = node.is("Constant") || taken <= given.max(SMALL);
        for (&v, t) in outputs.iter().zip(&known) {
            cost.insert(v, if fold { bytes(t) } else { given });
        }
        if fold {
            folded.push(id);
        }
    }
    folded
}

fn apply(model: &mut Model, facts: &Facts, folded: &[NodeId]) {
    let mut names = None;
    let mut touched: HashSet<ValueId> = HashSet::new();
    let mut outputs: Vec<ValueId> = Vec::new();
    for &id in folded {
        touched.extend(model.inputs(id).into_iter().flatten());
        outputs.extend(model.outputs(id).into_iter().flatten());
    }
    model.remove_nodes(&folded.iter().copied().collect());
    for &v in &outputs {
        let Some(tensor) = facts.value(v).cloned() else {
            continue;
        };
        let value = model.value_mut(v);
        value.value_info = None;
        if !value.is_output() {
            model.set_initializer(v, tensor);
            continue;
        }
        let (graph, wanted) = (value.graph, format!("{}_constant", value.name));
        let name = names.get_or_insert_with(|| model.names()).fresh(&wanted);
        let constant = model.add_initializer(graph, &name, tensor);
        model.replace_uses(v, constant);
        let spec = NodeSpec::new("Identity");
        model.add_node(graph, spec, &[Some(constant)], &[Some(v)]);
    }
    touched.extend(outputs);
    touched.retain(|&v| model.is_constant(v) && model.is_unused(v));
    model.remove_values(&touched);
    for graph in model.graph_ids() {
        let mut listed = std::mem::take(&mut model.graph_mut(graph).value_info);
        listed.retain(|&v| model.value(v).value_info.is_some());
        model.graph_mut(graph).value_info = listed;
    }
}
