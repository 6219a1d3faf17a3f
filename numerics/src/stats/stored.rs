//! The form in which [`TensorStats`] are written to a file, and the checks when they are read back.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ChannelRanges, RECENT, SampleRanges, TensorStats};
use crate::exact::ExactSum;
use crate::histogram::Histogram;

/// Stored statistics that contradict themselves.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not the statistics of a tensor: {0}")]
pub struct StatsError(&'static str);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    histogram: Histogram,
    samples: StoredSamples,
    channels: Vec<StoredChannels>,
    first_non_finite: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSamples {
    count: u64,
    minima: ExactSum,
    maxima: ExactSum,
    recent: Vec<(u64, f32, f32)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredChannels {
    axis: i64,
    ranges: Vec<Option<(f32, f32)>>,
}

impl From<TensorStats> for Stored {
    fn from(stats: TensorStats) -> Self {
        let SampleRanges {
            count,
            minima,
            maxima,
            recent,
        } = stats.samples;
        let channels = stats.channels.iter().map(|c| StoredChannels {
            axis: c.axis(),
            ranges: c.ranges().collect(),
        });
        Stored {
            channels: channels.collect(),
            histogram: stats.histogram,
            samples: StoredSamples {
                count,
                minima,
                maxima,
                recent,
            },
            first_non_finite: stats.non_finite,
        }
    }
}

impl TryFrom<Stored> for TensorStats {
    type Error = StatsError;

    fn try_from(stored: Stored) -> Result<Self, StatsError> {
        let Stored {
            histogram,
            samples,
            channels,
            first_non_finite,
        } = stored;
        let (low, high) = histogram.extremes().unwrap_or((0.0, 0.0));
        let within = |&(_, min, max): &(u64, f32, f32)| low <= min && min <= max && max <= high;
        let ascending = samples.recent.is_sorted_by(|a, b| a.0 < b.0);
        if !ascending || !samples.recent.iter().all(within) {
            return Err(StatsError(
                "its samples are out of order or outside of its range",
            ));
        }
        if samples.recent.len() > RECENT || samples.recent.len() as u64 > samples.count {
            return Err(StatsError("it has more samples than it counted"));
        }
        if histogram.extremes().is_some() != (samples.count > 0) {
            return Err(StatsError(
                "it counted samples without values, or values without samples",
            ));
        }
        let bad = histogram.nan() > 0 || histogram.infinite() > 0;
        if bad != first_non_finite.is_some() {
            return Err(StatsError(
                "it does not say which sample is not finite, or has none that is not",
            ));
        }
        if !channels.is_sorted_by(|a, b| a.axis < b.axis) {
            return Err(StatsError("its axes are out of order"));
        }
        let empty = (f32::INFINITY, f32::NEG_INFINITY);
        let channels = channels.into_iter().map(|c| {
            let ranges = c.ranges.into_iter().map(|r| r.unwrap_or(empty)).collect();
            ChannelRanges::from_ranges(c.axis, ranges)
        });
        Ok(TensorStats {
            channels: channels.collect(),
            histogram,
            samples: SampleRanges {
                count: samples.count,
                minima: samples.minima,
                maxima: samples.maxima,
                recent: samples.recent,
            },
            non_finite: first_non_finite,
        })
    }
}
