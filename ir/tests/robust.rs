//! No bytes and no text make the crate panic: truncations at every length, and thousands of changed bytes.

use std::path::Path;

use onnx_quant_ir::census::census;
use onnx_quant_ir::load::load_bytes;
use onnx_quant_ir::proto::{GraphProto, Message, ModelProto};
use onnx_quant_ir::save::to_bytes;
use onnx_quant_ir::text::{self, Print};
use onnx_quant_ir::verify::verify;
use proptest::prelude::*;

const SMALL: &str = include_str!("../src/text/tests/small.onnxtxt");
const PLAIN: &str = "<ir_version: 10, opset_import: [\"\" : 21]>
g (float[N,3] X) => (float[N,2] Y)
<float xs = {0.5}, uint8 xz = {3}, int4[2,3] W = {1,2,3,4,5,6}, float[2] ws = {0.5, 0.25}, bool c = {true}>
{
  XQ = QuantizeLinear (X, xs, xz)
  XD = DequantizeLinear (XQ, xs, xz)
  WD = DequantizeLinear <axis = 0> (W, ws)
  Z = Gemm <transB = 1> (XD, WD)
  Y = If <then_branch = t () => (float[N,2] r) { r = Relu (Z) }, else_branch = e () => (float[N,2] q) { q = Abs (Z) }> (c)
}";

fn models() -> Vec<Vec<u8>> {
    let model = |t| text::parse(t).expect("the model is valid");
    [SMALL, PLAIN]
        .map(|t| to_bytes(&model(t)).expect("the model can be written"))
        .to_vec()
}

/// Does with the bytes all that can be done with a file.
fn use_all(bytes: &[u8]) -> bool {
    let _ = census(bytes);
    let Ok(model) = load_bytes(bytes.to_vec().into(), Path::new("nowhere/model.onnx")) else {
        return false;
    };
    let _ = verify(&model);
    let back = to_bytes(&model);
    assert_same(bytes, &back.expect("what loads can be written"));
    let full = text::print(&model, Print::Full);
    let _ = text::parse(&full);
    let _ = text::print(&model, Print::Summary);
    let mut sorted = model.clone();
    let _ = sorted.sort();
    let _ = onnx_quant_ir::diff::diff(&model, &sorted).to_string();
    true
}

/// What is loaded and saved is the same message, but for the order of declared types.
fn assert_same(before: &[u8], after: &[u8]) {
    let decode = |bytes| {
        let mut m = ModelProto::decode(bytes).expect("it has been decoded before");
        m.graph.iter_mut().for_each(sort_declarations);
        m
    };
    assert_eq!(decode(before), decode(after));
}

fn sort_declarations(g: &mut GraphProto) {
    g.value_info.sort_by(|a, b| a.name.cmp(&b.name));
    for a in g.node.iter_mut().flat_map(|n| &mut n.attribute) {
        a.g.iter_mut()
            .chain(&mut a.graphs)
            .for_each(sort_declarations);
    }
}

#[test]
fn truncated_files_are_errors() {
    for bytes in models() {
        for end in 0..bytes.len() {
            let _ = use_all(&bytes[..end]);
        }
        assert!(use_all(&bytes));
    }
}

#[test]
fn truncated_texts_are_errors() {
    for source in [SMALL, PLAIN] {
        let full = text::print(&text::parse(source).expect("valid"), Print::Full);
        for source in [source, &full] {
            let ends = source.char_indices().map(|(i, _)| i);
            let complete = ends.filter(|&i| text::parse(&source[..i]).is_ok()).count();
            // The last line break and a trailing function may be missing.
            assert!(
                complete <= 4,
                "{complete} parts of the text are whole models"
            );
        }
    }
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(3000),
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn changed_bytes_never_panic(
        which in 0usize..2,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = models().swap_remove(which);
        for (at, b) in changes {
            let at = at.index(bytes.len());
            bytes[at] = b;
        }
        let _ = use_all(&bytes);
    }

    #[test]
    fn changed_texts_never_panic(
        which in 0usize..2,
        changes in prop::collection::vec((any::<prop::sample::Index>(), "[ -~\\n]{0,2}|[<>(){}\\[\\],:=.@$?\"]"), 1..4),
    ) {
        let mut chars: Vec<String> = [SMALL, PLAIN][which].chars().map(String::from).collect();
        for (at, new) in changes {
            let at = at.index(chars.len());
            chars[at] = new;
        }
        if let Ok(model) = text::parse(&chars.concat()) {
            let full = text::print(&model, Print::Full);
            let again = text::parse(&full);
            prop_assert!(again.is_ok(), "{:?} in\n{full}", again.err());
            prop_assert_eq!(full, text::print(&again.expect("checked"), Print::Full));
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = use_all(&bytes);
    }

    #[test]
    fn any_text_never_panics(source in "\\PC{0,200}") {
        let _ = text::parse(&source);
    }
}
