//! Ranges found by search: the least Kullback–Leibler divergence and the least mean squared error.
//!
//! Both look at the histogram alone, whose bins are a small part of a quantization step.

use crate::affine::{QParams, RangeError, choose_qparams, code_range};
use crate::format::Scheme;
use crate::histogram::{Bin, Histogram};
use crate::observer::Target;

/// 1.5 · 2^52: in this binade the f64 numbers are the integers.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// Σ of squared quantization errors over the values of a histogram, each bin's values taken as spread evenly over it.
///
/// The integral of the squared error from 0 to `u` steps is `n/12 + (u − n)³/3` with `n = clamp(⌊u⌉)`: it holds in
/// the clipped region too. So bins narrower or wider than a step are both exact.
pub fn squared_error(histogram: &Histogram, params: &QParams) -> f64 {
    squared_error_of(&filled(histogram), params)
}

fn squared_error_of(bins: &[Bin], params: &QParams) -> f64 {
    let scale = f64::from(params.scale);
    let low = f64::from(params.qmin) - f64::from(params.zero_point);
    let high = f64::from(params.qmax) - f64::from(params.zero_point);
    let integral = |x: f64| {
        let steps = x / scale;
        let code = (steps.max(low).min(high) + ROUNDER) - ROUNDER;
        let rest = steps - code;
        code / 12.0 + rest * rest * rest / 3.0
    };
    let error = |bin: &Bin| {
        let width = (bin.high - bin.low) / scale;
        bin.count as f64 * (integral(bin.high) - integral(bin.low)) / width
    };
    bins.iter().map(error).sum::<f64>() * scale * scale
}

/// The bins that hold values.
fn filled(histogram: &Histogram) -> Vec<Bin> {
    histogram.bins().filter(|bin| bin.count > 0).collect()
}

/// The range of least mean squared error, `min E(X − Q(X))²`.
///
/// Both ends are moved together at first; an asymmetric target's ends then in turn, until neither gains.
///
/// Source: Choukroun et al., *Low-bit Quantization of Neural Networks for Efficient Inference*, 2019, section 3.
///
/// # Errors
/// [`RangeError::NoValues`] for an empty histogram.
pub fn mse_range(histogram: &Histogram, target: Target) -> Result<(f32, f32), RangeError> {
    let (min, max) = histogram.extremes().ok_or(RangeError::NoValues)?;
    let (min, max) = (min.min(0.0), max.max(0.0));
    let bins = filled(histogram);
    let error = |low: f32, high: f32| {
        let params = choose_qparams(low, high, target.base, target.scheme, target.options);
        params.map_or(f64::INFINITY, |params| squared_error_of(&bins, &params))
    };
    let (factor, mut best) = shrink(|factor| {
        let reach = max.max(-min) * factor;
        error(min.max(-reach), max.min(reach))
    });
    let reach = max.max(-min) * factor;
    let (mut low, mut high) = (min.max(-reach), max.min(reach));
    if target.scheme == Scheme::Symmetric || min == 0.0 || max == 0.0 {
        return Ok((low, high));
    }
    for _ in 0..3 {
        let before = best;
        let (factor, found) = shrink(|factor| error(low, max * factor));
        if found < best {
            (high, best) = (max * factor, found);
        }
        let (factor, found) = shrink(|factor| error(min * factor, high));
        if found < best {
            (low, best) = (min * factor, found);
        }
        if best >= before {
            break;
        }
    }
    Ok((low, high))
}

/// The factor in (0, 1] for which `error` is least, and that error: four to the octave over sixteen octaves, then
/// refined twice between the neighbours of the best. Of equal errors the largest factor is kept.
fn shrink(error: impl Fn(f32) -> f64) -> (f32, f64) {
    let mut best = (1.0f32, error(1.0));
    let mut consider = |factor: f32| {
        let found = error(factor);
        if found < best.1 {
            best = (factor, found);
        }
        best.0
    };
    let mut around = 1.0;
    for quarter in 1..64u8 {
        around = consider((-f32::from(quarter) / 4.0).exp2());
    }
    let mut span = 0.19;
    for _ in 0..2 {
        let middle = around;
        for step in (-5i8..=5).filter(|step| *step != 0) {
            let factor = middle * (1.0 + span * f32::from(step) / 5.0);
            if factor <= 1.0 {
                around = consider(factor);
            }
        }
        span /= 5.0;
    }
    best
}

/// The range of least divergence `D_KL(P‖Q)`: `P` the histogram with what lies outside the range added to the
/// outermost bins, `Q` the bins inside it merged into the target's levels and spread again over the bins that hold values.
///
/// Data on both sides of zero is cut at the same distance on both. Ranges from one bin to a level up to the whole are
/// tried, in steps of 1 %. Of the divergence, what values drawn from `Q` itself would show is subtracted,
/// `(bins − levels) / 2n` over those that hold five values or more; else every range would be charged for its number of bins.
/// The bin at 0 counts no more than its neighbour: 0 has a code of its own, and the many exact zeros after a Relu
/// would otherwise decide alone, merged with bins that hold little. With one bin to a level the rounding is not seen, so an outlier beyond some ten times the bulk lowers the precision of the cut.
///
/// Source: Migacz, *8-bit Inference with TensorRT*, 2017; the expectation: Miller, *Note on the bias of information
/// estimates*, 1955.
///
/// # Errors
/// [`RangeError::NoValues`] for an empty histogram.
pub fn kl_range(histogram: &Histogram, target: Target) -> Result<(f32, f32), RangeError> {
    let (min, max) = histogram.extremes().ok_or(RangeError::NoValues)?;
    let mut bins: Vec<Bin> = histogram.bins().collect();
    let below = bins.iter().take_while(|bin| bin.high <= 0.0).count();
    let above = bins.len() - below;
    if let [zero, next, ..] = &mut bins[below..] {
        zero.count = zero.count.min(next.count);
    }
    let (qmin, qmax) = code_range(target.base, target.options);
    let all_levels = (qmax - qmin) as usize + 1;
    let symmetric = target.scheme == Scheme::Symmetric;
    let levels = if below > 0 && above > 0 || !symmetric {
        all_levels
    } else {
        all_levels / 2
    };
    let sides = if below > 0 && above > 0 { 2 } else { 1 };

    let widest = below.max(above);
    let mut reach = (levels / sides).max(1);
    let mut best = (widest, f64::INFINITY);
    while reach < widest {
        let first = below.saturating_sub(reach);
        let last = (below + reach).min(bins.len());
        let found = divergence(&bins, first, last, levels);
        if found < best.1 {
            best = (reach, found);
        }
        reach += (reach / 100).max(1);
    }
    if divergence(&bins, 0, bins.len(), levels) <= best.1 {
        best.0 = widest;
    }
    let reach = (best.0 as f64 * histogram.bin_width()) as f32;
    Ok((min.max(-reach), max.min(reach)))
}

/// The divergence of cutting `bins` to `first..last` and merging that into `levels` groups, in nats per value.
fn divergence(bins: &[Bin], first: usize, last: usize, levels: usize) -> f64 {
    let sum = |bins: &[Bin]| bins.iter().map(|bin| bin.count as f64).sum::<f64>();
    let inside = &bins[first..last];
    let (total, kept) = (sum(bins), sum(inside));
    if kept == 0.0 {
        return f64::INFINITY;
    }
    let outside = (sum(&bins[..first]), sum(&bins[last..]));
    let group_of = |bin: usize| bin * levels / inside.len();
    let mut result = 0.0;
    let mut freedom = 0.0;
    let mut start = 0;
    while start < inside.len() {
        let length = inside[start..]
            .iter()
            .enumerate()
            .take_while(|(at, _)| group_of(start + at) == group_of(start))
            .count();
        let group = &inside[start..start + length];
        let holding = group.iter().filter(|bin| bin.count > 0).count() as f64;
        let values = sum(group);
        let q = if holding > 0.0 {
            values / holding / kept
        } else {
            0.0
        };
        // The expectation holds from about five values in a bin on, as for the chi-squared statistic.
        freedom += if values >= 5.0 * holding {
            (holding - 1.0).max(0.0)
        } else {
            0.0
        };
        for (at, bin) in group.iter().enumerate() {
            let mut p = bin.count as f64;
            p += if start + at == 0 { outside.0 } else { 0.0 };
            p += if start + at == inside.len() - 1 {
                outside.1
            } else {
                0.0
            };
            let p = p / total;
            if p > 0.0 {
                // A tenth of a value is the floor where the bins inside the range hold none.
                result += p * (p / q.max(0.1 / total)).ln();
            }
        }
        start += length;
    }
    result - freedom / (2.0 * total)
}

#[cfg(test)]
mod tests;
