//! Types and declared values as text.

use onnx_quant_proto::{Message, TensorShapeProto, TypeProto, ValueInfoProto};
use onnx_quant_proto::{tensor_shape_proto::dimension, type_proto};

use super::Print;
use super::names::{element_name, hex, name, quoted};

/// A type: `float[N,3]`, `float` for a scalar, `float[]` for an unknown rank, `seq(T)`, `map(int64, T)` …
pub(super) fn print(ty: &TypeProto) -> String {
    if has_denotation(ty) {
        return blob(ty);
    }
    let inner = |t: &Option<Box<TypeProto>>| t.as_deref().map_or_else(String::new, print);
    match &ty.value {
        None => "unknown".to_owned(),
        Some(type_proto::Value::TensorType(t)) => tensor(t.elem_type(), t.shape.as_ref()),
        Some(type_proto::Value::SparseTensorType(t)) => {
            format!("sparse_tensor({})", tensor(t.elem_type(), t.shape.as_ref()))
        }
        Some(type_proto::Value::SequenceType(s)) => format!("seq({})", inner(&s.elem_type)),
        Some(type_proto::Value::OptionalType(o)) => format!("optional({})", inner(&o.elem_type)),
        Some(type_proto::Value::MapType(m)) => {
            let key = element_name(m.key_type());
            format!("map({key}, {})", inner(&m.value_type))
        }
        Some(type_proto::Value::OpaqueType(o)) => format!(
            "opaque({}, {})",
            quoted(o.domain().as_bytes()),
            quoted(o.name().as_bytes())
        ),
    }
}

fn has_denotation(ty: &TypeProto) -> bool {
    let shape = match &ty.value {
        Some(type_proto::Value::TensorType(t)) => t.shape.as_ref(),
        Some(type_proto::Value::SparseTensorType(t)) => t.shape.as_ref(),
        _ => None,
    };
    ty.denotation.is_some() || shape.is_some_and(|s| s.dim.iter().any(|d| d.denotation.is_some()))
}

fn tensor(element: i32, shape: Option<&TensorShapeProto>) -> String {
    let element = element_name(element);
    match shape {
        None => format!("{element}[]"),
        Some(s) if s.dim.is_empty() => element,
        Some(s) => {
            let dims = s.dim.iter().map(|d| match &d.value {
                None => "?".to_owned(),
                Some(dimension::Value::DimValue(v)) => v.to_string(),
                Some(dimension::Value::DimParam(p)) => name(p),
            });
            format!("{element}[{}]", dims.collect::<Vec<_>>().join(","))
        }
    }
}

/// The type of a tensor with a known shape.
pub(super) fn constant(element: i32, dims: &[i64]) -> String {
    let element = element_name(element);
    if dims.is_empty() {
        return element;
    }
    let dims: Vec<String> = dims.iter().map(i64::to_string).collect();
    format!("{element}[{}]", dims.join(","))
}

/// A declared value: type and name.
pub(super) fn declaration(info: &ValueInfoProto, level: Print) -> String {
    let mut out = match &info.r#type {
        Some(t) => format!("{} {}", print(t), name(info.name())),
        None => name(info.name()),
    };
    let rest = ValueInfoProto {
        name: None,
        r#type: None,
        ..info.clone()
    };
    out.push_str(&residue(&rest, level));
    out
}

/// What has no syntax of its own, with a space before; nothing where nothing is left, and nothing in a summary.
pub(super) fn residue<M: Message + Default + PartialEq>(message: &M, level: Print) -> String {
    if level == Print::Summary || *message == M::default() {
        return String::new();
    }
    format!(" {}", blob(message))
}

/// An encoded message.
pub(super) fn blob(message: &impl Message) -> String {
    format!("$\"{}\"", hex(&message.encode_to_vec()))
}
