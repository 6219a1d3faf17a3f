//! Two models that differ in everything.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::diff;
use crate::text::parse;

const BEFORE: &str = "g (float[N,3] X) => (float[N,2] Y, float[N,2] gone)
    <float[3,2] W = {1,2,3,4,5,6}, float[2] B = {1, 2}, float[9] big = random(1)> {
      [mm] T = MatMul (X, W)
      [add] S = Add (T, B)
      [act] Y = LeakyRelu <alpha = 0.5> (S)
      gone = Identity (S)
    }";
const AFTER: &str = "<ir_version: 10, opset_import: [\"\" : 22]>
    g (float[M,3] X) => (float[N,2] Y)
    <int8[3,2] Wq = {1,2,3,4,5,6}, float[2] ws = {1, 0.5}, float[2] B = {1, 3}, float xs = {0.1}, float[9] big = random(2)> {
      Xq = QuantizeLinear (X, xs)
      Xd = DequantizeLinear (Xq, xs)
      Wd = DequantizeLinear (Wq, ws)
      [mm] T = MatMul (Xd, Wd)
      [add] S = Add (T, B)
      [act] Y = LeakyRelu <alpha = 0.25> (S)
      [new] Z = com.acme.Foo (S)
    }";

#[test]
fn a_model_does_not_differ_from_itself() {
    let m = parse(BEFORE).unwrap();
    let d = diff(&m, &m);
    assert!(d.is_empty());
    assert_eq!(d.to_string(), "no difference\n");
}

#[test]
fn every_kind_of_change_is_told() {
    let d = diff(&parse(BEFORE).unwrap(), &parse(AFTER).unwrap());
    let mut s = insta::Settings::clone_current();
    s.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots/diff"));
    s.set_prepend_module_to_snapshot(false);
    s.set_omit_expression(true);
    s.bind(|| insta::assert_snapshot!("every_kind_of_change", d.to_string()));
}
