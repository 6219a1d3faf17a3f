//! GPTQ: columns are rounded one after the other, and each rounding's error is spread over the columns that follow, as
//! the Hessian of the layer's output error says. Coordinate descent on the same objective takes it further.
//!
//! The objective is `Σ_rows (ŵ − w) H (ŵ − w)ᵀ`, `H` the Gram matrix of the layer's inputs.
//!
//! Source: Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*, 2023,
//! algorithm 1; act-order from the authors' implementation. Coordinate descent: Nair, Suggala, *CDQuant*, 2024.

use rayon::prelude::*;

use super::grid::Grid;
use super::matrix::{
    Gram, NotPositive, abt, abt_f64, cholesky, damped, inverse_factor, subtract_piece,
};

/// Rows that one task works on.
const ROWS: usize = 64;

/// How GPTQ works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Share of the mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Columns in order of falling diagonal: those that matter most are rounded while others can still make up for it.
    pub act_order: bool,
    /// Columns between two updates of all columns that follow.
    pub lazy: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            damping: 0.01,
            act_order: true,
            lazy: 128,
        }
    }
}

/// Rounds a matrix `[rows, cols]` to the grid. The Hessian may be of lower rank (fewer samples than columns).
///
/// The result does not depend on the number of threads.
///
/// # Errors
/// [`NotPositive`] for a Hessian with values that are not finite.
pub fn gptq(
    weights: &[f32],
    hessian: &Gram,
    grid: &Grid,
    options: &Options,
) -> Result<Vec<f32>, NotPositive> {
    let cols = grid.cols;
    if cols == 0 || weights.is_empty() {
        return Ok(Vec::new());
    }
    let order = order(hessian, options.act_order);
    let grid = grid.permuted(&order);
    let factor = upper_factor(hessian, &order, options.damping)?;
    let mut out = vec![0.0; weights.len()];
    out.par_chunks_mut(ROWS * cols)
        .zip(weights.par_chunks(ROWS * cols))
        .enumerate()
        .for_each(|(at, (out, weights))| {
            let rows = weights.len() / cols;
            let turned: Vec<f32> = weights
                .chunks_exact(cols)
                .flat_map(|w| order.iter().map(|&c| w[c]))
                .collect();
            let grid = grid.slice(at * ROWS..at * ROWS + rows);
            let done = round_rows(turned, &factor, &grid, options.lazy.max(1));
            for (out, done) in out.chunks_exact_mut(cols).zip(done.chunks_exact(cols)) {
                order.iter().zip(done).for_each(|(&c, &q)| out[c] = q);
            }
        });
    Ok(out)
}

fn order(hessian: &Gram, act_order: bool) -> Vec<usize> {
    let diagonal = hessian.diagonal();
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    if act_order {
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
    }
    order
}

/// The upper Cholesky factor of the inverse of the damped Hessian, row-major, its columns in `order`: that of `H⁻¹ =
/// Uᵀ U`. The factor of `H` in reverse order is inverted and turned back, which saves the inverse itself.
fn upper_factor(hessian: &Gram, order: &[usize], damping: f64) -> Result<Vec<f32>, NotPositive> {
    let n = order.len();
    let mut share = damping;
    // With few samples the smallest pivots drown in rounding errors: more damping, up to the mean diagonal.
    let lower = loop {
        let plain = damped(hessian, share);
        let mut turned = Vec::with_capacity(n * n);
        for &i in order.iter().rev() {
            let row = &plain[i * n..(i + 1) * n];
            turned.extend(order.iter().rev().map(|&j| row[j]));
        }
        match cholesky(&turned, n) {
            Ok(lower) => break lower,
            Err(e) if share >= 1.0 => return Err(e),
            Err(_) => share = (share * 10.0).max(1e-6),
        }
    };
    let inverse = inverse_factor(&lower, n);
    let mut upper = vec![0.0f32; n * n];
    for i in 0..n {
        for j in i..n {
            upper[i * n + j] = inverse[(n - 1 - j) * n + n - 1 - i] as f32;
        }
    }
    let valid = upper.iter().all(|x| x.is_finite());
    if valid { Ok(upper) } else { Err(NotPositive) }
}

fn round_rows(mut w: Vec<f32>, factor: &[f32], grid: &Grid, lazy: usize) -> Vec<f32> {
    let n = grid.cols;
    let rows = w.len() / n;
    let mut out = vec![0.0f32; w.len()];
    let mut start = 0;
    while start < n {
        let end = (start + lazy).min(n);
        let mut errors = vec![0.0f32; rows * (end - start)];
        for row in 0..rows {
            let w = &mut w[row * n..(row + 1) * n];
            for col in start..end {
                let q = grid.cell(row, col).nearest(w[col]);
                out[row * n + col] = q;
                let error = (w[col] - q) / factor[col * n + col];
                errors[row * (end - start) + col - start] = error;
                let rest = &factor[col * n + col + 1..col * n + end];
                for (w, f) in w[col + 1..end].iter_mut().zip(rest) {
                    *w -= error * f;
                }
            }
        }
        if end < n {
            subtract_piece(&mut w, &errors, end - start, factor, n, (start, end));
        }
        start = end;
    }
    out
}

/// Moves single weights by one grid step as long as that lowers the objective, at most `sweeps` times through every
/// row. `rounded` holds values of the grid and is changed in place; the objective never rises.
pub fn descend(rounded: &mut [f32], weights: &[f32], hessian: &Gram, grid: &Grid, sweeps: usize) {
    let n = grid.cols;
    if n == 0 {
        return;
    }
    let h: Vec<f32> = hessian.sum.iter().map(|&x| x as f32).collect();
    rounded
        .par_chunks_mut(n)
        .zip(weights.par_chunks(n))
        .enumerate()
        .for_each(|(row, (q, w))| {
            let e: Vec<f32> = q.iter().zip(w).map(|(q, w)| q - w).collect();
            let mut g = vec![0.0f32; n];
            for (h, &e) in h.chunks_exact(n).zip(&e) {
                g.iter_mut().zip(h).for_each(|(g, h)| *g += e * h);
            }
            for _ in 0..sweeps {
                if !sweep(row, q, &mut g, &h, grid) {
                    break;
                }
            }
        });
}

fn sweep(row: usize, q: &mut [f32], g: &mut [f32], h: &[f32], grid: &Grid) -> bool {
    let n = grid.cols;
    let mut moved = false;
    for c in 0..n {
        let (down, up) = grid.cell(row, c).steps(q[c]);
        let gain = |to: f32| {
            let d = to - q[c];
            d * (2.0 * g[c] + d * h[c * n + c])
        };
        let to = if gain(up) < gain(down) { up } else { down };
        // A gain below the rounding errors of `g` is none.
        let d = to - q[c];
        if d == 0.0 || gain(to) >= -1e-4 * d * d * h[c * n + c] {
            continue;
        }
        q[c] = to;
        moved = true;
        let h = &h[c * n..(c + 1) * n];
        g.iter_mut().zip(h).for_each(|(g, h)| *g += d * h);
    }
    moved
}

/// The weights that give the float layer's result from the inputs that the quantized layers before give:
/// `argmin ‖W x − W′ x̂‖²`, damped towards `W`. `gram` is `Σ x̂ x̂ᵀ`, `cross` is `Σ x x̂ᵀ`.
///
/// # Errors
/// [`NotPositive`] for sums that are not finite.
pub fn retarget(
    weights: &[f32],
    gram: &Gram,
    cross: &Gram,
    damping: f64,
) -> Result<Vec<f32>, NotPositive> {
    let n = gram.size.0;
    if n == 0 || weights.is_empty() {
        return Ok(weights.to_vec());
    }
    let left = damped(gram, damping);
    let diagonal = gram.diagonal();
    // W′ = W (C + D) (G + D)⁻¹, C = Σ x x̂ᵀ; with G + D = L Lᵀ the inverse is L⁻ᵀ L⁻¹.
    let mut right = cross.sum.clone();
    for i in 0..n {
        right[i * n + i] += left[i * n + i] - diagonal[i];
    }
    let inverse = inverse_factor(&cholesky(&left, n)?, n);
    let columns: Vec<f64> = (0..n * n).map(|i| inverse[i % n * n + i / n]).collect();
    // (C + D) L⁻ᵀ, then times L⁻¹; the rows of `columns` are those of L⁻¹.
    let half = abt_f64(&right, &columns, n);
    let map = abt_f64(&half, &inverse, n);
    let map: Vec<f32> = (0..n * n).map(|i| map[i % n * n + i / n] as f32).collect();
    let done = abt(weights, &map, n);
    let valid = done.iter().all(|x| x.is_finite());
    if valid { Ok(done) } else { Err(NotPositive) }
}

#[cfg(test)]
mod tests;
