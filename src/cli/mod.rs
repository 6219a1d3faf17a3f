//! The command `onnx-quant`: arguments, dispatch, exit codes.
//!
//! Exit codes: 0 done, 1 the check failed, 2 usage, input or I/O. Results go to standard output, progress and errors
//! to standard error.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use onnx_quant::engine::tract::TractEngine;
use onnx_quant::ir::Model;
use onnx_quant::ir::engine::Engine;

mod calibrate;
mod check;
mod data_args;
mod demo;
mod diff;
mod engine_args;
mod inspect;
mod metric;
mod optimize;
mod output;
mod passes;
mod quantize;
mod rewrite;
mod run;
mod target;

/// What a command ends with.
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// The check failed: exit code 1.
    CheckFailed,
}

/// A quantization compiler for ONNX: a trained FP32 model in, a checked INT8 model out.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-quant",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Examples:
  onnx-quant demo                                              see the whole job on an embedded model
  onnx-quant quantize model.onnx --calib calib.npz -o model.int8.onnx
  onnx-quant quantize model.onnx --calib calib.npz --eval eval.npz --labels labels.npy \\
                      --max-drop 1% -o model.int8.onnx --report report.json
  onnx-quant check model.onnx model.int8.onnx --eval eval.npz --labels labels.npy
  onnx-quant inspect model.onnx

Exit codes: 0 done, 1 the check failed (the budget of --max-drop is exceeded), 2 usage, input or I/O."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Print one JSON document instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads to use [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Seed of whatever is random; the same seed gives the same bytes
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole job on an embedded model and data, step by step
    Demo(demo::Args),
    /// Gather statistics of activations into a file, in shards if need be
    Calibrate(Box<calibrate::Args>),
    /// Quantize a model
    Quantize(Box<quantize::Args>),
    /// Run two models side by side on evaluation data
    Check(check::Args),
    /// Run one model on data and save its outputs
    Run(run::Args),
    /// Show what a model is, and how it is quantized
    Inspect(inspect::Args),
    /// Show what changed between two models
    Diff(diff::Args),
    /// List the passes, or explain one
    Passes(passes::Args),
    /// List the runtimes that models can be made for, or the rules of one
    Targets(target::Args),
    /// Run chosen passes over a model and write it
    Rewrite(rewrite::Args),
}

/// The program; see the [module](self) for its exit codes.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    if let Some(n) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(n));
        if let Err(e) = pool.build_global() {
            eprintln!("error: cannot start {n} threads: {e}");
            return ExitCode::from(2);
        }
    }
    let result = match &cli.command {
        Command::Demo(a) => demo::run(a, &cli.global),
        Command::Calibrate(a) => calibrate::run(a, &cli.global),
        Command::Quantize(a) => quantize::run(a, &cli.global),
        Command::Check(a) => check::run(a, &cli.global),
        Command::Run(a) => run::run(a, &cli.global),
        Command::Inspect(a) => inspect::run(a, &cli.global),
        Command::Diff(a) => diff::run(a, &cli.global),
        Command::Passes(a) => passes::run(a, &cli.global),
        Command::Targets(a) => target::run(a, &cli.global),
        Command::Rewrite(a) => rewrite::run(a, &cli.global),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {}", sentence(&e));
            ExitCode::from(2)
        }
    }
}

/// The error with its causes, each said once: many errors have their cause in their own sentence.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The reader of our output went away (`onnx-quant inspect … | head`): that is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Loads a model and warns of protobuf fields that the schema does not have.
pub(crate) fn load(path: &std::path::Path) -> anyhow::Result<Model> {
    let model = onnx_quant::ir::load::load(path)?;
    for f in &model.unknown_fields {
        eprintln!(
            "warning: {}: field {} of {} ({} times) is not in the ONNX schema known here and would be lost",
            path.display(),
            f.number,
            f.path,
            f.count
        );
    }
    Ok(model)
}

/// The runtime that calibrates and checks.
pub(crate) fn engine() -> Arc<dyn Engine> {
    Arc::new(TractEngine)
}

/// Refuses an output that is the input, is a folder, or whose folder does not exist, before any work is done.
pub(crate) fn check_output(output: &std::path::Path, inputs: &[&PathBuf]) -> anyhow::Result<()> {
    for input in inputs {
        let same = match (input.canonicalize(), output.canonicalize()) {
            (Ok(a), Ok(b)) => a == b,
            _ => input.as_path() == output,
        };
        if same {
            anyhow::bail!(
                "the output {} is the input: give another path, the original is never overwritten",
                output.display()
            );
        }
    }
    if output.is_dir() {
        anyhow::bail!("the output {} is a folder: give a file", output.display());
    }
    if output.file_name().is_none() {
        anyhow::bail!("the output `{}` is no file name", output.display());
    }
    let folder = match output.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => std::path::Path::new("."),
    };
    if !folder.is_dir() {
        anyhow::bail!(
            "the folder of the output {} does not exist",
            output.display()
        );
    }
    tempfile::Builder::new()
        .prefix(".onnx-quant-")
        .tempfile_in(folder)
        .map_err(|e| anyhow::anyhow!("cannot write into {}: {e}", folder.display()))?;
    Ok(())
}
