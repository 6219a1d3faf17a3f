//! Observers of the user: they see every value that calibration looks at, and choose its range.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::{Engine, Observed};
use rayon::prelude::*;

use crate::calibrate::windows;
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::prepared::Prepared;
use crate::progress;

/// Chooses the range of activations from what it sees of them.
///
/// The model runs over the calibration data; of each value that is to be quantized, every batch is shown once. Batches
/// are seen in parallel, each in a state of its own; states are merged in the order of the samples.
///
/// ```
/// use onnx_quant::observe::RangeObserver;
///
/// /// The mean of the largest magnitudes of the batches.
/// struct MeanOfMaxima;
///
/// impl RangeObserver for MeanOfMaxima {
///     type State = (f64, u32);
///
///     fn observe(&self, (sum, batches): &mut Self::State, _value: &str, _dims: &[usize], data: &[f32]) {
///         *sum += f64::from(data.iter().fold(0f32, |m, x| m.max(x.abs())));
///         *batches += 1;
///     }
///
///     fn merge(&self, into: &mut Self::State, other: Self::State) {
///         *into = (into.0 + other.0, into.1 + other.1);
///     }
///
///     fn range(&self, _value: &str, (sum, batches): &Self::State) -> Option<(f32, f32)> {
///         let m = (sum / f64::from(*batches)) as f32;
///         Some((-m, m))
///     }
/// }
/// ```
pub trait RangeObserver: Send + Sync {
    /// What is gathered of one value.
    type State: Default + Send + 'static;

    /// Whether it wants to see a value (graph path and name).
    fn wants(&self, _value: &str) -> bool {
        true
    }

    /// Sees the elements of a value in row-major order, of one batch.
    fn observe(&self, state: &mut Self::State, value: &str, dims: &[usize], data: &[f32]);

    /// Takes in the state of the samples that follow.
    fn merge(&self, into: &mut Self::State, other: Self::State);

    /// The range of the value; `None` leaves it to the calibrator of the settings. The range is widened to hold 0.
    fn range(&self, value: &str, state: &Self::State) -> Option<(f32, f32)>;
}

/// A state of any observer.
type State = Box<dyn Any + Send>;

/// A [`RangeObserver`] without its type.
pub(crate) trait Erased: Send + Sync {
    fn wants(&self, value: &str) -> bool;
    fn start(&self) -> State;
    fn observe(&self, state: &mut State, value: &str, dims: &[usize], data: &[f32]);
    fn merge(&self, into: &mut State, other: State);
    fn range(&self, value: &str, state: &State) -> Option<(f32, f32)>;
}

struct Eraser<O>(O);

impl<O: RangeObserver> Erased for Eraser<O> {
    fn wants(&self, value: &str) -> bool {
        self.0.wants(value)
    }

    fn start(&self) -> State {
        Box::new(O::State::default())
    }

    fn observe(&self, state: &mut State, value: &str, dims: &[usize], data: &[f32]) {
        if let Some(state) = state.downcast_mut() {
            self.0.observe(state, value, dims, data);
        }
    }

    fn merge(&self, into: &mut State, other: State) {
        if let (Some(into), Ok(other)) = (into.downcast_mut(), other.downcast()) {
            self.0.merge(into, *other);
        }
    }

    fn range(&self, value: &str, state: &State) -> Option<(f32, f32)> {
        state
            .downcast_ref()
            .and_then(|state| self.0.range(value, state))
    }
}

pub(crate) fn erase(observer: impl RangeObserver + 'static) -> Arc<dyn Erased> {
    Arc::new(Eraser(observer))
}

/// Runs the data through the model and asks each observer for the ranges of the named values.
///
/// # Errors
/// Data that does not fit, a model that cannot be run, or a range that is none.
pub(crate) fn ranges(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    wanted: &[String],
    observers: &[Arc<dyn Erased>],
) -> Result<BTreeMap<String, (f32, f32)>, Error> {
    let any = |value: &&String| observers.iter().any(|o| o.wants(value));
    let values: Vec<String> = wanted.iter().filter(any).cloned().collect();
    let mut chosen = BTreeMap::new();
    if values.is_empty() {
        return Ok(chosen);
    }
    let prepared = Prepared::new(engine, model, values.clone());
    let bar = progress::bar("observe", data.len());
    let fresh = || -> Vec<Vec<Option<State>>> {
        let wanted = |o: &Arc<dyn Erased>| {
            let state = |v: &String| o.wants(v).then(|| o.start());
            values.iter().map(state).collect()
        };
        observers.iter().map(wanted).collect()
    };
    let mut all = fresh();
    for window in windows(data, rayon::current_num_threads()) {
        let window = window?;
        let full: Vec<&Batch> = window
            .iter()
            .filter(|b| b.padded <= b.samples || b.index == 0)
            .collect();
        let parts = full
            .par_iter()
            .map(|batch| {
                let mut part = fresh();
                let mut see = |seen: Observed<'_>| {
                    for (o, states) in observers.iter().zip(&mut part) {
                        if let Some(state) = &mut states[seen.index] {
                            o.observe(state, &values[seen.index], seen.dims, seen.data);
                        }
                    }
                };
                prepared.run(data, batch, Some(&mut see))?;
                Ok(part)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        for part in parts {
            for ((o, mine), theirs) in observers.iter().zip(&mut all).zip(part) {
                for (into, other) in mine.iter_mut().zip(theirs) {
                    if let (Some(into), Some(other)) = (into, other) {
                        o.merge(into, other);
                    }
                }
            }
        }
        bar.inc(window.iter().map(|b| b.samples as u64).sum());
    }
    bar.finish_and_clear();
    for (o, states) in observers.iter().zip(&all) {
        for (value, state) in values.iter().zip(states) {
            let Some(state) = state else { continue };
            let Some((low, high)) = o.range(value, state) else {
                continue;
            };
            if !(low.is_finite() && high.is_finite() && low <= high) {
                return Err(Error::usage(format!(
                    "an observer gives `{value}` the range {low} to {high}, which is none"
                )));
            }
            chosen.insert(value.clone(), (low.min(0.0), high.max(0.0)));
        }
    }
    Ok(chosen)
}
