//! The command `onnx-quant`: arguments, dispatch, exit codes.
//!
//! Exit codes: 0 done, 1 the check failed, 2 usage, input or I/O. Results go to standard output, progress and errors
//! to standard error.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use onnx_quant::config::merge::{self, Merged};
use onnx_quant::engine::tract::TractEngine;
use onnx_quant::ir::Model;
use onnx_quant::ir::engine::Engine;

mod calibrate;
mod check;
mod codebook;
mod compress;
mod config;
mod data_args;
mod demo;
mod diff;
mod encodings;
mod engine_args;
mod formats;
mod inspect;
#[cfg(feature = "cli")]
mod interrupt;
mod layer;
mod metric;
mod mixed;
mod optimize;
mod output;
mod passes;
mod plan;
mod quantize;
mod report;
mod rewrite;
mod run;
#[cfg(feature = "cli")]
mod shell;
mod size;
mod storage;
mod style;
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
  onnx-quant init model.onnx && onnx-quant quantize            options from a file, onnx-quant.toml

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
    /// Say nothing but results, warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: -v every pass with its time, -vv what each left alone and why
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(flatten)]
    pub config: config::ConfigArgs,
    /// The options that change the result, for the metadata of what is written.
    #[arg(skip)]
    pub line: String,
}

impl Global {
    /// Whether progress is told on standard error.
    pub(crate) fn talks(&self) -> bool {
        !self.json && !self.quiet
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole job on an embedded model and data, step by step
    Demo(demo::Args),
    /// Gather statistics of activations into a file, in shards if need be
    Calibrate(Box<calibrate::Args>),
    /// Quantize a model
    Quantize(Box<quantize::Args>),
    /// Prune, cluster and entropy-code the weights of a model
    Compress(Box<compress::CompressArgs>),
    /// Turn a compressed model back into ONNX
    Decompress(compress::DecompressArgs),
    /// Run two models side by side on evaluation data
    Check(check::Args),
    /// Run one model on data and save its outputs
    Run(run::Args),
    /// Show what a model is, and how it is quantized
    Inspect(inspect::Args),
    /// Show what changed between two models
    Diff(diff::Args),
    /// Write the scales of a quantized model as encodings that other tools read (AIMET's JSON)
    ExportEncodings(encodings::Args),
    /// Write a first configuration for a model, with comments
    Init(config::InitArgs),
    /// Print the JSON schema of configuration files
    Config(config::Args),
    /// Print a script that completes commands and options in a shell
    #[cfg(feature = "cli")]
    Completions(shell::CompletionArgs),
    /// Print the manual page, or write those of all commands
    #[cfg(feature = "cli")]
    Man(shell::ManArgs),
    /// List the passes, or explain one
    Passes(passes::Args),
    /// List the number formats, or explain one
    Formats(formats::Args),
    /// List the runtimes that models can be made for, or the rules of one
    Targets(target::Args),
    /// Measure how much each layer suffers from each format
    Analyze(Box<mixed::AnalyzeArgs>),
    /// Choose a format for each layer under a budget, and write the plan
    Assign(Box<mixed::AssignArgs>),
    /// Run chosen passes over a model and write it
    Rewrite(rewrite::Args),
}

/// The program; see the [module](self) for its exit codes.
pub fn main() -> ExitCode {
    let args = std::env::args_os().collect();
    let merged = match merge::merge(&command(), args) {
        Ok(merged) => merged,
        Err(e) => return refuse(&e.to_string()),
    };
    let matches = match command().try_get_matches_from(&merged.args) {
        Ok(matches) => matches,
        Err(e) => return usage(&e, &merged),
    };
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return usage(&e, &merged),
    };
    cli.global.line = config::line_of(&command(), &matches);
    if cli.global.config.print_config {
        return finish(print_config(&matches, &merged, cli.global.json));
    }
    log(&cli.global);
    #[cfg(feature = "cli")]
    interrupt::watch();
    if let Some(n) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(n));
        if let Err(e) = pool.build_global() {
            return refuse(&format!("cannot start {n} threads: {e}"));
        }
    }
    let result = match &cli.command {
        Command::Demo(a) => demo::run(a, &cli.global),
        Command::Calibrate(a) => calibrate::run(a, &cli.global),
        Command::Quantize(a) => quantize::run(a, &cli.global),
        Command::Compress(a) => compress::compress(a, &cli.global),
        Command::Decompress(a) => compress::run_decompress(a, &cli.global),
        Command::Check(a) => check::run(a, &cli.global),
        Command::Run(a) => run::run(a, &cli.global),
        Command::Inspect(a) => inspect::run(a, &cli.global),
        Command::Diff(a) => diff::run(a, &cli.global),
        Command::ExportEncodings(a) => encodings::run(a, &cli.global),
        Command::Init(a) => config::init(a, &cli.global),
        Command::Config(a) => config::run(a),
        #[cfg(feature = "cli")]
        Command::Completions(a) => shell::completions(a),
        #[cfg(feature = "cli")]
        Command::Man(a) => shell::man(a),
        Command::Passes(a) => passes::run(a, &cli.global),
        Command::Formats(a) => formats::run(a, &cli.global),
        Command::Targets(a) => target::run(a, &cli.global),
        Command::Analyze(a) => mixed::analyze(a, &cli.global),
        Command::Assign(a) => mixed::assign(a, &cli.global),
        Command::Rewrite(a) => rewrite::run(a, &cli.global),
    };
    finish(result)
}

/// The arguments of the program.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Standard error holds one error, and the exit code says so.
fn refuse(why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{} {why}", style::error());
    ExitCode::from(2)
}

/// A command line that clap refuses.
fn usage(error: &clap::Error, merged: &Merged) -> ExitCode {
    if let Some(text) = located(error, merged) {
        return refuse(&text);
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The error in one line with the place in a file, where the value at fault is from one.
fn located(error: &clap::Error, merged: &Merged) -> Option<String> {
    let named = match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(arg) => vec![arg.clone()],
        ContextValue::Strings(args) => args.clone(),
        _ => Vec::new(),
    };
    let (_, origin) = merged.origins.iter().find(|(id, _)| {
        let long = format!("--{}", id.replace('_', "-"));
        let same = |n: &String| n.split([' ', '=']).next() == Some(&long);
        named.iter().any(same)
    })?;
    let text = error.to_string();
    let first = text.lines().next().unwrap_or("");
    let first = first.strip_prefix("error: ").unwrap_or(first);
    Some(format!("{origin}: {first}"))
}

/// The job that `quantize` would do on a model with a configuration.
///
/// # Errors
/// What is wrong with the configuration.
pub(crate) fn job_of(
    model: &std::path::Path,
    config: &std::path::Path,
    profile: Option<&str>,
) -> Result<crate::quantize::Job, String> {
    let mut args: Vec<std::ffi::OsString> = vec!["onnx-quant".into(), "quantize".into()];
    args.push(model.into());
    for (name, value) in [
        ("--config", Some(config.as_os_str())),
        ("--profile", profile.map(std::ffi::OsStr::new)),
        ("--output", Some("in-memory.onnx".as_ref())),
    ] {
        if let Some(value) = value {
            args.extend([name.into(), value.to_owned()]);
        }
    }
    let merged = merge::merge(&command(), args).map_err(|e| e.to_string())?;
    let matches = command().try_get_matches_from(&merged.args);
    let parsed = matches.and_then(|m| Cli::from_arg_matches(&m));
    let cli = parsed.map_err(|e| located(&e, &merged).unwrap_or_else(|| e.to_string()))?;
    match &cli.command {
        Command::Quantize(a) => a.job(&cli.global).map_err(|e| sentence(&e)),
        _ => Err("the configuration is not one of `quantize`".to_owned()),
    }
}

fn print_config(
    matches: &clap::ArgMatches,
    merged: &Merged,
    json: bool,
) -> anyhow::Result<Outcome> {
    let mut program = command();
    program.build();
    if let Some((name, given)) = matches.subcommand()
        && let Some(command) = program.find_subcommand(name)
    {
        config::print(command, given, merged, json)?;
    }
    Ok(Outcome::Done)
}

/// What the library says of its work goes to standard error, as much as was asked for.
fn log(global: &Global) {
    crate::progress::set_quiet(!global.talks());
    #[cfg(feature = "cli")]
    {
        let level = match global.verbose {
            _ if global.quiet => tracing_subscriber::filter::LevelFilter::ERROR,
            0 => tracing_subscriber::filter::LevelFilter::WARN,
            1 => tracing_subscriber::filter::LevelFilter::INFO,
            _ => tracing_subscriber::filter::LevelFilter::DEBUG,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .init();
    }
}

fn finish(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => refuse(&sentence(&e)),
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
            "{} {}: field {} of {} ({} times) is not in the ONNX schema known here and would be lost",
            style::warning(),
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
