//! Scales of weights and of activations by the error of the layer's output.
//!
//! * sequential MSE: for each block of a weight the scale, among fractions of the present one, with the least error of
//!   the output on the layer's (already quantized) inputs; without inputs, of the weight itself;
//! * AWQ: a factor for each *input* channel, `s = mean|x|^α`, that the weight takes and the input gives; α is searched;
//! * SmoothQuant: the same with `s = max|x|^α / max|w|^(1−α)`, so that the activation becomes easier to quantize.
//!
//! Source: Lin et al., *AWQ*, 2024, section 3.2 and appendix (clip search); Xiao et al., *SmoothQuant*, 2023,
//! equation 4; the sequential search is that of Qualcomm's AIMET ("SeqMSE").

use rayon::prelude::*;

use super::grid::Grid;
use super::matrix::Gram;

/// Fractions of the scale that are tried: 1.25, 1.225 … 0.35.
pub fn fractions() -> Vec<f32> {
    (0..=36).map(|i| 1.25 - 0.025 * i as f32).collect()
}

/// Sets each scale to the fraction of itself with the least error. `gram` is that of the inputs (`[cols, cols]`), of
/// which the part within a block counts; without it every weight counts the same. Zero points stay, so that both ends
/// of the range shrink alike. `store` is how a scale is stored.
pub fn search_scales(
    grid: &mut Grid,
    weights: &[f32],
    gram: Option<&Gram>,
    store: &(dyn Fn(f32) -> f32 + Sync),
) {
    let blocks = grid.blocks();
    let cols = grid.cols;
    // The Gram matrix of each block, contiguous.
    let parts: Vec<Option<Vec<f32>>> = (0..blocks)
        .map(|b| {
            let gram = gram?;
            let span = grid.span(b);
            let row = |i: usize| gram.sum[i * cols + span.start..i * cols + span.end].iter();
            Some(span.clone().flat_map(row).map(|&x| x as f32).collect())
        })
        .collect();
    let found: Vec<f32> = (0..grid.scales.len())
        .into_par_iter()
        .map(|at| {
            let (row, span) = (at / blocks, grid.span(at % blocks));
            let w = &weights[row * cols + span.start..row * cols + span.end];
            best_scale(grid, at, w, parts[at % blocks].as_deref(), store)
        })
        .collect();
    grid.scales = found;
}

/// Sets the one scale that all rows share to the fraction of itself with the least error of all rows. `grams` holds the
/// inputs of each group of rows, in the order of the rows.
pub fn search_shared_scale(
    grid: &mut Grid,
    weights: &[f32],
    grams: &[Gram],
    store: &(dyn Fn(f32) -> f32 + Sync),
) {
    let Some(&first) = grid.scales.first() else {
        return;
    };
    let size = weights.len() / grams.len().max(1);
    if size == 0 {
        return;
    }
    let error = |scale: f32| -> f64 {
        let trial = Grid {
            scales: vec![scale; grid.scales.len()],
            ..grid.clone()
        };
        let pairs = trial.nearest(weights).into_iter().zip(weights);
        let e: Vec<f32> = pairs.map(|(q, w)| q - w).collect();
        let groups = e.chunks(size).zip(grams);
        groups
            .map(|(e, g)| g.quadratic(e).iter().sum::<f64>())
            .sum()
    };
    let tried: Vec<(f64, f32)> = fractions()
        .into_par_iter()
        .map(|f| store(first * f))
        .filter(|s| s.is_finite() && *s > 0.0)
        .map(|s| (error(s), s))
        .collect();
    let mut best = (f64::INFINITY, first);
    for (e, s) in tried {
        if e < best.0 {
            best = (e, s);
        }
    }
    grid.scales.fill(best.1);
}

fn best_scale(
    grid: &Grid,
    at: usize,
    weights: &[f32],
    gram: Option<&[f32]>,
    store: &(dyn Fn(f32) -> f32 + Sync),
) -> f32 {
    let n = weights.len();
    let mut one = Grid {
        cols: n,
        block: n.max(1),
        scales: vec![0.0],
        zeros: vec![grid.zeros[at]],
        levels: grid.levels.clone(),
    };
    let mut best = (f64::INFINITY, grid.scales[at]);
    let mut e = vec![0.0f32; n];
    for fraction in fractions() {
        let scale = store(grid.scales[at] * fraction);
        if !(scale.is_finite() && scale > 0.0) {
            continue;
        }
        one.scales[0] = scale;
        let cell = one.cell_of(0);
        for (e, &w) in e.iter_mut().zip(weights) {
            *e = cell.nearest(w) - w;
        }
        let error = match gram {
            None => e.iter().map(|&e| f64::from(e) * f64::from(e)).sum(),
            Some(gram) => quadratic(&e, gram),
        };
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

fn quadratic(e: &[f32], gram: &[f32]) -> f64 {
    let n = e.len();
    let row = |(i, &x): (usize, &f32)| {
        let g = &gram[i * n..(i + 1) * n];
        f64::from(x) * f64::from(dot(g, e))
    };
    e.iter().enumerate().map(row).sum()
}

/// Eight sums at once, so that the loop vectorizes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// SmoothQuant's factor of each input channel, `max|x|^α / max|w|^(1−α)`; 1 where one of the two is 0. The weight is
/// multiplied by it and the activation divided.
pub fn smooth_factors(inputs: &[f32], weights: &[f32], alpha: f32) -> Vec<f32> {
    let factor = |(&x, &w): (&f32, &f32)| {
        let s = x.powf(alpha) / w.powf(1.0 - alpha);
        if x > 0.0 && w > 0.0 && s.is_normal() {
            s.clamp(1e-4, 1e4)
        } else {
            1.0
        }
    };
    inputs.iter().zip(weights).map(factor).collect()
}

/// AWQ's factor of each input channel, `mean|x|^α`, divided by the geometric mean of the largest and the smallest.
pub fn awq_factors(mean_magnitudes: &[f32], alpha: f32) -> Vec<f32> {
    let raw: Vec<f32> = mean_magnitudes
        .iter()
        .map(|x| x.max(1e-4).powf(alpha))
        .collect();
    let low = raw.iter().fold(f32::INFINITY, |m, &x| m.min(x));
    let high = raw.iter().fold(0.0f32, |m, &x| m.max(x));
    let middle = (low * high).sqrt();
    let factor = |x: &f32| {
        let s = x / middle;
        if s.is_normal() {
            s.clamp(1e-4, 1e4)
        } else {
            1.0
        }
    };
    raw.iter().map(factor).collect()
}

/// `W · diag(s)` of a matrix with `s.len()` columns.
pub fn scale_columns(weights: &[f32], s: &[f32]) -> Vec<f32> {
    let rows = weights.chunks_exact(s.len().max(1));
    rows.flat_map(|row| row.iter().zip(s).map(|(w, s)| w * s))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::QParams;
    use crate::optimize::random::Random;

    fn int(bits: u32, scale: f32) -> QParams {
        let top = (1 << (bits - 1)) - 1;
        QParams {
            scale,
            zero_point: 0,
            qmin: -top - 1,
            qmax: top,
        }
    }

    #[test]
    fn the_scale_serves_the_inputs_that_count() {
        let mut random = Random::new(3);
        let cols = 32;
        let mut w: Vec<f32> = (0..cols).map(|_| random.unit() - 0.5).collect();
        w[7] = 4.0;
        // The input of the outlier is nearly always 0.
        let x: Vec<f32> = (0..cols * 200)
            .map(|i| (random.unit() - 0.5) * if i % cols == 7 { 1e-3 } else { 1.0 })
            .collect();
        let mut gram = Gram::new(cols, cols);
        gram.add(&x, &x);
        let mut grid = Grid::per_row(cols, &[int(4, 4.0 / 7.0)]);
        let mut plain = grid.clone();
        search_scales(&mut grid, &w, Some(&gram), &|s| s);
        search_scales(&mut plain, &w, None, &|s| s);
        assert!(grid.scales[0] < 0.5 * plain.scales[0], "{grid:?} {plain:?}");
        let error = |g: &Grid| {
            let e: Vec<f32> = g.nearest(&w).iter().zip(&w).map(|(q, w)| q - w).collect();
            gram.quadratic(&e)[0]
        };
        assert!(error(&grid) < 0.5 * error(&plain));
    }

    #[test]
    fn factors_balance_and_are_always_valid() {
        let s = smooth_factors(&[100.0, 1.0, 0.0, 1e30], &[1.0, 4.0, 1.0, 0.0], 0.5);
        assert_eq!(s, [10.0, 0.5, 1.0, 1.0]);
        assert_eq!(awq_factors(&[4.0, 1.0, 0.25], 0.5), [2.0, 1.0, 0.5]);
        assert_eq!(awq_factors(&[4.0, 1.0], 0.0), [1.0, 1.0]);
        assert_eq!(
            scale_columns(&[1.0, 2.0, 3.0, 4.0], &[2.0, 0.5]),
            [2.0, 1.0, 6.0, 2.0]
        );
    }

    #[test]
    fn dots() {
        let a: Vec<f32> = (0..19).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..19).map(|i| (i * i) as f32).sum::<f32>());
    }
}
