//! Pruning: which weights become zero.
//!
//! Per layer, the smallest magnitudes of each weight; globally, those of all weights together; by importance, the values
//! that carry the least of their layer's output, `w²·E[x²]` relative to the sum over the layer. What is pruned is decided
//! by order alone, and of equal values the first are pruned: the share is exact.

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;

use super::targets::Weight;

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Magnitudes within each weight.
    Layer,
    /// Magnitudes of all weights.
    Global,
    /// Shares of the layers' outputs, of all weights.
    Importance,
}

const SCOPES: [(&str, Scope); 3] = [
    ("layer", Scope::Layer),
    ("global", Scope::Global),
    ("importance", Scope::Importance),
];

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(SCOPES[*self as usize].0)
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = SCOPES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, s)| *s)
            .ok_or_else(|| format!("unknown scope `{text}`; valid: layer, global, importance"))
    }
}

/// How sparsity rises to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// At once.
    #[default]
    OneShot,
    /// In equal steps.
    Linear(u32),
    /// In steps that become smaller: `s·(1 − (1 − t)³)`.
    Cubic(u32),
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneShot => f.pad("one-shot"),
            Self::Linear(n) => write!(f, "linear:{n}"),
            Self::Cubic(n) => write!(f, "cubic:{n}"),
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "unknown schedule `{text}`; valid: one-shot, linear:N, cubic:N, with N from 1 to 100 steps"
            )
        };
        if text == "one-shot" {
            return Ok(Self::OneShot);
        }
        let (name, steps) = text.split_once(':').ok_or_else(refuse)?;
        let steps: u32 = steps.parse().map_err(|_| refuse())?;
        match name {
            _ if !(1..=100).contains(&steps) => Err(refuse()),
            "linear" => Ok(Self::Linear(steps)),
            "cubic" => Ok(Self::Cubic(steps)),
            _ => Err(refuse()),
        }
    }
}

impl Schedule {
    /// The sparsities on the way to the target, the target last.
    ///
    /// Source of the cubic one: Zhu and Gupta, *To prune, or not to prune*, 2017.
    pub fn steps(self, target: f64) -> Vec<f64> {
        let (steps, power) = match self {
            Self::OneShot => return vec![target],
            Self::Linear(n) => (n, 1),
            Self::Cubic(n) => (n, 3),
        };
        (1..=steps)
            .map(|i| match i == steps {
                true => target,
                false => target * (1.0 - (1.0 - f64::from(i) / f64::from(steps)).powi(power)),
            })
            .collect()
    }
}

/// For each value of each weight whether it is kept.
pub(super) fn masks(weights: &[Weight], sparsity: f64, scope: Scope) -> Vec<Vec<bool>> {
    let scores: Vec<Vec<f32>> = weights.par_iter().map(|w| scores(w, scope)).collect();
    if scope == Scope::Layer {
        return scores
            .par_iter()
            .map(|s| keep(&[s], sparsity).remove(0))
            .collect();
    }
    let all: Vec<&Vec<f32>> = scores.iter().collect();
    keep(&all, sparsity)
}

fn scores(weight: &Weight, scope: Scope) -> Vec<f32> {
    if scope != Scope::Importance {
        return weight.data.iter().map(|w| w.abs()).collect();
    }
    let energy = |(at, &w): (usize, &f32)| {
        let x = weight.importance.as_ref().map_or(1.0, |i| f64::from(i[at]));
        f64::from(w) * f64::from(w) * x
    };
    let total: f64 = weight.data.iter().enumerate().map(energy).sum();
    let share = |e: f64| (e / total.max(f64::MIN_POSITIVE)) as f32;
    weight
        .data
        .iter()
        .enumerate()
        .map(|p| share(energy(p)))
        .collect()
}

/// Marks all but the smallest share of the scores.
fn keep(scores: &[&Vec<f32>], sparsity: f64) -> Vec<Vec<bool>> {
    let total: usize = scores.iter().map(|s| s.len()).sum();
    let pruned = ((total as f64 * sparsity).round() as usize).min(total);
    let mut sorted: Vec<f32> = scores.iter().flat_map(|s| s.iter().copied()).collect();
    let Some(last) = pruned.checked_sub(1) else {
        return scores.iter().map(|s| vec![true; s.len()]).collect();
    };
    let (_, &mut limit, _) = sorted.select_nth_unstable_by(last, f32::total_cmp);
    let below: usize = scores
        .iter()
        .flat_map(|s| s.iter())
        .filter(|&&s| s < limit)
        .count();
    let mut equal = pruned - below;
    let mut keep_one = |&score: &f32| {
        if score == limit && equal > 0 {
            equal -= 1;
            return false;
        }
        score >= limit
    };
    scores
        .iter()
        .map(|s| s.iter().map(&mut keep_one).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_share_is_exact_and_the_smallest_go_first() {
        let a = vec![0.1f32, 0.5, 0.5, 0.5];
        let b = vec![0.5f32, 0.9];
        let kept = keep(&[&a, &b], 0.5);
        assert_eq!(kept, [vec![false, false, false, true], vec![true, true]]);
        assert_eq!(keep(&[&b], 0.0), [[true, true]]);
        assert_eq!(keep(&[&b], 1.0), [[false, false]]);
    }

    #[test]
    fn schedules() {
        assert_eq!("one-shot".parse::<Schedule>().unwrap().steps(0.8), [0.8]);
        assert_eq!(
            "linear:4".parse::<Schedule>().unwrap().steps(0.8),
            [0.2, 0.4, 0.8 * (1.0 - 0.25), 0.8]
        );
        let cubic = "cubic:3".parse::<Schedule>().unwrap();
        assert_eq!(cubic.to_string(), "cubic:3");
        assert!(cubic.steps(0.9).is_sorted() && cubic.steps(0.9)[0] > 0.6);
        for bad in ["cubic", "cubic:0", "linear:x", "cubix:3"] {
            assert!(
                bad.parse::<Schedule>().unwrap_err().contains("valid"),
                "{bad}"
            );
        }
    }
}
