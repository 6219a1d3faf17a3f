//! The main job, stage by stage: load, normalize, calibrate, assign, rewrite, check.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::save::ExternalData;
use onnx_quant_numerics::format::Base;
use onnx_quant_numerics::observer::Calibrator;
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::plan::{Precision, PrecisionPlan};
use onnx_quant_passes::settings::QuantSettings;

use crate::calibrate::file;
use crate::check::{CheckReport, Checker};
use crate::compress;
use crate::data::{DataSet, DataSpec, Labels};
use crate::encodings::{Encodings, Ranges};
use crate::error::Error;
use crate::extend::Extensions;
use crate::metric::Metric;
use crate::mixed::auto::Mixed;
use crate::optimize;
use crate::pipeline::{Run, Watch};
use crate::report::{self, Budget, Report, SettingsReport, Sketch, summary};
use crate::stages::{Calibrated, Checked, Loaded, Normalized, Planned, Rewritten};

/// What is to be quantized, and how.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The float model.
    pub model: PathBuf,
    /// Calibration data; without it only weights are quantized.
    pub calibration: Option<DataSpec>,
    /// Statistics that were gathered before, instead of those of the calibration data; that is then for
    /// [`Job::optimize`] alone.
    pub statistics: Option<PathBuf>,
    /// Evaluation data.
    pub evaluation: Option<DataSpec>,
    /// Labels of the evaluation data, where it does not give them itself.
    pub labels: Option<PathBuf>,
    /// The largest drop of the task's metric that is allowed.
    pub max_drop: Option<f64>,
    /// Formats, schemes, ranges, nodes.
    pub settings: QuantSettings,
    /// How the passes are watched.
    pub watch: Watch,
    /// Inputs with a default that stay inputs.
    pub keep_inputs: Vec<String>,
    /// Where the weights of the output go.
    pub external: ExternalData,
    /// Encodings of another tool: ranges of activations, in place of statistics where they have them.
    pub encodings: Option<PathBuf>,
    /// Passes and observers of the user.
    pub extensions: Extensions,
    /// The metric of the user, in place of the one that labels and outputs suggest.
    pub metric: Option<Metric>,
    /// How accuracy is recovered.
    pub optimize: optimize::Options,
}

/// A quantized model with its report.
pub struct Quantized {
    /// The float model as it was read.
    pub float: Model,
    /// The quantized model.
    pub model: Model,
    /// What was done.
    pub report: Report,
    /// The passes that ran, with their times.
    pub run: Run,
    /// The plan as it was carried out.
    pub plan: PrecisionPlan,
    /// The settings that were in force.
    pub settings: QuantSettings,
    /// The formats that were chosen for the layers, and what that rests on, with `--auto`.
    pub mixed: Option<Mixed>,
}

impl Quantized {
    /// Takes in how the formats of the layers were chosen.
    pub fn chosen_by(&mut self, mixed: Mixed, max_drop: Option<f64>) {
        let drawn = report::mixed::figures(&mixed, max_drop);
        let figures = &mut self.report.figures;
        (figures.front, figures.sensitivity) = (drawn.front, drawn.sensitivity);
        self.report.chosen.clone_from(&mixed.chosen.verdict);
        if let (Some(budget), Some(v)) = (&mut self.report.budget, &mixed.chosen.verdict) {
            // A drop that may be chance alone does not hold a budget that must hold with a confidence.
            budget.held &= v.upper <= budget.max_drop;
        }
        self.mixed = Some(mixed);
    }

    /// Whether the budget holds, or none was given.
    pub fn budget_holds(&self) -> bool {
        self.report.budget.as_ref().is_none_or(|b| b.held)
    }
}

/// Tells the caller what is being done; see [`quantize`].
pub type Say<'a> = &'a mut dyn FnMut(String);

/// Does the whole job but the writing of the output.
///
/// # Errors
/// What is wrong with the model, the data or the settings.
pub fn quantize(job: &Job, engine: &Arc<dyn Engine>, say: Say<'_>) -> Result<Quantized, Error> {
    let own_data = job.metric.as_ref().is_some_and(|m| !m.needs_data());
    if job.max_drop.is_some() && job.evaluation.is_none() && !own_data {
        return Err(Error::usage(
            "--max-drop needs --eval: the drop is measured by running both models on evaluation data",
        ));
    }
    if job.labels.is_some() && job.evaluation.is_none() {
        return Err(Error::usage(
            "--labels needs --eval: labels belong to evaluation data",
        ));
    }
    if job.statistics.is_some() && job.calibration.is_some() && job.optimize.methods.is_empty() {
        return Err(Error::usage(
            "--stats and --calib both give the ranges of activations: leave one out, or give --optimize, which judges layers on the data of --calib",
        ));
    }
    let loaded = Loaded::open(&job.model)?
        .watch(job.watch.clone())
        .extensions(job.extensions.clone())
        .keep_inputs(job.keep_inputs.clone());
    let float = loaded.model().clone();
    say(format!(
        "load        {}: {} nodes, opset {}",
        job.model.display(),
        float.all_nodes().len(),
        float.opset("").map_or("none".to_owned(), |v| v.to_string())
    ));
    // Wrong evaluation data is found before the long work, not after it.
    let evaluation = Evaluation::open(job, &float)?;
    let normalized = loaded.normalize()?;
    say(format!(
        "normalize   {} nodes",
        normalized.model().all_nodes().len()
    ));
    let normalized = prepare(job, normalized, engine, say)?;
    let encodings = job.encodings.as_deref().map(Encodings::read).transpose()?;
    let (calibrated, skipped) = calibrate(job, normalized, (engine, encodings.as_ref()), say)?;
    let samples = calibrated.calibration().map_or(0, |c| c.samples);
    let mut planned = calibrated.plan()?;
    let plan = planned.plan();
    say(format!(
        "assign      {} integer, {} weight-only, {} follow, {} float",
        plan.count(Precision::Integer),
        plan.count(Precision::WeightOnly),
        plan.count(Precision::Follows),
        plan.count(Precision::Float)
    ));
    weigh(job, &mut planned, engine)?;
    recover(job, &mut planned, engine, say)?;
    if let Some(encodings) = &encodings {
        planned.import_weights(encodings);
    }
    let sketch = Sketch::of(&planned);
    let rewritten = planned.rewrite()?;
    let mut report = report_of(job, &rewritten, samples)?;
    report.figures = sketch.figures(&rewritten);
    report.calibration_skipped = skipped;
    let rewritten = if evaluation.is_some() || job.metric.is_some() {
        let checked = rewritten.check(engine, evaluation.as_ref(), job.metric.as_ref())?;
        let Checked { rewritten, check } = checked;
        let samples = match check.samples {
            0 => String::new(),
            n => format!("{n} samples: "),
        };
        say(format!(
            "check       {samples}{} {:.4} → {:.4}",
            check.task.metric, check.task.reference, check.task.candidate
        ));
        report
            .notes
            .extend(evaluation.iter().flat_map(Evaluation::notes));
        report.budget = job.max_drop.map(|max_drop| Budget {
            max_drop,
            drop: check.task.drop,
            held: check.task.drop <= max_drop,
        });
        report.figures.network = summary::network(&check);
        report.check = Some(check);
        rewritten
    } else {
        rewritten
    };
    Ok(Quantized {
        float: rewritten.carried.float,
        model: rewritten.model,
        report,
        run: rewritten.carried.run,
        plan,
        settings: rewritten.settings,
        mixed: None,
    })
}

fn calibration_data(job: &Job, model: &Model) -> Result<Option<DataSet>, Error> {
    let spec = job.calibration.as_ref();
    Ok(spec.map(|spec| spec.open(model)).transpose()?)
}

/// Changes the float model, where the job asks for it.
fn prepare(
    job: &Job,
    mut normalized: Normalized,
    engine: &Arc<dyn Engine>,
    say: Say<'_>,
) -> Result<Normalized, Error> {
    let methods = &job.optimize.methods;
    if methods.is_empty() {
        return Ok(normalized);
    }
    if job.statistics.is_some() && job.calibration.is_none() {
        return Err(Error::usage(format!(
            "--optimize {methods} needs the calibration data itself beside --stats: statistics do not say what layers compute; give --calib too"
        )));
    }
    let data = calibration_data(job, normalized.model())?;
    if data.is_none() {
        if let Some(method) = methods.named_with_data() {
            return Err(Error::usage(format!(
                "--optimize {method} needs --calib: layers are judged by what they compute on calibration data"
            )));
        }
        say(format!(
            "optimize    {methods} without calibration data: only equalization and scales of weights are done"
        ));
    }
    let changing = methods.changing_the_model();
    let mut options = job.optimize.clone();
    if job.statistics.is_some() && !changing.is_empty() {
        let names: Vec<&str> = changing.iter().map(|m| m.name()).collect();
        let names = names.join(", ");
        if !methods.is_preset() {
            return Err(Error::usage(format!(
                "--optimize {names} changes the float model, and --stats holds the ranges of the model as it is: leave out one of the two"
            )));
        }
        let note = format!(
            "optimize: {names} were left out: they change the float model, and --stats holds the ranges of the model as it is"
        );
        say(note.clone());
        normalized.carried.notes.push(note);
        options.methods = methods.clone().without(&changing);
    }
    normalized.recover(&job.settings, data.as_ref(), engine, &options)?;
    Ok(normalized)
}

/// Chooses weights and biases, where the job asks for it.
fn recover(
    job: &Job,
    planned: &mut Planned,
    engine: &Arc<dyn Engine>,
    say: Say<'_>,
) -> Result<(), Error> {
    let methods = &job.optimize.methods;
    if methods.is_empty() {
        return Ok(());
    }
    let data = calibration_data(job, planned.model())?;
    let outcome = planned.optimize(data.as_ref(), engine, &job.optimize)?;
    let (layers, changed) = outcome.layers;
    say(format!(
        "optimize    {methods}: {changed} of {layers} layers changed"
    ));
    Ok(())
}

/// Measures how much each value of a weight counts, where codebooks are made and there is data.
fn weigh(job: &Job, planned: &mut Planned, engine: &Arc<dyn Engine>) -> Result<(), Error> {
    let codebooks = planned
        .plan()
        .weights
        .iter()
        .any(|w| matches!(w.format.base, Base::Kmeans(_)));
    if !codebooks {
        return Ok(());
    }
    if let Some(data) = calibration_data(job, planned.model())? {
        let importance = compress::importance(planned.model(), engine, &data)?;
        planned.carried.run.cx.insert(importance);
    }
    Ok(())
}

/// The statistics of the job, or none where it has no data; and how many files of the data were left out.
pub(crate) fn calibrate(
    job: &Job,
    mut normalized: Normalized,
    (engine, encodings): (&Arc<dyn Engine>, Option<&Encodings>),
    say: Say<'_>,
) -> Result<(Calibrated, usize), Error> {
    let settings = job.settings.clone();
    let mut notes = Vec::new();
    let ranges = match encodings {
        Some(encodings) => encodings.ranges(normalized.model(), &mut notes)?,
        None => Ranges::new(),
    };
    normalized.carried.notes.append(&mut notes);
    if let Some(path) = &job.statistics {
        let mut calibration = file::read_for(path, &normalized.carried.float)?;
        let method = settings.calibrator;
        calibration.ranges.extend(ranges);
        let (samples, of) = (calibration.samples, calibration.of);
        say(format!(
            "calibrate   {samples} samples of {}, {method}",
            path.display()
        ));
        let mut calibrated = normalized.calibrated(settings, calibration);
        let given = calibrated.calibration().map(|c| c.notes.clone());
        let notes = &mut calibrated.carried.notes;
        if method == Calibrator::Auto {
            let note = "auto chose the best of each tensor by its statistics: to judge by outputs, give --calib instead of --stats";
            notes.push(note.to_owned());
        }
        notes.extend(given.unwrap_or_default());
        if samples < of {
            notes.push(format!(
                "{} holds {samples} of {of} calibration samples",
                path.display()
            ));
        }
        return Ok((calibrated, 0));
    }
    let Some(spec) = &job.calibration else {
        if !ranges.is_empty() {
            say(format!("calibrate   {} imported ranges", ranges.len()));
            let calibration = Calibration {
                ranges,
                ..Calibration::default()
            };
            return Ok((normalized.calibrated(settings, calibration), 0));
        }
        let had = normalized.carried.notes.len();
        let calibrated = normalized.without_data(settings);
        for note in calibrated.carried.notes.iter().skip(had) {
            say(format!("calibrate   {note}"));
        }
        return Ok((calibrated, 0));
    };
    let data = spec.open(normalized.model())?;
    let method = settings.calibrator;
    let mut calibrated = normalized.calibrate(settings, &data, engine)?;
    if let Some(calibration) = calibrated.calibration_mut() {
        calibration.ranges.extend(ranges);
    }
    let samples = calibrated.calibration().map_or(0, |c| c.samples);
    let dry = if spec.is_random() {
        " (RANDOM DATA: a dry run, the ranges say nothing about real data)"
    } else {
        ""
    };
    say(format!("calibrate   {samples} samples, {method}{dry}"));
    if method == Calibrator::Auto {
        let chosen = calibrated
            .carried
            .notes
            .iter()
            .find(|n| n.starts_with("auto chose"));
        say(format!("calibrate   {}", chosen.map_or("", String::as_str)));
    }
    Ok((calibrated, data.skipped()))
}

/// The report of a model that was not checked yet.
fn report_of(job: &Job, rewritten: &Rewritten, samples: usize) -> Result<Report, Error> {
    let plan = rewritten.plan();
    Ok(Report {
        tool: report::TOOL.to_owned(),
        model: job.model.display().to_string(),
        output: None,
        not_written: None,
        settings: settings_report(&rewritten.settings),
        size: report::size(rewritten.float_size(), rewritten.size()?, rewritten.model()),
        calibration_data: job
            .calibration
            .as_ref()
            .map(|d| d.path.display().to_string()),
        calibration_samples: samples,
        calibration_skipped: 0,
        nodes: report::node_rows(&plan),
        activations: report::activation_rows(&plan),
        weights: report::weight_rows(&plan),
        notes: rewritten.notes().to_vec(),
        skips: report::skip_rows(&rewritten.carried.run.cx),
        check: None,
        budget: None,
        chosen: None,
        figures: Default::default(),
    })
}

/// Evaluation data with its labels.
pub struct Evaluation {
    data: DataSet,
    labels: Option<Labels>,
}

impl Evaluation {
    pub(crate) fn open(job: &Job, model: &Model) -> Result<Option<Self>, Error> {
        let Some(spec) = &job.evaluation else {
            return Ok(None);
        };
        Self::from_spec(model, spec, job.labels.as_deref()).map(Some)
    }

    /// Opens data and labels for a model.
    ///
    /// # Errors
    /// Data that does not fit the model, or labels that do not fit the data.
    pub fn from_files(model: &Model, data: &Path, labels: Option<&Path>) -> Result<Self, Error> {
        Self::from_spec(model, &data.into(), labels)
    }

    /// Opens the data of a description, and its labels: those of a file, or those that the data itself gives.
    ///
    /// # Errors
    /// Data that does not fit the model, or labels that do not fit the data.
    pub fn from_spec(model: &Model, data: &DataSpec, labels: Option<&Path>) -> Result<Self, Error> {
        let data = data.open(model)?;
        let labels = Labels::of(labels, &data)?;
        Ok(Self { data, labels })
    }

    /// Compares two models on the data.
    ///
    /// # Errors
    /// A model that cannot be run, or outputs that cannot be compared.
    pub fn check(
        &self,
        reference: &Model,
        candidate: &Model,
        engine: &Arc<dyn Engine>,
    ) -> Result<CheckReport, Error> {
        self.compare((reference, reference), candidate, engine)
    }

    /// The same, where the layers of the quantized model are those of another float model: with channels rescaled.
    pub(crate) fn compare(
        &self,
        models: (&Model, &Model),
        candidate: &Model,
        engine: &Arc<dyn Engine>,
    ) -> Result<CheckReport, Error> {
        Checker::new(models, candidate, engine, &self.data, self.labels.as_ref())?.run()
    }

    /// The data and its labels.
    pub fn data(&self) -> (&DataSet, Option<&Labels>) {
        (&self.data, self.labels.as_ref())
    }

    /// What the user should know of the data.
    pub fn notes(&self) -> Vec<String> {
        self.data.notes()
    }
}

fn settings_report(s: &QuantSettings) -> SettingsReport {
    let format = |f: &Option<onnx_quant_numerics::format::Format>| {
        f.as_ref().map_or("none".to_owned(), ToString::to_string)
    };
    SettingsReport {
        weights: format(&s.weights),
        activations: format(&s.activations),
        weight_scheme: s.weight_scheme.to_string(),
        activation_scheme: s.activation_scheme.to_string(),
        calibrator: s.calibrator.to_string(),
        reduce_range: s.reduce_range,
        target: s.target.to_string(),
        isa: s.isa.map(|i| i.to_string()),
        format: if s.qoperator { "qoperator" } else { "qdq" },
        dynamic: s.dynamic,
    }
}

/// Bytes of a model that was read, external data included.
pub fn file_size(model: &Model, path: &Path) -> u64 {
    let external: u64 = model
        .all_values()
        .into_iter()
        .filter_map(|v| model.value(v).init.as_ref())
        .filter(|t| t.is_external())
        .map(|t| t.byte_len().unwrap_or(0) as u64)
        .sum();
    std::fs::metadata(path).map_or(0, |m| m.len()) + external
}
