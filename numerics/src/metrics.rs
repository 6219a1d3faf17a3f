//! Comparison of a candidate's outputs with a reference's, accumulated over samples.
//!
//! Accumulators are f64. Sums of floats depend on their order: merge in sample order and the result does not depend
//! on how the work was divided, as long as the pieces are the same.

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod ranking;
#[cfg(test)]
mod tests;

pub use ranking::{Agreement, Perplexity, TopK, argmax};

/// Outputs that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetricError {
    /// The two sides differ in length.
    #[error("the reference holds {reference} values and the candidate {candidate}")]
    Length {
        /// Values of the reference.
        reference: usize,
        /// Values of the candidate.
        candidate: usize,
    },
    /// The values do not divide into rows.
    #[error("{values} values do not divide into rows of {row}")]
    Rows {
        /// Number of values.
        values: usize,
        /// Length of a row.
        row: usize,
    },
    /// There is not one label for each row.
    #[error("{labels} labels for {rows} rows")]
    Labels {
        /// Number of labels.
        labels: usize,
        /// Number of rows.
        rows: usize,
    },
    /// A label is not the index of a class.
    #[error("label {index} is {label}, and there are {classes} classes")]
    Label {
        /// Position of the label.
        index: usize,
        /// Its value.
        label: i64,
        /// Length of a row.
        classes: usize,
    },
}

fn same_length(reference: &[f32], candidate: &[f32]) -> Result<(), MetricError> {
    if reference.len() == candidate.len() {
        return Ok(());
    }
    Err(MetricError::Length {
        reference: reference.len(),
        candidate: candidate.len(),
    })
}

/// Rows of `row` values; none where `values` is empty.
fn rows_of(values: &[f32], row: usize) -> Result<std::slice::ChunksExact<'_, f32>, MetricError> {
    if !values.len().is_multiple_of(row) {
        return Err(MetricError::Rows {
            values: values.len(),
            row,
        });
    }
    Ok(values.chunks_exact(row.max(1)))
}

/// How far a candidate's values are from a reference's.
///
/// Pairs in which a side is not finite are counted and left out of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Compare {
    /// Pairs in the sums.
    pub count: u64,
    /// Pairs in which exactly one side is not finite, or both are and differ (NaN equals NaN here).
    pub non_finite_mismatches: u64,
    /// Pairs in which both sides are NaN, or the same infinity.
    pub non_finite_matches: u64,
    /// Σ r².
    pub sum_reference_squared: f64,
    /// Σ c².
    pub sum_candidate_squared: f64,
    /// Σ r·c.
    pub dot: f64,
    /// Σ (c − r)².
    pub sum_error_squared: f64,
    /// max |c − r|.
    pub max_abs_error: f64,
}

impl Compare {
    /// Adds pairs of values.
    ///
    /// # Errors
    /// [`MetricError::Length`] if the sides differ in length; nothing is added then.
    pub fn add(&mut self, reference: &[f32], candidate: &[f32]) -> Result<(), MetricError> {
        same_length(reference, candidate)?;
        let mut sums = [[0f64; LANES]; 4];
        let mut max = [0f64; LANES];
        let (r_chunks, r_rest) = reference.as_chunks::<LANES>();
        let (c_chunks, c_rest) = candidate.as_chunks::<LANES>();
        let mut lane_of = |lane: usize, r: f32, c: f32| {
            let (r, c) = (f64::from(r), f64::from(c));
            let error = c - r;
            for (sum, term) in sums.iter_mut().zip([r * r, c * c, r * c, error * error]) {
                sum[lane] += term;
            }
            max[lane] = max[lane].max(error.abs());
        };
        let mut finite = 0;
        for (r, c) in r_chunks
            .iter()
            .zip(c_chunks)
            .map(|(r, c)| (&r[..], &c[..]))
            .chain([(r_rest, c_rest)])
        {
            if r.iter().chain(c).all(|x| x.is_finite()) {
                finite += r.len() as u64;
                r.iter()
                    .zip(c)
                    .enumerate()
                    .for_each(|(lane, (&r, &c))| lane_of(lane, r, c));
                continue;
            }
            for (lane, (&r, &c)) in r.iter().zip(c).enumerate() {
                if r.is_finite() && c.is_finite() {
                    finite += 1;
                    lane_of(lane, r, c);
                } else if r == c || r.is_nan() && c.is_nan() {
                    self.non_finite_matches += 1;
                } else {
                    self.non_finite_mismatches += 1;
                }
            }
        }
        let [r2, c2, rc, e2] = sums.map(|lanes| lanes.iter().sum::<f64>());
        self.merge(&Compare {
            count: finite,
            sum_reference_squared: r2,
            sum_candidate_squared: c2,
            dot: rc,
            sum_error_squared: e2,
            max_abs_error: max.into_iter().fold(0.0, f64::max),
            ..Compare::default()
        });
        Ok(())
    }

    /// Adds another accumulator, whose samples come after this one's.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.non_finite_mismatches += other.non_finite_mismatches;
        self.non_finite_matches += other.non_finite_matches;
        self.sum_reference_squared += other.sum_reference_squared;
        self.sum_candidate_squared += other.sum_candidate_squared;
        self.dot += other.dot;
        self.sum_error_squared += other.sum_error_squared;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
    }

    /// Cosine of the angle between the two, in [−1, 1]; 1 if both are zero (or there are no values), 0 if only one is.
    pub fn cosine(&self) -> f64 {
        let norms = self.sum_reference_squared.sqrt() * self.sum_candidate_squared.sqrt();
        if norms > 0.0 {
            return (self.dot / norms).clamp(-1.0, 1.0);
        }
        if self.sum_reference_squared == self.sum_candidate_squared {
            1.0
        } else {
            0.0
        }
    }

    /// Signal to quantization noise ratio `10·log10(Σ r² / Σ (c − r)²)` in dB.
    ///
    /// +∞ if the two are equal (or there are no values), −∞ if the reference is all zero and the candidate is not, or if
    /// there is a non-finite mismatch. JSON has no infinities: write them as `null` or as text.
    pub fn sqnr_db(&self) -> f64 {
        if self.non_finite_mismatches > 0 {
            return f64::NEG_INFINITY;
        }
        if self.sum_error_squared == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.sum_reference_squared / self.sum_error_squared).log10()
    }

    /// Mean of `(c − r)²`; 0 if there are no values.
    pub fn mean_squared_error(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum_error_squared / self.count as f64
        }
    }

    /// Whether every pair is equal.
    pub fn is_equal(&self) -> bool {
        self.sum_error_squared == 0.0
            && self.max_abs_error == 0.0
            && self.non_finite_mismatches == 0
    }
}

/// Independent sums that [`Compare::add`] keeps; part of the definition of its rounding.
const LANES: usize = 8;

/// Mean Kullback–Leibler divergence `Σ P·ln(P / Q)` over rows, in nats, `P` the reference and `Q` the candidate.
///
/// A row of the last axis is taken as a distribution if its values are at least 0 and sum to 1 within 1e-3,
/// otherwise as logits, through softmax. The reference row decides, for both sides. Candidate probabilities are
/// renormalized and floored at 1e-12, so that a zero where the reference has mass costs much but not infinitely much.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct KlDivergence {
    /// Rows in the sum.
    pub rows: u64,
    /// Rows left out because a side is not finite.
    pub non_finite_rows: u64,
    /// Σ of the rows' divergences.
    pub sum: f64,
}

impl KlDivergence {
    /// Adds rows of `row` values.
    ///
    /// # Errors
    /// [`MetricError`] if the sides differ in length or do not divide into rows; nothing is added then.
    pub fn add(
        &mut self,
        reference: &[f32],
        candidate: &[f32],
        row: usize,
    ) -> Result<(), MetricError> {
        same_length(reference, candidate)?;
        for (p, q) in rows_of(reference, row)?.zip(rows_of(candidate, row)?) {
            if p.iter().chain(q).any(|x| !x.is_finite()) {
                self.non_finite_rows += 1;
                continue;
            }
            self.rows += 1;
            self.sum += if is_distribution(p) {
                kl(&floored(p), &floored(q))
            } else {
                kl(&softmax(p), &softmax(q))
            };
        }
        Ok(())
    }

    /// Adds another accumulator, whose samples come after this one's.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.non_finite_rows += other.non_finite_rows;
        self.sum += other.sum;
    }

    /// The mean over rows; `None` if there are none.
    pub fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / self.rows as f64)
    }
}

/// The vector whose squared length is, to second order, the sum of the Kullback–Leibler divergences of the candidate's
/// rows: `√2 · (√Q − √P)`. Those of several changes add up to that of all. Rows that are not finite give zeros.
///
/// # Errors
/// [`MetricError`] if the sides differ in length or do not divide into rows.
pub fn kl_direction(
    reference: &[f32],
    candidate: &[f32],
    row: usize,
) -> Result<Vec<f32>, MetricError> {
    same_length(reference, candidate)?;
    let mut moved = Vec::with_capacity(reference.len());
    for (p, q) in rows_of(reference, row)?.zip(rows_of(candidate, row)?) {
        if p.iter().chain(q).any(|x| !x.is_finite()) {
            moved.extend(p.iter().map(|_| 0.0));
            continue;
        }
        let (p, q) = match is_distribution(p) {
            true => (floored(p), floored(q)),
            false => (softmax(p), softmax(q)),
        };
        let root = |(p, q): (&(f64, f64), &(f64, f64))| {
            (std::f64::consts::SQRT_2 * (q.0.sqrt() - p.0.sqrt())) as f32
        };
        moved.extend(p.iter().zip(&q).map(root));
    }
    Ok(moved)
}

/// A distribution as pairs of probability and its logarithm.
type Distribution = Vec<(f64, f64)>;

fn is_distribution(row: &[f32]) -> bool {
    let sum: f64 = row.iter().map(|&x| f64::from(x)).sum();
    row.iter().all(|&x| x >= 0.0) && (sum - 1.0).abs() <= 1e-3
}

/// The row renormalized, with no probability below the floor.
fn floored(row: &[f32]) -> Distribution {
    let at_least = |x: f32| f64::from(x).max(1e-12);
    let sum: f64 = row.iter().map(|&x| at_least(x)).sum();
    row.iter()
        .map(|&x| at_least(x) / sum)
        .map(|p| (p, p.ln()))
        .collect()
}

fn softmax(row: &[f32]) -> Distribution {
    let log_sum = log_sum_exp(row);
    row.iter()
        .map(|&x| f64::from(x) - log_sum)
        .map(|log| (log.exp(), log))
        .collect()
}

/// `ln Σ exp(x)`, shifted by the largest value so that it does not overflow.
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row
        .iter()
        .map(|&x| (f64::from(x) - max).exp())
        .sum::<f64>()
        .ln()
}

/// `Σ P·ln(P / Q)`, at least 0.
fn kl(p: &Distribution, q: &Distribution) -> f64 {
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|((p, log_p), (_, log_q))| p * (log_p - log_q))
        .sum();
    sum.max(0.0)
}
