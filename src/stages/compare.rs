//! Two models compared on data, by a metric of the user, or both.

use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;

use crate::check::CheckReport;
use crate::error::Error;
use crate::metric::Metric;
use crate::quantize::Evaluation;

/// What is compared.
pub(super) struct Models<'a> {
    /// The float model, and its file.
    pub(super) reference: (&'a Model, Option<&'a Path>),
    /// The float model whose layers are those of the quantized one: with channels rescaled where that was done.
    pub(super) layers: &'a Model,
    /// The quantized model.
    pub(super) candidate: &'a Model,
}

/// Compares two models on data, by a metric of the user, or both. `reference` may name its file.
///
/// # Errors
/// Neither data nor a metric that brings its own; a model that cannot be run; a metric that fails.
pub fn compare(
    reference: (&Model, Option<&Path>),
    candidate: &Model,
    engine: &Arc<dyn Engine>,
    evaluation: Option<&Evaluation>,
    metric: Option<&Metric>,
) -> Result<CheckReport, Error> {
    let models = Models {
        reference,
        layers: reference.0,
        candidate,
    };
    models.compare(engine, evaluation, metric)
}

impl Models<'_> {
    pub(super) fn compare(
        &self,
        engine: &Arc<dyn Engine>,
        evaluation: Option<&Evaluation>,
        metric: Option<&Metric>,
    ) -> Result<CheckReport, Error> {
        let task = metric
            .map(|m| {
                m.compare(
                    self.reference,
                    self.candidate,
                    engine,
                    evaluation.map(Evaluation::data),
                )
            })
            .transpose()?;
        let mut check = match (evaluation, &task) {
            (Some(e), _) => e.compare((self.reference.0, self.layers), self.candidate, engine)?,
            (None, Some(task)) => CheckReport::of_task(task.clone()),
            (None, None) => {
                return Err(Error::usage(
                    "a check needs evaluation data, or a metric that brings its own",
                ));
            }
        };
        if let Some(task) = task {
            check.task = task;
        }
        Ok(check)
    }
}
