//! Binary weights: `±α`.
//!
//! `q = sign(r)` with `sign(0) = +1`, and `α = ‖W‖₁ / n`, which has the least squared error for these signs. Stochastic
//! rounding gives `+1` with the probability `clip((r + 1) / 2, 0, 1)` (the hard sigmoid), `r` taken as it is.
//!
//! Source: Courbariaux et al., *BinaryConnect*, 2015; Rastegari et al., *XNOR-Net*, 2016, section 3.1.

use crate::random::uniform;

/// How signs are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Rounding {
    /// The sign of the value.
    #[default]
    Deterministic,
    /// Drawn by the hard sigmoid, with this seed.
    Stochastic(u64),
}

/// `α`: the mean of the absolute values; 0 for none.
pub fn alpha(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|x| f64::from(x.abs())).sum();
    match values.len() {
        0 => 0.0,
        n => (sum / n as f64) as f32,
    }
}

/// The probability of `+1`: `clip((r + 1) / 2, 0, 1)`.
pub fn hard_sigmoid(r: f32) -> f64 {
    ((f64::from(r) + 1.0) / 2.0).clamp(0.0, 1.0)
}

/// The code of a value, 1 for `+α` and 0 for `−α`; `position` is the value's place in the tensor.
pub fn code(r: f32, rounding: Rounding, position: u64) -> u8 {
    match rounding {
        Rounding::Deterministic => u8::from(r >= 0.0),
        Rounding::Stochastic(seed) => u8::from(uniform(seed, position) < hard_sigmoid(r)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_their_scale() {
        let w = [0.5f32, -1.5, 0.0, -0.0, 2.0];
        let codes: Vec<u8> = w
            .iter()
            .map(|&r| code(r, Rounding::Deterministic, 0))
            .collect();
        assert_eq!(codes, [1, 0, 1, 1, 1]);
        assert_eq!(alpha(&w), 0.8);
        assert_eq!(alpha(&[]), 0.0);
        assert_eq!(alpha(&[0.0; 3]), 0.0);
    }

    #[test]
    fn alpha_has_the_least_error() {
        let w: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let error = |a: f32| -> f64 {
            let part = |r: f32| f64::from(r - if r >= 0.0 { a } else { -a }).powi(2);
            w.iter().map(|&r| part(r)).sum()
        };
        let best = alpha(&w);
        assert!(error(best) < error(best * 1.01) && error(best) < error(best * 0.99));
    }

    #[test]
    fn stochastic_signs_follow_the_hard_sigmoid() {
        for r in [-1.5f32, -1.0, -0.4, 0.0, 0.6, 1.0, 3.0] {
            let n = 20_000;
            let ones: u64 = (0..n)
                .map(|i| u64::from(code(r, Rounding::Stochastic(3), i)))
                .sum();
            let share = ones as f64 / n as f64;
            assert!((share - hard_sigmoid(r)).abs() < 0.012, "{r}: {share}");
        }
        let draw = |seed| -> Vec<u8> {
            (0..64)
                .map(|i| code(0.1, Rounding::Stochastic(seed), i))
                .collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
