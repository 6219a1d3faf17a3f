//! Ternary weights: `{−α, 0, +α}`.
//!
//! `q = +1, 0, −1` for `r > Δ`, `|r| ≤ Δ`, `r < −Δ`; `α` is the mean of `|r|` over the weights with `|r| > Δ`, which has the least
//! squared error for these codes. `Δ = 0.7·E|r|` is the rule of the paper; the best `Δ` is found exactly, because only the
//! order of the absolute values matters: the error is `Σr² − (Σ_{|r|>Δ}|r|)² / n_Δ`.
//!
//! Source: Li et al., *Ternary weight networks*, 2016, equations 4 to 6.

use thiserror::Error;

use crate::format::{FormatError, lookup};

/// How the threshold is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Threshold {
    /// `Δ = 0.7·E|r|`.
    Rule,
    /// The threshold of least squared error.
    #[default]
    Search,
}

const THRESHOLDS: [(&str, Threshold); 2] =
    [("rule", Threshold::Rule), ("search", Threshold::Search)];

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(THRESHOLDS[*self as usize].0)
    }
}

impl std::str::FromStr for Threshold {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let names = THRESHOLDS.iter().map(|(name, _)| *name);
        lookup("ternary threshold", text, names).map(|at| THRESHOLDS[at].1)
    }
}

/// Threshold and scale of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ternary {
    /// Values of larger magnitude become `±α`.
    pub delta: f32,
    /// Mean magnitude of those values; 0 where there are none.
    pub alpha: f32,
}

/// A value that is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("value {0} is not finite")]
pub struct NotFinite(pub usize);

/// Threshold and scale for a group of values.
///
/// # Errors
/// A value that is not finite.
pub fn ternary(values: &[f32], threshold: Threshold) -> Result<Ternary, NotFinite> {
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        return Err(NotFinite(at));
    }
    let delta = match threshold {
        Threshold::Rule => {
            let sum: f64 = values.iter().map(|x| f64::from(x.abs())).sum();
            (0.7 * sum / values.len().max(1) as f64) as f32
        }
        Threshold::Search => best_delta(values),
    };
    let (mut sum, mut count) = (0.0f64, 0u64);
    for x in values.iter().map(|x| x.abs()).filter(|&x| x > delta) {
        sum += f64::from(x);
        count += 1;
    }
    Ok(Ternary {
        delta,
        alpha: if count > 0 {
            (sum / count as f64) as f32
        } else {
            0.0
        },
    })
}

/// The threshold of least squared error: the largest magnitude that becomes zero.
fn best_delta(values: &[f32]) -> f32 {
    let mut sizes: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    sizes.sort_unstable_by(|a, b| b.total_cmp(a));
    let (mut sum, mut best, mut delta) = (0.0f64, 0.0f64, f32::MAX);
    for (at, &x) in sizes.iter().enumerate() {
        sum += f64::from(x);
        let next = sizes.get(at + 1).copied().unwrap_or(0.0);
        // Equal magnitudes get the same code.
        let gain = sum * sum / (at + 1) as f64;
        if next < x && gain > best {
            (best, delta) = (gain, next);
        }
    }
    if best > 0.0 { delta } else { 0.0 }
}

impl Ternary {
    /// The code of a value: 0, 1, 2 for `−α`, `0`, `+α`.
    pub fn code(&self, r: f32) -> u8 {
        1 + u8::from(r > self.delta) - u8::from(r < -self.delta)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn error(values: &[f32], delta: f32) -> f64 {
        let over: Vec<f64> = values
            .iter()
            .map(|x| f64::from(x.abs()))
            .filter(|&x| x > f64::from(delta))
            .collect();
        let alpha = over.iter().sum::<f64>() / over.len().max(1) as f64;
        values
            .iter()
            .map(|&x| {
                let x = f64::from(x.abs());
                let q = if x > f64::from(delta) { alpha } else { 0.0 };
                (x - q) * (x - q)
            })
            .sum()
    }

    proptest! {
        #[test]
        fn no_threshold_is_better_than_the_searched_one(
            values in proptest::collection::vec(-4i32..5, 1..40)
        ) {
            let values: Vec<f32> = values.iter().map(|&v| v as f32 * 0.5).collect();
            let found = ternary(&values, Threshold::Search).unwrap();
            let least = error(&values, found.delta);
            for delta in values.iter().map(|x| x.abs()).chain([0.0]) {
                prop_assert!(least <= error(&values, delta) + 1e-9, "{} {delta}", found.delta);
            }
        }
    }

    #[test]
    fn the_rule_of_the_paper() {
        let w = [1.0f32, -0.2, 0.5, -2.0, 0.0];
        let t = ternary(&w, Threshold::Rule).unwrap();
        assert_eq!(t.delta, 0.518);
        assert_eq!(t.alpha, 1.5);
        let codes: Vec<u8> = w.iter().map(|&r| t.code(r)).collect();
        assert_eq!(codes, [2, 1, 1, 0, 1]);
    }

    #[test]
    fn degenerate_groups() {
        for threshold in [Threshold::Rule, Threshold::Search] {
            let zero = ternary(&[0.0; 4], threshold).unwrap();
            assert_eq!((zero.alpha, zero.code(0.0)), (0.0, 1));
            assert_eq!(ternary(&[], threshold).unwrap().alpha, 0.0);
            assert_eq!(
                ternary(&[1.0, f32::NAN], threshold).unwrap_err(),
                NotFinite(1)
            );
            let same = ternary(&[3.0, -3.0], threshold).unwrap();
            assert_eq!((same.alpha, same.code(3.0), same.code(-3.0)), (3.0, 2, 0));
        }
    }
}
