//! Stores the biases of integer operators as INT32 with scale `input × weight`.
//!
//! # What it does
//! A Conv or Gemm whose input and weight are dequantized gets its constant bias from INT32 codes, zero point 0, whose
//! scale is the product of the scales of input and weight, so that a kernel adds it to the accumulator as it is.
//!
//! # Before → After
//! `b (f32) → Conv` becomes `b_quantized (int32) → DequantizeLinear → Conv`.
//!
//! # When it does not fire
//! Where the input or the weight is in float, the bias is computed at run time, has not one value for each output
//! channel, or is FP16 (whose scale would be too small for FP16). Never for a target that wants biases in float.
//!
//! # Invariants kept
//! The signature. Codes never wrap: the weight's scale has been raised where they would not fit.
//!
//! # Opset notes
//! DequantizeLinear takes INT32 since opset 10; its zero point is 0. One scale for each channel since opset 13.
//!
//! # References
//! Jacob et al. 2018, section 2.4.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, GraphId, Model, Names, NodeId, Tensor, ValueId};
use onnx_quant_numerics::bias::quantize_bias;

use crate::plan::PrecisionPlan;
use crate::qdq;
use crate::settings::QuantSettings;
use crate::target;

/// See the head of this file.
pub struct QuantizeBias;

static INFO: PassInfo = PassInfo {
    name: "quantize_bias",
    summary: "Stores the biases of integer operators as INT32 with scale input × weight",
    source: include_str!("quantize_bias.rs"),
    exact: false,
};

impl Pass for QuantizeBias {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let planned: Option<BTreeSet<String>> = cx.get::<PrecisionPlan>().map(|plan| {
            plan.nodes
                .iter()
                .filter(|n| n.precision == crate::plan::Precision::Integer)
                .map(|n| n.key.clone())
                .collect()
        });
        let target = cx.get::<QuantSettings>().map(|s| s.target.rules());
        if target.is_some_and(|t| t.bias == target::Bias::Float) {
            return Ok(Changed::No);
        }
        let mut names = model.names();
        let mut zeros = Zeros::new();
        let mut changed = false;
        for node in model.all_nodes() {
            if planned
                .as_ref()
                .is_some_and(|p| !p.contains(&model.node_key(node)))
            {
                continue;
            }
            match bias_of(model, node) {
                None => {}
                Some(Ok(bias)) => {
                    insert(model, &mut names, &mut zeros, node, &bias);
                    changed = true;
                }
                Some(Err(reason)) => cx.skip(model, node, reason),
            }
        }
        Ok(changed.into())
    }
}

struct Bias {
    slot: usize,
    codes: Vec<i32>,
    scales: Vec<f32>,
}

/// The quantized bias of a node; `None` where the node has no float bias between quantized inputs.
fn bias_of(model: &Model, node: NodeId) -> Option<Result<Bias, String>> {
    let n = model.node(node);
    let (slot, axis) = match n.op_type() {
        "Conv" if n.domain().is_empty() => (2, 0),
        "ConvTranspose" if n.domain().is_empty() && n.attr_i("group").unwrap_or(1) == 1 => (2, 1),
        "Gemm" if n.domain().is_empty() => (2, usize::from(n.attr_i("transB").unwrap_or(0) == 0)),
        _ => return None,
    };
    let bias = model.input(node, slot)?;
    let input = qdq::dequantized_by(model, model.input(node, 0)?)?;
    let weight = qdq::dequantized_by(model, model.input(node, 1)?)?;
    if qdq::dequantized_by(model, bias).is_some() {
        return None;
    }
    if !qdq::is_eight_bit(model, &input) || !qdq::is_eight_bit(model, &weight) {
        return Some(Err(
            "its bias stays in float: INT32 biases belong to 8-bit activations and weights"
                .to_owned(),
        ));
    }
    let Some(tensor) = model.constant(bias) else {
        return Some(Err(
            "its bias is computed at run time and stays in float".to_owned()
        ));
    };
    if tensor.dtype() != DataType::Float {
        return Some(Err(
            "its bias is FP16: an INT32 scale would be too small for FP16, it stays in float"
                .to_owned(),
        ));
    }
    let codes = model.constant(weight.input)?;
    let channels = *codes.dims().get(axis)? as usize;
    let input_scale = qdq::scalar_scale(model, &input)?;
    let weight_scales = model.constant(weight.scale)?.to_f32().ok()?;
    let values = match tensor.to_f32() {
        Ok(v) if v.len() == channels => v,
        Ok(v) if v.len() == 1 => vec![v[0]; channels],
        Ok(v) => {
            return Some(Err(format!(
                "its bias has {} values for {channels} output channels and stays in float",
                v.len()
            )));
        }
        Err(e) => return Some(Err(e.to_string())),
    };
    let quantized = quantize_bias(&values, input_scale, &weight_scales);
    Some(
        quantized
            .map_err(|e| format!("its bias stays in float: {e}"))
            .map(|q| Bias {
                slot,
                codes: q.codes,
                scales: q.scales,
            }),
    )
}

/// The zero points made so far, by graph and shape: biases of the same length share theirs.
type Zeros = BTreeMap<(GraphId, Vec<i64>), ValueId>;

fn insert(model: &mut Model, names: &mut Names, zeros: &mut Zeros, node: NodeId, bias: &Bias) {
    let Some(old) = model.input(node, bias.slot) else {
        return;
    };
    let stem = model.value(old).name.clone();
    let graph = model.node(node).graph;
    let per_channel = bias.scales.len() > 1 || bias.codes.len() == 1;
    let channels = bias.codes.len() as i64;
    let codes = Tensor::from_i32(&[channels], &bias.codes);
    let codes = model.add_initializer(graph, &names.fresh(&format!("{stem}_quantized")), codes);
    let dims = if per_channel { vec![channels] } else { vec![] };
    let scale = Tensor::from_f32(&dims, &bias.scales);
    let scale = model.add_initializer(graph, &names.fresh(&format!("{stem}_scale")), scale);
    let zero = *zeros.entry((graph, dims.clone())).or_insert_with(|| {
        let tensor = Tensor::from_i32(&dims, &vec![0; dims.iter().product::<i64>() as usize]);
        model.add_initializer(graph, &names.fresh(&format!("{stem}_zero_point")), tensor)
    });
    let real = model.add_op(
        graph,
        qdq::dequantize_spec(per_channel.then_some(0)),
        &[codes, scale, zero],
        &names.fresh(&format!("{stem}_DequantizeLinear_Output")),
    );
    model.set_input(node, bias.slot, Some(real));
}
