//! Branches, loops and scans on tract: what they compute, and which values of their bodies are seen.
#![expect(clippy::unwrap_used, reason = "tests")]
use std::sync::Mutex;

use onnx_quant_ir::engine::{Engine, Observed, Request};
use onnx_quant_ir::{Model, Tensor, text};

use crate::engine::TractEngine;

/// The outputs of a model, and what was seen of the values named, by name and turn.
fn run(model: &str, feed: &[(&str, Tensor)], watch: &[&str]) -> (Vec<Tensor>, Vec<Vec<Vec<f32>>>) {
    let head = r#"<ir_version: 8, opset_import: ["" : 17]>"#;
    let model: Model = text::parse(&format!("{head}\n{model}")).unwrap();
    let dims = |t: &Tensor| t.dims().iter().map(|&d| d as usize).collect();
    let request = Request {
        feed: feed
            .iter()
            .map(|(n, t)| ((*n).to_owned(), t.dtype(), dims(t)))
            .collect(),
        observe: watch.iter().map(|&n| n.to_owned()).collect(),
        ..Request::default()
    };
    let session = TractEngine.prepare(&model, &request).unwrap();
    let tensors: Vec<Tensor> = feed.iter().map(|(_, t)| t.clone()).collect();
    let seen = Mutex::new(vec![Vec::new(); watch.len()]);
    let mut see = |o: Observed<'_>| {
        assert_eq!(o.dims.iter().product::<usize>(), o.data.len());
        seen.lock().unwrap()[o.index].push(o.data.to_vec());
    };
    let outputs = session.run(&tensors, Some(&mut see)).unwrap();
    let plain = session.run(&tensors, None).unwrap();
    for (a, b) in outputs.iter().zip(&plain) {
        assert_eq!(
            (a.dims(), a.bytes().unwrap()),
            (b.dims(), b.bytes().unwrap())
        );
    }
    (outputs, seen.into_inner().unwrap())
}

fn row(values: &[f32]) -> Tensor {
    Tensor::from_f32(&[1, values.len() as i64], values)
}

#[test]
fn values_of_the_branch_that_data_chooses_are_seen() {
    let model = r"main (float[1,2] x) => (float[1,2] y) <float zero = {0}> {
        mean = ReduceMean <keepdims = 0> (x)
        c = Greater (mean, zero)
        z = If (c) <
            then_branch = t () => (float[1,2] r) { a = Relu (x) r = Neg (a) },
            else_branch = e () => (float[1,2] q) { b = Abs (x) q = Neg (b) }
        >
        y = Add (z, x)
    }";
    let watch = ["z/then_branch/a", "z/else_branch/b", "z", "x", "mean"];
    let (y, seen) = run(model, &[("x", row(&[-1.0, 3.0]))], &watch);
    assert_eq!(y[0].to_f32().unwrap(), [-1.0, 0.0]);
    let one = |x: &[f32]| vec![x.to_vec()];
    assert_eq!(
        seen,
        [
            one(&[0.0, 3.0]),
            vec![],
            one(&[0.0, -3.0]),
            one(&[-1.0, 3.0]),
            one(&[1.0])
        ]
    );
    let (y, seen) = run(model, &[("x", row(&[-3.0, 1.0]))], &watch);
    assert_eq!(y[0].to_f32().unwrap(), [-6.0, 0.0]);
    assert_eq!(seen[..2], [vec![], one(&[3.0, 1.0])]);
}

const LOOP: &str = r"main (float[1,2] x, int64 n) => (float[1,2] y, float[T,1,2] all) <float[1,2] one = {1, 1}> {
    y, all = Loop (n, , x) <
        body = b (int64 i, bool c, float[1,2] h) => (bool d, float[1,2] k, float[1,2] s) {
            twice = Add (h, h)
            k = Add (twice, one)
            s = Neg (k)
            limit = Constant <value = float {20}> ()
            sum = ReduceSum <keepdims = 0> (k)
            d = Less (sum, limit)
        }
    >
}";

#[test]
fn a_loop_shows_each_turn() {
    let n = |n| Tensor::from_i64(&[], &[n]);
    let feed = [("x", row(&[0.0, 1.0])), ("n", n(2))];
    let (found, seen) = run(LOOP, &feed, &["y/body/twice"]);
    assert_eq!(found[0].to_f32().unwrap(), [3.0, 7.0]);
    assert_eq!(found[1].dims(), [2, 1, 2]);
    assert_eq!(found[1].to_f32().unwrap(), [-1.0, -3.0, -3.0, -7.0]);
    assert_eq!(seen[0], [[0.0, 2.0], [2.0, 6.0]]);
    // The condition ends it.
    let feed = [("x", row(&[0.0, 1.0])), ("n", n(9))];
    let (found, seen) = run(LOOP, &feed, &["y/body/twice"]);
    assert_eq!(found[0].to_f32().unwrap(), [7.0, 15.0]);
    assert_eq!(seen[0].len(), 3);
    let feed = [("x", row(&[0.0, 1.0])), ("n", n(0))];
    let (found, seen) = run(LOOP, &feed, &["y/body/twice"]);
    assert_eq!(found[0].to_f32().unwrap(), [0.0, 1.0]);
    assert_eq!(found[1].dims()[0], 0);
    assert!(seen[0].is_empty());
}

#[test]
fn a_loop_runs_without_being_watched() {
    let n = Tensor::from_i64(&[], &[2]);
    let (found, _) = run(LOOP, &[("x", row(&[0.0, 1.0])), ("n", n)], &[]);
    assert_eq!(found[0].to_f32().unwrap(), [3.0, 7.0]);
}

#[test]
fn a_scan_goes_along_any_axis_in_both_directions() {
    let model = |attributes: &str| {
        format!(
            r"main (float[1] s, float[1,3] x) => (float[1] e, float[1,3] y) {{
                e, y = Scan (s, x) <
                    num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1] {attributes},
                    body = b (float[1] h, float[1] v) => (float[1] k, float[1] o) {{
                        m = Mul (h, v)
                        k = Add (m, v)
                        o = Identity (k)
                    }}
                >
            }}"
        )
    };
    let feed = [
        ("s", Tensor::from_f32(&[1], &[1.0])),
        ("x", row(&[1.0, 2.0, 3.0])),
    ];
    let (found, seen) = run(&model(""), &feed, &["e/body/m"]);
    assert_eq!(found[0].to_f32().unwrap(), [21.0]);
    assert_eq!(found[1].to_f32().unwrap(), [2.0, 6.0, 21.0]);
    assert_eq!(seen[0], [[1.0], [4.0], [18.0]]);
    let backward = ", scan_input_directions = [1], scan_output_directions = [1]";
    let (found, _) = run(&model(backward), &feed, &["e/body/m"]);
    assert_eq!(found[0].to_f32().unwrap(), [15.0]);
    assert_eq!(found[1].to_f32().unwrap(), [15.0, 14.0, 6.0]);
}

#[test]
fn bodies_inside_of_bodies_read_from_all_around() {
    let model = r"main (float[1,2] x, int64 n) => (float[1,2] y) <float zero = {0}> {
        w = Neg (x)
        y = Loop (n, , x) <
            body = b (int64 i, bool c, float[1,2] h) => (bool d, float[1,2] k) {
                d = Identity (c)
                sum = ReduceSum <keepdims = 0> (h)
                positive = Greater (sum, zero)
                k = If (positive) <
                    then_branch = t () => (float[1,2] r) { a = Add (h, w) r = Add (a, w) },
                    else_branch = e () => (float[1,2] q) { q = Identity (x) }
                >
            }
        >
    }";
    let feed = [("x", row(&[1.0, 2.0])), ("n", Tensor::from_i64(&[], &[2]))];
    let (found, seen) = run(model, &feed, &["y/body/k/then_branch/a", "y/body/sum"]);
    assert_eq!(found[0].to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(seen[0], [[0.0, 0.0]]);
    assert_eq!(seen[1], [[3.0], [-3.0]]);
}
