//! The choice of the runtime, where no onnxruntime is needed: what is said when it is not there.

use std::process::Command;

use super::sandbox::Sandbox;

/// Runs the program with the library of onnxruntime said to be at a path.
fn with_library(dir: &Sandbox, path: &str, line: &str) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
        .args(line.split_whitespace())
        .env("ORT_DYLIB_PATH", path)
        .current_dir(dir.path("."))
        .output()
        .unwrap();
    let code = out.status.code().unwrap_or(-1);
    (code, String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_runtime_that_is_not_there_is_one_clear_error() {
    let dir = Sandbox::with_net();
    dir.write("text.so", b"this is no library");
    for line in [
        "run net.onnx --data eval.npz -o y.npz --engine onnxruntime",
        "quantize net.onnx --calib calib.npz -o q.onnx --engine onnxruntime",
        "check net.onnx net.onnx --eval eval.npz --engine onnxruntime",
        "check net.onnx net.onnx --eval eval.npz --engine both",
    ] {
        for (path, word) in [
            ("nowhere.so", "ORT_DYLIB_PATH"),
            ("text.so", "cannot be used"),
        ] {
            let (code, error) = with_library(&dir, path, line);
            assert_eq!(code, 2, "{error}");
            assert!(error.contains(path) && error.contains(word), "{error}");
            assert!(!error.contains("panicked"), "{error}");
            assert_eq!(error.matches("error: ").count(), 1, "{error}");
        }
    }
    assert!(!dir.has("q.onnx") && !dir.has("y.npz"));
}

#[test]
fn the_default_runtime_needs_no_library() {
    let dir = Sandbox::with_net();
    let line = "run net.onnx --data eval.npz -o y.npz --engine tract";
    let (code, error) = with_library(&dir, "nowhere.so", line);
    assert_eq!(code, 0, "{error}");
    dir.line("run net.onnx --data eval.npz -o y.npz --engine cuda")
        .refuses(&["cuda", "onnxruntime"]);
}
