//! Lowers QuantizeLinear and DequantizeLinear to operators that an engine can run fast and exactly. For execution
//! only: what this pass makes is never saved as a model.
//!
//! # What it does
//! * A DequantizeLinear of a constant becomes the constant's real values.
//! * A QuantizeLinear whose only readers are DequantizeLinear with the same parameters becomes one `FakeQuantize`.
//! * A Cast of a constant float to another float type becomes the constant.
//! * What is left becomes `Quantize` or `Dequantize` with all its attributes written out.
//! * Constants, inputs and outputs of 2 or 4 bits an element become constants, inputs and outputs of 8 bits, those of
//!   floats of 4 to 8 bits become FP32: the numbers travel in the place of their codes.
//!
//! The three operators stand in the domain `onnx-quant.exec`. They have the inputs of the standard's operators and the
//! attributes `axis` and `block_size` (as the standard's); `qmin` and `qmax`, the bounds of the codes; `to`, the type
//! of the output where it is not that of the scale; `precision`, the type of the division where the file gives one;
//! `element`, the type number of codes that are floats, and `saturate` as the standard's.
//!
//! # Before → After
//! ```text
//! X → QuantizeLinear → q → DequantizeLinear → Y          X → FakeQuantize → Y
//! W_quantized → DequantizeLinear → W                     W
//! ```
//!
//! # When it does not fire
//! Codes that are neither integers of 2 to 32 bits nor floats of 4 to 8 stay as they are, with a skip that says so.
//!
//! # Invariants kept
//! Every output bit for bit. Inputs and outputs of fewer than 8 bits an element change their type.
//!
//! # Opset notes
//! Versions 10 to 25 of both operators, and those of `com.microsoft`.
//!
//! # References
//! ONNX standard, QuantizeLinear and DequantizeLinear.

mod decode;
pub mod layout;

use std::collections::HashSet;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, NodeId, NodeSpec, Tensor, ValueId};
use onnx_quant_proto::{ValueInfoProto, type_proto};

use decode::{code_type, is_small_float, mini_float};

/// The domain of the operators that exist only for execution.
pub const EXEC_DOMAIN: &str = "onnx-quant.exec";

/// The pass.
#[derive(Debug)]
pub struct LowerQdq;

static INFO: PassInfo = PassInfo {
    name: "lower_qdq",
    summary: "Lowers QuantizeLinear and DequantizeLinear for execution",
    source: include_str!("lower_qdq.rs"),
    exact: true,
};

impl Pass for LowerQdq {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut changed = false;
        let mut dead = HashSet::new();
        for node in model.all_nodes() {
            if is_qdq(model, node, "DequantizeLinear") {
                changed |= decode_constant(model, node, &mut dead)?;
            } else if model.node(node).is("Cast") {
                changed |= cast_constant(model, node, &mut dead)?;
            }
        }
        model.remove_nodes(&dead);
        dead.clear();
        for node in model.all_nodes() {
            if is_qdq(model, node, "QuantizeLinear") {
                changed |= fuse_pair(model, node, &mut dead);
            }
        }
        model.remove_nodes(&dead);
        for node in model.all_nodes() {
            if is_qdq(model, node, "QuantizeLinear") {
                changed |= lower_quantize(model, cx, node)?;
            } else if is_qdq(model, node, "DequantizeLinear") {
                changed |= lower_dequantize(model, cx, node);
            }
        }
        changed |= widen_values(model)?;
        if changed {
            model.set_opset(EXEC_DOMAIN, 1);
            drop_unused_constants(model);
        }
        Ok(changed.into())
    }
}

/// A tensor of 2 or 4 bits an element as one of 8 bits, of a small float as FP32; any other tensor as it is.
///
/// # Errors
/// In words, what is wrong with the tensor.
pub fn widen(tensor: &Tensor) -> Result<Tensor, String> {
    decode::widened(tensor).unwrap_or_else(|| Ok(tensor.clone()))
}

fn is_qdq(model: &Model, node: NodeId, op: &str) -> bool {
    let n = model.node(node);
    n.op_type() == op && matches!(n.domain(), "" | "com.microsoft")
}

fn fail(model: &Model, node: NodeId, reason: &str) -> PassError {
    let n = model.node(node);
    PassError::new(
        INFO.name,
        format!("{} `{}`: {reason}", n.op_type(), model.node_key(node)),
    )
}

/// `axis` and `block_size` of a Q or DQ, with the standard's defaults.
fn placement(model: &Model, node: NodeId) -> (i64, i64) {
    let n = model.node(node);
    (
        n.attr_i("axis").unwrap_or(1),
        n.attr_i("block_size").unwrap_or(0),
    )
}

/// The type number of `output_dtype`, where it is given and is not 0.
fn output_dtype(model: &Model, node: NodeId) -> Option<DataType> {
    model
        .node(node)
        .attr_i("output_dtype")
        .and_then(|t| DataType::from_number(i32::try_from(t).ok()?))
}

/// Replaces the DQ of a constant by the real values.
fn decode_constant(
    model: &mut Model,
    node: NodeId,
    dead: &mut HashSet<NodeId>,
) -> Result<bool, PassError> {
    let zero_point = model.input(node, 2);
    let (Some(codes), Some(scale), Some(out)) = (
        model.input_constant(node, 0),
        model.input_constant(node, 1),
        model.output(node, 0),
    ) else {
        return Ok(false);
    };
    let zero_point = match zero_point {
        Some(z) => match model.constant(z) {
            Some(z) => Some(z),
            None => return Ok(false),
        },
        None => None,
    };
    if code_type(codes.dtype()).is_none() && mini_float(codes.dtype()).is_none() {
        return Ok(false);
    }
    let (axis, block_size) = placement(model, node);
    let real = decode::decode(codes, scale, zero_point, axis, block_size)
        .map_err(|reason| fail(model, node, &reason))?;
    let dtype = output_dtype(model, node).unwrap_or(scale.dtype());
    let tensor = Tensor::from_f32_as(dtype, codes.dims(), &real)
        .map_err(|e| fail(model, node, &e.to_string()))?;
    model.set_outputs(node, &[]);
    dead.insert(node);
    model.drop_value_info(out);
    model.set_initializer(out, tensor);
    Ok(true)
}

/// Replaces the Cast of a constant between float types, at least one of which the engine may not have.
fn cast_constant(
    model: &mut Model,
    node: NodeId,
    dead: &mut HashSet<NodeId>,
) -> Result<bool, PassError> {
    let (Some(tensor), Some(out)) = (model.input_constant(node, 0), model.output(node, 0)) else {
        return Ok(false);
    };
    let to = model.node(node).attr_i("to").unwrap_or(0);
    let to = i32::try_from(to).ok().and_then(DataType::from_number);
    let Some(to @ (DataType::Float | DataType::Float16)) = to else {
        return Ok(false);
    };
    let small = is_small_float(tensor.dtype());
    if !small && !matches!(tensor.dtype(), DataType::Bfloat16 | DataType::Float16) {
        return Ok(false);
    }
    let cast = decode::numbers(tensor)
        .and_then(|x| Tensor::from_f32_as(to, tensor.dims(), &x).map_err(|e| e.to_string()));
    let cast = cast.map_err(|reason| fail(model, node, &reason))?;
    if model.value(out).is_output() {
        return Ok(false);
    }
    model.set_outputs(node, &[]);
    dead.insert(node);
    model.drop_value_info(out);
    model.set_initializer(out, cast);
    Ok(true)
}

/// Whether two optional parameters are the same value or equal constants.
fn same_parameter(model: &Model, a: Option<ValueId>, b: Option<ValueId>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return a == b;
    };
    if a == b {
        return true;
    }
    match (model.constant(a), model.constant(b)) {
        (Some(a), Some(b)) => {
            let equal_data = || matches!((a.bytes(), b.bytes()), (Ok(x), Ok(y)) if x == y);
            a.dtype() == b.dtype() && a.dims() == b.dims() && equal_data()
        }
        _ => false,
    }
}

/// Whether the DQ undoes exactly this Q.
fn is_inverse(model: &Model, q: NodeId, dq: NodeId) -> bool {
    is_qdq(model, dq, "DequantizeLinear")
        && placement(model, q) == placement(model, dq)
        && (1..3).all(|slot| same_parameter(model, model.input(q, slot), model.input(dq, slot)))
}

/// Replaces Q and the DQs behind it by one `FakeQuantize` (and an Identity for each further DQ).
fn fuse_pair(model: &mut Model, q: NodeId, dead: &mut HashSet<NodeId>) -> bool {
    let Some(bounds) = code_type_of(model, q).and_then(Codes::of) else {
        return false;
    };
    let Some(codes) = model.output(q, 0) else {
        return false;
    };
    let readers = model.consumers(codes);
    let only_inverses = !readers.is_empty()
        && !model.value(codes).is_output()
        && model.captures(codes).is_empty()
        && readers.iter().all(|&(dq, slot)| {
            slot == 0
                && is_inverse(model, q, dq)
                && model.node(dq).graph == model.node(q).graph
                && model.output(dq, 0).is_some()
                && output_dtype(model, dq) == output_dtype(model, readers[0].0)
        });
    if !only_inverses {
        return false;
    }
    let (mut inputs, graph) = (model.inputs(q), model.node(q).graph);
    bounds.drop_zero_point(&mut inputs);
    let saturate = model.node(q).attr_i("saturate");
    let to = output_dtype(model, readers[0].0);
    let mut first = None;
    for (dq, _) in readers {
        let name = model.node_label(dq);
        let out = model.output(dq, 0);
        model.set_outputs(dq, &[]);
        dead.insert(dq);
        if first.is_some() {
            let spec = NodeSpec::new("Identity").name(&name);
            model.add_node(graph, spec, &[first], &[out]);
            continue;
        }
        let spec = exec("FakeQuantize", &name, placement(model, q));
        let mut spec = bounds.write(spec, saturate);
        if let Some(to) = to {
            spec = spec.attr_i("to", to as i64);
        }
        if let Some(p) = model.node(q).attr_i("precision") {
            spec = spec.attr_i("precision", p);
        }
        model.add_node(graph, spec, &inputs, &[out]);
        first = out;
    }
    dead.insert(q);
    true
}

/// The type of the codes that a Q makes: of its zero point, else of `output_dtype`, else uint8.
fn code_type_of(model: &Model, q: NodeId) -> Option<DataType> {
    match model.input(q, 2) {
        Some(z) => model.value(z).dtype(),
        None => Some(output_dtype(model, q).unwrap_or(DataType::Uint8)),
    }
}

fn exec(op: &str, name: &str, (axis, block_size): (i64, i64)) -> NodeSpec {
    NodeSpec::new(op)
        .domain(EXEC_DOMAIN)
        .name(name)
        .attr_i("axis", axis)
        .attr_i("block_size", block_size)
}

/// Replaces a node by another with the same inputs and outputs.
fn replace_node(model: &mut Model, node: NodeId, spec: NodeSpec) {
    let (graph, inputs, outputs) = (
        model.node(node).graph,
        model.inputs(node),
        model.outputs(node),
    );
    model.remove_node(node);
    model.add_node(graph, spec, &inputs, &outputs);
}

fn lower_quantize(
    model: &mut Model,
    cx: &mut PassContext,
    node: NodeId,
) -> Result<bool, PassError> {
    let dtype = code_type_of(model, node)
        .ok_or_else(|| fail(model, node, "the type of its zero point is not declared"))?;
    let Some(bounds) = Codes::of(dtype) else {
        let reason = format!("codes of type {} are not lowered", dtype.short_name());
        cx.skip(model, node, reason);
        return Ok(false);
    };
    let spec = exec("Quantize", &model.node_label(node), placement(model, node));
    let saturate = model.node(node).attr_i("saturate");
    let mut spec = bounds
        .write(spec, saturate)
        .attr_i("to", bounds.held_as() as i64);
    if let Some(p) = model.node(node).attr_i("precision") {
        spec = spec.attr_i("precision", p);
    }
    if matches!(bounds, Codes::Float(_)) {
        model.set_input(node, 2, None);
    }
    replace_node(model, node, spec);
    Ok(true)
}

/// What codes are.
#[derive(Debug, Clone, Copy)]
enum Codes {
    /// Integers: smallest and largest, and the type that holds them in execution.
    Integer(i32, i32, DataType),
    /// Floats of 4 to 8 bits, of this type.
    Float(DataType),
}

impl Codes {
    fn of(dtype: DataType) -> Option<Self> {
        match code_type(dtype) {
            Some((qmin, qmax, wide)) => Some(Codes::Integer(qmin, qmax, wide)),
            None => mini_float(dtype).map(|_| Codes::Float(dtype)),
        }
    }

    fn held_as(self) -> DataType {
        match self {
            Codes::Integer(_, _, wide) => wide,
            Codes::Float(_) => DataType::Float,
        }
    }

    fn write(self, spec: NodeSpec, saturate: Option<i64>) -> NodeSpec {
        match self {
            Codes::Integer(qmin, qmax, _) => {
                spec.attr_i("qmin", qmin.into()).attr_i("qmax", qmax.into())
            }
            Codes::Float(dtype) => spec
                .attr_i("element", dtype as i64)
                .attr_i("saturate", saturate.unwrap_or(1)),
        }
    }

    /// Floats have no zero point but 0, and the engine has no type for it.
    fn drop_zero_point(self, inputs: &mut Vec<Option<ValueId>>) {
        if matches!(self, Codes::Float(_)) {
            inputs.truncate(2);
        }
    }
}

fn lower_dequantize(model: &mut Model, cx: &mut PassContext, node: NodeId) -> bool {
    let dtype = model.input(node, 0).and_then(|v| model.value(v).dtype());
    let zero = model.input(node, 2).and_then(|v| model.value(v).dtype());
    if zero.or(dtype).is_some_and(is_small_float) {
        model.set_input(node, 2, None);
    }
    if let Some(dtype) = dtype.filter(|&t| Codes::of(t).is_none()) {
        let reason = format!("codes of type {} are not lowered", dtype.short_name());
        cx.skip(model, node, reason);
        return false;
    }
    let mut spec = exec(
        "Dequantize",
        &model.node_label(node),
        placement(model, node),
    );
    if let Some(to) = output_dtype(model, node) {
        spec = spec.attr_i("to", to as i64);
    }
    replace_node(model, node, spec);
    true
}

/// Gives every value of 2 or 4 bits an element 8 bits, and every small float FP32.
fn widen_values(model: &mut Model) -> Result<bool, PassError> {
    let mut changed = false;
    for id in model.all_values() {
        if let Some(wide) = model.value(id).init.as_ref().and_then(decode::widened) {
            let name = || model.value_key(id);
            let wide = wide.map_err(|e| PassError::new(INFO.name, format!("`{}`: {e}", name())))?;
            model.value_mut(id).init = Some(wide);
            changed = true;
        }
        let v = model.value_mut(id);
        let infos = [&mut v.input_info, &mut v.output_info, &mut v.value_info];
        for info in infos.into_iter().flatten() {
            changed |= widen_info(info);
        }
    }
    Ok(changed)
}

fn widen_info(info: &mut ValueInfoProto) -> bool {
    let Some(type_proto::Value::TensorType(t)) =
        info.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        return false;
    };
    let declared = DataType::from_number(t.elem_type());
    match declared.and_then(decode::wide_type) {
        Some(wide) => {
            t.elem_type = Some(wide as i32);
            true
        }
        None => false,
    }
}

fn drop_unused_constants(model: &mut Model) {
    let unused = model
        .all_values()
        .into_iter()
        .filter(|&v| model.is_constant(v) && model.is_unused(v))
        .collect();
    model.remove_values(&unused);
}

#[cfg(test)]
mod tests;
