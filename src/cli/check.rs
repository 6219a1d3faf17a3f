//! `onnx-quant check`.

use std::path::PathBuf;

use anyhow::Context;
use onnx_quant::check::engines::{EngineReport, agree};
use onnx_quant::quantize::Evaluation;
use onnx_quant::report::{Budget, summary};
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
    /// Write the comparison: a page for browsers (.html), text (.txt), or JSON (any other name)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How many of the worst layers are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    layers: usize,
}

#[derive(Serialize)]
struct Answer<'a> {
    reference: &'a str,
    candidate: &'a str,
    #[serde(flatten)]
    check: &'a onnx_quant::check::CheckReport,
    /// Each model on both runtimes, with `--engine both`.
    engines: &'a [EngineReport],
    notes: &'a [String],
    max_drop: Option<f64>,
    held: Option<bool>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if let Some(path) = &args.report {
        let inputs = [
            Some(&args.reference),
            Some(&args.candidate),
            args.eval.as_ref(),
        ];
        let inputs: Vec<&PathBuf> = inputs
            .into_iter()
            .chain([args.labels.as_ref()])
            .flatten()
            .collect();
        super::check_output(path, &inputs)?;
        super::report::check(path)?;
    }
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
    let [reference, candidate] =
        [&args.reference, &args.candidate].map(|p| p.display().to_string());
    let answer = Answer {
        reference: &reference,
        candidate: &candidate,
        check: &check,
        engines: &engines,
        notes: &notes,
        max_drop: args.max_drop,
        held,
    };
    if let Some(path) = &args.report {
        let budget = args.max_drop.zip(held).map(|(max_drop, held)| Budget {
            max_drop,
            drop: check.task.drop,
            held,
        });
        let models = [reference.as_str(), candidate.as_str()];
        let document = summary::of_check(models, &check, budget.as_ref(), &notes);
        super::report::write(path, &document, &answer)?;
    }
    if global.json {
        output::json(&answer)?;
    } else {
        let mut text = output::check_text(&check, args.layers);
        text.push_str(&output::engines_text(&engines));
        for note in &notes {
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
