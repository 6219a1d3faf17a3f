//! Two models side by side on the same data: how much the second differs from the first.

pub mod engines;

use std::collections::BTreeMap;
use std::sync::Arc;

use onnx_quant_ir::engine::{Engine, Observed};
use onnx_quant_ir::{DataType, Model, Tensor};
use onnx_quant_numerics::metrics::{Agreement, Compare, KlDivergence, Perplexity, TopK};
use onnx_quant_passes::qdq;
use rayon::prelude::*;
use serde::Serialize;

use crate::calibrate::windows;
use crate::data::{Batch, DataSet, Labels};
use crate::error::Error;
use crate::mixed::judge::{Sample, Sampler};
use crate::prepared::Prepared;
use crate::progress;

/// Samples on which layers are compared: enough for a ranking, and few enough to keep the check quick.
const LAYER_SAMPLES: usize = 64;

/// The confidence of each end of the interval.
const CONFIDENCE: f64 = 0.95;

/// The result of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// Samples that were run.
    pub samples: usize,
    /// The one number that stands for the task, for both models.
    pub task: Task,
    /// Each output of the signature.
    pub outputs: Vec<OutputReport>,
    /// Each value that both models compute and the second one quantizes, worst first.
    pub layers: Vec<LayerReport>,
    /// Samples on which the layers were compared.
    pub layer_samples: usize,
}

impl CheckReport {
    /// A comparison by a metric alone, which brought its own data.
    pub(crate) fn of_task(task: Task) -> Self {
        Self {
            samples: 0,
            task,
            outputs: Vec::new(),
            layers: Vec::new(),
            layer_samples: 0,
        }
    }
}

/// The metric by which a budget is judged.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    /// Its name.
    pub metric: String,
    /// Of the first model.
    pub reference: f64,
    /// Of the second model.
    pub candidate: f64,
    /// What is lost, positive for a loss: the difference of shares (0.01 is one point) or of cosines, or the relative
    /// rise of a perplexity.
    pub drop: f64,
    /// Top-5 accuracy of both, where there are labels and more than five classes.
    pub top5: Option<(f64, f64)>,
    /// Between what the drop lies; absent where a metric of the user does not tell samples apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

/// A confidence interval of a drop.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Interval {
    /// The drop is not less than this.
    pub lower: f64,
    /// The drop is not more than this.
    pub upper: f64,
    /// The confidence of each end.
    pub confidence: f64,
}

/// How one output differs.
#[derive(Debug, Clone, Serialize)]
pub struct OutputReport {
    /// Its name.
    pub name: String,
    /// Cosine similarity over all values.
    pub cosine: f64,
    /// Signal-to-quantization-noise ratio in dB; absent where both are equal.
    pub sqnr_db: Option<f64>,
    /// Mean KL divergence over the rows of the last axis, in nats; absent where rows hold one value.
    pub kl: Option<f64>,
    /// Share of rows whose largest value is at the same index.
    pub agreement: Option<f64>,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// Values that are finite in one model only.
    pub non_finite_mismatches: u64,
}

/// How one inner value differs.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// The value's name in the first model.
    pub value: String,
    /// SQNR in dB; absent where both are equal.
    pub sqnr_db: Option<f64>,
    /// Cosine similarity.
    pub cosine: f64,
    /// The place of the node that computes it in the first model's order, from 0.
    pub position: usize,
}

/// Accumulated over samples; merged in the order of the batches.
#[derive(Debug, Clone)]
struct Sums {
    outputs: Vec<OutputSums>,
    layers: Vec<Compare>,
    labelled: Option<[Labelled; 2]>,
}

#[derive(Debug, Clone, Default)]
struct OutputSums {
    rank: usize,
    compare: Compare,
    kl: KlDivergence,
    agreement: Agreement,
}

#[derive(Debug, Clone)]
enum Labelled {
    Classes(TopK, TopK),
    Targets(Perplexity, TopK),
}

/// A comparison that is set up: both models prepared, outputs and layers paired.
pub struct Checker<'a> {
    watched: [Prepared; 2],
    quick: [Prepared; 2],
    /// Layers are those of another float model than the outputs.
    apart: bool,
    data: &'a DataSet,
    labels: Option<&'a Labels>,
    names: Vec<String>,
    order: Vec<usize>,
    layers: Vec<String>,
    positions: Vec<usize>,
}

impl<'a> Checker<'a> {
    /// Pairs the outputs (by name, else by place) of two models, and the layers of the candidate with those of `layers`.
    ///
    /// # Errors
    /// Signatures that differ, and labels that do not match the data.
    pub fn new(
        (reference, layered): (&Model, &Model),
        candidate: &Model,
        engine: &Arc<dyn Engine>,
        data: &'a DataSet,
        labels: Option<&'a Labels>,
    ) -> Result<Self, Error> {
        if let Some(l) = labels {
            l.check(data.len())?;
        }
        let names = output_names(reference);
        let others = output_names(candidate);
        if names.len() != others.len() {
            return Err(Error::usage(format!(
                "the models have {} and {} outputs: only models with the same signature can be compared",
                names.len(),
                others.len()
            )));
        }
        let order = names
            .iter()
            .enumerate()
            .map(|(i, n)| others.iter().position(|o| o == n).unwrap_or(i))
            .collect();
        let (layers, observed): (Vec<_>, Vec<_>) =
            paired_layers(layered, candidate).into_iter().unzip();
        let positions = positions(layered, &layers);
        let prepare = |m: &Model, observe: Vec<String>| Prepared::new(engine, m, observe);
        Ok(Self {
            watched: [
                prepare(layered, layers.clone()),
                prepare(candidate, observed),
            ],
            quick: [
                prepare(reference, Vec::new()),
                prepare(candidate, Vec::new()),
            ],
            apart: !std::ptr::eq(reference, layered),
            data,
            labels,
            names,
            order,
            layers,
            positions,
        })
    }

    /// Runs both models over the data.
    ///
    /// # Errors
    /// Data that does not fit, or a model that cannot be run.
    pub fn run(&self) -> Result<CheckReport, Error> {
        let bar = progress::bar("check", self.data.len());
        let sampler = self.sampler();
        let mut said: Option<Vec<Sample>> = Some(Vec::new());
        let mut total: Option<Sums> = None;
        let mut samples = 0;
        for window in windows(self.data, rayon::current_num_threads()) {
            let window = window?;
            let parts = window
                .par_iter()
                .map(|b| self.batch(b))
                .collect::<Result<Vec<_>, Error>>()?;
            for (part, own) in parts {
                // Outputs that no sample can be judged by have no interval.
                said = said.zip(own).map(|(mut all, own)| {
                    all.extend(own);
                    all
                });
                match &mut total {
                    Some(t) => t.merge(&part),
                    None => total = Some(part),
                }
            }
            samples += window.iter().map(|b| b.samples).sum::<usize>();
            bar.inc(window.iter().map(|b| b.samples as u64).sum());
        }
        bar.finish_and_clear();
        let total = total.ok_or_else(|| Error::usage("the evaluation data holds no samples"))?;
        let mut report = self.report(samples, &total);
        let verdict = said.and_then(|all| sampler.verdict(&all).ok());
        report.task.interval = verdict.map(|v| Interval {
            lower: v.lower,
            upper: v.upper,
            confidence: v.confidence,
        });
        Ok(report)
    }

    fn sampler(&self) -> Sampler<'_> {
        Sampler {
            labels: self.labels,
            confidence: CONFIDENCE,
        }
    }

    fn batch(&self, batch: &Batch) -> Result<(Sums, Option<Vec<Sample>>), Error> {
        let watch = batch.first_sample < LAYER_SAMPLES && !self.layers.is_empty();
        let [watched, candidate] = if watch { &self.watched } else { &self.quick };
        let mut layers = vec![Compare::default(); self.layers.len()];
        let mut kept: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut keep = |seen: Observed<'_>| {
            kept.insert(seen.index, seen.data.to_vec());
        };
        let mut reference = watched.run(self.data, batch, watch.then_some(&mut keep))?;
        if watch && self.apart {
            reference = self.quick[0].run(self.data, batch, None)?;
        }
        let mut compare = |seen: Observed<'_>| {
            if let Some(r) = kept.remove(&seen.index) {
                // Values of different size are different values under one name: they are not compared.
                let _ = layers[seen.index].add(&r, seen.data);
            }
        };
        let candidate = candidate.run(self.data, batch, watch.then_some(&mut compare))?;
        let labels = self
            .labels
            .map(|l| l.range(batch.first_sample, batch.samples));
        let mut sums = Sums {
            outputs: Vec::new(),
            layers,
            labelled: None,
        };
        for (i, (name, r)) in self.names.iter().zip(&reference).enumerate() {
            let r = Rows::new(r, batch)?;
            let c = Rows::new(&candidate[self.order[i]], batch)?;
            sums.outputs.push(r.compare(&c, name)?);
            if let (0, Some(ids)) = (i, labels) {
                let per_position = self.labels.is_some_and(|l| l.positions().is_some());
                sums.labelled = Some([r.score(ids, per_position)?, c.score(ids, per_position)?]);
            }
        }
        let paired: Vec<Tensor> = self.order.iter().map(|&i| candidate[i].clone()).collect();
        let samples = self.sampler().samples_of(&reference, &paired, batch).ok();
        Ok((sums, samples))
    }

    fn report(&self, samples: usize, total: &Sums) -> CheckReport {
        let outputs: Vec<OutputReport> = self
            .names
            .iter()
            .zip(&total.outputs)
            .map(|(name, s)| s.report(name))
            .collect();
        let mut layers: Vec<LayerReport> = self
            .layers
            .iter()
            .zip(&total.layers)
            .zip(&self.positions)
            .filter(|((_, c), _)| c.count > 0)
            .map(|((value, c), &position)| LayerReport {
                value: value.clone(),
                sqnr_db: finite(c.sqnr_db()),
                cosine: c.cosine(),
                position,
            })
            .collect();
        let rank = |l: &LayerReport| l.sqnr_db.unwrap_or(f64::INFINITY);
        layers.sort_by(|a, b| {
            rank(a)
                .total_cmp(&rank(b))
                .then_with(|| a.value.cmp(&b.value))
        });
        CheckReport {
            samples,
            task: task(total),
            outputs,
            layer_samples: samples.min(LAYER_SAMPLES),
            layers,
        }
    }
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn output_names(model: &Model) -> Vec<String> {
    model
        .main()
        .outputs
        .iter()
        .map(|&v| model.value(v).name.clone())
        .collect()
}

/// The places of the nodes that compute these values.
fn positions(model: &Model, values: &[String]) -> Vec<usize> {
    let nodes = model.main().nodes.iter().enumerate();
    let places: BTreeMap<_, usize> = nodes.map(|(i, &n)| (n, i)).collect();
    let known = model.values_by_name(Model::MAIN);
    let place = |value: &String| {
        let producer = known.get(value.as_str()).and_then(|&v| model.producer(v));
        producer
            .and_then(|(n, _)| places.get(&n).copied())
            .unwrap_or(0)
    };
    values.iter().map(place).collect()
}

/// Values of the reference whose quantized form the candidate computes: name in the reference, name in the candidate.
fn paired_layers(reference: &Model, candidate: &Model) -> Vec<(String, String)> {
    let known = reference.values_by_name(Model::MAIN);
    let computed = |name: &str| {
        known
            .get(name)
            .is_some_and(|&v| reference.producer(v).is_some() && reference.value(v).init.is_none())
    };
    let mut pairs = Vec::new();
    for &node in &candidate.main().nodes {
        let Some(d) = qdq::dequantize(candidate, node) else {
            continue;
        };
        let output = &candidate.value(d.output).name;
        let source = candidate
            .producer(d.input)
            .and_then(|(n, _)| qdq::quantize(candidate, n))
            .map(|q| candidate.value(q.input).name.clone());
        let name = [Some(output.clone()), source]
            .into_iter()
            .flatten()
            .find(|n| computed(n));
        if let Some(name) = name {
            pairs.push((name, output.clone()));
        }
    }
    let quantized: Vec<String> = pairs.iter().map(|(n, _)| n.clone()).collect();
    let linear = |op: &str| matches!(op, "Conv" | "ConvTranspose" | "Gemm" | "MatMul");
    for &node in &candidate.main().nodes {
        let Some(out) = candidate.output(node, 0) else {
            continue;
        };
        let name = &candidate.value(out).name;
        if linear(candidate.node(node).op_type()) && computed(name) && !quantized.contains(name) {
            pairs.push((name.clone(), name.clone()));
        }
    }
    pairs
}

/// An output as rows of its last axis, without the rows of padding.
struct Rows {
    data: Vec<f32>,
    width: usize,
    rank: usize,
}

impl Rows {
    fn new(tensor: &Tensor, batch: &Batch) -> Result<Self, Error> {
        let read =
            |e: onnx_quant_ir::TensorError| Error::usage(format!("an output cannot be read: {e}"));
        let mut data = match tensor.dtype() {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => {
                tensor.to_f32().map_err(read)?
            }
            _ => tensor
                .to_i64()
                .map_err(read)?
                .into_iter()
                .map(|x| x as f32)
                .collect(),
        };
        let dims = tensor.dims();
        let rows = batch.samples + batch.padded;
        if batch.padded > 0 && dims.first() == Some(&(rows as i64)) {
            data.truncate(data.len() / rows * batch.samples);
        }
        let width = match dims.last() {
            Some(&d) if d > 0 => d as usize,
            _ => 1,
        };
        Ok(Self {
            data,
            width,
            rank: dims.len(),
        })
    }

    fn compare(&self, other: &Self, name: &str) -> Result<OutputSums, Error> {
        let mut sums = OutputSums {
            rank: self.rank,
            ..OutputSums::default()
        };
        let fail = |e| Error::usage(format!("output `{name}` of the two models: {e}"));
        sums.compare.add(&self.data, &other.data).map_err(fail)?;
        if self.width > 1 {
            sums.kl
                .add(&self.data, &other.data, self.width)
                .map_err(fail)?;
            sums.agreement
                .add(&self.data, &other.data, self.width)
                .map_err(fail)?;
        }
        Ok(sums)
    }

    fn score(&self, ids: &[i64], per_position: bool) -> Result<Labelled, Error> {
        let fail = |e| Error::usage(format!("labels: {e}"));
        let mut top1 = TopK::new(1);
        let mut top5 = TopK::new(5);
        let mut targets = Perplexity::default();
        let width = if per_position || ids.is_empty() {
            self.width
        } else {
            (self.data.len() / ids.len()).max(1)
        };
        top1.add(&self.data, width, ids).map_err(fail)?;
        if per_position {
            targets.add(&self.data, width, ids).map_err(fail)?;
            return Ok(Labelled::Targets(targets, top1));
        }
        if width > 5 {
            top5.add(&self.data, width, ids).map_err(fail)?;
        }
        Ok(Labelled::Classes(top1, top5))
    }
}

impl OutputSums {
    fn merge(&mut self, other: &Self) {
        self.compare.merge(&other.compare);
        self.kl.merge(&other.kl);
        self.agreement.merge(&other.agreement);
    }

    fn report(&self, name: &str) -> OutputReport {
        OutputReport {
            name: name.to_owned(),
            cosine: self.compare.cosine(),
            sqnr_db: finite(self.compare.sqnr_db()),
            kl: self.kl.mean(),
            agreement: self.agreement.share(),
            max_abs_error: self.compare.max_abs_error,
            non_finite_mismatches: self.compare.non_finite_mismatches,
        }
    }
}

impl Labelled {
    fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Classes(a, b), Self::Classes(c, d)) => {
                a.merge(c);
                b.merge(d);
            }
            (Self::Targets(a, b), Self::Targets(c, d)) => {
                a.merge(c);
                b.merge(d);
            }
            _ => {}
        }
    }
}

impl Sums {
    fn merge(&mut self, other: &Self) {
        for (a, b) in self.outputs.iter_mut().zip(&other.outputs) {
            a.merge(b);
        }
        for (a, b) in self.layers.iter_mut().zip(&other.layers) {
            a.merge(b);
        }
        if let (Some([r, c]), Some([s, d])) = (&mut self.labelled, &other.labelled) {
            r.merge(s);
            c.merge(d);
        }
    }
}

/// The metric that stands for the task: accuracy or perplexity where there are labels; else, for a single output of
/// shape `[samples, classes]`, the share of samples whose largest value is at the same index; else the cosine of the
/// output that differs most.
fn task(total: &Sums) -> Task {
    let nan = f64::NAN;
    let plain = |metric: &str, reference: f64, candidate: f64, drop: f64| Task {
        metric: metric.to_owned(),
        reference,
        candidate,
        drop,
        top5: None,
        interval: None,
    };
    match &total.labelled {
        Some([Labelled::Classes(r, r5), Labelled::Classes(c, c5)]) => {
            let (a, b) = (r.accuracy().unwrap_or(nan), c.accuracy().unwrap_or(nan));
            Task {
                top5: r5.accuracy().zip(c5.accuracy()),
                ..plain("top-1", a, b, a - b)
            }
        }
        Some([Labelled::Targets(r, _), Labelled::Targets(c, _)]) => {
            let (a, b) = (r.perplexity().unwrap_or(nan), c.perplexity().unwrap_or(nan));
            plain("perplexity", a, b, b / a - 1.0)
        }
        _ => match &total.outputs[..] {
            [only] if only.rank == 2 && only.agreement.rows > 0 => {
                let share = only.agreement.share().unwrap_or(nan);
                plain("agreement", 1.0, share, 1.0 - share)
            }
            outputs => {
                let cosines = outputs.iter().map(|o| o.compare.cosine());
                let worst = cosines.fold(1.0, |a: f64, b| if b < a || b.is_nan() { b } else { a });
                plain("cosine", 1.0, worst, 1.0 - worst)
            }
        },
    }
}
