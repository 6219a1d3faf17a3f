//! Types.

use onnx_quant_proto::tensor_shape_proto::{Dimension, dimension};
use onnx_quant_proto::{TensorShapeProto, TypeProto, type_proto};

use super::super::lex::Kind;
use super::super::names;
use super::{Parsed, Parser};

impl Parser {
    /// Whether a type stands here.
    pub(super) fn at_type(&self) -> bool {
        match self.peek() {
            Kind::Word(w) => names::is_type_word(w),
            Kind::Sign('$') => true,
            _ => false,
        }
    }

    /// A type.
    pub(super) fn ty(&mut self) -> Parsed<TypeProto> {
        self.deeper(|p| {
            let mut out = TypeProto::default();
            if *p.peek() == Kind::Sign('$') {
                p.residue(&mut out)?;
                return Ok(out);
            }
            let word = p.name()?;
            out.value = match word.as_str() {
                "unknown" => None,
                "seq" => Some(type_proto::Value::SequenceType(Box::new(
                    type_proto::Sequence {
                        elem_type: p.inner()?,
                    },
                ))),
                "optional" => Some(type_proto::Value::OptionalType(Box::new(
                    type_proto::Optional {
                        elem_type: p.inner()?,
                    },
                ))),
                "sparse_tensor" => {
                    p.expect('(')?;
                    let word = p.name()?;
                    let (elem_type, shape) = p.tensor_type(&word)?;
                    p.expect(')')?;
                    Some(type_proto::Value::SparseTensorType(
                        type_proto::SparseTensor { elem_type, shape },
                    ))
                }
                "map" => Some(p.map()?),
                "opaque" => {
                    p.expect('(')?;
                    let domain = Some(p.string()?);
                    p.expect(',')?;
                    let name = Some(p.string()?);
                    p.expect(')')?;
                    Some(type_proto::Value::OpaqueType(type_proto::Opaque {
                        domain,
                        name,
                    }))
                }
                _ => {
                    let (elem_type, shape) = p.tensor_type(&word)?;
                    Some(type_proto::Value::TensorType(type_proto::Tensor {
                        elem_type,
                        shape,
                    }))
                }
            };
            Ok(out)
        })
    }

    fn inner(&mut self) -> Parsed<Option<Box<TypeProto>>> {
        self.expect('(')?;
        if self.take(')') {
            return Ok(None);
        }
        let inner = self.ty()?;
        self.expect(')')?;
        Ok(Some(Box::new(inner)))
    }

    fn map(&mut self) -> Parsed<type_proto::Value> {
        self.expect('(')?;
        let key = self.name()?;
        let Some(key_type) = names::element_number(&key) else {
            return self.error_before(format!("`{key}` is not an element type"));
        };
        self.expect(',')?;
        let value_type = match self.peek() {
            Kind::Sign(')') => None,
            _ => Some(Box::new(self.ty()?)),
        };
        self.expect(')')?;
        Ok(type_proto::Value::MapType(Box::new(type_proto::Map {
            key_type: Some(key_type),
            value_type,
        })))
    }

    fn tensor_type(&mut self, word: &str) -> Parsed<(Option<i32>, Option<TensorShapeProto>)> {
        let Some(element) = names::element_number(word) else {
            return self.error_before(format!("`{word}` is not an element type"));
        };
        if !self.take('[') {
            return Ok((Some(element), Some(TensorShapeProto::default())));
        }
        let dim = self.list(']', |p| {
            let value = match p.peek() {
                Kind::Sign('?') => {
                    p.next();
                    None
                }
                Kind::Number(_) => Some(dimension::Value::DimValue(p.integer()?)),
                _ => Some(dimension::Value::DimParam(p.name()?)),
            };
            Ok(Dimension {
                denotation: None,
                value,
            })
        })?;
        let shape = (!dim.is_empty()).then_some(TensorShapeProto { dim });
        Ok((Some(element), shape))
    }
}

/// Element type and shape of a type that an initializer can have.
pub(super) fn constant_shape(ty: &TypeProto) -> Option<(i32, Vec<i64>)> {
    let Some(type_proto::Value::TensorType(t)) = &ty.value else {
        return None;
    };
    let dims = t.shape.as_ref()?.dim.iter().map(|d| match d.value {
        Some(dimension::Value::DimValue(v)) => Some(v),
        _ => None,
    });
    Some((t.elem_type(), dims.collect::<Option<_>>()?))
}
