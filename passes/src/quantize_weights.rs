//! Stores the weights of the plan as codes, with a DequantizeLinear before each reader.
//!
//! # What it does
//! Each weight of the [`PrecisionPlan`] becomes an initializer of codes with one scale and zero point for each output
//! channel, or for the tensor. An embedding table is looked up as codes, and the rows are dequantized.
//!
//! # Before → After
//! `W (f32) → Conv` becomes `W_quantized (int8) → DequantizeLinear → Conv`.
//! `T (f32) → Gather → Y` becomes `T_quantized (int8) → Gather → DequantizeLinear → Y`.
//!
//! # When it does not fire
//! On a weight with values that are not finite: its layers stay in float, and the plan says so afterwards.
//!
//! # Invariants kept
//! The signature. Where an INT32 bias would overflow with scale `input × weight`, the weight's scale is raised.
//!
//! # Opset notes
//! Scales per channel need opset 13; FP16 scales need opset 19.
//!
//! # References
//! ONNX, DequantizeLinear. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference*, 2018,
//! section 3.1.

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Names, NodeId, Tensor, ValueId};
use onnx_quant_numerics::affine::{QOptions, QParams, choose_qparams};
use onnx_quant_numerics::bias::bias_scale_guard;
use onnx_quant_numerics::channel::{Layout, channel_ranges, quantize_per_channel};
use onnx_quant_numerics::format::Scheme;
use rayon::prelude::*;

use crate::ops;
use crate::plan::{Precision, PrecisionPlan, WeightPlan};
use crate::qdq;
use crate::settings::QuantSettings;

/// See the head of this file.
pub struct QuantizeWeights;

static INFO: PassInfo = PassInfo {
    name: "quantize_weights",
    summary: "Stores the weights of the plan as codes, with a DequantizeLinear before each reader",
    source: include_str!("quantize_weights.rs"),
    exact: false,
};

impl Pass for QuantizeWeights {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let plan = cx.need::<PrecisionPlan>()?.clone();
        let settings = cx.need::<QuantSettings>()?.clone();
        let by_key: BTreeMap<String, ValueId> = model
            .all_values()
            .into_iter()
            .map(|v| (model.value_key(v), v))
            .collect();
        let coded: Vec<Option<Result<Coded, String>>> = plan
            .weights
            .par_iter()
            .map(|form| {
                let value = *by_key.get(&form.key)?;
                let readers = readers(model, value, form);
                (!readers.is_empty()).then(|| encode(model, value, form, readers, &settings))
            })
            .collect();
        let mut names = model.names();
        let mut changed = false;
        for (form, coded) in plan.weights.iter().zip(coded) {
            match coded {
                None => {}
                Some(Err(reason)) => {
                    stays_in_float(cx, form, &reason);
                    cx.skip_subject(form.key.clone(), reason);
                }
                Some(Ok(coded)) => {
                    insert(model, &mut names, form, coded);
                    changed = true;
                }
            }
        }
        Ok(changed.into())
    }
}

/// Corrects the plan for the readers of a weight that cannot be stored as codes.
fn stays_in_float(cx: &mut PassContext, form: &WeightPlan, reason: &str) {
    let Some(mut plan) = cx.take::<PrecisionPlan>() else {
        return;
    };
    let reads = |key: &String| form.readers.iter().any(|(reader, _)| reader == key);
    for node in plan.nodes.iter_mut().filter(|n| reads(&n.key)) {
        node.precision = Precision::Float;
        node.reason = format!("its weight `{}` cannot be quantized: {reason}", form.key);
    }
    cx.insert(plan);
}

struct Coded {
    value: ValueId,
    readers: Vec<(NodeId, usize)>,
    dims: Vec<i64>,
    float: DataType,
    params: Vec<QParams>,
    codes: Vec<u8>,
}

fn readers(model: &Model, value: ValueId, form: &WeightPlan) -> Vec<(NodeId, usize)> {
    model
        .consumers(value)
        .into_iter()
        .filter(|(n, slot)| form.readers.contains(&(model.node_key(*n), *slot)))
        .collect()
}

fn encode(
    model: &Model,
    value: ValueId,
    form: &WeightPlan,
    readers: Vec<(NodeId, usize)>,
    settings: &QuantSettings,
) -> Result<Coded, String> {
    let tensor = model.constant(value).ok_or("is not a constant")?;
    let data = tensor.to_f32().map_err(|e| e.to_string())?;
    let shape: Vec<usize> = tensor.dims().iter().map(|&d| d as usize).collect();
    let layout = match form.axis {
        Some(axis) => Layout::of(&shape, axis).map_err(|e| e.to_string())?,
        None => Layout::tensor(data.len()),
    };
    let ranges = channel_ranges(&data, layout).map_err(|e| e.to_string())?;
    let options = QOptions {
        narrow: settings.weight_scheme == Scheme::Symmetric && form.format.base.info().signed,
        reduce_range: settings.reduce_weights(),
    };
    let float = tensor.dtype();
    let mut params = Vec::with_capacity(ranges.len());
    for (channel, &(min, max)) in ranges.iter().enumerate() {
        let p = choose_qparams(min, max, form.format.base, settings.weight_scheme, options)
            .map_err(|e| format!("channel {channel}: {e}"))?;
        params.push(p);
    }
    raise_for_biases(model, &readers, &mut params)?;
    for p in &mut params {
        p.scale = qdq::stored_scale(p.scale, float);
    }
    let codes = quantize_per_channel(&data, layout, &params, form.format.base)
        .map_err(|e| e.to_string())?;
    Ok(Coded {
        value,
        readers,
        dims: tensor.dims().to_vec(),
        float,
        params,
        codes,
    })
}

/// Raises scales so that the INT32 bias of every reader fits.
fn raise_for_biases(
    model: &Model,
    readers: &[(NodeId, usize)],
    params: &mut [QParams],
) -> Result<(), String> {
    for &(node, _) in readers {
        let Some(Ok(linear)) = ops::linear(model, node) else {
            continue;
        };
        let input = model.input(node, linear.activation);
        let scale = input
            .and_then(|v| qdq::dequantized_by(model, v))
            .and_then(|q| qdq::scalar_scale(model, &q));
        let bias = linear
            .bias
            .and_then(|slot| model.input_constant(node, slot));
        let (Some(scale), Some(bias)) = (scale, bias) else {
            continue;
        };
        let bias = bias.to_f32().map_err(|e| e.to_string())?;
        if params.len() != 1 && params.len() != bias.len() {
            continue;
        }
        let scales: Vec<f32> = params.iter().map(|p| p.scale).collect();
        let raised = bias_scale_guard(&bias, scale, &scales).map_err(|e| e.to_string())?;
        for (p, s) in params.iter_mut().zip(raised) {
            p.scale = s;
        }
    }
    Ok(())
}

fn insert(model: &mut Model, names: &mut Names, form: &WeightPlan, coded: Coded) {
    let (graph, stem) = {
        let v = model.value(coded.value);
        (v.graph, v.name.clone())
    };
    let tensor = Tensor::from_raw(
        qdq::storage_type(form.format.base),
        &coded.dims,
        coded.codes,
    );
    let codes = model.add_initializer(graph, &names.fresh(&format!("{stem}_quantized")), tensor);
    let formats = (form.format.base, coded.float);
    let per_axis = form.axis.is_some();
    let (scale, zero) =
        qdq::add_parameters(model, names, graph, &stem, &coded.params, per_axis, formats);
    if form.gathered {
        let axis = form.axis.map(|_| -1);
        for (node, slot) in coded.readers {
            model.set_input(node, slot, Some(codes));
            let Some(rows) = model.output(node, 0) else {
                continue;
            };
            let name = names.fresh(&format!("{}_quantized", model.value(rows).name));
            let graph = model.node(node).graph;
            let raw = model.add_value(graph, &name);
            model.set_output(node, 0, Some(raw));
            let inputs = [Some(raw), Some(scale), Some(zero)];
            model.add_node(graph, qdq::dequantize_spec(axis), &inputs, &[Some(rows)]);
        }
        return;
    }
    let real = model.add_op(
        graph,
        qdq::dequantize_spec(form.axis.map(|a| a as i64)),
        &[codes, scale, zero],
        &names.fresh(&format!("{stem}_DequantizeLinear_Output")),
    );
    for (node, slot) in coded.readers {
        model.set_input(node, slot, Some(real));
    }
}
