//! Sorted values, and runs of them that a search does not split.

use rayon::prelude::*;

use super::KMeansError;

/// Values in ascending order with their weights.
pub(super) struct Sorted {
    pub(super) values: Vec<f32>,
    /// One for each value; `None` where all are 1.
    pub(super) weights: Option<Vec<f32>>,
}

/// Keys that sort as the values do.
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key & !(1 << 31)
    } else {
        !key
    })
}

impl Sorted {
    pub(super) fn new(values: &[f32], importance: Option<&[f32]>) -> Result<Self, KMeansError> {
        let odd = values.par_iter().position_first(|x| !x.is_finite());
        if let Some(at) = odd {
            return Err(KMeansError::NotFinite(at));
        }
        let Some(weights) = importance else {
            let mut keys: Vec<u32> = values.par_iter().map(|&x| key(x + 0.0)).collect();
            keys.par_sort_unstable();
            return Ok(Self {
                values: keys.into_par_iter().map(value).collect(),
                weights: None,
            });
        };
        if weights.len() != values.len() {
            return Err(KMeansError::Length {
                values: values.len(),
                weights: weights.len(),
            });
        }
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let valid = weights.iter().all(|w| *w >= 0.0 && w.is_finite());
        if !(valid && (total > 0.0 || values.is_empty())) {
            return Err(KMeansError::Weights);
        }
        // Equal values with different weights are sorted by weight: the result does not depend on their order.
        let pack = |(&x, &w): (&f32, &f32)| u64::from(key(x + 0.0)) << 32 | u64::from(w.to_bits());
        let mut keys: Vec<u64> = values.par_iter().zip(weights).map(pack).collect();
        keys.par_sort_unstable();
        Ok(Self {
            values: keys.par_iter().map(|k| value((k >> 32) as u32)).collect(),
            weights: Some(keys.par_iter().map(|&k| f32::from_bits(k as u32)).collect()),
        })
    }

    pub(super) fn weight(&self, at: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |w| f64::from(w[at]))
    }

    /// Ends of the runs of values that are nearest to each entry.
    pub(super) fn ends(&self, codebook: &[f32]) -> Vec<usize> {
        let mut ends: Vec<usize> = codebook
            .windows(2)
            .map(|w| {
                let t = super::threshold(w[0], w[1]);
                self.values.partition_point(|&x| x <= t)
            })
            .collect();
        ends.push(self.values.len());
        ends
    }

    /// Weighted squared error of a codebook. Sums are taken in pieces of fixed length, in order.
    pub(super) fn error(&self, codebook: &[f32]) -> f64 {
        let mut start = 0;
        let mut total = 0.0;
        for (end, &c) in self.ends(codebook).into_iter().zip(codebook) {
            total += self.sum(start..end, |x| (x - f64::from(c)) * (x - f64::from(c)));
            start = end;
        }
        total
    }

    /// Weighted sum of a function of the values in a range.
    pub(super) fn sum(&self, range: std::ops::Range<usize>, f: impl Fn(f64) -> f64 + Sync) -> f64 {
        const PIECE: usize = 1 << 14;
        let values = &self.values[range.clone()];
        let parts: Vec<f64> = match &self.weights {
            None => values
                .par_chunks(PIECE)
                .map(|x| x.iter().map(|&x| f(f64::from(x))).sum())
                .collect(),
            Some(w) => values
                .par_chunks(PIECE)
                .zip(w[range].par_chunks(PIECE))
                .map(|(x, w)| {
                    x.iter()
                        .zip(w)
                        .map(|(&x, &w)| f64::from(w) * f(f64::from(x)))
                        .sum()
                })
                .collect(),
        };
        parts.into_iter().sum()
    }
}

/// Runs of sorted values with prefix sums. Values are taken relative to their mean, so that the differences of prefix
/// sums keep their digits.
pub(super) struct Atoms {
    /// Smallest value of each atom.
    pub(super) first: Vec<f32>,
    /// Sums of weights before each atom; one entry more than atoms.
    weight: Vec<f64>,
    /// Sums of weight × value before each atom.
    linear: Vec<f64>,
    /// Sums of weight × value² before each atom.
    square: Vec<f64>,
    center: f64,
    /// Smallest and largest value.
    range: (f32, f32),
    /// Every atom is one value.
    exact: bool,
}

impl Atoms {
    /// At most `limit` atoms: each different value is one where that many are enough; else an atom ends where a fine
    /// linear grid changes its cell and where it holds its share of the values.
    pub(super) fn new(sorted: &Sorted, limit: usize) -> Self {
        let values = &sorted.values;
        let range = match (values.first(), values.last()) {
            (Some(&a), Some(&b)) => (a, b),
            _ => (0.0, 0.0),
        };
        let (low, high) = (f64::from(range.0), f64::from(range.1));
        let different = 1 + values.windows(2).filter(|w| w[0] < w[1]).count();
        let exact = different <= limit;
        let share = values.len().div_ceil(limit / 2).max(1);
        let cells = (limit / 2 - 1) as f64 / (high - low).max(f64::MIN_POSITIVE);
        let center = sorted.sum(0..values.len(), |x| x)
            / sorted.sum(0..values.len(), |_| 1.0).max(f64::MIN_POSITIVE);
        let mut atoms = Self {
            first: Vec::new(),
            weight: vec![0.0],
            linear: vec![0.0],
            square: vec![0.0],
            center,
            range,
            exact,
        };
        let (mut cell, mut held, mut sums) = (usize::MAX, 0, (0.0, 0.0, 0.0));
        let mut before = f32::NAN;
        for (at, &x) in values.iter().enumerate() {
            let here = ((f64::from(x) - low) * cells) as usize;
            let ends = match exact {
                true => x != before,
                false => x != before && (here != cell || held >= share),
            };
            if ends {
                if at > 0 {
                    atoms.close(sums);
                }
                atoms.first.push(x);
                (cell, held) = (here, 0);
            }
            before = x;
            held += 1;
            let (w, d) = (sorted.weight(at), f64::from(x) - center);
            sums = (sums.0 + w, sums.1 + w * d, sums.2 + w * d * d);
        }
        if !values.is_empty() {
            atoms.close(sums);
        }
        atoms
    }

    fn close(&mut self, (weight, linear, square): (f64, f64, f64)) {
        self.weight.push(weight);
        self.linear.push(linear);
        self.square.push(square);
    }

    pub(super) fn len(&self) -> usize {
        self.first.len()
    }

    pub(super) fn exact(&self) -> bool {
        self.exact
    }

    /// Squared error of the atoms `from..to` around their mean.
    #[inline(always)]
    pub(super) fn cost(&self, from: usize, to: usize) -> f64 {
        let w = self.weight[to] - self.weight[from];
        if w <= 0.0 {
            return 0.0;
        }
        let s = self.linear[to] - self.linear[from];
        (self.square[to] - self.square[from] - s * s / w).max(0.0)
    }

    /// Mean of the atoms `from..to`; `None` where they have no weight. A run of one value keeps it to the last bit.
    pub(super) fn mean(&self, from: usize, to: usize) -> Option<f32> {
        let w = self.weight[to] - self.weight[from];
        if from >= to || w <= 0.0 {
            return None;
        }
        if self.exact && to - from == 1 {
            return Some(self.first[from]);
        }
        Some(((self.linear[to] - self.linear[from]) / w + self.center) as f32)
    }

    /// Means of the runs that start at these atoms.
    pub(super) fn means(&self, starts: &[usize]) -> Vec<f32> {
        let ends = starts.iter().skip(1).copied().chain([self.len()]);
        let runs = starts.iter().copied().zip(ends);
        let mut means: Vec<f32> = runs.filter_map(|(a, b)| self.mean(a, b)).collect();
        means.sort_by(f32::total_cmp);
        means
    }

    /// Weight of everything.
    pub(super) fn total(&self) -> f64 {
        self.weight.last().copied().unwrap_or(0.0)
    }

    /// Smallest and largest value.
    pub(super) fn range(&self) -> (f32, f32) {
        self.range
    }

    /// The atom that holds this share of the weight.
    pub(super) fn at_weight(&self, weight: f64) -> usize {
        let at = self.weight.partition_point(|&w| w <= weight);
        at.saturating_sub(1).min(self.len().saturating_sub(1))
    }
}
