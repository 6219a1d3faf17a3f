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
}

impl Calibration {
    /// Takes in the statistics of other samples of the same model. Any order of merging gives the same result.
    pub fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
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
