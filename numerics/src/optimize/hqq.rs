//! HQQ: scale and zero point of each block without data, by the half-quadratic method: weights that rounding cannot
//! serve count as outliers and do not pull the scale.
//!
//! `min ‖W_e‖_p^p + β/2 ‖W_e − (W − Ŵ)‖²` is solved by turns: `W_e` by the shrinkage of the ℓp norm (p < 1), then the
//! grid from `W − W_e`. The paper moves a real zero point and keeps the scale; zero points that are stored as codes
//! are integers, so that both are fitted here by least squares and the zero point is rounded.
//!
//! Source: Badri, Shaji, *Half-Quadratic Quantization of Large Machine Learning Models*, 2023.

use rayon::prelude::*;

use super::grid::{Grid, Levels};

/// How the search goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Exponent of the norm.
    pub p: f32,
    /// First β.
    pub beta: f32,
    /// Factor of β from turn to turn.
    pub kappa: f32,
    /// Turns.
    pub turns: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            p: 0.7,
            beta: 10.0,
            kappa: 1.01,
            turns: 20,
        }
    }
}

/// Fits scales, and zero points where `asymmetric`, to the weights `[rows, cols]`. `store` is how a scale is stored.
/// A block keeps what it had unless its ℓp error falls.
pub fn hqq(
    grid: &mut Grid,
    weights: &[f32],
    asymmetric: bool,
    store: &(dyn Fn(f32) -> f32 + Sync),
    options: &Options,
) {
    let blocks = grid.blocks();
    let found: Vec<(f32, i32)> = (0..grid.scales.len())
        .into_par_iter()
        .map(|at| {
            let (row, span) = (at / blocks, grid.span(at % blocks));
            let start = row * grid.cols;
            let w = &weights[start + span.start..start + span.end];
            fit(grid, at, w, asymmetric, store, options)
        })
        .collect();
    for (at, (scale, zero)) in found.into_iter().enumerate() {
        grid.scales[at] = scale;
        grid.zeros[at] = zero;
    }
}

fn fit(
    grid: &Grid,
    at: usize,
    weights: &[f32],
    asymmetric: bool,
    store: &(dyn Fn(f32) -> f32 + Sync),
    options: &Options,
) -> (f32, i32) {
    let mut one = Grid {
        cols: weights.len(),
        block: weights.len().max(1),
        scales: vec![grid.scales[at]],
        zeros: vec![grid.zeros[at]],
        levels: grid.levels.clone(),
    };
    let norm = |q: &[f32]| -> f64 {
        let terms = q.iter().zip(weights);
        terms
            .map(|(q, w)| f64::from((w - q).abs()).powf(f64::from(options.p)))
            .sum()
    };
    let mut q = one.nearest(weights);
    let mut best = (norm(&q), one.scales[0], one.zeros[0]);
    // β belongs to weights of magnitude 1.
    let size = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    if size == 0.0 {
        return (best.1, best.2);
    }
    let mut beta = options.beta;
    for _ in 0..options.turns {
        let shrunk = |(&w, &q): (&f32, &f32)| {
            let e = (w - q) / size;
            let m = e.abs();
            let kept = (m - m.max(1e-8).powf(options.p - 1.0) / beta).max(0.0);
            w - kept * e.signum() * size
        };
        let inliers: Vec<f32> = weights.iter().zip(&q).map(shrunk).collect();
        let (scale, zero) = least_squares(&one, &q, &inliers, asymmetric);
        let scale = store(scale);
        if !(scale.is_finite() && scale > 0.0) {
            break;
        }
        one.scales[0] = scale;
        one.zeros[0] = zero;
        q = one.nearest(weights);
        let error = norm(&q);
        if error < best.0 {
            best = (error, scale, zero);
        }
        beta *= options.kappa;
    }
    (best.1, best.2)
}

/// Scale and zero point for which the present codes are nearest to the wanted values.
fn least_squares(grid: &Grid, q: &[f32], wanted: &[f32], asymmetric: bool) -> (f32, i32) {
    let (scale, zero) = (grid.scales[0], grid.zeros[0]);
    let n = q.len() as f64;
    let code = |q: f32| f64::from(q / scale);
    let (mut sq, mut sqq, mut sw, mut sqw) = (0.0, 0.0, 0.0, 0.0);
    for (&q, &w) in q.iter().zip(wanted) {
        let (q, w) = (code(q), f64::from(w));
        sq += q;
        sqq += q * q;
        sw += w;
        sqw += q * w;
    }
    let Levels::Integer { qmin, qmax } = grid.levels else {
        return ((sqw / sqq) as f32, 0);
    };
    if !asymmetric {
        return ((sqw / sqq) as f32, zero);
    }
    // w = s·q + t, and t = −s·Δz.
    let determinant = n * sqq - sq * sq;
    let slope = (n * sqw - sq * sw) / determinant;
    let shift = (sw - slope * sq) / n;
    let moved = (f64::from(zero) - shift / slope).round_ties_even();
    let zero = if moved.is_finite() {
        moved as i32
    } else {
        zero
    };
    (slope as f32, zero.clamp(qmin, qmax))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::QParams;
    use crate::optimize::random::Random;

    #[test]
    fn an_outlier_does_not_set_the_scale() {
        let mut random = Random::new(2);
        let mut w: Vec<f32> = (0..128)
            .map(|_| random.unit() + random.unit() - 1.0)
            .collect();
        w[5] = 3.0;
        for asymmetric in [false, true] {
            let p = QParams {
                scale: 3.0 / 7.0,
                zero_point: 0,
                qmin: -8,
                qmax: 7,
            };
            let mut grid = Grid::blocked(128, 64, &[p, p]);
            let error = |g: &Grid| -> f64 {
                let pairs = g.nearest(&w).into_iter().zip(&w);
                pairs.map(|(q, w)| f64::from((q - w).abs()).powf(0.7)).sum()
            };
            let before = error(&grid);
            hqq(&mut grid, &w, asymmetric, &|s| s, &Options::default());
            assert!(error(&grid) < 0.9 * before, "{} {before}", error(&grid));
            assert!(grid.scales.iter().all(|s| *s > 0.0 && s.is_finite()));
            assert!(grid.zeros.iter().all(|z| (-8..8).contains(z)));
        }
    }

    #[test]
    fn zeros_and_constants_keep_a_valid_grid() {
        let p = QParams {
            scale: 1.0,
            zero_point: 0,
            qmin: -8,
            qmax: 7,
        };
        for w in [[0.0f32; 8], [0.3; 8], [f32::MIN_POSITIVE; 8]] {
            let mut grid = Grid::per_row(8, &[p]);
            hqq(&mut grid, &w, true, &|s| s, &Options::default());
            assert!(grid.scales[0].is_finite() && grid.scales[0] > 0.0);
        }
    }
}
