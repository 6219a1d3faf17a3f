//! The form in which a [`Histogram`] is written to a file, and the checks when it is read back.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{EXPONENTS, Histogram, exponent_for, magnitude, power_of_two};

/// A stored histogram that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a histogram: {0}")]
pub struct HistogramError(&'static str);

/// The fields of a stored histogram; `range` is `None` when there are no finite values.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    exponent: i32,
    range: Option<(f32, f32)>,
    negative: Vec<u64>,
    positive: Vec<u64>,
    nan: u64,
    negative_infinity: u64,
    positive_infinity: u64,
}

impl From<Histogram> for Stored {
    fn from(h: Histogram) -> Self {
        Stored {
            exponent: h.exponent,
            range: h.extremes(),
            negative: h.negative,
            positive: h.positive,
            nan: h.nan,
            negative_infinity: h.negative_infinity,
            positive_infinity: h.positive_infinity,
        }
    }
}

impl TryFrom<Stored> for Histogram {
    type Error = HistogramError;

    fn try_from(stored: Stored) -> Result<Self, HistogramError> {
        let (min, max) = stored.range.unwrap_or((f32::INFINITY, f32::NEG_INFINITY));
        let histogram = Histogram {
            exponent: stored.exponent,
            positive: stored.positive,
            negative: stored.negative,
            min,
            max,
            nan: stored.nan,
            positive_infinity: stored.positive_infinity,
            negative_infinity: stored.negative_infinity,
        };
        match histogram.contradiction(stored.range.is_some()) {
            Some(what) => Err(HistogramError(what)),
            None => Ok(histogram),
        }
    }
}

impl Histogram {
    fn contradiction(&self, has_range: bool) -> Option<&'static str> {
        if !has_range {
            let empty = self.positive.is_empty() && self.negative.is_empty();
            return (!empty || self.exponent != EXPONENTS.0).then_some("it has bins but no range");
        }
        let (min, max) = (self.min, self.max);
        if !(min.is_finite() && max.is_finite() && min <= max) {
            return Some("its range is not finite or is upside down");
        }
        if self.exponent != exponent_for(max.max(-min)) {
            return Some("its bin width does not belong to its range");
        }
        let reciprocal = power_of_two(-self.exponent);
        let bins = |used: bool, x: f32| {
            if used {
                magnitude(x, reciprocal) as usize + 1
            } else {
                0
            }
        };
        let lengths = (bins(max >= 0.0, max), bins(min < 0.0, min));
        if lengths != (self.positive.len(), self.negative.len()) {
            return Some("the number of its bins does not belong to its range");
        }
        let ends = [self.positive.last(), self.negative.last()];
        let counts = self.positive.iter().chain(&self.negative);
        if ends.contains(&Some(&0)) || counts.copied().try_fold(0, u64::checked_add).is_none() {
            return Some("its outermost bins are empty or its counts are too large");
        }
        None
    }
}
