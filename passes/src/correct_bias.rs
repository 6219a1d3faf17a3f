//! Adds to the biases of linear operators what quantization takes from the mean of their outputs.
//!
//! # What it does
//! Weight optimisation measures on calibration data, layer by layer behind quantized layers, by how much the mean of each
//! output channel moves, and leaves the difference in [`BiasCorrections`]. This pass adds it to the bias: that of Conv,
//! ConvTranspose and Gemm, or the constant of the Add behind a MatMul. A Conv, ConvTranspose or Gemm without a bias
//! gets one.
//!
//! # Before → After
//! `Conv(X, W, B)` becomes `Conv(X, W, B + E[W x] − E[Ŵ x̂])`.
//!
//! # When it does not fire
//! Without corrections, and on an operator that has no bias and cannot take one (a MatMul without an Add).
//!
//! # Invariants kept
//! Signature and names; a bias that others read stays, and this use gets a copy.
//!
//! # Opset notes
//! None.
//!
//! # References
//! Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019, section 4.2.

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, NodeId, Tensor};

use crate::layer::{Matrix, Unit};
use crate::overrides::BiasCorrections;

/// See the head of this file.
pub struct CorrectBias;

static INFO: PassInfo = PassInfo {
    name: "correct_bias",
    summary: "Adds to the biases of linear operators what quantization takes from the mean of their outputs",
    source: include_str!("correct_bias.rs"),
    exact: false,
};

impl Pass for CorrectBias {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        // A second run must not add them again.
        let Some(BiasCorrections(corrections)) = cx.take::<BiasCorrections>() else {
            return Ok(Changed::No);
        };
        let mut changed = false;
        for node in model.all_nodes() {
            let Some(delta) = corrections.get(&model.node_key(node)) else {
                continue;
            };
            match apply(model, node, delta) {
                Ok(()) => changed = true,
                Err(reason) => cx.skip(model, node, reason),
            }
        }
        Ok(changed.into())
    }
}

/// Why the bias of an operator cannot be corrected; `None` where it can.
pub fn obstacle(model: &Model, node: NodeId) -> Option<String> {
    let unit = Unit::of(model, node)?;
    match (unit.bias, model.node(node).op_type()) {
        (None, "MatMul") => Some("has no bias that could be corrected".to_owned()),
        (Some((owner, slot)), _) => match model.input_constant(owner, slot) {
            None => Some("its bias is computed at run time".to_owned()),
            Some(t) if !matches!(t.dtype(), DataType::Float | DataType::Float16) => {
                Some("its bias is neither FP32 nor FP16".to_owned())
            }
            Some(_) => None,
        },
        (None, _) => None,
    }
}

/// Adds `delta`, one value for each output channel, to the bias of a linear operator.
///
/// # Errors
/// Why it cannot be.
pub fn apply(model: &mut Model, node: NodeId, delta: &[f32]) -> Result<(), String> {
    if let Some(reason) = obstacle(model, node) {
        return Err(reason);
    }
    let matrix = Matrix::of(model, node)?;
    let unit = Unit::of(model, node).ok_or("its output is not taken")?;
    let bias = unit
        .bias_values(model, matrix.rows)
        .filter(|b| b.len() == delta.len())
        .ok_or("its bias has not one value for each output channel")?;
    let beta = match model.node(node).op_type() {
        "Gemm" => model.node(node).attr_f("beta").unwrap_or(1.0),
        _ => 1.0,
    };
    if beta == 0.0 {
        return Err("its bias counts nothing: beta is 0".to_owned());
    }
    let sums: Vec<f32> = bias
        .iter()
        .zip(delta)
        .map(|(b, d)| (b + d) / beta)
        .collect();
    let (owner, slot) = unit.bias.unwrap_or((node, 2));
    let old = model.input(owner, slot);
    let constant = old.and_then(|v| model.constant(v));
    let weight = model.input_constant(node, 1);
    let dtype = constant.or(weight).map_or(DataType::Float, Tensor::dtype);
    let dims = match constant {
        Some(t) if t.element_count() == Ok(sums.len()) => t.dims().to_vec(),
        // One value for all channels becomes one for each; behind a convolution they are the second axis.
        Some(_) if owner != node && matrix.taps(model, node) > 1 => {
            return Err("its bias is one value for all channels".to_owned());
        }
        _ => vec![sums.len() as i64],
    };
    let tensor = Tensor::from_f32_as(dtype, &dims, &sums).map_err(|e| e.to_string())?;
    match old {
        Some(v) if model.consumers(v).len() == 1 && !model.value(v).is_output() => {
            model.set_initializer(v, tensor);
        }
        _ => {
            let stem = old.map_or_else(
                || format!("{}_bias", model.node_label(node)),
                |v| format!("{}_corrected", model.value(v).name),
            );
            let name = model.names().fresh(&stem);
            let graph = model.node(owner).graph;
            let value = model.add_initializer(graph, &name, tensor);
            model.set_input(owner, slot, Some(value));
        }
    }
    Ok(())
}
