//! Gives operators that only move values the same quantization parameters before and after.
//!
//! # What it does
//! A runtime removes the DequantizeLinear/QuantizeLinear around a Reshape, Transpose, MaxPool, Slice, Split … only
//! where both have the same parameters, bit for bit. This pass lets the QuantizeLinear (and the DequantizeLinears) of
//! the result use the parameters of the input. Equal constant parameters are stored once.
//!
//! # Before → After
//! `DQ(s1) → MaxPool → Q(s2) → DQ(s2)` becomes `DQ(s1) → MaxPool → Q(s1) → DQ(s1)`.
//!
//! # When it does not fire
//! Where the parameters are equal already, are not per tensor, or have different code types.
//!
//! # Invariants kept
//! The signature. Values that such an operator makes lie in the range of its input, so nothing is clipped anew.
//!
//! # Opset notes
//! None.
//!
//! # References
//! onnxruntime, QDQ transformers: `DropQDQNodesRules`.

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, ValueId};

use crate::ops;
use crate::qdq::{self, Qdq};

/// See the head of this file.
pub struct ShareQdqParameters;

static INFO: PassInfo = PassInfo {
    name: "share_qdq_parameters",
    summary: "Gives operators that only move values the same quantization parameters before and after",
    source: include_str!("share_qdq_parameters.rs"),
    exact: false,
};

impl Pass for ShareQdqParameters {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, _cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut changed = false;
        for node in model.all_nodes() {
            if ops::is_preserving(model, node) {
                changed |= share(model, node);
            }
        }
        changed |= merge_equal_parameters(model);
        Ok(changed.into())
    }
}

fn share(model: &mut Model, node: NodeId) -> bool {
    let Some(source) = model
        .input(node, 0)
        .and_then(|v| qdq::dequantized_by(model, v))
    else {
        return false;
    };
    if qdq::scalar_scale(model, &source).is_none() {
        return false;
    }
    let mut changed = false;
    for output in model.outputs(node).into_iter().flatten() {
        for q in quantizers(model, output) {
            if qdq::same_parameters(model, &source, &q) || !same_code_type(model, &source, &q) {
                continue;
            }
            let readers: Vec<Qdq> = model
                .consumers(q.output)
                .into_iter()
                .filter_map(|(n, _)| qdq::dequantize(model, n))
                .collect();
            for conversion in readers.iter().chain([&q]) {
                model.set_input(conversion.node, 1, Some(source.scale));
                model.set_input(conversion.node, 2, source.zero_point);
            }
            changed = true;
        }
    }
    changed
}

fn quantizers(model: &Model, value: ValueId) -> Vec<Qdq> {
    model
        .consumers(value)
        .into_iter()
        .filter(|(_, slot)| *slot == 0)
        .filter_map(|(n, _)| qdq::quantize(model, n))
        .collect()
}

fn same_code_type(model: &Model, a: &Qdq, b: &Qdq) -> bool {
    let zero = |q: &Qdq| q.zero_point.and_then(|z| model.value(z).dtype());
    zero(a).is_some() && zero(a) == zero(b)
}

/// Lets all conversions with equal constant scales or zero points read the same initializer of their graph.
fn merge_equal_parameters(model: &mut Model) -> bool {
    type Key = (onnx_quant_ir::GraphId, i32, Vec<i64>, Vec<u8>);
    let mut first: BTreeMap<Key, ValueId> = BTreeMap::new();
    let mut changed = false;
    for node in model.all_nodes() {
        // The parameters of a weight stay its own: onnxruntime rewrites int8 weights to uint8 in place, one by one,
        // and fails on a zero point that two of them share.
        let of_activation = |d: Qdq| model.producer(d.input).is_some();
        if qdq::quantize(model, node).is_none()
            && !qdq::dequantize(model, node).is_some_and(of_activation)
        {
            continue;
        }
        for slot in [1, 2] {
            let Some(value) = model.input(node, slot) else {
                continue;
            };
            let Some(tensor) = model.constant(value) else {
                continue;
            };
            let Ok(bytes) = tensor.bytes() else { continue };
            let key = (
                model.value(value).graph,
                tensor.dtype() as i32,
                tensor.dims().to_vec(),
                bytes.into_owned(),
            );
            let kept = *first.entry(key).or_insert(value);
            if kept != value {
                model.set_input(node, slot, Some(kept));
                changed = true;
            }
        }
    }
    changed
}
