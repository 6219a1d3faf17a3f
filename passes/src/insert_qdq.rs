//! Puts QuantizeLinear/DequantizeLinear pairs on the activations that the plan quantizes.
//!
//! # What it does
//! Every activation of the [`PrecisionPlan`] gets one `QuantizeLinear` and one `DequantizeLinear`. Where an integer
//! operator makes the value, every reader gets the dequantized form (a runtime fuses an operator only if each edge of
//! its output leads to the one QuantizeLinear); elsewhere only the operators that run in integers do, and the others
//! keep the exact value. Bodies of If, Loop and Scan that read a value from outside get a pair of their own.
//!
//! # Before → After
//! `X → Conv → Y → Conv` becomes `X → Q → DQ → Conv → Y → Q → DQ → Conv`.
//!
//! # When it does not fire
//! On a value for which the plan has no scale, and on a value that has such a pair already.
//!
//! # Invariants kept
//! The signature: for a graph output `Y` the dequantized value is called `Y`. Zero points are always written.
//!
//! # Opset notes
//! FP16 scales need opset 19.
//!
//! # References
//! ONNX, QuantizeLinear and DequantizeLinear; onnxruntime, QDQ format.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{GraphId, Model, Names, NodeId, NodeSpec, ValueId};
use onnx_quant_numerics::affine::QParams;

use crate::plan::{ActivationPlan, PrecisionPlan};
use crate::qdq;

/// See the head of this file.
pub struct InsertQdq;

static INFO: PassInfo = PassInfo {
    name: "insert_qdq",
    summary: "Puts QuantizeLinear/DequantizeLinear pairs on the activations that the plan quantizes",
    source: include_str!("insert_qdq.rs"),
    exact: false,
};

impl Pass for InsertQdq {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let plan = cx.need::<PrecisionPlan>()?.clone();
        let mut names = model.names();
        let by_key: BTreeMap<String, ValueId> = model
            .all_values()
            .into_iter()
            .map(|v| (model.value_key(v), v))
            .collect();
        let mut changed = false;
        for (key, activation) in &plan.activations {
            let Some(&value) = by_key.get(key) else {
                return Err(PassError::new(
                    INFO.name,
                    format!("the plan quantizes `{key}`, which the model does not have"),
                ));
            };
            if activation.params.is_none() {
                cx.skip_subject(key.clone(), "the plan has no scale for it");
                continue;
            }
            let quantized =
                |(n, slot): &(NodeId, usize)| *slot == 0 && qdq::quantize(model, *n).is_some();
            let dequantized = model
                .producer(value)
                .is_some_and(|(n, _)| qdq::dequantize(model, n).is_some());
            if dequantized || model.consumers(value).iter().any(quantized) {
                continue;
            }
            insert(model, &mut names, value, activation);
            changed = true;
        }
        Ok(changed.into())
    }
}

fn insert(model: &mut Model, names: &mut Names, value: ValueId, plan: &ActivationPlan) {
    let Some(params) = plan.params else { return };
    let graph = model.value(value).graph;
    let mut readers: BTreeMap<GraphId, Vec<(NodeId, usize)>> = BTreeMap::new();
    for (node, slot) in model.consumers(value) {
        let reads = |keys: &BTreeSet<String>| keys.contains(&model.node_key(node));
        if plan.readers.as_ref().is_none_or(reads) {
            let home = model.node(node).graph;
            readers.entry(home).or_default().push((node, slot));
        }
    }
    qdq::require_type(model, qdq::storage_type(plan.format.base));
    let here = readers.remove(&graph).unwrap_or_default();
    let mut source = value;
    if plan.readers.is_none() || !here.is_empty() {
        let real = insert_pair(model, names, graph, value, value, (plan, params));
        rewire(model, here, real);
        if plan.readers.is_none() {
            source = real;
            if model.value(value).is_output() && !model.value(value).is_input() {
                hand_over_output(model, names, value, real);
            }
        }
    }
    // A runtime looks for pairs in the body that reads them. The same parameters twice change nothing.
    for (body, nodes) in readers {
        let real = insert_pair(model, names, body, value, source, (plan, params));
        rewire(model, nodes, real);
    }
}

fn rewire(model: &mut Model, readers: Vec<(NodeId, usize)>, real: ValueId) {
    for (node, slot) in readers {
        model.set_input(node, slot, Some(real));
    }
}

/// Quantizes and dequantizes `source` in a graph, with names after `value`.
fn insert_pair(
    model: &mut Model,
    names: &mut Names,
    graph: GraphId,
    value: ValueId,
    source: ValueId,
    (plan, params): (&ActivationPlan, QParams),
) -> ValueId {
    let stem = model.value(value).name.clone();
    let formats = (plan.format.base, plan.float);
    let (scale, zero) = qdq::add_parameters(model, names, graph, &stem, &[params], false, formats);
    let codes = model.add_op(
        graph,
        NodeSpec::new("QuantizeLinear"),
        &[source, scale, zero],
        &names.fresh(&format!("{stem}_QuantizeLinear_Output")),
    );
    model.add_op(
        graph,
        NodeSpec::new("DequantizeLinear"),
        &[codes, scale, zero],
        &names.fresh(&format!("{stem}_DequantizeLinear_Output")),
    )
}

/// Makes `real` the graph output that `value` was, under the same name.
fn hand_over_output(model: &mut Model, names: &mut Names, value: ValueId, real: ValueId) {
    let graph = model.value(value).graph;
    let name = model.value(value).name.clone();
    let spare = names.fresh(&format!("{name}_unquantized"));
    model.drop_value_info(value);
    let info = {
        let v = model.value_mut(value);
        v.name = spare;
        v.output_info.take()
    };
    let r = model.value_mut(real);
    r.name = name;
    r.output_info = info;
    for slot in &mut model.graph_mut(graph).outputs {
        if *slot == value {
            *slot = real;
        }
    }
}
