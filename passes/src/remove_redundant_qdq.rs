//! Removes conversions that say nothing new.
//!
//! # What it does
//! A DequantizeLinear followed by a QuantizeLinear with the same parameters gives back the same codes: both go.
//! Several QuantizeLinear of one value with the same parameters become one.
//!
//! # Before → After
//! `q → DQ(s) → Q(s) → q'` becomes `q` for every reader of `q'`.
//!
//! # When it does not fire
//! Where the parameters differ in a bit, are computed at run time, or the result is part of the signature.
//!
//! # Invariants kept
//! Every output, bit for bit: `round((q − z)·s / s) + z = q` for codes of up to 16 bits.
//!
//! # Opset notes
//! None.
//!
//! # References
//! None.

use std::collections::HashSet;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId};

use crate::qdq;

/// See the head of this file.
pub struct RemoveRedundantQdq;

static INFO: PassInfo = PassInfo {
    name: "remove_redundant_qdq",
    summary: "Removes quantize and dequantize nodes that say nothing new",
    source: include_str!("remove_redundant_qdq.rs"),
    exact: true,
};

impl Pass for RemoveRedundantQdq {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut gone: HashSet<NodeId> = HashSet::new();
        for node in model.all_nodes() {
            if gone.contains(&node) {
                continue;
            }
            let Some(q) = qdq::quantize(model, node) else {
                continue;
            };
            let back = qdq::dequantized_by(model, q.input).filter(|d| {
                qdq::same_parameters(model, d, &q) && code_types_agree(model, d.input, &q)
            });
            let twin = model
                .consumers(q.input)
                .into_iter()
                .filter(|(n, slot)| *slot == 0 && *n < node && !gone.contains(n))
                .filter(|(n, _)| model.node(*n).graph == model.node(node).graph)
                .filter_map(|(n, _)| qdq::quantize(model, n))
                .find(|t| qdq::same_parameters(model, t, &q));
            let Some(codes) = back.map(|d| d.input).or(twin.map(|t| t.output)) else {
                continue;
            };
            if model.replace_value(q.output, codes) {
                gone.insert(node);
            } else {
                cx.skip(model, node, "its result is part of the signature");
            }
        }
        let removed: HashSet<_> = gone
            .iter()
            .flat_map(|&n| model.outputs(n).into_iter().flatten())
            .collect();
        model.remove_nodes(&gone);
        model.remove_values(&removed);
        Ok((!gone.is_empty()).into())
    }
}

/// Whether the codes that were dequantized have the type that the QuantizeLinear gives.
fn code_types_agree(model: &Model, codes: onnx_quant_ir::ValueId, q: &qdq::Qdq) -> bool {
    let wanted = q.zero_point.and_then(|z| model.value(z).dtype());
    let made = model
        .producer(codes)
        .and_then(|(n, _)| qdq::quantize(model, n))
        .and_then(|p| p.zero_point)
        .and_then(|z| model.value(z).dtype());
    let found = made.or_else(|| model.value(codes).dtype());
    wanted.is_some() && wanted == found
}
