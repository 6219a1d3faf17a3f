//! Block floats: OCP MX with an E8M0 scale for 32 values, and NVFP4 with an E4M3 scale for 16 values and one FP32 scale
//! for the tensor.
//!
//! Source: OCP, *Microscaling Formats (MX) Specification* 1.0, 2023, section 6.3; NVIDIA, *Pretraining Large Language
//! Models with NVFP4*, 2025, section 2.

use crate::grouping::Grouping;
use crate::minifloat::{Encoder, MiniFloat, pow2};
use crate::scaling::{ScalingError, WeightCalibrator, float_error, magnitudes};

/// The bias of an E8M0 exponent.
const BIAS: i32 = 127;
/// The E4M3 code of 1.
const ONE: u8 = 0x38;

/// The number of an E8M0 code: `2^(code − 127)`; 255 is NaN.
pub fn e8m0_decode(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        _ => pow2(i32::from(code) - BIAS),
    }
}

/// The E8M0 code of a positive power of two, clamped to what the type holds.
fn e8m0_code(exponent: i32) -> u8 {
    (exponent + BIAS).clamp(0, 254) as u8
}

/// `⌊log2 x⌋` of a positive finite number.
fn floor_log2(x: f32) -> i32 {
    let exponent = (x.to_bits() >> 23) as i32;
    match exponent {
        0 => -118 - x.to_bits().leading_zeros() as i32,
        _ => exponent - BIAS,
    }
}

/// The E8M0 scale of each block: `2^(⌊log2 max|x|⌋ − emax)`, emax that of the element's largest number. A block of zeros
/// has scale 1. With [`WeightCalibrator::Mse`] the neighbouring powers of two are tried too.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn mx_scales(
    data: &[f32],
    blocks: Grouping,
    element: MiniFloat,
    calibrator: WeightCalibrator,
) -> Result<Vec<u8>, ScalingError> {
    let magnitudes = magnitudes(data, blocks)?;
    let code = |magnitude: f32| match magnitude {
        0.0 => BIAS as u8,
        _ => e8m0_code(floor_log2(magnitude) - element.largest_exponent()),
    };
    if calibrator == WeightCalibrator::MinMax {
        return Ok(magnitudes.into_iter().map(code).collect());
    }
    let encoder = Encoder::new(element);
    Ok(blocks.map_groups(data, |block, values| {
        let first = code(magnitudes[block]);
        let error = |code: u8| float_error(values, e8m0_decode(code), &encoder);
        let tried = [
            first,
            first.saturating_add(1).min(254),
            first.saturating_sub(1),
        ];
        least_error(&tried, error)
    }))
}

fn least_error(codes: &[u8], error: impl Fn(u8) -> f64) -> u8 {
    let mut best = (codes[0], error(codes[0]));
    for &code in &codes[1..] {
        let found = error(code);
        if found < best.1 {
            best = (code, found);
        }
    }
    best.0
}

/// The two levels of NVFP4.
#[derive(Debug, Clone, PartialEq)]
pub struct TwoLevels {
    /// The E4M3 code of each block's scale.
    pub codes: Vec<u8>,
    /// The scale of those scales.
    pub tensor: f32,
}

impl TwoLevels {
    /// The scale of each block as a DequantizeLinear of the codes gives it.
    pub fn scales(&self) -> Vec<f32> {
        let of = |&code: &u8| MiniFloat::E4m3.decode(code) * self.tensor;
        self.codes.iter().map(of).collect()
    }
}

/// The scales of NVFP4: `tensor = max|x| / (448 · 6)`, and of each block the E4M3 number nearest to
/// `max|block| / 6 / tensor`, at least the smallest one. A block of zeros has the scale 1. With
/// [`WeightCalibrator::Mse`] the two neighbours on each side are tried too.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn nvfp4_scales(
    data: &[f32],
    blocks: Grouping,
    calibrator: WeightCalibrator,
) -> Result<TwoLevels, ScalingError> {
    let element = MiniFloat::E2m1;
    let scale = MiniFloat::E4m3;
    let magnitudes = magnitudes(data, blocks)?;
    let largest = magnitudes.iter().copied().fold(0.0, f32::max);
    let tensor = match largest / (scale.largest() * element.largest()) {
        0.0 => 1.0,
        t => t.max(f32::MIN_POSITIVE),
    };
    let code = |magnitude: f32| match magnitude {
        0.0 => ONE,
        _ => scale
            .encode(magnitude / element.largest() / tensor, true)
            .max(1),
    };
    let codes = match calibrator {
        WeightCalibrator::MinMax => magnitudes.into_iter().map(code).collect(),
        WeightCalibrator::Mse => blocks.map_groups(data, |block, values| {
            let encoder = Encoder::new(element);
            let first = code(magnitudes[block]);
            let error = |code: u8| float_error(values, scale.decode(code) * tensor, &encoder);
            let near = |step: i8| first.saturating_add_signed(step).clamp(1, 0x7e);
            least_error(&[first, near(-1), near(1), near(-2), near(2)], error)
        }),
    };
    Ok(TwoLevels { codes, tensor })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponents() {
        assert_eq!(floor_log2(1.0), 0);
        assert_eq!(floor_log2(0.99), -1);
        assert_eq!(floor_log2(448.0), 8);
        assert_eq!(floor_log2(f32::MIN_POSITIVE), -126);
        assert_eq!(floor_log2(f32::from_bits(1)), -149);
        assert_eq!(floor_log2(f32::from_bits(3)), -148);
        assert_eq!(floor_log2(f32::MAX), 127);
        assert_eq!(
            (e8m0_decode(127), e8m0_decode(0), e8m0_decode(254)),
            (1.0, pow2(-127), pow2(127))
        );
        assert!(e8m0_decode(255).is_nan());
    }

    #[test]
    fn scales_of_known_blocks() {
        let blocks = Grouping::blocks(&[3, 4], 1, 4).unwrap();
        let data = [0.0, 0.0, 0.0, 0.0, 5.9, -1.0, 0.0, 0.0, 0.3, 0.1, -0.2, 0.0];
        let mx = mx_scales(&data, blocks, MiniFloat::E2m1, WeightCalibrator::MinMax).unwrap();
        assert_eq!(mx, [127, 127, 123]);
        let nv = nvfp4_scales(&data, blocks, WeightCalibrator::MinMax).unwrap();
        assert_eq!(nv.tensor, 5.9 / 448.0 / 6.0);
        assert_eq!(nv.codes[..2], [ONE, 0x7e]);
        assert!(
            mx_scales(
                &[f32::NAN; 12],
                blocks,
                MiniFloat::E4m3,
                WeightCalibrator::Mse
            )
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn searched_scales_are_never_worse(values in proptest::collection::vec(-4f32..4.0, 64)) {
            let blocks = Grouping::blocks(&[2, 32], 1, 16).unwrap();
            for element in [MiniFloat::E4m3, MiniFloat::E2m3, MiniFloat::E2m1] {
                let error = |c| -> f64 {
                    let codes = mx_scales(&values, blocks, element, c).unwrap();
                    let parts = values.chunks(16).zip(codes);
                    parts.map(|(v, c)| float_error(v, e8m0_decode(c), &Encoder::new(element))).sum()
                };
                prop_assert!(error(WeightCalibrator::Mse) <= error(WeightCalibrator::MinMax));
            }
            let error = |c| -> f64 {
                let scales = nvfp4_scales(&values, blocks, c).unwrap().scales();
                values.chunks(16).zip(scales).map(|(v, s)| float_error(v, s, &Encoder::new(MiniFloat::E2m1))).sum()
            };
            prop_assert!(error(WeightCalibrator::Mse) <= error(WeightCalibrator::MinMax));
        }
    }
}
