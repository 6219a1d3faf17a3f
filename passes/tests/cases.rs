//! Every registered pass on every one of its case files: `cases/PASS/CASE.onnxtxt` → `snapshots/PASS/CASE.snap`.
//!
//! A case file is a model in text form. Comment lines at its top may say:
//!
//! ```text
//! // options: key=value, other=value     options of the pass
//! // before: pass1, pass2                passes that run first, without being checked
//! // expect: changed                     or `unchanged`, or `error`
//! // signature: changes                  the pass may change inputs and outputs
//! // verify: no                          the input breaks rules of the verifier on purpose
//! // repeat: changes                     a second run may change the model again
//! // context: key=value                  data the pass needs, see `prepare`
//! ```
//!
//! What is checked: the input is valid → the pass runs → the output is valid → it looks as in the snapshot → a second
//! run changes nothing → `Changed::No` means the same text → names and order of inputs and outputs are kept.
#![expect(clippy::unwrap_used, reason = "tests")]

mod harness;

use harness::Case;
use onnx_quant_ir::pass::PassContext;

/// Gives a pass the data that it needs (statistics, a plan …), from the `context:` lines of its case.
fn prepare(_case: &Case, _cx: &mut PassContext) {}

#[test]
fn every_case_of_every_pass() {
    harness::run_all(&prepare);
}
