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
fn codebooks_stay_as_they_are_and_the_report_says_so() {
    let dir = with_data();
    for format in ["ternary", "kmeans2"] {
        let plain = sqnr(&weights_only(&dir, format, ""));
        let report = weights_only(&dir, format, "--optimize adaround,gptq");
        assert_eq!(sqnr(&report), plain, "{format}");
        let notes = report.pointer("/notes").map(ToString::to_string);
        let said = notes.is_some_and(|n| n.contains("was left as it is"));
        assert!(said, "{format}: {:#}", report["notes"]);
    }
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
