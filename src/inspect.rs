//! What a model is: signature, operators, parameters, and how it is quantized.

use std::collections::BTreeMap;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::proto::{tensor_shape_proto::dimension, type_proto};
use onnx_quant_ir::{DataType, Model, NodeId, ValueId};
use onnx_quant_passes::{codebook, matmul_nbits, qdq};
use serde::Serialize;

use crate::metadata::Metadata;

/// The description of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The file.
    pub file: String,
    /// Bytes of the file, and of its external data.
    pub file_bytes: u64,
    /// Bytes of external data that the model uses.
    pub external_bytes: u64,
    /// IR version.
    pub ir_version: i64,
    /// Versions of the operator sets by domain.
    pub opsets: BTreeMap<String, i64>,
    /// What wrote the file.
    pub producer: String,
    /// How it was quantized, as it says itself.
    pub metadata: Option<Metadata>,
    /// Inputs of the signature.
    pub inputs: Vec<Port>,
    /// Outputs of the signature.
    pub outputs: Vec<Port>,
    /// Number of nodes, of all graphs.
    pub nodes: usize,
    /// Number of subgraphs.
    pub subgraphs: usize,
    /// Number of model-local functions.
    pub functions: usize,
    /// Nodes by operator type.
    pub operators: BTreeMap<String, usize>,
    /// Values that the initializers hold.
    pub parameters: u64,
    /// Values and bytes of the initializers by type.
    pub initializers: BTreeMap<String, Stored>,
    /// How it is quantized; absent for a float model.
    pub quantization: Option<Quantization>,
}

/// An input or output.
#[derive(Debug, Clone, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: String,
    /// Its shape; free axes by name or as `?`. Absent where no rank is declared.
    pub shape: Option<Vec<String>>,
    /// An initializer of the same name is its default.
    pub has_default: bool,
}

/// Values and their bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stored {
    /// Tensors.
    pub tensors: u64,
    /// Values.
    pub values: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How a model is quantized.
#[derive(Debug, Clone, Serialize)]
pub struct Quantization {
    /// Weights.
    pub weights: Vec<WeightInfo>,
    /// Activations.
    pub activations: Vec<ActivationInfo>,
    /// Bits for each quantized weight, scales and zero points counted; absent where no weight is quantized.
    pub effective_bits: Option<f64>,
}

/// A weight that is stored as codes.
#[derive(Debug, Clone, Serialize)]
pub struct WeightInfo {
    /// Name of the initializer of codes.
    pub name: String,
    /// Type of the codes.
    #[serde(serialize_with = "short_name")]
    pub dtype: DataType,
    /// The format, where the codes are packed indices into a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexed: Option<String>,
    /// Shape.
    pub shape: Vec<i64>,
    /// Number of scales.
    pub scales: u64,
    /// Axis of the scales, where there are several.
    pub axis: Option<i64>,
    /// Values.
    pub values: u64,
    /// Bits of codes, scales and zero points.
    pub stored_bits: u64,
}

/// An activation that is quantized.
#[derive(Debug, Clone, Serialize)]
pub struct ActivationInfo {
    /// Name of the value.
    pub name: String,
    /// Type of the codes.
    pub dtype: String,
    /// Its scale, where there is one and it is constant.
    pub scale: Option<f32>,
    /// Its zero point.
    pub zero_point: Option<i64>,
}

fn short_name<S: serde::Serializer>(dtype: &DataType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(dtype.short_name())
}

/// Describes a model; `file` and `file_bytes` are what the caller read.
pub fn inspect(model: &Model, file: &str, file_bytes: u64) -> Inspection {
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    for node in model.all_nodes() {
        let n = model.node(node);
        let name = match n.domain() {
            "" => n.op_type().to_owned(),
            d => format!("{d}.{}", n.op_type()),
        };
        *operators.entry(name).or_default() += 1;
    }
    let mut initializers: BTreeMap<String, Stored> = BTreeMap::new();
    let mut external_bytes = 0;
    for v in model.all_values() {
        let Some(t) = &model.value(v).init else {
            continue;
        };
        let bytes = t.byte_len().unwrap_or(0) as u64;
        let entry = initializers
            .entry(t.dtype().short_name().to_owned())
            .or_default();
        entry.tensors += 1;
        entry.values += t.element_count().unwrap_or(0) as u64;
        entry.bytes += bytes;
        if t.is_external() {
            external_bytes += bytes;
        }
    }
    let port = |&v: &ValueId| port(model, v);
    let opset = |o: &onnx_quant_ir::proto::OperatorSetIdProto| {
        let domain = match o.domain() {
            "" => "ai.onnx",
            d => d,
        };
        (domain.to_owned(), o.version())
    };
    Inspection {
        file: file.to_owned(),
        file_bytes,
        external_bytes,
        ir_version: model.header.ir_version(),
        opsets: model.header.opset_import.iter().map(opset).collect(),
        producer: [
            model.header.producer_name(),
            model.header.producer_version(),
        ]
        .join(" ")
        .trim()
        .to_owned(),
        metadata: Metadata::of(model),
        inputs: model.main().inputs.iter().map(port).collect(),
        outputs: model.main().outputs.iter().map(port).collect(),
        nodes: model.all_nodes().len(),
        subgraphs: model.graph_ids().len() - 1,
        functions: model.header.functions.len(),
        operators,
        parameters: initializers.values().map(|s| s.values).sum(),
        initializers,
        quantization: quantization(model),
    }
}

fn port(model: &Model, value: ValueId) -> Port {
    let v = model.value(value);
    let ty = v.ty().and_then(|t| t.value.as_ref());
    let shape = match ty {
        Some(type_proto::Value::TensorType(t)) => t.shape.as_ref().map(|s| {
            s.dim
                .iter()
                .map(|d| match &d.value {
                    Some(dimension::Value::DimValue(n)) => n.to_string(),
                    Some(dimension::Value::DimParam(p)) if !p.is_empty() => p.clone(),
                    _ => "?".to_owned(),
                })
                .collect()
        }),
        _ => None,
    };
    let dtype = match (v.dtype(), ty) {
        (Some(d), _) => d.short_name().to_owned(),
        (None, Some(type_proto::Value::SequenceType(_))) => "sequence".to_owned(),
        (None, Some(type_proto::Value::OptionalType(_))) => "optional".to_owned(),
        (None, Some(type_proto::Value::MapType(_))) => "map".to_owned(),
        _ => "unknown".to_owned(),
    };
    Port {
        name: v.name.clone(),
        dtype,
        shape,
        has_default: v.init.is_some(),
    }
}

/// The initializers that are read by a DequantizeLinear, directly or through a Gather, each once; and those of packed
/// indices.
pub fn quantized_weights(model: &Model) -> Vec<WeightInfo> {
    let mut found: Vec<WeightInfo> = Vec::new();
    for node in model.all_nodes() {
        let Some(d) = qdq::dequantize(model, node) else {
            continue;
        };
        let gathered = model
            .producer(d.input)
            .filter(|(n, _)| model.node(*n).is("Gather"))
            .and_then(|(n, _)| model.input(n, 0));
        let source = gathered.unwrap_or(d.input);
        if makes_scales(model, d.output) {
            continue;
        }
        let scale_parts = constants_behind(model, d.scale);
        let (Some(codes), Some(scale)) = (model.constant(source), scale_parts.first()) else {
            continue;
        };
        let name = &model.value(source).name;
        if found.iter().any(|w| w.name == *name) {
            continue;
        }
        let zero = d.zero_point.map(|z| constants_behind(model, z));
        let bits = |t: &onnx_quant_ir::Tensor| t.byte_len().unwrap_or(0) as u64 * 8;
        let scales = scale.element_count().unwrap_or(0) as u64;
        found.push(WeightInfo {
            name: name.clone(),
            dtype: codes.dtype(),
            indexed: None,
            shape: codes.dims().to_vec(),
            scales,
            axis: (scales > 1).then_some(d.axis),
            values: codes.element_count().unwrap_or(0) as u64,
            stored_bits: bits(codes)
                + scale_parts
                    .into_iter()
                    .chain(zero.into_iter().flatten())
                    .map(bits)
                    .sum::<u64>(),
        });
    }
    found.extend(
        model
            .all_nodes()
            .into_iter()
            .filter_map(|n| nbits(model, n)),
    );
    found.extend(codebook::read::find(model).into_iter().map(|w| WeightInfo {
        name: model.value(w.packed).name.clone(),
        dtype: DataType::Uint8,
        indexed: Some(w.format()),
        scales: w.groups,
        axis: None,
        values: w.values(),
        stored_bits: w.stored_bits,
        shape: w.dims,
    }));
    found
}

/// The weight of a MatMulNBits.
fn nbits(model: &Model, node: NodeId) -> Option<WeightInfo> {
    let n = model.node(node);
    if n.op_type() != "MatMulNBits" || n.domain() != matmul_nbits::DOMAIN {
        return None;
    }
    let size = |name: &str| u64::try_from(n.attr_i(name)?).ok();
    let (k, columns) = (size("K")?, size("N")?);
    let parts = (1..4).filter_map(|slot| model.input_constant(node, slot));
    Some(WeightInfo {
        name: model.value(model.input(node, 1)?).name.clone(),
        dtype: DataType::Uint8,
        indexed: Some(format!("nbits{}", size("bits")?)),
        shape: vec![k as i64, columns as i64],
        scales: model.input_constant(node, 2)?.element_count().ok()? as u64,
        axis: None,
        values: k.checked_mul(columns)?,
        stored_bits: parts.map(|t| t.byte_len().unwrap_or(0) as u64 * 8).sum(),
    })
}

/// Whether a value is the scale of a DequantizeLinear: a scale that is stored as codes itself.
fn makes_scales(model: &Model, value: ValueId) -> bool {
    let mut uses = model.consumers(value).into_iter();
    uses.any(|(n, slot)| slot == 1 && qdq::dequantize(model, n).is_some())
}

/// The constants that scales are made of: one, or codes with the scales of their own; rows of them are looked up.
fn constants_behind(model: &Model, value: ValueId) -> Vec<&onnx_quant_ir::Tensor> {
    if let Some(tensor) = model.constant(value) {
        return vec![tensor];
    }
    let Some((node, _)) = model.producer(value) else {
        return Vec::new();
    };
    if model.node(node).is("Gather") {
        let table = model.input(node, 0);
        return table.map_or_else(Vec::new, |t| constants_behind(model, t));
    }
    if !model.node(node).is("Cast") && qdq::dequantize(model, node).is_none() {
        return Vec::new();
    }
    let inputs = model.inputs(node).into_iter().flatten();
    let parts: Vec<_> = inputs.map(|v| constants_behind(model, v)).collect();
    match parts.iter().all(|p| !p.is_empty()) {
        true => parts.concat(),
        false => Vec::new(),
    }
}

fn quantization(model: &Model) -> Option<Quantization> {
    let weights = quantized_weights(model);
    let mut activations = Vec::new();
    for node in model.all_nodes() {
        let Some(q) = qdq::quantize(model, node) else {
            continue;
        };
        let zero = q.zero_point.and_then(|z| model.constant(z));
        activations.push(ActivationInfo {
            name: model.value(q.input).name.clone(),
            dtype: zero.map_or("u8", |z| z.dtype().short_name()).to_owned(),
            scale: qdq::scalar_scale(model, &q),
            zero_point: zero.and_then(onnx_quant_ir::Tensor::scalar_i64),
        });
    }
    crate::pipeline::already_quantized(model)?;
    let coded = || weights.iter().filter(|w| w.dtype != DataType::Int32);
    let values: u64 = coded().map(|w| w.values).sum();
    let bits: u64 = coded().map(|w| w.stored_bits).sum();
    Some(Quantization {
        effective_bits: (values > 0).then(|| bits as f64 / values as f64),
        weights,
        activations,
    })
}
