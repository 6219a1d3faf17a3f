//! `onnx-quant check`.

use std::path::PathBuf;

use anyhow::Context;
use onnx_quant::check::engines::{EngineReport, agree};
use onnx_quant::quantize::Evaluation;
use onnx_quant::stages::compare;
use serde::Serialize;

use super::data_args::DataArgs;
use super::engine_args::Engines;
use super::metric::MetricArgs;
use super::{Global, Outcome, output};

/// The options of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant check model.onnx model.int8.onnx --eval eval.npz
  onnx-quant check model.onnx model.int8.onnx --eval eval.npz --labels labels.npy --max-drop 1%
  onnx-quant check model.onnx model.int8.onnx --metric-command 'python eval.py {model}' --max-drop 0.5%")]
pub(crate) struct Args {
    /// The model that is right, usually the float model
    reference: PathBuf,
    /// The model that is judged
    candidate: PathBuf,
    /// Evaluation data
    #[arg(long, value_name = "DATA", required_unless_present = "metric_command")]
    eval: Option<PathBuf>,
    /// Labels of the evaluation data: .npy with classes [N] or target ids [N, T], or .csv of file,class for images
    #[arg(long, value_name = "FILE", requires = "eval")]
    labels: Option<PathBuf>,
    /// The runtime: tract, onnxruntime (an installed one: ORT_DYLIB_PATH, or that of a Python environment), or both, which
    /// also shows whether they agree on each model
    #[arg(
        long,
        value_name = "NAME",
        default_value = "tract",
        hide_possible_values = true
    )]
    engine: Engines,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    metric: MetricArgs,
    /// The largest drop that is allowed, `1%` or `0.01`: exit code 1 beyond
    #[arg(long, value_name = "DROP", value_parser = super::quantize::parse_share)]
    max_drop: Option<f64>,
    /// How many of the worst layers are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    layers: usize,
}

#[derive(Serialize)]
struct Answer<'a> {
    reference: String,
    candidate: String,
    #[serde(flatten)]
    check: &'a onnx_quant::check::CheckReport,
    /// Each model on both runtimes, with `--engine both`.
    engines: &'a [EngineReport],
    notes: Vec<String>,
    max_drop: Option<f64>,
    held: Option<bool>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let reference = super::load(&args.reference)?;
    let candidate = super::load(&args.candidate)?;
    let metric = args.metric.metric()?;
    let evaluation = match &args.eval {
        Some(data) => Some(Evaluation::from_spec(
            &reference,
            &args.data.only_data()?.spec(data, global),
            args.data
                .labels(args.labels.as_ref(), args.eval.as_ref())
                .as_deref(),
        )?),
        None => None,
    };
    let (engine, other) = args.engine.open()?;
    let check = compare(
        (&reference, Some(&args.reference)),
        &candidate,
        &engine,
        evaluation.as_ref(),
        metric.as_ref(),
    )?;
    let mut engines = Vec::new();
    if let Some(other) = &other {
        let data = evaluation.as_ref().map(|e| e.data().0);
        let data = data.context("--engine both needs --eval: the runtimes are compared on data")?;
        for (path, model) in [(&args.reference, &reference), (&args.candidate, &candidate)] {
            let label = path.display().to_string();
            engines.push(agree(&label, model, [&engine, other], data)?);
        }
    }
    let notes = evaluation.map_or_else(Vec::new, |e| e.notes());
    let held = args.max_drop.map(|m| check.task.drop <= m);
    if global.json {
        output::json(&Answer {
            reference: args.reference.display().to_string(),
            candidate: args.candidate.display().to_string(),
            check: &check,
            engines: &engines,
            notes,
            max_drop: args.max_drop,
            held,
        })?;
    } else {
        let mut text = output::check_text(&check, args.layers);
        text.push_str(&output::engines_text(&engines));
        for note in notes {
            text.push_str(&format!("note: {note}\n"));
        }
        if let (Some(held), Some(max)) = (held, args.max_drop) {
            let verdict = if held { "holds" } else { "EXCEEDED" };
            text.push_str(&format!(
                "budget {verdict}: a drop of {:.2} % where {:.2} % is allowed\n",
                check.task.drop * 100.0,
                max * 100.0
            ));
        }
        output::print(&text)?;
    }
    Ok(match held {
        Some(false) => Outcome::CheckFailed,
        _ => Outcome::Done,
    })
}
