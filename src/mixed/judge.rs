//! Runs a candidate against the float model on the same samples and says what is lost, with its confidence interval.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, Tensor};
use onnx_quant_numerics::interval::{Interval, paired_mean, paired_shares};
use onnx_quant_numerics::metrics::{Compare, Perplexity, argmax};
use rayon::prelude::*;
use serde::Serialize;

use super::loss::{Loss, LossKind, values};
use crate::calibrate::windows;
use crate::data::{Batch, DataSet, Labels};
use crate::error::Error;
use crate::prepared::Prepared;

/// The loss of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The metric.
    pub metric: String,
    /// Of the float model.
    pub reference: f64,
    /// Of the candidate.
    pub candidate: f64,
    /// What is lost, as in a check.
    pub drop: f64,
    /// The drop is not less than this, with the confidence.
    pub lower: f64,
    /// The drop is not more than this, with the confidence.
    pub upper: f64,
    /// The confidence of each end.
    pub confidence: f64,
    /// Samples.
    pub samples: usize,
}

/// What one sample says of two models.
#[derive(Debug, Clone)]
pub(crate) enum Sample {
    /// Whether each is right.
    Right(bool, bool),
    /// Sums of negative log likelihoods, and targets.
    Likelihood(f64, f64, u64),
    /// How the outputs differ.
    Outputs(Vec<Compare>),
}

/// Judges candidates of one model.
pub struct Judge<'a> {
    engine: &'a Arc<dyn Engine>,
    reference: Prepared,
    data: &'a DataSet,
    sampler: Sampler<'a>,
    kept: Mutex<Kept>,
}

/// What samples say of two models, and what all of them say together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampler<'a> {
    /// Labels, where there are any.
    pub(crate) labels: Option<&'a Labels>,
    /// The confidence of each end of the interval.
    pub(crate) confidence: f64,
}

/// Outputs of the float model, by the first sample of their batch.
#[derive(Default)]
struct Kept {
    bytes: usize,
    outputs: HashMap<usize, Arc<Vec<Tensor>>>,
}

/// The most bytes of outputs that are kept.
const KEPT: usize = 256 << 20;

impl<'a> Judge<'a> {
    /// A judge with evaluation data.
    pub fn new(
        engine: &'a Arc<dyn Engine>,
        float: &Model,
        data: &'a DataSet,
        labels: Option<&'a Labels>,
        confidence: f64,
    ) -> Self {
        let reference = Prepared::new(engine, float, Vec::new());
        Self {
            engine,
            reference,
            data,
            sampler: Sampler { labels, confidence },
            kept: Mutex::default(),
        }
    }

    /// Samples to judge on.
    pub fn samples(&self) -> usize {
        self.data.len()
    }

    /// Runs the candidate.
    ///
    /// # Errors
    /// A model that cannot be run, or outputs that cannot be compared.
    pub fn judge(&self, candidate: &Model) -> Result<Verdict, Error> {
        let of = |r: &[Tensor], c: &[Tensor], b: &Batch| self.sampler.samples_of(r, c, b);
        let all: Vec<Vec<Sample>> = self.run(candidate, &of)?;
        self.sampler.verdict(&all.concat())
    }

    /// The loss of the candidate by which formats are compared.
    ///
    /// # Errors
    /// A model that cannot be run, or outputs that cannot be compared.
    pub(super) fn loss(&self, candidate: &Model, kind: LossKind) -> Result<f64, Error> {
        let of = |r: &[Tensor], c: &[Tensor], b: &Batch| {
            let mut loss = Loss::default();
            loss.add(kind, (r, c), b, self.sampler.labels)?;
            Ok(loss)
        };
        let mut sum = Loss::default();
        for part in self.run(candidate, &of)? {
            sum.merge(&part);
        }
        Ok(sum.value(kind))
    }

    /// What `of` says of the outputs of both models, batch by batch.
    fn run<T: Send>(
        &self,
        candidate: &Model,
        of: &(impl Fn(&[Tensor], &[Tensor], &Batch) -> Result<T, Error> + Sync),
    ) -> Result<Vec<T>, Error> {
        let candidate = Prepared::new(self.engine, candidate, Vec::new());
        let mut all = Vec::new();
        for window in windows(self.data, rayon::current_num_threads()) {
            let parts = window?
                .par_iter()
                .map(|b| {
                    let r = self.reference(b)?;
                    let c = candidate.run(self.data, b, None)?;
                    of(&r, &c, b)
                })
                .collect::<Result<Vec<_>, Error>>()?;
            all.extend(parts);
        }
        Ok(all)
    }

    /// The outputs of the float model, which are kept while they are few.
    fn reference(&self, batch: &Batch) -> Result<Arc<Vec<Tensor>>, Error> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().outputs.get(&batch.first_sample) {
            return Ok(Arc::clone(known));
        }
        let outputs = Arc::new(self.reference.run(self.data, batch, None)?);
        let bytes: usize = outputs.iter().filter_map(|t| t.byte_len().ok()).sum();
        let mut kept = lock();
        if kept.bytes + bytes <= KEPT {
            kept.bytes += bytes;
            kept.outputs
                .insert(batch.first_sample, Arc::clone(&outputs));
        }
        Ok(outputs)
    }
}

impl Sampler<'_> {
    /// The samples of a batch, by the outputs of both models.
    ///
    /// # Errors
    /// Outputs that cannot be compared.
    pub(crate) fn samples_of(
        &self,
        r: &[Tensor],
        c: &[Tensor],
        batch: &Batch,
    ) -> Result<Vec<Sample>, Error> {
        let [Some(first), Some(other)] = [r.first(), c.first()] else {
            return Err(Error::usage("the model has no output to judge"));
        };
        let (a, b) = (values(first, batch)?, values(other, batch)?);
        if a.len() != b.len() {
            return Err(Error::usage(
                "the outputs of the two models differ in shape",
            ));
        }
        let rows = batch.samples.max(1);
        let per = a.len() / rows;
        let width = first
            .dims()
            .last()
            .map_or(1, |&d| usize::try_from(d).unwrap_or(1))
            .max(1);
        let pairs = a.chunks(per.max(1)).zip(b.chunks(per.max(1)));
        if let Some(labels) = self.labels {
            let ids = labels.range(batch.first_sample, batch.samples);
            let each = (ids.len() / rows).max(1);
            return pairs
                .zip(ids.chunks(each))
                .map(|((x, y), ids)| match labels.positions() {
                    None => {
                        let right = |row: &[f32]| argmax(row).is_some_and(|i| i as i64 == ids[0]);
                        Ok(Sample::Right(right(x), right(y)))
                    }
                    Some(_) => likelihood(x, y, width, ids),
                })
                .collect();
        }
        if r.len() == 1 && first.dims().len() == 2 && width > 1 {
            let same = |(x, y): (&[f32], &[f32])| Sample::Right(true, argmax(x) == argmax(y));
            return Ok(pairs.map(same).collect());
        }
        let mut samples = vec![Sample::Outputs(Vec::with_capacity(r.len())); rows];
        for (x, y) in r.iter().zip(c) {
            let (x, y) = (values(x, batch)?, values(y, batch)?);
            let per = (x.len() / rows).max(1);
            for (i, s) in samples.iter_mut().enumerate() {
                let part = |v: &[f32]| v.get(i * per..(i + 1) * per).unwrap_or(&[]).to_vec();
                let mut compare = Compare::default();
                compare
                    .add(&part(&x), &part(&y))
                    .map_err(|e| Error::usage(format!("an output cannot be compared: {e}")))?;
                if let Sample::Outputs(all) = s {
                    all.push(compare);
                }
            }
        }
        Ok(samples)
    }

    /// The metric of both models, and what is lost.
    ///
    /// # Errors
    /// No samples.
    pub(crate) fn verdict(&self, all: &[Sample]) -> Result<Verdict, Error> {
        let n = all.len();
        let (metric, reference, candidate, drop, interval) = match all.first() {
            None => return Err(Error::usage("the evaluation data holds no samples")),
            Some(Sample::Right(..)) => self.shares(all),
            Some(Sample::Likelihood(..)) => self.likelihoods(all),
            Some(Sample::Outputs(_)) => self.cosines(all),
        };
        Ok(Verdict {
            metric: metric.to_owned(),
            reference,
            candidate,
            drop,
            lower: interval.lower,
            upper: interval.upper,
            confidence: self.confidence,
            samples: n,
        })
    }

    fn shares(&self, all: &[Sample]) -> (&'static str, f64, f64, f64, Interval) {
        let count = |f: &dyn Fn(bool, bool) -> bool| {
            let matching = |s: &&Sample| matches!(s, Sample::Right(r, c) if f(*r, *c));
            all.iter().filter(matching).count() as u64
        };
        let n = all.len() as u64;
        let (lost, won) = (count(&|r, c| r && !c), count(&|r, c| !r && c));
        let share = |k: u64| k as f64 / n as f64;
        let metric = if self.labels.is_some() {
            "top-1"
        } else {
            "agreement"
        };
        let (a, b) = (share(count(&|r, _| r)), share(count(&|_, c| c)));
        (
            metric,
            a,
            b,
            a - b,
            paired_shares(lost, won, n, self.confidence),
        )
    }

    fn likelihoods(&self, all: &[Sample]) -> (&'static str, f64, f64, f64, Interval) {
        let (mut a, mut b, mut targets) = (0.0, 0.0, 0u64);
        let mut differences = Vec::with_capacity(all.len());
        for s in all {
            if let Sample::Likelihood(x, y, k) = s {
                (a, b, targets) = (a + x, b + y, targets + k);
                differences.push((y - x) / (*k).max(1) as f64);
            }
        }
        let perplexity = |sum: f64| (sum / targets.max(1) as f64).exp();
        let i = paired_mean(&differences, self.confidence);
        let rise = |d: f64| d.exp_m1();
        let interval = Interval {
            lower: rise(i.lower),
            upper: rise(i.upper),
        };
        (
            "perplexity",
            perplexity(a),
            perplexity(b),
            perplexity(b) / perplexity(a) - 1.0,
            interval,
        )
    }

    /// The cosine of the output that differs most, over all samples; its spread by the jackknife.
    fn cosines(&self, all: &[Sample]) -> (&'static str, f64, f64, f64, Interval) {
        let outputs = all.iter().map(|s| match s {
            Sample::Outputs(o) => o.as_slice(),
            _ => &[],
        });
        let outputs: Vec<&[Compare]> = outputs.collect();
        let number = outputs.first().map_or(0, |o| o.len());
        let total = |output: usize| {
            let mut sum = Compare::default();
            outputs
                .iter()
                .filter_map(|o| o.get(output))
                .for_each(|c| sum.merge(c));
            sum
        };
        let sums: Vec<Compare> = (0..number).map(total).collect();
        let loss = |c: &Compare| {
            let l = 1.0 - c.cosine();
            if c.non_finite_mismatches > 0 || l.is_nan() {
                1.0
            } else {
                l
            }
        };
        let worst = (0..number).max_by(|&a, &b| loss(&sums[a]).total_cmp(&loss(&sums[b])));
        let Some(worst) = worst else {
            return (
                "cosine",
                1.0,
                1.0,
                0.0,
                Interval {
                    lower: 0.0,
                    upper: 0.0,
                },
            );
        };
        let whole = loss(&sums[worst]);
        let n = all.len() as f64;
        let without = |c: &Compare| Compare {
            sum_reference_squared: sums[worst].sum_reference_squared - c.sum_reference_squared,
            sum_candidate_squared: sums[worst].sum_candidate_squared - c.sum_candidate_squared,
            dot: sums[worst].dot - c.dot,
            ..sums[worst]
        };
        let pseudo = outputs
            .iter()
            .filter_map(|o| o.get(worst))
            .map(|c| n * whole - (n - 1.0) * loss(&without(c)));
        let interval = paired_mean(&pseudo.collect::<Vec<f64>>(), self.confidence);
        ("cosine", 1.0, 1.0 - whole, whole, interval)
    }
}

fn likelihood(x: &[f32], y: &[f32], width: usize, ids: &[i64]) -> Result<Sample, Error> {
    let sum = |logits: &[f32]| {
        let mut p = Perplexity::default();
        p.add(logits, width, ids)
            .map_err(|e| Error::usage(format!("labels: {e}")))?;
        Ok::<_, Error>((p.sum, p.targets))
    };
    let ((a, n), (b, _)) = (sum(x)?, sum(y)?);
    Ok(Sample::Likelihood(a, b, n))
}
