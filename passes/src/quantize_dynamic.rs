//! Quantizes activations at run time, before the integer operators of the plan.
//!
//! # What it does
//! The activation of every Conv, Gemm and MatMul that the plan runs in integers gets a `DynamicQuantizeLinear`, shared
//! by all that read it, and the operator becomes `ConvInteger` or `MatMulInteger` with the scales behind it. An LSTM
//! becomes `DynamicQuantizeLSTM` of com.microsoft.
//!
//! # Before → After
//! ```text
//! X → MatMul(DequantizeLinear(W_quantized)) → Y
//! X → DynamicQuantizeLinear → MatMulInteger(W_quantized) → Cast → Mul(S_X · S_W) → Y
//! ```
//!
//! # When it does not fire
//! Without the setting `dynamic`. Where the integer operator cannot do it, the weight alone stays quantized, and a skip
//! says why.
//!
//! # Invariants kept
//! The signature. An operator whose weight is stored in another way than INT8 or UINT8 is not changed.
//!
//! # Opset notes
//! DynamicQuantizeLinear is of opset 11, MatMulInteger and ConvInteger of opset 10.
//!
//! # References
//! ONNX, DynamicQuantizeLinear; onnxruntime, `quantize_dynamic` and `DynamicQuantizeLSTM`.

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Names, NodeId, NodeSpec, Tensor, ValueId};

use crate::integer_product::{self, Bias, Operand};
use crate::ops;
use crate::plan::{Precision, PrecisionPlan};
use crate::qdq::Qdq;
use crate::settings::QuantSettings;

/// See the head of this file.
pub struct QuantizeDynamic;

static INFO: PassInfo = PassInfo {
    name: "quantize_dynamic",
    summary: "Quantizes activations at run time, before the integer operators of the plan",
    source: include_str!("quantize_dynamic.rs"),
    exact: false,
};

impl Pass for QuantizeDynamic {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        if !cx.get::<QuantSettings>().is_some_and(|s| s.dynamic) {
            return Ok(Changed::No);
        }
        let plan = cx.need::<PrecisionPlan>()?.clone();
        let mut names = model.names();
        let mut made = BTreeMap::new();
        let mut changed = false;
        for node in model.all_nodes() {
            let key = model.node_key(node);
            if plan
                .node(&key)
                .is_none_or(|n| n.precision != Precision::Integer)
            {
                continue;
            }
            let done = if model.node(node).is("LSTM") {
                lstm(model, &mut names, node)
            } else {
                linear(model, &mut names, &mut made, node)
            };
            match done {
                Ok(fired) => changed |= fired,
                Err(reason) => {
                    cx.skip_subject(key.clone(), reason.clone());
                    stays(cx, &key, reason);
                }
            }
        }
        if model
            .all_nodes()
            .iter()
            .any(|&n| model.node(n).domain() == "com.microsoft")
        {
            model.set_opset("com.microsoft", 1);
        }
        Ok(changed.into())
    }
}

/// Corrects the plan for a node whose arithmetic stays float.
fn stays(cx: &mut PassContext, key: &str, reason: String) {
    if let Some(plan) = cx.get_mut::<PrecisionPlan>()
        && let Some(node) = plan.nodes.iter_mut().find(|n| n.key == key)
    {
        node.precision = Precision::WeightOnly;
        node.reason = reason;
    }
}

/// The activations that are quantized already, by value and by the graph that reads them.
type Made = BTreeMap<ValueId, Operand>;

fn linear(
    model: &mut Model,
    names: &mut Names,
    made: &mut Made,
    node: NodeId,
) -> Result<bool, String> {
    let Some(linear) = ops::dequantized_linear(model, node) else {
        return Ok(false);
    };
    let Some(x) = model.input(node, linear.activation) else {
        return Ok(false);
    };
    let bias = linear.bias.and_then(|slot| model.input(node, slot));
    let bias = bias.map_or(Bias::None, Bias::Float);
    let known = made.get(&x).copied();
    let operand = known.unwrap_or_else(|| quantize(model, names, x));
    integer_product::replace(model, names, node, &linear, operand, bias)?;
    made.insert(x, operand);
    Ok(true)
}

/// A `DynamicQuantizeLinear` in the graph of the value.
fn quantize(model: &mut Model, names: &mut Names, x: ValueId) -> Operand {
    let (graph, stem) = (model.value(x).graph, model.value(x).name.clone());
    let mut value = |model: &mut Model, what: &str| {
        let name = names.fresh(&format!("{stem}_{what}"));
        model.add_value(graph, &name)
    };
    let operand = Operand {
        codes: value(model, "quantized"),
        scale: value(model, "scale"),
        zero: value(model, "zero_point"),
    };
    let outputs = [operand.codes, operand.scale, operand.zero].map(Some);
    let spec = NodeSpec::new("DynamicQuantizeLinear");
    model.add_node(graph, spec, &[Some(x)], &outputs);
    operand
}

/// `LSTM` as `DynamicQuantizeLSTM`: weights `[directions, inputs, 4 · hidden]`, scales `[directions, 4 · hidden]`.
fn lstm(model: &mut Model, names: &mut Names, node: NodeId) -> Result<bool, String> {
    let both = (
        integer_product::coded_weight(model, node, 1),
        integer_product::coded_weight(model, node, 2),
    );
    let (Some(w), Some(r)) = both else {
        return Err("its weights are not both stored as int8 or uint8".to_owned());
    };
    let graph = model.node(node).graph;
    let mut inputs = model.inputs(node);
    inputs.resize(8, None);
    for (slot, weight) in [(1, &w), (2, &r)] {
        let [codes, scale, zero] = recurrent_weight(model, weight)?;
        let stem = model.value(weight.input).name.clone();
        let mut add = |model: &mut Model, what: &str, tensor: Tensor| {
            let name = names.fresh(&format!("{stem}_{what}"));
            Some(model.add_initializer(graph, &name, tensor))
        };
        inputs[slot] = add(model, "transposed", codes);
        let scale = add(model, "scales", scale);
        let zero = add(model, "zero_points", zero);
        inputs.extend([scale, zero]);
    }
    let outputs = model.outputs(node);
    let mut spec = NodeSpec::new("DynamicQuantizeLSTM")
        .domain("com.microsoft")
        .name(model.node(node).name());
    for a in model.node(node).proto.attribute.clone() {
        if a.name() != "layout" {
            spec = spec.attr(a);
        }
    }
    model.set_outputs(node, &[]);
    model.remove_node(node);
    model.add_node(graph, spec, &inputs, &outputs);
    Ok(true)
}

/// Codes with the last two axes exchanged, scales and zero points for each direction and gate row.
fn recurrent_weight(model: &Model, weight: &Qdq) -> Result<[Tensor; 3], String> {
    let missing = || "its weight is computed at run time".to_owned();
    let get = |v: ValueId| model.constant(v).ok_or_else(missing);
    let codes = get(weight.input)?;
    let &[directions, gates, columns] = codes.dims() else {
        return Err("its weight has not three dimensions".to_owned());
    };
    let scales = get(weight.scale)?.to_f32().map_err(|e| e.to_string())?;
    let zeros = get(weight.zero_point.ok_or_else(missing)?)?;
    if zeros
        .to_i64()
        .map_err(|e| e.to_string())?
        .iter()
        .any(|z| *z != 0)
    {
        return Err("DynamicQuantizeLSTM takes weights with zero points of 0 only: use int8 and the symmetric scheme".to_owned());
    }
    let bytes = codes.bytes().map_err(|e| e.to_string())?;
    let (d, g, c) = (directions as usize, gates as usize, columns as usize);
    let turned = (0..d * g * c).map(|i| {
        let (direction, rest) = (i / (g * c), i % (g * c));
        bytes[direction * g * c + (rest % g) * c + rest / g]
    });
    let turned: Vec<u8> = turned.collect();
    let per_row: Vec<f32> = (0..d * g).map(|i| scales[i % g % scales.len()]).collect();
    let dims = [directions, gates];
    Ok([
        Tensor::from_raw(codes.dtype(), &[directions, columns, gates], turned),
        Tensor::from_f32(&dims, &per_row),
        Tensor::from_raw(DataType::Int8, &dims, vec![0; d * g]),
    ])
}
