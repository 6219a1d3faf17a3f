//! `onnx-quant quantize`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use onnx_quant::data::DataSpec;
use onnx_quant::ir::save::{self, ExternalData};
use onnx_quant::metadata::Metadata;
use onnx_quant::mixed::auto::Mixed;
use onnx_quant::numerics::format::{Format, Scheme};
use onnx_quant::numerics::observer::Calibrator;
use onnx_quant::passes::plan::PrecisionPlan;
use onnx_quant::passes::settings::{QuantSettings, Selection};
use onnx_quant::passes::target::Given;
use onnx_quant::pipeline::Watch;
use onnx_quant::quantize::{Job, Quantized, quantize};
use onnx_quant::report;

use super::codebook::CodebookArgs;
use super::data_args::DataArgs;
use super::encodings::ImportArgs;
use super::engine_args::EngineArgs;
use super::layer::LayerArgs;
use super::metric::MetricArgs;
use super::mixed::AutoArgs;
use super::plan::PlanArgs;
use super::report as report_file;
use super::storage::{ActivationFormat, FloatArgs, StorageArgs, parse_activations, parse_weights};
use super::target::TargetArgs;
use super::{Global, Outcome, check_output, optimize, output};

/// The options of `quantize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant quantize model.onnx -o model.int8.onnx                       weights only, no data needed
  onnx-quant quantize model.onnx --calib calib.npz -o model.int8.onnx     weights and activations
  onnx-quant quantize model.onnx --calib calib.npz --eval eval.npz --labels labels.npy --max-drop 1% -o model.int8.onnx
  onnx-quant quantize model.onnx --calib calib.npz --exclude 'head.*' --exclude Softmax -o model.int8.onnx

Data: .npz or .safetensors with one array for each input (samples on axis 0), .npy for a single input, a folder of
these, ONNX test_data_set_* folders, a folder of images or .wav files, a text with --tokenizer, or random:N. A budget: with labels the drop of top-1 (1% is one point) or the relative rise of perplexity;
without labels the share of samples with another class, for one output of shape [N, classes], else the cosine that the
output that differs most has lost. If it is exceeded nothing is written and the exit code is 1, unless --force.")]
pub(crate) struct Args {
    /// The float model
    model: PathBuf,
    /// Where the quantized model goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Calibration data; without it only weights are quantized
    #[arg(long, value_name = "DATA")]
    calib: Option<PathBuf>,
    /// Statistics that `calibrate` has written, instead of --calib; with --optimize beside it
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Evaluation data: both models are run on it and compared
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Labels of the evaluation data: .npy with classes [N] or target ids [N, T], or .csv of file,class for images
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The largest drop that is allowed, `1%` or `0.01`
    #[arg(long, value_name = "DROP", value_parser = parse_share)]
    max_drop: Option<f64>,
    #[command(flatten)]
    metric: MetricArgs,
    #[command(flatten)]
    optimize: optimize::OptimizeArgs,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    floats: FloatArgs,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    auto: AutoArgs,
    /// Write the model even if the budget is exceeded
    #[arg(long)]
    force: bool,
    /// Write the whole report: a page for browsers (.html), text (.txt), or JSON (any other name)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Format of the weights, BASE[:GRANULARITY]; `onnx-quant formats` lists them [default: int8:channel]
    #[arg(long, value_name = "FORMAT", value_parser = parse_weights)]
    weights: Option<Format>,
    /// Format of the activations: an integer, fixed-point or float format, fp16 or bf16, or none [default: uint8]
    #[arg(long, value_name = "FORMAT|none", value_parser = parse_activations)]
    activations: Option<ActivationFormat>,
    /// Zero points of the weights: symmetric or asymmetric [default: symmetric everywhere]
    #[arg(long, value_name = "SCHEME")]
    weight_scheme: Option<Scheme>,
    /// Zero points of the activations: symmetric or asymmetric [default: asymmetric, or what the target takes]
    #[arg(long, value_name = "SCHEME")]
    activation_scheme: Option<Scheme>,
    #[command(flatten)]
    target: TargetArgs,
    /// How ranges are chosen: minmax, minmax-avg, ema:0.9, percentile:99.99, kl, mse or auto
    #[arg(long, value_name = "METHOD", default_value = "mse")]
    calibrator: Calibrator,
    /// Least signal-to-noise ratio (dB) of a quantized activation; a layer below keeps its activation in float
    #[arg(long, value_name = "DB", default_value_t = QuantSettings::default().min_activation_sqnr)]
    min_activation_sqnr: f64,
    /// Quantize only these nodes: glob over names, or operator type (repeatable)
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Never quantize these nodes: glob over names, or operator type (repeatable)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    #[command(flatten)]
    import: ImportArgs,
    #[command(flatten)]
    layers: LayerArgs,
    /// Use 7 bits, for x86 kernels without VNNI, which saturate with 8
    #[arg(long)]
    reduce_range: bool,
    #[command(flatten)]
    codebook: CodebookArgs,
    /// Keep an input that has a default value an input (repeatable) [default: such inputs become constants]
    #[arg(long, value_name = "NAME")]
    keep_input: Vec<String>,
    /// Put weights of 1 kB and more into FILE.data beside the model
    #[arg(long)]
    external_data: bool,
    /// Print the model before this pass (repeatable)
    #[arg(long, value_name = "PASS", help_heading = "Debugging")]
    dump_before: Vec<String>,
    /// Print the model after this pass (repeatable)
    #[arg(long, value_name = "PASS", help_heading = "Debugging")]
    dump_after: Vec<String>,
    /// Print how long each pass took
    #[arg(long, help_heading = "Debugging")]
    time_passes: bool,
    /// Check the model after every pass
    #[arg(long, help_heading = "Debugging")]
    verify_each: bool,
    /// Stop after N passes of each stage
    #[arg(long, value_name = "N", help_heading = "Debugging")]
    pass_limit: Option<usize>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Use at most N samples of the evaluation data; --samples is for the calibration data
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = clap::value_parser!(u64).range(1..))]
    eval_samples: Option<u64>,
}

/// Reads `1%` or `0.01`.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    let (number, divisor) = match text.trim().strip_suffix('%') {
        Some(n) => (n.trim(), 100.0),
        None => (text.trim(), 1.0),
    };
    match number.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 && x / divisor <= 1.0 => Ok(x / divisor),
        _ => Err("give a share between 0 and 1, or between 0% and 100%".to_owned()),
    }
}

impl Args {
    fn evaluation(&self, global: &Global) -> Option<DataSpec> {
        let path = self.eval.as_ref()?;
        Some(self.data.evaluation(path, self.eval_samples, global))
    }

    pub(crate) fn job(&self, global: &Global) -> anyhow::Result<Job> {
        let defaults = QuantSettings::default();
        let mut job = Job {
            model: self.model.clone(),
            calibration: self.calib.as_ref().map(|p| self.data.spec(p, global)),
            statistics: self.stats.clone(),
            encodings: self.import.import_encodings.clone(),
            evaluation: self.evaluation(global),
            labels: self.data.labels(self.labels.as_ref(), self.eval.as_ref()),
            max_drop: self.max_drop,
            settings: QuantSettings {
                weights: self.weights.or(defaults.weights),
                activations: self
                    .activations
                    .map_or(defaults.activations, ActivationFormat::format),
                weight_scheme: self.weight_scheme.unwrap_or(defaults.weight_scheme),
                activation_scheme: self.activation_scheme.unwrap_or(defaults.activation_scheme),
                reduce_range: self.reduce_range,
                calibrator: self.calibrator,
                min_activation_sqnr: self.min_activation_sqnr,
                selection: Selection {
                    include: self.include.clone(),
                    exclude: self.exclude.clone(),
                },
                layers: self.layers.layer.clone(),
                codebook: self.codebook.settings(global.seed),
                storage: self.storage.settings(self.data.scale_word()?),
                floats: self
                    .floats
                    .settings(self.activations.and_then(ActivationFormat::float))?,
                ..defaults
            },
            watch: Watch {
                dump_before: self.dump_before.clone(),
                dump_after: self.dump_after.clone(),
                verify_each: self.verify_each,
                pass_limit: self.pass_limit,
            },
            keep_inputs: self.keep_input.clone(),
            external: if self.external_data {
                ExternalData::Above(1024)
            } else {
                ExternalData::Auto
            },
            metric: self.metric.metric()?,
            optimize: self.optimize.options(global.seed),
            ..Job::default()
        };
        let given = Given {
            activations: self.activations.is_some(),
            weights: self.weights.is_some(),
            activation_scheme: self.activation_scheme.is_some(),
            weight_scheme: self.weight_scheme.is_some(),
        };
        self.target.apply(&mut job.settings, given)?;
        Ok(job)
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let given = [
        Some(&args.model),
        args.calib.as_ref(),
        args.stats.as_ref(),
        args.eval.as_ref(),
        args.labels.as_ref(),
        args.plan.files().0,
        args.auto.file(),
    ];
    let inputs: Vec<&PathBuf> = given.into_iter().flatten().collect();
    if !args.model.exists() {
        bail!("{} does not exist", args.model.display());
    }
    check_output(&args.output, &inputs)?;
    for (option, path) in [
        ("--report", &args.report.as_ref()),
        ("--save-plan", &args.plan.files().1),
    ] {
        let Some(path) = path else { continue };
        check_output(path, &inputs)?;
        if **path == args.output {
            bail!("{option} and --output are the same file");
        }
    }
    if let Some(path) = &args.report {
        report_file::check(path)?;
    }
    let mut job = args.job(global)?;
    let plan = args.plan.open(&args.model)?;
    if let Some(plan) = &plan {
        job.settings = plan.settings()?;
        plan.check_target(&job.settings)?;
        if job.optimize.methods.is_empty() {
            job.optimize = plan.optimize(&job.optimize)?;
        }
    }
    let mut say = |line: String| {
        if global.talks() {
            eprintln!("{line}");
        }
    };
    let engine = args.engine.engine()?;
    let mixed = args.auto.apply(&mut job, &engine, &mut say)?;
    if let Some(m) = mixed.as_ref().filter(|m| m.chosen.failure.is_some()) {
        return no_plan(m, args, global, job.max_drop);
    }
    if job.settings.dynamic && job.calibration.take().is_some() {
        say("calibrate   --calib is not used: --dynamic finds ranges at run time".to_owned());
    }
    let mut done = quantize(&job, &engine, &mut say)?;
    if let Some(mixed) = mixed {
        args.auto
            .finish(mixed, &job, &mut done, &engine, &mut say)?;
    }
    if let Some(plan) = &plan {
        plan.check_done(&done.plan)?;
    }
    let holds = done.budget_holds();
    // A plan makes the same bytes, from whatever command.
    if args.plan.files() == (None, None) && !args.auto.is_on() {
        note_command(&mut done.model, global);
    }
    if holds || args.force {
        let written = save::save(&done.model, &args.output, job.external).with_context(|| {
            format!(
                "the quantized model was not written to {}",
                args.output.display()
            )
        })?;
        done.report.output = Some(args.output.display().to_string());
        done.report.size.after_bytes = written.model_bytes + written.external.map_or(0, |(_, n)| n);
    } else {
        done.report.not_written = Some(
            "the budget of --max-drop is exceeded (--force writes it all the same)".to_owned(),
        );
    }
    args.plan.save(&done, &job.optimize)?;
    if let Some(path) = &args.report {
        let document = report::summary::of_quantization(&done.report);
        report_file::write(path, &document, &done.report)?;
    }
    show(&done, args, global)?;
    Ok(if holds {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}

/// Says why no choice of formats holds the budget.
fn no_plan(
    mixed: &Mixed,
    args: &Args,
    global: &Global,
    max_drop: Option<f64>,
) -> anyhow::Result<Outcome> {
    let (found, chosen) = (&mixed.sensitivity, &mixed.chosen);
    let document = report::mixed::of_assignment(found, chosen, max_drop);
    let failure = chosen.failure.as_deref().unwrap_or_default();
    let answer = serde_json::json!({
        "not_written": failure,
        "front": document.figures.front,
        "sensitivity": document.figures.sensitivity,
    });
    if let Some(path) = &args.report {
        report_file::write(path, &document, &answer)?;
    }
    if global.json {
        output::json(&answer)?;
    } else {
        let figures = report::text::figures(&document, report::text::Detail::Short);
        output::print(&format!("{figures}not written: {failure}\n"))?;
    }
    Ok(Outcome::CheckFailed)
}

/// Writes into the model with which options it was made.
fn note_command(model: &mut onnx_quant::ir::Model, global: &Global) {
    if let Some(mut said) = Metadata::of(model) {
        said.command.clone_from(&global.line);
        said.write(model);
    }
}

fn show(done: &Quantized, args: &Args, global: &Global) -> anyhow::Result<()> {
    if args.time_passes {
        for r in &done.run.records {
            eprintln!("{:>9.1} ms  {}", r.elapsed.as_secs_f64() * 1e3, r.pass);
        }
    }
    if global.json {
        return output::json(&done.report);
    }
    let plan = done
        .run
        .cx
        .get::<PrecisionPlan>()
        .cloned()
        .unwrap_or_default();
    let mut text = output::report_text(&done.report, &report::float_reasons(&plan));
    let document = report::summary::of_quantization(&done.report);
    text.push_str(&report::text::figures(
        &document,
        report::text::Detail::Short,
    ));
    if let Some(b) = &done.report.budget {
        let verdict = if b.held { "holds" } else { "EXCEEDED" };
        text.push_str(&format!(
            "budget      {verdict}: a drop of {:.2} % where {:.2} % is allowed\n",
            b.drop * 100.0,
            b.max_drop * 100.0
        ));
    }
    match (&done.report.output, &done.report.not_written) {
        (Some(path), _) => text.push_str(&format!("written     {path}\n")),
        (None, Some(why)) => text.push_str(&format!("not written: {why}\n")),
        (None, None) => {}
    }
    output::print(&text)
}
