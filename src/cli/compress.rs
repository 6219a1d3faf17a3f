//! `onnx-quant compress` and `onnx-quant decompress`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use onnx_quant::compress::{
    self, CoderChoice, CompressReport, Compressed, Job, Schedule, Scope, decompress,
};
use onnx_quant::data::DataSpec;
use onnx_quant::ir::save::{self, ExternalData};
use onnx_quant::numerics::format::{Base, Format, Granularity};
use onnx_quant::numerics::kmeans::Init;
use onnx_quant::passes::settings::Selection;
use serde::Serialize;

use super::data_args::DataArgs;
use super::quantize::parse_share;
use super::{Global, Outcome, check_output, engine, output};

/// The options of `compress`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant compress model.onnx --sparsity 0.8 --weights kmeans4 -o model.oqz
  onnx-quant compress model.onnx --calib calib.npz --eval eval.npz --labels labels.npy --max-drop 2% -o model.oqz
  onnx-quant decompress model.oqz -o model.small.onnx

Data: what `quantize` takes, with the same options.

Weights are pruned, clustered into codebooks and entropy-coded. With --calib the importance of every weight is measured:
pruning, codebooks and the bits of each layer follow it, and biases are corrected.")]
pub(crate) struct CompressArgs {
    /// The float model
    model: PathBuf,
    /// Where the compressed model goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Share of the weights that become zero [default: none, or the largest that --max-drop allows]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    sparsity: Option<f64>,
    /// Codebooks of 2^N entries, kmeans2 to kmeans8; with --calib N bits in the average
    #[arg(long, value_name = "kmeansN", default_value = "kmeans4", value_parser = parse_codebook)]
    weights: u32,
    /// What is compared in pruning: layer, global or importance [default: importance with --calib, else layer]
    #[arg(long, value_name = "SCOPE")]
    prune: Option<Scope>,
    /// How sparsity rises to --sparsity: one-shot, linear:N or cubic:N steps, each measured with --eval
    #[arg(long, value_name = "SCHEDULE", default_value = "one-shot")]
    schedule: Schedule,
    /// Every layer gets exactly N bits, with --calib too
    #[arg(long)]
    equal_bits: bool,
    /// Where codebooks start: optimal, linear, density or random
    #[arg(long, value_name = "START", default_value = "optimal")]
    kmeans_init: Init,
    /// How codes are coded: auto, huffman, range or none
    #[arg(long, value_name = "CODER", default_value = "auto")]
    coder: CoderChoice,
    /// Data to measure the importance of weights on
    #[arg(long, value_name = "DATA")]
    calib: Option<PathBuf>,
    /// Evaluation data: both models are run on it and compared
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Labels of the evaluation data (.npy): classes [N], or target ids [N, T]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The largest drop that is allowed, `2%` or `0.02`; without --sparsity it chooses the sparsity
    #[arg(long, value_name = "DROP", value_parser = parse_share)]
    max_drop: Option<f64>,
    /// Write the file even if the budget is exceeded
    #[arg(long)]
    force: bool,
    /// Write the clustered model as ONNX too: what `decompress` gives
    #[arg(long, value_name = "FILE")]
    clustered: Option<PathBuf>,
    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Compress only the weights of these nodes: glob over names, or operator type (repeatable)
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave the weights of these nodes: glob over names, or operator type (repeatable)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// Use at most N samples of the evaluation data; --samples is for the calibration data
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = clap::value_parser!(u64).range(1..))]
    eval_samples: Option<u64>,
}

fn parse_codebook(text: &str) -> Result<u32, String> {
    let format: Format = text
        .parse()
        .map_err(|e: onnx_quant::numerics::format::FormatError| e.to_string())?;
    match (format.base, format.granularity) {
        (Base::Kmeans(bits), None | Some(Granularity::Tensor)) => Ok(u32::from(bits)),
        (Base::Kmeans(_), Some(other)) => Err(format!(
            "`{text}`: compressed weights have one codebook for the tensor, not one for each {other}"
        )),
        _ => Err(format!(
            "`{text}` is no codebook format: use kmeans2 to kmeans8"
        )),
    }
}

impl CompressArgs {
    fn job(&self, global: &Global) -> anyhow::Result<Job> {
        let data = self.data.only_data()?;
        Ok(Job {
            model: self.model.clone(),
            calibration: self.calib.as_ref().map(|p| data.spec(p, global)),
            evaluation: self.eval.as_ref().map(|p| DataSpec {
                samples: self
                    .eval_samples
                    .map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
                ..data.spec(p, global)
            }),
            labels: self.labels.clone(),
            max_drop: self.max_drop,
            sparsity: self.sparsity,
            scope: self.prune,
            schedule: self.schedule,
            bits: self.weights,
            equal_bits: self.equal_bits,
            init: self.kmeans_init,
            seed: global.seed,
            coder: self.coder,
            selection: Selection {
                include: self.include.clone(),
                exclude: self.exclude.clone(),
            },
        })
    }

    fn check_paths(&self) -> anyhow::Result<()> {
        if !self.model.exists() {
            bail!("{} does not exist", self.model.display());
        }
        let given = [
            Some(&self.model),
            self.calib.as_ref(),
            self.eval.as_ref(),
            self.labels.as_ref(),
        ];
        let inputs: Vec<&PathBuf> = given.into_iter().flatten().collect();
        let outputs = [
            Some(&self.output),
            self.clustered.as_ref(),
            self.report.as_ref(),
        ];
        let outputs: Vec<&PathBuf> = outputs.into_iter().flatten().collect();
        for (i, output) in outputs.iter().enumerate() {
            check_output(output, &inputs)?;
            if outputs[..i].contains(output) {
                bail!("two outputs go to the same file {}", output.display());
            }
        }
        Ok(())
    }
}

/// Runs `compress`.
pub(crate) fn compress(args: &CompressArgs, global: &Global) -> anyhow::Result<Outcome> {
    args.check_paths()?;
    let mut say = |line: String| {
        if !global.json {
            eprintln!("{line}");
        }
    };
    let mut done = compress::compress(&args.job(global)?, &engine(), None, &mut say)?;
    let holds = done.budget_holds();
    if holds || args.force {
        write(&mut done, args)?;
    } else {
        done.report.not_written = Some(
            "the budget of --max-drop is exceeded (--force writes it all the same)".to_owned(),
        );
    }
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&done.report)?;
        save::write_atomically(path, |f| f.write_all(text.as_bytes()))?;
    }
    if global.json {
        output::json(&done.report)?;
    } else {
        output::print(&text(&done.report))?;
    }
    Ok(if holds {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}

fn write(done: &mut Compressed, args: &CompressArgs) -> anyhow::Result<()> {
    let mut parts = None;
    save::write_atomically(&args.output, |file| {
        parts = Some(done.write(file).map_err(std::io::Error::other)?);
        Ok(())
    })
    .with_context(|| {
        format!(
            "the compressed model was not written to {}",
            args.output.display()
        )
    })?;
    if let Some(parts) = parts {
        done.set_parts(parts);
    }
    done.report.output = Some(args.output.display().to_string());
    if let Some(path) = &args.clustered {
        save::save(&done.model, path, ExternalData::Auto)?;
    }
    Ok(())
}

fn text(r: &CompressReport) -> String {
    let mut text = format!(
        "size        {} → {}, {:.1} times smaller\n",
        output::bytes(r.before_bytes),
        output::bytes(r.after_bytes),
        r.ratio
    );
    text.push_str(&format!(
        "file        codes {}, codebooks {}, other tensors {}, graph {}\n",
        output::bytes(r.parts.codes),
        output::bytes(r.parts.codebooks),
        output::bytes(r.parts.tensors),
        output::bytes(r.parts.skeleton)
    ));
    text.push_str(&format!(
        "sparsity    {:.1} % of the compressed weights are zero\n",
        r.sparsity * 100.0
    ));
    text.push_str("stages of the weights (huffman and range both code what is clustered):\n");
    for s in &r.stages {
        text.push_str(&format!(
            "  {:<10} {:>12} bits {:>7.3} a value, saves {}\n",
            s.stage, s.bits, s.bits_per_value, s.saved_bits
        ));
    }
    let mut left: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for t in &r.left {
        let entry = left.entry(&t.reason).or_default();
        *entry = (entry.0 + 1, entry.1 + t.bytes);
    }
    for (reason, (tensors, bytes)) in left {
        text.push_str(&format!(
            "left        {tensors} tensors, {}: each {reason}\n",
            output::bytes(bytes)
        ));
    }
    for n in &r.notes {
        text.push_str(&format!("note: {n}\n"));
    }
    if let Some(c) = &r.check {
        text.push_str(&format!(
            "{} on {} samples: {:.4} → {:.4}\n",
            c.task.metric, c.samples, c.task.reference, c.task.candidate
        ));
    }
    if let Some(b) = &r.budget {
        let verdict = if b.held { "holds" } else { "EXCEEDED" };
        text.push_str(&format!(
            "budget      {verdict}: a drop of {:.2} % where {:.2} % is allowed\n",
            b.drop * 100.0,
            b.max_drop * 100.0
        ));
    }
    match (&r.output, &r.not_written) {
        (Some(path), _) => text.push_str(&format!("written     {path}\n")),
        (None, Some(why)) => text.push_str(&format!("not written: {why}\n")),
        (None, None) => {}
    }
    text
}

/// The options of `decompress`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  onnx-quant decompress model.oqz -o model.onnx")]
pub(crate) struct DecompressArgs {
    /// The compressed model
    file: PathBuf,
    /// Where the ONNX model goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Put weights of 1 kB and more into FILE.data beside the model
    #[arg(long)]
    external_data: bool,
}

#[derive(Serialize)]
struct Answer {
    output: String,
    bytes: u64,
    about: compress::About,
}

/// Runs `decompress`.
pub(crate) fn run_decompress(args: &DecompressArgs, global: &Global) -> anyhow::Result<Outcome> {
    check_output(&args.output, &[&args.file])?;
    let (model, about) = decompress(&args.file)?;
    let external = match args.external_data {
        true => ExternalData::Above(1024),
        false => ExternalData::Auto,
    };
    let written = save::save(&model, &args.output, external)?;
    let answer = Answer {
        output: args.output.display().to_string(),
        bytes: written.model_bytes + written.external.map_or(0, |(_, n)| n),
        about,
    };
    if global.json {
        output::json(&answer)?;
        return Ok(Outcome::Done);
    }
    output::print(&format!(
        "{}, {:.1} % zeros, by {}\nwritten {} ({})\n",
        answer.about.weights,
        answer.about.sparsity * 100.0,
        answer.about.tool,
        answer.output,
        output::bytes(answer.bytes)
    ))?;
    Ok(Outcome::Done)
}
