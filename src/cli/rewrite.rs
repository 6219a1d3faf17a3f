//! `onnx-quant rewrite`.

use std::path::PathBuf;

use onnx_quant::ir::save::{self, ExternalData};
use onnx_quant::pipeline::{self, NORMALIZE, Run, Watch};
use onnx_quant::report::{SkipReport, skip_rows};
use serde::Serialize;

use super::{Global, Outcome, check_output, output};

/// The options of `rewrite`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant rewrite model.onnx -o normal.onnx                                  all normalizing passes
  onnx-quant rewrite model.onnx --pipeline 'upgrade_opset{to=21},drop_unused' -o new.onnx
  onnx-quant rewrite model.onnx --pipeline '' -o same.onnx                      load and save, nothing else")]
pub(crate) struct Args {
    /// The model
    model: PathBuf,
    /// Where the result goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Passes with options, `a,b{opt=1}` [default: all that normalize]
    #[arg(long, value_name = "PASSES")]
    pipeline: Option<String>,
    /// Put weights of 1 kB and more into FILE.data beside the model
    #[arg(long)]
    external_data: bool,
    /// Print the model before this pass (repeatable)
    #[arg(long, value_name = "PASS")]
    dump_before: Vec<String>,
    /// Print the model after this pass (repeatable)
    #[arg(long, value_name = "PASS")]
    dump_after: Vec<String>,
    /// Print how long each pass took
    #[arg(long)]
    time_passes: bool,
    /// Check the model after every pass
    #[arg(long)]
    verify_each: bool,
    /// Stop after N passes
    #[arg(long, value_name = "N")]
    pass_limit: Option<usize>,
}

#[derive(Serialize)]
struct Answer {
    output: String,
    bytes: u64,
    passes: Vec<PassRow>,
    notes: Vec<String>,
    skips: Vec<SkipReport>,
}

#[derive(Serialize)]
struct PassRow {
    pass: &'static str,
    changed: bool,
    milliseconds: f64,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    check_output(&args.output, &[&args.model])?;
    let mut model = super::load(&args.model)?;
    let steps = match &args.pipeline {
        Some(text) => pipeline::parse(text)?,
        None => pipeline::parse(&NORMALIZE.join(","))?,
    };
    let mut run = Run::new(Watch {
        dump_before: args.dump_before.clone(),
        dump_after: args.dump_after.clone(),
        verify_each: args.verify_each,
        pass_limit: args.pass_limit,
    })?;
    run.steps(&steps, &mut model)?;
    let external = if args.external_data {
        ExternalData::Above(1024)
    } else {
        ExternalData::Auto
    };
    let written = save::save(&model, &args.output, external)?;
    let answer = Answer {
        output: args.output.display().to_string(),
        bytes: written.model_bytes,
        passes: run
            .records
            .iter()
            .map(|r| PassRow {
                pass: r.pass,
                changed: r.changed == onnx_quant::ir::pass::Changed::Yes,
                milliseconds: r.elapsed.as_secs_f64() * 1e3,
            })
            .collect(),
        notes: run
            .cx
            .notes
            .iter()
            .map(|n| format!("{}: {}", n.pass, n.message))
            .collect(),
        skips: skip_rows(&run.cx),
    };
    if global.json {
        output::json(&answer)?;
        return Ok(Outcome::Done);
    }
    let mut text = String::new();
    for p in &answer.passes {
        let changed = if p.changed { "changed" } else { "-" };
        let time = if args.time_passes {
            format!("{:>9.1} ms  ", p.milliseconds)
        } else {
            String::new()
        };
        text.push_str(&format!("{time}{:<24} {changed}\n", p.pass));
    }
    for line in SkipReport::lines(&answer.skips) {
        text.push_str(&format!("left: {line}\n"));
    }
    for n in &answer.notes {
        text.push_str(&format!("note: {n}\n"));
    }
    text.push_str(&format!(
        "written {} ({})\n",
        answer.output,
        output::bytes(answer.bytes)
    ));
    output::print(&text)?;
    Ok(Outcome::Done)
}
