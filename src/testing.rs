//! Snapshot tests of quantized models, for crates that keep a model in their repository.
//!
//! ```ignore
//! use onnx_quant::testing::{Config, assert_quantization_snapshot};
//!
//! #[test]
//! fn the_net_is_quantized_as_before() {
//!     let config = Config::default().evaluation("models/eval.npz");
//!     assert_quantization_snapshot!("models/net.onnx", "models/calib.npz", config);
//! }
//! ```
//! The snapshot holds for each layer its precision and scales, then the metric and the size. Times, versions and paths
//! are not in it. Another calibration set, another model or another version of this crate that quantizes in another way
//! shows as a diff whose lines begin with the names of layers. `cargo insta review` accepts it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_passes::settings::QuantSettings;

#[doc(hidden)]
pub use insta;

pub use crate::assert_quantization_snapshot;
use crate::data::DataSpec;
use crate::engine::TractEngine;
use crate::error::Error;
use crate::quantize::{Job, quantize};
use crate::record::record;

/// What a snapshot is made with.
#[derive(Debug, Clone)]
pub struct Config {
    settings: QuantSettings,
    evaluation: Option<DataSpec>,
    labels: Option<PathBuf>,
    digits: usize,
    tolerance: f64,
}

impl Default for Config {
    /// Default settings, no evaluation; scales to 3 significant digits, the metric in steps of 0.005.
    fn default() -> Self {
        Self {
            settings: QuantSettings::default(),
            evaluation: None,
            labels: None,
            digits: 3,
            tolerance: 0.005,
        }
    }
}

impl Config {
    /// Formats, ranges, nodes.
    pub fn settings(mut self, settings: QuantSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Data that both models are run on; the metric is in the snapshot then.
    pub fn evaluation(mut self, data: impl Into<DataSpec>) -> Self {
        self.evaluation = Some(data.into());
        self
    }

    /// Labels of that data.
    pub fn labels(mut self, file: impl Into<PathBuf>) -> Self {
        self.labels = Some(file.into());
        self
    }

    /// Significant digits of scales.
    pub fn digits(mut self, digits: usize) -> Self {
        self.digits = digits;
        self
    }

    /// The step in which the metric is written: smaller changes are no diff, but where they pass the middle of a step.
    pub fn tolerance(mut self, step: f64) -> Self {
        self.tolerance = step;
        self
    }
}

impl From<QuantSettings> for Config {
    fn from(settings: QuantSettings) -> Self {
        Self::default().settings(settings)
    }
}

/// The text of a snapshot.
///
/// # Errors
/// What [`quantize`] says.
pub fn snapshot(model: &Path, calibration: &Path, config: &Config) -> Result<String, Error> {
    let job = Job {
        model: model.to_owned(),
        calibration: Some(calibration.into()),
        evaluation: config.evaluation.clone(),
        labels: config.labels.clone(),
        settings: config.settings.clone(),
        ..Job::default()
    };
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let done = quantize(&job, &engine, &mut |_| {})?;
    let mut out = String::new();
    for line in record(&done.model, config.digits) {
        let _ = writeln!(out, "{}  {}", line.layer, line.text);
    }
    let quantized = |p: &str| p == "integer" || p == "follows" || p == "weight-only";
    for n in &done.report.nodes {
        if !quantized(n.precision) {
            let _ = writeln!(out, "{}  {}: float, {}", n.node, n.op, n.reason);
        }
    }
    if let Some(check) = &done.report.check {
        let t = &check.task;
        let _ = writeln!(
            out,
            "\n{} {} → {} (± {})",
            t.metric,
            stepped(t.reference, config.tolerance),
            stepped(t.candidate, config.tolerance),
            config.tolerance
        );
    }
    let kilobytes = done.report.size.after_bytes.div_ceil(1000);
    let _ = writeln!(out, "size {kilobytes} kB");
    Ok(out)
}

/// A number as the nearest multiple of a step, with the digits of the step.
fn stepped(x: f64, step: f64) -> String {
    if step <= 0.0 || !step.is_finite() {
        return x.to_string();
    }
    let digits = (-step.log10()).ceil().max(0.0) as usize;
    format!("{:.digits$}", (x / step).round() * step)
}

/// [`snapshot`] for the macro.
///
/// # Panics
/// Where the model cannot be quantized.
#[track_caller]
#[doc(hidden)]
pub fn snapshot_or_panic(model: &str, calibration: &str, config: impl Into<Config>) -> String {
    match snapshot(Path::new(model), Path::new(calibration), &config.into()) {
        Ok(text) => text,
        Err(e) => panic!("{e}"),
    }
}

/// Quantizes a model and compares what became of its layers with the snapshot of the test: model, calibration data, and
/// a [`Config`](crate::testing::Config) or [`QuantSettings`]. Relative paths start from the folder of the crate.
#[macro_export]
macro_rules! assert_quantization_snapshot {
    ($model:expr, $calibration:expr, $config:expr $(,)?) => {
        $crate::testing::insta::assert_snapshot!($crate::testing::snapshot_or_panic(
            $model,
            $calibration,
            $config
        ))
    };
    ($model:expr, $calibration:expr $(,)?) => {
        $crate::assert_quantization_snapshot!(
            $model,
            $calibration,
            $crate::testing::Config::default()
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_written_in_steps() {
        assert_eq!(stepped(0.98633, 0.005), "0.985");
        assert_eq!(stepped(0.98633, 0.01), "0.99");
        assert_eq!(stepped(5.04, 0.0), "5.04");
    }
}
