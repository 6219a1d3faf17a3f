//! Gives every use of a weight its own copy where the uses want it in different forms.
//!
//! # What it does
//! A weight that one operator wants quantized per output channel, another as an embedding table and a third in float
//! cannot be one initializer. Each form of the plan beyond the first user gets a copy under a name of its own.
//!
//! # Before → After
//! `W → Gather, W → MatMul` becomes `W → Gather, W_split → MatMul`.
//!
//! # When it does not fire
//! Where all uses of the weight want the same form: they go on sharing it.
//!
//! # Invariants kept
//! Every output, bit for bit. Copies share their bytes with the original until they are quantized.
//!
//! # Opset notes
//! None.
//!
//! # References
//! None.

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, ValueId};

use crate::plan::{PrecisionPlan, WeightPlan};

/// See the head of this file.
pub struct SplitSharedWeights;

static INFO: PassInfo = PassInfo {
    name: "split_shared_weights",
    summary: "Gives every use of a weight its own copy where the uses want it in different forms",
    source: include_str!("split_shared_weights.rs"),
    exact: true,
};

impl Pass for SplitSharedWeights {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let Some(mut plan) = cx.take::<PrecisionPlan>() else {
            return Err(PassError::new(
                INFO.name,
                "needs a PrecisionPlan, and none was given",
            ));
        };
        let mut names = model.names();
        let mut changed = false;
        for form in &mut plan.weights {
            let Some(value) = value_of(model, &form.key) else {
                continue;
            };
            let (mine, others): (Vec<_>, Vec<_>) = model
                .consumers(value)
                .into_iter()
                .partition(|use_| reads(model, form, *use_));
            let Some(tensor) = model.value(value).init.clone() else {
                continue;
            };
            if others.is_empty() && !model.value(value).is_output() {
                continue;
            }
            let graph = model.value(value).graph;
            let name = names.fresh(&format!("{}_split", model.value(value).name));
            let copy = model.add_initializer(graph, &name, tensor);
            for (node, slot) in mine {
                model.set_input(node, slot, Some(copy));
            }
            form.key = model.value_key(copy);
            changed = true;
        }
        cx.insert(plan);
        Ok(changed.into())
    }
}

/// Whether a use of a weight is one of this form's.
pub(crate) fn reads(model: &Model, form: &WeightPlan, (node, slot): (NodeId, usize)) -> bool {
    form.readers.contains(&(model.node_key(node), slot))
}

/// The value of this key.
pub(crate) fn value_of(model: &Model, key: &str) -> Option<ValueId> {
    model
        .all_values()
        .into_iter()
        .find(|&v| model.value_key(v) == key)
}
