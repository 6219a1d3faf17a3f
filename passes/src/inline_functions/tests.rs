//! Tests of inline_functions: names, captures, nested calls, refusals.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::testing::{ops, run, try_run};
use onnx_quant_ir::text;

const HEAD: &str = "<ir_version: 10, opset_import: [\"\" : 21, \"local\" : 1]>\n";

fn parse(text: &str) -> Model {
    text::parse(&format!("{HEAD}{text}")).unwrap()
}

fn inline(text: &str) -> Model {
    let mut m = parse(text);
    assert_eq!(run(&InlineFunctions, &mut m), (Changed::Yes, vec![]));
    assert!(m.header.functions.is_empty());
    m
}

fn refusal(text: &str) -> String {
    let mut m = parse(text);
    let e = try_run(&InlineFunctions, &[], &mut m, &mut PassContext::default()).unwrap_err();
    e.to_string()
}

#[test]
fn a_call_becomes_the_body() {
    let m = inline(
        r#"main (float[2] X) => (float[2] Y) { [call] Y = local.f (X) }
        <domain: "local", opset_import: ["" : 21]>
        f (a) => (b) { t = Neg (a) b = Exp (t) }"#,
    );
    assert_eq!(ops(&m), ["Neg", "Exp"]);
    assert!(m.find_value("call/t").is_some());
    assert_eq!(m.opset("local"), None);
}

#[test]
fn attributes_come_from_the_call_the_default_or_not_at_all() {
    let m = inline(
        r#"main (float[2] X) => (float[2] Y) { A = local.f <k = 0.5> (X) Y = local.f (A) }
        <domain: "local", opset_import: ["" : 21]>
        f <k, alpha: float = 0.25> (a) => (b) { t = LeakyRelu <alpha: float = @alpha> (a) b = Elu <alpha: float = @k> (t) }"#,
    );
    let attrs: Vec<_> = m
        .all_nodes()
        .into_iter()
        .map(|n| m.node(n).attr_f("alpha"))
        .collect();
    assert_eq!(attrs, [Some(0.25), Some(0.5), Some(0.25), None]);
}

#[test]
fn functions_call_functions_with_optional_arguments_in_bodies_too() {
    let m = inline(
        r#"main (float[2] X, bool C) => (float[2] Y)
        { Y = If <
            then_branch = g1 () => (float[2] P) { P = local.outer (X) },
            else_branch = g2 () => (float[2] Q) { Q = Neg (X) }
          > (C) }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        outer (a) => (b) { b = local.inner (a) }
        <domain: "local", opset_import: ["" : 21]>
        inner (x, high) => (y, unused) { y = Clip (x, "", high) unused = Abs (x) }"#,
    );
    assert_eq!(ops(&m), ["If", "Clip", "Abs", "Neg"]);
    let clip = m.all_nodes()[1];
    assert_eq!(m.inputs(clip)[2], None);
}

#[test]
fn an_input_that_is_returned_comes_through_an_identity() {
    let m = inline(
        r#"main (float[2] X) => (float[2] Y, float[2] Z) { Y, Z = local.f (X) }
        <domain: "local", opset_import: ["" : 21]>
        f (a) => (a, b) { b = Neg (a) }"#,
    );
    assert_eq!(ops(&m), ["Neg", "Identity"]);
}

#[test]
fn bodies_inside_functions_get_unique_names() {
    let m = inline(
        r#"main (float[2] X, bool C) => (float[2] Y) { A = local.f (X, C) Y = local.f (A, C) }
        <domain: "local", opset_import: ["" : 21]>
        f (x, c) => (y) { y = If <
            then_branch = g1 () => (float[2] p) { p = Neg (x) },
            else_branch = g2 () => (float[2] q) { q = Abs (x) }
          > (c) }"#,
    );
    assert_eq!(ops(&m).iter().filter(|o| *o == "Neg").count(), 2);
}

#[test]
fn unused_functions_go_and_models_without_stay() {
    let m = inline(
        r#"main (float[2] X) => (float[2] Y) { Y = Neg (X) }
        <domain: "local", opset_import: ["" : 21]>
        f (a) => (b) { b = Exp (a) }"#,
    );
    assert_eq!(ops(&m), ["Neg"]);
    let mut m = parse("main (float[2] X) => (float[2] Y) { Y = local.f (X) }");
    assert_eq!(run(&InlineFunctions, &mut m).0, Changed::No);
}

#[test]
fn other_versions_are_fine_where_the_operator_did_not_change() {
    let m = inline(
        r#"main (float[2] X) => (float[2] Y) { Y = local.f (X) }
        <domain: "local", opset_import: ["" : 18]>
        f (a) => (b) { t = Exp (a) b = Identity (t) }"#,
    );
    assert_eq!(m.opset(""), Some(21));
    let e = refusal(
        r#"main (float[2] X) => (float[2] Y) { Y = local.f (X) }
        <domain: "local", opset_import: ["" : 23]>
        f (a) => (b) { b = Identity (a) }"#,
    );
    assert!(e.contains("Identity is not the same"), "{e}");
    let e = refusal(
        r#"main (float[2] X) => (float[2] Y) { Y = local.f (X) }
        <domain: "local", opset_import: ["" : 11]>
        f (a) => (b) { b = Softmax (a) }"#,
    );
    assert!(
        e.contains("Softmax is not the same operator in both"),
        "{e}"
    );
}

#[test]
fn a_function_that_calls_itself_is_refused() {
    let e = refusal(
        r#"main (float[2] X) => (float[2] Y) { Y = local.f (X) }
        <domain: "local", opset_import: ["local" : 1]>
        f (a) => (b) { b = local.g (a) }
        <domain: "local", opset_import: ["local" : 1]>
        g (a) => (b) { b = local.f (a) }"#,
    );
    assert!(e.contains("local.f → local.g → local.f"), "{e}");
    let e = refusal(
        r#"main (float[2] X) => (float[2] Y) { Y = local.f (X, X) }
        <domain: "local", opset_import: ["" : 21]>
        f (a) => (b) { b = Neg (a) }"#,
    );
    assert!(e.contains("more than its 1 inputs"), "{e}");
}
