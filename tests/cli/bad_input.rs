//! Input that is wrong in every way that was thought of: one clear error, exit code 2, nothing written, no panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use super::sandbox::{NET, Ran, Sandbox, array, noise};
use onnx_quant::engine::tract::TractEngine;
use onnx_quant::ir::engine::Engine;
use onnx_quant::ir::proto::{
    GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, tensor_proto,
};
use onnx_quant::ir::{save, text};
use onnx_quant::quantize::{Job, quantize};

const QUANTIZE: &str = "quantize net.onnx --calib calib.npz -o q.onnx";

/// Runs a command that must be refused, and fails if it leaves anything behind.
#[track_caller]
fn refused(dir: &Sandbox, line: &str, words: &[&str]) {
    let before = dir.names();
    dir.line(line).refuses(words);
    assert_eq!(dir.names(), before, "something was written");
}

fn net() -> ModelProto {
    text::parse(NET).unwrap().to_proto()
}

fn graph(m: &mut ModelProto) -> &mut GraphProto {
    m.graph.as_mut().unwrap()
}

fn weight<'a>(m: &'a mut ModelProto, name: &str) -> &'a mut TensorProto {
    let mut weights = graph(m).initializer.iter_mut();
    weights.find(|t| t.name() == name).unwrap()
}

/// The net after a change to its message.
fn changed(change: impl FnOnce(&mut ModelProto)) -> Sandbox {
    let dir = Sandbox::with_net();
    let mut model = net();
    change(&mut model);
    dir.proto("net.onnx", &model);
    dir
}

#[test]
fn a_file_that_is_no_model() {
    let dir = Sandbox::with_net();
    refused(
        &dir,
        "quantize nothing.onnx -o q.onnx",
        &["nothing.onnx", "does not exist"],
    );
    for (name, bytes) in [
        ("empty.onnx", &b""[..]),
        ("text.onnx", b"This is a text, and no model at all.\n"),
        ("image.onnx", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
        ("zeros.onnx", &[0; 64]),
    ] {
        dir.write(name, bytes);
        for command in [
            format!("quantize {name} -o q.onnx"),
            format!("inspect {name}"),
            format!("diff net.onnx {name}"),
            format!("check net.onnx {name} --eval eval.npz"),
            format!("rewrite {name} -o q.onnx"),
            format!("run {name} --data eval.npz -o out.npz"),
        ] {
            refused(&dir, &command, &[name]);
        }
    }
    refused(&dir, "inspect .", &["."]);
}

#[test]
fn a_model_that_ends_anywhere() {
    let dir = Sandbox::with_net();
    let whole = dir.read("net.onnx");
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let mut read = 0;
    for end in 0..whole.len() {
        dir.write("cut.onnx", &whole[..end]);
        let job = Job {
            model: dir.path("cut.onnx"),
            ..Job::default()
        };
        let run = || quantize(&job, &engine, &mut |_| ()).is_ok();
        let done = catch_unwind(AssertUnwindSafe(run));
        read += usize::from(done.unwrap_or_else(|_| panic!("panics when cut at byte {end}")));
    }
    // A cut between two fields of the whole message leaves a valid model, and there are only few of those.
    assert!(read < 8, "{read} of {} cuts were read", whole.len());
    for end in [1, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        dir.write("cut.onnx", &whole[..end]);
        refused(&dir, "quantize cut.onnx -o q.onnx", &["cut.onnx"]);
    }
}

#[test]
fn a_cyclic_graph() {
    let dir = changed(|m| {
        let nodes = &mut graph(m).node;
        nodes[0].input[0] = "d".to_owned();
    });
    refused(&dir, QUANTIZE, &["net.onnx", "conv_1"]);
}

#[test]
fn values_that_do_not_exist_or_exist_twice() {
    let dir = changed(|m| graph(m).node[0].input[0] = "nowhere".to_owned());
    refused(&dir, QUANTIZE, &["nowhere"]);
    let dir = changed(|m| graph(m).node[3].output[0] = "a".to_owned());
    refused(&dir, QUANTIZE, &["`a`"]);
}

#[test]
fn an_unknown_operator() {
    let dir = changed(|m| graph(m).node[1].op_type = Some("Rellu".to_owned()));
    refused(&dir, QUANTIZE, &["Rellu", "relu_1"]);
    let dir = changed(|m| {
        let node: &mut NodeProto = &mut graph(m).node[1];
        node.domain = Some("com.example".to_owned());
        node.op_type = Some("Swirl".to_owned());
        m.opset_import
            .push(onnx_quant::ir::proto::OperatorSetIdProto {
                domain: Some("com.example".to_owned()),
                version: Some(1),
            });
    });
    refused(&dir, QUANTIZE, &["Swirl", "relu_1"]);
}

#[test]
fn an_unknown_opset() {
    for version in [0, -1, 6, 99] {
        let dir = changed(|m| m.opset_import[0].version = Some(version));
        refused(&dir, QUANTIZE, &["opset", &version.to_string()]);
    }
    let dir = changed(|m| m.opset_import.clear());
    refused(&dir, QUANTIZE, &["operator set"]);
}

#[test]
fn initializers_whose_data_does_not_fit() {
    let short = changed(|m| {
        let w = weight(m, "W1");
        let raw = w.raw_data.clone();
        if let Some(raw) = raw {
            w.raw_data = Some(raw.slice(..raw.len() - 1));
        } else {
            w.float_data.pop();
        }
    });
    refused(&short, QUANTIZE, &["`W1`"]);
    let long = changed(|m| weight(m, "W1").dims[0] = 7);
    refused(&long, QUANTIZE, &["`W1`", "[7, 1, 3, 3]"]);
    let other = changed(|m| {
        let w = weight(m, "W1");
        w.raw_data = None;
        w.float_data.clear();
        w.int64_data = vec![1; 72];
    });
    refused(&other, QUANTIZE, &["`W1`"]);
    let unknown = changed(|m| weight(m, "W1").data_type = Some(77));
    refused(&unknown, QUANTIZE, &["`W1`", "77"]);
    let negative = changed(|m| weight(m, "W1").dims[0] = -8);
    refused(&negative, QUANTIZE, &["`W1`"]);
}

#[test]
fn weights_of_a_type_or_shape_that_the_operator_does_not_take() {
    let dir = changed(|m| {
        let w = weight(m, "W3");
        w.raw_data = None;
        w.float_data.clear();
        w.data_type = Some(7);
        w.int64_data = vec![1; 32];
    });
    refused(&dir, QUANTIZE, &[]);
    let dir = changed(|m| weight(m, "W3").dims = vec![4, 8]);
    refused(&dir, QUANTIZE, &[]);
}

fn external(location: &str, length: usize) -> Sandbox {
    changed(|m| {
        let w = weight(m, "W1");
        w.raw_data = None;
        w.float_data.clear();
        w.data_location = Some(tensor_proto::DataLocation::External as i32);
        for (key, value) in [
            ("location", location.to_owned()),
            ("length", length.to_string()),
        ] {
            w.external_data.push(StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value),
            });
        }
    })
}

#[test]
fn external_data_that_cannot_be_used() {
    refused(&external("gone.bin", 288), QUANTIZE, &["`W1`", "gone.bin"]);
    refused(
        &external("../outside.bin", 288),
        QUANTIZE,
        &["`W1`", "outside"],
    );
    refused(
        &external("/etc/passwd", 288),
        QUANTIZE,
        &["`W1`", "outside"],
    );
    let dir = external("short.bin", 288);
    dir.write("short.bin", &[0; 287]);
    refused(&dir, QUANTIZE, &["`W1`", "short.bin", "287"]);
    let dir = external("wrong.bin", 100);
    dir.write("wrong.bin", &[0; 288]);
    refused(&dir, QUANTIZE, &["`W1`"]);
}

/// Name, shape and values of an array, and the words that the error must have.
type Case<'a> = (&'a str, &'a [usize], &'a [f32], &'a [&'a str]);

#[test]
fn calibration_data_that_does_not_fit() {
    let dir = Sandbox::with_net();
    let data = noise(4 * 64, 3);
    let mut hole = data.clone();
    hole[70] = f32::NAN;
    let mut huge = data.clone();
    huge[200] = f32::INFINITY;
    let cases: [Case<'_>; 7] = [
        ("image", &[4, 1, 8, 8], &data, &["`image`", "`x`"]),
        ("x", &[4, 64], &data, &["`x`", "[4, 64]"]),
        ("x", &[4, 2, 8, 4], &data, &["`x`", "axis 1"]),
        ("x", &[0, 1, 8, 8], &[], &["`x`", "no samples"]),
        ("x", &[4, 1, 8, 8], &hole, &["`x`", "NaN", "sample 1"]),
        ("x", &[4, 1, 8, 8], &huge, &["`x`", "inf", "sample 3"]),
        ("x", &[], &data[..1], &["`x`"]),
    ];
    for (name, dims, values, words) in cases {
        dir.npz("bad.npz", &[(name, dims, values)]);
        refused(&dir, "quantize net.onnx --calib bad.npz -o q.onnx", words);
        refused(
            &dir,
            "quantize net.onnx --calib calib.npz --eval bad.npz -o q.onnx",
            words,
        );
        refused(&dir, "check net.onnx net.onnx --eval bad.npz", words);
        refused(&dir, "run net.onnx --data bad.npz -o out.npz", words);
    }
    dir.npz(
        "bad.npz",
        &[("x", &[4, 1, 8, 8], &data), ("z", &[4], &data[..4])],
    );
    refused(
        &dir,
        "quantize net.onnx --calib bad.npz -o q.onnx",
        &["`z`", "`x`"],
    );
    let doubles = noise(64, 1)
        .iter()
        .flat_map(|&v| f64::from(v).to_le_bytes())
        .collect();
    dir.arrays("bad.npz", &[array("x", "<f8", &[1, 1, 8, 8], doubles)]);
    refused(
        &dir,
        "quantize net.onnx --calib bad.npz -o q.onnx",
        &["f64", "float32"],
    );
    dir.arrays(
        "bad.npz",
        &[array("x", "<f4", &[4, 1, 8, 8], vec![0; 1000])],
    );
    refused(
        &dir,
        "quantize net.onnx --calib bad.npz -o q.onnx",
        &["`x`", "damaged"],
    );
    dir.write("bad.npz", &dir.read("calib.npz")[..500]);
    refused(
        &dir,
        "quantize net.onnx --calib bad.npz -o q.onnx",
        &["bad.npz"],
    );
    dir.write("bad.txt", b"1 2 3");
    refused(
        &dir,
        "quantize net.onnx --calib bad.txt -o q.onnx",
        &["bad.txt"],
    );
    refused(
        &dir,
        "quantize net.onnx --calib gone.npz -o q.onnx",
        &["gone.npz"],
    );
    std::fs::create_dir(dir.path("bad")).unwrap();
    refused(&dir, "quantize net.onnx --calib bad -o q.onnx", &["bad"]);
}

#[test]
fn labels_that_do_not_fit() {
    let dir = Sandbox::with_net();
    let eval = "quantize net.onnx --calib calib.npz --eval eval.npz --labels l.npy -o q.onnx";
    dir.labels("l.npy", &[0; 23]);
    refused(&dir, eval, &["l.npy", "23", "24"]);
    dir.labels("l.npy", &[4; 24]);
    refused(&dir, eval, &["4"]);
    dir.labels("l.npy", &[-1; 24]);
    refused(&dir, eval, &["-1"]);
    dir.write("l.npy", b"no array");
    refused(&dir, eval, &["l.npy"]);
    let none = "quantize net.onnx --calib calib.npz --labels l.npy -o q.onnx";
    refused(&dir, none, &["--eval"]);
    let none = "quantize net.onnx --calib calib.npz --max-drop 1% -o q.onnx";
    refused(&dir, none, &["--eval"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = Sandbox::with_net();
    let before = dir.read("net.onnx");
    for output in ["net.onnx", "./net.onnx"] {
        let line = format!("quantize net.onnx --calib calib.npz -o {output}");
        refused(&dir, &line, &["net.onnx", "is the input"]);
        refused(
            &dir,
            &format!("rewrite net.onnx -o {output}"),
            &["is the input"],
        );
    }
    refused(
        &dir,
        "quantize net.onnx --calib calib.npz -o calib.npz",
        &["is the input"],
    );
    refused(
        &dir,
        "quantize net.onnx -o gone/q.onnx",
        &["gone/q.onnx", "does not exist"],
    );
    refused(&dir, "quantize net.onnx -o .", &["folder"]);
    refused(
        &dir,
        "quantize net.onnx -o q.onnx --report gone/r.json",
        &["gone/r.json"],
    );
    refused(
        &dir,
        "quantize net.onnx -o q.onnx --report q.onnx",
        &["same file"],
    );
    refused(
        &dir,
        "quantize net.onnx -o q.onnx --report net.onnx",
        &["is the input"],
    );
    refused(
        &dir,
        "run net.onnx --data eval.npz -o eval.npz",
        &["is the input"],
    );
    refused(&dir, "demo --out net.onnx", &["net.onnx"]);
    assert_eq!(dir.read("net.onnx"), before);
}

#[test]
fn a_model_that_is_quantized_already() {
    let dir = Sandbox::with_net();
    dir.line(QUANTIZE).ends(0);
    refused(
        &dir,
        "quantize q.onnx --calib calib.npz -o r.onnx",
        &["q.onnx", "already quantized", "float model"],
    );
}

#[test]
fn patterns_that_match_nothing() {
    let dir = Sandbox::with_net();
    for option in ["--exclude", "--include"] {
        let line = format!("{QUANTIZE} {option} cnv_*");
        refused(&dir, &line, &["cnv_*"]);
    }
    refused(&dir, &format!("{QUANTIZE} --exclude [a"), &["[a"]);
}

#[test]
fn models_that_cannot_be_compared() {
    let dir = Sandbox::with_net();
    dir.model(
        "two.onnx",
        "main (float[N,1,8,8] x) => (float[N,1,8,8] y, float[N,1,8,8] z)\n{\n  y = Relu (x)\n  z = Neg (x)\n}\n",
    );
    refused(
        &dir,
        "check net.onnx two.onnx --eval eval.npz",
        &["outputs"],
    );
    dir.model(
        "other.onnx",
        "main (float[N,3] x) => (float[N,3] y)\n{\n  y = Relu (x)\n}\n",
    );
    refused(&dir, "check net.onnx other.onnx --eval eval.npz", &["x"]);
}

#[test]
fn weights_that_are_not_finite_are_never_quantized() {
    let dir = Sandbox::with_net();
    let mut model = text::parse(NET).unwrap();
    let id = model.find_value("W1").unwrap();
    let mut values = noise(72, 1);
    values[5] = f32::NAN;
    model.value_mut(id).init = Some(onnx_quant::ir::Tensor::from_f32(&[8, 1, 3, 3], &values));
    let path = dir.path("net.onnx");
    save::save(&model, Path::new(&path), save::ExternalData::Auto).unwrap();
    let Ran { code, stderr, .. } = dir.line(QUANTIZE);
    assert!(code == 0 || code == 2, "{code}\n{stderr}");
    if code == 0 {
        let q = dir.line("inspect q.onnx --json").ends(0).json();
        let weights = q["quantization"]["weights"].as_array().cloned();
        let named = |w: &serde_json::Value| w["name"].as_str().unwrap().starts_with("W1");
        assert!(!weights.unwrap_or_default().iter().any(named));
    } else {
        assert!(stderr.contains("W1") || stderr.contains("`a`"), "{stderr}");
    }
}
