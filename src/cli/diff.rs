//! `onnx-quant diff`.

use std::path::PathBuf;

use onnx_quant::ir::{diff, load};

use super::{Global, Outcome, output};

/// The options of `diff`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model before
    before: PathBuf,
    /// The model after
    after: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let change = diff::diff(&load::load(&args.before)?, &load::load(&args.after)?);
    if global.json {
        output::json(&change)?;
    } else {
        output::print(&change.to_string())?;
    }
    Ok(Outcome::Done)
}
