//! Tensors to and from onnxruntime.

use half::{bf16, f16};
use onnx_quant_ir::{DataType, Tensor};
use ort::memory::Allocator;
use ort::tensor::{PrimitiveTensorElementType, TensorElementType};
use ort::value::{DynValue, Tensor as OrtTensor, ValueType};

/// A tensor as onnxruntime takes it.
pub(super) fn to_ort(allocator: &Allocator, tensor: &Tensor) -> Result<DynValue, String> {
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let dims = tensor.dims();
    macro_rules! whole {
        ($t:ty, $n:literal) => {
            owned::<$t>(
                allocator,
                dims,
                bytes
                    .as_chunks::<$n>()
                    .0
                    .iter()
                    .map(|b| <$t>::from_le_bytes(*b))
                    .collect(),
            )
        };
    }
    match tensor.dtype() {
        DataType::Float => whole!(f32, 4),
        DataType::Double => whole!(f64, 8),
        DataType::Float16 => whole!(f16, 2),
        DataType::Bfloat16 => whole!(bf16, 2),
        DataType::Int8 => whole!(i8, 1),
        DataType::Int16 => whole!(i16, 2),
        DataType::Int32 => whole!(i32, 4),
        DataType::Int64 => whole!(i64, 8),
        DataType::Uint8 => whole!(u8, 1),
        DataType::Uint16 => whole!(u16, 2),
        DataType::Uint32 => whole!(u32, 4),
        DataType::Uint64 => whole!(u64, 8),
        DataType::Bool => owned::<bool>(allocator, dims, bytes.iter().map(|&b| b != 0).collect()),
        other => Err(format!("{other:?} cannot be fed")),
    }
}

fn owned<T>(allocator: &Allocator, dims: &[i64], data: Vec<T>) -> Result<DynValue, String>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    let value = if data.is_empty() {
        OrtTensor::<T>::new(allocator, dims)
    } else {
        OrtTensor::<T>::from_array((dims.to_vec(), data))
    };
    value.map(|v| v.into_dyn()).map_err(|e| e.to_string())
}

/// A tensor that onnxruntime made.
pub(super) fn from_ort(value: &DynValue) -> Result<Tensor, String> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err("it is no tensor".to_owned());
    };
    let dims: Vec<i64> = shape.to_vec();
    let dtype = match ty {
        TensorElementType::Float32 => DataType::Float,
        TensorElementType::Float64 => DataType::Double,
        TensorElementType::Float16 => DataType::Float16,
        TensorElementType::Bfloat16 => DataType::Bfloat16,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Bool => DataType::Bool,
        other => return Err(format!("its type {other} cannot be read")),
    };
    if dims.contains(&0) {
        return Ok(Tensor::from_raw(dtype, &dims, Vec::new()));
    }
    macro_rules! whole {
        ($t:ty) => {
            value.try_extract_tensor::<$t>().map(|(_, data)| {
                data.iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<u8>>()
            })
        };
    }
    let bytes = match dtype {
        DataType::Float => whole!(f32),
        DataType::Double => whole!(f64),
        DataType::Float16 => whole!(f16),
        DataType::Bfloat16 => whole!(bf16),
        DataType::Int8 => whole!(i8),
        DataType::Int16 => whole!(i16),
        DataType::Int32 => whole!(i32),
        DataType::Int64 => whole!(i64),
        DataType::Uint8 => whole!(u8),
        DataType::Uint16 => whole!(u16),
        DataType::Uint32 => whole!(u32),
        DataType::Uint64 => whole!(u64),
        _ => value
            .try_extract_tensor::<bool>()
            .map(|(_, data)| data.iter().map(|&b| u8::from(b)).collect()),
    };
    let bytes = bytes.map_err(|e| e.to_string())?;
    Ok(Tensor::from_raw(dtype, &dims, bytes))
}
