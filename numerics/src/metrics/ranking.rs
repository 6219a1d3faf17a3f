//! Metrics of predicted classes: agreement, top-k accuracy, perplexity.

use serde::{Deserialize, Serialize};

use super::{MetricError, log_sum_exp, rows_of, same_length};

/// Index of the largest value, the first of equal ones; NaN is never the largest. `None` for an empty row or all NaN.
pub fn argmax(row: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (at, &x) in row.iter().enumerate() {
        let better = best.is_none_or(|(_, largest)| x > largest);
        if better && !x.is_nan() {
            best = Some((at, x));
        }
    }
    best.map(|(at, _)| at)
}

/// A share of rows: top-1 agreement, or accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Agreement {
    /// Rows seen.
    pub rows: u64,
    /// Rows whose largest value is at the same index on both sides.
    pub same: u64,
}

impl Agreement {
    /// Adds rows of `row` values. Where a side has no largest value (all NaN), the row counts as different.
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
        for (r, c) in rows_of(reference, row)?.zip(rows_of(candidate, row)?) {
            let (r, c) = (argmax(r), argmax(c));
            self.rows += 1;
            self.same += u64::from(r.is_some() && r == c);
        }
        Ok(())
    }

    /// Adds another accumulator.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.same += other.same;
    }

    /// The share in [0, 1]; `None` if there are no rows.
    pub fn share(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.same as f64 / self.rows as f64)
    }
}

/// Top-k accuracy against labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopK {
    /// How many of the largest values may be the label's.
    pub k: usize,
    /// Rows seen.
    pub rows: u64,
    /// Rows whose label is among the `k` largest.
    pub hits: u64,
}

impl TopK {
    /// An accumulator for the `k` largest values.
    pub const fn new(k: usize) -> Self {
        TopK {
            k,
            rows: 0,
            hits: 0,
        }
    }

    /// Adds rows of `classes` scores, one label for each.
    ///
    /// Of equal scores the one with the lower index is taken as larger, so ties do not depend on a sort; NaN is
    /// smaller than everything, and a label whose own score is NaN is a miss.
    ///
    /// # Errors
    /// [`MetricError`] if scores, rows and labels do not fit together; nothing is added then.
    pub fn add(
        &mut self,
        scores: &[f32],
        classes: usize,
        labels: &[i64],
    ) -> Result<(), MetricError> {
        let rows = labelled(scores, classes, labels)?;
        for (row, label) in rows {
            let own = row[label];
            let ahead = |(at, &x): (usize, &f32)| x > own || x == own && at < label;
            let rank = row.iter().enumerate().filter(|&entry| ahead(entry)).count();
            self.rows += 1;
            self.hits += u64::from(!own.is_nan() && rank < self.k);
        }
        Ok(())
    }

    /// Adds another accumulator of the same `k`.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.hits += other.hits;
    }

    /// The share in [0, 1]; `None` if there are no rows.
    pub fn accuracy(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.hits as f64 / self.rows as f64)
    }
}

/// Perplexity of target ids under logits: `exp` of the mean of `−ln softmax(logits)[target]`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Perplexity {
    /// Targets seen.
    pub targets: u64,
    /// Σ of negative log likelihoods, natural logarithm.
    pub sum: f64,
}

impl Perplexity {
    /// Adds rows of `classes` logits, one target id for each. NaN logits make the result NaN.
    ///
    /// # Errors
    /// [`MetricError`] if logits, rows and targets do not fit together; nothing is added then.
    pub fn add(
        &mut self,
        logits: &[f32],
        classes: usize,
        targets: &[i64],
    ) -> Result<(), MetricError> {
        for (row, target) in labelled(logits, classes, targets)? {
            self.targets += 1;
            self.sum += log_sum_exp(row) - f64::from(row[target]);
        }
        Ok(())
    }

    /// Adds another accumulator, whose samples come after this one's.
    pub fn merge(&mut self, other: &Self) {
        self.targets += other.targets;
        self.sum += other.sum;
    }

    /// Mean negative log likelihood in nats; `None` if there are no targets.
    pub fn mean_nll(&self) -> Option<f64> {
        (self.targets > 0).then(|| self.sum / self.targets as f64)
    }

    /// The perplexity; `None` if there are no targets.
    pub fn perplexity(&self) -> Option<f64> {
        self.mean_nll().map(f64::exp)
    }
}

/// Rows with their labels, all of them checked.
fn labelled<'a>(
    scores: &'a [f32],
    classes: usize,
    labels: &'a [i64],
) -> Result<impl Iterator<Item = (&'a [f32], usize)>, MetricError> {
    let rows = rows_of(scores, classes)?;
    if rows.len() != labels.len() {
        return Err(MetricError::Labels {
            labels: labels.len(),
            rows: rows.len(),
        });
    }
    let valid = move |label: i64| usize::try_from(label).ok().filter(|&label| label < classes);
    if let Some(index) = labels.iter().position(|&label| valid(label).is_none()) {
        return Err(MetricError::Label {
            index,
            label: labels[index],
            classes,
        });
    }
    Ok(rows.zip(labels.iter().filter_map(move |&label| valid(label))))
}
