//! One-dimensional k-means: the codebook of least squared error, exact or by Lloyd's iteration.
//!
//! Values are sorted once. In one dimension the clusters of an optimal codebook are runs of sorted values, so that with
//! prefix sums the cost of any run takes constant time: [`exact`] finds the optimum by dynamic programming, and a step of
//! Lloyd's iteration takes `k` binary searches. Where there are more than [`ATOMS`] different values, neighbouring ones
//! are joined into atoms for the search, and the result is refined on the values themselves.
//!
//! Whatever the method, the result is compared with codebooks that start from the linear grid, and the best is taken: a
//! codebook is never worse than symmetric or asymmetric rounding to as many codes over the extremes.
//!
//! Source: Lloyd, *Least squares quantization in PCM*, 1982; Wang and Song, *Ckmeans.1d.dp*, 2011; Han et al.,
//! *Deep compression*, 2016, section 3 (initialisations).

mod atoms;
pub mod exact;
mod lloyd;
#[cfg(test)]
mod tests;

use half::f16;
use rayon::prelude::*;
use thiserror::Error;

use crate::format::{FormatError, lookup};
use atoms::{Atoms, Sorted};

/// Atoms that a search works on at most.
pub const ATOMS: usize = 1 << 16;
/// Steps of the dynamic programme that one tensor may take; above it Lloyd's iteration takes its place.
const EXACT_STEPS: u64 = 1 << 28;
/// Largest codebook: codes have 8 bits.
const MAX_CLUSTERS: usize = 256;
/// Values that one task assigns.
const TASK: usize = 1 << 16;

/// Where the search for a codebook starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Init {
    /// The optimum by dynamic programming where its cost is bearable, else the best of the linear and density starts.
    #[default]
    Optimal,
    /// Evenly over the range.
    Linear,
    /// Evenly over the sorted values, so that dense regions get more entries.
    Density,
    /// Values drawn by the seed.
    Random,
}

const INITS: [(&str, Init); 4] = [
    ("optimal", Init::Optimal),
    ("linear", Init::Linear),
    ("density", Init::Density),
    ("random", Init::Random),
];

impl std::fmt::Display for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(INITS[*self as usize].0)
    }
}

impl std::str::FromStr for Init {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let names = INITS.iter().map(|(name, _)| *name);
        lookup("k-means initialisation", text, names).map(|at| INITS[at].1)
    }
}

/// How a codebook is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Entries of the codebook, 1 to 256.
    pub clusters: usize,
    /// Where the search starts.
    pub init: Init,
    /// Seed of the random start.
    pub seed: u64,
    /// Entries are rounded to FP16, and values are assigned to the rounded entries.
    pub half: bool,
    /// Groups that are searched with these options: they share the budget of the dynamic programme.
    pub groups: usize,
}

impl Options {
    /// The default search for a codebook of `2^bits` FP32 entries.
    pub fn of_bits(bits: u32) -> Self {
        Self {
            clusters: 1 << bits.min(8),
            init: Init::Optimal,
            seed: 0,
            half: false,
            groups: 1,
        }
    }
}

/// A codebook and the entry of every value.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// The entries, ascending; entries that nothing uses repeat the last one that is used.
    pub codebook: Vec<f32>,
    /// For each value the index of its entry.
    pub codes: Vec<u8>,
}

impl Clusters {
    /// Values as the codebook gives them back.
    pub fn decode(&self) -> Vec<f32> {
        self.codes
            .iter()
            .map(|&c| self.codebook[usize::from(c)])
            .collect()
    }
}

/// Why there is no codebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KMeansError {
    /// A value is NaN or infinite.
    #[error("value {0} is not finite")]
    NotFinite(usize),
    /// A weight is negative, NaN or infinite, or all are zero.
    #[error("the importance of values must be finite, not negative, and not all zero")]
    Weights,
    /// Weights and values differ in number.
    #[error("{weights} importances for {values} values")]
    Length {
        /// Values given.
        values: usize,
        /// Weights given.
        weights: usize,
    },
    /// The number of clusters is not 1 to 256.
    #[error("{0} clusters: a codebook has 1 to 256 entries")]
    Clusters(usize),
}

/// Finds the codebook of least (weighted) squared error. `importance` holds one weight for each value.
///
/// # Errors
/// Values or weights that are not finite, or a number of clusters that is not 1 to 256.
pub fn kmeans(
    values: &[f32],
    importance: Option<&[f32]>,
    options: &Options,
) -> Result<Clusters, KMeansError> {
    let k = options.clusters;
    if !(1..=MAX_CLUSTERS).contains(&k) {
        return Err(KMeansError::Clusters(k));
    }
    let sorted = Sorted::new(values, importance)?;
    if values.is_empty() {
        return Ok(Clusters {
            codebook: vec![0.0; k],
            codes: Vec::new(),
        });
    }
    let atoms = Atoms::new(&sorted, ATOMS.min(search_atoms(options)));
    let round = |mut c: Vec<f32>| {
        if options.half {
            let half = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32();
            c.iter_mut().for_each(|x| *x = half(*x));
        }
        c.dedup_by(|a, b| a == b);
        c
    };
    let mut best: Option<(f64, Vec<f32>)> = None;
    for start in starts(&atoms, options) {
        let searched = lloyd::refine(&atoms, start);
        let refined = match atoms.exact() {
            true => searched,
            false => lloyd::polish(&sorted, searched),
        };
        let codebook = round(refined);
        let error = sorted.error(&codebook);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, codebook));
        }
    }
    let mut codebook = best.map_or_else(|| vec![0.0], |(_, c)| c);
    let codes = assign(values, &codebook);
    let last = codebook.last().copied().unwrap_or(0.0);
    codebook.resize(k, last);
    Ok(Clusters { codebook, codes })
}

/// Atoms that are worth searching: many for one tensor, fewer where there are many groups.
fn search_atoms(options: &Options) -> usize {
    match options.groups {
        0..=16 => ATOMS,
        _ => ATOMS / 8,
    }
}

/// The codebooks that a search starts from.
fn starts(atoms: &Atoms, options: &Options) -> Vec<Vec<f32>> {
    let k = options.clusters;
    let mut starts = lloyd::grids(atoms, k);
    match options.init {
        Init::Optimal if exact_steps(atoms.len(), k, options.groups) <= EXACT_STEPS => {
            starts.insert(0, atoms.means(&exact::boundaries(atoms, k)));
        }
        Init::Optimal => starts.push(lloyd::density(atoms, k)),
        Init::Linear => {}
        Init::Density => starts.push(lloyd::density(atoms, k)),
        Init::Random => starts.push(lloyd::random(atoms, k, options.seed)),
    }
    starts
}

fn exact_steps(atoms: usize, k: usize, groups: usize) -> u64 {
    let log = u64::from(usize::BITS - atoms.leading_zeros());
    (atoms as u64 * log)
        .saturating_mul(k as u64)
        .saturating_mul(groups as u64)
}

/// The entry nearest to each value; of two that are equally near the lower one. `codebook` is ascending.
pub fn assign(values: &[f32], codebook: &[f32]) -> Vec<u8> {
    let thresholds: Vec<f32> = codebook.windows(2).map(|w| threshold(w[0], w[1])).collect();
    let mut codes = vec![0; values.len()];
    codes
        .par_chunks_mut(TASK)
        .zip(values.par_chunks(TASK))
        .for_each(|(codes, values)| {
            if thresholds.len() <= 15 {
                for (code, &x) in codes.iter_mut().zip(values) {
                    *code = thresholds.iter().map(|&t| u8::from(x > t)).sum();
                }
            } else {
                for (code, &x) in codes.iter_mut().zip(values) {
                    *code = thresholds.partition_point(|&t| x > t) as u8;
                }
            }
        });
    codes
}

/// The largest value that is nearer to `low` than to `high`, or as near.
fn threshold(low: f32, high: f32) -> f32 {
    let middle = f64::midpoint(f64::from(low), f64::from(high));
    let rounded = middle as f32;
    if f64::from(rounded) > middle {
        rounded.next_down()
    } else {
        rounded
    }
}
