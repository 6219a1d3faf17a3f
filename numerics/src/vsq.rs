//! Two-level scales of integers (VS-Quant): `r = γ · S_q · (q − Z)` with an unsigned 4-bit integer `S_q` for each vector
//! and one float `γ` for each output channel.
//!
//! Source: Dai et al., *VS-Quant: Per-Vector Scaled Quantization for Accurate Low-Precision Neural Network Inference*,
//! 2021, section 4.

use crate::affine::{QParams, choose_qparams};
use crate::channel::LayoutError;
use crate::grouping::Grouping;
use crate::scaling::{ScalingError, WeightCalibrator, WeightQuantizer, squared_error};

/// Bits of `S_q`.
pub const SCALE_BITS: u32 = 4;
/// Largest `S_q`.
const LARGEST: u8 = 15;

/// The two levels, and what each vector is quantized with.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorScales {
    /// `S_q` of each vector, 1 to 15.
    pub codes: Vec<u8>,
    /// `γ` of each channel.
    pub channels: Vec<f32>,
    /// Scale (`S_q · γ`, rounded as a DequantizeLinear of the codes does), zero point and code range of each vector.
    pub params: Vec<QParams>,
}

/// The scales of all vectors; `channel_of` gives the channel of a vector, below `channels`.
///
/// `γ` is the largest scale of a channel's vectors by 15. `S_q` is the nearest integer to the vector's own scale by `γ`,
/// or with [`WeightCalibrator::Mse`] the one of 1 to 15 with the least squared error.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn vector_scales(
    data: &[f32],
    vectors: Grouping,
    channels: usize,
    channel_of: impl Fn(usize) -> usize + Sync,
    how: &WeightQuantizer,
) -> Result<VectorScales, ScalingError> {
    let ranges = vectors.ranges(data)?;
    let mut own = Vec::with_capacity(ranges.len());
    for (group, &(low, high)) in ranges.iter().enumerate() {
        let params = choose_qparams(low, high, how.base, how.scheme, how.options)
            .map_err(|source| ScalingError::Range { group, source })?;
        own.push(params);
    }
    let mut largest = vec![0f32; channels];
    for (vector, p) in own.iter().enumerate() {
        let (low, high) = ranges[vector];
        let channel = largest
            .get_mut(channel_of(vector))
            .ok_or(LayoutError::Params {
                found: channel_of(vector) + 1,
                channels,
            })?;
        if low != 0.0 || high != 0.0 {
            *channel = channel.max(p.scale);
        }
    }
    let gamma = |&largest: &f32| match largest {
        0.0 => 1.0,
        scale => how.scale.stored(scale / f32::from(LARGEST)),
    };
    let channels: Vec<f32> = largest.iter().map(gamma).collect();
    let with = |vector: usize, code: u8| {
        let scale = f32::from(code) * channels[channel_of(vector)];
        let p = own[vector];
        let shifted = f64::from(p.qmax) - f64::from(ranges[vector].1.max(0.0)) / f64::from(scale);
        let zero_point = match how.scheme {
            crate::format::Scheme::Symmetric => p.zero_point,
            crate::format::Scheme::Asymmetric => {
                (shifted.round_ties_even() as i32).clamp(p.qmin, p.qmax)
            }
        };
        QParams {
            scale,
            zero_point,
            ..p
        }
    };
    let nearest = |vector: usize| {
        let ratio = own[vector].scale / channels[channel_of(vector)];
        ratio.round_ties_even().clamp(1.0, f32::from(LARGEST)) as u8
    };
    let codes: Vec<u8> = match how.calibrator {
        WeightCalibrator::MinMax => (0..own.len()).map(nearest).collect(),
        WeightCalibrator::Mse => vectors.map_groups(data, |vector, values| {
            let first = nearest(vector);
            let mut best = (first, squared_error(values, &with(vector, first)));
            for code in 1..=LARGEST {
                let error = squared_error(values, &with(vector, code));
                if error < best.1 {
                    best = (code, error);
                }
            }
            best.0
        }),
    };
    let params = codes
        .iter()
        .enumerate()
        .map(|(vector, &code)| with(vector, code))
        .collect();
    Ok(VectorScales {
        codes,
        channels,
        params,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::affine::QOptions;
    use crate::format::{Base, Scheme};
    use crate::scaling::ScaleKind;
    use proptest::prelude::*;

    fn how(calibrator: WeightCalibrator, scheme: Scheme) -> WeightQuantizer {
        WeightQuantizer {
            base: Base::INT4,
            scheme,
            options: QOptions::default(),
            calibrator,
            scale: ScaleKind::default(),
        }
    }

    #[test]
    fn known_vectors() {
        let data = [7.0, 0.0, 0.0, 0.0, 0.7, -0.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let vectors = Grouping::blocks(&[1, 12], 1, 4).unwrap();
        let how = how(WeightCalibrator::MinMax, Scheme::Symmetric);
        let s = vector_scales(&data, vectors, 1, |_| 0, &how).unwrap();
        assert_eq!(s.channels, [1.0 / 15.0]);
        assert_eq!(s.codes, [15, 2, 15]);
        assert_eq!(s.params[1].scale, 2.0 * (1.0 / 15.0));
        assert!(vector_scales(&[f32::NAN; 12], vectors, 1, |_| 0, &how).is_err());
        assert!(vector_scales(&data, vectors, 1, |_| 1, &how).is_err());
    }

    proptest! {
        #[test]
        fn searched_scales_are_never_worse(values in proptest::collection::vec(-4f32..4.0, 64)) {
            let vectors = Grouping::blocks(&[4, 16], 1, 16).unwrap();
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
                let error = |c| -> f64 {
                    let s = vector_scales(&values, vectors, 2, |v| v / 2, &how(c, scheme)).unwrap();
                    values.chunks(16).zip(&s.params).map(|(v, p)| squared_error(v, p)).sum()
                };
                prop_assert!(error(WeightCalibrator::Mse) <= error(WeightCalibrator::MinMax));
            }
        }
    }
}
