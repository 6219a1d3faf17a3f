//! Casts the float values of the graph to FP16 or BF16.
//!
//! # What it does
//! Every operator that the standard defines for the type computes in it: its constants are stored in 16 bits, and Cast
//! stands where values go from FP32 into it and back. Operators of the list `keep` stay FP32, as do those that the
//! standard does not define for the type, operators with bodies, and those with a constant that the type cannot hold.
//! Inputs and outputs of the graph keep their types unless `cast_io` is set. A DequantizeLinear gives the type itself where its scales are
//! stored in FP16; else its result is cast.
//!
//! # Before → After
//! ```text
//! x (f32) → Conv (W f32) → Relu → Softmax → y (f32)
//! x (f32) → Cast → Conv (W f16) → Relu → Cast → Softmax → y (f32)
//! ```
//!
//! # When it does not fire
//! Without the setting `floats`. Biases alone are stored in FP16 by the setting `half_biases`, with a Cast behind them.
//!
//! # Invariants kept
//! The signature.
//!
//! # Opset notes
//! BF16 needs opset 22, in which most operators take it.
//!
//! # References
//! ONNX, the type constraints of the operators at opsets 21 and 22.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Names, NodeId, NodeSpec, Tensor, ValueId};

use onnx_quant_proto::type_proto;

use crate::infer::{Facts, infer_declared};
use crate::qdq;
use crate::settings::QuantSettings;
use crate::target::TargetName;

/// See the head of this file.
pub struct CastFloats;

static INFO: PassInfo = PassInfo {
    name: "cast_floats",
    summary: "Casts the float values of the graph to FP16 or BF16",
    source: include_str!("cast_floats.rs"),
    exact: false,
};

/// Operators that stay FP32 unless told otherwise: sums over many values, and functions that grow fast.
pub const KEPT: &[&str] = &[
    "CumSum",
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
];

/// What onnxruntime 1.32 does not have.
const NO_BF16: &str =
    "bf16: onnxruntime 1.32 has no kernels for BF16 on CPUs; the nearest that it runs is fp16";

/// Operators all of whose float inputs and outputs the standard defines for FP16 (opset 21) and BF16 (opset 22).
#[rustfmt::skip]
const BOTH: &[&str] = &[
    "Abs", "Acos", "Acosh", "Add", "AffineGrid", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Ceil", "CenterCropPad", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum",
    "DepthToSpace", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization",
    "Min", "Mish", "Mod", "Mul", "Neg", "NonZero", "PRelu", "Pad", "Pow", "RNN", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign",
    "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
    "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
];

/// Operators that the standard defines for FP16 only.
const HALF_ONLY: &[&str] = &[
    "Compress",
    "Einsum",
    "OneHot",
    "ReverseSequence",
    "Shrink",
    "TopK",
];

impl Pass for CastFloats {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let settings = cx.get::<QuantSettings>().map(|s| s.floats.clone());
        let settings = settings.unwrap_or_default();
        let stored = settings.half_biases && half_biases(model);
        let Some(to) = settings.dtype() else {
            return Ok(stored.into());
        };
        let facts = infer_declared(model, true);
        let kept_nodes = settings.kept(model);
        let kept_nodes = kept_nodes.map_err(|e| PassError::new(INFO.name, e.to_string()))?;
        let kept_nodes: BTreeSet<NodeId> = kept_nodes.into_iter().collect();
        let mut cast = BTreeSet::new();
        let mut kept: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        for node in model.main().nodes.clone() {
            match refusal(model, &facts, node, &kept_nodes, to) {
                None if touches_float(model, &facts, node) => {
                    cast.insert(node);
                }
                None => {}
                Some(reason) => {
                    let op = model.node(node).op_type().to_owned();
                    *kept.entry(reason).or_default().entry(op).or_default() += 1;
                }
            }
        }
        let mut work = Casting {
            names: model.names(),
            model,
            facts,
            cast,
            to,
            cast_io: settings.cast_io,
        };
        let changed = work.run();
        if changed && to == DataType::Bfloat16 {
            qdq::require_opset(model, 22);
            let target = cx.get::<QuantSettings>().map(|s| s.target);
            if target == Some(TargetName::Ort) {
                cx.note(NO_BF16);
            }
        }
        for (reason, ops) in kept {
            let ops: Vec<String> = ops.iter().map(|(op, n)| format!("{op} {n}")).collect();
            cx.note(format!("{} stay FP32: {reason}", ops.join(", ")));
        }
        Ok((changed || stored).into())
    }
}

/// Stores the FP32 biases of linear operators in FP16, with a Cast behind them.
fn half_biases(model: &mut Model) -> bool {
    let mut names = model.names();
    let mut changed = false;
    for node in model.all_nodes() {
        let n = model.node(node);
        let linear = ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| n.is(op));
        let Some(bias) = model.input(node, 2).filter(|_| linear) else {
            continue;
        };
        let Some(tensor) = model
            .constant(bias)
            .filter(|t| t.dtype() == DataType::Float)
        else {
            continue;
        };
        let half = tensor
            .to_f32()
            .ok()
            .filter(|d| d.iter().all(|x| x.abs() <= 65504.0));
        let half =
            half.and_then(|d| Tensor::from_f32_as(DataType::Float16, tensor.dims(), &d).ok());
        let Some(half) = half else { continue };
        let (graph, name) = (model.value(bias).graph, model.value(bias).name.clone());
        let stored = model.add_initializer(graph, &names.fresh(&format!("{name}_fp16")), half);
        let spec = NodeSpec::new("Cast").attr_i("to", DataType::Float as i64);
        let real = model.add_op(
            graph,
            spec,
            &[stored],
            &names.fresh(&format!("{name}_real")),
        );
        for (reader, slot) in model.consumers(bias) {
            model.set_input(reader, slot, Some(real));
        }
        changed = true;
    }
    changed
}

fn is_float(model: &Model, facts: &Facts, value: ValueId) -> bool {
    let declared = || model.value(value).dtype();
    let dtype = facts.get(value).and_then(|f| f.dtype).or_else(declared);
    dtype == Some(DataType::Float)
}

fn touches_float(model: &Model, facts: &Facts, node: NodeId) -> bool {
    let mut values = model
        .inputs(node)
        .into_iter()
        .chain(model.outputs(node))
        .flatten();
    values.any(|v| is_float(model, facts, v))
}

/// Why an operator that has to do with FP32 stays as it is.
fn refusal(
    model: &Model,
    facts: &Facts,
    node: NodeId,
    kept: &BTreeSet<NodeId>,
    to: DataType,
) -> Option<String> {
    if !touches_float(model, facts, node) {
        return None;
    }
    let n = model.node(node);
    let op = n.op_type();
    if matches!(op, "Cast" | "CastLike" | "QuantizeLinear") && n.domain().is_empty() {
        return Some("they convert from or to FP32".to_owned());
    }
    if op == "DequantizeLinear" {
        let own = gives_half(model, node, to);
        return (!own).then(|| "their scales are FP32, and their results are cast".to_owned());
    }
    let defined = n.domain().is_empty()
        && (BOTH.contains(&op) || to == DataType::Float16 && HALF_ONLY.contains(&op));
    if !defined || !n.subgraphs.is_empty() {
        return Some(format!(
            "the standard does not define them for {}",
            to.short_name()
        ));
    }
    if kept.contains(&node) {
        return Some("they are on the list of --fp32-ops".to_owned());
    }
    let known = |v: &ValueId| {
        let fact = facts.get(*v).and_then(|f| f.dtype);
        fact.or_else(|| model.value(*v).dtype()).is_some()
    };
    let values: Vec<ValueId> = model.inputs(node).into_iter().flatten().collect();
    if !values.iter().all(known) {
        return Some("the type of an input is not known".to_owned());
    }
    let beyond = |v: &ValueId| {
        let constant = model.constant(*v).filter(|t| t.dtype() == DataType::Float);
        let data = constant.and_then(|t| t.to_f32().ok());
        data.is_some_and(|d| d.iter().any(|x| x.is_finite() && x.abs() > largest(to)))
    };
    values
        .iter()
        .any(beyond)
        .then(|| format!("a constant of theirs is beyond {}", to.short_name()))
}

fn largest(to: DataType) -> f32 {
    match to {
        DataType::Float16 => 65504.0,
        _ => f32::from_bits(0x7f7f_0000),
    }
}

/// The FP16 scale of a DequantizeLinear, where that is how its scale is stored.
fn half_scale(model: &Model, node: NodeId) -> Option<ValueId> {
    let (cast, _) = model.producer(model.input(node, 1)?)?;
    let source = model.input(cast, 0)?;
    let half = model.constant(source)?.dtype() == DataType::Float16;
    (model.node(cast).is("Cast") && half).then_some(source)
}

fn gives_half(model: &Model, node: NodeId, to: DataType) -> bool {
    to == DataType::Float16 && half_scale(model, node).is_some()
}

struct Casting<'m> {
    model: &'m mut Model,
    names: Names,
    facts: Facts,
    /// The nodes that compute in 16 bits.
    cast: BTreeSet<NodeId>,
    to: DataType,
    /// Inputs and outputs of the graph change their type.
    cast_io: bool,
}

impl Casting<'_> {
    fn run(&mut self) -> bool {
        let values: Vec<ValueId> = self.model.all_values();
        let values: Vec<ValueId> = values
            .into_iter()
            .filter(|&v| is_float(self.model, &self.facts, v) && !self.model.value(v).sparse_init)
            .collect();
        for node in self.cast.clone() {
            if let Some(scale) = half_scale(self.model, node)
                && self.model.node(node).is("DequantizeLinear")
            {
                self.model.set_input(node, 1, Some(scale));
            }
        }
        let mut changed = false;
        for value in values {
            changed |= self.value(value);
        }
        changed
    }

    /// Gives one value the types that its producer and its readers want.
    fn value(&mut self, value: ValueId) -> bool {
        let made = self
            .model
            .producer(value)
            .is_some_and(|(n, _)| self.cast.contains(&n));
        let (halves, floats): (Vec<_>, Vec<_>) = self
            .model
            .consumers(value)
            .into_iter()
            .partition(|(n, slot)| self.cast.contains(n) && self.is_data(*n, *slot));
        if !made && halves.is_empty() {
            return false;
        }
        if let Some(source) = self.cast_from(value) {
            for (node, slot) in halves {
                self.model.set_input(node, slot, Some(source));
            }
            return true;
        }
        let v = self.model.value(value);
        let (graph, name) = (v.graph, v.name.clone());
        let only_half = floats.is_empty()
            && !v.is_input()
            && !v.is_output()
            && self.model.captures(value).is_empty();
        if let Some(tensor) = self.model.constant(value) {
            return self.constant(value, tensor.clone(), only_half, &halves);
        }
        if made && only_half {
            self.model.drop_value_info(value);
            return true;
        }
        let v = self.model.value(value);
        let port = graph == Model::MAIN && (made && v.is_output() || v.is_input());
        if self.cast_io && port && floats.is_empty() && self.model.captures(value).is_empty() {
            self.retype(value);
            return true;
        }
        let ending = if self.to == DataType::Float16 {
            "fp16"
        } else {
            "bf16"
        };
        let fresh = self.names.fresh(&format!("{name}_{ending}"));
        let half = self.model.add_value(graph, &fresh);
        let (from, into, dtype) = match made {
            true => (half, value, DataType::Float),
            false => (value, half, self.to),
        };
        if let (true, Some((producer, slot))) = (made, self.model.producer(value)) {
            self.model.set_output(producer, slot, Some(half));
        }
        let spec = NodeSpec::new("Cast").attr_i("to", dtype as i64);
        self.model
            .add_node(graph, spec, &[Some(from)], &[Some(into)]);
        for (node, slot) in halves {
            self.model.set_input(node, slot, Some(half));
        }
        true
    }

    /// The value of 16 bits that a Cast made this one from.
    fn cast_from(&self, value: ValueId) -> Option<ValueId> {
        let (node, _) = self.model.producer(value)?;
        let source = self.model.input(node, 0)?;
        let fact = self.facts.get(source).and_then(|f| f.dtype);
        let dtype = fact.or_else(|| self.model.value(source).dtype());
        (self.model.node(node).is("Cast") && dtype == Some(self.to)).then_some(source)
    }

    /// Changes the declared type of an input or output of the graph.
    fn retype(&mut self, value: ValueId) {
        self.model.drop_value_info(value);
        let v = self.model.value_mut(value);
        let infos = [&mut v.input_info, &mut v.output_info];
        for info in infos.into_iter().flatten() {
            let ty = info.r#type.as_mut().and_then(|t| t.value.as_mut());
            if let Some(type_proto::Value::TensorType(t)) = ty {
                t.elem_type = Some(self.to as i32);
            }
        }
    }

    /// Whether an input is data in the float type; scales of conversions are not.
    fn is_data(&self, node: NodeId, slot: usize) -> bool {
        !self.model.node(node).is("DequantizeLinear") || slot != 1
    }

    fn constant(
        &mut self,
        value: ValueId,
        tensor: Tensor,
        only_half: bool,
        halves: &[(NodeId, usize)],
    ) -> bool {
        let converted = tensor
            .to_f32()
            .and_then(|data| Tensor::from_f32_as(self.to, tensor.dims(), &data));
        let Ok(half) = converted else {
            return false;
        };
        if only_half {
            self.model.drop_value_info(value);
            self.model.set_initializer(value, half);
            return true;
        }
        let graph = self.model.value(value).graph;
        let name = self.names.fresh(&format!(
            "{}_{}",
            self.model.value(value).name,
            self.to.short_name()
        ));
        let half = self.model.add_initializer(graph, &name, half);
        for &(node, slot) in halves {
            self.model.set_input(node, slot, Some(half));
        }
        true
    }
}
