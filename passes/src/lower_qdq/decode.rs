//! Reading codes out of constants: integers of 2 to 32 bits and floats of 4 to 8, and their real values.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};
use onnx_quant_numerics::affine::dequantize_reference;
use onnx_quant_numerics::blockfloat::e8m0_decode;
use onnx_quant_numerics::minifloat::MiniFloat;
use onnx_quant_numerics::pack;
use onnx_quant_numerics::quantize::dequantize;

use super::layout::ParamLayout;

/// The integer types that codes may have: smallest and largest code, and the type that holds them in execution.
pub(super) fn code_type(dtype: DataType) -> Option<(i32, i32, DataType)> {
    Some(match dtype {
        DataType::Int8 => (-128, 127, dtype),
        DataType::Uint8 => (0, 255, dtype),
        DataType::Int16 => (-32768, 32767, dtype),
        DataType::Uint16 => (0, 65535, dtype),
        DataType::Int4 => (-8, 7, DataType::Int8),
        DataType::Uint4 => (0, 15, DataType::Uint8),
        DataType::Int2 => (-2, 1, DataType::Int8),
        DataType::Uint2 => (0, 3, DataType::Uint8),
        DataType::Int32 => (i32::MIN, i32::MAX, dtype),
        _ => return None,
    })
}

/// The codes of a constant of one of the [`code_type`]s.
pub(super) fn codes(tensor: &Tensor) -> Result<Vec<i32>, String> {
    let dtype = tensor.dtype();
    let say = |e: onnx_quant_ir::TensorError| e.to_string();
    let (bits, signed) = match dtype {
        DataType::Int4 => (4, true),
        DataType::Uint4 => (4, false),
        DataType::Int2 => (2, true),
        DataType::Uint2 => (2, false),
        _ if code_type(dtype).is_some() => {
            let wide = tensor.to_i64().map_err(say)?;
            return Ok(wide.into_iter().map(|q| q as i32).collect());
        }
        other => return Err(format!("type {} holds no codes", other.short_name())),
    };
    let count = tensor.element_count().map_err(say)?;
    let bytes = tensor.bytes().map_err(say)?;
    pack::unpack(&bytes, count, bits, signed).ok_or_else(|| "its data is too short".to_owned())
}

/// The float format of 4 to 8 bits behind a type.
pub(super) fn mini_float(dtype: DataType) -> Option<MiniFloat> {
    MiniFloat::from_onnx_type(dtype as i32)
}

/// Whether a type is one of the floats of 4 to 8 bits, E8M0 among them.
pub(super) fn is_small_float(dtype: DataType) -> bool {
    dtype == DataType::Float8e8m0 || mini_float(dtype).is_some()
}

/// The numbers of a constant of any float type.
pub(super) fn numbers(tensor: &Tensor) -> Result<Vec<f32>, String> {
    let say = |e: onnx_quant_ir::TensorError| e.to_string();
    let dtype = tensor.dtype();
    if dtype == DataType::Float8e8m0 {
        let bytes = tensor.bytes().map_err(say)?;
        return Ok(bytes.iter().map(|&b| e8m0_decode(b)).collect());
    }
    let Some(element) = mini_float(dtype) else {
        return tensor.to_f32().map_err(say);
    };
    let count = tensor.element_count().map_err(say)?;
    let bytes = tensor.bytes().map_err(say)?;
    let codes = pack::unpack(&bytes, count, element.bits(), false);
    let codes = codes.ok_or_else(|| "its data is too short".to_owned())?;
    let table = element.table();
    Ok(codes.into_iter().map(|c| table[c as usize]).collect())
}

/// A constant of 2 or 4 bits an element as one of 8 bits, of a small float as FP32; `None` for every other type.
pub(super) fn widened(tensor: &Tensor) -> Option<Result<Tensor, String>> {
    if is_small_float(tensor.dtype()) {
        let wide = numbers(tensor);
        return Some(wide.map(|x| Tensor::from_f32(tensor.dims(), &x)));
    }
    let (_, _, wide) = code_type(tensor.dtype())?;
    if wide == tensor.dtype() {
        return None;
    }
    Some(codes(tensor).map(|codes| {
        let bytes: Vec<u8> = codes.into_iter().map(|q| q as u8).collect();
        Tensor::from_raw(wide, tensor.dims(), bytes)
    }))
}

/// The type that holds the values of another type in execution, where that is another one.
pub(super) fn wide_type(dtype: DataType) -> Option<DataType> {
    if is_small_float(dtype) {
        return Some(DataType::Float);
    }
    code_type(dtype).map(|t| t.2).filter(|&wide| wide != dtype)
}

/// `(q − Z) · S` over a whole constant, in FP32 (ONNX standard, DequantizeLinear); of floats `q · S`.
pub(super) fn decode(
    tensor: &Tensor,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    axis: i64,
    block_size: i64,
) -> Result<Vec<f32>, String> {
    let dims = |t: &Tensor| -> Vec<usize> { t.dims().iter().map(|&d| d as usize).collect() };
    let layout = ParamLayout::of(&dims(tensor), &dims(scale), axis, block_size)?;
    let scales = numbers(scale)?;
    if mini_float(tensor.dtype()).is_some() {
        let mut out = numbers(tensor)?;
        layout.for_each_run(|run, p| out[run].iter_mut().for_each(|x| *x *= scales[p]));
        return Ok(out);
    }
    let codes = codes(tensor)?;
    let zero_points = match zero_point {
        Some(z) => self::codes(z)?,
        None => vec![0; scales.len()],
    };
    if zero_points.len() != scales.len() {
        return Err(format!(
            "{} scales stand beside {} zero points",
            scales.len(),
            zero_points.len()
        ));
    }
    let mut out = vec![0f32; codes.len()];
    layout.for_each_run(|run, p| {
        if run.len() == 1 {
            out[run.start] = dequantize_reference(codes[run.start], scales[p], zero_points[p]);
        } else {
            dequantize(
                &codes[run.clone()],
                scales[p],
                zero_points[p],
                &mut out[run],
            );
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn packed_codes() {
        let t = |dtype, bytes: &[u8]| Tensor::from_raw(dtype, &[3], bytes.to_vec());
        assert_eq!(
            codes(&t(DataType::Int4, &[0xf1, 0x08])).unwrap(),
            [1, -1, -8]
        );
        assert_eq!(
            codes(&t(DataType::Uint4, &[0xf1, 0x08])).unwrap(),
            [1, 15, 8]
        );
        assert_eq!(
            codes(&t(DataType::Int2, &[0b10_01_11])).unwrap(),
            [-1, 1, -2]
        );
        assert_eq!(
            codes(&t(DataType::Uint2, &[0b10_01_11])).unwrap(),
            [3, 1, 2]
        );
        let wide = widened(&t(DataType::Int4, &[0xf1, 0x08])).unwrap().unwrap();
        assert_eq!(
            (wide.dtype(), wide.to_i64().unwrap()),
            (DataType::Int8, vec![1, -1, -8])
        );
        assert!(widened(&t(DataType::Int8, &[1, 2, 3])).is_none());
        assert!(codes(&Tensor::from_f32(&[1], &[1.0])).is_err());
    }

    #[test]
    fn decoded_values() {
        let q = Tensor::from_raw(DataType::Int8, &[2, 2], vec![1u8, 2, 0xff, 0x80]);
        let s = Tensor::from_f32(&[2], &[0.5, 2.0]);
        let z = Tensor::from_raw(DataType::Int8, &[2], vec![0u8, 1]);
        assert_eq!(
            decode(&q, &s, Some(&z), 0, 0).unwrap(),
            [0.5, 1.0, -4.0, -258.0]
        );
        assert_eq!(
            decode(&q, &s, None, -1, 0).unwrap(),
            [0.5, 4.0, -0.5, -256.0]
        );
        let bias = Tensor::from_i32(&[1], &[i32::MAX]);
        let one = Tensor::from_f32(&[], &[1.0]);
        assert_eq!(decode(&bias, &one, None, 1, 0).unwrap(), [2147483648.0]);
        let wrong = Tensor::from_raw(DataType::Int8, &[1], vec![0u8]);
        assert!(decode(&q, &s, Some(&wrong), 0, 0).is_err());
    }
}
