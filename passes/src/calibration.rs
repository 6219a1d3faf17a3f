//! The statistics of a model's activations, gathered by running it on calibration data.

use std::collections::BTreeMap;

use onnx_quant_numerics::histogram::Histogram;
use serde::{Deserialize, Serialize};

/// What was seen of every observed value.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Calibration {
    /// Samples that were run.
    pub samples: usize,
    /// Statistics by value key (graph path and name).
    pub values: BTreeMap<String, Histogram>,
    /// Ranges that are given and not chosen from statistics, by value key: lowest and highest real value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranges: BTreeMap<String, (f32, f32)>,
}

impl Calibration {
    /// Takes in the statistics of other samples of the same model. Any order of merging gives the same result, but
    /// for [`ranges`](Self::ranges): the last one stays.
    pub fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        self.ranges
            .extend(other.ranges.iter().map(|(k, r)| (k.clone(), *r)));
        for (key, h) in &other.values {
            match self.values.get_mut(key) {
                Some(mine) => mine.merge(h),
                None => {
                    self.values.insert(key.clone(), h.clone());
                }
            }
        }
    }
}
