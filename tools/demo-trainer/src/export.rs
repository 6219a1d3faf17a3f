//! The files: the network as ONNX, the images as `.npz`, the labels as `.npy`.
//!
//! Nothing in them depends on the time, the machine or the versions of other crates' defaults: a zip entry has the zip
//! format's first date, and the compressor is the one of pure integer arithmetic.

use crate::layers::{BatchNorm, Layer, Op};
use crate::render::{CLASSES, Dataset, PIXELS, SIDE};
use npyz::WriterBuilder;
use onnx_quant_proto::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto, type_proto,
};
use std::io;

/// The version of the ONNX operator set that the model uses.
const OPSET: i64 = 17;
/// The version of the ONNX file format, that of the release that brought the operator set.
const IR_VERSION: i64 = 8;
/// The name of the model's input, and of the array in the `.npz` files.
pub const INPUT: &str = "image";
/// The name of the model's output.
pub const OUTPUT: &str = "logits";

/// The model as the bytes of an ONNX file; batch normalizations are nodes of their own.
pub fn onnx(layers: &[Layer]) -> Vec<u8> {
    let mut graph = GraphProto {
        name: Some("demo".into()),
        input: vec![value_info(INPUT, &[1, SIDE, SIDE])],
        output: vec![value_info(OUTPUT, &[CLASSES])],
        ..GraphProto::default()
    };
    emit_all(layers, INPUT, &mut graph);
    if let Some(output) = graph
        .node
        .last_mut()
        .and_then(|node| node.output.first_mut())
    {
        *output = OUTPUT.into();
    }
    let opset = OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(OPSET),
    };
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: vec![opset],
        producer_name: Some("demo-trainer".into()),
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// Appends the nodes and weights of the layers; the name of the last output.
fn emit_all(layers: &[Layer], input: &str, graph: &mut GraphProto) -> String {
    layers
        .iter()
        .fold(input.to_owned(), |value, layer| emit(layer, value, graph))
}

fn emit(layer: &Layer, input: String, graph: &mut GraphProto) -> String {
    let mut inputs = vec![input];
    let mut weight = |part: &str, dims: &[usize], values: &[f32]| {
        let name = format!("{}.{part}", layer.name);
        graph.initializer.push(tensor(&name, dims, values));
        inputs.push(name);
    };
    let (op, attributes) = match &layer.op {
        Op::Conv(conv) => {
            weight(conv.weight.name, &conv.weight.dims, &conv.weight.value);
            let (side, pad) = (conv.kernel() as i64, (conv.kernel() / 2) as i64);
            let attributes = vec![
                ints("kernel_shape", &[side; 2]),
                ints("strides", &[conv.stride as i64; 2]),
                ints("pads", &[pad; 4]),
                int("group", conv.groups as i64),
            ];
            ("Conv", attributes)
        }
        Op::BatchNorm(norm) => {
            for param in [&norm.scale, &norm.bias] {
                weight(param.name, &param.dims, &param.value);
            }
            weight("mean", &norm.mean_dims(), &norm.mean);
            weight("variance", &norm.mean_dims(), &norm.variance);
            let epsilon = float("epsilon", BatchNorm::EPSILON);
            ("BatchNormalization", vec![epsilon])
        }
        Op::Activation(activation) => match activation.cap {
            None => ("Relu", Vec::new()),
            Some(cap) => {
                weight("min", &[], &[0.0]);
                weight("max", &[], &[cap]);
                ("Clip", Vec::new())
            }
        },
        Op::GlobalAveragePool(_) => ("GlobalAveragePool", Vec::new()),
        Op::Flatten => ("Flatten", vec![int("axis", 1)]),
        Op::Gemm(gemm) => {
            for param in [&gemm.weight, &gemm.bias] {
                weight(param.name, &param.dims, &param.value);
            }
            ("Gemm", vec![int("transB", 1)])
        }
        Op::Residual(inner) => {
            let through = emit_all(inner, &inputs[0], graph);
            inputs.push(through);
            ("Add", Vec::new())
        }
    };
    let output = format!("{}.out", layer.name);
    graph.node.push(NodeProto {
        name: Some(layer.name.clone()),
        op_type: Some(op.into()),
        input: inputs,
        output: vec![output.clone()],
        attribute: attributes,
        ..NodeProto::default()
    });
    output
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Float as i32),
        f: Some(value),
        ..AttributeProto::default()
    }
}

fn tensor(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.into()),
        dims: dims.iter().map(|d| *d as i64).collect(),
        data_type: Some(DataType::Float as i32),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

/// A float value of the shape `[batch, sizes…]`.
fn value_info(name: &str, sizes: &[usize]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let sizes = sizes.iter().map(|size| Value::DimValue(*size as i64));
    let values = std::iter::once(Value::DimParam("batch".into())).chain(sizes);
    let dim = values.map(|value| Dimension {
        value: Some(value),
        ..Dimension::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape: Some(TensorShapeProto { dim: dim.collect() }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// The images as an `.npz` file with one compressed array, float32 `[count, 1, SIDE, SIDE]`.
pub fn images(data: &Dataset) -> io::Result<Vec<u8>> {
    let shape = [data.images.len() / PIXELS, 1, SIDE, SIDE];
    let array = npy(&shape.map(|size| size as u64), &data.images)?;
    zip(&format!("{INPUT}.npy"), &array)
}

/// The labels as an `.npy` file, int64 `[count]`.
pub fn labels(data: &Dataset) -> io::Result<Vec<u8>> {
    let labels: Vec<i64> = data.labels.iter().map(|label| *label as i64).collect();
    npy(&[labels.len() as u64], &labels)
}

fn npy<T: npyz::AutoSerialize + Copy>(shape: &[u64], values: &[T]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(&mut bytes).begin_nd()?;
    writer.extend(values.iter().copied())?;
    writer.finish()?;
    Ok(bytes)
}

/// A zip archive of one deflated file, dated 1980-01-01 (APPNOTE.TXT sections 4.3.7, 4.3.12 and 4.3.16).
fn zip(name: &str, content: &[u8]) -> io::Result<Vec<u8>> {
    const BEST: u8 = 10;
    const MADE_BY: [u8; 2] = [20, 0];
    const FIRST_DATE: u32 = (1 << 5 | 1) << 16;
    let packed = miniz_oxide::deflate::compress_to_vec(content, BEST);
    let size = |len: usize| {
        u32::try_from(len).map(u32::to_le_bytes).map_err(|_| {
            io::Error::other(format!("{name}: too large for a zip archive of 32 bits"))
        })
    };
    let name_len = u16::try_from(name.len()).map_err(io::Error::other)?;
    // Version needed, flags, method (8 is deflate), date, checksum, sizes, lengths of the name and of the extra field.
    let mut entry = vec![20, 0, 0, 0, 8, 0];
    entry.extend(FIRST_DATE.to_le_bytes());
    entry.extend(crc32fast::hash(content).to_le_bytes());
    entry.extend(size(packed.len())?);
    entry.extend(size(content.len())?);
    entry.extend(name_len.to_le_bytes());
    entry.extend([0; 2]);

    let mut archive = b"PK\x03\x04".to_vec();
    archive.extend(&entry);
    archive.extend(name.as_bytes());
    archive.extend(packed);
    let directory = archive.len();
    archive.extend(b"PK\x01\x02");
    archive.extend(MADE_BY);
    archive.extend(&entry);
    // Comment length, disk, attributes, offset of the entry.
    archive.extend([0; 14]);
    archive.extend(name.as_bytes());
    let directory_len = archive.len() - directory;
    archive.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    archive.extend(size(directory_len)?);
    archive.extend(size(directory)?);
    archive.extend([0; 2]);
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::network;
    use crate::render::Split;
    use crate::rng::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn every_value_of_the_model_is_defined_once_and_before_its_use() {
        let bytes = onnx(&network(&mut Rng::new(1, 0)));
        let model = ModelProto::decode(bytes.as_slice()).expect("the model decodes");
        let graph = model.graph.expect("a graph");
        let mut defined = BTreeSet::from([INPUT.to_owned()]);
        for tensor in &graph.initializer {
            let len: i64 = tensor.dims.iter().product();
            assert_eq!(
                tensor.raw_data.as_ref().map(|raw| raw.len() as i64),
                Some(4 * len)
            );
            assert!(
                defined.insert(tensor.name().to_owned()),
                "{}",
                tensor.name()
            );
        }
        let mut operators = BTreeSet::new();
        for node in &graph.node {
            operators.insert(node.op_type().to_owned());
            assert!(
                node.input.iter().all(|name| defined.contains(name)),
                "{node:?}"
            );
            assert!(
                node.output.iter().all(|name| defined.insert(name.clone())),
                "{node:?}"
            );
        }
        assert!(defined.contains(OUTPUT));
        let expected = [
            "Add",
            "BatchNormalization",
            "Clip",
            "Conv",
            "Flatten",
            "Gemm",
            "GlobalAveragePool",
            "Relu",
        ];
        assert!(operators.iter().eq(expected), "{operators:?}");
    }

    #[test]
    fn archives_can_be_read_back() {
        let data = Dataset::render(Split::Eval, 0, 13);
        let bytes = images(&data).expect("images are written");
        let mut archive = npyz::npz::NpzArchive::new(io::Cursor::new(bytes)).expect("an archive");
        let array = archive
            .by_name(INPUT)
            .expect("a valid entry")
            .expect("the array");
        assert_eq!(array.shape(), [13, 1, SIDE as u64, SIDE as u64]);
        assert_eq!(array.into_vec::<f32>().expect("float32"), data.images);

        let bytes = labels(&data).expect("labels are written");
        let array = npyz::NpyFile::new(bytes.as_slice()).expect("an array");
        assert_eq!(
            array.into_vec::<i64>().expect("int64"),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
        );
    }
}
