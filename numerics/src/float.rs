//! Conversions between f32 and the 16-bit floats that tensors are stored in, by the `half` crate:
//! widening is exact, narrowing rounds half to even and overflows to infinity.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The f32 values of binary16 numbers.
pub fn f16_to_f32(x: &[f16]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    x.convert_to_f32_slice(&mut out);
    out
}

/// The nearest binary16 numbers.
pub fn f32_to_f16(x: &[f32]) -> Vec<f16> {
    let mut out = vec![f16::ZERO; x.len()];
    out.convert_from_f32_slice(x);
    out
}

/// The f32 values of bfloat16 numbers.
pub fn bf16_to_f32(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// The nearest bfloat16 numbers.
pub fn f32_to_bf16(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// The f32 values of little-endian binary16 numbers, as `raw_data` holds them; a last odd byte is left out.
pub fn f16_bytes_to_f32(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&b| f16::from_le_bytes(b).to_f32())
        .collect()
}

/// The f32 values of little-endian bfloat16 numbers, as `raw_data` holds them; a last odd byte is left out.
pub fn bf16_bytes_to_f32(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&b| bf16::from_le_bytes(b).to_f32())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_a_round_trip() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let f16s: Vec<f16> = all.iter().map(|&b| f16::from_bits(b)).collect();
        let bf16s: Vec<bf16> = all.iter().map(|&b| bf16::from_bits(b)).collect();
        for (x, y) in f16s.iter().zip(f32_to_f16(&f16_to_f32(&f16s))) {
            assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan());
        }
        for (x, y) in bf16s.iter().zip(f32_to_bf16(&bf16_to_f32(&bf16s))) {
            assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan());
        }
    }

    #[test]
    fn bytes_and_rounding() {
        assert_eq!(
            f16_bytes_to_f32(&[0x00, 0x3c, 0x00, 0xc0, 0x07]),
            [1.0, -2.0]
        );
        assert_eq!(bf16_bytes_to_f32(&[0x80, 0x3f]), [1.0]);
        assert_eq!(
            f16_to_f32(&f32_to_f16(&[2049.0, 2051.0, 1e6])),
            [2048.0, 2052.0, f32::INFINITY]
        );
        assert_eq!(bf16_to_f32(&f32_to_bf16(&[257.0, 259.0])), [256.0, 260.0]);
    }
}
