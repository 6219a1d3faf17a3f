//! `onnx-quant inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use onnx_quant::inspect::{Inspection, Port, inspect};
use onnx_quant::ir::dtype::DataTypeExt;

use super::{Global, Outcome, output};

/// The options of `inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model
    model: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let model = super::load(&args.model)?;
    let bytes = std::fs::metadata(&args.model).map_or(0, |m| m.len());
    let found = inspect(&model, &args.model.display().to_string(), bytes);
    if global.json {
        output::json(&found)?;
    } else {
        output::print(&text(&found))?;
    }
    Ok(Outcome::Done)
}

fn text(i: &Inspection) -> String {
    let mut out = String::new();
    let external = match i.external_bytes {
        0 => String::new(),
        n => format!(" + {} of external data", output::bytes(n)),
    };
    let _ = writeln!(out, "{}: {}{external}", i.file, output::bytes(i.file_bytes));
    let opsets: Vec<String> = i.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
    let _ = writeln!(
        out,
        "IR version {}, opset {}",
        i.ir_version,
        opsets.join(", ")
    );
    if !i.producer.is_empty() {
        let _ = writeln!(out, "producer {}", i.producer);
    }
    if let Some(m) = &i.metadata {
        for (what, value) in [
            ("from", &m.source),
            ("plan", &m.plan),
            ("command", &m.command),
        ] {
            if !value.is_empty() {
                let _ = writeln!(out, "{what:<8} {value}");
            }
        }
    }
    for (what, ports) in [("input", &i.inputs), ("output", &i.outputs)] {
        for p in ports.iter().filter(|p| !p.has_default) {
            let _ = writeln!(out, "{what:<7} {}", port(p));
        }
        let defaults = ports.iter().filter(|p| p.has_default).count();
        if defaults > 0 {
            let _ = writeln!(
                out,
                "{what:<7} and {defaults} initializers that are listed as inputs"
            );
        }
    }
    let _ = writeln!(
        out,
        "{} nodes, {} subgraphs, {} functions",
        i.nodes, i.subgraphs, i.functions
    );
    let mut rows = vec![["operator", "nodes"].map(str::to_owned).to_vec()];
    let mut operators: Vec<_> = i.operators.iter().collect();
    operators.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
    rows.extend(
        operators
            .iter()
            .map(|(op, n)| vec![(*op).clone(), n.to_string()]),
    );
    out.push_str(&output::table(&rows));
    let _ = writeln!(out, "{} parameters", i.parameters);
    let mut rows = vec![
        ["type", "tensors", "values", "bytes"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(i.initializers.iter().map(|(t, s)| {
        vec![
            t.clone(),
            s.tensors.to_string(),
            s.values.to_string(),
            s.bytes.to_string(),
        ]
    }));
    out.push_str(&output::table(&rows));
    if let Some(q) = &i.quantization {
        out.push_str(&quantization(q));
    }
    out
}

fn port(p: &Port) -> String {
    match &p.shape {
        Some(s) => format!("{}: {}[{}]", p.name, p.dtype, s.join(", ")),
        None => format!("{}: {} of any shape", p.name, p.dtype),
    }
}

fn quantization(q: &onnx_quant::inspect::Quantization) -> String {
    let mut out = String::new();
    let mut kinds: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for w in &q.weights {
        let granularity = match (w.axis, w.indexed.as_deref()) {
            (Some(a), _) => format!("one scale for each index of axis {a}"),
            (None, None) => "one scale".to_owned(),
            (None, Some(format)) => {
                let table = match format.starts_with("kmeans") {
                    true => "codebook",
                    false => "scale",
                };
                match w.scales {
                    1 => format!("one {table}"),
                    _ => format!("a {table} for each group"),
                }
            }
        };
        let name = w.indexed.as_deref().unwrap_or(w.dtype.short_name());
        let entry = kinds
            .entry(format!("{name} with {granularity}"))
            .or_default();
        entry.0 += 1;
        entry.1 += w.values;
    }
    let _ = writeln!(
        out,
        "quantized weights{}:",
        match q.effective_bits {
            Some(b) => format!(" ({b:.2} bits each, scales and zero points counted)"),
            None => String::new(),
        }
    );
    for (kind, (tensors, values)) in kinds {
        let _ = writeln!(out, "  {tensors} tensors, {values} values: {kind}");
    }
    let _ = writeln!(out, "{} quantized activations:", q.activations.len());
    let mut rows = vec![
        ["value", "type", "scale", "zero point"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(q.activations.iter().map(|a| {
        vec![
            a.name.clone(),
            a.dtype.clone(),
            a.scale.map_or("computed".to_owned(), |s| s.to_string()),
            a.zero_point.map_or("-".to_owned(), |z| z.to_string()),
        ]
    }));
    if !q.activations.is_empty() {
        out.push_str(&output::table(&rows));
    }
    out
}
