//! Stores the weights of the plan as codes, with what decodes them before each reader.
//!
//! # What it does
//! Each weight of the [`PrecisionPlan`] becomes an initializer of codes with scales and zero points for the tensor, for
//! each output channel, or for each block along the reduction axis. Blocks of a convolution run over input channels and
//! kernel: the codes are stored as a matrix, and a Reshape follows. Scales of two levels are codes with a
//! DequantizeLinear of their own. Weights in FP16 or BF16 are cast. An embedding table is looked up as codes, and the
//! rows are dequantized, where Gather takes the type of the codes.
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
//! Scales per channel need opset 13, FP16 scales 19, blocks and INT4 21, FP4 23, E8M0 24, INT2 25, FP6 28: the model's
//! version is raised where a format needs it.
//!
//! # References
//! ONNX, DequantizeLinear. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference*, 2018,
//! section 3.1. OCP, *Microscaling Formats Specification*, 2023. Dai et al., *VS-Quant*, 2021.

mod emit;
mod encode;
mod grid;

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::spill::release;
use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::bias::bias_scale_guard;
use onnx_quant_numerics::format::Family;
use rayon::prelude::*;

use crate::codebook_weights;
use crate::ops;
use crate::overrides::{WeightOverride, WeightOverrides};
use crate::plan::{Precision, PrecisionPlan, WeightPlan};
use crate::qdq;
use crate::settings::QuantSettings;
use crate::target::TargetName;

pub use grid::{WeightGrid, grid};

use emit::Place;
use encode::Stored;

/// See the head of this file.
pub struct QuantizeWeights;

static INFO: PassInfo = PassInfo {
    name: "quantize_weights",
    summary: "Stores the weights of the plan as codes, with what decodes them before each reader",
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
        let overrides = cx.take::<WeightOverrides>();
        let mut names = model.names();
        let mut changed = false;
        let mut rest = &plan.weights[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(together(model, &by_key, rest));
            rest = later;
            let large = !rest.is_empty();
            let stored: Vec<Option<Found>> = now
                .par_iter()
                .map(|form| {
                    if settings.codebook.packs(form.format.base) {
                        return None;
                    }
                    let value = *by_key.get(&form.key)?;
                    let readers = readers(model, value, form);
                    (!readers.is_empty()).then(|| {
                        let chosen = overrides.as_ref().and_then(|o| o.0.get(&form.key));
                        let stored = store(model, value, form, &readers, &settings, chosen);
                        (value, readers, stored)
                    })
                })
                .collect();
            for (form, found) in now.iter().zip(stored) {
                match found {
                    None => {}
                    Some((_, _, Err(reason))) => {
                        stays_in_float(cx, form, &reason);
                        cx.skip_subject(form.key.clone(), reason);
                    }
                    Some((value, readers, Ok(stored))) => {
                        let place = Place {
                            value,
                            readers,
                            form,
                            cast_e8m0: settings.target == TargetName::Ort,
                        };
                        emit::insert(model, &mut names, place, stored);
                        changed = true;
                    }
                }
            }
            if large {
                release();
            }
        }
        if let Some(overrides) = overrides {
            cx.insert(overrides);
        }
        Ok(changed.into())
    }
}

/// Bytes of weights that are encoded at the same time: copies in FP32 and codes of theirs are in memory together.
const TOGETHER: usize = 64 << 20;

/// How many of the next weights are encoded at the same time: at least one.
fn together(model: &Model, by_key: &BTreeMap<String, ValueId>, forms: &[WeightPlan]) -> usize {
    let bytes = |form: &WeightPlan| {
        let tensor = by_key.get(&form.key).and_then(|v| model.constant(*v));
        tensor.map_or(0, |t| t.byte_len().unwrap_or(0))
    };
    let mut sum = 0usize;
    let fits = |form: &&WeightPlan| {
        sum = sum.saturating_add(bytes(form));
        sum <= TOGETHER
    };
    forms.iter().take_while(fits).count().max(1)
}

/// A weight, its readers, and what is stored for it.
type Found = (ValueId, Vec<(NodeId, usize)>, Result<Stored, String>);

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

fn readers(model: &Model, value: ValueId, form: &WeightPlan) -> Vec<(NodeId, usize)> {
    model
        .consumers(value)
        .into_iter()
        .filter(|(n, slot)| form.readers.contains(&(model.node_key(*n), *slot)))
        .collect()
}

fn store(
    model: &Model,
    value: ValueId,
    form: &WeightPlan,
    readers: &[(NodeId, usize)],
    settings: &QuantSettings,
    chosen: Option<&WeightOverride>,
) -> Result<Stored, String> {
    let tensor = model.constant(value).ok_or("is not a constant")?;
    if form.format.base.info().family == Family::Sign {
        let known = (None, chosen.map(|c| c.values.as_slice()));
        let coded = codebook_weights::encode(model, value, form, known, &settings.codebook)?;
        return encode::signs(tensor, form, &coded, settings);
    }
    encode::encode(model, tensor, form, readers, (settings, chosen))
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
            .filter(|q| qdq::is_eight_bit(model, q))
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
