//! Tensor elements as literals: printing every value, and packing parsed values into raw bytes.

use half::{bf16, f16};
use onnx_quant_proto::TensorProto;

use super::names::{hex, quoted};
use crate::dtype::{DataType, DataTypeExt};
use crate::tensor::Tensor;

/// A parsed element.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Literal {
    /// A number as written.
    Number(String),
    /// A string.
    Text(Vec<u8>),
}

/// The elements of a tensor: `{1, 2}`, or `= hex "…"` for types without a decimal form. `None` where the data cannot be
/// read.
pub(super) fn print(tensor: &Tensor) -> Option<String> {
    if tensor.dtype() == DataType::String {
        let data = &tensor.proto().string_data;
        let strings: Vec<String> = data.iter().map(|s| quoted(s)).collect();
        return Some(format!("{{{}}}", strings.join(", ")));
    }
    let bytes = tensor.bytes().ok()?;
    Some(match elements(tensor, &bytes) {
        Some(list) => format!("{{{}}}", list.join(", ")),
        None => format!("= hex \"{}\"", hex(&bytes)),
    })
}

/// Each element in decimal; `None` for types without such a form and for NaNs that carry bits.
fn elements(tensor: &Tensor, bytes: &[u8]) -> Option<Vec<String>> {
    match tensor.dtype() {
        DataType::Float => numbers(bytes, f32::from_le_bytes, |x| {
            (!x.is_nan() || x.to_bits() == f32::NAN.to_bits()).then(|| decimal(x))
        }),
        DataType::Double => numbers(bytes, f64::from_le_bytes, |x| {
            (!x.is_nan() || x.to_bits() == f64::NAN.to_bits()).then(|| decimal(x))
        }),
        DataType::Float16 => numbers(bytes, f16::from_le_bytes, |x| {
            (!x.is_nan() || x.to_bits() == f16::NAN.to_bits()).then(|| decimal(x.to_f32()))
        }),
        DataType::Bfloat16 => numbers(bytes, bf16::from_le_bytes, |x| {
            (!x.is_nan() || x.to_bits() == bf16::NAN.to_bits()).then(|| decimal(x.to_f32()))
        }),
        _ => Some(
            integers(tensor, bytes)?
                .iter()
                .map(i128::to_string)
                .collect(),
        ),
    }
}

/// The shortest decimal that reads back as the same number.
fn decimal(x: impl std::fmt::Debug) -> String {
    let text = format!("{x:?}").replace("NaN", "nan");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn numbers<const N: usize, T>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T,
    write: impl Fn(T) -> Option<String>,
) -> Option<Vec<String>> {
    let chunks = bytes.as_chunks::<N>().0.iter();
    chunks.map(|&b| write(read(b))).collect()
}

/// The elements of an integer tensor of 2 to 64 bits; `None` for other types.
pub(super) fn integers(tensor: &Tensor, bytes: &[u8]) -> Option<Vec<i128>> {
    let dtype = tensor.dtype();
    if !dtype.is_integer() && dtype != DataType::Bool {
        return None;
    }
    let bits = dtype.bits()?;
    let signed = integer_range(dtype)?.0 < 0;
    let extend = |raw: u64| {
        let shift = 64 - bits;
        if signed {
            i128::from(((raw << shift) as i64) >> shift)
        } else {
            i128::from(raw)
        }
    };
    let count = tensor.element_count().ok()?;
    if bits < 8 {
        let mask = (1u8 << bits) - 1;
        let per_byte = 8 / bits;
        let code = |i: usize| (bytes[i / per_byte] >> ((i % per_byte) * bits)) & mask;
        return Some((0..count).map(|i| extend(u64::from(code(i)))).collect());
    }
    let chunks = bytes.chunks_exact(bits / 8);
    Some(
        chunks
            .map(|c| extend(c.iter().rev().fold(0, |a, &b| a << 8 | u64::from(b))))
            .collect(),
    )
}

/// The smallest and largest value of an integer type or of bool.
pub(super) fn integer_range(dtype: DataType) -> Option<(i128, i128)> {
    let bits = dtype.bits()?;
    Some(match dtype {
        DataType::Bool => (0, 1),
        DataType::Int2
        | DataType::Int4
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64 => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        _ if dtype.is_integer() => (0, (1 << bits) - 1),
        _ => return None,
    })
}

/// A tensor of parsed elements.
///
/// # Errors
/// What is wrong with which element.
pub(super) fn build(
    dtype: DataType,
    dims: &[i64],
    literals: &[Literal],
) -> Result<TensorProto, String> {
    if dtype == DataType::String {
        let strings = literals.iter().map(|l| match l {
            Literal::Text(s) => Ok(bytes::Bytes::from(s.clone())),
            Literal::Number(n) => Err(format!("`{n}` stands where a string is needed")),
        });
        return Ok(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(dtype as i32),
            string_data: strings.collect::<Result<_, _>>()?,
            ..TensorProto::default()
        });
    }
    let numbers = literals.iter().map(|l| match l {
        Literal::Number(n) => Ok(n.as_str()),
        Literal::Text(_) => Err("a string stands where a number is needed".to_owned()),
    });
    let numbers: Vec<&str> = numbers.collect::<Result<_, _>>()?;
    let bytes = match dtype {
        DataType::Float => floats(&numbers, f32::to_le_bytes),
        DataType::Float16 => floats(&numbers, |x: f32| f16::from_f32(x).to_le_bytes()),
        DataType::Bfloat16 => floats(&numbers, |x: f32| bf16::from_f32(x).to_le_bytes()),
        DataType::Double => floats(&numbers, f64::to_le_bytes),
        _ => {
            let range = integer_range(dtype)
                .ok_or_else(|| format!("{} tensors are given as hex", dtype.short_name()))?;
            let parsed = numbers.iter().map(|n| integer(n, range));
            Ok(pack(dtype, &parsed.collect::<Result<Vec<_>, _>>()?))
        }
    }?;
    Ok(raw(dtype, dims, bytes))
}

/// A tensor of raw bytes.
pub(super) fn raw(dtype: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        dims: dims.to_vec(),
        data_type: Some(dtype as i32),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

fn floats<T: std::str::FromStr, const N: usize>(
    numbers: &[&str],
    bytes: impl Fn(T) -> [u8; N],
) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(numbers.len() * N);
    for n in numbers {
        let x: T = n.parse().map_err(|_| format!("`{n}` is not a number"))?;
        out.extend(bytes(x));
    }
    Ok(out)
}

fn integer(text: &str, (low, high): (i128, i128)) -> Result<i128, String> {
    let n: i128 = match text {
        "true" => 1,
        "false" => 0,
        _ => text
            .parse()
            .map_err(|_| format!("`{text}` is not an integer"))?,
    };
    if n < low || n > high {
        return Err(format!("{n} is outside {low}..{high}"));
    }
    Ok(n)
}

/// Integers as raw bytes, packed for types under 8 bits.
pub(super) fn pack(dtype: DataType, values: &[i128]) -> Vec<u8> {
    let bits = dtype.bits().unwrap_or(8);
    if bits >= 8 {
        let bytes = values
            .iter()
            .flat_map(|v| v.to_le_bytes().into_iter().take(bits / 8));
        return bytes.collect();
    }
    let mask = (1u8 << bits) - 1;
    values
        .chunks(8 / bits)
        .map(|c| {
            c.iter()
                .rev()
                .fold(0, |byte, &v| byte << bits | (v as u8 & mask))
        })
        .collect()
}
