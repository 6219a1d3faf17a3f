//! Formats and what belongs to them through the program: bad ones, other ways of writing them, and their sizes.

use super::sandbox::{Sandbox, noise};

#[test]
fn formats_that_do_not_exist_or_do_not_fit_are_refused() {
    let dir = Sandbox::with_net();
    for (options, words) in [
        ("--weights int44", "did you mean `int4`"),
        ("--weights int4:blok32", "did you mean `block32`"),
        ("--weights int4:block0", "from 2"),
        ("--weights int4:block100000", "does not fit"),
        ("--weights mxfp4:channel", "blocks of 32 by definition"),
        ("--weights kmeans4:vsq16", "no integer scale"),
        ("--weights fp16:channel", "no granularity"),
        ("--weights q9.9", "2 to 16 bits"),
        ("--activations mxfp8", "no format of activations"),
        ("--activations fp16:tensor", "no granularity"),
        ("--scale pow3", "float or pow2, not `pow3`"),
        ("--scale pow2 --scale float", "given twice"),
        ("--scale 0.5 --scale 1/255", "given twice"),
        ("--floats int8", "fp32, fp16 or bf16"),
        ("--activations fp16 --floats bf16", "contradict"),
        ("--fp32-ops Softmax", "needs --floats"),
        ("--floats fp16 --fp32-ops Rellu", "did you mean `Relu`"),
        ("--matmul-nbits --target openvino", "MatMulNBits"),
    ] {
        let before = dir.names();
        dir.line(&format!("quantize net.onnx {options} -o q.onnx"))
            .refuses(&[words]);
        assert_eq!(dir.names(), before, "{options}");
    }
    let rule = r#"{ match = "Relu", weights = "int4" }"#;
    dir.run(&["quantize", "net.onnx", "--layer", rule, "-o", "q.onnx"])
        .refuses(&["Relu", "no weight that could be quantized"]);
    dir.line("check net.onnx net.onnx --eval calib.npz --scale pow2")
        .refuses(&["belong to `quantize`"]);
}

/// A model of one matrix product, 96 x 64.
fn dense() -> Sandbox {
    let dir = Sandbox::new();
    let source = r#"<ir_version: 10, opset_import: ["" : 21]>
main (float[N,96] A) => (float[N,64] B)
<
  float[96,64] M = random(3)
>
{
  [dense] B = MatMul (A, M)
}"#;
    dir.model("dense.onnx", source);
    dir.npz("eval.npz", &[("A", &[8, 96], &noise(8 * 96, 4))]);
    dir
}

#[test]
fn the_claimed_bits_are_those_of_the_file() {
    let dir = dense();
    // Weights share the file with names and operators: less than 3 kB.
    for (format, bits) in [
        ("binary:tensor", 1.0),
        ("ternary:tensor", 2.0),
        ("kmeans2:tensor", 2.0),
        ("int4:vsq16", 4.25),
        ("int4:block32", 5.0),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("int8:tensor", 8.0),
    ] {
        let line =
            format!("quantize dense.onnx --weights {format} --activations none -o q.onnx --json");
        let report = dir.line(&line).ends(0).json();
        let told = report["size"]["effective_bits"].as_f64().unwrap();
        // A codebook, or a scale and a zero point for the tensor or each of the 64 channels.
        let beside = if format.ends_with("vsq16") {
            64.0 * 32.0
        } else {
            160.0
        };
        let values = 96.0 * 64.0;
        assert!(
            told >= bits && told <= bits + beside / values,
            "{format}: {told}"
        );
        let bytes = dir.read("q.onnx").len() as f64;
        assert_eq!(bytes, report["size"]["after_bytes"].as_f64().unwrap());
        let codes = told * values / 8.0;
        assert!(
            bytes >= codes && bytes < codes + 3000.0,
            "{format}: {bytes} B, {codes} B of codes"
        );
    }
}

#[test]
fn other_ways_of_writing_a_format_have_the_same_values() {
    let dir = dense();
    for (format, options, written) in [
        ("int4:block32", "--matmul-nbits", "MatMulNBits"),
        ("int8:channel", "--matmul-nbits", "MatMulNBits"),
        ("fp4e2m1:block32", "--emulate", "BitShift"),
        ("mxfp6", "--emulate", "BitwiseOr"),
        ("int4:vsq16", "--emulate --target tract", "BitShift"),
        ("ternary", "--signs int2", "DequantizeLinear"),
        ("binary:channel", "--signs int4", "DequantizeLinear"),
    ] {
        let quantize = |options: &str, name: &str| {
            let line = format!(
                "quantize dense.onnx --weights {format} --activations none {options} -o {name}"
            );
            dir.line(&line).ends(0);
        };
        quantize(options, "other.onnx");
        quantize("--target generic", "plain.onnx");
        let seen = dir.line("inspect other.onnx --json").ends(0).json();
        let operators = seen["operators"].as_object().unwrap();
        assert!(
            operators.keys().any(|op| op.ends_with(written)),
            "{format} {options}"
        );
        for name in ["plain", "other"] {
            dir.line(&format!("run {name}.onnx --data eval.npz -o {name}.npz"))
                .ends(0);
        }
        assert_eq!(
            dir.read("plain.npz"),
            dir.read("other.npz"),
            "{format} {options}"
        );
    }
}

#[test]
fn floats_are_cast_and_ports_keep_their_types() {
    let dir = dense();
    for (options, ports) in [("", "f32"), ("--cast-io", "f16")] {
        dir.line(&format!(
            "quantize dense.onnx --weights int8 --activations fp16 {options} -o h.onnx"
        ))
        .ends(0);
        let seen = dir.line("inspect h.onnx --json").ends(0).json();
        assert_eq!(seen["inputs"][0]["dtype"], ports);
        assert_eq!(seen["outputs"][0]["dtype"], ports);
    }
    let scales = |options: &str| {
        let line =
            format!("quantize dense.onnx --weights int8 --activations none {options} -o s.onnx");
        dir.line(&line).ends(0);
        dir.line("run s.onnx --data eval.npz -o s.npz").ends(0);
        dir.read("s.npz")
    };
    assert_eq!(scales("--scale pow2"), scales("--scale-kind pow2"));
    assert_ne!(scales("--scale pow2"), scales(""));
}
