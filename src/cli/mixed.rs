//! `onnx-quant analyze`, `onnx-quant assign`, and the options of `quantize --auto`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use onnx_quant::ir::engine::Engine;
use onnx_quant::ir::save;
use onnx_quant::mixed::assign::Budget;
use onnx_quant::mixed::auto::{self, Chosen, Measure, Mixed, Wish};
use onnx_quant::mixed::candidates::{self, Candidate, Pin};
use onnx_quant::mixed::loss::LossKind;
use onnx_quant::mixed::plan_file;
use onnx_quant::mixed::sensitivity::Sensitivity;
use onnx_quant::numerics::observer::Calibrator;
use onnx_quant::passes::settings::{QuantSettings, Selection};
use onnx_quant::passes::target::Given;
use onnx_quant::quantize::{Job, Quantized};
use onnx_quant::report;
use serde::Serialize;

use super::data_args::DataArgs;
use super::engine_args::EngineArgs;
use super::quantize::parse_share;
use super::report as report_file;
use super::size::parse_size;
use super::storage::StorageArgs;
use super::target::TargetArgs;
use super::{Global, Outcome, check_output, output};

/// How formats are measured.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Mixed precision")]
pub(crate) struct MeasureArgs {
    /// Formats to choose from, WEIGHTS or WEIGHTS/ACTIVATIONS, separated by commas [default: int8:channel; for
    /// quantize --auto with --max-size, --avg-bits or --max-bops also int4 in blocks of 32, 64 and 128]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    candidates: Vec<Candidate>,
    /// Samples on which the sensitivity of each layer is measured
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u64).range(1..))]
    analysis_samples: u64,
    /// Loss by which formats are compared: kl, mse, cosine, task (top-1 of --labels), or local (fast, and a filter only)
    /// [default: kl for classes and language models, else mse]
    #[arg(long, value_name = "NAME")]
    loss: Option<LossKind>,
    /// Run every format on every sample, also where it is hopeless or its loss too small to matter
    #[arg(long)]
    thorough: bool,
    /// Do not run a format further whose signal-to-noise ratio at the layer's own output is below this (dB): a fast
    /// filter only, blind to what the rest of the model makes of the error
    #[arg(long, value_name = "DB")]
    prefilter: Option<f64>,
}

impl MeasureArgs {
    /// How to measure, where a budget is for something smaller than 8 bits or not.
    fn measure(&self, memory: usize, small: bool) -> Measure {
        let candidates = match (self.candidates.is_empty(), small) {
            (false, _) => self.candidates.clone(),
            (true, false) => candidates::usual(),
            (true, true) => candidates::small(),
        };
        Measure {
            candidates,
            samples: usize::try_from(self.analysis_samples).unwrap_or(usize::MAX),
            memory,
            loss: self.loss,
            thorough: self.thorough,
            prefilter: self.prefilter,
            latency: false,
            output: None,
            resume: false,
        }
    }
}

/// What limits an assignment.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Mixed precision")]
pub(crate) struct BudgetArgs {
    /// The largest size of the model's file, 2MB or 900kB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "limit")]
    max_size: Option<u64>,
    /// The most bits stored for a weight, scales and zero points included
    #[arg(long, value_name = "BITS", group = "limit")]
    avg_bits: Option<f64>,
    /// The most multiplications x bits of weight x bits of activation, of one sample
    #[arg(long, value_name = "N", group = "limit")]
    max_bops: Option<f64>,
    /// The longest time of all layers for one sample, in microseconds; `analyze --latency` measures it
    #[arg(long, value_name = "MICROSECONDS", group = "limit")]
    max_latency: Option<f64>,
    /// Fix the format of layers: glob over names or operator type = format (repeatable)
    #[arg(long, value_name = "PATTERN=FORMAT")]
    pin: Vec<Pin>,
    /// The confidence with which --max-drop must hold
    #[arg(long, value_name = "SHARE", default_value = "0.95", value_parser = parse_confidence)]
    confidence: f64,
}

impl BudgetArgs {
    fn wish(&self, candidates: &[Candidate], max_drop: Option<f64>) -> Wish {
        let budget = None
            .or(self.max_size.map(Budget::Size))
            .or(self.avg_bits.map(Budget::AvgBits))
            .or(self.max_bops.map(Budget::Bops))
            .or(self.max_latency.map(Budget::Latency));
        Wish {
            candidates: candidates.to_vec(),
            pins: self.pin.clone(),
            budget,
            max_drop,
            confidence: self.confidence,
        }
    }
}

fn parse_confidence(text: &str) -> Result<f64, String> {
    match parse_share(text) {
        Ok(x) if (0.5..1.0).contains(&x) => Ok(x),
        _ => Err("give a share from 0.5 to below 1".to_owned()),
    }
}

/// The options of `quantize --auto`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Mixed precision")]
pub(crate) struct AutoArgs {
    /// Choose a format for each layer: the sensitivities are measured, and the budget is held by the complete model
    #[arg(long, conflicts_with_all = ["plan", "include", "dynamic"])]
    auto: bool,
    /// With --auto: take what `analyze` has written instead of measuring
    #[arg(long, value_name = "FILE", requires = "auto")]
    sensitivity: Option<PathBuf>,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    budget: BudgetArgs,
}

impl AutoArgs {
    /// Whether formats are chosen.
    pub(crate) fn is_on(&self) -> bool {
        self.auto
    }

    /// The file that is read.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        self.sensitivity.as_ref()
    }

    /// Chooses what is best under the budget and puts it into the job; `None` without `--auto`.
    ///
    /// # Errors
    /// What is wrong with model, data or budget.
    pub(crate) fn apply(
        &self,
        job: &mut Job,
        engine: &Arc<dyn Engine>,
        say: &mut dyn FnMut(String),
    ) -> anyhow::Result<Option<Mixed>> {
        if !self.auto {
            let b = &self.budget;
            let given = [
                ("--max-size", b.max_size.is_some()),
                ("--avg-bits", b.avg_bits.is_some()),
                ("--max-bops", b.max_bops.is_some()),
                ("--max-latency", b.max_latency.is_some()),
                ("--pin", !b.pin.is_empty()),
            ];
            if let Some((option, _)) = given.iter().find(|(_, g)| *g) {
                bail!(
                    "{option} needs --auto: the formats of the layers are then chosen by what they cost and lose"
                );
            }
            return Ok(None);
        }
        let b = &self.budget;
        let small = b.max_size.is_some() || b.avg_bits.is_some() || b.max_bops.is_some();
        let mut measure = self.measure.measure(job.optimize.memory, small);
        measure.latency = self.budget.max_latency.is_some();
        let sensitivity = match &self.sensitivity {
            Some(path) => Some(Sensitivity::read(path)?),
            None => None,
        };
        let wished = match &sensitivity {
            // What was measured is what there is to choose from.
            Some(_) => self.measure.candidates.clone(),
            None => measure.candidates.clone(),
        };
        let wish = self.budget.wish(&wished, job.max_drop);
        let mixed = auto::run(job, &measure, sensitivity, &wish, engine, say)?;
        if let Some(built) = &mixed.chosen.built {
            job.settings = built.settings.clone();
        }
        if let Some(v) = &mixed.chosen.verdict {
            say(said(v));
        }
        Ok(Some(mixed))
    }

    /// Takes in how the layers were chosen, and judges the model again where accuracy recovery has changed it.
    ///
    /// # Errors
    /// A model that cannot be run on the evaluation data.
    pub(crate) fn finish(
        &self,
        mut mixed: Mixed,
        job: &Job,
        done: &mut Quantized,
        engine: &Arc<dyn Engine>,
        say: &mut dyn FnMut(String),
    ) -> anyhow::Result<()> {
        if !job.optimize.methods.is_empty() {
            let models = (&done.float, &done.model);
            let again = auto::judge_again(job, models, self.budget.confidence, engine)?;
            if let Some(v) = again {
                say(said(&v));
                mixed.chosen.verdict = Some(v);
            }
        }
        done.chosen_by(mixed, job.max_drop);
        Ok(())
    }
}

fn said(v: &onnx_quant::mixed::judge::Verdict) -> String {
    format!(
        "judge       {} {:.4} → {:.4} on {} samples: a drop of {:.2} %, from {:.2} % to {:.2} % (each end with a confidence of {:.0} %)",
        v.metric,
        v.reference,
        v.candidate,
        v.samples,
        v.drop * 100.0,
        v.lower * 100.0,
        v.upper * 100.0,
        v.confidence * 100.0
    )
}

/// The options of `analyze`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant analyze model.onnx --calib calib.npz -o sensitivity.json
  onnx-quant analyze model.onnx --calib calib.npz --eval eval.npz --labels labels.npy -o sensitivity.json --resume")]
pub(crate) struct AnalyzeArgs {
    /// The float model
    model: PathBuf,
    /// Where the sensitivities go
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write what was found: a page for browsers (.html), text (.txt), or JSON (any other name)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Calibration data; without it only weights are looked at
    #[arg(long, value_name = "DATA")]
    calib: Option<PathBuf>,
    /// Evaluation data, on which layers are then measured
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Labels of the evaluation data (.npy)
    #[arg(long, value_name = "FILE", requires = "eval")]
    labels: Option<PathBuf>,
    /// Never quantize these nodes: glob over names, or operator type (repeatable)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// How ranges are chosen: minmax, minmax-avg, ema:0.9, percentile:99.99, kl, mse or auto
    #[arg(long, value_name = "METHOD", default_value = "mse")]
    calibrator: Calibrator,
    /// Memory for values that are kept between runs, 2GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "2GB", value_parser = parse_size)]
    memory: u64,
    /// Measure the time of each layer in each format too
    #[arg(long)]
    latency: bool,
    /// Go on from FILE.partial, where an interrupted run has left it
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    data: DataArgs,
}

impl AnalyzeArgs {
    fn job(&self, global: &Global) -> anyhow::Result<Job> {
        let mut settings = QuantSettings {
            selection: Selection {
                include: Vec::new(),
                exclude: self.exclude.clone(),
            },
            calibrator: self.calibrator,
            storage: self.storage.settings(self.data.scale_word()?),
            ..QuantSettings::default()
        };
        self.target.apply(&mut settings, Given::default())?;
        let spec = |p: &Option<PathBuf>| p.as_ref().map(|p| self.data.spec(p, global));
        Ok(Job {
            model: self.model.clone(),
            calibration: spec(&self.calib),
            evaluation: spec(&self.eval),
            labels: self.labels.clone(),
            settings,
            ..Job::default()
        })
    }
}

/// Runs `analyze`.
pub(crate) fn analyze(args: &AnalyzeArgs, global: &Global) -> anyhow::Result<Outcome> {
    let inputs = [
        Some(&args.model),
        args.calib.as_ref(),
        args.eval.as_ref(),
        args.labels.as_ref(),
    ];
    if !args.model.exists() {
        bail!("{} does not exist", args.model.display());
    }
    let inputs: Vec<&PathBuf> = inputs.into_iter().flatten().collect();
    check_output(&args.output, &inputs)?;
    report_file::check_with(args.report.as_ref(), &args.output, &inputs)?;
    let job = args.job(global)?;
    let mut say = |line: String| {
        if global.talks() {
            eprintln!("{line}");
        }
    };
    let measure = Measure {
        latency: args.latency,
        output: Some(args.output.clone()),
        resume: args.resume,
        ..args
            .measure
            .measure(usize::try_from(args.memory).unwrap_or(usize::MAX), false)
    };
    let engine = args.engine.engine()?;
    let ready = auto::ready(&job, &measure.candidates, &engine, &mut say)?;
    let found = auto::sensitivities(&job, &ready, &measure, &engine, &mut say)?;
    let text = found.to_text()?;
    save::write_atomically(&args.output, |f| f.write_all(text.as_bytes()))?;
    if let Some(path) = &args.report {
        report_file::write(path, &report::mixed::of_analysis(&found), &found)?;
    }
    if global.json {
        output::json(&found)?;
    } else {
        output::print(&table(&found))?;
    }
    Ok(Outcome::Done)
}

/// The layers that lose most.
fn table(found: &Sensitivity) -> String {
    let mut rows: Vec<(f64, String)> = Vec::new();
    for layer in &found.layers {
        for m in &layer.formats {
            let loss = m.loss.unwrap_or(f64::INFINITY);
            let text = match (&m.loss, &m.remark) {
                (Some(_), _) => format!("{loss:.3e}"),
                (None, reason) => format!("not possible: {}", reason.as_deref().unwrap_or("")),
            };
            rows.push((
                loss,
                format!("  {:<24} {text:<12} {}\n", m.name(), layer.name),
            ));
        }
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let shown = rows.len().min(20);
    let mut text = format!(
        "{}, {} samples; worst first ({shown} of {}):\n",
        found.loss.title(),
        found.samples,
        rows.len()
    );
    rows.iter().take(shown).for_each(|(_, r)| text.push_str(r));
    for (layer, reason) in found.unmeasured.iter().take(10) {
        text.push_str(&format!("  not measured: {layer}: {reason}\n"));
    }
    text
}

/// The options of `assign`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant assign --sensitivity sensitivity.json --avg-bits 8.2 -o plan.toml
  onnx-quant assign --sensitivity sensitivity.json --eval eval.npz --labels labels.npy --max-drop 1% -o plan.toml")]
pub(crate) struct AssignArgs {
    /// The float model [default: where `analyze` has read it]
    model: Option<PathBuf>,
    /// What `analyze` has written
    #[arg(long, value_name = "FILE")]
    sensitivity: PathBuf,
    /// Where the plan goes (TOML)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write what was chosen: a page for browsers (.html), text (.txt), or JSON (any other name)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Formats to choose from [default: all that were measured]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    candidates: Vec<Candidate>,
    /// The largest drop on the evaluation data, `1%` or `0.01`
    #[arg(long, value_name = "DROP", value_parser = parse_share)]
    max_drop: Option<f64>,
    /// Evaluation data [default: that of the analysis]
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Labels of the evaluation data (.npy)
    #[arg(long, value_name = "FILE", requires = "eval")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Serialize)]
struct Assigned<'a> {
    output: Option<String>,
    failure: Option<&'a String>,
    bytes: Option<u64>,
    loss: Option<f64>,
    bops: Option<u64>,
    verdict: &'a Option<onnx_quant::mixed::judge::Verdict>,
    formats: BTreeMap<&'a str, &'a str>,
    front: &'a [onnx_quant::mixed::search::Trade],
}

/// Runs `assign`.
pub(crate) fn assign(args: &AssignArgs, global: &Global) -> anyhow::Result<Outcome> {
    let found = Sensitivity::read(&args.sensitivity)?;
    let model = args.model.clone().unwrap_or_else(|| (&found.model).into());
    if !model.exists() {
        bail!(
            "{} does not exist: give the model before --sensitivity",
            model.display()
        );
    }
    let mut inputs = vec![&model, &args.sensitivity];
    inputs.extend(args.eval.iter().chain(&args.labels));
    check_output(&args.output, &inputs)?;
    report_file::check_with(args.report.as_ref(), &args.output, &inputs)?;
    let (evaluation, labels) = match &args.eval {
        Some(path) => (Some(args.data.spec(path, global)), args.labels.clone()),
        None if args.max_drop.is_some() => found.judged_on()?,
        None => (None, None),
    };
    let job = Job {
        model: model.clone(),
        evaluation,
        labels,
        settings: found.settings()?,
        ..Job::default()
    };
    let mut say = |line: String| {
        if global.talks() {
            eprintln!("{line}");
        }
    };
    let engine = args.engine.engine()?;
    let ready = auto::ready(&job, &[], &engine, &mut say)?;
    let wish = args.budget.wish(&args.candidates, args.max_drop);
    let chosen = auto::choose(&job, &ready, &found, &wish, &engine, &mut say)?;
    if let Some(built) = &chosen.built {
        let remarks = auto::remarks(&chosen, &found);
        let text = plan_file::write(
            ready.float(),
            &built.settings,
            &built.plan,
            &job.optimize,
            &remarks,
        )?;
        save::write_atomically(&args.output, |f| f.write_all(text.as_bytes()))?;
    }
    show(&chosen, &found, args, global)?;
    Ok(if chosen.failure.is_some() {
        Outcome::CheckFailed
    } else {
        Outcome::Done
    })
}

fn show(
    chosen: &Chosen,
    found: &Sensitivity,
    args: &AssignArgs,
    global: &Global,
) -> anyhow::Result<()> {
    let path = args.output.display().to_string();
    let formats = chosen.formats.iter();
    let answer = Assigned {
        output: chosen.built.as_ref().map(|_| path.clone()),
        failure: chosen.failure.as_ref(),
        bytes: chosen.built.as_ref().map(|b| b.bytes),
        loss: chosen.built.as_ref().map(|b| b.assignment.loss),
        bops: chosen.built.as_ref().map(|b| b.assignment.bops),
        verdict: &chosen.verdict,
        formats: formats.map(|(l, f)| (l.as_str(), f.as_str())).collect(),
        front: &chosen.front,
    };
    let document = report::mixed::of_assignment(found, chosen, args.max_drop);
    if let Some(file) = &args.report {
        report_file::write(file, &document, &answer)?;
    }
    if global.json {
        return output::json(&answer);
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    chosen
        .formats
        .iter()
        .for_each(|(_, f)| *counts.entry(f).or_default() += 1);
    let mut text: String = counts
        .iter()
        .map(|(f, n)| format!("  {n:>5} layers {f}\n"))
        .collect();
    if let Some(b) = &chosen.built {
        text.push_str(&format!(
            "size        {} bytes, sum of losses {:.3e}\n",
            b.bytes, b.assignment.loss
        ));
    }
    if let Some(v) = &chosen.verdict {
        text.push_str(&said(v));
        text.push('\n');
    }
    text.push_str(&report::text::figures(
        &document,
        report::text::Detail::Short,
    ));
    match &chosen.failure {
        Some(why) => text.push_str(&format!("not written: {why}\n")),
        None => text.push_str(&format!("written     {path}\n")),
    }
    output::print(&text)
}
