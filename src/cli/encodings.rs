//! `onnx-quant export-encodings`, and the option that takes encodings.

use std::path::PathBuf;

use onnx_quant::encodings;
use onnx_quant::ir::save;

use super::{Global, Outcome, check_output, output};

/// Encodings that other tools wrote.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ImportArgs {
    /// Take the ranges of activations from an encodings file (AIMET's JSON), in place of statistics where it has them
    #[arg(long, value_name = "FILE")]
    pub import_encodings: Option<PathBuf>,
}

/// The options of `export-encodings`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  onnx-quant export-encodings model.int8.onnx -o model.encodings.json")]
pub(crate) struct Args {
    /// The quantized model
    model: PathBuf,
    /// Where the encodings go [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `export-encodings`.
pub(crate) fn run(args: &Args, _global: &Global) -> anyhow::Result<Outcome> {
    let model = super::load(&args.model)?;
    let found = encodings::export(&model);
    let count = |key: &str| found[key].as_object().map_or(0, serde_json::Map::len);
    if count("activation_encodings") + count("param_encodings") == 0 {
        anyhow::bail!(
            "{} holds no quantized tensors with constant scales: there is nothing to export",
            args.model.display()
        );
    }
    match &args.output {
        None => output::json(&found)?,
        Some(path) => {
            check_output(path, &[&args.model])?;
            let text = serde_json::to_string_pretty(&found)?;
            save::write_atomically(path, |f| f.write_all(text.as_bytes()))?;
            output::print(&format!("written     {}\n", path.display()))?;
        }
    }
    Ok(Outcome::Done)
}
