//! Every model of the `onnx` package loads and is saved back. See `tests/crosscheck/roundtrip_corpus.py`, which writes
//! the folder that `ONNX_CORPUS` names.
//!
//! Equal means: the same bytes; or, where a file's own encoder orders fields in another way, the same decoded message.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use onnx_quant_ir::load::{LoadError, load};
use onnx_quant_ir::proto::{GraphProto, Message, ModelProto, NodeProto, TensorProto};
use onnx_quant_ir::save::to_bytes;
use onnx_quant_ir::text::{self, Print};
use onnx_quant_ir::verify::verify;
use onnx_quant_ir::{Model, Tensor};

fn files() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("ONNX_CORPUS") else {
        eprintln!(
            "SKIPPED: ONNX_CORPUS is not set; tests/crosscheck/roundtrip_corpus.py writes the models"
        );
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(Path::new(&folder))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    files.sort();
    assert!(
        files.len() >= 200,
        "only {} models in the corpus",
        files.len()
    );
    files
}

/// The model, unless its file is one that no loader can accept.
fn loaded(path: &Path, refused: &mut Vec<String>) -> Option<Model> {
    match load(path) {
        Ok(m) => Some(m),
        Err(e @ (LoadError::External { .. } | LoadError::Io { .. })) => panic!("{e}"),
        Err(e) => {
            refused.push(e.to_string());
            None
        }
    }
}

#[test]
fn every_model_is_saved_back_as_it_was() {
    let (mut same, mut equal, mut different, mut refused) = (0, 0, Vec::new(), Vec::new());
    let files = files();
    for path in &files {
        let Some(model) = loaded(path, &mut refused) else {
            continue;
        };
        let bytes = std::fs::read(path).unwrap();
        let back = to_bytes(&model).unwrap();
        if bytes == back {
            same += 1;
        } else if ModelProto::decode(bytes.as_slice()) == ModelProto::decode(back.as_slice()) {
            equal += 1;
        } else {
            different.push(path.display().to_string());
        }
    }
    let all = files.len();
    eprintln!(
        "{all} models: {same} the same bytes, {equal} equal in meaning, {} refused",
        refused.len()
    );
    assert!(different.is_empty(), "not equal: {different:#?}");
    assert!(refused.is_empty(), "refused: {refused:#?}");
}

#[test]
fn every_model_survives_its_text_form() {
    let mut refused = Vec::new();
    for path in files() {
        let Some(model) = loaded(&path, &mut refused) else {
            continue;
        };
        let full = text::print(&model, Print::Full);
        let again = text::parse(&full).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (a, b) = (meaning(&model), meaning(&again));
        if a != b {
            panic!(
                "{} is another model after its text form:\n{full}",
                path.display()
            );
        }
        text::print(&model, Print::Summary);
    }
}

#[test]
fn the_verifier_finds_no_broken_structure_in_the_corpus() {
    let (mut refused, mut wrong) = (Vec::new(), Vec::new());
    for path in files() {
        let Some(model) = loaded(&path, &mut refused) else {
            continue;
        };
        let found = verify(&model).into_iter();
        wrong.extend(found.map(|f| format!("{}: {f}", path.file_name().unwrap().display())));
    }
    assert!(wrong.is_empty(), "{} findings: {wrong:#?}", wrong.len());
}

/// The message with one representation for what can be written in two ways: tensors as raw bytes, no empty names,
/// declared attribute types.
fn meaning(model: &Model) -> ModelProto {
    let mut m = model.to_proto();
    m.graph.iter_mut().for_each(graph);
    for f in &mut m.functions {
        f.node.iter_mut().for_each(node);
        f.attribute_proto.iter_mut().for_each(attribute);
        clear(&mut f.overload);
    }
    for text in [
        &mut m.domain,
        &mut m.doc_string,
        &mut m.producer_name,
        &mut m.producer_version,
    ] {
        clear(text);
    }
    for o in &mut m.opset_import {
        clear(&mut o.domain);
    }
    m
}

fn clear(text: &mut Option<String>) {
    if text.as_deref() == Some("") {
        *text = None;
    }
}

fn graph(g: &mut GraphProto) {
    clear(&mut g.name);
    g.node.iter_mut().for_each(node);
    g.initializer.iter_mut().for_each(tensor);
}

fn node(n: &mut NodeProto) {
    clear(&mut n.domain);
    clear(&mut n.name);
    clear(&mut n.overload);
    n.attribute.iter_mut().for_each(attribute);
}

fn attribute(a: &mut onnx_quant_ir::proto::AttributeProto) {
    a.t.iter_mut().for_each(tensor);
    a.tensors.iter_mut().for_each(tensor);
    a.g.iter_mut().for_each(graph);
    a.graphs.iter_mut().for_each(graph);
}

fn tensor(t: &mut TensorProto) {
    clear(&mut t.name);
    if let Ok(raw) = Tensor::from_proto(t.clone()).shared_bytes() {
        *t = TensorProto {
            dims: t.dims.clone(),
            data_type: t.data_type,
            name: t.name.take(),
            doc_string: t.doc_string.take(),
            raw_data: Some(raw),
            ..TensorProto::default()
        };
    }
}
