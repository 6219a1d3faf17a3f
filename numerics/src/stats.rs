//! Everything that is kept of a tensor while a model runs: enough that any calibrator can be chosen afterwards.
//!
//! All of it is integers, extremes and exact sums, keyed by the index of the sample where order matters: any split of
//! the samples over threads, processes or machines, merged in any order, gives the same statistics bit for bit.

use serde::{Deserialize, Serialize};

use crate::channel::Layout;
use crate::histogram::Histogram;
use crate::minmax::min_max;

mod channels;
mod samples;
mod stored;
#[cfg(test)]
mod tests;

pub use channels::ChannelRanges;
pub use samples::{RECENT, SampleRanges};
pub use stored::StatsError;

/// Which samples a run of the model holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples {
    /// The index of the first in the whole data.
    pub first: u64,
    /// How many.
    pub count: usize,
    /// Copies of the last that fill a batch of fixed size.
    pub padded: usize,
}

impl Samples {
    /// One sample.
    pub const fn one(index: u64) -> Self {
        Samples {
            first: index,
            count: 1,
            padded: 0,
        }
    }

    /// The values of a tensor of the run without copies that fill the batch, and how many of them a sample has (at
    /// least 1).
    fn of<'a>(&self, dims: &[usize], data: &'a [f32]) -> (&'a [f32], usize) {
        let rows = self.count + self.padded;
        let apart = rows > 0
            && dims.first().is_some_and(|d| d.is_multiple_of(rows))
            && data.len().is_multiple_of(rows);
        if !apart {
            return (data, data.len().max(1));
        }
        let length = data.len() / rows;
        (&data[..length * self.count], length.max(1))
    }
}

/// The statistics of one tensor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "stored::Stored", into = "stored::Stored")]
pub struct TensorStats {
    histogram: Histogram,
    samples: SampleRanges,
    channels: Vec<ChannelRanges>,
    /// The first sample with NaN or an infinity.
    non_finite: Option<u64>,
}

impl TensorStats {
    /// Statistics of no values, which will keep the extremes of each index of these axes. An axis counts from the end
    /// where it is negative, as in the standard.
    pub fn new(axes: &[i64]) -> Self {
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        axes.dedup();
        TensorStats {
            channels: axes.into_iter().map(ChannelRanges::new).collect(),
            ..TensorStats::default()
        }
    }

    /// Statistics of a tensor that is seen once, as one sample.
    pub fn of(data: &[f32]) -> Self {
        let mut stats = TensorStats::default();
        stats.observe(Samples::one(0), &[data.len()], data);
        stats
    }

    /// The distribution of the values.
    pub fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    /// Whether nothing was seen, not even values that are not finite.
    pub fn is_empty(&self) -> bool {
        self.samples.count() == 0 && self.non_finite.is_none()
    }

    /// The extremes of the single samples.
    pub fn samples(&self) -> &SampleRanges {
        &self.samples
    }

    /// The extremes by channel, for each axis that was asked for, in ascending order.
    pub fn channels(&self) -> &[ChannelRanges] {
        &self.channels
    }

    /// The extremes by channel of this axis, if it was asked for. An axis from the end is not the same as one from
    /// the start.
    pub fn channels_of(&self, axis: i64) -> Option<&ChannelRanges> {
        self.channels.iter().find(|c| c.axis() == axis)
    }

    /// The index of the first sample that held NaN or an infinity.
    pub fn first_non_finite(&self) -> Option<u64> {
        self.non_finite
    }

    /// Takes in the tensor of one run, in row-major order.
    ///
    /// Where axis 0 is a multiple of the samples of the run, the samples follow each other in memory: each has its own
    /// extremes then, and the copies that fill a batch are left out. Other tensors count as one sample, the first.
    pub fn observe(&mut self, samples: Samples, dims: &[usize], data: &[f32]) {
        let (data, length) = samples.of(dims, data);
        let extremes = extremes(&mut self.channels, dims, data, length);
        match all_finite(&extremes) {
            Some(all) => {
                self.insert(samples, extremes);
                self.histogram.observe_within(data, all);
            }
            None => {
                for ((index, part), extremes) in
                    (samples.first..).zip(data.chunks(length)).zip(extremes)
                {
                    self.insert_part(index, part, extremes);
                }
                self.histogram.observe(data);
            }
        }
    }

    /// [`Self::observe`], and in `clamped` what `min(max(x, 0), upper)` makes of the tensor, for less than the price of
    /// both.
    pub fn observe_clamped(
        &mut self,
        clamped: &mut TensorStats,
        upper: f32,
        samples: Samples,
        dims: &[usize],
        whole: &[f32],
    ) {
        let clamp = |x: f32| x.max(0.0).min(upper);
        let (data, length) = samples.of(dims, whole);
        // Each axis is looked at once for both.
        let mut ranges = ChannelRanges::all(&self.channels);
        for channels in &clamped.channels {
            if self.channels_of(channels.axis()).is_none() {
                ranges.push(ChannelRanges::new(channels.axis()));
            }
        }
        let mut found = extremes(&mut ranges, dims, data, length);
        let Some(all) = all_finite(&found) else {
            let clamp = |&x: &f32| if x.is_nan() { x } else { clamp(x) };
            let values: Vec<f32> = whole.iter().map(clamp).collect();
            clamped.observe(samples, dims, &values);
            return self.observe(samples, dims, whole);
        };
        for mut found in ranges {
            let axis = found.axis();
            let same = |channels: &&mut ChannelRanges| channels.axis() == axis;
            if let Some(mine) = self.channels.iter_mut().find(same) {
                mine.merge(&found);
            }
            if let Some(theirs) = clamped.channels.iter_mut().find(same) {
                found.clamp(upper);
                theirs.merge(&found);
            }
        }
        self.histogram
            .observe_clamped(&mut clamped.histogram, upper, data, all);
        self.insert(samples, found.iter().copied());
        for range in &mut found {
            *range = (clamp(range.0), clamp(range.1));
        }
        clamped.insert(samples, found);
    }

    fn insert(&mut self, samples: Samples, extremes: impl IntoIterator<Item = (f32, f32)>) {
        for (index, extremes) in (samples.first..).zip(extremes) {
            self.samples.insert(index, extremes);
        }
    }

    /// Takes in a sample that may hold NaN or infinities.
    fn insert_part(&mut self, index: u64, part: &[f32], extremes: (f32, f32)) {
        if extremes.0.is_finite() && extremes.1.is_finite() {
            return self.samples.insert(index, extremes);
        }
        self.non_finite = Some(self.non_finite.map_or(index, |was| was.min(index)));
        let finite: Vec<f32> = part.iter().copied().filter(|x| x.is_finite()).collect();
        if !finite.is_empty() {
            self.samples.insert(index, min_max(&finite));
        }
    }

    /// Takes in the statistics of other samples. Associative and commutative.
    pub fn merge(&mut self, other: &Self) {
        self.histogram.merge(&other.histogram);
        self.samples.merge(&other.samples);
        self.non_finite = match (self.non_finite, other.non_finite) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        for theirs in &other.channels {
            match self.channels.iter_mut().find(|c| c.axis() == theirs.axis()) {
                Some(mine) => mine.merge(theirs),
                None => self.channels.push(theirs.clone()),
            }
        }
        self.channels.sort_by_key(ChannelRanges::axis);
    }
}

/// Takes values into ranges by channel and gives the extremes of each sample of `length` values.
fn extremes(
    channels: &mut [ChannelRanges],
    dims: &[usize],
    data: &[f32],
    length: usize,
) -> Vec<(f32, f32)> {
    let mut found = None;
    for channels in channels {
        let seen = channels.observe(dims, data, length);
        found = found.or(seen);
    }
    found.unwrap_or_else(|| data.chunks(length).map(min_max).collect())
}

/// The extremes of all samples if their values are finite.
fn all_finite(extremes: &[(f32, f32)]) -> Option<(f32, f32)> {
    let mut all = (f32::INFINITY, f32::NEG_INFINITY);
    for &(min, max) in extremes {
        if !(min.is_finite() && max.is_finite()) {
            return None;
        }
        all = (all.0.min(min), all.1.max(max));
    }
    (all.0 <= all.1).then_some(all)
}

/// The layout of a tensor's channels; `None` where the tensor has no such axis.
fn layout(dims: &[usize], axis: i64) -> Option<Layout> {
    let rank = i64::try_from(dims.len()).ok()?;
    let at = if axis < 0 { axis + rank } else { axis };
    Layout::of(dims, usize::try_from(at).ok()?).ok()
}
