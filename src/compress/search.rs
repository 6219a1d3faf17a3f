//! One compression at a sparsity, and the search for the sparsity that a budget allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, Tensor};
use onnx_quant_numerics::entropy::{Coder, encode, sparse};
use rayon::prelude::*;

use crate::check::CheckReport;
use crate::error::Error;
use crate::quantize::{Evaluation, Say};

use super::cluster::{self, Coded, Search};
use super::report::{StageReport, Trial, WeightReport};
use super::statistics::Statistics;
use super::targets::Weight;
use super::{FineTune, Job, Scope, prune, put};

/// Largest sparsity that a search tries, in hundredths.
const MOST: u32 = 95;

/// What a compression works on.
pub(super) struct Work<'a, 't> {
    pub(super) job: &'a Job,
    pub(super) float: &'a Model,
    /// The normalized model.
    pub(super) model: Model,
    pub(super) weights: Vec<Weight>,
    pub(super) statistics: Option<&'a Statistics>,
    pub(super) evaluation: Option<&'a Evaluation>,
    pub(super) engine: &'a Arc<dyn Engine>,
    pub(super) tuner: Option<&'t mut dyn FineTune>,
    pub(super) trials: Vec<Trial>,
    pub(super) notes: Vec<String>,
}

/// A clustered model.
pub(super) struct Found {
    pub(super) model: Model,
    pub(super) coded: Vec<Coded>,
    pub(super) check: Option<CheckReport>,
    pub(super) tuned: bool,
}

impl Found {
    /// Share of the values that are zero.
    pub(super) fn sparsity(&self) -> f64 {
        let zeros: usize = self.coded.iter().map(zeros).sum();
        let values: usize = self.coded.iter().map(|c| c.codes.len()).sum();
        zeros as f64 / values.max(1) as f64
    }

    fn drop(&self) -> f64 {
        self.check.as_ref().map_or(0.0, |c| c.task.drop)
    }
}

fn zeros(coded: &Coded) -> usize {
    let zero = |c: &&u8| coded.codebook[usize::from(**c)] == 0.0;
    coded.codes.iter().filter(zero).count()
}

impl Work<'_, '_> {
    /// Compresses at the sparsity that was asked for, or at the largest that the budget allows.
    pub(super) fn run(&mut self, say: Say<'_>) -> Result<Found, Error> {
        match (self.job.sparsity, self.job.max_drop) {
            (None, Some(max_drop)) => self.search(max_drop, say),
            (sparsity, _) => {
                let mut last = None;
                for step in self.job.schedule.steps(sparsity.unwrap_or(0.0)) {
                    last = Some(self.attempt(step, say)?);
                }
                last.ok_or_else(|| Error::usage("--schedule has no steps"))
            }
        }
    }

    /// The largest sparsity in hundredths whose measured drop is within the budget, by bisection: the drop is taken to
    /// rise with the sparsity, and what is returned was measured. Nothing pruned where nothing holds.
    fn search(&mut self, max_drop: f64, say: Say<'_>) -> Result<Found, Error> {
        let mut best = self.attempt(0.0, say)?;
        if best.drop() > max_drop {
            self.notes.push(
                "clustering alone exceeds the budget: ask for more bits (--weights kmeans5 …) or give --calib".to_owned(),
            );
            return Ok(best);
        }
        let (mut low, mut high) = (0, MOST + 1);
        while high - low > 1 {
            // Low sparsities hold more often than not: halves are taken of what is still open.
            let middle = u32::midpoint(low, high);
            let found = self.attempt(f64::from(middle) / 100.0, say)?;
            if found.drop() <= max_drop {
                (low, best) = (middle, found);
            } else {
                high = middle;
            }
        }
        Ok(best)
    }

    fn attempt(&mut self, sparsity: f64, say: Say<'_>) -> Result<Found, Error> {
        let job = self.job;
        let scope = job.scope.unwrap_or(match self.statistics {
            Some(_) => Scope::Importance,
            None => Scope::Layer,
        });
        let masks = prune::masks(&self.weights, sparsity, scope);
        let mut tuned = false;
        if let Some(tuner) = self.tuner.as_deref_mut() {
            let zeros: BTreeMap<String, Vec<bool>> = self
                .weights
                .iter()
                .zip(&masks)
                .map(|(w, m)| (w.key.clone(), m.iter().map(|keep| !keep).collect()))
                .collect();
            for (weight, mask) in self.weights.iter().zip(&masks) {
                let pruned = weight
                    .data
                    .iter()
                    .zip(mask)
                    .map(|(&x, &k)| if k { x } else { 0.0 });
                put(
                    &mut self.model,
                    weight.value,
                    weight,
                    &pruned.collect::<Vec<_>>(),
                )?;
            }
            tuner.tune(&mut self.model, &zeros)?;
            for weight in &mut self.weights {
                let tensor = self.model.constant(weight.value);
                if let Some(data) = tensor
                    .and_then(|t| t.to_f32().ok())
                    .filter(|d| d.len() == weight.data.len())
                {
                    weight.data = data;
                }
            }
            tuned = true;
        }
        let search = Search {
            bits: job.bits,
            init: job.init,
            seed: job.seed,
            allocate: self.statistics.is_some() && !job.equal_bits,
        };
        let coded =
            cluster::all(&self.weights, &masks, search).map_err(|e| Error::usage(e.to_string()))?;
        let mut model = self.model.clone();
        for (weight, coded) in self.weights.iter().zip(&coded) {
            put(&mut model, weight.value, weight, &coded.decode())?;
        }
        self.correct_biases(&mut model, &coded)?;
        let mut found = Found {
            model,
            coded,
            check: None,
            tuned,
        };
        if let Some(evaluation) = self.evaluation {
            let check = evaluation.check(self.float, &found.model, self.engine)?;
            let task = &check.task;
            say(format!(
                "sparsity    {:.2}: {} {:.4} → {:.4}",
                found.sparsity(),
                task.metric,
                task.reference,
                task.candidate
            ));
            self.trials.push(Trial {
                sparsity: found.sparsity(),
                drop: task.drop,
            });
            found.check = Some(check);
        }
        Ok(found)
    }

    /// Adds to each bias what the layer's outputs lose in the mean, `E[(W − Ŵ)x]`.
    fn correct_biases(&mut self, model: &mut Model, coded: &[Coded]) -> Result<(), Error> {
        let Some(statistics) = self.statistics else {
            return Ok(());
        };
        for (weight, coded) in self.weights.iter().zip(coded) {
            let decoded = coded.decode();
            for reader in &weight.readers {
                let found = statistics.of(&reader.input);
                let Some(loss) = found.and_then(|m| weight.mean_loss(&decoded, reader, m)) else {
                    continue;
                };
                let bias = reader.bias.and_then(|slot| model.input(reader.node, slot));
                let Some(bias) =
                    bias.filter(|&b| model.consumers(b).len() == 1 && !model.value(b).is_output())
                else {
                    continue;
                };
                let Some(tensor) = model.constant(bias).cloned() else {
                    continue;
                };
                let beta = model.node(reader.node).attr_f("beta").unwrap_or(1.0);
                let alpha = model.node(reader.node).attr_f("alpha").unwrap_or(1.0);
                let Ok(mut values) = tensor.to_f32() else {
                    continue;
                };
                if values.len() != loss.len() || beta != 1.0 || alpha != 1.0 {
                    continue;
                }
                for (b, l) in values.iter_mut().zip(&loss) {
                    *b = cluster::stored((f64::from(*b) + l) as f32, tensor.dtype());
                }
                let corrected = Tensor::from_f32_as(tensor.dtype(), tensor.dims(), &values)
                    .map_err(|e| Error::usage(e.to_string()))?;
                model.set_initializer(bias, corrected);
            }
        }
        Ok(())
    }
}

/// What the weights take after each stage.
pub(super) fn stages(weights: &[Weight], coded: &[Coded]) -> Vec<StageReport> {
    let values: usize = weights.iter().map(|w| w.data.len()).sum();
    // Of each weight: float, pruned, clustered, Huffman, range.
    let sizes: Vec<[u64; 5]> = weights
        .par_iter()
        .zip(coded)
        .map(|(w, c)| sizes(w, c))
        .collect();
    let names = ["float", "pruned", "clustered", "huffman", "range"];
    let total = |at: usize| sizes.iter().map(|s| s[at]).sum::<u64>();
    names
        .iter()
        .enumerate()
        .map(|(at, &stage)| StageReport {
            stage,
            bits: total(at),
            bits_per_value: total(at) as f64 / values.max(1) as f64,
            saved_bits: match at {
                0 => 0,
                4 => total(2) as i64 - total(4) as i64,
                _ => total(at - 1) as i64 - total(at) as i64,
            },
        })
        .collect()
}

/// Bits of a weight: as floats; as floats of kept values with runs of 8 bits between them; as codes with the same runs
/// and the codebook; Huffman-coded; range-coded. Sparse forms are taken where they are smaller.
fn sizes(weight: &Weight, coded: &Coded) -> [u64; 5] {
    let n = coded.codes.len() as u64;
    let width = match weight.float {
        onnx_quant_ir::DataType::Float16 => 16,
        _ => 32,
    };
    let book = coded.codebook.len() as u64 * width;
    let bits = u64::from(coded.bits);
    let bytes = |data: Vec<u8>| data.len() as u64 * 8;
    let dense = bytes(encode(&coded.codes, Coder::Huffman));
    let range = bytes(encode(&coded.codes, Coder::Range));
    let Some(zero) = coded.zero else {
        return [
            n * width,
            n * width,
            n * bits + book,
            dense + book,
            range + book,
        ];
    };
    let (runs, others) = sparse::split(&coded.codes, zero);
    let positions = runs.len() as u64 * 8;
    let kept = others.len() as u64;
    let huffman = bytes(encode(&runs, Coder::Huffman)) + bytes(encode(&others, Coder::Huffman));
    [
        n * width,
        (kept * width + positions).min(n * width),
        (kept * bits + positions).min(n * bits) + book,
        huffman.min(dense) + book,
        range + book,
    ]
}

/// The weights as rows.
pub(super) fn weight_rows(weights: &[Weight], coded: &[Coded]) -> Vec<WeightReport> {
    let row = |(w, c): (&Weight, &Coded)| WeightReport {
        weight: w.key.clone(),
        values: c.codes.len() as u64,
        bits: c.bits,
        entries: c.codebook.len(),
        sparsity: zeros(c) as f64 / c.codes.len().max(1) as f64,
        sqnr_db: (c.noise > 0.0).then(|| -10.0 * c.noise.log10()),
        bits_per_value: c.size / c.codes.len().max(1) as f64,
    };
    weights.iter().zip(coded).map(row).collect()
}
