//! Ranges found by search: the least Kullback–Leibler divergence and the least mean squared error.
//!
//! Both look at the histogram alone, whose bins are a small part of a quantization step.

use crate::affine::{QParams, RangeError, choose_qparams};
use crate::format::Scheme;
use crate::histogram::{Bin, Histogram};
use crate::observer::{Care, Target};

/// 1.5 · 2^52: in this binade the f64 numbers are the integers.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
/// Edges that are summed side by side.
const LANES: usize = 8;

/// Σ of squared quantization errors over the values of a histogram, each bin's values taken as spread evenly over it.
///
/// The integral of the squared error from 0 to `u` steps is `n/12 + (u − n)³/3` with `n = clamp(⌊u⌉)`: it holds in
/// the clipped region too. So bins narrower or wider than a step are both exact.
pub fn squared_error(histogram: &Histogram, params: &QParams) -> f64 {
    Density::of(histogram).squared_error(params)
}

/// The squared errors of ranges, each value weighted by how much its readers depend on it.
pub(crate) struct WeightedError(Density);

impl WeightedError {
    pub(crate) fn new(histogram: &Histogram, care: &Care) -> Self {
        let inner = |bin: &Bin| if bin.low < 0.0 { bin.high } else { bin.low };
        Self(Density::weighted(histogram, |bin| care.of(inner(bin))))
    }

    /// The error of the quantizer with this range; infinite if there is none.
    pub(crate) fn of(&self, (low, high): (f32, f32), target: Target) -> f64 {
        choose_qparams(
            low.min(0.0),
            high.max(0.0),
            target.base,
            target.scheme,
            target.options,
        )
        .map_or(f64::INFINITY, |params| self.0.squared_error(&params))
    }
}

/// A histogram for sums over its density, which is constant between its edges: an integral is a sum over the edges,
/// each with the step of the density there.
struct Density {
    /// Width of a bin.
    width: f64,
    /// Edges where the density changes, in ascending order.
    edges: Vec<f64>,
    /// Count of the bin that ends at an edge, less that of the bin that begins there.
    falls: Vec<f64>,
    /// Sums of 1, `x` and `x²` over the bins from the first to this edge, each value taken at its bin's inner edge.
    below: Vec<[f64; 3]>,
}

impl Density {
    fn of(histogram: &Histogram) -> Self {
        Self::weighted(histogram, |_| 1.0)
    }

    /// Every value counts as much as the weight of its bin.
    fn weighted(histogram: &Histogram, weight: impl Fn(&Bin) -> f64) -> Self {
        let mut density = Density {
            width: histogram.bin_width(),
            edges: Vec::new(),
            falls: Vec::new(),
            below: Vec::new(),
        };
        let (mut before, mut end) = (0.0, 0.0);
        let mut sums = [0.0; 3];
        for bin in histogram.bins() {
            let count = bin.count as f64 * if bin.count > 0 { weight(&bin) } else { 0.0 };
            density.push(bin.low, before - count, sums);
            let inner = if bin.low < 0.0 { bin.high } else { bin.low };
            sums[0] += count;
            sums[1] += count * inner;
            sums[2] += count * inner * inner;
            (before, end) = (count, bin.high);
        }
        density.push(end, before, sums);
        density
    }

    fn push(&mut self, edge: f64, fall: f64, below: [f64; 3]) {
        if fall != 0.0 {
            self.edges.push(edge);
            self.falls.push(fall);
            self.below.push(below);
        }
    }

    /// See [`squared_error`].
    fn squared_error(&self, params: &QParams) -> f64 {
        let scale = f64::from(params.scale);
        let reciprocal = 1.0 / scale;
        let low = f64::from(params.qmin) - f64::from(params.zero_point);
        let high = f64::from(params.qmax) - f64::from(params.zero_point);
        let term = |edge: f64, fall: f64| {
            let steps = edge * reciprocal;
            let above = if steps > low { steps } else { low };
            let clamped = if above < high { above } else { high };
            let code = (clamped + ROUNDER) - ROUNDER;
            let rest = steps - code;
            fall * (code * (1.0 / 12.0) + rest * rest * rest * (1.0 / 3.0))
        };
        let (edges, last_edges) = self.edges.as_chunks::<LANES>();
        let (falls, last_falls) = self.falls.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (edges, falls) in edges.iter().zip(falls) {
            for lane in 0..LANES {
                sums[lane] += term(edges[lane], falls[lane]);
            }
        }
        let last = last_edges.iter().zip(last_falls);
        let last: f64 = last.map(|(&edge, &fall)| term(edge, fall)).sum();
        let sum = sums.iter().sum::<f64>() + last;
        sum * scale * scale * (scale / self.width)
    }

    /// A lower bound of the squared error of any range within `low..=high`: what lies outside is clipped at least that far.
    fn clipping(&self, low: f64, high: f64) -> f64 {
        let cost = |[n, x, xx]: [f64; 3], end: f64| xx - 2.0 * end * x + end * end * n;
        let sums = |at: usize| self.below.get(at).copied().unwrap_or_default();
        let under = sums(self.edges.partition_point(|&e| e <= low).saturating_sub(1));
        let (all, upto) = (
            sums(self.edges.len().saturating_sub(1)),
            self.edges.partition_point(|&e| e < high),
        );
        let over = match self.below.get(upto) {
            Some(upto) => std::array::from_fn(|i| all[i] - upto[i]),
            None => [0.0; 3],
        };
        cost(under, low.min(0.0)) + cost(over, high.max(0.0))
    }
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
    let density = Density::of(histogram);
    let error = |low: f32, high: f32| Trial::of(&density, low, high, target);
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

/// A range that is tried.
struct Trial {
    error: f64,
    /// Ranges within this one have at least this error.
    floor: f64,
}

impl Trial {
    fn of(density: &Density, low: f32, high: f32, target: Target) -> Self {
        let Ok(params) = choose_qparams(low, high, target.base, target.scheme, target.options)
        else {
            return Trial {
                error: f64::INFINITY,
                floor: 0.0,
            };
        };
        // The zero point of a narrower range may move its ends by a step of that range.
        let (low, high) = params.real_range();
        let step = f64::from(params.scale);
        Trial {
            error: density.squared_error(&params),
            floor: density.clipping(f64::from(low) - step, f64::from(high) + step),
        }
    }
}

/// The factor in (0, 1] for which the error is least, and that error: four to the octave over sixteen octaves, then
/// refined twice between the neighbours of the best. Of equal errors the largest factor is kept. Where clipping alone
/// costs more than the best found, smaller factors are not tried.
fn shrink(trial: impl Fn(f32) -> Trial) -> (f32, f64) {
    let mut best = (1.0f32, trial(1.0).error);
    for quarter in 1..64u8 {
        let factor = (-f32::from(quarter) / 4.0).exp2();
        let found = trial(factor);
        if found.error < best.1 {
            best = (factor, found.error);
        }
        if found.floor > best.1 {
            break;
        }
    }
    let mut span = 0.19;
    for _ in 0..2 {
        let middle = best.0;
        for step in (-5i8..=5).filter(|step| *step != 0) {
            let factor = middle * (1.0 + span * f32::from(step) / 5.0);
            if factor <= 1.0 {
                let found = trial(factor).error;
                if found < best.1 {
                    best = (factor, found);
                }
            }
        }
        span /= 5.0;
    }
    best
}

mod kl;
#[cfg(test)]
mod tests;

pub use kl::kl_range;
