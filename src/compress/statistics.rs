//! Mean and mean square of each channel of the activations that weights are multiplied with.

use std::collections::BTreeMap;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::{Engine, Observed};
use rayon::prelude::*;

use crate::calibrate::windows;
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::prepared::Prepared;

/// Of each channel of an activation, over samples and positions.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Moments {
    pub(super) mean: Vec<f64>,
    pub(super) square: Vec<f64>,
}

/// Moments by the name of the activation.
#[derive(Debug, Clone, Default)]
pub(super) struct Statistics {
    by_name: BTreeMap<String, Moments>,
    /// Samples that were run.
    pub(super) samples: usize,
}

impl Statistics {
    pub(super) fn of(&self, name: &str) -> Option<&Moments> {
        self.by_name.get(name)
    }
}

/// Sums over what was seen of a value; empty where its channels change in number.
#[derive(Debug, Clone, Default)]
struct Sums {
    count: f64,
    linear: Vec<f64>,
    square: Vec<f64>,
    odd: bool,
}

impl Sums {
    fn add(&mut self, axis: i64, dims: &[usize], data: &[f32]) {
        let rank = dims.len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        let Some(&channels) = usize::try_from(axis).ok().and_then(|a| dims.get(a)) else {
            self.odd = true;
            return;
        };
        if self.linear.is_empty() {
            self.linear = vec![0.0; channels];
            self.square = vec![0.0; channels];
        }
        if channels == 0 || self.linear.len() != channels {
            self.odd = true;
            return;
        }
        let inner: usize = dims[axis as usize + 1..].iter().product();
        for (run, values) in data.chunks_exact(inner.max(1)).enumerate() {
            let c = run % channels;
            for &x in values {
                let x = f64::from(x);
                self.linear[c] += x;
                self.square[c] += x * x;
            }
        }
        self.count += data.len() as f64 / channels as f64;
    }

    fn join(&mut self, other: &Self) {
        if self.linear.is_empty() {
            *self = other.clone();
            return;
        }
        self.odd |=
            other.odd || (!other.linear.is_empty() && other.linear.len() != self.linear.len());
        self.count += other.count;
        for (a, b) in self.linear.iter_mut().zip(&other.linear) {
            *a += b;
        }
        for (a, b) in self.square.iter_mut().zip(&other.square) {
            *a += b;
        }
    }
}

/// Runs the data through the model. `wanted` are names of activations with their axis of channels.
pub(super) fn gather(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    wanted: &BTreeMap<String, i64>,
) -> Result<Statistics, Error> {
    let names: Vec<String> = wanted.keys().cloned().collect();
    let axes: Vec<i64> = wanted.values().copied().collect();
    let prepared = Prepared::new(engine, model, names.clone());
    let mut all = vec![Sums::default(); names.len()];
    let mut samples = 0;
    // Batches are summed one by one and joined in their order: threads do not change a bit of the result.
    for window in windows(data, rayon::current_num_threads()) {
        let window: Vec<Batch> = window?;
        let full: Vec<&Batch> = window
            .iter()
            .filter(|b| b.padded <= b.samples || b.index == 0)
            .collect();
        let parts = full
            .par_iter()
            .map(|batch| {
                let mut sums = vec![Sums::default(); axes.len()];
                let mut observer = |seen: Observed<'_>| {
                    sums[seen.index].add(axes[seen.index], seen.dims, seen.data)
                };
                prepared.run(data, batch, Some(&mut observer))?;
                Ok(sums)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        for part in &parts {
            for (mine, theirs) in all.iter_mut().zip(part) {
                mine.join(theirs);
            }
        }
        samples += full.iter().map(|b| b.samples).sum::<usize>();
    }
    let moments = |s: Sums| {
        let per = |v: Vec<f64>| v.into_iter().map(|x| x / s.count.max(1.0)).collect();
        Moments {
            mean: per(s.linear),
            square: per(s.square),
        }
    };
    Ok(Statistics {
        by_name: names
            .into_iter()
            .zip(all)
            .filter(|(_, s)| !s.odd && !s.linear.is_empty())
            .map(|(name, s)| (name, moments(s)))
            .collect(),
        samples,
    })
}
