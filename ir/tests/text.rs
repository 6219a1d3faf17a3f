//! Real files as text, and what the verifier says of them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod zoo;

use onnx_quant_ir::load::load;
use onnx_quant_ir::text::{self, Print};
use onnx_quant_ir::verify::{verify, verify_for_pass};

/// Files above this size are only summarized: their full text is an order of magnitude larger.
const SMALL: u64 = 4 << 20;

#[test]
fn zoo_models_survive_their_text_form() {
    for path in zoo::models() {
        let model = load(&path).unwrap();
        let summary = text::print(&model, Print::Summary);
        for &n in &model.main().nodes {
            let op = model.node(n).op_type();
            assert!(summary.contains(op), "{}: no {op}", path.display());
        }
        if path.metadata().unwrap().len() > SMALL {
            continue;
        }
        let full = text::print(&model, Print::Full);
        let again = text::parse(&full).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(
            full == text::print(&again, Print::Full),
            "{}",
            path.display()
        );
        assert!(
            summary == text::print(&again, Print::Summary),
            "{}",
            path.display()
        );
    }
}

#[test]
fn zoo_models_are_valid() {
    for path in zoo::models() {
        let model = load(&path).unwrap();
        assert_eq!(verify(&model), vec![], "{}", path.display());
        assert_eq!(verify_for_pass(&model), Ok(()), "{}", path.display());
    }
}
