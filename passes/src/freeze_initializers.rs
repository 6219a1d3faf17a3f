//! Makes constants of initializers that are listed as graph inputs too.
//!
//! **What it does.** Takes a name that is both a graph input and an initializer out of the inputs: its default can no
//! longer be overridden by the caller, and passes may rely on it. Files of IR version 3 had to list every weight so.
//!
//! **Before → After.** inputs `x, w` with the initializer `w` → input `x`.
//!
//! **When it does not fire.** Names in [`KeepInputs`] of the context stay inputs. Bodies of control-flow nodes are not
//! touched: their inputs are counted by position.
//!
//! **Invariants kept.** Names of values, order of the other inputs, outputs for callers that override nothing. **The
//! signature changes**: that is the purpose, and a note says how many inputs went and which.
//!
//! **Opset notes.** Initializers that are no inputs need IR version 4; the version is raised to it.
//!
//! **References.** ONNX IR specification, section "Graphs" (initializers as default values).

use std::collections::BTreeSet;

use onnx_quant_ir::Model;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};

/// Names of inputs with a default that the caller wants to be able to override.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeepInputs(pub BTreeSet<String>);

/// Makes constants of initializers that are listed as graph inputs too.
#[derive(Debug, Clone, Copy, Default)]
pub struct FreezeInitializers;

static INFO: PassInfo = PassInfo {
    name: "freeze_initializers",
    summary: "Makes constants of initializers that are also graph inputs (changes the signature)",
    source: include_str!("freeze_initializers.rs"),
    exact: true,
};

/// So many names stand in the note.
const NAMED: usize = 3;

impl Pass for FreezeInitializers {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let keep = cx.get::<KeepInputs>().cloned().unwrap_or_default().0;
        let inputs = model.main().inputs.clone();
        let known: BTreeSet<&str> = inputs
            .iter()
            .map(|&v| model.value(v).name.as_str())
            .collect();
        if let Some(wrong) = keep.iter().find(|k| !known.contains(k.as_str())) {
            let message =
                format!("`{wrong}` is to be kept as an input, but the model has no such input");
            return Err(PassError::new(INFO.name, message));
        }
        let mut frozen = Vec::new();
        for v in inputs {
            let value = model.value(v);
            if value.init.is_none() && !value.sparse_init {
                continue;
            }
            if keep.contains(&value.name) {
                cx.skip_subject(value.name.clone(), "kept as an input, as asked");
                continue;
            }
            frozen.push(value.name.clone());
            model.value_mut(v).input_info = None;
        }
        if frozen.is_empty() {
            return Ok(Changed::No);
        }
        let mut list = std::mem::take(&mut model.graph_mut(Model::MAIN).inputs);
        list.retain(|&v| model.value(v).is_input());
        model.graph_mut(Model::MAIN).inputs = list;
        if model.header.ir_version() < 4 {
            model.header.ir_version = Some(4);
        }
        cx.note(note(&frozen));
        Ok(Changed::Yes)
    }
}

fn note(frozen: &[String]) -> String {
    let named: Vec<String> = frozen
        .iter()
        .take(NAMED)
        .map(|n| format!("`{n}`"))
        .collect();
    let more = if frozen.len() > NAMED { ", …" } else { "" };
    format!(
        "{} inputs that have a default in the file are constants now: {}{more}",
        frozen.len(),
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::{empty, input, output, run, run_with, signature, try_run};
    use onnx_quant_ir::{NodeSpec, Tensor};

    fn model() -> Model {
        let mut m = empty(9);
        m.header.ir_version = Some(3);
        let x = input(&mut m, "x", &[2]);
        let mut ids = vec![x];
        for name in ["a", "b", "c", "d"] {
            let v = input(&mut m, name, &[2]);
            m.set_initializer(v, Tensor::from_f32(&[2], &[1.0, 2.0]));
            ids.push(v);
        }
        let y = m.add_op(Model::MAIN, NodeSpec::new("Sum"), &ids, "y");
        output(&mut m, y);
        m
    }

    #[test]
    fn freezes_defaults_and_says_so() {
        let mut m = model();
        let mut cx = PassContext::default();
        assert_eq!(run_with(&FreezeInitializers, &mut m, &mut cx), Changed::Yes);
        assert_eq!(signature(&m)[0].0, ["x"]);
        assert_eq!(m.header.ir_version(), 4);
        assert!(m.is_constant(m.find_value("d").unwrap()));
        assert_eq!(
            cx.notes[0].message,
            "4 inputs that have a default in the file are constants now: `a`, `b`, `c`, …"
        );
    }

    #[test]
    fn keeps_what_the_caller_wants() {
        let mut m = model();
        let mut cx = PassContext::default();
        cx.insert(KeepInputs(["b".to_owned()].into()));
        run_with(&FreezeInitializers, &mut m, &mut cx);
        assert_eq!(signature(&m)[0].0, ["x", "b"]);
        assert_eq!(cx.skips[0].subject, "b");

        cx.insert(KeepInputs(["zz".to_owned()].into()));
        let e = try_run(&FreezeInitializers, &[], &mut m, &mut cx).unwrap_err();
        assert!(e.to_string().contains("`zz`"), "{e}");
    }

    #[test]
    fn leaves_plain_inputs_and_plain_constants() {
        let mut m = empty(9);
        let x = input(&mut m, "x", &[2]);
        let w = m.add_initializer(Model::MAIN, "w", Tensor::from_f32(&[2], &[1.0, 2.0]));
        let y = m.add_op(Model::MAIN, NodeSpec::new("Mul"), &[x, w], "y");
        output(&mut m, y);
        assert_eq!(run(&FreezeInitializers, &mut m), (Changed::No, vec![]));
    }
}
