//! Deep compression: prune, cluster, code; and the way back.
//!
//! The weights of linear operators, embeddings and recurrent layers are pruned to a sparsity, what is left is clustered
//! into codebooks, and the codes are entropy-coded into an `.oqz` file. [`decompress`] gives a standard ONNX file back,
//! bit for bit the clustered model.
//!
//! Training between the steps is the caller's affair: a [`FineTune`] is called after each step of the schedule.
//!
//! Source: Han, Mao and Dally, *Deep compression: compressing deep neural networks with pruning, trained quantization and
//! Huffman coding*, 2016.

pub mod block;
mod cluster;
mod codec;
pub mod container;
mod prune;
mod report;
mod search;
mod statistics;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, Tensor, ValueId, save};
use onnx_quant_numerics::kmeans::Init;
use onnx_quant_passes::codebook_weights::Importance;
use onnx_quant_passes::settings::Selection;

pub use block::BlockError;
pub use codec::CoderChoice;
pub use container::About;
pub use prune::{Schedule, Scope};
pub use report::{CompressReport, StageReport, Trial, WeightReport};
pub use targets::Left;

use crate::data::{DataSet, DataSpec};
use crate::error::Error;
use crate::quantize::{Evaluation, Say};
use crate::report::Budget;
use crate::stages::Loaded;

use cluster::Coded;
use container::{Clustered, Parts};
use statistics::Statistics;
use targets::Weight;

/// What is to be compressed, and how.
#[derive(Debug, Clone)]
pub struct Job {
    /// The float model.
    pub model: PathBuf,
    /// Data for statistics of the activations: importance of weights, bits for each weight, bias correction.
    pub calibration: Option<DataSpec>,
    /// Evaluation data.
    pub evaluation: Option<DataSpec>,
    /// Labels of the evaluation data.
    pub labels: Option<PathBuf>,
    /// The largest drop of the task's metric that is allowed.
    pub max_drop: Option<f64>,
    /// Share of the weights that become zero; `None` with a budget searches the largest that holds, else nothing is
    /// pruned.
    pub sparsity: Option<f64>,
    /// What is compared with what in pruning; `None` for importance where there are statistics, else magnitudes of each
    /// weight.
    pub scope: Option<Scope>,
    /// How sparsity rises to its target.
    pub schedule: Schedule,
    /// Bits of a code, 1 to 8; with statistics the average.
    pub bits: u32,
    /// Each weight has exactly these bits.
    pub equal_bits: bool,
    /// Where the search for codebooks starts.
    pub init: Init,
    /// Seed of the random start.
    pub seed: u64,
    /// Coders of the codes.
    pub coder: CoderChoice,
    /// Which nodes.
    pub selection: Selection,
}

/// A compressed model with its report.
pub struct Compressed {
    /// The clustered model: what [`decompress`] will give.
    pub model: Model,
    /// What was done.
    pub report: CompressReport,
    weights: Vec<Clustered>,
    about: About,
    coder: CoderChoice,
}

impl Compressed {
    /// Whether the budget holds, or none was given.
    pub fn budget_holds(&self) -> bool {
        self.report.budget.as_ref().is_none_or(|b| b.held)
    }

    /// Writes the `.oqz` file's bytes.
    ///
    /// # Errors
    /// A tensor that is not valid, and the writer's.
    pub fn write(&self, out: impl std::io::Write) -> Result<Parts, Error> {
        let proto = save::inlined(&self.model)?;
        container::write(out, proto, &self.weights, &self.about, self.coder)
            .map_err(|e| Error::usage(format!("cannot write the compressed model: {e}")))
    }
}

/// Training between the steps of a compression.
pub trait FineTune {
    /// Trains a pruned model; `zeros` holds for each pruned weight which values must stay zero.
    ///
    /// # Errors
    /// Whatever keeps it from training.
    fn tune(&mut self, model: &mut Model, zeros: &BTreeMap<String, Vec<bool>>)
    -> Result<(), Error>;
}

/// Compresses a model.
///
/// # Errors
/// What is wrong with the model, the data or the settings.
pub fn compress(
    job: &Job,
    engine: &Arc<dyn Engine>,
    tuner: Option<&mut dyn FineTune>,
    say: Say<'_>,
) -> Result<Compressed, Error> {
    check(job)?;
    let loaded = Loaded::open(&job.model)?;
    let float = loaded.model().clone();
    let evaluation = match &job.evaluation {
        Some(spec) => Some(Evaluation::from_spec(&float, spec, job.labels.as_deref())?),
        None => None,
    };
    let normalized = loaded.normalize()?;
    let model = normalized.model().clone();
    let (mut weights, left) = targets::find(&model, &job.selection)?;
    if weights.is_empty() {
        return Err(Error::usage(
            "nothing can be compressed: the model has no constant weight of 64 values or more in a linear, recurrent or \
             embedding layer that the selection leaves",
        ));
    }
    say(format!(
        "load        {}: {} weights",
        job.model.display(),
        weights.len()
    ));
    let statistics = observe(job, &model, engine, &mut weights)?;
    if let Some(s) = &statistics {
        say(format!("calibrate   {} samples", s.samples));
    }
    let mut work = search::Work {
        job,
        float: &float,
        model,
        weights,
        statistics: statistics.as_ref(),
        evaluation: evaluation.as_ref(),
        engine,
        tuner,
        trials: Vec::new(),
        notes: Vec::new(),
    };
    let found = work.run(say)?;
    let trials = std::mem::take(&mut work.trials);
    let notes = std::mem::take(&mut work.notes);
    let before_bytes = crate::quantize::file_size(&float, &job.model);
    let about = About {
        tool: concat!("onnx-quant ", env!("CARGO_PKG_VERSION")).to_owned(),
        weights: format!("kmeans{}", job.bits),
        sparsity: found.sparsity(),
        fine_tuned: found.tuned,
    };
    let weights = clustered(&found.model, &work.weights, &found.coded)?;
    let mut compressed = Compressed {
        report: CompressReport {
            tool: about.tool.clone(),
            model: job.model.display().to_string(),
            output: None,
            not_written: None,
            before_bytes,
            after_bytes: 0,
            ratio: 0.0,
            parts: Parts::default(),
            sparsity: found.sparsity(),
            stages: search::stages(&work.weights, &found.coded),
            weights: search::weight_rows(&work.weights, &found.coded),
            left,
            trials,
            calibration_samples: statistics.as_ref().map_or(0, |s| s.samples),
            notes,
            budget: job.max_drop.and_then(|max_drop| {
                let drop = found.check.as_ref()?.task.drop;
                Some(Budget {
                    max_drop,
                    drop,
                    held: drop <= max_drop,
                })
            }),
            check: found.check,
        },
        model: found.model,
        weights,
        about,
        coder: job.coder,
    };
    let parts = compressed.write(std::io::sink())?;
    compressed.set_parts(parts);
    Ok(compressed)
}

impl Compressed {
    /// Takes the sizes of the written file into the report.
    pub fn set_parts(&mut self, parts: Parts) {
        let r = &mut self.report;
        r.parts = parts;
        r.after_bytes = parts.file;
        r.ratio = r.before_bytes as f64 / parts.file.max(1) as f64;
        let values: u64 = r.weights.iter().map(|w| w.values).sum();
        let bits = (parts.codes + parts.codebooks) * 8;
        r.stages.retain(|s| s.stage != "file");
        let before = r
            .stages
            .iter()
            .find(|s| s.stage == "clustered")
            .map_or(0, |s| s.bits);
        r.stages.push(StageReport {
            stage: "file",
            bits,
            bits_per_value: bits as f64 / values.max(1) as f64,
            saved_bits: before as i64 - bits as i64,
        });
    }
}

/// Refuses what contradicts itself before any work is done.
fn check(job: &Job) -> Result<(), Error> {
    let complain = |text: &str| Err(Error::usage(text));
    if job.max_drop.is_some() && job.evaluation.is_none() {
        return complain(
            "--max-drop needs --eval: the drop is measured by running both models on evaluation data",
        );
    }
    if job.labels.is_some() && job.evaluation.is_none() {
        return complain("--labels needs --eval: labels belong to evaluation data");
    }
    if job.scope == Some(Scope::Importance) && job.calibration.is_none() {
        return complain("--prune importance needs --calib: importance is measured on data");
    }
    if job.schedule != Schedule::OneShot && job.sparsity.is_none() {
        return complain("--schedule needs --sparsity: it says how sparsity rises to its target");
    }
    if !(1..=8).contains(&job.bits) || (job.bits == 1 && job.sparsity.is_some_and(|s| s > 0.0)) {
        return complain(
            "--weights takes kmeans2 to kmeans8 where weights are pruned (one entry is zero), else kmeans1 too",
        );
    }
    Ok(())
}

/// Gathers statistics where there is data, and weighs the values by them.
fn observe(
    job: &Job,
    model: &Model,
    engine: &Arc<dyn Engine>,
    weights: &mut [Weight],
) -> Result<Option<Statistics>, Error> {
    let Some(spec) = &job.calibration else {
        return Ok(None);
    };
    let data = spec.open(model)?;
    weighed(model, engine, &data, weights).map(Some)
}

/// Runs the data through the model and weighs the values of weights by what they are multiplied with.
fn weighed(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
    weights: &mut [Weight],
) -> Result<Statistics, Error> {
    let wanted: BTreeMap<String, i64> = weights
        .iter()
        .flat_map(|w| &w.readers)
        .map(|r| (r.input.clone(), r.axis))
        .collect();
    let statistics = statistics::gather(model, engine, data, &wanted)?;
    for weight in weights {
        weight.weigh(&statistics);
    }
    Ok(statistics)
}

/// How much the error of each value of each weight counts: the mean square of what it is multiplied with.
pub(crate) fn importance(
    model: &Model,
    engine: &Arc<dyn Engine>,
    data: &DataSet,
) -> Result<Importance, Error> {
    let (mut weights, _) = targets::find(model, &Selection::default())?;
    weighed(model, engine, data, &mut weights)?;
    let known = weights
        .into_iter()
        .filter_map(|w| Some((w.key, w.importance?)));
    Ok(Importance(known.collect()))
}

/// The clustered weights by their places in the file.
fn clustered(model: &Model, weights: &[Weight], coded: &[Coded]) -> Result<Vec<Clustered>, Error> {
    let mut proto = save::inlined(model)?;
    let mut names: BTreeMap<String, Option<usize>> = BTreeMap::new();
    for (place, t) in container::initializers(&mut proto).iter().enumerate() {
        // Branches may hold initializers of one name: those are stored as tensors.
        let known = names.entry(t.name().to_owned());
        known.and_modify(|p| *p = None).or_insert(Some(place));
    }
    let mut found: Vec<Clustered> = weights
        .iter()
        .zip(coded)
        .filter_map(|(w, c)| {
            let place = (*names.get(&model.value(w.value).name)?)?;
            Some(Clustered {
                place,
                bits: c.bits,
                zero: c.zero,
                codebook: c.codebook.clone(),
                codes: c.codes.clone(),
            })
        })
        .collect();
    found.sort_by_key(|c| c.place);
    Ok(found)
}

/// Puts decoded weights into a model.
fn put(model: &mut Model, value: ValueId, weight: &Weight, data: &[f32]) -> Result<(), Error> {
    let dims: Vec<i64> = weight.dims.iter().map(|&d| d as i64).collect();
    let tensor = Tensor::from_f32_as(weight.float, &dims, data)
        .map_err(|e| Error::usage(format!("`{}`: {e}", weight.key)))?;
    model.set_initializer(value, tensor);
    Ok(())
}

/// Reads an `.oqz` file.
///
/// # Errors
/// A file of another kind or version, and any damage; the error names the file.
pub fn decompress(path: &Path) -> Result<(Model, About), Error> {
    let fail = |e: BlockError| match e {
        BlockError::Io(e) => Error::usage(format!("cannot read {}: {e}", path.display())),
        other => Error::usage(format!("{} {other}", path.display())),
    };
    let file = std::fs::File::open(path).map_err(|e| fail(e.into()))?;
    container::read(std::io::BufReader::new(file)).map_err(fail)
}
