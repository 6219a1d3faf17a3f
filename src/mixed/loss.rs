//! How far the outputs of a changed model are from those of the float model: the loss by which formats are compared.

use onnx_quant_ir::{DataType, Tensor};
use onnx_quant_numerics::metrics::{Compare, KlDivergence, TopK};
use serde::{Deserialize, Serialize};

use crate::data::{Batch, Labels};
use crate::error::Error;

/// What the loss is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Mean Kullback–Leibler divergence of the first output's rows from the float model's, in nats: for classifiers and
    /// language models.
    Kl,
    /// Squared error over the square of the float model's values, `1/SQNR`, the mean of all outputs.
    Error,
    /// `1 − cosine`, the mean of all outputs.
    Cosine,
    /// What top-1 accuracy loses on the labels. A share of few samples is coarse: of formats that lose no sample, the
    /// divergence decides.
    Task,
    /// Squared error over square of the layer's own output, without running what comes after: a fast filter only. It is
    /// blind to what the rest of the network makes of the error, and ranks layers badly.
    Local,
}

impl LossKind {
    /// The words for reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kl => "KL divergence of the output (nats)",
            Self::Error => "squared error of the outputs / square of the outputs",
            Self::Cosine => "1 − cosine of the outputs",
            Self::Task => "loss of top-1 accuracy",
            Self::Local => "squared error of the layer's own output / square of it",
        }
    }

    /// A loss that no format is worth: the output carries less than it errs.
    pub(super) fn hopeless(self) -> f64 {
        match self {
            Self::Cosine | Self::Task => 0.5,
            _ => 1.0,
        }
    }
}

impl std::str::FromStr for LossKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kl" => Ok(Self::Kl),
            "mse" | "error" => Ok(Self::Error),
            "cosine" => Ok(Self::Cosine),
            "task" => Ok(Self::Task),
            "local" => Ok(Self::Local),
            _ => Err(format!(
                "there is no loss `{text}`: use kl, mse, cosine, task or local"
            )),
        }
    }
}

/// The loss that fits outputs and labels: of classes or of numbers.
pub(super) fn kind_of(outputs: &[Tensor], labels: bool) -> LossKind {
    let wide = |t: &Tensor| t.dims().last().is_some_and(|&d| d > 1);
    match outputs {
        [first, ..] if labels && wide(first) => LossKind::Kl,
        [only] if only.dims().len() == 2 && wide(only) => LossKind::Kl,
        _ => LossKind::Error,
    }
}

/// Weight of the divergence beside a loss of accuracy.
const DECIDES: f64 = 1e-3;

/// The loss of a part of the samples; parts are merged in the order of the samples.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    kl: KlDivergence,
    outputs: Vec<Compare>,
    hits: [TopK; 2],
    /// Samples in it.
    pub(super) samples: usize,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            kl: KlDivergence::default(),
            outputs: Vec::new(),
            hits: [TopK::new(1); 2],
            samples: 0,
        }
    }
}

impl Loss {
    /// Adds one batch: what a loss of this kind needs.
    ///
    /// # Errors
    /// Outputs that cannot be read or compared.
    pub(super) fn add(
        &mut self,
        kind: LossKind,
        (reference, candidate): (&[Tensor], &[Tensor]),
        batch: &Batch,
        labels: Option<&Labels>,
    ) -> Result<(), Error> {
        let bad =
            |e: &dyn std::fmt::Display| Error::usage(format!("an output cannot be compared: {e}"));
        self.outputs.resize(reference.len(), Compare::default());
        for (i, (r, c)) in reference.iter().zip(candidate).enumerate() {
            let (a, b) = (values(r, batch)?, values(c, batch)?);
            self.outputs[i].add(&a, &b).map_err(|e| bad(&e))?;
            let width = r
                .dims()
                .last()
                .map_or(1, |&d| usize::try_from(d).unwrap_or(1))
                .max(1);
            if i > 0 || width < 2 || a.len() != b.len() {
                continue;
            }
            if matches!(kind, LossKind::Kl | LossKind::Task) {
                self.kl.add(&a, &b, width).map_err(|e| bad(&e))?;
            }
            if let Some(l) = labels {
                let ids = l.range(batch.first_sample, batch.samples);
                if ids.len() * width == a.len() {
                    let [x, y] = &mut self.hits;
                    x.add(&a, width, ids).map_err(|e| bad(&e))?;
                    y.add(&b, width, ids).map_err(|e| bad(&e))?;
                }
            }
        }
        self.samples += batch.samples;
        Ok(())
    }

    /// The loss.
    pub(super) fn value(&self, kind: LossKind) -> f64 {
        let mean = |f: &dyn Fn(&Compare) -> f64| {
            let sum: f64 = self.outputs.iter().map(f).sum();
            sum / self.outputs.len().max(1) as f64
        };
        let kl = match self.kl.mean() {
            Some(kl) if self.kl.non_finite_rows == 0 => kl,
            _ => f64::MAX,
        };
        let loss = match kind {
            LossKind::Kl => kl,
            LossKind::Task => self.drop().unwrap_or(0.0).max(0.0) + kl * DECIDES,
            LossKind::Error | LossKind::Local => mean(&|c| match c.sqnr_db() {
                db if db == f64::INFINITY => 0.0,
                db => 10f64.powf(-db / 10.0),
            }),
            LossKind::Cosine => mean(&|c| 1.0 - c.cosine()),
        };
        if loss.is_finite() {
            loss.max(0.0)
        } else {
            f64::MAX
        }
    }

    /// Signal to noise of the first output in dB.
    pub(super) fn sqnr_db(&self) -> Option<f64> {
        let db = self.outputs.first()?.sqnr_db();
        db.is_finite().then_some(db)
    }

    /// The sums as the bits of their numbers.
    pub(super) fn to_bits(&self) -> Vec<u64> {
        let mut bits = vec![
            self.samples as u64,
            self.kl.rows,
            self.kl.non_finite_rows,
            self.kl.sum.to_bits(),
        ];
        for t in &self.hits {
            bits.extend([t.k as u64, t.rows, t.hits]);
        }
        for c in &self.outputs {
            bits.extend([c.count, c.non_finite_mismatches, c.non_finite_matches]);
            let sums = [
                c.sum_reference_squared,
                c.sum_candidate_squared,
                c.dot,
                c.sum_error_squared,
                c.max_abs_error,
            ];
            bits.extend(sums.map(f64::to_bits));
        }
        bits
    }

    /// The sums from the bits of their numbers.
    pub(super) fn from_bits(bits: &[u64]) -> Option<Self> {
        let (head, outputs) = bits.split_at_checked(10)?;
        let hits = |at: usize| TopK {
            k: head[at] as usize,
            rows: head[at + 1],
            hits: head[at + 2],
        };
        let compare = |c: &[u64]| Compare {
            count: c[0],
            non_finite_mismatches: c[1],
            non_finite_matches: c[2],
            sum_reference_squared: f64::from_bits(c[3]),
            sum_candidate_squared: f64::from_bits(c[4]),
            dot: f64::from_bits(c[5]),
            sum_error_squared: f64::from_bits(c[6]),
            max_abs_error: f64::from_bits(c[7]),
        };
        Some(Self {
            samples: head[0] as usize,
            kl: KlDivergence {
                rows: head[1],
                non_finite_rows: head[2],
                sum: f64::from_bits(head[3]),
            },
            hits: [hits(4), hits(7)],
            outputs: outputs.chunks_exact(8).map(compare).collect(),
        })
    }

    /// Adds the sums of the samples that follow.
    pub(super) fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        self.kl.merge(&other.kl);
        for (a, b) in self.hits.iter_mut().zip(&other.hits) {
            a.merge(b);
        }
        self.outputs.resize(
            other.outputs.len().max(self.outputs.len()),
            Compare::default(),
        );
        for (a, b) in self.outputs.iter_mut().zip(&other.outputs) {
            a.merge(b);
        }
    }

    /// What top-1 accuracy loses on the samples, where there are labels.
    pub(super) fn drop(&self) -> Option<f64> {
        let [a, b] = &self.hits;
        Some(a.accuracy()? - b.accuracy()?)
    }
}

/// The values of an output as FP32, without those of padding.
pub(super) fn values(tensor: &Tensor, batch: &Batch) -> Result<Vec<f32>, Error> {
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
    let rows = batch.samples + batch.padded;
    if batch.padded > 0 && tensor.dims().first() == Some(&(rows as i64)) {
        data.truncate(data.len() / rows * batch.samples);
    }
    Ok(data)
}
