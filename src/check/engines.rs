//! One model on two runtimes: whether they agree on its outputs.

use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use rayon::prelude::*;
use serde::Serialize;

use super::{OutputReport, OutputSums, Rows, output_names};
use crate::calibrate::windows;
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::prepared::Prepared;
use crate::progress;

/// How far the outputs of a model on the second runtime are from those on the first.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    /// Which model.
    pub model: String,
    /// The runtime that the other is measured by.
    pub reference: &'static str,
    /// The other runtime.
    pub candidate: &'static str,
    /// Samples that were run.
    pub samples: usize,
    /// Each output.
    pub outputs: Vec<OutputReport>,
}

/// Runs a model on two runtimes over the data.
///
/// # Errors
/// Data that does not fit, or a model that one of them cannot run.
pub fn agree(
    label: &str,
    model: &Model,
    engines: [&Arc<dyn Engine>; 2],
    data: &DataSet,
) -> Result<EngineReport, Error> {
    let prepared = engines.map(|e| Prepared::new(e, model, Vec::new()));
    let names = output_names(model);
    let bar = progress::bar("engines", data.len());
    let mut total: Vec<OutputSums> = Vec::new();
    for window in windows(data, rayon::current_num_threads()) {
        let window = window?;
        let parts = window
            .par_iter()
            .map(|batch| compare(&prepared, data, batch, &names))
            .collect::<Result<Vec<_>, Error>>()?;
        for part in parts {
            if total.is_empty() {
                total = part;
            } else {
                total.iter_mut().zip(&part).for_each(|(a, b)| a.merge(b));
            }
        }
        bar.inc(window.iter().map(|b| b.samples as u64).sum());
    }
    bar.finish_and_clear();
    let reports = names.iter().zip(&total);
    Ok(EngineReport {
        model: label.to_owned(),
        reference: engines[0].name(),
        candidate: engines[1].name(),
        samples: data.len(),
        outputs: reports.map(|(name, sums)| sums.report(name)).collect(),
    })
}

fn compare(
    prepared: &[Prepared; 2],
    data: &DataSet,
    batch: &Batch,
    names: &[String],
) -> Result<Vec<OutputSums>, Error> {
    let [first, second] = prepared;
    let (first, second) = (
        first.run(data, batch, None)?,
        second.run(data, batch, None)?,
    );
    let pairs = names.iter().zip(first.iter().zip(&second));
    pairs
        .map(|(name, (a, b))| Rows::new(a, batch)?.compare(&Rows::new(b, batch)?, name))
        .collect()
}
