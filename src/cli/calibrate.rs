//! `onnx-quant calibrate`.

use std::path::PathBuf;

use anyhow::bail;

use onnx_quant::calibrate::file::{self, FileJob};
use onnx_quant::passes::calibration::Calibration;

use super::data_args::DataArgs;
use super::engine_args::EngineArgs;
use super::{Global, Outcome, check_output, output};

/// The options of `calibrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant calibrate model.onnx --calib calib.npz -o stats.json
  onnx-quant quantize model.onnx --stats stats.json --calibrator kl -o model.int8.onnx
  onnx-quant calibrate model.onnx --calib calib.npz --shard 1/2 -o a.json      (and 2/2 elsewhere, into b.json)
  onnx-quant calibrate --merge a.json b.json -o stats.json                     the same bytes as without shards

The statistics serve every calibrator, target and format: none of these has to be known. A run that was interrupted
leaves FILE.part, and goes on from there with --resume, with the same bytes in the end.")]
pub(crate) struct Args {
    /// The float model
    #[arg(required_unless_present = "merge")]
    model: Option<PathBuf>,
    /// Calibration data
    #[arg(long, value_name = "DATA", required_unless_present = "merge")]
    calib: Option<PathBuf>,
    /// Where the statistics go
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Run one part of the data only, counted from 1: 3/8
    #[arg(long, value_name = "K/N", value_parser = parse_shard)]
    shard: Option<(usize, usize)>,
    /// Go on from FILE.part, where an interrupted run has left it
    #[arg(long)]
    resume: bool,
    /// Observe also values that stay in float unless --include forces them; takes longer
    #[arg(long)]
    all_values: bool,
    /// Merge the statistics of shards into one file; no model is run
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["model", "calib", "shard", "resume", "all_values", "keep_input"])]
    merge: Vec<PathBuf>,
    /// Keep an input that has a default value an input (repeatable); as for `quantize`
    #[arg(long, value_name = "NAME")]
    keep_input: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Reads `3/8`.
fn parse_shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/');
    let number = |t: &str| t.trim().parse::<usize>().ok();
    match parts.and_then(|(k, n)| Some((number(k)?, number(n)?))) {
        Some((k, n)) if (1..=n).contains(&k) => Ok((k, n)),
        _ => Err(
            "a shard is K/N, counted from 1: 1/8 is the first of eight, 8/8 the last".to_owned(),
        ),
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if !args.merge.is_empty() {
        let inputs: Vec<&PathBuf> = args.merge.iter().collect();
        check_output(&args.output, &inputs)?;
        let calibration = file::merge(&args.merge)?;
        file::write(&calibration, &args.output)?;
        return show(args, global, &calibration, 0);
    }
    let (Some(model), Some(calib)) = (&args.model, &args.calib) else {
        bail!("give a model and --calib DATA, or --merge FILES");
    };
    if !model.exists() {
        bail!("{} does not exist", model.display());
    }
    check_output(&args.output, &[model, calib])?;
    let job = FileJob {
        model: model.clone(),
        data: args.data.only_data()?.spec(calib, global),
        keep_inputs: args.keep_input.clone(),
        all_values: args.all_values,
        shard: args.shard,
        resume: args.resume,
        output: args.output.clone(),
    };
    let done = file::calibrate_to_file(&job, &args.engine.engine()?)?;
    show(args, global, &done.calibration, done.resumed)
}

fn show(args: &Args, global: &Global, c: &Calibration, resumed: usize) -> anyhow::Result<Outcome> {
    let bad: Vec<String> = c
        .values
        .iter()
        .filter_map(|(key, stats)| {
            let sample = stats.first_non_finite()?;
            let h = stats.histogram();
            Some(format!(
                "`{key}` holds {} NaN and {} infinite values, first in sample {sample}: it stays in float",
                h.nan(),
                h.infinite()
            ))
        })
        .collect();
    let mut notes = c.notes.clone();
    notes.extend(bad);
    if c.samples < c.of {
        notes.push(format!(
            "{} of {} samples: merge all shards before you quantize",
            c.samples, c.of
        ));
    }
    if global.json {
        output::json(&serde_json::json!({
            "output": args.output.display().to_string(),
            "model": c.model,
            "samples": c.samples,
            "of": c.of,
            "resumed": resumed,
            "values": c.values.len(),
            "notes": notes,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut text = format!(
        "calibrated  {} values on {} samples",
        c.values.len(),
        c.samples
    );
    if resumed > 0 {
        text.push_str(&format!(", {resumed} of them from the checkpoint"));
    }
    text.push('\n');
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text.push_str(&format!("written     {}\n", args.output.display()));
    output::print(&text)?;
    Ok(Outcome::Done)
}
