//! Element storage: numbers for arithmetic, bytes for what only moves elements.

use std::borrow::Cow;

use half::{bf16, f16};
use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor, TensorError};

use super::{Ctx, EvalError, dims_of, shape, stored};

/// Why numbers cannot be read or stored.
#[derive(Debug)]
pub(super) enum NumError {
    /// The type has no arithmetic here.
    Type(DataType),
    /// A float has no counterpart in the integer type.
    Range,
    /// The tensor is damaged.
    Tensor(TensorError),
}

/// The elements of a tensor as numbers. Integers of all widths share one type, so that no operation overflows before
/// the result is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Nums {
    /// Integers and booleans (0 and 1).
    Int(Vec<i128>),
    /// `f32`, `f16`, `bf16`.
    F32(Vec<f32>),
    /// `f64`.
    F64(Vec<f64>),
}

impl Nums {
    pub(super) fn read(t: &Tensor) -> Result<Self, NumError> {
        let dtype = t.dtype();
        let tensor = NumError::Tensor;
        match dtype {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 => {
                Ok(Self::F32(t.to_f32().map_err(tensor)?))
            }
            DataType::Double => {
                let bytes = t.bytes().map_err(tensor)?;
                let all = bytes.as_chunks::<8>().0;
                Ok(Self::F64(
                    all.iter().map(|&b| f64::from_le_bytes(b)).collect(),
                ))
            }
            DataType::Uint64 => {
                let all = t.to_i64().map_err(tensor)?;
                Ok(Self::Int(
                    all.into_iter().map(|x| i128::from(x as u64)).collect(),
                ))
            }
            _ if number_type(dtype) => {
                let all = t.to_i64().map_err(tensor)?;
                Ok(Self::Int(all.into_iter().map(i128::from).collect()))
            }
            _ => Err(NumError::Type(dtype)),
        }
    }

    /// Stores the numbers as elements of `dtype`: integers wrap, floats round to nearest even, floats become integers
    /// by truncation.
    pub(super) fn write(&self, dtype: DataType, dims: &[usize]) -> Result<Tensor, NumError> {
        if !number_type(dtype) {
            return Err(NumError::Type(dtype));
        }
        let bytes = match dtype {
            DataType::Float => self.pack(|x| x as f32, |x| x, |x| x as f32, |x| x.to_le_bytes()),
            DataType::Double => self.pack(|x| x as f64, f64::from, |x| x, |x| x.to_le_bytes()),
            DataType::Float16 => self.pack(
                |x| f16::from_f64(x as f64),
                f16::from_f32,
                f16::from_f64,
                |x| x.to_le_bytes(),
            ),
            DataType::Bfloat16 => self.pack(
                |x| bf16::from_f64(x as f64),
                bf16::from_f32,
                bf16::from_f64,
                |x| x.to_le_bytes(),
            ),
            DataType::Bool => self.pack(
                |x| u8::from(x != 0),
                |x| u8::from(x != 0.0),
                |x| u8::from(x != 0.0),
                |x| [x],
            ),
            _ => self.integers(dtype)?,
        };
        Ok(Tensor::from_raw(dtype, &stored(dims), bytes))
    }

    fn pack<T, const N: usize>(
        &self,
        int: impl Fn(i128) -> T,
        single: impl Fn(f32) -> T,
        double: impl Fn(f64) -> T,
        bytes: impl Fn(T) -> [u8; N],
    ) -> Vec<u8> {
        match self {
            Self::Int(v) => v.iter().flat_map(|&x| bytes(int(x))).collect(),
            Self::F32(v) => v.iter().flat_map(|&x| bytes(single(x))).collect(),
            Self::F64(v) => v.iter().flat_map(|&x| bytes(double(x))).collect(),
        }
    }

    fn integers(&self, dtype: DataType) -> Result<Vec<u8>, NumError> {
        let size = dtype.bits().unwrap_or(8) / 8;
        let bits = size as u32 * 8;
        let signed = matches!(
            dtype,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64
        );
        let (low, high) = if signed {
            (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
        } else {
            (0, (1i128 << bits) - 1)
        };
        let whole = |x: f64| {
            let i = x.trunc() as i128;
            (x.is_finite() && (low..=high).contains(&i))
                .then_some(i)
                .ok_or(NumError::Range)
        };
        let ints: Cow<'_, [i128]> = match self {
            Self::Int(v) => Cow::Borrowed(v),
            Self::F32(v) => v
                .iter()
                .map(|&x| whole(f64::from(x)))
                .collect::<Result<_, _>>()?,
            Self::F64(v) => v.iter().map(|&x| whole(x)).collect::<Result<_, _>>()?,
        };
        Ok(ints
            .iter()
            .flat_map(|x| x.to_le_bytes().into_iter().take(size))
            .collect())
    }

    /// Whether the type of both is the same kind of number.
    pub(super) fn same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Whether the evaluator has arithmetic for the type.
pub(super) fn number_type(dtype: DataType) -> bool {
    matches!(
        dtype,
        DataType::Float
            | DataType::Float16
            | DataType::Bfloat16
            | DataType::Double
            | DataType::Bool
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Uint8
            | DataType::Uint16
            | DataType::Uint32
            | DataType::Uint64
    )
}

/// A tensor whose elements are whole bytes, to be moved about without being understood.
pub(super) struct Raw<'a> {
    pub dtype: DataType,
    pub dims: Vec<usize>,
    /// Bytes of one element.
    pub size: usize,
    pub data: Cow<'a, [u8]>,
}

impl<'a> Raw<'a> {
    pub(super) fn read(cx: &Ctx<'a>, slot: usize) -> Result<Self, EvalError> {
        let t = cx.input(slot)?;
        let dtype = t.dtype();
        match dtype.bits() {
            Some(bits) if bits % 8 == 0 => Ok(Self {
                dtype,
                dims: dims_of(t)?,
                size: bits / 8,
                data: t.bytes()?,
            }),
            _ => Err(cx.unsupported(format!("elements of type {}", dtype.short_name()))),
        }
    }

    /// A tensor of the same type from blocks of `block` consecutive elements, by block number.
    pub(super) fn pick(
        &self,
        dims: &[usize],
        block: usize,
        indices: impl Iterator<Item = usize>,
    ) -> Tensor {
        let bytes = block * self.size;
        let mut out = Vec::with_capacity(dims.iter().product::<usize>() * self.size);
        if bytes > 0 {
            for i in indices {
                out.extend_from_slice(&self.data[i * bytes..(i + 1) * bytes]);
            }
        }
        Tensor::from_raw(self.dtype, &stored(dims), out)
    }

    /// A strided view as a tensor: output index `i` reads element `offset + Σ i·stride`.
    pub(super) fn view(&self, dims: &[usize], strides: &[isize], offset: isize) -> Tensor {
        self.pick(dims, 1, Walk::new(dims, strides, offset))
    }
}

/// The element numbers of a strided view in row-major order.
pub(super) struct Walk<'a> {
    dims: &'a [usize],
    strides: &'a [isize],
    index: Vec<usize>,
    at: isize,
    left: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(dims: &'a [usize], strides: &'a [isize], offset: isize) -> Self {
        Self {
            dims,
            strides,
            index: vec![0; dims.len()],
            at: offset,
            left: dims.iter().fold(1, |n, &d| n.saturating_mul(d)),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let now = self.at as usize;
        for i in (0..self.dims.len()).rev() {
            self.index[i] += 1;
            self.at += self.strides[i];
            if self.index[i] < self.dims[i] {
                break;
            }
            self.at -= self.strides[i] * self.dims[i] as isize;
            self.index[i] = 0;
        }
        Some(now)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Strides that read a tensor of shape `dims` as if it had the broadcast shape `out`.
pub(super) fn broadcast_strides(dims: &[usize], out: &[usize]) -> Vec<isize> {
    let own = shape::strides(dims);
    let pad = out.len() - dims.len();
    (0..out.len())
        .map(|i| match i.checked_sub(pad) {
            Some(j) if dims[j] != 1 => own[j],
            _ => 0,
        })
        .collect()
}
