//! `onnx-quant diff`.

use std::path::PathBuf;

use onnx_quant::ir::diff;

use onnx_quant::ir::diff::{Change, GraphDiff};
use onnx_quant::record::{difference, record};
use serde_json::{Value, json};

use super::{Global, Outcome, output};

/// Significant digits of scales.
const DIGITS: usize = 4;

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
    let (before, after) = (super::load(&args.before)?, super::load(&args.after)?);
    let change = diff::diff(&before, &after);
    let layers = difference(&record(&before, DIGITS), &record(&after, DIGITS));
    if global.json {
        let mut value = as_json(&change);
        value["layers"] = layers.lines().collect();
        output::json(&value)?;
    } else {
        let mut text = change.to_string();
        if !layers.is_empty() {
            text.push_str(&format!("\nquantization of layers:\n{layers}"));
        }
        output::print(&text)?;
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
