//! Computes weights that are stored as packed indices, for execution.
//!
//! # What it does
//! A weight that stands in the file as packed indices and a table is unpacked once, before the model runs, with the
//! operators that the graph holds: each is evaluated as the standard defines it.
//!
//! # Before → After
//! `packed (u8) → BitShift → BitwiseAnd → Cast → Reshape → Gather (table) → W` becomes the constant `W`.
//!
//! # When it does not fire
//! On operators that depend on an input of the graph, and on other lookups.
//!
//! # Invariants kept
//! Every output, bit for bit. The name of the weight's value.
//!
//! # Opset notes
//! None: what stands in the graph is evaluated.
//!
//! # References
//! ONNX, operators BitShift, BitwiseAnd, Gather.

use std::collections::HashSet;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId};
use rayon::prelude::*;

use crate::codebook::read;

/// See the head of this file.
pub struct LowerCodebook;

static INFO: PassInfo = PassInfo {
    name: "lower_codebook",
    summary: "Computes weights that are stored as packed indices, for execution",
    source: include_str!("lower_codebook.rs"),
    exact: true,
};

impl Pass for LowerCodebook {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut found = read::find(model);
        found.retain(|w| !model.value(w.weight).is_output());
        let tensors: Vec<_> = found.par_iter().map(|w| read::evaluate(model, w)).collect();
        let mut dead: HashSet<NodeId> = HashSet::new();
        for (weight, tensor) in found.iter().zip(tensors) {
            match tensor {
                Ok(tensor) => {
                    let Some((last, _)) = model.producer(weight.weight) else {
                        continue;
                    };
                    model.set_output(last, 0, None);
                    model.value_mut(weight.weight).value_info = None;
                    model.set_initializer(weight.weight, tensor);
                    dead.extend(&weight.nodes);
                }
                Err(reason) => {
                    cx.skip_subject(model.value_key(weight.weight), reason);
                }
            }
        }
        // Operators that another weight shares stay until that one is computed too.
        let needed = |n: NodeId, dead: &HashSet<NodeId>| {
            model.outputs(n).into_iter().flatten().any(|v| {
                model.value(v).is_output()
                    || !model.captures(v).is_empty()
                    || model.consumers(v).iter().any(|(m, _)| !dead.contains(m))
            })
        };
        loop {
            let kept: Vec<NodeId> = dead.iter().copied().filter(|&n| needed(n, &dead)).collect();
            if kept.is_empty() {
                break;
            }
            for n in kept {
                dead.remove(&n);
            }
        }
        model.remove_nodes(&dead);
        Ok((!found.is_empty() && !dead.is_empty()).into())
    }
}
