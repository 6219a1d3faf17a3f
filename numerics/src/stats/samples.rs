//! The extremes of single samples: their mean over all, and the last of them in order.

use crate::exact::ExactSum;

/// Samples whose own extremes are kept: those with the highest indices.
pub const RECENT: usize = 1024;

/// The extremes of single samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SampleRanges {
    pub(super) count: u64,
    pub(super) minima: ExactSum,
    pub(super) maxima: ExactSum,
    /// Index, minimum and maximum of the last [`RECENT`] samples, in ascending order of the index.
    pub(super) recent: Vec<(u64, f32, f32)>,
}

impl SampleRanges {
    /// Number of samples with finite values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean of the samples' minima and that of their maxima; `None` if there is no sample.
    pub fn mean(&self) -> Option<(f32, f32)> {
        let mean = |sum: &ExactSum| (sum.to_f64() / self.count as f64) as f32;
        (self.count > 0).then(|| (mean(&self.minima), mean(&self.maxima)))
    }

    /// The exponential moving average of the samples' extremes in order of their indices, `m ← keep·m + (1 − keep)·x`.
    /// It starts as the extremes of the first of the last [`RECENT`] samples. `None` if there is no sample.
    ///
    /// Source: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    /// Inference*, 2018, section 3.1.
    pub fn moving_average(&self, keep: f64) -> Option<(f32, f32)> {
        let (&(_, min, max), rest) = self.recent.split_first()?;
        let start = (f64::from(min), f64::from(max));
        let (min, max) = rest.iter().fold(start, |m, &(_, min, max)| {
            let next = |m: f64, x: f32| keep * m + (1.0 - keep) * f64::from(x);
            (next(m.0, min), next(m.1, max))
        });
        Some((min as f32, max as f32))
    }

    pub(super) fn insert(&mut self, index: u64, (min, max): (f32, f32)) {
        self.count += 1;
        self.minima.add(min);
        self.maxima.add(max);
        if self.recent.last().is_none_or(|last| last.0 < index) {
            self.recent.push((index, min, max));
        } else {
            self.insert_recent((index, min, max));
        }
        self.forget();
    }

    /// Of one sample that is seen twice, the wider extremes are kept.
    fn insert_recent(&mut self, (index, min, max): (u64, f32, f32)) {
        match self.recent.binary_search_by_key(&index, |r| r.0) {
            Ok(at) => {
                let mine = &mut self.recent[at];
                *mine = (index, mine.1.min(min), mine.2.max(max));
            }
            Err(at) => self.recent.insert(at, (index, min, max)),
        }
    }

    fn forget(&mut self) {
        let extra = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..extra);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.minima.add_sum(&other.minima);
        self.maxima.add_sum(&other.maxima);
        for &sample in &other.recent {
            self.insert_recent(sample);
        }
        self.forget();
    }
}
