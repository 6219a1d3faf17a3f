//! Between the tensors of the graph and those of tract.

use std::borrow::Cow;

use half::bf16;
use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};
use tract_onnx::tract_hir::internal::{DatumType, TractResult, bail, format_err};
use tract_onnx::tract_hir::prelude::Tensor as TractTensor;

/// The type that tract computes in for a type of the standard: narrow integers are widened to 8 bits, bfloat16 to
/// FP32. `None` where there is none.
pub(super) fn datum_type(dtype: DataType) -> Option<DatumType> {
    Some(match dtype {
        DataType::Float | DataType::Bfloat16 => DatumType::F32,
        DataType::Float16 => DatumType::F16,
        DataType::Double => DatumType::F64,
        DataType::Uint8 | DataType::Uint4 | DataType::Uint2 => DatumType::U8,
        DataType::Int8 | DataType::Int4 | DataType::Int2 => DatumType::I8,
        DataType::Uint16 => DatumType::U16,
        DataType::Int16 => DatumType::I16,
        DataType::Uint32 => DatumType::U32,
        DataType::Int32 => DatumType::I32,
        DataType::Uint64 => DatumType::U64,
        DataType::Int64 => DatumType::I64,
        DataType::Bool => DatumType::Bool,
        _ => return None,
    })
}

fn standard_type(dt: DatumType) -> Option<DataType> {
    Some(match dt {
        DatumType::F32 => DataType::Float,
        DatumType::F16 => DataType::Float16,
        DatumType::F64 => DataType::Double,
        DatumType::U8 => DataType::Uint8,
        DatumType::I8 => DataType::Int8,
        DatumType::U16 => DataType::Uint16,
        DatumType::I16 => DataType::Int16,
        DatumType::U32 => DataType::Uint32,
        DatumType::I32 => DataType::Int32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I64 | DatumType::TDim => DataType::Int64,
        DatumType::Bool => DataType::Bool,
        _ => return None,
    })
}

/// A tensor as tract takes it, in the type that [`datum_type`] names.
pub(super) fn to_tract(tensor: &Tensor) -> TractResult<TractTensor> {
    let dtype = tensor.dtype();
    let Some(dt) = datum_type(dtype) else {
        bail!("tensors of type {} cannot be fed", dtype.short_name());
    };
    let shape: Vec<usize> = tensor.dims().iter().map(|&d| d as usize).collect();
    let bytes = tensor.bytes()?;
    let bytes: Cow<'_, [u8]> = match dtype {
        DataType::Bfloat16 => {
            let real = tensor.to_f32()?;
            Cow::Owned(real.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        DataType::Bool => Cow::Owned(bytes.iter().map(|&b| u8::from(b != 0)).collect()),
        _ if dtype.bits().is_some_and(|b| b < 8) => {
            let wide =
                onnx_quant_passes::lower_qdq::widen(tensor).map_err(|e| format_err!("{e}"))?;
            Cow::Owned(wide.bytes()?.into_owned())
        }
        _ => bytes,
    };
    let mut out = TractTensor::zero_dt(dt, &shape)?;
    let mut plain = out.try_as_plain_ram_mut()?;
    let target = plain.as_bytes_mut();
    if target.len() != bytes.len() {
        bail!(
            "{} bytes stand where {} are needed",
            bytes.len(),
            target.len()
        );
    }
    target.copy_from_slice(&bytes);
    Ok(out)
}

/// What tract computed, in the type that the model declares, or in tract's where it declares none.
pub(super) fn from_tract(tensor: &TractTensor, declared: Option<DataType>) -> TractResult<Tensor> {
    let dims: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
    let Some(dtype) = declared.or_else(|| standard_type(tensor.datum_type())) else {
        bail!("an output of type {:?} cannot be read", tensor.datum_type());
    };
    let Some(dt) = datum_type(dtype) else {
        bail!("outputs of type {} cannot be read", dtype.short_name());
    };
    let cast = tensor.cast_to_dt(dt)?;
    let bytes = cast.try_as_plain_ram()?.as_bytes().to_vec();
    let bytes = match dtype {
        DataType::Bfloat16 => cast
            .try_as_plain_ram()?
            .as_slice::<f32>()?
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        _ => match dtype.bits() {
            Some(bits) if bits < 8 => pack(&bytes, bits),
            _ => bytes,
        },
    };
    Ok(Tensor::from_raw(dtype, &dims, bytes))
}

/// One code in each byte to packed codes, the first in the low bits.
fn pack(codes: &[u8], bits: usize) -> Vec<u8> {
    codes
        .chunks(8 / bits)
        .map(|group| {
            group.iter().enumerate().fold(0, |byte, (i, &code)| {
                byte | (code & ((1 << bits) - 1)) << (i * bits)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_type_comes_back_as_it_went() {
        let cases: [(DataType, Vec<u8>); 9] = [
            (
                DataType::Float,
                [1.5f32, -0.0, f32::NAN]
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect(),
            ),
            (DataType::Float16, vec![0, 0x3c, 1, 0, 0, 0xfc]),
            (DataType::Bfloat16, vec![0x80, 0x3f, 0, 0x80, 0xc0, 0x7f]),
            (DataType::Int64, (0..24).collect()),
            (DataType::Uint16, vec![1, 2, 0xff, 0xff, 0, 0]),
            (DataType::Bool, vec![1, 0, 1]),
            (DataType::Int8, vec![0x80, 0xff, 3]),
            (DataType::Int4, vec![0xf1, 0x08]),
            (DataType::Uint2, vec![0b10_01_11]),
        ];
        for (dtype, bytes) in cases {
            let t = Tensor::from_raw(dtype, &[3], bytes.clone());
            let back = from_tract(&to_tract(&t).unwrap(), Some(dtype)).unwrap();
            assert_eq!(back.bytes().unwrap(), bytes, "{dtype:?}");
            assert_eq!((back.dims(), back.dtype()), (&[3i64][..], dtype));
        }
    }

    #[test]
    fn what_cannot_be_fed() {
        let t = Tensor::from_raw(DataType::Float8e5m2, &[1], vec![0u8]);
        assert!(to_tract(&t).unwrap_err().to_string().contains("f8e5m2"));
        let short = Tensor::from_raw(DataType::Float, &[2], vec![0u8; 4]);
        assert!(to_tract(&short).is_err());
    }
}
