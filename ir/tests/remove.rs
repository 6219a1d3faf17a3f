//! Removing nodes and subgraphs, and what is known of uses between edits.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;

use onnx_quant_ir::verify::verify;
use onnx_quant_ir::{Model, NodeId, NodeSpec, ValueId, text};

const NESTED: &str = "<ir_version: 10, opset_import: [\"\" : 21]>
g (float[N] X, bool c) => (float[N] Y)
{
  a = Relu (X)
  b = If <then_branch = t () => (float[N] r) {
      p = Abs (a)
      q = If <then_branch = tt () => (float[N] u) { u = Neg (a) }, else_branch = te () => (float[N] a) { v = Exp (p) }> (c)
      r = Tanh (q)
    }, else_branch = e () => (float[N] s) { p = Neg (X) s = Sign (p) }> (c)
  Y = Sigmoid (b)
}";

fn nested() -> Model {
    text::parse(NESTED).unwrap()
}

fn find(m: &Model, op: &str) -> Vec<NodeId> {
    let all = m.all_nodes();
    all.into_iter().filter(|&n| m.node(n).is(op)).collect()
}

fn value(m: &Model, name: &str) -> ValueId {
    m.find_value(name).unwrap()
}

fn ops(m: &Model) -> Vec<&str> {
    let all = m.all_nodes();
    all.into_iter().map(|n| m.node(n).op_type()).collect()
}

#[test]
fn a_control_flow_node_and_nodes_of_its_bodies_go_together() {
    // Every set has its own order.
    for _ in 0..50 {
        let mut m = nested();
        let inner = ["If", "Abs", "Neg", "Exp", "Tanh", "Sign"];
        let dead: HashSet<NodeId> = inner.iter().flat_map(|op| find(&m, op)).collect();
        m.remove_nodes(&dead);
        assert_eq!(ops(&m), ["Relu", "Sigmoid"]);
        assert_eq!(m.graph_ids(), [Model::MAIN]);
        let names: Vec<_> = m.all_values();
        let names: Vec<&str> = names.iter().map(|&v| &*m.value(v).name).collect();
        assert_eq!(names, ["X", "c", "a", "b", "Y"]);
        m.remove_nodes(&dead);
    }
    let mut m = nested();
    let outer = m.producer(value(&m, "b")).unwrap().0;
    m.remove_node(outer);
    assert_eq!(ops(&m), ["Relu", "Sigmoid"]);
}

#[test]
fn uses_are_known_between_edits() {
    let mut m = nested();
    let (x, a) = (value(&m, "X"), value(&m, "a"));
    let [outer, inner] = find(&m, "If")[..] else {
        panic!("two nodes")
    };
    assert_eq!(m.captures(a), [outer, inner]);
    assert!(!m.is_unused(a));
    for (op, user) in [("Abs", x), ("Neg", x)] {
        m.set_input(find(&m, op)[0], 0, Some(user));
    }
    let neg = find(&m, "Neg");
    neg.iter().for_each(|&n| m.set_input(n, 0, Some(x)));
    // Only the inner else branch still returns it.
    assert_eq!((m.captures(a), m.is_unused(a)), (vec![outer, inner], false));
    let g = m.node(inner).subgraph("else_branch").unwrap();
    let v = m.output(m.graph(g).nodes[0], 0).unwrap();
    m.graph_mut(g).outputs = vec![v];
    assert_eq!((m.captures(a), m.is_unused(a)), (vec![], true));
    assert_eq!(m.captures(x), [outer, inner]);
    m.remove_nodes(&HashSet::from([outer]));
    assert_eq!(m.captures(x), []);
    let y = m.add_op(Model::MAIN, NodeSpec::new("Abs"), &[a], "z");
    assert!(m.is_unused(y) && !m.is_unused(a));
}

#[test]
fn branches_take_the_place_of_their_nodes() {
    let branch = |m: &Model, n: NodeId, name: &str| (n, m.node(n).subgraph(name).unwrap());
    for (outer_branch, inner_branch, expected, pairs) in [
        (
            "then_branch",
            "then_branch",
            &["Relu", "Abs", "Neg", "Tanh", "Sigmoid"][..],
            2,
        ),
        (
            "then_branch",
            "else_branch",
            &["Relu", "Abs", "Exp", "Tanh", "Sigmoid"],
            2,
        ),
        (
            "else_branch",
            "then_branch",
            &["Relu", "Neg", "Sign", "Sigmoid"],
            1,
        ),
    ] {
        let mut m = nested();
        let [outer, inner] = find(&m, "If")[..] else {
            panic!("two nodes")
        };
        let taken = [
            branch(&m, outer, outer_branch),
            branch(&m, inner, inner_branch),
        ];
        let stand_ins = m.splice_subgraphs(&taken);
        assert_eq!(stand_ins.len(), pairs);
        for (old, new) in stand_ins {
            assert!(m.replace_value(old, new));
        }
        assert_eq!(ops(&m), expected);
        assert_eq!(m.graph_ids(), [Model::MAIN]);
        m.sort().unwrap();
        assert_eq!(ops(&m), expected);
        assert_eq!(verify(&m), vec![]);
    }
    let mut m = nested();
    let inner = find(&m, "If")[1];
    let taken = branch(&m, inner, "then_branch");
    for (old, new) in m.splice_subgraphs(&[taken]) {
        m.replace_value(old, new);
    }
    m.sort().unwrap();
    assert_eq!(verify(&m), vec![]);
    assert_eq!(m.graph_ids().len(), 3);
    assert_eq!(
        ops(&m),
        ["Relu", "If", "Sigmoid", "Abs", "Neg", "Tanh", "Neg", "Sign"]
    );
}
