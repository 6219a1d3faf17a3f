//! One streaming pass over the calibration data: the model runs, and every wanted value goes into a histogram.
//!
//! Batches are read one after the other and run in parallel. A histogram holds integers only, so that the result does
//! not depend on the number of threads or on the order in which batches end.

use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::{Engine, Observed};
use onnx_quant_numerics::histogram::Histogram;
use onnx_quant_passes::calibration::Calibration;
use rayon::prelude::*;

use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::prepared::Prepared;
use crate::progress;

/// The most samples that are run at once on one thread where the model's batch is free.
pub const BATCH: usize = 8;

/// Runs the data through the model and gathers statistics of the named values.
///
/// A last batch that repeats its last sample to be full is left out where it is mostly repetition, which would count
/// that one sample many times, unless it is the only one.
///
/// Memory holds a few batches for each thread, the values of one run for each thread, and the histograms.
///
/// # Errors
/// Data that does not fit, or a model that the engine cannot run.
pub fn calibrate(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    wanted: &[String],
) -> Result<Calibration, Error> {
    let prepared = Prepared::new(engine, model, wanted.to_vec());
    let bar = progress::bar("calibrate", data.len());
    let mut all = vec![Histogram::new(); wanted.len()];
    let mut samples = 0;
    for window in windows(data, rayon::current_num_threads()) {
        let window = window?;
        let full: Vec<&Batch> = window
            .iter()
            .filter(|b| b.padded <= b.samples || b.index == 0)
            .collect();
        let parts = full
            .par_chunks(full.len().div_ceil(rayon::current_num_threads()).max(1))
            .map(|batches| observe(&prepared, data, batches, wanted.len()))
            .collect::<Result<Vec<_>, Error>>()?;
        for part in parts {
            for (mine, theirs) in all.iter_mut().zip(&part) {
                mine.merge(theirs);
            }
        }
        samples += full.iter().map(|b| b.samples).sum::<usize>();
        bar.inc(window.iter().map(|b| b.samples as u64).sum());
    }
    bar.finish_and_clear();
    Ok(Calibration {
        samples,
        values: wanted.iter().cloned().zip(all).collect(),
        ..Calibration::default()
    })
}

fn observe(
    prepared: &Prepared,
    data: &DataSet,
    batches: &[&Batch],
    values: usize,
) -> Result<Vec<Histogram>, Error> {
    let mut part = vec![Histogram::new(); values];
    for batch in batches {
        let mut observer = |seen: Observed<'_>| part[seen.index].observe(seen.data);
        prepared.run(data, batch, Some(&mut observer))?;
    }
    Ok(part)
}

/// Samples of a batch: a divisor of their number where one is near [`BATCH`], so that the last batch has the shape of
/// the others and the model is prepared once.
fn batch_size(samples: usize) -> usize {
    let near = BATCH / 2..=BATCH;
    near.rev()
        .find(|&n| samples.is_multiple_of(n))
        .unwrap_or(BATCH)
}

/// The batches of a data set in groups that keep all threads busy.
pub(crate) fn windows(
    data: &DataSet,
    threads: usize,
) -> impl Iterator<Item = Result<Vec<Batch>, Error>> + use<> {
    let mut batches = data.batches(batch_size(data.len()));
    let size = threads.max(1) * 4;
    std::iter::from_fn(move || {
        let window: Result<Vec<Batch>, _> = batches.by_ref().take(size).collect();
        match window {
            Ok(w) if w.is_empty() => None,
            Ok(w) => Some(Ok(w)),
            Err(e) => Some(Err(Error::from(e))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_even_where_they_can_be() {
        let sizes = [512, 500, 49, 9, 127, 3].map(batch_size);
        assert_eq!(sizes, [8, 5, 7, BATCH, BATCH, BATCH]);
    }
}
