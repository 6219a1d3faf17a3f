//! A pass, an observer and a metric of a user's own crate in the pipeline: `cargo run --example extend`.

use std::path::Path;
use std::sync::Arc;

use onnx_quant::data::{DataSet, Signature};
use onnx_quant::engine::TractEngine;
use onnx_quant::extend::{Extensions, Point, Stage};
use onnx_quant::ir::Model;
use onnx_quant::ir::engine::Engine;
use onnx_quant::ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant::metric::{Metric, Scored};
use onnx_quant::observe::RangeObserver;
use onnx_quant::passes::settings::QuantSettings;
use onnx_quant::quantize::Evaluation;
use onnx_quant::stages::Loaded;

/// A pass: the documentation of the model is taken out.
struct DropDocumentation;

static DROP_DOCUMENTATION: PassInfo = PassInfo {
    name: "drop_documentation",
    summary: "Removes the model's documentation",
    source: include_str!("extend.rs"),
    exact: true,
};

impl Pass for DropDocumentation {
    fn info(&self) -> &'static PassInfo {
        &DROP_DOCUMENTATION
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let text = model.header.doc_string.take().unwrap_or_default();
        cx.note(format!("{} bytes of documentation", text.len()));
        Ok((!text.is_empty()).into())
    }
}

/// An observer: activations get a range of six standard deviations around their mean.
struct SixSigma;

impl RangeObserver for SixSigma {
    /// Number, sum and sum of squares.
    type State = (f64, f64, f64);

    fn wants(&self, value: &str) -> bool {
        !value.contains("logits")
    }

    fn observe(&self, state: &mut Self::State, _value: &str, _dims: &[usize], data: &[f32]) {
        for x in data.iter().map(|x| f64::from(*x)) {
            *state = (state.0 + 1.0, state.1 + x, state.2 + x * x);
        }
    }

    fn merge(&self, into: &mut Self::State, other: Self::State) {
        *into = (into.0 + other.0, into.1 + other.1, into.2 + other.2);
    }

    fn range(&self, _value: &str, (n, sum, squares): &Self::State) -> Option<(f32, f32)> {
        let mean = sum / n;
        let deviation = (squares / n - mean * mean).max(0.0).sqrt();
        let (low, high) = (mean - 6.0 * deviation, mean + 6.0 * deviation);
        Some((low as f32, high as f32))
    }
}

/// A metric: the mean probability of the right class.
fn confidence(scored: &Scored<'_>) -> Result<f64, String> {
    let logits = scored.outputs[0].to_f32().map_err(|e| e.to_string())?;
    let labels = scored.labels.ok_or("there are no labels")?;
    let classes = logits.len() / scored.samples;
    let of_right = |(row, label): (&[f32], &i64)| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        f64::from(row[*label as usize]).exp() / sum
    };
    let rows = logits.chunks(classes).zip(labels);
    Ok(rows.map(of_right).sum::<f64>() / scored.samples as f64)
}

/// What the example found.
pub struct Outcome {
    /// The notes of the run.
    pub notes: Vec<String>,
    /// Scales that the observer's ranges gave, and those of the calibrator.
    pub scales: [f32; 2],
    /// The metric of both models.
    pub confidence: (f64, f64),
}

/// Quantizes the demo's model twice, with and without the extensions.
pub fn run(folder: &Path) -> Result<Outcome, Box<dyn std::error::Error>> {
    let demo = onnx_quant::demo::write(folder)?;
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let quantize = |extensions: Extensions| -> Result<_, Box<dyn std::error::Error>> {
        let normalized = Loaded::open(&demo.model)?
            .extensions(extensions)
            .normalize()?;
        let signature = Signature::of(normalized.model())?;
        let data = DataSet::open(&demo.calibration, &signature)?.limit(32);
        Ok(normalized
            .calibrate(QuantSettings::default(), &data, &engine)?
            .plan()?
            .rewrite()?)
    };
    let mut mine = Extensions::default();
    mine.pass(Point::AfterStage(Stage::Normalize), DropDocumentation)?;
    mine.observer(SixSigma);
    let rewritten = quantize(mine)?;
    let scale = |plan: onnx_quant::passes::plan::PrecisionPlan| {
        let first = plan.activations.iter().find(|(k, _)| k.contains("relu"));
        first.and_then(|(_, a)| a.params).map_or(0.0, |p| p.scale)
    };
    let scales = [
        scale(rewritten.plan()),
        scale(quantize(Extensions::default())?.plan()),
    ];
    let notes = rewritten.notes().to_vec();

    let metric = Metric::of_outputs("confidence", confidence);
    let evaluation =
        Evaluation::from_files(rewritten.float(), &demo.evaluation, Some(&demo.labels))?;
    let checked = rewritten.check(&engine, Some(&evaluation), Some(&metric))?;
    let task = &checked.check().task;
    Ok(Outcome {
        notes,
        scales,
        confidence: (task.reference, task.candidate),
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("onnx-quant-extend");
    std::fs::create_dir_all(&folder)?;
    let found = run(&folder)?;
    println!("{}", found.notes.join("\n"));
    let [mine, usual] = found.scales;
    println!("scale {mine} by six sigma, {usual} by the calibrator");
    let (float, quantized) = found.confidence;
    println!("confidence {float:.4} → {quantized:.4}");
    Ok(())
}
