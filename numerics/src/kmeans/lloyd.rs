//! Lloyd's iteration, and the codebooks it starts from.

use super::atoms::{Atoms, Sorted};
use crate::random::uniform;

/// Iterations on atoms at most; each takes `k` binary searches.
const ITERATIONS: usize = 300;
/// Iterations on the values themselves at most; each takes a pass over them.
const POLISH: usize = 6;

/// Iterates until no value changes its entry. Entries that lose all their values are dropped.
pub(super) fn refine(atoms: &Atoms, mut codebook: Vec<f32>) -> Vec<f32> {
    let mut before = Vec::new();
    for _ in 0..ITERATIONS {
        codebook.sort_by(f32::total_cmp);
        let mut starts = vec![0];
        starts.extend(codebook.windows(2).map(|w| {
            let t = super::threshold(w[0], w[1]);
            atoms.first.partition_point(|&x| x <= t)
        }));
        if starts == before {
            break;
        }
        codebook = atoms.means(&starts);
        before = starts;
    }
    codebook
}

/// A few iterations on the values themselves.
pub(super) fn polish(sorted: &Sorted, mut codebook: Vec<f32>) -> Vec<f32> {
    let mut before = Vec::new();
    for _ in 0..POLISH {
        let ends = sorted.ends(&codebook);
        if ends == before {
            break;
        }
        let mut start = 0;
        let mut means = Vec::with_capacity(codebook.len());
        for &end in &ends {
            let weight = sorted.sum(start..end, |_| 1.0);
            if weight > 0.0 {
                means.push((sorted.sum(start..end, |x| x) / weight) as f32);
            }
            start = end;
        }
        codebook = means;
        before = ends;
    }
    codebook
}

/// The linear starts: evenly over the range, and the grids of asymmetric and of symmetric rounding with `k` codes.
pub(super) fn grids(atoms: &Atoms, k: usize) -> Vec<Vec<f32>> {
    let (low, high) = atoms.range();
    let (low, high) = (f64::from(low), f64::from(high));
    let even = |low: f64, high: f64, k: usize| -> Vec<f32> {
        let step = (high - low) / (k.max(2) - 1) as f64;
        (0..k).map(|i| (low + step * i as f64) as f32).collect()
    };
    if k < 2 {
        return vec![vec![((low + high) / 2.0) as f32]];
    }
    let mut all = vec![even(low, high, k)];
    if k > 2 {
        let most = low.abs().max(high.abs());
        all.push(even(-most, most, k - 1));
        all.push(even(low.min(0.0), high.max(0.0), k));
    }
    all
}

/// Entries that halve, quarter … the weight: dense regions get more.
pub(super) fn density(atoms: &Atoms, k: usize) -> Vec<f32> {
    let share = |i: usize| atoms.total() * (i as f64 + 0.5) / k as f64;
    let mut entries: Vec<f32> = (0..k)
        .map(|i| atoms.first[atoms.at_weight(share(i))])
        .collect();
    entries.dedup();
    entries
}

/// Values drawn by their weight.
pub(super) fn random(atoms: &Atoms, k: usize, seed: u64) -> Vec<f32> {
    let mut entries: Vec<f32> = (0..k as u64)
        .map(|i| atoms.first[atoms.at_weight(atoms.total() * uniform(seed, i))])
        .collect();
    entries.sort_by(f32::total_cmp);
    entries.dedup();
    entries
}
