//! For every rule the smallest model that breaks it, and good models that break none.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::{verify, verify_for_pass};
use crate::model::{Model, ValueId};
use crate::{NodeSpec, Tensor, text};

fn rules(model: &Model) -> Vec<&'static str> {
    let mut rules: Vec<_> = verify(model).iter().map(|f| f.rule).collect();
    rules.dedup();
    rules
}

const GOOD: &str = "<ir_version: 10, opset_import: [\"\" : 21]>
g (float[N,3] X) => (float[N,2] Y)
<float xs = {0.5}, uint8 xz = {3}, int8[2,3] W = {1,2,3,4,5,6}, float[2] ws = {0.5, 0.25}, int32[2] B = {7, 8},
 float[2] bs = {0.25, 0.125}, int32[2] bz = zeros, bool c = {true}>
{
  XQ = QuantizeLinear (X, xs, xz)
  XD = DequantizeLinear (XQ, xs, xz)
  WD = DequantizeLinear <axis = 0> (W, ws)
  BD = DequantizeLinear <axis = 0> (B, bs, bz)
  Z = Gemm <transB = 1> (XD, WD, BD)
  Y = If <then_branch = t () => (float[N,2] r) { r = Relu (Z) }, else_branch = e () => (float[N,2] q) { q = Abs (Z) }> (c)
}";

fn good() -> Model {
    text::parse(GOOD).unwrap()
}

#[test]
fn a_good_model_breaks_no_rule() {
    assert_eq!(verify(&good()), vec![]);
    assert_eq!(verify_for_pass(&good()), Ok(()));
}

#[test]
fn rules_that_a_text_can_break() {
    let cases = [
        (
            "S02",
            "then_branch = t () => (float[N,2] r) { r = Relu",
            "then_branch = t () => (float[N,2] XQ) { XQ = Relu",
        ),
        (
            "S06",
            "XQ = QuantizeLinear (X, xs, xz)\n  XD = DequantizeLinear (XQ, xs, xz)",
            "XD = DequantizeLinear (XQ, xs, xz)\n  XQ = QuantizeLinear (X, xs, xz)",
        ),
        ("S08", "r = Relu (Z)", "r = Relu (Z, Z)"),
        ("S08", "(c)\n}", "()\n}"),
        ("S09", "r = Relu (Z)", "r = com.acme.Relu (Z)"),
        ("T01", "int8[2,3] W =", "int8[2,2] W, int8[2,3] W ="),
        ("T01", "int8[2,3] W =", "uint8[2,3] W, int8[2,3] W ="),
        ("T02", "uint8 xz = {3}", "uint8 xz = {3}, uint2 low = {3}"),
        ("T03", "(float[N,3] X)", "(X)"),
        ("Q01", "float xs = {0.5}", "float xs = {nan}"),
        ("Q01", "ws = {0.5, 0.25}", "ws = {0.5, 0}"),
        ("Q01", "float xs = {0.5}", "int32 xs = {1}"),
        (
            "Q02",
            "DequantizeLinear (XQ, xs, xz)",
            "DequantizeLinear (XQ, xs, z8)",
        ),
        (
            "Q02",
            "DequantizeLinear <axis = 0> (W, ws)",
            "DequantizeLinear <axis = 0> (W, ws, z8)",
        ),
        (
            "Q03",
            "DequantizeLinear <axis = 0> (W, ws)",
            "DequantizeLinear <axis = 1> (W, ws)",
        ),
        (
            "Q03",
            "DequantizeLinear <axis = 0> (W, ws)",
            "DequantizeLinear <axis = -3> (W, ws)",
        ),
        (
            "Q04",
            "DequantizeLinear <axis = 0> (W, ws)",
            "DequantizeLinear <axis = 0, block_size = 2> (W, ws)",
        ),
        ("Q05", "int32[2] bz = zeros", "int32[2] bz = ones"),
        ("Q06", "bs = {0.25, 0.125}", "bs = {0.25, 0.126}"),
        ("Q06", "float[2] bs = {0.25, 0.125}", "float bs = {0.25}"),
        ("Q07", "int8[2,3] W =", "int4[2,3] W ="),
        ("Q08", "\"\" : 21", "\"\" : 12"),
    ];
    for (rule, old, new) in cases {
        let mut source = GOOD.replace("bool c", "int8 z8 = {0}, bool c");
        if rule == "Q07" {
            source = source.replace("\"\" : 21", "\"\" : 19");
        }
        let broken = source.replace(old, new);
        assert_ne!(source, broken, "{rule}: {old} is not in the model");
        let model = text::parse(&broken).unwrap();
        assert!(
            rules(&model).contains(&rule),
            "{rule} {old} → {new}: {:?}",
            verify(&model)
        );
    }
}

#[test]
fn blocked_scales_that_fit_are_good() {
    let source =
        "g () => (float[5,4] Y) <int4[5,4] W = random(1), float[3,4] s = random(2, 0.5, 1)>
        { Y = DequantizeLinear <axis = 0, block_size = 2> (W, s) }";
    assert_eq!(verify(&text::parse(source).unwrap()), vec![]);
}

fn value(model: &Model, name: &str) -> ValueId {
    model.find_value(name).unwrap()
}

#[test]
fn rules_that_only_an_edit_can_break() {
    let z = |m: &Model| m.producer(value(m, "Z")).unwrap().0;
    type Edit = fn(&mut Model, crate::NodeId);
    let edits: [(&str, Edit); 12] = [
        ("S01", |m, _| {
            let v = value(m, "XD");
            m.value_mut(v).name.clear();
        }),
        ("S02", |m, _| {
            let v = value(m, "XD");
            m.value_mut(v).name = "WD".into();
        }),
        ("S03", |m, n| m.remove_node(n)),
        ("S03", |m, _| {
            let v = value(m, "XD");
            m.set_initializer(v, Tensor::from_f32(&[], &[1.0]));
        }),
        ("S04", |m, n| {
            let v = value(m, "Y");
            m.set_input(n, 0, Some(v));
        }),
        ("S05", |m, n| {
            let inner = m.all_values().into_iter().find(|&v| m.value(v).name == "r");
            m.set_input(n, 0, inner);
        }),
        ("S06", |m, n| {
            let main = m.graph_mut(Model::MAIN);
            main.nodes.retain(|&x| x != n);
            main.nodes.push(n);
        }),
        ("S07", |m, n| m.node_mut(n).input_count = 2),
        ("S10", |m, _| {
            let v = value(m, "W");
            m.set_initializer(
                v,
                Tensor::from_raw(crate::DataType::Int8, &[2, 3], vec![1, 2]),
            );
        }),
        ("S11", |m, _| m.graph_mut(Model::MAIN).outputs.clear()),
        ("S12", |m, _| {
            m.graph_mut(Model::MAIN).nodes.pop();
        }),
        ("S12", |m, _| {
            m.graph_mut(Model::MAIN).initializers.pop();
        }),
    ];
    for (rule, edit) in edits {
        let mut model = good();
        let n = z(&model);
        edit(&mut model, n);
        assert!(
            rules(&model).contains(&rule),
            "{rule}: {:?}",
            verify(&model)
        );
        assert!(verify_for_pass(&model).is_err(), "{rule}");
    }
}

#[test]
fn what_editing_functions_leave_behind_is_good() {
    let mut m = good();
    let (z, n) = (value(&m, "Z"), m.producer(value(&m, "Z")).unwrap().0);
    let relu = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[z], "Z_relu");
    let capture = m.captures(z)[0];
    for g in ["then_branch", "else_branch"] {
        let g = m.node(capture).subgraph(g).unwrap();
        let user = m.graph(g).nodes[0];
        m.set_input(user, 0, Some(relu));
    }
    m.sort().unwrap();
    assert_eq!(verify(&m), vec![]);
    assert!(m.has_node(n));
}
