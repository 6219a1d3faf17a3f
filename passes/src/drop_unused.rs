//! Removes what no output needs: nodes, initializers, values and declarations.
//!
//! **What it does.** Marks everything that the outputs of the main graph need, through nodes, captured values and the
//! bodies of control-flow nodes, and removes the rest: first nodes, then initializers, then values and type
//! declarations that belong to nothing.
//!
//! **Before → After.** `y = Relu(x); z = Exp(x)` with the output `y` → `y = Relu(x)`.
//!
//! **When it does not fire.** Graph inputs stay, used or not. A node without any output is opaque and stays, with what
//! it needs. Initializers that the training information or a quantization annotation of the file names stay.
//! Outputs of a node that stays are not cut, used or not.
//!
//! **Invariants kept.** Signature, names, program order, every output bit for bit.
//!
//! **Opset notes.** None: no operator is looked into.
//!
//! **References.** Mark and sweep (McCarthy 1960), on the graph's edges.

use std::collections::{BTreeSet, HashSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{GraphId, Model, NodeId, ValueId};

/// Removes what no output needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct DropUnused;

static INFO: PassInfo = PassInfo {
    name: "drop_unused",
    summary: "Removes nodes, initializers and values that no output needs",
    source: include_str!("drop_unused.rs"),
    exact: true,
};

impl Pass for DropUnused {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let live = mark(model, cx);
        let nodes = dead_nodes(model, &live);
        let mut changed = !nodes.is_empty();
        model.remove_nodes(&nodes);
        let values: HashSet<ValueId> = model
            .all_values()
            .into_iter()
            .filter(|v| !live.values.contains(v))
            .filter(|&v| !model.value(v).is_input() && model.producer(v).is_none())
            .collect();
        changed |= !values.is_empty();
        drop_sparse(model, &values);
        model.remove_values(&values);
        for g in model.graph_ids() {
            let stale = &mut model.graph_mut(g).header.value_info;
            changed |= !stale.is_empty();
            stale.clear();
        }
        Ok(changed.into())
    }
}

#[derive(Default)]
struct Live {
    nodes: HashSet<NodeId>,
    values: HashSet<ValueId>,
    open: Vec<ValueId>,
}

impl Live {
    fn value(&mut self, v: ValueId) {
        if self.values.insert(v) {
            self.open.push(v);
        }
    }

    /// A node and what it needs: its inputs, and what its bodies return.
    fn node(&mut self, model: &Model, node: NodeId) {
        if !self.nodes.insert(node) {
            return;
        }
        for v in model.inputs(node).into_iter().flatten() {
            self.value(v);
        }
        for (_, g) in &model.node(node).subgraphs {
            self.graph(model, *g);
        }
    }

    fn graph(&mut self, model: &Model, graph: GraphId) {
        for &v in &model.graph(graph).outputs {
            self.value(v);
        }
        for &n in &model.graph(graph).nodes {
            if model.node(n).output_count == 0 {
                self.node(model, n);
            }
        }
    }
}

fn mark(model: &Model, cx: &mut PassContext) -> Live {
    let mut live = Live::default();
    live.graph(model, Model::MAIN);
    for (value, why) in named_by_header(model) {
        if !live.values.contains(&value) && model.consumers(value).is_empty() {
            cx.skip_subject(model.value_key(value), why);
        }
        live.value(value);
    }
    while let Some(v) = live.open.pop() {
        if let Some((node, _)) = model.producer(v) {
            live.node(model, node);
        }
    }
    live
}

/// Initializers that parts of the file outside the graph name.
fn named_by_header(model: &Model) -> Vec<(ValueId, &'static str)> {
    let training = !model.header.training_info.is_empty();
    let mut found = Vec::new();
    for id in model.graph_ids() {
        let g = model.graph(id);
        let annotated: BTreeSet<&str> = g
            .header
            .quantization_annotation
            .iter()
            .flat_map(|a| a.quant_parameter_tensor_names.iter().map(|e| e.value()))
            .collect();
        if !training && annotated.is_empty() {
            continue;
        }
        for &v in &g.initializers {
            if annotated.contains(model.value(v).name.as_str()) {
                found.push((v, "a quantization annotation of the file names it"));
            } else if training {
                found.push((v, "the file holds training information, which may name it"));
            }
        }
    }
    found
}

/// Dead nodes, those inside the body of a dead node left out: they go with it.
fn dead_nodes(model: &Model, live: &Live) -> HashSet<NodeId> {
    let mut dead = HashSet::new();
    let mut open = vec![Model::MAIN];
    while let Some(g) = open.pop() {
        for &n in &model.graph(g).nodes {
            if live.nodes.contains(&n) {
                open.extend(model.node(n).subgraphs.iter().map(|(_, g)| *g));
            } else {
                dead.insert(n);
            }
        }
    }
    dead
}

/// Takes the data of removed sparse initializers out of the headers of their graphs.
fn drop_sparse(model: &mut Model, values: &HashSet<ValueId>) {
    let gone: BTreeSet<(GraphId, String)> = values
        .iter()
        .map(|&v| model.value(v))
        .filter(|v| v.sparse_init)
        .map(|v| (v.graph, v.name.clone()))
        .collect();
    for id in gone.iter().map(|(g, _)| *g).collect::<BTreeSet<_>>() {
        let tensors = &mut model.graph_mut(id).header.sparse_initializer;
        tensors.retain(|t| {
            let name = t.values.as_ref().map_or("", |v| v.name());
            !gone.contains(&(id, name.to_owned()))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{empty, input, ops, output, run, signature};
    use onnx_quant_ir::{NodeSpec, Tensor};

    #[test]
    fn drops_a_dead_chain_with_its_weights_and_keeps_inputs() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        input(&mut m, "unused", &[2]);
        let w = m.add_initializer(Model::MAIN, "w", Tensor::from_f32(&[2], &[1.0, 2.0]));
        m.add_initializer(Model::MAIN, "lonely", Tensor::from_f32(&[], &[1.0]));
        let a = m.add_op(Model::MAIN, NodeSpec::new("Mul"), &[x, w], "a");
        m.add_op(Model::MAIN, NodeSpec::new("Exp"), &[a], "b");
        let y = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "y");
        output(&mut m, y);
        let before = signature(&m);
        let (changed, skips) = run(&DropUnused, &mut m);
        assert_eq!(changed, Changed::Yes);
        assert!(skips.is_empty());
        assert_eq!(ops(&m), ["Relu"]);
        assert_eq!(signature(&m), before);
        assert!(m.main().initializers.is_empty());
    }

    #[test]
    fn keeps_what_a_body_captures_and_drops_what_is_dead_inside() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let c = input(&mut m, "c", &[]);
        let kept = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "kept");
        let y = m.add_value(Model::MAIN, "y");
        let branch = m.add_node(Model::MAIN, NodeSpec::new("If"), &[Some(c)], &[Some(y)]);
        output(&mut m, y);
        for (attr, op) in [("then_branch", "Neg"), ("else_branch", "Abs")] {
            crate::testing::body(&mut m, branch, attr, |m, g| {
                let r = m.add_op(g, NodeSpec::new(op), &[kept], &format!("{op}_out"));
                m.add_op(g, NodeSpec::new("Exp"), &[kept], &format!("{op}_dead"));
                m.make_graph_output(r, None);
            });
        }
        assert_eq!(run(&DropUnused, &mut m).0, Changed::Yes);
        assert_eq!(ops(&m), ["Relu", "If", "Neg", "Abs"]);
    }

    #[test]
    fn drops_a_dead_node_with_nested_bodies() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let y = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "y");
        output(&mut m, y);
        let z = m.add_value(Model::MAIN, "z");
        let outer = m.add_node(Model::MAIN, NodeSpec::new("If"), &[Some(x)], &[Some(z)]);
        crate::testing::body(&mut m, outer, "then_branch", |m, g| {
            let i = m.add_value(g, "i");
            let inner = m.add_node(g, NodeSpec::new("If"), &[Some(x)], &[Some(i)]);
            m.make_graph_output(i, None);
            crate::testing::body(m, inner, "then_branch", |m, g| {
                let r = m.add_op(g, NodeSpec::new("Neg"), &[x], "r");
                m.make_graph_output(r, None);
            });
        });
        assert_eq!(run(&DropUnused, &mut m).0, Changed::Yes);
        assert_eq!(ops(&m), ["Relu"]);
        assert_eq!(m.graph_ids().len(), 1);
    }

    #[test]
    fn leaves_a_live_graph_alone() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let y = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "y");
        output(&mut m, y);
        m.add_node(
            Model::MAIN,
            NodeSpec::new("Print").domain("my.ops"),
            &[Some(x)],
            &[],
        );
        assert_eq!(run(&DropUnused, &mut m), (Changed::No, vec![]));
        assert_eq!(ops(&m), ["Relu", "Print"]);
    }
}
