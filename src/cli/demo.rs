//! `onnx-quant demo`: the whole job on a model and data that the program carries.

use std::path::PathBuf;

use anyhow::Context;
use onnx_quant::ir::save;
use onnx_quant::passes::plan::PrecisionPlan;
use onnx_quant::quantize::{Job, quantize};
use onnx_quant::report;
use serde::Serialize;

use super::{Global, Outcome, check_output, engine, output};

/// The budget that the demo is held to.
const MAX_DROP: f64 = 0.01;

/// The options of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the files go [default: a temporary folder, which is named]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    folder: String,
    #[serde(flatten)]
    report: report::Report,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let folder = match &args.out {
        Some(f) => {
            std::fs::create_dir_all(f)
                .with_context(|| format!("cannot make the folder {}", f.display()))?;
            f.clone()
        }
        None => tempfile::Builder::new()
            .prefix("onnx-quant-demo-")
            .tempdir()
            .context("cannot make a temporary folder; give one with --out")?
            .keep(),
    };
    let at = |name: &str| folder.join(name);
    onnx_quant::demo::write(&folder)?;
    let mut say = |line: String| {
        if global.talks() {
            eprintln!("{line}");
        }
    };
    say(format!(
        "The files of this demo are in {}",
        folder.display()
    ));
    say("The model tells ten kinds of small images apart. This is what runs:".to_owned());
    let out = at("model.int8.onnx");
    let quote = |name: &str| at(name).display().to_string();
    say(format!(
        "  onnx-quant quantize {} --calib {} \\\n    --eval {} --labels {} --max-drop 1% -o {}\n",
        quote("model.onnx"),
        quote("calib.npz"),
        quote("eval.npz"),
        quote("labels.npy"),
        out.display()
    ));
    check_output(&out, &[&at("model.onnx")])?;
    let job = Job {
        model: at("model.onnx"),
        calibration: Some(at("calib.npz").into()),
        evaluation: Some(at("eval.npz").into()),
        labels: Some(at("labels.npy")),
        max_drop: Some(MAX_DROP),
        ..Job::default()
    };
    let mut done = quantize(&job, &engine(), &mut say)?;
    let written = save::save(&done.model, &out, job.external)?;
    done.report.output = Some(out.display().to_string());
    done.report.size.after_bytes = written.model_bytes;
    let document = report::summary::of_quantization(&done.report);
    let page = if cfg!(feature = "html") {
        "report.html"
    } else {
        "report.txt"
    };
    for name in ["report.json", page] {
        super::report::write(&at(name), &document, &done.report)?;
    }
    let holds = done.budget_holds();
    if global.json {
        output::json(&Answer {
            folder: folder.display().to_string(),
            report: done.report,
        })?;
    } else {
        let plan = done
            .run
            .cx
            .get::<PrecisionPlan>()
            .cloned()
            .unwrap_or_default();
        let mut text = output::report_text(&done.report, &report::float_reasons(&plan));
        text.push_str(&format!(
            "written     {}\nreport      {}\n",
            out.display(),
            at(page).display()
        ));
        text.push_str(&format!(
            "\nNext: onnx-quant inspect {}\n      onnx-quant diff {} {}\n",
            out.display(),
            quote("model.onnx"),
            out.display()
        ));
        output::print(&text)?;
    }
    Ok(if holds {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}
