//! The main job, stage by stage: load, normalize, calibrate, assign, rewrite, check.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::save::ExternalData;
use onnx_quant_ir::{Model, load, save};
use onnx_quant_passes::assign_precision::wanted_statistics;
use onnx_quant_passes::freeze_initializers::KeepInputs;
use onnx_quant_passes::plan::{Precision, PrecisionPlan};
use onnx_quant_passes::settings::QuantSettings;

use crate::calibrate;
use crate::check::{CheckReport, Checker};
use crate::data::{DataSet, Labels, Signature};
use crate::error::Error;
use crate::pipeline::{self, NORMALIZE, REWRITE, Run, Watch};
use crate::report::{self, Budget, Report, SettingsReport};

/// What is to be quantized, and how.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The float model.
    pub model: PathBuf,
    /// Calibration data; without it only weights are quantized.
    pub calibration: Option<PathBuf>,
    /// Evaluation data.
    pub evaluation: Option<PathBuf>,
    /// Labels of the evaluation data.
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
}

impl Quantized {
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
    if job.max_drop.is_some() && job.evaluation.is_none() {
        return Err(Error::usage(
            "--max-drop needs --eval: the drop is measured by running both models on evaluation data",
        ));
    }
    if job.labels.is_some() && job.evaluation.is_none() {
        return Err(Error::usage(
            "--labels needs --eval: labels belong to evaluation data",
        ));
    }
    let float = load::load(&job.model)?;
    pipeline::refuse_quantized(&float, &job.model)?;
    say(format!(
        "load        {}: {} nodes, opset {}",
        job.model.display(),
        float.all_nodes().len(),
        float.opset("").map_or("none".to_owned(), |v| v.to_string())
    ));
    // Wrong evaluation data is found before the long work, not after it.
    let evaluation = Evaluation::open(job, &float)?;
    let mut run = Run::new(job.watch.clone())?;
    run.cx
        .insert(KeepInputs(job.keep_inputs.iter().cloned().collect()));
    let mut model = float.clone();
    run.passes(NORMALIZE, &mut model)?;
    say(format!("normalize   {} nodes", model.all_nodes().len()));
    let mut settings = job.settings.clone();
    let mut notes = Vec::new();
    let samples = match &job.calibration {
        Some(path) => {
            let samples = gather(&model, &settings, engine, path, &mut run, &mut notes)?;
            say(format!(
                "calibrate   {samples} samples, {}",
                settings.calibrator
            ));
            samples
        }
        None => {
            if settings.activations.take().is_some() {
                let note = "no calibration data: only weights are quantized, activations stay in float; give --calib for integer kernels";
                say(format!("calibrate   {note}"));
                notes.push(note.to_owned());
            }
            0
        }
    };
    run.cx.insert(settings.clone());
    run.passes(REWRITE, &mut model)?;
    name_producer(&mut model);
    let plan = run.cx.get::<PrecisionPlan>().cloned().unwrap_or_default();
    notes.extend(
        run.cx
            .notes
            .iter()
            .map(|n| format!("{}: {}", n.pass, n.message)),
    );
    if plan.count(Precision::Integer) + plan.count(Precision::WeightOnly) == 0 {
        notes.push(
            "nothing could be quantized: every node stays in float, for the reasons in the plan"
                .to_owned(),
        );
    }
    say(format!(
        "assign      {} integer, {} weight-only, {} follow, {} float",
        plan.count(Precision::Integer),
        plan.count(Precision::WeightOnly),
        plan.count(Precision::Follows),
        plan.count(Precision::Float)
    ));
    let after = size_of(&model)?;
    let mut report = Report {
        tool: concat!("onnx-quant ", env!("CARGO_PKG_VERSION")).to_owned(),
        model: job.model.display().to_string(),
        output: None,
        not_written: None,
        settings: settings_report(&settings),
        size: report::size(file_size(&float, &job.model), after, &model),
        calibration_samples: samples,
        nodes: report::node_rows(&plan),
        activations: report::activation_rows(&plan),
        weights: report::weight_rows(&plan),
        notes,
        skips: report::skip_rows(&run.cx),
        check: None,
        budget: None,
    };
    if let Some(e) = &evaluation {
        let check = e.check(&float, &model, engine)?;
        say(format!(
            "check       {} samples: {} {:.4} → {:.4}",
            check.samples, check.task.metric, check.task.reference, check.task.candidate
        ));
        report.notes.extend(e.data.notes());
        report.budget = job.max_drop.map(|max_drop| Budget {
            max_drop,
            drop: check.task.drop,
            held: check.task.drop <= max_drop,
        });
        report.check = Some(check);
    }
    Ok(Quantized {
        float,
        model,
        report,
        run,
    })
}

fn gather(
    model: &Model,
    settings: &QuantSettings,
    engine: &Arc<dyn Engine>,
    path: &Path,
    run: &mut Run,
    notes: &mut Vec<String>,
) -> Result<usize, Error> {
    let data = DataSet::open(path, &Signature::of(model)?)?;
    notes.extend(data.notes());
    let wanted = wanted_statistics(model, settings).map_err(Error::Usage)?;
    let calibration = calibrate::calibrate(model, engine, &data, &wanted)?;
    let samples = calibration.samples;
    if samples < data.len() {
        notes.push(format!(
            "{} of {} calibration samples were not used: they fill less than half of the model's fixed batch",
            data.len() - samples,
            data.len()
        ));
    }
    run.cx.insert(calibration);
    Ok(samples)
}

/// Evaluation data with its labels.
pub struct Evaluation {
    data: DataSet,
    labels: Option<Labels>,
}

impl Evaluation {
    fn open(job: &Job, model: &Model) -> Result<Option<Self>, Error> {
        let Some(path) = &job.evaluation else {
            return Ok(None);
        };
        Self::from_files(model, path, job.labels.as_deref()).map(Some)
    }

    /// Opens data and labels for a model.
    ///
    /// # Errors
    /// Data that does not fit the model, or labels that do not fit the data.
    pub fn from_files(model: &Model, data: &Path, labels: Option<&Path>) -> Result<Self, Error> {
        let data = DataSet::open(data, &Signature::of(model)?)?;
        let labels = labels.map(Labels::open).transpose()?;
        if let Some(l) = &labels {
            l.check(data.len())?;
        }
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
        Checker::new(
            reference,
            candidate,
            engine,
            &self.data,
            self.labels.as_ref(),
        )?
        .run()
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
    }
}

fn name_producer(model: &mut Model) {
    model.header.producer_name = Some("onnx-quant".to_owned());
    model.header.producer_version = Some(env!("CARGO_PKG_VERSION").to_owned());
}

/// Bytes that the model's file would take, external data included.
fn size_of(model: &Model) -> Result<u64, Error> {
    use onnx_quant_ir::proto::Message;
    Ok(save::inlined(model)?.encoded_len() as u64)
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
