//! One streaming pass over the calibration data: the model runs, and the statistics of every observed value are
//! gathered.
//!
//! Batches run in parallel, each thread takes the next one when it is done with its own, and all count into the same
//! statistics. Those are integers, extremes and exact sums, so that the result does not depend on the number of
//! threads or on the order in which batches end.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::{Engine, Observed};
use onnx_quant_numerics::stats::{Samples, TensorStats};
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::observation::{self, Point, Watched};
use rayon::prelude::*;

use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::prepared::Prepared;
use crate::progress;

pub mod auto;
pub mod file;
pub mod reach;

/// The most samples that are run at once on one thread where the model's batch is free.
pub const BATCH: usize = 8;

/// Batches after which [`Gathering::keep`] is called.
const EPOCH: usize = 64;

/// Runs the data through the model and gathers statistics of the named values.
///
/// A last batch that repeats its last sample to be full is left out where it is mostly repetition, which would count
/// that one sample many times in values without a batch axis, unless it is the only one.
///
/// Memory holds a batch and the values of one run for each thread, and the statistics once.
///
/// # Errors
/// Data that does not fit, or a model that the engine cannot run.
pub fn calibrate(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    points: &[Point],
) -> Result<Calibration, Error> {
    let start = Calibration::new(String::new(), data.len());
    let batches = 0..batch_count(data);
    gather(model, engine, data, points, batches, start, &mut |_| Ok(()))
}

/// The batches of a data set that shard `k` of `n` runs, counted from 1. The shards differ by one batch at most.
pub fn shard(data: &DataSet, k: usize, n: usize) -> Range<usize> {
    let all = batch_count(data);
    all * (k - 1) / n..all * k / n
}

/// The number of batches that a data set is run in.
pub fn batch_count(data: &DataSet) -> usize {
    data.batch_count(batch_size(data.len()))
}

/// Called with the statistics of all batches so far, every now and then.
pub type Keep<'a> = &'a mut dyn FnMut(&Calibration) -> Result<(), Error>;

/// Runs some batches of the data through the model and adds to what is known of the first of them.
///
/// # Errors
/// As [`calibrate`], and those of `keep`.
pub fn gather(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    points: &[Point],
    batches: Range<usize>,
    known: Calibration,
    keep: Keep<'_>,
) -> Result<Calibration, Error> {
    let plan = observation::plan(model, points);
    let names = plan.iter().map(|w| points[w.point].key.clone()).collect();
    // Statistics without channels know of no axis but that of the samples.
    let plain = |w: &Watched| {
        let follows = w.clamped.as_ref().map(|c| c.point);
        let mut all = [Some(w.point), follows].into_iter().flatten();
        all.all(|p| points[p].axes.is_empty())
    };
    let unordered = (0..plan.len()).filter(|&i| plain(&plan[i])).collect();
    let prepared = Prepared::new(engine, model, names).unordered(unordered);
    let bar = progress::bar("calibrate", data.len());
    let mut all = known;
    let done = all.parts.last().map_or(0, |range| range.1);
    let mut source = data
        .batches(batch_size(data.len()))
        .take(batches.end)
        .skip(batches.start)
        .skip_while(|b| b.as_ref().is_ok_and(|b| b.first_sample < done))
        .peekable();
    while source.peek().is_some() {
        let mut known = |point: usize| take(&mut all, &points[point]);
        let cells: Vec<Mutex<Cell>> = plan.iter().map(|w| Cell::new(w, &mut known)).collect();
        let ran = Mutex::new(Vec::new());
        let epoch = source.by_ref().take(EPOCH).par_bridge();
        epoch.try_for_each(|batch| -> Result<(), Error> {
            let batch = batch?;
            if batch.padded <= batch.samples || batch.index == 0 {
                observe(&prepared, data, &batch, &cells)?;
                let end = batch.first_sample + batch.samples;
                lock(&ran).push((batch.first_sample, end));
            }
            bar.inc(batch.samples as u64);
            Ok(())
        })?;
        for (watched, cell) in plan.iter().zip(cells) {
            let cell = cell.into_inner().unwrap_or_else(PoisonError::into_inner);
            let mut put = |point: usize, stats| all.values.insert(points[point].key.clone(), stats);
            put(watched.point, cell.stats);
            if let (Some(clamped), Some((_, stats))) = (&watched.clamped, cell.clamped) {
                put(clamped.point, stats);
            }
        }
        for (first, end) in lock(&ran).drain(..) {
            all.count(first, end);
        }
        keep(&all)?;
    }
    bar.finish_and_clear();
    Ok(all)
}

/// The statistics of a watched value, and of the clamped one that follows from it with its upper bound.
struct Cell {
    stats: TensorStats,
    clamped: Option<(f32, TensorStats)>,
}

impl Cell {
    fn new(watched: &Watched, known: &mut dyn FnMut(usize) -> TensorStats) -> Mutex<Self> {
        let clamped = watched.clamped.as_ref();
        Mutex::new(Cell {
            stats: known(watched.point),
            clamped: clamped.map(|c| (c.upper, known(c.point))),
        })
    }

    fn observe(&mut self, samples: Samples, seen: &Observed<'_>) {
        match &mut self.clamped {
            None => self.stats.observe(samples, seen.dims, seen.data),
            Some((upper, clamped)) => {
                self.stats
                    .observe_clamped(clamped, *upper, samples, seen.dims, seen.data);
            }
        }
    }
}

fn take(all: &mut Calibration, point: &Point) -> TensorStats {
    let known = all.values.remove(&point.key);
    known.unwrap_or_else(|| TensorStats::new(&point.axes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn observe(
    prepared: &Prepared,
    data: &DataSet,
    batch: &Batch,
    cells: &[Mutex<Cell>],
) -> Result<(), Error> {
    let samples = Samples {
        first: batch.first_sample as u64,
        count: batch.samples,
        padded: batch.padded,
    };
    let mut observer = |seen: Observed<'_>| lock(&cells[seen.index]).observe(samples, &seen);
    prepared.run(data, batch, Some(&mut observer))?;
    Ok(())
}

/// Samples of a batch: a divisor of their number where one is near [`BATCH`], so that the last batch has the shape of
/// the others and the model is prepared once.
pub(crate) fn batch_size(samples: usize) -> usize {
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
