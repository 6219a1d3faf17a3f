//! The INT32 bias of a quantized Conv, Gemm or MatMul: zero point 0, scale `S_b = S_X · S_W[c]`.
//!
//! A bias that does not fit INT32 at that scale needs a larger weight scale; [`bias_scale_guard`] gives it, and
//! [`quantize_bias`] refuses rather than wraps.

use thiserror::Error;

/// Margin of the guard, as onnxruntime's quantizer has it: it covers the rounding of the scales to f32.
const MARGIN: f64 = 1.0001;
/// Codes between the largest magnitudes that are used on either side of 0: 2^32 − 2.
const CODES: f64 = 4_294_967_294.0;

/// A bias that cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum BiasError {
    /// A bias value is NaN or infinite.
    #[error("bias value {index} is {value}")]
    NotFinite {
        /// Its index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A scale is not a positive normal number, or the product with the input scale is not.
    #[error("bias channel {index}: the scale {input} x {weight} is not a positive normal number")]
    Scale {
        /// The channel.
        index: usize,
        /// Scale of the input.
        input: f32,
        /// Scale of the weight.
        weight: f32,
    },
    /// There is neither one weight scale nor one for each bias value.
    #[error("{scales} weight scales for {values} bias values")]
    Length {
        /// Number of bias values.
        values: usize,
        /// Number of weight scales.
        scales: usize,
    },
    /// A code does not fit INT32.
    #[error("bias value {index} ({value}) does not fit INT32 with scale {scale}")]
    Overflow {
        /// Its index.
        index: usize,
        /// The value.
        value: f32,
        /// The scale.
        scale: f32,
    },
}

/// An INT32 bias; zero point 0.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedBias {
    /// One code for each bias value.
    pub codes: Vec<i32>,
    /// As many scales as there were weight scales: one, or one for each value.
    pub scales: Vec<f32>,
}

/// The weight scales, raised where the bias would not fit INT32.
///
/// `weight_scales` holds one scale, or one for each of `bias`; the result has the same length, and a value is
/// unchanged where `S_X · S_W ≥ 1.0001 · 2 max|b| / (2^32 − 2)` and the product is a normal number. Elsewhere `S_W` is multiplied by
/// the ratio of the two, and the weight is to be quantized with the result.
///
/// Source: onnxruntime, `QDQQuantizer._adjust_weight_scale_for_int32_bias`.
///
/// # Errors
/// [`BiasError`] for values or scales that are not finite, scales that are not positive, lengths that differ, and
/// raised scales that leave f32.
pub fn bias_scale_guard(
    bias: &[f32],
    input_scale: f32,
    weight_scales: &[f32],
) -> Result<Vec<f32>, BiasError> {
    check(bias, weight_scales)?;
    let raise = |(index, &weight): (usize, &f32)| {
        let error = BiasError::Scale {
            index,
            input: input_scale,
            weight,
        };
        let usable = |s: f32| s.is_finite() && s > 0.0;
        if !usable(input_scale) || !usable(weight) {
            return Err(error);
        }
        let needed = MARGIN * 2.0 * largest(bias, index, weight_scales.len()) / CODES;
        let smallest = f64::from(f32::MIN_POSITIVE);
        let product = f64::from(input_scale) * f64::from(weight);
        if product >= needed.max(smallest) {
            return Ok(weight);
        }
        let needed = needed.max(MARGIN * smallest);
        let raised = (f64::from(weight) * (needed / product)) as f32;
        if raised.is_finite() {
            Ok(raised)
        } else {
            Err(error)
        }
    };
    weight_scales.iter().enumerate().map(raise).collect()
}

/// Quantizes a bias: `⌊b / S_b⌉`, half to even, in f64, with `S_b = S_X · S_W` rounded to f32.
///
/// `weight_scales` holds one scale, or one for each of `bias`.
///
/// # Errors
/// [`BiasError`]; in particular [`BiasError::Overflow`] where [`bias_scale_guard`] would have raised the scale.
pub fn quantize_bias(
    bias: &[f32],
    input_scale: f32,
    weight_scales: &[f32],
) -> Result<QuantizedBias, BiasError> {
    check(bias, weight_scales)?;
    let product = |(index, &weight): (usize, &f32)| {
        let scale = (f64::from(input_scale) * f64::from(weight)) as f32;
        if scale.is_normal() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(BiasError::Scale {
                index,
                input: input_scale,
                weight,
            })
        }
    };
    let scales: Vec<f32> = weight_scales
        .iter()
        .enumerate()
        .map(product)
        .collect::<Result<_, _>>()?;
    let code = |(index, &value): (usize, &f32)| {
        let scale = if scales.len() == 1 {
            scales[0]
        } else {
            scales[index]
        };
        let code = (f64::from(value) / f64::from(scale)).round_ties_even();
        if code.abs() <= f64::from(i32::MAX) {
            Ok(code as i32)
        } else {
            Err(BiasError::Overflow {
                index,
                value,
                scale,
            })
        }
    };
    let codes = bias
        .iter()
        .enumerate()
        .map(code)
        .collect::<Result<_, _>>()?;
    Ok(QuantizedBias { codes, scales })
}

fn check(bias: &[f32], weight_scales: &[f32]) -> Result<(), BiasError> {
    if weight_scales.len() != 1 && weight_scales.len() != bias.len() {
        return Err(BiasError::Length {
            values: bias.len(),
            scales: weight_scales.len(),
        });
    }
    match bias.iter().position(|b| !b.is_finite()) {
        Some(index) => Err(BiasError::NotFinite {
            index,
            value: bias[index],
        }),
        None => Ok(()),
    }
}

/// The largest magnitude that scale `index` of `scales` has to hold.
fn largest(bias: &[f32], index: usize, scales: usize) -> f64 {
    let held = if scales == 1 {
        bias
    } else {
        &bias[index..=index]
    };
    held.iter()
        .fold(0.0, |largest, b| f64::from(b.abs()).max(largest))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn per_channel_and_per_tensor() {
        let q = quantize_bias(&[1.0, -0.375, 0.0], 0.5, &[0.25, 0.5, 1.0]).unwrap();
        // −1.5 steps round to the even −2.
        assert_eq!(q.codes, [8, -2, 0]);
        assert_eq!(q.scales, [0.125, 0.25, 0.5]);
        let q = quantize_bias(&[1.0, -0.375], 0.5, &[0.25]).unwrap();
        assert_eq!((q.codes, q.scales), (vec![8, -3], vec![0.125]));
    }

    #[test]
    fn unchanged_where_it_fits() {
        let scales = [0.01, 0.02];
        assert_eq!(
            bias_scale_guard(&[3.0, -4.0], 0.1, &scales).unwrap(),
            scales
        );
        let raised = bias_scale_guard(&[3e9, -4.0], 0.1, &[0.01, 0.02]).unwrap();
        assert!(raised[0] > 0.01 && raised[1] == 0.02);
        let expected = 1.0001 * 2.0 * 3e9 / (2f64.powi(32) - 2.0) / f64::from(0.1f32);
        assert!((f64::from(raised[0]) / expected - 1.0).abs() < 1e-7);
    }

    #[test]
    fn refusals() {
        assert!(matches!(
            quantize_bias(&[3e9], 1.0, &[1.0]),
            Err(BiasError::Overflow { index: 0, .. })
        ));
        assert!(matches!(
            quantize_bias(&[f32::NAN], 1.0, &[1.0]),
            Err(BiasError::NotFinite { index: 0, .. })
        ));
        assert_eq!(
            quantize_bias(&[1.0; 3], 1.0, &[1.0; 2]),
            Err(BiasError::Length {
                values: 3,
                scales: 2
            })
        );
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
            assert!(
                matches!(
                    quantize_bias(&[0.0], 1.0, &[scale]),
                    Err(BiasError::Scale { .. })
                ),
                "{scale}"
            );
        }
        // The raised scale would be 1e67.
        let unreachable = bias_scale_guard(&[f32::MAX], f32::MIN_POSITIVE, &[1.0]);
        assert!(matches!(unreachable, Err(BiasError::Scale { .. })));
        assert!(bias_scale_guard(&[0.0], 1e-45, &[1e-45]).is_ok());
        assert!(matches!(
            bias_scale_guard(&[0.0], 0.0, &[1.0]),
            Err(BiasError::Scale { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_guarded_bias_always_fits(
            bias in proptest::collection::vec(-1e30f32..1e30, 1..8),
            input in 1e-20f32..1e3, weight in 1e-15f32..1e3, per_channel: bool,
        ) {
            let scales = vec![weight; if per_channel { bias.len() } else { 1 }];
            let raised = bias_scale_guard(&bias, input, &scales).unwrap();
            prop_assert!(raised.iter().all(|&s| s >= weight));
            let q = quantize_bias(&bias, input, &raised).unwrap();
            for (at, (&code, &b)) in q.codes.iter().zip(&bias).enumerate() {
                let scale = f64::from(q.scales[if per_channel { at } else { 0 }]);
                prop_assert!((f64::from(code) - f64::from(b) / scale).abs() <= 0.5);
            }
        }
    }
}
