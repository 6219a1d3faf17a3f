//! The calibrator `auto`: each is tried, and judged by what the quantized model computes.
//!
//! The data is divided into four parts. The ranges of a trial are those of all parts but one, as every calibrator and
//! as the mix of the best for each tensor chooses them, and the outputs of the quantized model are compared with those of
//! the float model on samples of that one; the errors of all parts are added. So ranges come from nearly as many samples
//! as those of the model that is written, and a single lucky set does not decide. The output that differs most does.
//!
//! A few samples with large errors decide the sum of all, so that the best sum is often luck. Another calibrator takes the
//! place of the default one only where its sum is better by more than one standard error, which the jackknife estimates
//! (Efron and Stein, *The jackknife estimate of variance*, 1981; for the rule Breiman et al., *Classification and
//! Regression Trees*, 1984, section 3.4.3), *and* where it is better on the samples one by one: the mean of the logarithms
//! of the ratio of both errors lies above zero.
//!
//! A model with a cache meets contexts longer than those of the data, unless these go to the end of its positions. Errors
//! on the data then say nothing of what lies beyond, and nothing that was seen is clipped: `minmax`.
//!
//! The statistics that are handed on hold all samples; no sample is run twice to gather them.

use std::ops::Range;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use onnx_quant_numerics::observer::{CANDIDATES, Calibrator};
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::observation::Point;
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::settings::QuantSettings;

use super::reach::{self, Reach};
use super::{batch_count, batch_size, gather};
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::optimize::trial::{Energies, Exact, decibels, total};
use crate::pipeline::{Run, Watch, plan_passes, rewrite_passes};
use crate::prepared::Prepared;

/// Parts of the data, each of which judges ranges of the others.
const FOLDS: usize = 4;
/// Samples of each part that calibrators are judged by: fewer do not tell them apart.
const JUDGED: usize = 64;

/// The calibrators that were tried, with the signal-to-noise ratio in dB of the output that differs most.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Each with its ratio; [`Calibrator::Auto`] is the mix.
    pub ratios: Vec<(Calibrator, f64)>,
    /// The one that was chosen: the first, or the best of those that are better than it beyond chance; see `short`.
    pub best: Calibrator,
    /// Samples on which they were judged.
    pub samples: usize,
    /// Why `minmax` was chosen whatever the ratios: the data does not reach all positions.
    pub short: Option<Reach>,
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ratio = |(calibrator, db): &(Calibrator, f64)| format!("{} {db:.2}", word(*calibrator));
        let ratios: Vec<String> = self.ratios.iter().map(ratio).collect();
        let best = word(self.best);
        match &self.short {
            None => write!(f, "auto chose {best}")?,
            Some(short) => write!(
                f,
                "auto chose {best}, which clips nothing: {short} (longer samples let errors decide);"
            )?,
        }
        write!(
            f,
            " by the output that differs most on {} samples: {} dB",
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
    settings.calibrator = tried.best;
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
    let mut parts = Vec::new();
    let fold = folds_of(batches);
    for part in &fold {
        let start = Calibration::new(String::new(), data.len());
        let seen = gather(
            model,
            engine,
            data,
            points,
            part.clone(),
            start,
            &mut |_| Ok(()),
        )?;
        merge(&mut all, &seen)?;
        parts.push(seen);
    }
    for (out, part) in fold.into_iter().enumerate() {
        let mut known = Calibration::new(String::new(), data.len());
        // Where there is one batch only, it is all there is to judge by.
        for (_, seen) in (parts.iter().enumerate()).filter(|(i, _)| *i != out || parts.len() == 1) {
            merge(&mut known, seen)?;
        }
        let end = part.end.min(part.start + JUDGED.div_ceil(batch));
        let judged = data.batches(size).take(end).skip(part.start);
        let judged = judged.collect::<Result<Vec<Batch>, _>>()?;
        samples += judged.iter().map(|b| b.samples).sum::<usize>();
        folds.push((known, Exact::of(&float, data, judged)?));
    }
    let mut tried: Vec<(Vec<PrecisionPlan>, Judged)> = Vec::new();
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
        let judged = match same {
            Some((_, judged)) => Judged {
                calibrator,
                ..judged.clone()
            },
            None => {
                let mut batches = Vec::new();
                for ((run, quantized), (_, exact)) in trials.iter_mut().zip(&folds) {
                    run.passes(rewrite_passes(), quantized)?;
                    let prepared = Prepared::new(engine, quantized, Vec::new());
                    batches.extend(exact.compare_each(&prepared, data)?);
                }
                Judged::of(calibrator, batches)
            }
        };
        tried.push((plans, judged));
    }
    let tried: Vec<Judged> = tried.into_iter().map(|(_, judged)| judged).collect();
    let ratios = tried.iter().map(|t| (t.calibrator, t.ratio)).collect();
    let short = reach::short(model, engine, data);
    let best = match short {
        Some(_) => Calibrator::MinMax,
        None => best(&tried),
    };
    Ok((
        all,
        Tried {
            ratios,
            best,
            samples,
            short,
        },
    ))
}

/// How a calibrator did.
#[derive(Debug, Clone)]
struct Judged {
    calibrator: Calibrator,
    /// By batch.
    energies: Vec<Energies>,
    /// The output that differs most, and its ratio of signal to noise in dB.
    worst: usize,
    ratio: f64,
}

impl Judged {
    fn of(calibrator: Calibrator, energies: Vec<Energies>) -> Self {
        let outputs = total(&energies).into_iter().enumerate();
        let ratios = outputs.filter_map(|(i, e)| Some((i, *decibels(&[e]).first()?)));
        let worst = ratios.reduce(|a, b| if b.1 < a.1 { b } else { a });
        let (worst, ratio) = worst.unwrap_or((0, 0.0));
        Self {
            calibrator,
            energies,
            worst,
            ratio,
        }
    }

    /// Whether it is better than another beyond chance, by the output in which the other differs most.
    fn beats(&self, other: &Self) -> bool {
        let noise = |energies: &Energies| {
            let (signal, noise) = energies.get(other.worst).copied().unwrap_or_default();
            noise.max(signal * 1e-14)
        };
        let pairs = self.energies.iter().zip(&other.energies);
        let pairs = pairs.map(|(mine, theirs)| (noise(mine), noise(theirs)));
        let pairs: Vec<(f64, f64)> = pairs.filter(|(m, t)| *m > 0.0 && *t > 0.0).collect();
        let logs: f64 = pairs
            .iter()
            .map(|(mine, theirs)| (theirs / mine).ln())
            .sum();
        self.ratio > other.ratio && logs > 0.0 && beyond_chance(&pairs)
    }
}

/// The best of those that beat the first, or the first; of equal ones the first.
fn best(tried: &[Judged]) -> Calibrator {
    let Some((default, others)) = tried.split_first() else {
        return CANDIDATES[0];
    };
    let better = others.iter().filter(|t| t.beats(default));
    let chosen = better.fold(
        default,
        |best, t| if t.ratio > best.ratio { t } else { best },
    );
    chosen.calibrator
}

/// Whether the sum of the first of each pair is less than that of the second by more than a standard error of the
/// logarithm of their ratio: the jackknife's, which leaves out each pair in turn.
fn beyond_chance(pairs: &[(f64, f64)]) -> bool {
    let n = pairs.len() as f64;
    let (mine, theirs) = pairs.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
    let without = |p: &(f64, f64)| ((theirs - p.1) / (mine - p.0)).ln();
    let ratios: Vec<f64> = pairs
        .iter()
        .map(without)
        .filter(|r| r.is_finite())
        .collect();
    let mean = ratios.iter().sum::<f64>() / n;
    let squares: f64 = ratios.iter().map(|r| (r - mean).powi(2)).sum();
    (theirs / mine).ln() > (squares * (n - 1.0) / n).sqrt()
}

fn merge(into: &mut Calibration, seen: &Calibration) -> Result<(), Error> {
    into.merge(seen).map_err(|e| Error::usage(e.to_string()))
}

/// The parts of the data, in batches; as many as there are batches where these are few.
fn folds_of(batches: usize) -> Vec<Range<usize>> {
    let count = batches.clamp(1, FOLDS);
    let edge = |i: usize| batches * i / count;
    (0..count).map(|i| edge(i)..edge(i + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lucky_sum_does_not_decide() {
        let judged = |calibrator, noise: &[f64]| {
            let energies = noise.iter().map(|n| vec![(100.0, *n), (100.0, 0.001)]);
            Judged::of(calibrator, energies.collect())
        };
        let default = judged(Calibrator::Mse, &[1.0, 1.1, 0.9, 9.0]);
        // Better on one odd batch, and worse on all others.
        let lucky = judged(Calibrator::MinMax, &[1.2, 1.3, 1.1, 2.0]);
        let better = judged(Calibrator::Kl, &[0.8, 0.85, 0.75, 7.0]);
        let chosen = |others: &[&Judged]| {
            let mut all = vec![default.clone()];
            all.extend(others.iter().map(|j| (*j).clone()));
            best(&all)
        };
        assert!(lucky.ratio > default.ratio && lucky.ratio > better.ratio);
        assert_eq!(chosen(&[&lucky]), Calibrator::Mse);
        assert_eq!(chosen(&[&lucky, &better]), Calibrator::Kl);
        assert!(!beyond_chance(&[]) && beyond_chance(&[(1.0, 1.1)]));
        assert!(!beyond_chance(&[(1.1, 1.0)]));
    }

    #[test]
    fn parts_cover_the_data() {
        assert_eq!(folds_of(2), [0..1, 1..2]);
        assert_eq!(folds_of(3), [0..1, 1..2, 2..3]);
        assert_eq!(folds_of(63), [0..15, 15..31, 31..47, 47..63]);
    }
}
