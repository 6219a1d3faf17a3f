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
        let rows = samples.count + samples.padded;
        let apart = rows > 0
            && dims.first().is_some_and(|d| d.is_multiple_of(rows))
            && data.len().is_multiple_of(rows);
        let length = if apart { data.len() / rows } else { data.len() };
        let data = if apart {
            &data[..length * samples.count]
        } else {
            data
        };
        let mut all = (f32::INFINITY, f32::NEG_INFINITY);
        for (index, part) in (samples.first..).zip(data.chunks(length.max(1))) {
            let extremes = min_max(part);
            if extremes.0.is_finite() && extremes.1.is_finite() {
                self.samples.insert(index, extremes);
                all = (
                    all.0.min(extremes.0),
                    if all.1.is_nan() {
                        all.1
                    } else {
                        all.1.max(extremes.1)
                    },
                );
                continue;
            }
            all.1 = f32::NAN;
            self.non_finite = Some(self.non_finite.map_or(index, |was| was.min(index)));
            let finite: Vec<f32> = part.iter().copied().filter(|x| x.is_finite()).collect();
            if !finite.is_empty() {
                self.samples.insert(index, min_max(&finite));
            }
        }
        if all.0 <= all.1 {
            self.histogram.observe_within(data, all);
        } else {
            self.histogram.observe(data);
        }
        for channels in &mut self.channels {
            channels.observe(dims, data);
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

/// The layout of a tensor's channels; `None` where the tensor has no such axis.
fn layout(dims: &[usize], axis: i64) -> Option<Layout> {
    let rank = i64::try_from(dims.len()).ok()?;
    let at = if axis < 0 { axis + rank } else { axis };
    Layout::of(dims, usize::try_from(at).ok()?).ok()
}
