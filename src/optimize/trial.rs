//! Whether a change of the float model pays: the model is quantized with it and without it, and both are compared with the
//! float model on samples that their calibration did not see.

use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, Tensor};
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::observation;
use onnx_quant_passes::settings::QuantSettings;
use rayon::prelude::*;

use crate::calibrate::{self, batch_size};
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::pipeline::{REWRITE, Run, Watch};
use crate::prepared::Prepared;

/// Samples that a trial calibrates on, and as many again by which it is judged.
const SAMPLES: usize = 48;

/// The signal-to-noise ratio in dB of the outputs of `model`, quantized with plain rounding, against those of `float`; the
/// mean over the outputs.
///
/// # Errors
/// A model that cannot be run.
pub(super) fn sqnr(
    float: &Model,
    model: &Model,
    settings: &QuantSettings,
    data: &DataSet,
    engine: &Arc<dyn Engine>,
) -> Result<f64, Error> {
    let data = data.clone().limit(2 * SAMPLES);
    let half = data.len().div_ceil(2);
    let mut run = Run::new(Watch::default())?;
    if settings.activations.is_some() {
        let points = observation::points(model, settings).map_err(Error::Usage)?;
        let seen = calibrate::calibrate(model, engine, &data.clone().limit(half), &points)?;
        run.cx.insert::<Calibration>(seen);
    }
    run.cx.insert(settings.clone());
    let mut quantized = model.clone();
    run.passes(REWRITE, &mut quantized)?;
    let batches: Result<Vec<Batch>, _> = data.batches(batch_size(data.len())).collect();
    let mut judged = batches?;
    judged.retain(|b| b.first_sample + b.samples > half || data.len() == 1);
    let exact = Exact::of(&Prepared::new(engine, float, Vec::new()), &data, judged)?;
    let prepared = Prepared::new(engine, &quantized, Vec::new());
    let ratios = decibels(&exact.compare(&prepared, &data)?);
    Ok(ratios.iter().sum::<f64>() / ratios.len().max(1) as f64)
}

/// Some batches with the outputs of the float model.
pub(crate) struct Exact(Vec<(Batch, Vec<Tensor>)>);

impl Exact {
    /// Runs the float model.
    ///
    /// # Errors
    /// A model that cannot be run.
    pub(crate) fn of(float: &Prepared, data: &DataSet, batches: Vec<Batch>) -> Result<Self, Error> {
        let run = |batch: Batch| {
            let outputs = float.run(data, &batch, None)?;
            Ok((batch, outputs))
        };
        batches
            .into_par_iter()
            .map(run)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// For each output the energies of the signal and of what another model computes instead.
    ///
    /// # Errors
    /// A model that cannot be run.
    pub(crate) fn compare(&self, other: &Prepared, data: &DataSet) -> Result<Energies, Error> {
        Ok(total(&self.compare_each(other, data)?))
    }

    /// The same for each batch.
    ///
    /// # Errors
    /// A model that cannot be run.
    pub(crate) fn compare_each(
        &self,
        other: &Prepared,
        data: &DataSet,
    ) -> Result<Vec<Energies>, Error> {
        self.0
            .par_iter()
            .map(|(batch, exact)| {
                let found = other.run(data, batch, None)?;
                let pairs = exact.iter().zip(&found);
                Ok(pairs.map(|(x, y)| energies(x, y)).collect())
            })
            .collect()
    }
}

/// Energies of signal and noise, of each output.
pub(crate) type Energies = Vec<(f64, f64)>;

/// The sums over all batches.
pub(crate) fn total(parts: &[Energies]) -> Energies {
    let mut sums = Energies::new();
    for part in parts {
        sums.resize(part.len().max(sums.len()), (0.0, 0.0));
        for (sum, p) in sums.iter_mut().zip(part) {
            sum.0 += p.0;
            sum.1 += p.1;
        }
    }
    sums
}

/// The ratio of signal to noise in dB of each output that is not 0.
pub(crate) fn decibels(sums: &[(f64, f64)]) -> Vec<f64> {
    sums.iter()
        .filter(|(signal, _)| *signal > 0.0)
        .map(|(signal, noise)| (10.0 * (signal / noise.max(signal * 1e-14)).log10()).max(-40.0))
        .collect()
}

/// Squares of the values and of their differences.
fn energies(exact: &Tensor, found: &Tensor) -> (f64, f64) {
    let (Ok(x), Ok(y)) = (exact.to_f32(), found.to_f32()) else {
        return (0.0, 0.0);
    };
    let mut sums = (0.0, 0.0);
    for (x, y) in x.iter().zip(&y) {
        let (x, d) = (f64::from(*x), f64::from(*x) - f64::from(*y));
        if x.is_finite() {
            sums.0 += x * x;
            sums.1 += if d.is_finite() { d * d } else { 1e30 };
        }
    }
    sums
}
