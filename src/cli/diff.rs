//! `onnx-quant diff`.

use std::path::PathBuf;

use onnx_quant::ir::diff;

use onnx_quant::ir::diff::{Change, GraphDiff};
use serde_json::{Value, json};

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
    let change = diff::diff(&super::load(&args.before)?, &super::load(&args.after)?);
    if global.json {
        output::json(&as_json(&change))?;
    } else {
        output::print(&change.to_string())?;
    }
    Ok(Outcome::Done)
}

fn as_json(diff: &GraphDiff) -> Value {
    let changes = |list: &[Change]| -> Vec<Value> {
        list.iter()
            .map(|c| json!({"key": c.key, "before": c.before, "after": c.after}))
            .collect()
    };
    let rewired: Vec<Value> = diff
        .rewired
        .iter()
        .map(|r| json!({"key": r.key, "operator": r.op_type, "values": r.values}))
        .collect();
    let operators: Vec<Value> = diff
        .operators
        .iter()
        .map(|(op, before, after)| json!({"operator": op, "before": before, "after": after}))
        .collect();
    let quantized: Vec<Value> = diff
        .quantized
        .iter()
        .map(|q| json!({"key": q.key, "type": q.ty, "activation": q.activation}))
        .collect();
    json!({
        "equal": diff.is_empty(),
        "header": changes(&diff.header),
        "signature": changes(&diff.signature),
        "nodes": changes(&diff.nodes),
        "rewired": rewired,
        "initializers": changes(&diff.initializers),
        "operators": operators,
        "quantized": quantized,
        "weight_bytes": {"before": diff.weight_bytes.0, "after": diff.weight_bytes.1},
    })
}
