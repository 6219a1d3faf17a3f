//! The extremes of each index of one axis.

use crate::minmax::{min_max, row_min_max};

/// Values whose columns are looked at together.
const ROWS: usize = 1 << 15;
const EMPTY: (f32, f32) = (f32::INFINITY, f32::NEG_INFINITY);

/// The extremes of each channel of one axis; NaN and infinities are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelRanges {
    axis: i64,
    /// (∞, −∞) where no finite value was seen.
    ranges: Vec<(f32, f32)>,
}

impl ChannelRanges {
    pub(super) fn new(axis: i64) -> Self {
        Self::from_ranges(axis, Vec::new())
    }

    pub(super) fn from_ranges(axis: i64, ranges: Vec<(f32, f32)>) -> Self {
        ChannelRanges { axis, ranges }
    }

    /// Nothing seen yet of the axes of others.
    pub(super) fn all(others: &[Self]) -> Vec<Self> {
        others.iter().map(|c| Self::new(c.axis)).collect()
    }

    /// The axis; it counts from the end where it is negative.
    pub fn axis(&self) -> i64 {
        self.axis
    }

    /// Number of channels; the most that were seen, where runs differ.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The extremes of each channel; `None` for a channel without finite values.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Option<(f32, f32)>> + '_ {
        self.ranges
            .iter()
            .map(|&(min, max)| (min <= max).then_some((min, max)))
    }

    /// The largest magnitude of each channel; 0 for a channel without finite values.
    pub fn abs_max(&self) -> Vec<f32> {
        let reach = |range: Option<(f32, f32)>| range.map_or(0.0, |(min, max)| max.max(-min));
        self.ranges().map(reach).collect()
    }

    /// Takes in values of a tensor of this shape; `data` may end before the tensor does, at an index of axis 0. Also
    /// gives the extremes of each piece of `length` values, as [`min_max`] does, where no channel's run is divided.
    pub(super) fn observe(
        &mut self,
        dims: &[usize],
        data: &[f32],
        length: usize,
    ) -> Option<Vec<(f32, f32)>> {
        let layout = super::layout(dims, self.axis)?;
        let (channels, inner) = (layout.channels, layout.inner);
        if self.ranges.len() < channels {
            self.ranges.resize(channels, EMPTY);
        }
        if channels == 0 || inner == 0 {
            return None;
        }
        let unit = if inner == 1 { channels } else { inner };
        let whole = length > 0 && length.is_multiple_of(unit);
        let mut pieces = Vec::new();
        let mut at = 0;
        for piece in data.chunks(if whole { length } else { data.len().max(1) }) {
            let mut all = EMPTY;
            if inner == 1 {
                // Many rows for each column's range, few enough for the second-level cache.
                for rows in piece.chunks((ROWS / channels).max(1) * channels) {
                    for (at, range) in row_min_max(rows, channels).into_iter().enumerate() {
                        all = joined(all, range);
                        self.join(at, range, || rows.iter().skip(at).step_by(channels));
                    }
                }
            } else {
                for run in piece.chunks(inner) {
                    let range = min_max(run);
                    all = joined(all, range);
                    self.join(at, range, || run.iter());
                    at = if at + 1 == channels { 0 } else { at + 1 };
                }
            }
            pieces.push(all);
        }
        whole.then_some(pieces)
    }

    /// Makes of the ranges of values those of the clamped values.
    pub(super) fn clamp(&mut self, upper: f32) {
        for (min, max) in self.ranges.iter_mut().filter(|r| r.0 <= r.1) {
            (*min, *max) = (min.max(0.0).min(upper), max.max(0.0).min(upper));
        }
    }

    /// Widens a channel; `values` are what the range was made of, looked at again where they are not all finite.
    fn join<'a, I: Iterator<Item = &'a f32>>(
        &mut self,
        channel: usize,
        (min, max): (f32, f32),
        values: impl FnOnce() -> I,
    ) {
        let range = if min.is_finite() && max.is_finite() {
            (min, max)
        } else {
            let finite: Vec<f32> = values().copied().filter(|x| x.is_finite()).collect();
            min_max(&finite)
        };
        let mine = &mut self.ranges[channel];
        *mine = (mine.0.min(range.0), mine.1.max(range.1));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.ranges.len() < other.ranges.len() {
            self.ranges.resize(other.ranges.len(), EMPTY);
        }
        for (mine, theirs) in self.ranges.iter_mut().zip(&other.ranges) {
            *mine = (mine.0.min(theirs.0), mine.1.max(theirs.1));
        }
    }
}

/// The extremes of two sets of values; NaN stays.
fn joined(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    match a.0.is_nan() || b.0.is_nan() {
        true => (f32::NAN, f32::NAN),
        false => (a.0.min(b.0), a.1.max(b.1)),
    }
}
