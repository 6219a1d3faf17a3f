//! Weights and constants: a `TensorProto` behind a shared pointer, with typed views of its elements.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use onnx_quant_proto::{TensorProto, tensor_proto};

use crate::dtype::{DataType, DataTypeExt};

/// Why a tensor cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The type number is not one of the standard's.
    #[error("data type {0} is not one of the ONNX standard's")]
    UnknownType(i32),
    /// A dimension is negative, or the product of the dimensions overflows.
    #[error("shape {0:?} is not a valid tensor shape")]
    Shape(Vec<i64>),
    /// The data is shorter or longer than the shape and type ask for.
    #[error("data holds {found} {unit}, but shape {dims:?} of {dtype} needs {needed}")]
    Length {
        /// What was stored.
        found: usize,
        /// What the shape needs.
        needed: usize,
        /// Bytes or elements.
        unit: &'static str,
        /// The shape.
        dims: Vec<i64>,
        /// Short name of the type.
        dtype: &'static str,
    },
    /// The data stands in a field that does not belong to the type.
    #[error("{dtype} data stands in the field `{field}`, which does not hold that type")]
    Field {
        /// Short name of the type.
        dtype: &'static str,
        /// The field of `TensorProto` that is filled.
        field: &'static str,
    },
    /// The tensor has another type than the operation needs.
    #[error("a tensor of type {found} stands where {needed} is needed")]
    Type {
        /// Short name of the type found.
        found: &'static str,
        /// What was asked for.
        needed: &'static str,
    },
    /// The data is kept in an external file that was not mapped.
    #[error("the external data of this tensor is not loaded")]
    NotLoaded,
}

/// A constant tensor. Cloning shares the data.
#[derive(Debug, Clone)]
pub struct Tensor {
    proto: Arc<TensorProto>,
    external: Option<Bytes>,
}

impl Tensor {
    /// Wraps a tensor as it stands in a file. The name is the value's affair and is kept only for attributes.
    pub fn from_proto(proto: TensorProto) -> Self {
        Self {
            proto: Arc::new(proto),
            external: None,
        }
    }

    /// The same tensor with its external bytes (the exact range that the file declares).
    pub fn with_external(proto: TensorProto, data: Bytes) -> Self {
        Self {
            proto: Arc::new(proto),
            external: Some(data),
        }
    }

    /// A tensor from raw little-endian bytes (packed for types under 8 bits, first element in the low bits).
    pub fn from_raw(dtype: DataType, dims: &[i64], data: impl Into<Bytes>) -> Self {
        Self::from_proto(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(dtype as i32),
            raw_data: Some(data.into()),
            ..TensorProto::default()
        })
    }

    /// An FP32 tensor.
    pub fn from_f32(dims: &[i64], data: &[f32]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_raw(DataType::Float, dims, bytes)
    }

    /// A float tensor of the given type (`f32`, `f16`, `bf16` or `f64`), rounded from FP32.
    ///
    /// # Errors
    /// [`TensorError::Type`] for any other type.
    pub fn from_f32_as(dtype: DataType, dims: &[i64], data: &[f32]) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = match dtype {
            DataType::Float => return Ok(Self::from_f32(dims, data)),
            DataType::Float16 => data
                .iter()
                .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                .collect(),
            DataType::Bfloat16 => data
                .iter()
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect(),
            DataType::Double => data
                .iter()
                .flat_map(|&x| f64::from(x).to_le_bytes())
                .collect(),
            other => {
                return Err(TensorError::Type {
                    found: other.short_name(),
                    needed: "a float type",
                });
            }
        };
        Ok(Self::from_raw(dtype, dims, bytes))
    }

    /// An INT64 tensor.
    pub fn from_i64(dims: &[i64], data: &[i64]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_raw(DataType::Int64, dims, bytes)
    }

    /// An INT32 tensor.
    pub fn from_i32(dims: &[i64], data: &[i32]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_raw(DataType::Int32, dims, bytes)
    }

    /// The storage type.
    pub fn dtype(&self) -> DataType {
        DataType::try_from(self.proto.data_type()).unwrap_or(DataType::Undefined)
    }

    /// The shape as stored.
    pub fn dims(&self) -> &[i64] {
        &self.proto.dims
    }

    /// Number of elements.
    ///
    /// # Errors
    /// [`TensorError::Shape`] for a negative dimension or an overflow.
    pub fn element_count(&self) -> Result<usize, TensorError> {
        self.dims()
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
            .ok_or_else(|| TensorError::Shape(self.dims().to_vec()))
    }

    /// Bytes that the elements take when packed as the standard says.
    ///
    /// # Errors
    /// As [`Self::element_count`], and for strings and unknown types.
    pub fn byte_len(&self) -> Result<usize, TensorError> {
        let bits = self.known_type()?.bits().ok_or(TensorError::Type {
            found: "string",
            needed: "a numeric type",
        })?;
        let bits = self
            .element_count()?
            .checked_mul(bits)
            .ok_or_else(|| TensorError::Shape(self.dims().to_vec()))?;
        Ok(bits.div_ceil(8))
    }

    /// The tensor as the file stores it (without the external bytes).
    pub fn proto(&self) -> &TensorProto {
        &self.proto
    }

    /// The mapped external bytes, where the data lies outside the file.
    pub fn external(&self) -> Option<&Bytes> {
        self.external.as_ref()
    }

    /// Whether the file says that the data lies outside it.
    pub fn is_external(&self) -> bool {
        self.proto.data_location() == tensor_proto::DataLocation::External
    }

    /// Checks type, shape and length of the data without converting it.
    ///
    /// # Errors
    /// What is wrong with the tensor.
    pub fn validate(&self) -> Result<(), TensorError> {
        if self.known_type()? == DataType::String {
            let needed = self.element_count()?;
            return self.check_len(self.proto.string_data.len(), needed, "strings");
        }
        if let Some(raw) = self.raw() {
            return self.check_len(raw.len(), self.byte_len()?, "bytes");
        }
        if self.is_external() {
            return Err(TensorError::NotLoaded);
        }
        self.typed_fields().map(drop)
    }

    /// The elements as raw little-endian bytes, packed for types under 8 bits; borrowed where the file stores them so.
    ///
    /// # Errors
    /// What is wrong with the tensor.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, TensorError> {
        if let Some(raw) = self.raw() {
            self.check_len(raw.len(), self.byte_len()?, "bytes")?;
            return Ok(Cow::Borrowed(raw));
        }
        if self.is_external() {
            return Err(TensorError::NotLoaded);
        }
        self.typed_fields().map(Cow::Owned)
    }

    /// The elements as shared bytes; no copy where the file stores raw data.
    ///
    /// # Errors
    /// What is wrong with the tensor.
    pub fn shared_bytes(&self) -> Result<Bytes, TensorError> {
        if let Some(raw) = self.raw() {
            self.check_len(raw.len(), self.byte_len()?, "bytes")?;
            return Ok(raw.clone());
        }
        if self.is_external() {
            return Err(TensorError::NotLoaded);
        }
        self.typed_fields().map(Bytes::from)
    }

    /// The elements as FP32; exact for `f16` and `bf16`, rounded from `f64`.
    ///
    /// # Errors
    /// [`TensorError::Type`] unless the tensor is one of those types, and what is wrong with its data.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        let dtype = self.known_type()?;
        let bytes = self.bytes()?;
        Ok(match dtype {
            DataType::Float => cast(&bytes, f32::from_le_bytes),
            DataType::Float16 => cast(&bytes, |b| f16::from_le_bytes(b).to_f32()),
            DataType::Bfloat16 => cast(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
            DataType::Double => cast(&bytes, |b| f64::from_le_bytes(b) as f32),
            other => {
                return Err(TensorError::Type {
                    found: other.short_name(),
                    needed: "a float type",
                });
            }
        })
    }

    /// The elements as INT64, from any integer type of 8 to 64 bits or from bool.
    ///
    /// # Errors
    /// [`TensorError::Type`] for any other type, and what is wrong with the data.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        let dtype = self.known_type()?;
        let bytes = self.bytes()?;
        Ok(match dtype {
            DataType::Int64 => cast(&bytes, i64::from_le_bytes),
            DataType::Int32 => cast(&bytes, |b| i64::from(i32::from_le_bytes(b))),
            DataType::Int16 => cast(&bytes, |b| i64::from(i16::from_le_bytes(b))),
            DataType::Int8 => cast(&bytes, |b: [u8; 1]| i64::from(b[0] as i8)),
            DataType::Uint8 | DataType::Bool => cast(&bytes, |b: [u8; 1]| i64::from(b[0])),
            DataType::Uint16 => cast(&bytes, |b| i64::from(u16::from_le_bytes(b))),
            DataType::Uint32 => cast(&bytes, |b| i64::from(u32::from_le_bytes(b))),
            DataType::Uint64 => cast(&bytes, |b| u64::from_le_bytes(b) as i64),
            other => {
                return Err(TensorError::Type {
                    found: other.short_name(),
                    needed: "an integer type",
                });
            }
        })
    }

    /// The only element of a one-element float tensor.
    pub fn scalar_f32(&self) -> Option<f32> {
        match self.to_f32().ok()?.as_slice() {
            [x] => Some(*x),
            _ => None,
        }
    }

    /// The only element of a one-element integer tensor.
    pub fn scalar_i64(&self) -> Option<i64> {
        match self.to_i64().ok()?.as_slice() {
            [x] => Some(*x),
            _ => None,
        }
    }

    fn known_type(&self) -> Result<DataType, TensorError> {
        let number = self.proto.data_type();
        DataType::from_number(number).ok_or(TensorError::UnknownType(number))
    }

    fn raw(&self) -> Option<&Bytes> {
        self.external.as_ref().or(self.proto.raw_data.as_ref())
    }

    fn check_len(
        &self,
        found: usize,
        needed: usize,
        unit: &'static str,
    ) -> Result<(), TensorError> {
        if found == needed {
            return Ok(());
        }
        Err(TensorError::Length {
            found,
            needed,
            unit,
            dims: self.dims().to_vec(),
            dtype: self.dtype().short_name(),
        })
    }

    /// Raw bytes of data that stands in the typed fields (`float_data`, `int32_data` …), by the standard's table.
    fn typed_fields(&self) -> Result<Vec<u8>, TensorError> {
        let dtype = self.known_type()?;
        let needed = self.element_count()?;
        let p = &*self.proto;
        let fields = [
            ("float_data", p.float_data.len()),
            ("int32_data", p.int32_data.len()),
            ("int64_data", p.int64_data.len()),
            ("double_data", p.double_data.len()),
            ("uint64_data", p.uint64_data.len()),
            ("string_data", p.string_data.len()),
        ];
        let home = match dtype {
            DataType::Float | DataType::Complex64 => "float_data",
            DataType::Double | DataType::Complex128 => "double_data",
            DataType::Int64 => "int64_data",
            DataType::Uint32 | DataType::Uint64 => "uint64_data",
            DataType::String => "string_data",
            _ => "int32_data",
        };
        if let Some((field, _)) = fields.iter().find(|(f, n)| *n > 0 && *f != home) {
            return Err(TensorError::Field {
                dtype: dtype.short_name(),
                field,
            });
        }
        let elements = match dtype {
            DataType::Complex64 | DataType::Complex128 => needed
                .checked_mul(2)
                .ok_or_else(|| TensorError::Shape(self.dims().to_vec()))?,
            _ if dtype.bits().is_some_and(|b| b < 8) => self.byte_len()?,
            _ => needed,
        };
        let found = fields
            .iter()
            .find(|(f, _)| *f == home)
            .map_or(0, |(_, n)| *n);
        self.check_len(found, elements, "elements")?;
        Ok(match dtype {
            DataType::Float | DataType::Complex64 => spread(&p.float_data, |x| x.to_le_bytes()),
            DataType::Double | DataType::Complex128 => spread(&p.double_data, |x| x.to_le_bytes()),
            DataType::Int64 => spread(&p.int64_data, |x| x.to_le_bytes()),
            DataType::Uint64 => spread(&p.uint64_data, |x| x.to_le_bytes()),
            DataType::Uint32 => spread(&p.uint64_data, |x| (x as u32).to_le_bytes()),
            DataType::Int32 => spread(&p.int32_data, |x| x.to_le_bytes()),
            _ if dtype.bits() == Some(16) => spread(&p.int32_data, |x| (x as u16).to_le_bytes()),
            _ => spread(&p.int32_data, |x| [x as u8]),
        })
    }
}

fn cast<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
}

fn spread<T: Copy, const N: usize>(data: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    data.iter().flat_map(|&x| f(x)).collect()
}
