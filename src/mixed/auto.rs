//! Analysis and assignment in one go: from a job of `quantize` to the settings that are best under its budget.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use onnx_quant_numerics::format::Format;

use super::analyze::{self, Analysis, Subject, everything};
use super::assign::{Budget, Cost, Problem, title};
use super::candidates::{self, Candidate, Pin};
use super::digest;
use super::judge::{Judge, Verdict};
use super::loss::LossKind;
use super::search::{self, Builder, Built, Rater, Trade};
use super::sensitivity::Sensitivity;
use crate::data::{DataSet, Labels};
use crate::error::Error;
use crate::metadata;
use crate::quantize::{Evaluation, Job, Say, calibrate};
use crate::stages::{Calibrated, Loaded};

/// How formats are measured.
#[derive(Debug, Clone)]
pub struct Measure {
    /// The formats to choose from.
    pub candidates: Vec<Candidate>,
    /// Samples to look at.
    pub samples: usize,
    /// Bytes that kept values may take.
    pub memory: usize,
    /// The loss; chosen by outputs and labels where absent.
    pub loss: Option<LossKind>,
    /// Run every format on every sample.
    pub thorough: bool,
    /// Signal-to-noise ratio at the layer's own output below which a format is not run further, in dB.
    pub prefilter: Option<f64>,
    /// Measure times too.
    pub latency: bool,
    /// The file that the result will be written to.
    pub output: Option<PathBuf>,
    /// Go on where an interrupted analysis ended.
    pub resume: bool,
}

/// What is wanted of an assignment.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The formats to choose from.
    pub candidates: Vec<Candidate>,
    /// Layers whose format is fixed.
    pub pins: Vec<Pin>,
    /// What is limited.
    pub budget: Option<Budget>,
    /// The largest loss on the evaluation data.
    pub max_drop: Option<f64>,
    /// The confidence with which that must hold.
    pub confidence: f64,
}

/// A model that is calibrated for every candidate, with the data it is judged on.
pub struct Ready {
    calibrated: Calibrated,
    evaluation: Option<Evaluation>,
    activations: Vec<Format>,
}

impl Ready {
    /// The model as it was read.
    pub fn float(&self) -> &Model {
        &self.calibrated.carried.float
    }

    /// The data that formats are compared on: that of the evaluation with its labels, else that of the calibration.
    fn samples(&self, job: &Job) -> Result<Option<(DataSet, Option<&Labels>)>, Error> {
        Ok(match (&self.evaluation, &job.calibration) {
            (Some(e), _) => {
                let (data, labels) = e.data();
                Some((data.clone(), labels))
            }
            (None, Some(spec)) => Some((spec.open(&self.calibrated.model)?, None)),
            (None, None) => None,
        })
    }
}

/// What was chosen.
pub struct Chosen {
    /// The model; absent where no plan holds the budget.
    pub built: Option<Built>,
    /// What it loses on the evaluation data, where it was run there.
    pub verdict: Option<Verdict>,
    /// The front, with the models that were run.
    pub front: Vec<Trade>,
    /// By layer: its name and its format.
    pub formats: Vec<(String, String)>,
    /// Why no plan holds, in one sentence.
    pub failure: Option<String>,
}

/// A choice with what it rests on.
pub struct Mixed {
    /// What was measured.
    pub sensitivity: Sensitivity,
    /// What was chosen.
    pub chosen: Chosen,
}

/// Analysis, unless its result is given, and assignment.
///
/// # Errors
/// What is wrong with model, data or budget.
pub fn run(
    job: &Job,
    measure: &Measure,
    sensitivity: Option<Sensitivity>,
    wish: &Wish,
    engine: &Arc<dyn Engine>,
    say: Say<'_>,
) -> Result<Mixed, Error> {
    let (ready, sensitivity) = match sensitivity {
        Some(found) => (ready(job, &[], engine, say)?, found),
        None => {
            let ready = ready(job, &measure.candidates, engine, say)?;
            let found = sensitivities(job, &ready, measure, engine, say)?;
            (ready, found)
        }
    };
    let chosen = choose(job, &ready, &sensitivity, wish, engine, say)?;
    Ok(Mixed {
        sensitivity,
        chosen,
    })
}

/// What the finished model loses, where accuracy recovery has changed the one that was chosen.
///
/// # Errors
/// A model that cannot be run on the evaluation data.
pub fn judge_again(
    job: &Job,
    (float, model): (&Model, &Model),
    confidence: f64,
    engine: &Arc<dyn Engine>,
) -> Result<Option<Verdict>, Error> {
    let Some(evaluation) = Evaluation::open(job, float)? else {
        return Ok(None);
    };
    let (data, labels) = evaluation.data();
    let judge = Judge::new(engine, float, data, labels, confidence);
    judge.judge(model).map(Some)
}

/// By layer: what its format loses.
pub fn remarks(chosen: &Chosen, found: &Sensitivity) -> BTreeMap<String, String> {
    let text = |(layer, format): &(String, String)| {
        let l = found.layers.iter().find(|l| l.name == *layer)?;
        let m = l.formats.iter().find(|m| m.name() == *format)?;
        Some((
            layer.clone(),
            format!("chosen: a loss of {:.3e} alone, {} bytes", m.loss?, m.bytes),
        ))
    };
    chosen.formats.iter().filter_map(text).collect()
}

/// Reads, normalizes and calibrates the model of a job.
///
/// # Errors
/// What is wrong with model, data or settings.
pub fn ready(
    job: &Job,
    candidates: &[Candidate],
    engine: &Arc<dyn Engine>,
    say: Say<'_>,
) -> Result<Ready, Error> {
    if job.encodings.is_some() {
        return Err(Error::usage(
            "--import-encodings gives scales for one format, and formats are to be chosen here: leave it out, or give --weights and --activations",
        ));
    }
    let loaded = Loaded::open(&job.model)?
        .watch(job.watch.clone())
        .keep_inputs(job.keep_inputs.clone());
    let evaluation = Evaluation::open(job, loaded.model())?;
    let normalized = loaded.normalize()?;
    let activations = activations(job, candidates);
    let mut own = job.clone();
    if let Some(&a) = activations.first() {
        own.settings = everything(&job.settings, a);
    } else {
        own.settings.activations = None;
    }
    let calibrated = match activations.is_empty() {
        true => normalized.without_data(own.settings),
        false => calibrate(&own, normalized, (engine, None), say)?.0,
    };
    Ok(Ready {
        calibrated,
        evaluation,
        activations,
    })
}

/// The formats of activations: those of the candidates, and that of the settings where a candidate leaves it open.
fn activations(job: &Job, candidates: &[Candidate]) -> Vec<Format> {
    if candidates.is_empty() || job.calibration.is_none() && job.statistics.is_none() {
        return Vec::new();
    }
    let (_, mut activations) = candidates::formats(candidates);
    let open = candidates.iter().any(|c| c.activations.is_none());
    if let Some(a) = job
        .settings
        .activations
        .filter(|a| open && !activations.contains(a))
    {
        activations.push(a);
    }
    activations
}

/// Measures the sensitivities of a job's model.
///
/// # Errors
/// No data to run, or what the analysis says.
pub fn sensitivities(
    job: &Job,
    ready: &Ready,
    measure: &Measure,
    engine: &Arc<dyn Engine>,
    say: Say<'_>,
) -> Result<Sensitivity, Error> {
    let float = &ready.calibrated.carried.float;
    let (data, labels) = ready
        .samples(job)?
        .ok_or_else(|| Error::usage("the analysis runs the model: give --calib or --eval data"))?;
    let paths = [job.calibration.as_ref(), job.evaluation.as_ref()]
        .into_iter()
        .flatten();
    let mut digests = Vec::new();
    for spec in paths.filter(|s| !s.is_random()) {
        digests.push(digest::of_data(&spec.path)?);
    }
    if let Some(labels) = &job.labels {
        digests.push(digest::of_data(labels)?);
    }
    let subject = Subject {
        float,
        model: ready.calibrated.model(),
        path: job.model.display().to_string(),
        calibration: ready.calibrated.calibration(),
        data: &data,
        labels,
        evaluation: job.evaluation.clone(),
        label_file: job.labels.clone(),
        digests: (onnx_quant_ir::save::digest(float)?, digests),
    };
    let (weights, _) = candidates::formats(&measure.candidates);
    let analysis = Analysis {
        weights,
        activations: ready.activations.clone(),
        settings: job.settings.clone(),
        samples: measure.samples,
        memory: measure.memory,
        loss: measure.loss,
        thorough: measure.thorough,
        prefilter: measure.prefilter,
        candidates: measure.candidates.clone(),
        latency: measure.latency,
        output: measure.output.clone(),
        resume: measure.resume,
    };
    analyze::analyze(&subject, &analysis, engine, say)
}

/// Chooses formats from sensitivities.
///
/// # Errors
/// Sensitivities of another model, and budgets that cannot be held.
pub fn choose(
    job: &Job,
    ready: &Ready,
    found: &Sensitivity,
    wish: &Wish,
    engine: &Arc<dyn Engine>,
    say: Say<'_>,
) -> Result<Chosen, Error> {
    let float = &ready.calibrated.carried.float;
    let own = onnx_quant_ir::save::digest(float)?;
    if own != found.model_digest {
        return Err(Error::usage(format!(
            "the sensitivities were measured on another model ({}): its digest is {}, that of {} is {own}",
            found.model,
            found.model_digest,
            job.model.display()
        )));
    }
    let cost = wish.budget.map_or(Cost::Both, Budget::cost);
    let problem = Problem::new(found, &wish.candidates, &wish.pins, cost)?;
    let base = &job.settings;
    let builder = Builder {
        model: ready.calibrated.model(),
        source: metadata::file_digest(&job.model)
            .map_err(|e| Error::usage(format!("{}: {e}", job.model.display())))?,
        base,
        problem: &problem,
    };
    let judge = ready.evaluation.as_ref().map(|e| {
        let (data, labels) = e.data();
        Judge::new(engine, float, data, labels, wish.confidence)
    });
    let samples = ready.samples(job)?;
    let samples = samples.map(|(data, labels)| (data.limit(found.samples), labels));
    let rater = samples.as_ref().map(|(data, labels)| Rater {
        judge: Judge::new(engine, float, data, *labels, wish.confidence),
        kind: found.loss,
    });
    let mut chosen = Chosen {
        built: None,
        verdict: None,
        front: Vec::new(),
        formats: Vec::new(),
        failure: None,
    };
    let mut runs = Vec::new();
    match (wish.budget, wish.max_drop, judge) {
        (None, None, _) => {
            return Err(Error::usage(
                "nothing is limited: give --max-drop, --max-size, --avg-bits, --max-bops or --max-latency",
            ));
        }
        (None, Some(_), None) => {
            return Err(Error::usage(
                "--max-drop needs --eval: the drop is measured by running the whole model",
            ));
        }
        (None, Some(max_drop), Some(judge)) => {
            let searched = search::smallest(&builder, &judge, max_drop, found, say)?;
            (chosen.built, chosen.verdict) = (searched.built, searched.verdict);
            (chosen.failure, runs) = (searched.failure, searched.runs);
        }
        (Some(budget), max_drop, judge) => {
            let built = search::within(&builder, budget, rater.as_ref(), say)?;
            if let Some(judge) = judge {
                let verdict = judge.judge(&built.model)?;
                runs.push((built.assignment.clone(), built.bytes, verdict.clone()));
                if max_drop.is_some_and(|m| verdict.upper > m) {
                    chosen.failure = Some(format!(
                        "the best plan under the budget loses {:.2} %, at most {:.2} % with a confidence of {:.0} %, where {:.2} % is allowed",
                        verdict.drop * 100.0,
                        verdict.upper * 100.0,
                        verdict.confidence * 100.0,
                        max_drop.unwrap_or_default() * 100.0
                    ));
                }
                chosen.verdict = Some(verdict);
            }
            if chosen.failure.is_none() {
                chosen.built = Some(built);
            }
        }
    }
    let assignment = chosen.built.as_ref().map(|b| &b.assignment);
    chosen.front = search::trades(&problem, assignment, &runs);
    if let Some(a) = assignment {
        let layers = problem.layers.iter().enumerate();
        chosen.formats = layers
            .map(|(i, (name, _, _))| (name.clone(), title(problem.chosen(a, i))))
            .collect();
    }
    Ok(chosen)
}
