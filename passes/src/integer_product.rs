//! Writes a linear operator with the standard's integer operators: `MatMulInteger` or `ConvInteger`, then
//! `Cast → Mul(scales) → Add(bias)`.
//!
//! `r = S_X S_W · Σ (q_X − Z_X)(q_W − Z_W) + b`; the sum is what the integer operator gives.

use onnx_quant_ir::{DataType, GraphId, Model, Names, NodeId, NodeSpec, Tensor, ValueId};

use crate::ops::Linear;
use crate::qdq::{self, Qdq};

/// Codes with their scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// The codes.
    pub codes: ValueId,
    /// One scale.
    pub scale: ValueId,
    /// One zero point, of the type of the codes.
    pub zero: ValueId,
}

/// The bias of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// INT32 codes with scale `S_X S_W`, one for each output channel.
    Codes(ValueId),
    /// Real values in the operator's own bias input.
    Float(ValueId),
}

/// A constant weight as the integer operator takes it.
struct Weight {
    codes: ValueId,
    zero: ValueId,
    scales: Vec<f32>,
}

/// The constant weight behind a DequantizeLinear in an input slot, with its parameters.
pub fn coded_weight(model: &Model, node: NodeId, slot: usize) -> Option<Qdq> {
    let weight = qdq::dequantized_by(model, model.input(node, slot)?)?;
    let bytes = |v: ValueId| {
        let t = model.constant(v)?;
        matches!(t.dtype(), DataType::Int8 | DataType::Uint8).then_some(())
    };
    bytes(weight.input)?;
    bytes(weight.zero_point?)?;
    let scale = model.constant(weight.scale)?;
    (scale.dtype() == DataType::Float && weight.block_size == 0).then_some(weight)
}

/// Replaces the operator. Its outputs keep their values; the conversions that are left over are for `drop_unused`.
///
/// # Errors
/// Why the integer operator cannot do what the operator does; nothing is changed then.
pub fn replace(
    model: &mut Model,
    names: &mut Names,
    node: NodeId,
    linear: &Linear,
    x: Operand,
    bias: Bias,
) -> Result<(), String> {
    let weight = coded_weight(model, node, linear.weight)
        .ok_or("its weight is not stored as int8 or uint8 with FP32 scales")?;
    let out = model.output(node, 0).ok_or("its output is missing")?;
    let conv = model.node(node).is("Conv");
    let weight = if conv {
        unsigned(model, names, node, &weight)?
    } else {
        matrix(model, names, node, &weight)?
    };
    let stem = model.value(out).name.clone();
    let graph = model.node(node).graph;
    let label = model.node(node).name().to_owned();
    let rank = if conv { spatial(model, node)? } else { 0 };
    let (alpha, beta) = factors(model, node);
    let x = turned(model, names, node, x);

    let codes = product(
        model,
        names,
        (node, linear),
        x,
        &weight,
        &format!("{stem}_int32"),
    );
    model.set_outputs(node, &[]);
    model.remove_node(node);
    let codes = match bias {
        Bias::Codes(b) => {
            let b = along_channels(model, names, graph, b, rank);
            let name = names.fresh(&format!("{stem}_biased"));
            model.add_op(graph, NodeSpec::new("Add"), &[codes, b], &name)
        }
        _ => codes,
    };
    let cast = NodeSpec::new("Cast").attr_i("to", DataType::Float as i64);
    let real = model.add_op(
        graph,
        cast,
        &[codes],
        &names.fresh(&format!("{stem}_float")),
    );
    let scales: Vec<f32> = weight.scales.iter().map(|s| s * alpha).collect();
    let scale = scale(model, names, graph, (&stem, rank), x.scale, &scales);
    let Bias::Float(b) = bias else {
        let mul = NodeSpec::new("Mul").name(&label);
        model.add_node(graph, mul, &[Some(real), Some(scale)], &[Some(out)]);
        return Ok(());
    };
    let scaled = names.fresh(&format!("{stem}_scaled"));
    let scaled = model.add_op(graph, NodeSpec::new("Mul"), &[real, scale], &scaled);
    let b = along_channels(model, names, graph, b, rank);
    let b = times(model, names, graph, b, beta);
    let add = NodeSpec::new("Add").name(&label);
    model.add_node(graph, add, &[Some(scaled), Some(b)], &[Some(out)]);
    Ok(())
}

fn factors(model: &Model, node: NodeId) -> (f32, f32) {
    let n = model.node(node);
    let of = |name| n.attr_f(name).unwrap_or(1.0);
    if n.is("Gemm") {
        (of("alpha"), of("beta"))
    } else {
        (1.0, 1.0)
    }
}

/// Number of axes behind the channels of a convolution.
fn spatial(model: &Model, node: NodeId) -> Result<usize, String> {
    let dims = model.input(node, 1).and_then(|v| {
        let d = qdq::dequantized_by(model, v)?;
        Some(model.constant(d.input)?.dims().len())
    });
    dims.filter(|&d| d > 2)
        .map(|d| d - 2)
        .ok_or_else(|| "its weight has fewer than three dimensions".to_owned())
}

/// The integer operator.
fn product(
    model: &mut Model,
    names: &mut Names,
    (node, linear): (NodeId, &Linear),
    x: Operand,
    weight: &Weight,
    name: &str,
) -> ValueId {
    let n = model.node(node);
    let graph = n.graph;
    let name = names.fresh(name);
    if n.is("Conv") {
        let mut spec = NodeSpec::new("ConvInteger");
        for a in n.proto.attribute.clone() {
            spec = spec.attr(a);
        }
        return model.add_op(
            graph,
            spec,
            &[x.codes, weight.codes, x.zero, weight.zero],
            &name,
        );
    }
    let spec = NodeSpec::new("MatMulInteger");
    let inputs = if linear.weight == 0 {
        [weight.codes, x.codes, weight.zero, x.zero]
    } else {
        [x.codes, weight.codes, x.zero, weight.zero]
    };
    model.add_op(graph, spec, &inputs, &name)
}

/// The codes of a Gemm with `transA`, transposed.
fn turned(model: &mut Model, names: &mut Names, node: NodeId, x: Operand) -> Operand {
    let n = model.node(node);
    if !n.is("Gemm") || n.attr_i("transA").unwrap_or(0) == 0 {
        return x;
    }
    let graph = n.graph;
    let name = names.fresh(&format!("{}_transposed", model.value(x.codes).name));
    let spec = NodeSpec::new("Transpose").attr_ints("perm", &[1, 0]);
    let codes = model.add_op(graph, spec, &[x.codes], &name);
    Operand { codes, ..x }
}

/// `scale of the input × scales of the weight`, computed here where the former is a constant.
fn scale(
    model: &mut Model,
    names: &mut Names,
    graph: GraphId,
    (stem, rank): (&str, usize),
    input: ValueId,
    weight: &[f32],
) -> ValueId {
    let known = model.constant(input).and_then(Tensor::scalar_f32);
    let values: Vec<f32> = weight.iter().map(|w| w * known.unwrap_or(1.0)).collect();
    let mut dims = Vec::new();
    if values.len() > 1 {
        dims.push(values.len() as i64);
        dims.extend(vec![1; rank]);
    }
    let what = if known.is_some() {
        "product_scale"
    } else {
        "weight_scale"
    };
    let name = names.fresh(&format!("{stem}_{what}"));
    let constant = model.add_initializer(graph, &name, Tensor::from_f32(&dims, &values));
    if known.is_some() {
        return constant;
    }
    let name = names.fresh(&format!("{stem}_product_scale"));
    model.add_op(graph, NodeSpec::new("Mul"), &[input, constant], &name)
}

/// A value of one entry for each channel, with axes of length one behind them.
fn along_channels(
    model: &mut Model,
    names: &mut Names,
    graph: GraphId,
    value: ValueId,
    rank: usize,
) -> ValueId {
    if rank == 0 {
        return value;
    }
    let name = names.fresh(&format!("{}_channels", model.value(value).name));
    let mut dims = vec![-1];
    dims.extend(vec![1; rank]);
    if let Some(t) = model.constant(value) {
        let (dtype, count) = (t.dtype(), t.element_count().unwrap_or(0));
        if let Ok(bytes) = t.bytes().map(std::borrow::Cow::into_owned) {
            dims[0] = count as i64;
            return model.add_initializer(graph, &name, Tensor::from_raw(dtype, &dims, bytes));
        }
    }
    let shape = Tensor::from_i64(&[dims.len() as i64], &dims);
    let shape = model.add_initializer(graph, &names.fresh(&format!("{name}_shape")), shape);
    model.add_op(graph, NodeSpec::new("Reshape"), &[value, shape], &name)
}

fn times(
    model: &mut Model,
    names: &mut Names,
    graph: GraphId,
    value: ValueId,
    factor: f32,
) -> ValueId {
    if factor == 1.0 {
        return value;
    }
    let stem = model.value(value).name.clone();
    let factor = Tensor::from_f32(&[], &[factor]);
    let factor = model.add_initializer(graph, &names.fresh(&format!("{stem}_beta")), factor);
    model.add_op(
        graph,
        NodeSpec::new("Mul"),
        &[value, factor],
        &names.fresh(&format!("{stem}_times_beta")),
    )
}

/// Codes of a matrix with the output channels on the last axis.
fn matrix(
    model: &mut Model,
    names: &mut Names,
    node: NodeId,
    weight: &Qdq,
) -> Result<Weight, String> {
    let (tensor, zero, scales) = parts(model, weight)?;
    let n = model.node(node);
    let graph = n.graph;
    let mut codes = weight.input;
    let transposed = n.is("Gemm") && n.attr_i("transB").unwrap_or(0) != 0;
    if let (true, &[rows, columns]) = (transposed, tensor.dims()) {
        let bytes = tensor.bytes().map_err(|e| e.to_string())?.into_owned();
        let (r, c) = (rows as usize, columns as usize);
        let turned = (0..r * c)
            .map(|i| bytes[(i % r) * c + i / r])
            .collect::<Vec<u8>>();
        let turned = Tensor::from_raw(tensor.dtype(), &[columns, rows], turned);
        let name = names.fresh(&format!("{}_transposed", model.value(weight.input).name));
        codes = model.add_initializer(graph, &name, turned);
    }
    // A zero point of one element says the same for all channels.
    let zero = one_zero_point(model, names, graph, weight, &zero)
        .unwrap_or(weight.zero_point.unwrap_or(codes));
    Ok(Weight {
        codes,
        zero,
        scales,
    })
}

/// Codes as uint8 with one zero point: onnxruntime's ConvInteger takes no other weights.
fn unsigned(
    model: &mut Model,
    names: &mut Names,
    node: NodeId,
    weight: &Qdq,
) -> Result<Weight, String> {
    let (tensor, zero, scales) = parts(model, weight)?;
    let graph = model.node(node).graph;
    if zero.iter().any(|z| *z != zero[0]) {
        return Err(
            "the integer operator takes one zero point for the whole weight: use symmetric weights"
                .to_owned(),
        );
    }
    if tensor.dtype() == DataType::Uint8 {
        let first = one_zero_point(model, names, graph, weight, &zero);
        let zero = first
            .or(weight.zero_point)
            .ok_or("its zero point is missing")?;
        return Ok(Weight {
            codes: weight.input,
            zero,
            scales,
        });
    }
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let shifted = bytes.iter().map(|b| b ^ 0x80).collect::<Vec<u8>>();
    let shifted = Tensor::from_raw(DataType::Uint8, tensor.dims(), shifted);
    let stem = model.value(weight.input).name.clone();
    let codes = model.add_initializer(graph, &names.fresh(&format!("{stem}_uint8")), shifted);
    let middle = (zero[0] + 128).clamp(0, 255) as u8;
    let zero = Tensor::from_raw(DataType::Uint8, &[], vec![middle]);
    let zero = model.add_initializer(
        graph,
        &names.fresh(&format!("{stem}_uint8_zero_point")),
        zero,
    );
    Ok(Weight {
        codes,
        zero,
        scales,
    })
}

type Parts = (Tensor, Vec<i64>, Vec<f32>);

fn parts(model: &Model, weight: &Qdq) -> Result<Parts, String> {
    let get = |v: ValueId| {
        model
            .constant(v)
            .cloned()
            .ok_or("its weight is computed at run time")
    };
    let zero = weight.zero_point.ok_or("its weight has no zero point")?;
    let zero = get(zero)?.to_i64().map_err(|e| e.to_string())?;
    let scales = get(weight.scale)?.to_f32().map_err(|e| e.to_string())?;
    Ok((get(weight.input)?, zero, scales))
}

/// One zero point in place of equal ones for all channels.
fn one_zero_point(
    model: &mut Model,
    names: &mut Names,
    graph: GraphId,
    weight: &Qdq,
    zero: &[i64],
) -> Option<ValueId> {
    let all = weight.zero_point?;
    if zero.len() == 1 || zero.iter().any(|z| *z != zero[0]) {
        return None;
    }
    let dtype = model.constant(all)?.dtype();
    let name = names.fresh(&format!("{}_one", model.value(all).name));
    let tensor = Tensor::from_raw(dtype, &[], vec![zero[0] as u8]);
    Some(model.add_initializer(graph, &name, tensor))
}
