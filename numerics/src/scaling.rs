//! The scales of weights: from the extremes of each group, or by search for the least squared error.
//!
//! The search tries the scale of the extremes and smaller ones, so that its error is never larger than theirs.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::affine::{Chooser, QOptions, QParams, RangeError};
use crate::channel::LayoutError;
use crate::format::{Base, FormatError, Scheme, lookup};
use crate::grouping::Grouping;
use crate::minifloat::{Encoder, MiniFloat, pow2};
use crate::quantize::{Kernel, quantize_wide};
use crate::simd::vectorized;

/// How the range of a group of weights is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightCalibrator {
    /// The extremes.
    MinMax,
    /// The least squared error.
    Mse,
}

const NAMES: [(&str, WeightCalibrator); 2] = [
    ("minmax", WeightCalibrator::MinMax),
    ("mse", WeightCalibrator::Mse),
];

impl fmt::Display for WeightCalibrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(NAMES[*self as usize].0)
    }
}

impl FromStr for WeightCalibrator {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let names = NAMES.iter().map(|(name, _)| *name);
        lookup("weight calibrator", text, names).map(|at| NAMES[at].1)
    }
}

impl WeightCalibrator {
    /// What a format uses unless told otherwise: with fewer than 8 bits clipping pays, with 8 and more it does not.
    pub fn default_for(base: Base) -> Self {
        match base.info().bits {
            0..8 => WeightCalibrator::Mse,
            _ => WeightCalibrator::MinMax,
        }
    }
}

/// What a scale may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScaleKind {
    /// A power of two.
    pub power_of_two: bool,
    /// Stored as FP16: rounded to it, and not below its smallest normal number.
    pub half: bool,
}

impl ScaleKind {
    /// The scale as it is stored. A power of two is the next above, so that nothing is clipped.
    #[inline]
    pub fn stored(self, scale: f32) -> f32 {
        let scale = if self.power_of_two {
            next_power_of_two(scale)
        } else {
            scale
        };
        if self.half {
            let nearest = half::f16::from_f32(scale);
            return nearest
                .clamp(half::f16::MIN_POSITIVE, half::f16::MAX)
                .to_f32();
        }
        scale.clamp(f32::MIN_POSITIVE, f32::MAX)
    }
}

/// The smallest power of two that is not below a positive number.
fn next_power_of_two(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let exponent = (bits >> 23) as i32 - 127 + i32::from(bits & 0x7f_ffff != 0);
    pow2(exponent.min(127))
}

/// How weights are quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightQuantizer {
    /// The format of the codes.
    pub base: Base,
    /// Where zero points lie.
    pub scheme: Scheme,
    /// How much of the code range is used.
    pub options: QOptions,
    /// How ranges are chosen.
    pub calibrator: WeightCalibrator,
    /// What scales may be.
    pub scale: ScaleKind,
}

/// Why a tensor cannot be stored in a format.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScalingError {
    /// Data that does not fit its shape.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A group has no range.
    #[error("group {group}: {source}")]
    Range {
        /// The group: a channel or a block.
        group: usize,
        /// Why.
        source: RangeError,
    },
}

/// Factors of the range that the search tries: 1 down to 0.3, then between the neighbours of the best.
const STEPS: u8 = 28;
const STEP: f32 = 0.025;

/// Values above which an error is summed in parallel.
const LONG: usize = 1 << 17;
/// Values that one sum takes.
const CHUNK: usize = 1 << 12;

/// Scale, zero point and code range of each group, for integer formats.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn choose_params(
    data: &[f32],
    grouping: Grouping,
    how: &WeightQuantizer,
) -> Result<Vec<QParams>, ScalingError> {
    let fixed = match how.base {
        Base::Fixed { fraction, .. } => {
            let scale = pow2(-i32::from(fraction));
            Some(QParams::for_type(scale, 0, how.base))
        }
        _ => None,
    };
    let chooser = Chooser::new(how.base, how.scheme, how.options);
    let params_of = |low: f32, high: f32| params_of(low, high, &chooser, how);
    let any = QParams::for_type(1.0, 0, how.base);
    let of = |(low, high)| params_of(low, high).map(|params| fixed.unwrap_or(params));
    if fixed.is_some() || how.calibrator == WeightCalibrator::MinMax {
        return map_ranges(data, grouping, any, of);
    }
    let both = |range| Ok((range, of(range)?));
    let widest = map_ranges(data, grouping, ((0.0, 0.0), any), both)?;
    Ok(grouping.map_groups(data, |group, values| {
        let ((low, high), widest) = widest[group];
        vectorized(
            #[inline(always)]
            || {
                let trial = |factor: f32| {
                    let params = params_of(low * factor, high * factor).unwrap_or(widest);
                    (squared_error(values, &params), params)
                };
                least(widest, squared_error(values, &widest), trial)
            },
        )
    }))
}

/// `f` of the range of each group; the error is that of the first group that has one.
fn map_ranges<R: Send + Sync + Copy>(
    data: &[f32],
    grouping: Grouping,
    otherwise: R,
    f: impl Fn((f32, f32)) -> Result<R, RangeError> + Sync,
) -> Result<Vec<R>, ScalingError> {
    // A vector of plain values is filled in place by all threads, one of results is not.
    let failed = Mutex::new(None);
    let found = grouping.map_ranges(data, |group, range| {
        f(range).unwrap_or_else(|source| {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.is_none_or(|(first, _)| group < first) {
                *failed = Some((group, source));
            }
            otherwise
        })
    })?;
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((group, source)) => Err(ScalingError::Range { group, source }),
        None => Ok(found),
    }
}

#[inline]
pub(crate) fn params_of(
    low: f32,
    high: f32,
    chooser: &Chooser,
    how: &WeightQuantizer,
) -> Result<QParams, RangeError> {
    let mut params = chooser.choose(low, high)?;
    let stored = how.scale.stored(params.scale);
    if stored != params.scale && how.scheme == Scheme::Asymmetric {
        let exact = f64::from(params.qmax) - f64::from(high.max(0.0)) / f64::from(stored);
        params.zero_point = (exact.round_ties_even() as i32).clamp(params.qmin, params.qmax);
    }
    params.scale = stored;
    Ok(params)
}

/// The candidate of least error; of equal ones the first.
#[inline(always)]
fn least<T: Copy>(widest: T, error: f64, trial: impl Fn(f32) -> (f64, T)) -> T {
    let mut best = (error, widest, 1.0f32);
    let mut attempt = |factor: f32| {
        let (error, candidate) = trial(factor);
        if error < best.0 {
            best = (error, candidate, factor);
        }
        best.2
    };
    let mut at = 1.0;
    for step in 1..=STEPS {
        at = attempt(1.0 - f32::from(step) * STEP);
    }
    for part in [-0.5f32, 0.5] {
        attempt(at + part * STEP);
    }
    best.1
}

/// `Σ (x − Q(x))²`, in an order that does not depend on the number of threads.
#[inline(always)]
pub fn squared_error(values: &[f32], params: &QParams) -> f64 {
    match Kernel::new(params) {
        Some(kernel) => sum_of(
            values,
            #[inline(always)]
            |x| kernel.fake(x) - x,
        ),
        None => sum_of(values, |x| params.dequantize(quantize_wide(x, params)) - x),
    }
}

/// `Σ f(x)²`.
#[inline(always)]
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32 + Sync) -> f64 {
    if values.len() < LONG {
        return values.chunks(CHUNK).map(|part| part_of(part, &f)).sum();
    }
    let parts = values.par_chunks(CHUNK);
    let parts: Vec<f64> = parts
        .map(|part| {
            vectorized(
                #[inline(always)]
                || part_of(part, &f),
            )
        })
        .collect();
    parts.iter().sum()
}

#[inline(always)]
fn part_of(values: &[f32], f: &impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            let e = f(x);
            *lane += e * e;
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(f(x)).powi(2)).sum();
    lanes.iter().map(|&l| f64::from(l)).sum::<f64>() + rest
}

/// The scale of each group, for float formats of 4 to 8 bits: the largest magnitude becomes the largest number.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn choose_scales(
    data: &[f32],
    grouping: Grouping,
    element: MiniFloat,
    calibrator: WeightCalibrator,
    kind: ScaleKind,
) -> Result<Vec<f32>, ScalingError> {
    let largest = element.largest();
    if calibrator == WeightCalibrator::MinMax {
        return map_ranges(data, grouping, 1.0, |range| scale_of(range, largest, kind));
    }
    let scale = |magnitude: f32| stored_scale(magnitude, largest, kind);
    let magnitudes = magnitudes(data, grouping)?;
    let encoder = Encoder::new(element);
    Ok(grouping.map_groups(data, |group, values| {
        let widest = scale(magnitudes[group]);
        vectorized(
            #[inline(always)]
            || {
                let trial = |factor: f32| {
                    let scale = scale(magnitudes[group] * factor);
                    (float_error(values, scale, &encoder), scale)
                };
                least(widest, float_error(values, widest, &encoder), trial)
            },
        )
    }))
}

/// The scale that makes the largest magnitude of a range the largest number of a format.
#[inline]
pub(crate) fn scale_of(
    range: (f32, f32),
    largest: f32,
    kind: ScaleKind,
) -> Result<f32, RangeError> {
    magnitude(range).map(|m| stored_scale(m, largest, kind))
}

#[inline]
fn stored_scale(magnitude: f32, largest: f32, kind: ScaleKind) -> f32 {
    match magnitude {
        0.0 => 1.0,
        _ => kind.stored(magnitude / largest),
    }
}

/// The largest magnitude of each group.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub(crate) fn magnitudes(data: &[f32], grouping: Grouping) -> Result<Vec<f32>, ScalingError> {
    map_ranges(data, grouping, 0.0, magnitude)
}

fn magnitude((min, max): (f32, f32)) -> Result<f32, RangeError> {
    if min.is_finite() && max.is_finite() {
        return Ok(max.max(-min).max(0.0));
    }
    Err(RangeError::NotFinite { min, max })
}

/// `Σ (x − scale · element(x / scale))²`.
#[inline(always)]
pub(crate) fn float_error(values: &[f32], scale: f32, element: &Encoder) -> f64 {
    sum_of(
        values,
        #[inline(always)]
        |x| element.round(x / scale) * scale - x,
    )
}

#[cfg(test)]
mod tests;
