//! The table of all passes, in the order in which a full run uses them.

use onnx_quant_ir::pass::Pass;

/// Every pass.
pub fn all() -> Vec<&'static dyn Pass> {
    vec![]
}

/// The pass of this name.
pub fn find(name: &str) -> Option<&'static dyn Pass> {
    all().into_iter().find(|p| p.info().name == name)
}
