//! `onnx-quant passes`.

use onnx_quant::passes::registry;
use onnx_quant::pipeline::{NORMALIZE, REWRITE};
use serde::Serialize;

use super::{Global, Outcome, output};

/// The options of `passes`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print what this pass does, before and after, and when it does not fire
    #[arg(long, value_name = "NAME")]
    explain: Option<String>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    summary: &'static str,
    exact: bool,
    stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let mut rows: Vec<Row> = registry::all()
        .into_iter()
        .map(|p| p.info())
        .map(|i| Row {
            name: i.name,
            summary: i.summary,
            exact: i.exact,
            stage: stage(i.name),
            explanation: None,
        })
        .collect();
    if let Some(name) = &args.explain {
        let steps = onnx_quant::pipeline::parse(name)?;
        let known = steps.first().and_then(|s| registry::find(&s.pass));
        let info = known
            .map(|p| p.info())
            .ok_or_else(|| anyhow::anyhow!("give the name of a pass"))?;
        rows.retain(|r| r.name == info.name);
        if !global.json {
            output::print(&info.explain())?;
            return Ok(Outcome::Done);
        }
        for r in &mut rows {
            r.explanation = Some(info.explain());
        }
    }
    if global.json {
        output::json(&rows)?;
        return Ok(Outcome::Done);
    }
    let mut table = vec![
        ["pass", "stage", "exact", "what it does"]
            .map(str::to_owned)
            .to_vec(),
    ];
    table.extend(rows.iter().map(|r| {
        let exact = if r.exact { "yes" } else { "no" };
        [r.name, r.stage, exact, r.summary]
            .map(str::to_owned)
            .to_vec()
    }));
    output::print(&output::table(&table))?;
    Ok(Outcome::Done)
}

fn stage(name: &str) -> &'static str {
    if NORMALIZE.contains(&name) {
        "normalize"
    } else if REWRITE.contains(&name) {
        "quantize"
    } else {
        "execute"
    }
}
