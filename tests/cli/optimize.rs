//! `--optimize`: accuracy comes back, the same bytes for any number of threads, and errors that say what is wrong.

use super::sandbox::{Sandbox, noise};
use serde_json::Value;

/// The ratio in dB that the report names for the first output.
fn sqnr(report: &Value) -> f64 {
    let found = report
        .pointer("/check/outputs/0/sqnr_db")
        .and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no SQNR in {report:#}"))
}

fn quantized(dir: &Sandbox, more: &str) -> Value {
    dir.line(&format!(
        "quantize net.onnx --calib calib.npz --eval eval.npz -o q.onnx --weights int4 --min-activation-sqnr 0 --json {more}"
    ))
    .ends(0)
    .json()
}

/// The net of the sandbox with data for evaluation that calibration does not see.
fn with_data() -> Sandbox {
    let dir = Sandbox::with_net();
    dir.npz("calib.npz", &[("x", &[48, 1, 8, 8], &noise(48 * 64, 3))]);
    dir.npz("eval.npz", &[("x", &[32, 1, 8, 8], &noise(32 * 64, 4))]);
    dir
}

#[test]
fn learned_rounding_is_nearer_to_the_float_model() {
    let dir = with_data();
    let plain = sqnr(&quantized(&dir, ""));
    for how in ["best", "adaround,bias-correction", "gptq"] {
        let report = quantized(&dir, &format!("--optimize {how}"));
        let found = sqnr(&report);
        assert!(found > plain + 1.0, "{how}: {plain} dB → {found} dB");
        let notes = report.pointer("/notes").map(ToString::to_string);
        assert!(notes.is_some_and(|n| n.contains("layers were changed")));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_for_any_number_of_threads() {
    let dir = with_data();
    let mut seen = Vec::new();
    for more in ["--threads 1", "--threads 3", "--threads 2 --memory 1K"] {
        quantized(&dir, &format!("--optimize best {more}"));
        seen.push(dir.read("q.onnx"));
    }
    assert!(seen[0] == seen[1], "threads");
    assert!(seen[0] == seen[2], "a temporary file");
}

/// Weights alone, so that only what the methods choose counts.
fn weights_only(dir: &Sandbox, format: &str, more: &str) -> Value {
    dir.line(&format!(
        "quantize net.onnx --calib calib.npz --eval eval.npz -o q.onnx --weights {format} --activations none --json {more}"
    ))
    .ends(0)
    .json()
}

#[test]
fn methods_serve_every_format_with_scales() {
    let dir = with_data();
    let integers = ["int2", "int3", "int4", "int8"].iter();
    let integers = integers.flat_map(|f| {
        [
            format!("{f} --weight-scheme symmetric"),
            format!("{f} --weight-scheme asymmetric"),
        ]
    });
    for format in integers.chain(["fp4e2m1".to_owned()]) {
        let run = |more: &str| sqnr(&weights_only(&dir, &format, more));
        let plain = run("");
        let scales = run("--optimize mse-scales,hqq");
        assert!(scales > plain - 0.5, "{format}: {plain} dB → {scales} dB");
        for how in [
            "adaround,bias-correction",
            "gptq",
            "adaround,learned-steps,qdrop",
        ] {
            let found = run(&format!("--optimize {how}"));
            assert!(
                found > plain + 3.0,
                "{format} {how}: {plain} dB → {found} dB"
            );
        }
    }
}

#[test]
fn codebooks_signs_and_block_formats_are_chosen_by_what_layers_compute() {
    let dir = with_data();
    for format in [
        "ternary",
        "kmeans2",
        "kmeans3:tensor",
        "kmeans2:block8",
        "mxfp4",
        "nvfp4",
    ] {
        let plain = sqnr(&weights_only(&dir, format, ""));
        for how in ["gptq,bias-correction", "adaround,bias-correction"] {
            let report = weights_only(&dir, format, &format!("--optimize {how}"));
            let found = sqnr(&report);
            assert!(
                found > plain + 1.0,
                "{format} {how}: {plain} dB → {found} dB"
            );
        }
    }
}

#[test]
fn signs_in_integers_are_the_same_signs() {
    let dir = with_data();
    let run = |more: &str| sqnr(&weights_only(&dir, "ternary", more));
    let packed = run("--optimize gptq");
    let codes = run("--optimize gptq --signs int4");
    assert!((packed - codes).abs() < 1e-3, "{packed} {codes}");
}

#[test]
fn layers_of_which_the_same_is_said_share_a_line() {
    let dir = Sandbox::new();
    dir.model("net.onnx", TRANSFORMER);
    let line = "quantize net.onnx -o q.onnx --weights int4 --optimize bias-correction --json";
    let report = dir.line(line).ends(0).json();
    let notes = report["notes"].to_string();
    let together = "no bias correction for `query`, `key`, `down`: has no bias";
    assert!(notes.contains(together), "{notes}");
}

#[test]
fn statistics_may_stand_beside_the_data() {
    let dir = with_data();
    dir.line("calibrate net.onnx --calib calib.npz -o stats.json")
        .ends(0);
    let both = "quantize net.onnx --stats stats.json --calib calib.npz -o q.onnx --weights int4";
    let run = dir.line(&format!("{both} --optimize best")).ends(0);
    assert!(run.stderr.contains("equalize"), "{}", run.stderr);
    assert!(
        run.stderr.contains("--stats holds the ranges"),
        "{}",
        run.stderr
    );
    // The layers are the same as without statistics of their own.
    dir.line(&format!("{both} --optimize gptq")).ends(0);
    let with = dir.read("q.onnx");
    dir.line("quantize net.onnx --calib calib.npz -o q.onnx --weights int4 --optimize gptq")
        .ends(0);
    assert!(with == dir.read("q.onnx"));
    dir.line("quantize net.onnx --stats stats.json -o no.onnx --optimize gptq")
        .refuses(&["--stats", "give --calib too"]);
    dir.line(&format!("{both} --optimize equalize")).refuses(&[
        "equalize",
        "--stats",
        "leave out one of the two",
    ]);
    dir.line(both)
        .refuses(&["--stats", "--calib", "--optimize"]);
    assert!(!dir.has("no.onnx"));
}

/// A convolution with BatchNormalization, whose second channel is always far above 0, before two more.
const NORMALIZED: &str = "main (float[N,1,8,8] x) => (float[N,2,8,8] y)
<
  float[2,1,1,1] W = {1, -0.7},
  float[2] S = {1, 0.5},
  float[2] B = {0.5, 6},
  float[2] M = {0, 0},
  float[2] V = {1, 1},
  float[2,2,1,1] W2 = {0.31, 0.77, -0.43, 0.52},
  float[2] B2 = {0.1, -0.2}
>
{
  [conv] a = Conv (x, W)
  [norm] n = BatchNormalization (a, S, B, M, V)
  [relu] r = Relu (n)
  [last] y = Conv (r, W2, B2)
}";

#[test]
fn batch_normalization_says_what_biases_need_without_data() {
    let dir = with_data();
    dir.model("normalized.onnx", NORMALIZED);
    let quantize =
        "quantize normalized.onnx --eval eval.npz -o q.onnx --weights int3:tensor --json";
    let plain = sqnr(&dir.line(quantize).ends(0).json());
    let report = dir
        .line(&format!("{quantize} --optimize bias-correction"))
        .ends(0)
        .json();
    let corrected = sqnr(&report);
    assert!(corrected > plain + 3.0, "{plain} dB → {corrected} dB");
    // The first layer reads the input of the graph, of which nothing is known.
    let notes = report
        .pointer("/notes")
        .map(ToString::to_string)
        .unwrap_or_default();
    assert!(notes.contains("no BatchNormalization says"), "{notes}");
    let report = dir
        .line(&format!("{quantize} --optimize absorb-biases"))
        .ends(0)
        .json();
    let notes = report
        .pointer("/notes")
        .map(ToString::to_string)
        .unwrap_or_default();
    assert!(notes.contains("were absorbed"), "{notes}");
}

/// Two channels of very different size, which the next weight makes up for.
const SCALED: &str = "main (float[N,1,8,8] x) => (float[N,4,8,8] y)
<
  float[2,1,1,1] W = {40, -0.02},
  float[2] B = {3, 0.004},
  float[2,2,1,1] W2 = {0.011, 17, -0.02, 21},
  float[4,2,1,1] W3 = random(3)
>
{
  [first] a = Conv (x, W, B)
  b = Relu (a)
  [second] c = Conv (b, W2)
  d = Relu (c)
  [third] y = Conv (d, W3)
}";

#[test]
fn layers_are_compared_with_those_of_the_equalized_model() {
    let dir = with_data();
    dir.model("scaled.onnx", SCALED);
    let line = "quantize scaled.onnx --calib calib.npz --eval eval.npz -o q.onnx --weights int8:tensor --json --optimize equalize";
    let report = dir.line(line).ends(0).json();
    let notes = report["notes"].to_string();
    assert!(notes.contains("equalize: with plain rounding"), "{notes}");
    let layers = report.pointer("/check/layers").and_then(Value::as_array);
    let layers = layers.unwrap_or_else(|| panic!("{report:#}"));
    assert!(layers.len() >= 3, "{layers:?}");
    for layer in layers {
        let found = layer["sqnr_db"].as_f64();
        assert!(found.is_some_and(|db| db > 20.0), "{layer}");
    }
}

#[test]
fn methods_without_data_work_without_data() {
    let dir = with_data();
    let run = dir.line("quantize net.onnx -o q.onnx --weights int4 --optimize equalize,hqq");
    run.ends(0);
    let run = dir
        .line("quantize net.onnx -o q.onnx --weights int4 --optimize best")
        .ends(0);
    assert!(
        run.stderr.contains("without calibration data"),
        "{}",
        run.stderr
    );
    dir.line("quantize net.onnx -o no.onnx --optimize adaround")
        .refuses(&["adaround", "--calib"]);
    dir.line("quantize net.onnx -o no.onnx --optimize adarond")
        .refuses(&["did you mean `adaround`?"]);
    assert!(!dir.has("no.onnx"));
}

/// Attention over two heads and the dense half, with a mask of its own input.
const TRANSFORMER: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
main (float[N,6,8] x, float[N,6] m) => (float[N,6,8] y)
<
  float[8,8] Wq = random(1), float[8,8] Wk = random(2), float[8,8] Wv = random(3), float[8,8] Wo = random(4),
  float[8] Bv = random(5), float[8] Bo = random(6), float[8,16] W1 = random(7), float[16,8] W2 = random(8),
  float[16] B1 = random(9), float[8] G = random(10), float[8] B = random(11), int64[4] S = {0, 6, 2, 4},
  int64[3] S2 = {0, 6, 8}, int64[2] A = {1, 2}, float ONE = {1}, float BIG = {-9}, float HALF = {0.5},
  float R2 = {1.41421356}
>
{
  hidden = Sub (ONE, m)
  mask0 = Mul (hidden, BIG)
  mask = Unsqueeze (mask0, A)
  [query] q0 = MatMul (x, Wq)
  q1 = Reshape (q0, S)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  [key] k0 = MatMul (x, Wk)
  k1 = Reshape (k0, S)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  [value] v0 = MatMul (x, Wv)
  v1 = Add (v0, Bv)
  v2 = Reshape (v1, S)
  v = Transpose <perm = [0, 2, 1, 3]> (v2)
  s0 = MatMul (q, k)
  s1 = Mul (s0, HALF)
  s2 = Add (s1, mask)
  p = Softmax (s2)
  o0 = MatMul (p, v)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
  o2 = Reshape (o1, S2)
  [out] o3 = MatMul (o2, Wo)
  o4 = Add (o3, Bo)
  r = Add (x, o4)
  n = LayerNormalization <axis = -1> (r, G, B)
  [up] u0 = MatMul (n, W1)
  u = Add (u0, B1)
  e0 = Div (u, R2)
  e1 = Erf (e0)
  e2 = Add (e1, ONE)
  e3 = Mul (u, e2)
  gelu = Mul (e3, HALF)
  [down] d = MatMul (gelu, W2)
  z = Add (n, d)
  y = LayerNormalization <axis = -1> (z, G, B)
}
"#;

#[test]
fn transformer_blocks_are_learned_as_a_whole() {
    let dir = Sandbox::new();
    dir.model("net.onnx", TRANSFORMER);
    let mask = |n: usize| -> Vec<f32> {
        let open = (0..n * 6).map(|i| i % 6 < 3 + i / 6 % 4);
        open.map(|open| f32::from(u8::from(open))).collect()
    };
    for (name, n, seed) in [("calib.npz", 96, 3), ("eval.npz", 48, 4)] {
        let x = noise(n * 48, seed);
        dir.npz(name, &[("x", &[n, 6, 8], &x), ("m", &[n, 6], &mask(n))]);
    }
    for form in ["--weights int3 --activations none", "--weights int4"] {
        let run = |how: &str| {
            let line = format!(
                "quantize net.onnx --calib calib.npz --eval eval.npz -o q.onnx {form} --min-activation-sqnr 0 --json --optimize {how}"
            );
            let report = dir.line(&line).ends(0).json();
            (sqnr(&report), report["notes"].to_string())
        };
        let (alone, _) = run("gptq");
        let (together, notes) = run("gptq,learned-steps,qdrop");
        assert!(together > alone + 1.0, "{form}: {alone} dB → {together} dB");
        assert!(
            notes.contains("2 blocks were learned as a whole") || notes.contains("1 blocks"),
            "{notes}"
        );
        let (again, _) = run("gptq,learned-steps,qdrop --threads 1");
        assert_eq!(together, again, "{form}");
    }
}
