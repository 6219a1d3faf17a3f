//! What takes the factors, and what is computed afterwards.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use onnx_quant_ir::{Model, text};

use super::{Factors, apply};

fn constant(model: &Model, node: &str, slot: usize) -> Vec<f32> {
    let node = model.find_node(node).unwrap();
    model.input_constant(node, slot).unwrap().to_f32().unwrap()
}

fn factors(readers: &[&str]) -> Factors {
    Factors {
        values: vec![2.0, 0.5],
        readers: readers
            .iter()
            .map(|r| (*r).to_owned())
            .collect::<BTreeSet<_>>(),
    }
}

#[test]
fn a_norm_takes_them_where_nothing_else_reads() {
    let net = "main (float[3,2] X) => (float[3,2] Y, float[3,2] Z)
<
  float[2] G = {1, 2},
  float[2] B = {4, 8},
  float[2,2] W = {1, 2, 3, 4}
>
{
  [norm] N = LayerNormalization (X, G, B)
  [a] Y = MatMul (N, W)
  [b] Z = MatMul (N, W)
}";
    let mut model = text::parse(net).unwrap();
    let n = model.find_value("N").unwrap();
    assert_eq!(apply(&mut model, n, &factors(&["a", "b"])), Ok(true));
    assert_eq!(constant(&model, "norm", 1), [0.5, 4.0]);
    assert_eq!(constant(&model, "norm", 2), [2.0, 16.0]);
    for reader in ["a", "b"] {
        assert_eq!(constant(&model, reader, 1), [2.0, 4.0, 1.5, 2.0]);
    }
    // Only one of two readers takes them: the other still reads what it did.
    let mut model = text::parse(net).unwrap();
    let n = model.find_value("N").unwrap();
    assert_eq!(apply(&mut model, n, &factors(&["a"])), Ok(false));
    assert_eq!(constant(&model, "norm", 1), [1.0, 2.0]);
    assert_eq!(constant(&model, "b", 1), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(model.all_nodes().len(), 4);
}

#[test]
fn a_dense_layer_before_takes_them_through_bias_and_relu() {
    let net = "main (float[3,2] X) => (float[3,2] Y)
<
  float[2] B = {4, 8},
  float[2,2] W = {1, 2, 3, 4}
>
{
  [first] M = MatMul (X, W)
  [bias] A = Add (M, B)
  [relu] R = Relu (A)
  [last] Y = MatMul (R, W)
}";
    let mut model = text::parse(net).unwrap();
    let r = model.find_value("R").unwrap();
    assert_eq!(apply(&mut model, r, &factors(&["last"])), Ok(true));
    assert_eq!(constant(&model, "first", 1), [0.5, 4.0, 1.5, 8.0]);
    assert_eq!(constant(&model, "bias", 1), [2.0, 16.0]);
    assert_eq!(constant(&model, "last", 1), [2.0, 4.0, 1.5, 2.0]);
}
