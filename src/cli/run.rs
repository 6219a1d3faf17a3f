//! `onnx-quant run`.

use std::path::PathBuf;

use onnx_quant::ir::save;
use onnx_quant::run::{run as run_model, write_npz};
use serde::Serialize;

use super::data_args::DataArgs;
use super::engine_args::EngineArgs;
use super::{Global, Outcome, check_output, output};

/// The options of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  onnx-quant run model.int8.onnx --data eval.npz -o outputs.npz

The file holds one array for each output of the model, samples on axis 0. Types that NumPy does not have are written
as float32.")]
pub(crate) struct Args {
    /// The model, float or quantized
    model: PathBuf,
    /// What it is fed with, in the forms that `quantize --calib` takes
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// Where the outputs go (.npz)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    feed: DataArgs,
}

#[derive(Serialize)]
struct Answer {
    output: String,
    samples: usize,
    outputs: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    check_output(&args.output, &[&args.model, &args.data])?;
    let model = super::load(&args.model)?;
    let data = args
        .feed
        .only_data()?
        .spec(&args.data, global)
        .open(&model)?;
    let outputs = run_model(&model, &args.engine.engine()?, &data)?;
    save::write_atomically(&args.output, |f| write_npz(&outputs, f))?;
    let answer = Answer {
        output: args.output.display().to_string(),
        samples: data.len(),
        outputs: outputs
            .iter()
            .map(|o| Row {
                name: o.name.clone(),
                dtype: o.descr,
                shape: o.dims.clone(),
            })
            .collect(),
        notes: data.notes(),
    };
    if global.json {
        output::json(&answer)?;
        return Ok(Outcome::Done);
    }
    let mut text = format!("{} samples\n", answer.samples);
    for row in &answer.outputs {
        text.push_str(&format!("  {} {} {:?}\n", row.name, row.dtype, row.shape));
    }
    for note in &answer.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text.push_str(&format!("written {}\n", answer.output));
    output::print(&text)?;
    Ok(Outcome::Done)
}
