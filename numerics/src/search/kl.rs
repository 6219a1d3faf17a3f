//! The range of least Kullback–Leibler divergence: an exhaustive search over the bins of a histogram.

use std::sync::LazyLock;

use super::Target;
use crate::affine::{RangeError, code_range};
use crate::format::Scheme;
use crate::histogram::{Bin, Histogram};

/// Fine bins for each level that are kept at least, where the histogram has them.
const FINENESS: usize = 8;
/// Levels whose even share of the values may lie outside the range.
const LEVELS_OUTSIDE: f64 = 4.0;
/// Groups after which a candidate is given up if it can no longer win.
const STRIDE: usize = 16;

/// The range of least divergence `D_KL(P‖Q)`: `P` the histogram with what lies outside the range added to the
/// outermost bins, `Q` the bins inside it merged into the target's levels and spread again over the bins that hold values.
///
/// Data on both sides of zero is cut at the same distance on both. Every range is tried that ends between two bins,
/// from one bin to a level up to the whole; there are at least 8 times more bins than levels. Of the divergence, what values drawn
/// from `Q` itself would show is subtracted, `(bins − levels) / 2n` over those that hold five values or more; else every
/// range would be charged for its number of bins. The bin at 0 counts no more than its neighbour: 0 has a code of its own,
/// and the many exact zeros after a Relu would otherwise decide alone, merged with bins that hold little.
///
/// Source: Migacz, *8-bit Inference with TensorRT*, 2017; the expectation: Miller, *Note on the bias of information
/// estimates*, 1955.
///
/// # Errors
/// [`RangeError::NoValues`] for an empty histogram.
pub fn kl_range(histogram: &Histogram, target: Target) -> Result<(f32, f32), RangeError> {
    let (min, max) = histogram.extremes().ok_or(RangeError::NoValues)?;
    let problem = Problem::new(histogram, target);
    let reach = (problem.search().0 as f64 * problem.width) as f32;
    Ok((min.max(-reach), max.min(reach)))
}

/// The histogram as the search sees it.
pub(super) struct Problem {
    pub(super) width: f64,
    /// Counts in ascending order of the values.
    pub(super) counts: Vec<f64>,
    /// Bins below zero.
    pub(super) below: usize,
    pub(super) levels: usize,
    /// The shortest distance from zero that is tried, in bins.
    pub(super) shortest: usize,
    before: Vec<Sums>,
    total: f64,
}

/// Sums over the bins before an edge, or between two.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    values: u64,
    /// Bins that hold values.
    holding: u64,
    /// `c ln c`.
    entropy: f64,
}

impl Problem {
    pub(super) fn new(histogram: &Histogram, target: Target) -> Self {
        let bins: Vec<Bin> = histogram.bins().collect();
        let negative = bins.iter().take_while(|bin| bin.high <= 0.0).count();
        let (qmin, qmax) = code_range(target.base, target.options);
        let all_levels = (qmax - qmin) as usize + 1;
        let both = negative > 0 && bins.len() > negative;
        let levels = if both || target.scheme != Scheme::Symmetric {
            all_levels
        } else {
            (all_levels / 2).max(1)
        };
        let shortest = (levels / if both { 2 } else { 1 }).max(1);
        let widest = negative.max(bins.len() - negative);
        let mut merge = 1;
        while widest / (2 * merge) >= FINENESS * shortest {
            merge *= 2;
        }
        let count = |bins: &[Bin]| bins.iter().map(|bin| bin.count as f64).sum::<f64>();
        let (left, right) = bins.split_at(negative);
        let mut counts: Vec<f64> = left.rchunks(merge).rev().map(count).collect();
        let below = counts.len();
        counts.extend(right.chunks(merge).map(count));
        if let [zero, next, ..] = &mut counts[below..] {
            *zero = zero.min(*next);
        }
        let mut before = vec![Sums::default()];
        let mut sums = Sums::default();
        for &c in &counts {
            sums.values = sums.values.saturating_add(c as u64);
            sums.holding += u64::from(c > 0.0);
            sums.entropy += if c > 0.0 { c * c.ln() } else { 0.0 };
            before.push(sums);
        }
        let mut problem = Problem {
            width: histogram.bin_width() * merge as f64,
            counts,
            below,
            levels,
            shortest,
            before,
            total: sums.values as f64,
        };
        problem.shortest = problem.shortest.max(problem.reach_of_most());
        problem
    }

    /// The shortest distance that leaves out no more values than [`LEVELS_OUTSIDE`] levels hold on average.
    fn reach_of_most(&self) -> usize {
        let enough = self.total * (1.0 - LEVELS_OUTSIDE / self.levels as f64);
        let reaches: Vec<usize> = (1..=self.widest()).collect();
        let kept = |reach: usize| {
            let last = (self.below + reach).min(self.counts.len());
            self.between(self.below.saturating_sub(reach), last).values as f64
        };
        1 + reaches.partition_point(|&reach| kept(reach) < enough)
    }

    pub(super) fn widest(&self) -> usize {
        self.below.max(self.counts.len() - self.below)
    }

    /// The distance of least divergence in bins, and that divergence. Of equal ones the longer is kept.
    pub(super) fn search(&self) -> (usize, f64) {
        let widest = self.widest();
        let mut best = (widest, self.divergence(widest, f64::INFINITY));
        // A good candidate found early ends the others sooner.
        let coarse = (self.shortest..widest).rev().step_by(32);
        let all = (self.shortest..widest).rev();
        for reach in coarse.chain(all) {
            let found = self.divergence(reach, best.1);
            if found < best.1 || (found == best.1 && reach > best.0) {
                best = (reach, found);
            }
        }
        best
    }

    /// The divergence of cutting the bins at this distance, in nats per value; infinite as soon as it is known to
    /// exceed `limit`.
    ///
    /// `v` values in `h` bins that hold `c` each add `Σ c ln c − v (ln v − ln h) ≥ 0` to `n D`, and all of the range
    /// together `kept · ln(kept / n)`; so what is summed can fall only by the expectations that are still to come.
    pub(super) fn divergence(&self, reach: usize, limit: f64) -> f64 {
        let first = self.below.saturating_sub(reach);
        let last = (self.below + reach).min(self.counts.len());
        let inside = self.between(first, last);
        let (kept, mut open) = (inside.values as f64, inside.holding);
        if kept == 0.0 {
            return f64::INFINITY;
        }
        let length = last - first;
        let groups = self.levels.min(length);
        let edge = |group: usize| first + (group * length).div_ceil(groups);
        let mut sum = kept * (kept / self.total).ln();
        let outside = [
            (first, self.before[first].values as f64, 0),
            (
                last - 1,
                self.total - self.before[last].values as f64,
                groups - 1,
            ),
        ];
        if length == 1 {
            sum += self.moved_in(first, outside[0].1 + outside[1].1, (first, last), kept);
        } else {
            for (bin, missing, group) in outside {
                sum += self.moved_in(bin, missing, (edge(group), edge(group + 1)), kept);
            }
        }
        // From zero outwards, where most values are: a hopeless candidate is known soonest.
        let middle = (self.below.min(last) - first) * groups / length;
        let logarithms = &*LOGARITHMS;
        let edges = Edges::new(first, length, groups);
        let mut from = edges.at(middle);
        let mut gain = 0;
        for step in 0..groups {
            let up = step < groups - middle;
            if step == groups - middle {
                from = edges.at(middle);
            }
            let to = edges.at(if up {
                middle + step + 1
            } else {
                groups - step - 1
            });
            let group = match up {
                true => self.between(from, to),
                false => self.between(to, from),
            };
            from = to;
            let Sums {
                values, holding, ..
            } = group;
            sum += group.entropy - values as f64 * (logarithms.of(values) - logarithms.of(holding));
            // Without branches: which groups of sparse data hold values cannot be predicted.
            gain += if values >= 5 * holding {
                holding.saturating_sub(1)
            } else {
                0
            };
            open -= holding;
            let most = || (open + gain) as f64 / 2.0;
            if step % STRIDE == STRIDE - 1 && sum - most() > limit * self.total {
                return f64::INFINITY;
            }
        }
        sum -= gain as f64 / 2.0;
        sum / self.total
    }

    /// What values from outside the range add to `n D` when they count in the outermost bin. A tenth of a value is the
    /// floor of `Q` where its group holds none.
    fn moved_in(&self, bin: usize, missing: f64, (from, to): (usize, usize), kept: f64) -> f64 {
        if missing == 0.0 {
            return 0.0;
        }
        let Sums {
            values, holding, ..
        } = self.between(from, to);
        let q = if values > 0 {
            values as f64 / holding as f64 / kept * self.total
        } else {
            0.0
        };
        let term = |c: f64, q: f64| if c > 0.0 { c * (c / q).ln() } else { 0.0 };
        let count = self.counts[bin];
        term(count + missing, q.max(0.1)) - term(count, q)
    }

    #[inline(always)]
    fn between(&self, from: usize, to: usize) -> Sums {
        let (a, b) = (&self.before[from], &self.before[to]);
        Sums {
            values: b.values - a.values,
            holding: b.holding - a.holding,
            entropy: b.entropy - a.entropy,
        }
    }
}

/// The edges between groups of bins, `first + ⌈group · length / groups⌉`, without a division or a branch for each.
struct Edges {
    first: usize,
    length: usize,
    groups: usize,
    /// `2^40 / groups`, rounded up: exact for groups of up to 2^13 bins each way, since the quotient's error is below
    /// `2^(26 − 40)`.
    reciprocal: u64,
}

impl Edges {
    fn new(first: usize, length: usize, groups: usize) -> Self {
        Edges {
            first,
            length,
            groups,
            reciprocal: (1 << 40) / groups as u64 + 1,
        }
    }

    #[inline(always)]
    fn at(&self, group: usize) -> usize {
        let dividend = (group * self.length + self.groups - 1) as u64;
        self.first + ((dividend * self.reciprocal) >> 40) as usize
    }
}

/// Whole numbers whose logarithms are looked up.
const WHOLE: usize = 1 << 14;
/// Entries of the table for larger ones.
const ENTRIES: usize = 1 << 10;

static LOGARITHMS: LazyLock<Logarithms> = LazyLock::new(|| {
    let middle = |i: usize| 1.0 + (i as f64 + 0.5) / ENTRIES as f64;
    Logarithms {
        whole: (0..WHOLE).map(|i| (i.max(1) as f64).ln()).collect(),
        parts: (0..ENTRIES)
            .map(|i| (1.0 / middle(i), middle(i).ln()))
            .collect(),
    }
});

/// Natural logarithms of whole numbers.
struct Logarithms {
    whole: Vec<f64>,
    /// By part of a binade the reciprocal of its middle, and its logarithm.
    parts: Vec<(f64, f64)>,
}

impl Logarithms {
    /// The logarithm to 1e-13 or better, that of 0 taken as 0.
    #[inline(always)]
    fn of(&self, x: u64) -> f64 {
        match self.whole.get(x as usize) {
            Some(&log) => log,
            None => self.of_large(x as f64),
        }
    }

    /// That of a positive normal number: the middle of the nearest of [`ENTRIES`] parts of the binade from a table,
    /// and three terms of the series around it.
    fn of_large(&self, x: f64) -> f64 {
        let bits = x.to_bits();
        let exponent = (bits >> 52) as i32 - 1023;
        let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
        let (reciprocal, log) = self.parts[(bits >> 42) as usize & (ENTRIES - 1)];
        let r = mantissa * reciprocal - 1.0;
        f64::from(exponent) * std::f64::consts::LN_2 + log + r * (1.0 - r * (0.5 - r / 3.0))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::affine::QOptions;
    use crate::format::Base;

    /// The divergence bin by bin, as its definition says.
    fn by_definition(p: &Problem, reach: usize) -> f64 {
        let first = p.below.saturating_sub(reach);
        let last = (p.below + reach).min(p.counts.len());
        let inside = &p.counts[first..last];
        let kept: f64 = inside.iter().sum();
        let total: f64 = p.counts.iter().sum();
        if kept == 0.0 {
            return f64::INFINITY;
        }
        let (under, over) = (
            p.counts[..first].iter().sum::<f64>(),
            p.counts[last..].iter().sum::<f64>(),
        );
        let groups = p.levels.min(inside.len());
        let mut result = 0.0;
        for group in 0..groups {
            let start = |group: usize| (group * inside.len()).div_ceil(groups);
            let members: Vec<usize> = (start(group)..start(group + 1)).collect();
            let values: f64 = members.iter().map(|&i| inside[i]).sum();
            let holding = members.iter().filter(|&&i| inside[i] > 0.0).count() as f64;
            let q = if values > 0.0 {
                values / holding / kept
            } else {
                0.0
            };
            for &i in &members {
                let mut c = inside[i];
                let mut floor = 0.0;
                for (edge, missing) in [(0, under), (inside.len() - 1, over)] {
                    if i == edge && missing > 0.0 {
                        c += missing;
                        floor = 0.1 / total;
                    }
                }
                if c > 0.0 {
                    result += c / total * (c / total / q.max(floor)).ln();
                }
            }
            if values >= 5.0 * holding && values > 0.0 {
                result -= (holding - 1.0) / (2.0 * total);
            }
        }
        result
    }

    #[test]
    fn the_optimum_of_an_exhaustive_search() {
        type Quantile = fn(f64) -> f64;
        let shapes: [(&str, Quantile); 5] = [
            ("uniform", |u| u * 9.0 - 4.0),
            ("logistic", |u| (u / (1.0 - u)).ln()),
            ("heavy", |u| (u - 0.5) / (u * (1.0 - u))),
            ("relu", |u| (u / (1.0 - u)).ln().max(0.0)),
            ("lognormal", |u| (u / (1.0 - u)).ln().exp()),
        ];
        for (name, quantile) in shapes {
            let x: Vec<f32> = (1..3000)
                .map(|i| quantile(f64::from(i) / 3000.0) as f32)
                .collect();
            let mut histogram = Histogram::new();
            histogram.observe(&x);
            for (base, scheme) in [
                (Base::INT8, Scheme::Symmetric),
                (Base::UINT8, Scheme::Asymmetric),
                (Base::INT4, Scheme::Symmetric),
            ] {
                let options = QOptions::default();
                let problem = Problem::new(
                    &histogram,
                    Target {
                        base,
                        scheme,
                        options,
                    },
                );
                let (reach, found) = problem.search();
                assert!(
                    (by_definition(&problem, reach) - found).abs() < 1e-9,
                    "{name} {base}"
                );
                let least = (problem.shortest..=problem.widest())
                    .map(|reach| by_definition(&problem, reach))
                    .fold(f64::INFINITY, f64::min);
                assert!(found <= least + 1e-9, "{name} {base}: {found} {least}");
            }
        }
    }

    #[test]
    fn few_values_far_from_zero_are_not_cut_off() {
        let x: Vec<f32> = (0..1000).map(|i| 0.14 + (i as f32) * 0.001).collect();
        let mut histogram = Histogram::new();
        histogram.observe(&x);
        let (low, high) = kl_range(&histogram, Target::default()).unwrap();
        assert!(low <= 0.14 && high > 1.1, "{low} {high}");
    }

    #[test]
    fn logarithms() {
        for x in [1.0, 2.0, 0.1, 1e-300, 123_456.789, 1e18, 1.999_999] {
            assert!((LOGARITHMS.of_large(x) - f64::ln(x)).abs() < 1e-10, "{x}");
        }
        for x in [1, 2, 16_383, 16_384, 1 << 50] {
            assert!((LOGARITHMS.of(x) - (x as f64).ln()).abs() < 1e-10, "{x}");
        }
        assert_eq!(LOGARITHMS.of(0), 0.0);
    }

    #[test]
    fn edges_are_those_of_a_division() {
        for (length, groups) in [
            (1, 1),
            (8192, 8192),
            (8191, 4095),
            (1000, 255),
            (257, 256),
            (8192, 3),
        ] {
            let edges = Edges::new(7, length, groups);
            for group in 0..=groups {
                assert_eq!(edges.at(group), 7 + (group * length).div_ceil(groups));
            }
        }
    }

    #[test]
    fn single_bins() {
        for x in [&[0.0f32][..], &[1.0; 3], &[-1.0, 1.0]] {
            let mut histogram = Histogram::new();
            histogram.observe(x);
            kl_range(&histogram, Target::default()).unwrap();
        }
    }
}
