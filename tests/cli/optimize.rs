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
