//! Configuration: the options that all commands share, `config` and `init`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, ValueHint};
use onnx_quant::config::file::quote;
use onnx_quant::config::merge::{Merged, configurable, is_switch, key};
use onnx_quant::config::{NAME, init, schema};
use onnx_quant::ir::save;
use serde::Serialize;

use super::{Global, Outcome, check_output, output};

/// Where options come from beside the command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct ConfigArgs {
    /// Take options from this file [default: onnx-quant.toml beside the model or in the working directory]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look for no configuration file
    #[arg(long, global = true, conflicts_with = "config")]
    no_config: bool,
    /// Use the values of [profile.NAME] of the configuration
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "no_config")]
    profile: Option<String>,
    /// Print every option that is in force with where it comes from, and do nothing else
    #[arg(long, global = true)]
    pub print_config: bool,
}

/// The options of `config`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the JSON schema of onnx-quant.toml
    #[arg(long, required = true)]
    schema: bool,
}

/// Runs `config`.
pub(crate) fn run(_args: &Args) -> anyhow::Result<Outcome> {
    output::json(&schema::schema(&super::command()))?;
    Ok(Outcome::Done)
}

/// The options of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  onnx-quant init model.onnx     writes onnx-quant.toml beside the model
  onnx-quant quantize            does what it says")]
pub(crate) struct InitArgs {
    /// The float model
    model: PathBuf,
    /// Where the configuration goes [default: onnx-quant.toml beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over a configuration that is there
    #[arg(long)]
    force: bool,
}

/// Runs `init`.
pub(crate) fn init(args: &InitArgs, global: &Global) -> anyhow::Result<Outcome> {
    if !args.model.exists() {
        bail!("{} does not exist", args.model.display());
    }
    let beside = args.model.parent().unwrap_or(Path::new("")).join(NAME);
    let path = args.output.clone().unwrap_or(beside);
    check_output(&path, &[&args.model])?;
    if path.exists() && !args.force {
        bail!(
            "{} exists already: edit it, or write over it with --force",
            path.display()
        );
    }
    let text = init::propose(&args.model)?;
    save::write_atomically(&path, |f| f.write_all(text.as_bytes()))
        .context("the configuration was not written")?;
    if global.json {
        #[derive(Serialize)]
        struct Answer {
            output: String,
        }
        output::json(&Answer {
            output: path.display().to_string(),
        })?;
    } else {
        output::print(&format!(
            "written     {}\n\n{text}\nNext: onnx-quant quantize --config {}\n",
            path.display(),
            path.display()
        ))?;
    }
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Row {
    value: Vec<String>,
    from: String,
}

/// Prints what is in force for a command.
pub(crate) fn print(
    command: &Command,
    matches: &ArgMatches,
    merged: &Merged,
    json: bool,
) -> anyhow::Result<()> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for arg in configurable(command) {
        let id = arg.get_id().as_str();
        let raw = matches.try_get_raw(id).ok().flatten();
        let value: Vec<String> = raw.map_or_else(Vec::new, |v| {
            v.map(|s| s.to_string_lossy().into_owned()).collect()
        });
        let from = match (merged.origins.get(id), matches.value_source(id)) {
            (Some(origin), _) => origin.to_string(),
            (None, Some(ValueSource::CommandLine)) => "command line".to_owned(),
            (None, Some(_)) => "default".to_owned(),
            (None, None) => "not given".to_owned(),
        };
        let value = match (is_switch(arg), value.as_slice()) {
            (true, []) => vec!["false".to_owned()],
            _ => value,
        };
        rows.insert(key(arg), Row { value, from });
    }
    if json {
        return output::json(&rows);
    }
    let file = merged.file.as_ref();
    let mut text = match file {
        Some(f) => format!("# configuration: {}\n", f.display()),
        None => "# configuration: none\n".to_owned(),
    };
    let lines: Vec<(String, &str)> = rows
        .iter()
        .map(|(k, row)| (line(k, &row.value), row.from.as_str()))
        .collect();
    let width = lines.iter().map(|(l, _)| l.chars().count()).max();
    for (line, from) in &lines {
        let pad = " ".repeat(
            width
                .unwrap_or(0)
                .min(48)
                .saturating_sub(line.chars().count()),
        );
        text.push_str(&format!("{line}{pad}  # {from}\n"));
    }
    output::print(&text)
}

fn line(key: &str, value: &[String]) -> String {
    let one = |v: &String| match v.parse::<f64>() {
        _ if v == "true" || v == "false" || v.starts_with('{') => v.clone(),
        Ok(x) if x.is_finite() => v.clone(),
        _ => quote(v),
    };
    match value {
        [] => format!("# {key} ="),
        [v] => format!("{key} = {}", one(v)),
        many => {
            let list: Vec<String> = many.iter().map(one).collect();
            format!("{key} = [{}]", list.join(", "))
        }
    }
}

/// Options that do not change what is written, or whose values are paths.
const LEFT_OUT: [&str; 19] = [
    "engine",
    "memory",
    "threads",
    "quiet",
    "verbose",
    "json",
    "force",
    "report",
    "html",
    "model",
    "output",
    "calib",
    "calibration",
    "dataset",
    "eval",
    "labels",
    "max_drop",
    "metric_command",
    "metric_lower_is_better",
];

/// The command with the options that were given and change its result. Paths are left out: where files lie does not
/// change the bytes that are written.
pub(crate) fn line_of(program: &Command, matches: &ArgMatches) -> String {
    let mut program = program.clone();
    program.build();
    let Some((name, given)) = matches.subcommand() else {
        return String::new();
    };
    let Some(command) = program.find_subcommand(name) else {
        return String::new();
    };
    let mut words = vec![format!("onnx-quant {name}")];
    for arg in configurable(command) {
        let id = arg.get_id().as_str();
        let debugs = arg.get_help_heading() == Some("Debugging");
        let path = arg.get_value_hint() != ValueHint::Unknown;
        if given.value_source(id) != Some(ValueSource::CommandLine)
            || LEFT_OUT.contains(&id)
            || debugs
            || path
        {
            continue;
        }
        if is_switch(arg) {
            words.push(format!("--{}", key(arg)));
            continue;
        }
        for value in given.get_raw(id).into_iter().flatten() {
            words.push(format!("--{}={}", key(arg), value.to_string_lossy()));
        }
    }
    words.join(" ")
}
