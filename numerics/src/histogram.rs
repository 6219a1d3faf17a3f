//! A histogram of a stream of values that needs no earlier pass for their range.
//!
//! Bins are a power of two wide and aligned to zero, [`SIDE`] of them on each side: bin `m` of the positive side
//! holds `m·w ≤ x < (m + 1)·w`, bin `m` of the negative side `m·w < −x ≤ …` mirrored, with −0 counted as 0. When a
//! value lies outside, `w` doubles and neighbours merge. The width depends on the largest magnitude alone and all
//! counts are integers, so any split of the same values, observed and merged in any order, gives the same histogram
//! bit for bit.

use serde::{Deserialize, Serialize};

use crate::minmax::min_max;

mod clamped;
mod stored;
mod tables;
#[cfg(test)]
mod tests;

pub use stored::HistogramError;
use tables::{BLOCK, TABLES, Tables};

/// Bins on each side of zero. Data on one side fills more than half of its side, so at least 2048 bins.
pub const SIDE: usize = 1 << SIDE_BITS;
const SIDE_BITS: i32 = 12;
/// Binary exponents of the narrowest and of the widest bin: their reciprocals are normal f32 numbers, and
/// `SIDE` of the widest hold `f32::MAX`.
const EXPONENTS: (i32, i32) = (-126, 116);
/// Values that are looked at twice while they are in the first-level cache.
const CHUNK: usize = 4096;
/// Shorter slices are not worth the interleaved tables.
const LONG: usize = 3 * CHUNK;
/// 2^23: the sum with an f32 below it holds its rounded value in the low bits.
const ROUNDER: f32 = 8_388_608.0;

/// A histogram of finite values, with their exact extremes and a count of what is not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "stored::Stored", into = "stored::Stored")]
pub struct Histogram {
    /// Bins are `2^exponent` wide.
    exponent: i32,
    /// Counts by distance from zero, as far as the last that is not 0.
    positive: Vec<u64>,
    /// The same for values below zero.
    negative: Vec<u64>,
    /// Exact extremes; ∞ and −∞ before the first value.
    min: f32,
    max: f32,
    nan: u64,
    positive_infinity: u64,
    negative_infinity: u64,
}

/// One bin with its count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Lower edge.
    pub low: f64,
    /// Upper edge.
    pub high: f64,
    /// Number of values.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// A histogram of no values.
    pub const fn new() -> Self {
        Histogram {
            exponent: EXPONENTS.0,
            positive: Vec::new(),
            negative: Vec::new(),
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            nan: 0,
            positive_infinity: 0,
            negative_infinity: 0,
        }
    }

    /// Number of finite values.
    pub fn count(&self) -> u64 {
        self.positive
            .iter()
            .chain(&self.negative)
            .fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Number of NaN.
    pub const fn nan(&self) -> u64 {
        self.nan
    }

    /// Number of values that are +∞ or −∞.
    pub const fn infinite(&self) -> u64 {
        self.positive_infinity
            .saturating_add(self.negative_infinity)
    }

    /// The exact smallest and largest finite value; `None` if there is none.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        (self.min <= self.max).then_some((self.min, self.max))
    }

    /// Width of a bin, a power of two.
    pub fn bin_width(&self) -> f64 {
        f64::from(power_of_two(self.exponent))
    }

    /// All bins from the lowest that holds values to the highest, empty ones between them included, in ascending order.
    pub fn bins(&self) -> impl DoubleEndedIterator<Item = Bin> + '_ {
        let width = self.bin_width();
        let below = self
            .negative
            .iter()
            .enumerate()
            .rev()
            .map(move |(m, &count)| Bin {
                low: -(m as f64 + 1.0) * width,
                high: -(m as f64) * width,
                count,
            });
        let above = self
            .positive
            .iter()
            .enumerate()
            .map(move |(m, &count)| Bin {
                low: m as f64 * width,
                high: (m as f64 + 1.0) * width,
                count,
            });
        below.chain(above)
    }

    /// Adds the values of `x`.
    pub fn observe(&mut self, x: &[f32]) {
        if x.len() < LONG {
            x.chunks(CHUNK)
                .for_each(|chunk| self.observe_chunk(chunk, None));
            return;
        }
        TABLES.with_borrow_mut(|tables| {
            for chunk in x.chunks(CHUNK) {
                self.observe_chunk(chunk, Some(tables));
            }
            tables.drain_into(self);
        });
    }

    /// Adds another histogram's values. Associative and commutative.
    pub fn merge(&mut self, other: &Self) {
        self.nan = self.nan.saturating_add(other.nan);
        self.positive_infinity = self
            .positive_infinity
            .saturating_add(other.positive_infinity);
        self.negative_infinity = self
            .negative_infinity
            .saturating_add(other.negative_infinity);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.widen(self.exponent.max(other.exponent));
        let shift = (self.exponent - other.exponent).unsigned_abs();
        add_shifted(&mut self.positive, &other.positive, shift);
        add_shifted(&mut self.negative, &other.negative, shift);
    }

    /// [`Self::observe`] for finite values whose extremes are known, which are then not looked for again.
    pub(crate) fn observe_within(&mut self, x: &[f32], extremes: (f32, f32)) {
        self.extend(extremes);
        let reciprocal = power_of_two(-self.exponent);
        if x.len() < LONG {
            self.count_short(x, reciprocal);
            return;
        }
        TABLES.with_borrow_mut(|tables| {
            for chunk in x.chunks(CHUNK) {
                if tables.is_full() {
                    tables.drain_into(self);
                }
                tables.count(chunk, reciprocal);
            }
            tables.drain_into(self);
        });
    }

    /// Widens bins and lengthens sides for finite values with these extremes.
    fn extend(&mut self, (min, max): (f32, f32)) {
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.widen(exponent_for(max.max(-min)));
        self.make_room(min, max);
    }

    /// Counts finite values for which there is room, one by one.
    fn count_short(&mut self, x: &[f32], reciprocal: f32) {
        // A table of the sides, since a branch on the sign could not be predicted.
        let sides = [self.positive.as_mut_slice(), self.negative.as_mut_slice()];
        let mut bins = [0; BLOCK];
        for block in x.chunks(BLOCK) {
            for (bin, &x) in bins.iter_mut().zip(block) {
                *bin = magnitude(x, reciprocal) << 1 | u32::from(x < 0.0);
            }
            for &bin in &bins[..block.len()] {
                let count = &mut sides[bin as usize & 1][bin as usize >> 1];
                *count = count.saturating_add(1);
            }
        }
    }

    fn observe_chunk(&mut self, chunk: &[f32], tables: Option<&mut Tables>) {
        let (min, max) = min_max(chunk);
        if !min.is_finite() || !max.is_finite() {
            let finite = self.set_aside_non_finite(chunk);
            if !finite.is_empty() {
                self.observe_chunk(&finite, tables);
            }
            return;
        }
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        let exponent = exponent_for(max.max(-min));
        let reciprocal = |exponent: i32| power_of_two(-exponent);
        match tables {
            Some(tables) => {
                if exponent > self.exponent || tables.is_full() {
                    tables.drain_into(self);
                    self.widen(exponent);
                }
                self.make_room(min, max);
                tables.count(chunk, reciprocal(self.exponent));
            }
            None => {
                self.extend((min, max));
                self.count_short(chunk, reciprocal(self.exponent));
            }
        }
    }

    /// Counts what is not finite and returns the rest.
    fn set_aside_non_finite(&mut self, chunk: &[f32]) -> Vec<f32> {
        let count = |what: fn(f32) -> bool| chunk.iter().filter(|&&x| what(x)).count() as u64;
        self.nan = self.nan.saturating_add(count(f32::is_nan));
        self.positive_infinity = self
            .positive_infinity
            .saturating_add(count(|x| x == f32::INFINITY));
        self.negative_infinity = self
            .negative_infinity
            .saturating_add(count(|x| x == f32::NEG_INFINITY));
        chunk.iter().copied().filter(|x| x.is_finite()).collect()
    }

    /// Makes bins at least `2^exponent` wide.
    fn widen(&mut self, exponent: i32) {
        if exponent <= self.exponent {
            return;
        }
        let shift = (exponent - self.exponent).unsigned_abs();
        for side in [&mut self.positive, &mut self.negative] {
            let narrow = std::mem::take(side);
            add_shifted(side, &narrow, shift);
        }
        self.exponent = exponent;
    }

    /// Lengthens both sides as far as the bins of `min` and `max`.
    fn make_room(&mut self, min: f32, max: f32) {
        let reciprocal = power_of_two(-self.exponent);
        let lengthen = |side: &mut Vec<u64>, x: f32| {
            let needed = magnitude(x, reciprocal) as usize + 1;
            if side.len() < needed {
                side.resize(needed, 0);
            }
        };
        if max >= 0.0 {
            lengthen(&mut self.positive, max);
        }
        if min < 0.0 {
            lengthen(&mut self.negative, min);
        }
    }
}

/// Adds counts of bins that are `2^shift` times narrower.
fn add_shifted(wide: &mut Vec<u64>, narrow: &[u64], shift: u32) {
    let shift = shift.min(usize::BITS - 1);
    let needed = narrow
        .len()
        .checked_sub(1)
        .map_or(0, |last| (last >> shift) + 1);
    if wide.len() < needed {
        wide.resize(needed, 0);
    }
    for (m, &count) in narrow.iter().enumerate() {
        wide[m >> shift] = wide[m >> shift].saturating_add(count);
    }
}

/// `2^exponent` for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127).clamp(1, 254) as u32) << 23)
}

/// The exponent of the narrowest bins of which `SIDE` hold a finite magnitude.
fn exponent_for(magnitude: f32) -> i32 {
    let exponent = (magnitude.to_bits() >> 23 & 0xff) as i32 - 127;
    (exponent + 1 - SIDE_BITS).clamp(EXPONENTS.0, EXPONENTS.1)
}

/// `⌊scaled⌋` in the low bits, for `0 ≤ scaled < SIDE`: rounded to nearest by the addition, less one where that went up.
#[inline(always)]
fn floor_bits(scaled: f32) -> u32 {
    let rounded = scaled + ROUNDER;
    let up = if rounded - ROUNDER > scaled {
        u32::MAX
    } else {
        0
    };
    rounded.to_bits().wrapping_add(up)
}

/// The bin of `x` on its side.
#[inline(always)]
fn magnitude(x: f32, reciprocal: f32) -> u32 {
    floor_bits(x.abs() * reciprocal) & (SIDE as u32 - 1)
}
