//! Blocks of graphs against what a runtime computes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::text;
use onnx_quant_numerics::affine::QParams;
use onnx_quant_passes::infer;

use super::*;
use crate::data::{DataSet, Signature};
use crate::engine::TractEngine;
use crate::optimize::flow::Flow;
use crate::optimize::padding::Padding;
use crate::optimize::store::Budget;
use crate::run::{Output, write_npz};

/// Attention with a mask that the graph computes, a normalization in its parts, and the dense half with a gate.
const TRANSFORMER: &str = r#"<ir_version: 8, opset_import: ["" : 21]>
main (float[N,6,8] x, float[N,6] m) => (float[N,6,8] y)
<
  float[8,24] Wqkv = random(1), float[24] Bqkv = random(2), float[8,8] Wo = random(3), float[8] Bo = random(4),
  float[8,24] W1 = random(5), float[12,8] W2 = random(6), float[8] G = random(7), float[8] B = random(8),
  int64[5] S = {0, 6, 3, 2, 4}, int64[3] S2 = {0, 6, 8}, int64 I0 = {0}, int64 I1 = {1}, int64 I2 = {2},
  int64[2] A1 = {1, 2}, int64[1] AL = {-1}, float ONE = {1}, float BIG = {-9}, float HALF = {0.5},
  float TWO = {2}, float EPS = {0.001}, float R2 = {1.41421356}, int64[2] SP = {12, 12},
  int64[1] F = {0}, int64[1] T = {3}, int64[1] E = {6}, int64[1] AX = {1}
>
{
  qkv0 = MatMul (x, Wqkv)
  qkv1 = Add (qkv0, Bqkv)
  qkv2 = Reshape (qkv1, S)
  qkv = Transpose <perm = [2, 0, 3, 1, 4]> (qkv2)
  q = Gather <axis = 0> (qkv, I0)
  k = Gather <axis = 0> (qkv, I1)
  v = Gather <axis = 0> (qkv, I2)
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  s0 = MatMul (q, kt)
  s1 = Mul (s0, HALF)
  hidden = Sub (ONE, m)
  mask0 = Mul (hidden, BIG)
  mask = Unsqueeze (mask0, A1)
  seen = Cast <to = 9> (mask)
  s2 = Where (seen, mask, s1)
  p = Softmax (s2)
  o0 = MatMul (p, v)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
  o2 = Reshape (o1, S2)
  o3 = MatMul (o2, Wo)
  o4 = Add (o3, Bo)
  r = Add (x, o4)
  mu = ReduceMean <keepdims = 1> (r, AL)
  d = Sub (r, mu)
  sq = Pow (d, TWO)
  var = ReduceMean <keepdims = 1> (sq, AL)
  ve = Add (var, EPS)
  sd = Sqrt (ve)
  n0 = Div (d, sd)
  n1 = Mul (n0, G)
  n = Add (n1, B)
  h = MatMul (n, W1)
  a, g = Split <axis = -1> (h, SP)
  e0 = Div (g, R2)
  e1 = Erf (e0)
  e2 = Add (e1, ONE)
  e3 = Mul (g, e2)
  gelu = Mul (e3, HALF)
  gated = Mul (a, gelu)
  f = MatMul (gated, W2)
  front = Slice (f, F, T, AX)
  back = Slice (f, T, E, AX)
  whole = Concat <axis = 1> (front, back)
  z = Add (r, whole)
  y = LayerNormalization <axis = -1> (z, G, B)
}
"#;

/// The members of a model: every product with a constant weight, with weights that stay as they are.
fn members(model: &Model) -> Vec<Member> {
    let nodes = model.main().nodes.iter().enumerate();
    let found = nodes.filter_map(|(task, &node)| {
        let matrix = Matrix::of(model, node).ok()?;
        let weights = matrix.gather(&model.input_constant(node, 1)?.to_f32().ok()?);
        let fine = QParams {
            scale: 1e-4,
            zero_point: 0,
            qmin: -100_000,
            qmax: 100_000,
        };
        Some(Member {
            task,
            node,
            grid: Grid::per_tensor(matrix.rows, matrix.cols, &fine),
            matrix,
            values: weights.clone(),
            weights,
            free: None,
            free_bias: false,
        })
    });
    found.collect()
}

/// Samples `[count, dims]` of a function of the place.
fn array(name: &str, dims: &[usize], f: impl Fn(usize) -> f32) -> Output {
    let bytes = (0..dims.iter().product()).flat_map(|i| f(i).to_le_bytes());
    Output {
        name: name.to_owned(),
        descr: "<f4",
        dims: dims.to_vec(),
        bytes: bytes.collect(),
    }
}

#[test]
fn a_transformer_block_computes_what_the_runtime_does() {
    let model = text::parse(TRANSFORMER).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let x = array("x", &[8, 6, 8], |i| ((i * 37 % 101) as f32 - 50.0) * 0.03);
    let m = array("m", &[8, 6], |i| f32::from(u8::from(i % 6 < 3 + i / 6 % 4)));
    let mut file = std::fs::File::create(&path).unwrap();
    write_npz(&[x, m], &mut file).unwrap();
    let data = DataSet::open(&path, &Signature::of(&model).unwrap()).unwrap();
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    // Some of it fits into memory, the rest goes into a file.
    let budget = Budget::new(1000);
    let flow = Flow::new(&engine, &data, &budget);
    let shapes = data.peek_shapes(1).into_iter();
    let shapes = shapes.map(|(name, dtype, dims)| (name, (dtype, dims)));
    let facts = infer::infer(&model, &shapes.collect(), &infer::Options::default());
    let (roots, last) = (model.main().inputs[..1].to_vec(), model.main().outputs[0]);
    let members = members(&model);
    assert_eq!(members.len(), 4);
    let found = find((&model, &model), &facts, &roots, (last, false), &members).unwrap();
    // The mask and what is made of it come from outside.
    assert_eq!(found.inputs.len(), 3);
    let sides = (&model, &flow);
    let parts = samples(sides, sides, &found, (true, &Padding::default()), &budget).unwrap();
    let [train, held] = parts.unwrap();
    assert_eq!((train.inputs.len(), held.inputs.len()), (6, 2));
    let block = &found.block;
    let exact = block.state(block.layers.iter().map(|l| l.weights.clone()).collect());
    let error = block.error(&exact, &train) / 48.0;
    assert!(error < 1e-9, "{error}");
    assert!(block.error(&block.nearest(), &train) > 0.0);
    // 6 rows of 8 · 24, 8 · 8, 8 · 24 and 12 · 8 weights, and two heads of 6 · 4 · 6 twice.
    assert_eq!(block.work(), 6 * (192 + 64 + 192 + 96) + 2 * 2 * 144);
}

#[test]
fn what_has_no_gradient_is_named() {
    let model = r#"<ir_version: 8, opset_import: ["" : 21]>
        main (float[N,4] x) => (float[N,4] y) <float[4,4] W = random(1), float[4,4] V = random(2)> {
            a = MatMul (x, W)
            b = Sin (a)
            y = MatMul (b, V)
        }"#;
    let model = text::parse(model).unwrap();
    let shapes = [("x".to_owned(), (onnx_quant_ir::DataType::Float, vec![1, 4]))];
    let facts = infer::infer(&model, &shapes.into(), &infer::Options::default());
    let (roots, last) = (model.main().inputs.clone(), model.main().outputs[0]);
    let found = find(
        (&model, &model),
        &facts,
        &roots,
        (last, false),
        &members(&model),
    );
    assert!(found.is_err_and(|why| why.contains("Sin, of which no gradient is known")));
}

#[test]
fn large_blocks_learn_from_fewer_samples_and_then_in_fewer_steps() {
    let of = |work| pace(work, 1024, 1000);
    let pace = |batch, iterations| Ok(Pace { batch, iterations });
    assert_eq!(of(5_000_000), pace(16, 1000));
    assert_eq!(of(40_000_000), pace(2, 1000));
    assert_eq!(of(400_000_000), pace(1, 208));
    // A few large images show each layer as much as many small ones.
    assert_eq!(super::pace(5_000_000, 80 * 60, 1000), pace(3, 1000));
    assert!(of(4_000_000_000).is_err_and(|why| why.contains("4000 million")));
}
