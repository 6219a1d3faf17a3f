//! The exact optimum of one-dimensional k-means, by dynamic programming.
//!
//! `D[m][j]`, the least error of the first `j` values in `m` clusters, is `min over i of D[m − 1][i] + cost(i, j)`. The best
//! `i` does not fall as `j` rises (the cost satisfies the quadrangle inequality), so that divide and conquer finds a row
//! in `n log n` steps.
//!
//! Source: Wang and Song, *Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming*, 2011;
//! Grønlund et al., *Fast exact k-means, k-medians and Bregman divergence clustering in 1D*, 2017.

use super::atoms::{Atoms, Sorted};
use super::{KMeansError, MAX_CLUSTERS};

/// The least (weighted) squared error that a codebook of `clusters` entries can have, by the same dynamic programme but
/// without joining values, whatever their number.
///
/// # Errors
/// As [`super::kmeans`].
pub fn least_error(
    values: &[f32],
    importance: Option<&[f32]>,
    clusters: usize,
) -> Result<f64, KMeansError> {
    if !(1..=MAX_CLUSTERS).contains(&clusters) {
        return Err(KMeansError::Clusters(clusters));
    }
    let sorted = Sorted::new(values, importance)?;
    let atoms = Atoms::new(&sorted, values.len().max(2));
    let starts = boundaries(&atoms, clusters);
    let ends = starts.iter().skip(1).copied().chain([atoms.len()]);
    let runs = starts.iter().copied().zip(ends);
    Ok(runs.map(|(a, b)| atoms.cost(a, b)).sum())
}

/// The atoms at which the clusters of an optimal codebook start, the first being 0.
pub(super) fn boundaries(atoms: &Atoms, k: usize) -> Vec<usize> {
    let n = atoms.len();
    let k = k.min(n);
    if k == 0 {
        return Vec::new();
    }
    let mut row: Vec<f64> = (0..=n).map(|j| atoms.cost(0, j)).collect();
    let mut splits: Vec<Vec<u32>> = Vec::with_capacity(k.saturating_sub(1));
    for m in 1..k {
        let mut next = vec![f64::INFINITY; n + 1];
        let mut split = vec![0u32; n + 1];
        fill(atoms, &row, (m + 1, n), (m, n), &mut next, &mut split);
        splits.push(split);
        row = next;
    }
    let mut starts = vec![0; k];
    let mut end = n;
    for m in (1..k).rev() {
        end = splits[m - 1][end] as usize;
        starts[m] = end;
    }
    starts
}

/// Fills `next[j]` for `j` in `low..=high`, the best split of each lying in `from..=to`.
fn fill(
    atoms: &Atoms,
    row: &[f64],
    (low, high): (usize, usize),
    (from, to): (usize, usize),
    next: &mut [f64],
    split: &mut [u32],
) {
    if low > high {
        return;
    }
    let j = usize::midpoint(low, high);
    let (mut least, mut best) = (f64::INFINITY, from);
    for (i, &before) in row.iter().enumerate().take(to.min(j - 1) + 1).skip(from) {
        let error = before + atoms.cost(i, j);
        if error < least {
            (least, best) = (error, i);
        }
    }
    next[j] = least;
    split[j] = best as u32;
    fill(atoms, row, (low, j - 1), (from, best), next, split);
    fill(atoms, row, (j + 1, high), (best, to), next, split);
}
