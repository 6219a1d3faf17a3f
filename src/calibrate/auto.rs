//! The calibrator `auto`: each is tried, and judged by what the quantized model computes.
//!
//! The data is halved: the ranges of a trial are those of one half, as every calibrator and as the mix of the best for
//! each tensor chooses them, and the outputs of the quantized model are compared with those of the float model on samples
//! of the other half; then the halves change places, and the errors are added. That judges each calibrator by twice as
//! many samples as one division would, and by two sets of ranges: a single lucky one does not decide. The output that
//! differs most does. The statistics that are handed on hold all samples; no sample is run twice to gather them.

use std::ops::Range;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use onnx_quant_numerics::observer::{CANDIDATES, Calibrator};
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::observation::Point;
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::settings::QuantSettings;

use super::{batch_count, batch_size, gather};
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::optimize::trial::{Exact, decibels};
use crate::pipeline::{Run, Watch, plan_passes, rewrite_passes};
use crate::prepared::Prepared;

/// Samples of each half that calibrators are judged by: fewer do not tell them apart.
const JUDGED: usize = 128;

/// The calibrators that were tried, with the signal-to-noise ratio in dB of the output that differs most.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Each with its ratio; [`Calibrator::Auto`] is the mix.
    pub ratios: Vec<(Calibrator, f64)>,
    /// Samples on which they were judged.
    pub samples: usize,
}

impl Tried {
    /// The best; of equal ones the first.
    pub fn best(&self) -> Calibrator {
        let first = (Calibrator::Auto, f64::NEG_INFINITY);
        let better = |best: (Calibrator, f64), &tried: &(Calibrator, f64)| match tried.1 > best.1 {
            true => tried,
            false => best,
        };
        self.ratios.iter().fold(first, better).0
    }
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ratio = |(calibrator, db): &(Calibrator, f64)| format!("{} {db:.2}", word(*calibrator));
        let ratios: Vec<String> = self.ratios.iter().map(ratio).collect();
        write!(
            f,
            "auto chose {} by the output that differs most on {} samples: {} dB",
            word(self.best()),
            self.samples,
            ratios.join(", ")
        )
    }
}

fn word(calibrator: Calibrator) -> String {
    match calibrator {
        Calibrator::Auto => "the best of each tensor".to_owned(),
        other => other.to_string(),
    }
}

/// Gathers statistics. Where the settings ask for [`Calibrator::Auto`], they then hold the calibrator that was chosen.
///
/// # Errors
/// Data that does not fit, or a model that the engine cannot run.
pub fn calibrate(
    model: &Model,
    settings: &mut QuantSettings,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    points: &[Point],
) -> Result<(Calibration, Option<Tried>), Error> {
    if settings.calibrator != Calibrator::Auto || settings.activations.is_none() {
        return Ok((super::calibrate(model, engine, data, points)?, None));
    }
    let (calibration, tried) = try_all(model, settings, engine, data, points)?;
    settings.calibrator = tried.best();
    Ok((calibration, Some(tried)))
}

/// Gathers the statistics of all samples, and tries the calibrators.
///
/// # Errors
/// Data that does not fit, or a model that the engine cannot run.
fn try_all(
    model: &Model,
    settings: &QuantSettings,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    points: &[Point],
) -> Result<(Calibration, Tried), Error> {
    let (batches, size) = (batch_count(data), batch_size(data.len()));
    // Smaller than the size that was asked for where the model's batch is fixed.
    let batch = data.len().div_ceil(batches.max(1)).max(1);
    let float = Prepared::new(engine, model, Vec::new());
    let mut all = Calibration::new(String::new(), data.len());
    let mut samples = 0;
    let mut folds = Vec::new();
    for (known, judged) in folds_of(batches, JUDGED.div_ceil(batch)) {
        let start = Calibration::new(String::new(), data.len());
        let known = gather(model, engine, data, points, known, start, &mut |_| Ok(()))?;
        all.merge(&known).map_err(|e| Error::usage(e.to_string()))?;
        let judged = data.batches(size).take(judged.end).skip(judged.start);
        let judged = judged.collect::<Result<Vec<Batch>, _>>()?;
        samples += judged.iter().map(|b| b.samples).sum::<usize>();
        folds.push((known, Exact::of(&float, data, judged)?));
    }
    let mut ratios = Vec::new();
    let mut tried: Vec<(Vec<PrecisionPlan>, f64)> = Vec::new();
    for calibrator in CANDIDATES.into_iter().chain([Calibrator::Auto]) {
        let mut trials = Vec::new();
        for (known, _) in &folds {
            let mut run = Run::new(Watch::default())?;
            run.cx.insert(known.clone());
            run.cx.insert(QuantSettings {
                calibrator,
                ..settings.clone()
            });
            let mut quantized = model.clone();
            run.passes(plan_passes(), &mut quantized)?;
            trials.push((run, quantized));
        }
        let plan = |(run, _): &(Run, Model)| run.cx.get().cloned().unwrap_or_default();
        let plans: Vec<PrecisionPlan> = trials.iter().map(plan).collect();
        let same = tried.iter().find(|(p, _)| *p == plans);
        let ratio = match same {
            Some((_, ratio)) => *ratio,
            None => {
                let mut sums = Vec::new();
                for ((run, quantized), (_, exact)) in trials.iter_mut().zip(&folds) {
                    run.passes(rewrite_passes(), quantized)?;
                    let prepared = Prepared::new(engine, quantized, Vec::new());
                    add(&mut sums, &exact.compare(&prepared, data)?);
                }
                let ratios = decibels(&sums);
                ratios.into_iter().reduce(f64::min).unwrap_or(0.0)
            }
        };
        tried.push((plans, ratio));
        ratios.push((calibrator, ratio));
    }
    Ok((all, Tried { ratios, samples }))
}

/// The batches that ranges come from, and those that judge them: of each half the first `judged` of the other. Where there
/// is one batch only, it is all there is to judge by.
fn folds_of(batches: usize, judged: usize) -> Vec<(Range<usize>, Range<usize>)> {
    if batches < 2 {
        return vec![(0..batches, 0..batches)];
    }
    let middle = batches.div_ceil(2);
    vec![
        (0..middle, middle..batches.min(middle + judged)),
        (middle..batches, 0..middle.min(judged)),
    ]
}

fn add(sums: &mut Vec<(f64, f64)>, more: &[(f64, f64)]) {
    sums.resize(sums.len().max(more.len()), (0.0, 0.0));
    for (sum, (signal, noise)) in sums.iter_mut().zip(more) {
        sum.0 += signal;
        sum.1 += noise;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_fold_is_judged_by_what_it_knows() {
        assert_eq!(folds_of(1, 16), [(0..1, 0..1)]);
        assert_eq!(folds_of(3, 16), [(0..2, 2..3), (2..3, 0..2)]);
        assert_eq!(folds_of(64, 16), [(0..32, 32..48), (32..64, 0..16)]);
    }
}
