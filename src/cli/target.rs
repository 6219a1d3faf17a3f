//! Options that say which runtime a model is made for, and the command that lists the runtimes.

use onnx_quant::passes::settings::QuantSettings;
use onnx_quant::passes::target::{Given, Isa, TARGETS, Target, TargetName, choose};
use serde::Serialize;

use super::{Global, Outcome, output};

/// The options of `quantize` that belong to the runtime.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Runtime")]
pub(crate) struct TargetArgs {
    /// The runtime that the model is made for: ort, tensorrt, openvino, tract or generic
    #[arg(long, value_name = "NAME", default_value = "ort")]
    target: TargetName,
    /// The instructions of the processor that onnxruntime runs on: avx2 (7-bit weights), vnni or arm (int8 activations)
    #[arg(long, value_name = "SET")]
    isa: Option<Isa>,
    /// How integer arithmetic is written: qdq (pairs around float operators) or qoperator (integer operators)
    #[arg(long, value_name = "FORM", default_value = "qdq")]
    format: Form,
    /// Quantize activations at run time, each by its own range; needs no calibration data
    #[arg(long)]
    dynamic: bool,
}

/// How integer arithmetic is written into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Qdq,
    Qoperator,
}

impl TargetArgs {
    /// Puts the options into the settings.
    ///
    /// # Errors
    /// What the target does not take.
    pub(crate) fn apply(&self, settings: &mut QuantSettings, given: Given) -> anyhow::Result<()> {
        settings.target = self.target;
        settings.isa = self.isa;
        settings.qoperator = self.format == Form::Qoperator;
        settings.dynamic = self.dynamic;
        choose(settings, given).map_err(anyhow::Error::msg)
    }
}

/// The options of `targets`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the rules of one runtime
    #[arg(long, value_name = "NAME")]
    explain: Option<TargetName>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    runtime: &'static str,
    integer_operators: Vec<&'static str>,
    moves: &'static [&'static str],
    rules: Vec<(&'static str, &'static str)>,
}

impl Row {
    fn of(target: &'static Target) -> Self {
        Self {
            name: target.word,
            runtime: target.title,
            integer_operators: target.quantized().collect(),
            moves: target.moves,
            rules: target.rules.iter().map(|r| (r.topic, r.says)).collect(),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let rows: Vec<Row> = TARGETS
        .into_iter()
        .filter(|t| args.explain.is_none_or(|name| t.name == name))
        .map(Row::of)
        .collect();
    if global.json {
        output::json(&rows)?;
        return Ok(Outcome::Done);
    }
    let mut text = String::new();
    if args.explain.is_some() {
        for row in &rows {
            text.push_str(&format!("{} ({})\n", row.name, row.runtime));
            for (topic, says) in &row.rules {
                text.push_str(&format!("  {topic}: {says}\n"));
            }
            text.push_str(&format!("  codes pass through: {}\n", row.moves.join(", ")));
        }
    } else {
        let mut table = vec![
            ["target", "runtime", "quantized operators"]
                .map(str::to_owned)
                .to_vec(),
        ];
        table.extend(rows.iter().map(|r| {
            let operators = r.integer_operators.join(", ");
            vec![r.name.to_owned(), r.runtime.to_owned(), operators]
        }));
        text = output::table(&table);
    }
    output::print(&text)?;
    Ok(Outcome::Done)
}
