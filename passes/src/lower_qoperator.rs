//! Lowers quantized groups to integer operators.
//!
//! # What it does
//! `DequantizeLinear → operator → QuantizeLinear` becomes one operator on codes: QLinearConv, QLinearMatMul, and for
//! onnxruntime QGemm, QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool, QLinearGlobalAveragePool,
//! QLinearLeakyRelu, QLinearSigmoid, QLinearSoftmax and QLinearWhere of com.microsoft. A MatMul or Gemm without a
//! QuantizeLinear behind it becomes MatMulInteger (QGemm for onnxruntime). Operators that move values move codes. A
//! Relu or Clip between the operator and the QuantizeLinear goes where the range of the codes makes it redundant.
//!
//! # Before → After
//! ```text
//! q → DQ → Conv(W_quantized → DQ, b_quantized → DQ) → Relu → Q → r
//! q → QLinearConv(W_quantized, b_quantized) → r
//! ```
//!
//! # When it does not fire
//! Without the setting `qoperator`, and on groups for which the target has no integer operator: they stay as they are.
//! A Conv, Gemm or MatMul with quantized weights that cannot be lowered is a skip with its reason.
//!
//! # Invariants kept
//! The signature. Every output within one step of its QuantizeLinear: the sums are the same, only their rounding to
//! codes may differ at a tie.
//!
//! # Opset notes
//! QLinearConv and QLinearMatMul are of opset 10; MaxPool on codes needs opset 12.
//!
//! # References
//! ONNX, QLinearConv, QLinearMatMul, MatMulInteger; onnxruntime, contrib operators; Jacob et al. 2018, section 2.2.

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Names, NodeId, NodeSpec, ValueId};
use onnx_quant_numerics::format::Base;

use crate::integer_product::{self, Bias, Operand};
use crate::ops;
use crate::qdq::{self, Qdq};
use crate::settings::QuantSettings;
use crate::target::{Target, TargetName};

mod contrib;
mod group;

use group::Output;

/// See the head of this file.
pub struct LowerQoperator;

static INFO: PassInfo = PassInfo {
    name: "lower_qoperator",
    summary: "Lowers quantized groups to integer operators",
    source: include_str!("lower_qoperator.rs"),
    exact: false,
};

impl Pass for LowerQoperator {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let settings = cx.get::<QuantSettings>();
        let Some(target) = settings.filter(|s| s.qoperator).map(|s| s.target.rules()) else {
            return Ok(Changed::No);
        };
        let mut names = model.names();
        let mut changed = false;
        let signed = settings_are_signed(cx);
        for node in model.all_nodes() {
            if !model.has_node(node) || !model.node(node).domain().is_empty() {
                continue;
            }
            match lower(model, &mut names, target, node) {
                Ok(fired) => changed |= fired,
                Err(reason) => cx.skip(model, node, reason),
            }
        }
        if model
            .all_nodes()
            .iter()
            .any(|&n| model.node(n).domain() == "com.microsoft")
        {
            model.set_opset("com.microsoft", 1);
        }
        if changed && signed && target.name == TargetName::Ort {
            cx.note(SIGNED);
        }
        Ok(changed.into())
    }
}

/// What onnxruntime 1.32 does to int8 weights behind int8 activations.
const SIGNED: &str = "int8 activations: load the model without `session.x64quantprecision=1`, with which onnxruntime makes \
                      the weights uint8 and then has no kernel";

fn settings_are_signed(cx: &PassContext) -> bool {
    let format = cx.get::<QuantSettings>().and_then(|s| s.activations);
    format.is_some_and(|f| f.base == Base::INT8)
}

fn lower(
    model: &mut Model,
    names: &mut Names,
    target: &Target,
    node: NodeId,
) -> Result<bool, String> {
    let op = model.node(node).op_type().to_owned();
    match op.as_str() {
        "Conv" => conv(model, node),
        "MatMul" => matmul(model, names, node),
        "Gemm" if target.contrib => gemm(model, node),
        "Gemm" => integer_gemm(model, names, node),
        _ if moves_codes(model, target, node) => Ok(group::move_codes(model, node)),
        _ if target.contrib => Ok(contrib::lower(model, node)),
        _ => Ok(false),
    }
}

/// Whether the target has the operator for codes of 8 bits.
fn moves_codes(model: &Model, target: &Target, node: NodeId) -> bool {
    let op = model.node(node).op_type();
    let on_codes = !matches!(op, "DepthToSpace" | "SpaceToDepth");
    target.is_move(op) && on_codes && ops::is_preserving(model, node)
}

/// The weight behind a DequantizeLinear, or why it cannot be lowered; `None` where the weight is float.
fn weight(model: &Model, node: NodeId, slot: usize) -> Option<Result<Qdq, String>> {
    let behind = qdq::dequantized_by(model, model.input(node, slot)?)?;
    model.constant(behind.input)?;
    let coded = integer_product::coded_weight(model, node, slot);
    Some(coded.ok_or_else(|| "its weight is not int8 or uint8 with FP32 scales".to_owned()))
}

/// The INT32 codes of a bias with scale input × weight.
fn bias_codes(model: &Model, node: NodeId, slot: usize) -> Result<Option<ValueId>, String> {
    let Some(bias) = model.input(node, slot) else {
        return Ok(None);
    };
    let codes = qdq::dequantized_by(model, bias).map(|d| d.input);
    let int32 = |v: &ValueId| model.value(*v).dtype() == Some(DataType::Int32);
    codes
        .filter(int32)
        .map(Some)
        .ok_or_else(|| "its bias is in float".to_owned())
}

fn conv(model: &mut Model, node: NodeId) -> Result<bool, String> {
    let (Some(x), Some(w)) = (group::operand(model, node, 0), weight(model, node, 1)) else {
        return Ok(false);
    };
    let w = w?;
    let bias = bias_codes(model, node, 2)?;
    let y = group::output(model, node).ok_or("no QuantizeLinear alone reads its result")?;
    let mut spec = NodeSpec::new("QLinearConv").name(model.node(node).name());
    for a in model.node(node).proto.attribute.clone() {
        spec = spec.attr(a);
    }
    let mut inputs = group::triple(x);
    inputs.extend([Some(w.input), Some(w.scale), w.zero_point]);
    inputs.extend([Some(y.scale), Some(y.zero)]);
    inputs.extend(bias.map(Some));
    group::replace(model, node, &y, spec, &inputs);
    Ok(true)
}

fn matmul(model: &mut Model, names: &mut Names, node: NodeId) -> Result<bool, String> {
    let y = group::output(model, node);
    let both = [0, 1].map(|slot| group::operand(model, node, slot));
    let Some(linear) = ops::dequantized_linear(model, node) else {
        // Two activations.
        if let ([Some(a), Some(b)], Some(y)) = (both, &y) {
            qlinear_matmul(model, node, group::triple(a), group::triple(b), y);
            return Ok(true);
        }
        return Ok(false);
    };
    let Some(x) = group::operand(model, node, linear.activation) else {
        return Ok(false);
    };
    let w =
        weight(model, node, linear.weight).unwrap_or(Err("its weight is in float".to_owned()))?;
    let Some(y) = y else {
        integer_product::replace(model, names, node, &linear, x, Bias::None)?;
        return Ok(true);
    };
    let weight = vec![Some(w.input), Some(w.scale), w.zero_point];
    let (a, b) = match linear.weight {
        0 => (weight, group::triple(x)),
        _ => (group::triple(x), weight),
    };
    qlinear_matmul(model, node, a, b, &y);
    Ok(true)
}

fn qlinear_matmul(
    model: &mut Model,
    node: NodeId,
    mut inputs: Vec<Option<ValueId>>,
    b: Vec<Option<ValueId>>,
    y: &Output,
) {
    let spec = NodeSpec::new("QLinearMatMul").name(model.node(node).name());
    inputs.extend(b);
    inputs.extend([Some(y.scale), Some(y.zero)]);
    group::replace(model, node, y, spec, &inputs);
}

/// `QGemm`, which gives codes or float values.
fn gemm(model: &mut Model, node: NodeId) -> Result<bool, String> {
    let (Some(x), Some(w)) = (group::operand(model, node, 0), weight(model, node, 1)) else {
        return Ok(false);
    };
    let w = w?;
    let bias = bias_codes(model, node, 2)?;
    if model.node(node).attr_f("beta").unwrap_or(1.0) != 1.0 {
        return Err("QGemm knows no beta".to_owned());
    }
    let y = group::output(model, node);
    let mut spec = NodeSpec::new("QGemm")
        .domain("com.microsoft")
        .name(model.node(node).name());
    for a in model.node(node).proto.attribute.clone() {
        if a.name() != "beta" {
            spec = spec.attr(a);
        }
    }
    let mut inputs = group::triple(x);
    inputs.extend([Some(w.input), Some(w.scale), w.zero_point, bias]);
    if let Some(y) = y {
        inputs.extend([Some(y.scale), Some(y.zero)]);
        group::replace(model, node, &y, spec, &inputs);
    } else {
        let (graph, outputs) = (model.node(node).graph, model.outputs(node));
        model.remove_node(node);
        model.add_node(graph, spec, &inputs, &outputs);
    }
    Ok(true)
}

/// A Gemm where QGemm is not to be had: MatMulInteger, and the bias is added to the sum. A QuantizeLinear behind it
/// stays.
fn integer_gemm(model: &mut Model, names: &mut Names, node: NodeId) -> Result<bool, String> {
    let (Some(x), Some(w)) = (group::operand(model, node, 0), weight(model, node, 1)) else {
        return Ok(false);
    };
    w?;
    let Some(linear) = ops::dequantized_linear(model, node) else {
        return Ok(false);
    };
    let n = model.node(node);
    let plain = ["alpha", "beta"]
        .iter()
        .all(|a| n.attr_f(a).unwrap_or(1.0) == 1.0);
    let bias = match (bias_codes(model, node, 2), model.input(node, 2)) {
        (Ok(Some(codes)), _) if plain => Bias::Codes(codes),
        (_, Some(real)) => Bias::Float(real),
        (_, None) => Bias::None,
    };
    integer_product::replace(model, names, node, &linear, x, bias)?;
    Ok(true)
}

/// For the operators of one activation.
fn operand_of(q: &Qdq) -> Option<Operand> {
    Some(Operand {
        codes: q.input,
        scale: q.scale,
        zero: q.zero_point?,
    })
}
