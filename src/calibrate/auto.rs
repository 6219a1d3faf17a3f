//! The calibrator `auto`: each is tried, and judged by what the quantized model computes.
//!
//! The last batches of the data are held out: the ranges of a trial are those of the others, as every calibrator and as
//! the mix of the best for each tensor chooses them, and the outputs of the quantized model are compared with those
//! of the float model on what was held out. The output that differs most decides. The statistics that are handed on
//! hold all samples; no sample is run twice to gather them.

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

/// Samples that are held out, where the data has twice as many: fewer do not tell calibrators apart.
const HELD_OUT: usize = 128;

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
    let seen = batches - HELD_OUT.div_ceil(batch).min(batches / 2);
    let part = |range| {
        let start = Calibration::new(String::new(), data.len());
        gather(model, engine, data, points, range, start, &mut |_| Ok(()))
    };
    let known = part(0..seen)?;
    let mut all = known.clone();
    all.merge(&part(seen..batches)?)
        .map_err(|e| Error::usage(e.to_string()))?;
    // Where there is one batch only, it is all there is to judge by.
    let first = if seen < batches { seen } else { 0 };
    let held_out: Result<Vec<Batch>, _> = data.batches(size).skip(first).collect();
    let held_out = held_out?;
    let samples = held_out.iter().map(|b| b.samples).sum();
    let exact = Exact::of(&Prepared::new(engine, model, Vec::new()), data, held_out)?;
    let mut ratios = Vec::new();
    let mut plans: Vec<(PrecisionPlan, f64)> = Vec::new();
    for calibrator in CANDIDATES.into_iter().chain([Calibrator::Auto]) {
        let mut run = Run::new(Watch::default())?;
        run.cx.insert(known.clone());
        run.cx.insert(QuantSettings {
            calibrator,
            ..settings.clone()
        });
        let mut quantized = model.clone();
        run.passes(plan_passes(), &mut quantized)?;
        let plan: PrecisionPlan = run.cx.get().cloned().unwrap_or_default();
        let same = plans.iter().find(|(p, _)| *p == plan);
        let ratio = match same {
            Some((_, ratio)) => *ratio,
            None => {
                run.passes(rewrite_passes(), &mut quantized)?;
                let prepared = Prepared::new(engine, &quantized, Vec::new());
                let ratios = decibels(&exact.compare(&prepared, data)?);
                ratios.into_iter().reduce(f64::min).unwrap_or(0.0)
            }
        };
        plans.push((plan, ratio));
        ratios.push((calibrator, ratio));
    }
    Ok((all, Tried { ratios, samples }))
}
