//! Clustering what pruning left, and how many bits each weight gets.
//!
//! Without statistics each weight gets the bits that were asked for. With them bits go where they matter: the noise of a
//! layer is `Σ(W − Ŵ)²·E[x²]` relative to `ΣW²·E[x²]`, and the bits are chosen so that the sum over the layers is least
//! while the coded size stays what equal bits would take (Lagrange multiplier, Shoham and Gersho, *Efficient bit
//! allocation for an arbitrary set of quantizers*, 1988).

use half::f16;
use onnx_quant_ir::DataType;
use onnx_quant_numerics::entropy::entropy_bits;
use onnx_quant_numerics::kmeans::{Init, KMeansError, Options, assign, kmeans};
use rayon::prelude::*;

use super::targets::Weight;

/// Bits that a weight may get.
const BITS: std::ops::RangeInclusive<u32> = 2..=8;

/// A weight after clustering.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Coded {
    pub(super) bits: u32,
    pub(super) zero: Option<u8>,
    pub(super) codebook: Vec<f32>,
    pub(super) codes: Vec<u8>,
    /// Noise of the layer relative to its output, by the statistics.
    pub(super) noise: f64,
    /// Shannon's bound of the codes, and the codebook, in bits.
    pub(super) size: f64,
}

impl Coded {
    pub(super) fn decode(&self) -> Vec<f32> {
        self.codes
            .iter()
            .map(|&c| self.codebook[usize::from(c)])
            .collect()
    }
}

/// How codebooks are searched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    pub(super) bits: u32,
    pub(super) init: Init,
    pub(super) seed: u64,
    /// Give bits to the weights by their noise.
    pub(super) allocate: bool,
}

/// Clusters one weight.
pub(super) fn cluster(
    weight: &Weight,
    keep: &[bool],
    bits: u32,
    search: Search,
) -> Result<Coded, KMeansError> {
    let pruned = keep.contains(&false);
    let kept = |at: &usize| keep[*at];
    let places: Vec<usize> = (0..keep.len()).filter(kept).collect();
    let values: Vec<f32> = places.iter().map(|&at| weight.data[at]).collect();
    let importance: Option<Vec<f32>> = weight
        .importance
        .as_ref()
        .map(|i| places.iter().map(|&at| i[at]).collect::<Vec<f32>>())
        .filter(|i| i.iter().any(|&x| x > 0.0));
    let half = weight.float == DataType::Float16;
    let options = Options {
        clusters: (1usize << bits) - usize::from(pruned),
        init: search.init,
        seed: search.seed,
        half,
        groups: 1,
    };
    let found = kmeans(&values, importance.as_deref(), &options)?;
    let mut codebook = found.codebook;
    codebook.dedup();
    if values.is_empty() {
        codebook.clear();
    }
    let mut zero = None;
    if pruned {
        // Zero has an entry of its own, which kept values do not take.
        let at = codebook.partition_point(|&c| c < 0.0);
        codebook.insert(at, 0.0);
        zero = Some(at as u8);
    }
    let mut codes = vec![zero.unwrap_or(0); keep.len()];
    for (&at, code) in places
        .iter()
        .zip(assign(&values, &without(&codebook, zero)))
    {
        codes[at] = match zero {
            Some(z) if code >= z => code + 1,
            _ => code,
        };
    }
    let entry = if half { 16.0 } else { 32.0 };
    let size = entropy_bits(&codes) + entry * codebook.len() as f64;
    let mut coded = Coded {
        bits,
        zero,
        codebook,
        codes,
        noise: 0.0,
        size,
    };
    coded.noise = noise(weight, &coded.decode());
    Ok(coded)
}

fn without(codebook: &[f32], zero: Option<u8>) -> Vec<f32> {
    let mut rest = codebook.to_vec();
    if let Some(z) = zero {
        rest.remove(usize::from(z));
    }
    rest
}

/// `Σ(W − Ŵ)²·E[x²] / ΣW²·E[x²]`.
pub(super) fn noise(weight: &Weight, decoded: &[f32]) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for (at, (&w, &d)) in weight.data.iter().zip(decoded).enumerate() {
        let x = weight.importance.as_ref().map_or(1.0, |i| f64::from(i[at]));
        let (w, d) = (f64::from(w), f64::from(d));
        error += (w - d) * (w - d) * x;
        signal += w * w * x;
    }
    if signal > 0.0 { error / signal } else { 0.0 }
}

/// Clusters all weights.
pub(super) fn all(
    weights: &[Weight],
    masks: &[Vec<bool>],
    search: Search,
) -> Result<Vec<Coded>, KMeansError> {
    if !search.allocate {
        let one = |(w, m): (&Weight, &Vec<bool>)| cluster(w, m, search.bits, search);
        return weights.par_iter().zip(masks).map(one).collect();
    }
    let candidates: Vec<Vec<Coded>> = weights
        .par_iter()
        .zip(masks)
        .map(|(w, m)| BITS.map(|bits| cluster(w, m, bits, search)).collect())
        .collect::<Result<_, _>>()?;
    let wanted = search.bits.clamp(*BITS.start(), *BITS.end());
    let budget: f64 = candidates
        .iter()
        .flatten()
        .filter(|c| c.bits == wanted)
        .map(|c| c.size)
        .sum();
    let chosen = allocate(&candidates, budget);
    Ok(candidates
        .into_iter()
        .zip(chosen)
        .map(|(mut c, at)| c.swap_remove(at))
        .collect())
}

/// For each weight the candidate, so that the sum of noises is least within the budget of bits.
fn allocate(candidates: &[Vec<Coded>], budget: f64) -> Vec<usize> {
    let choose = |price: f64| -> Vec<usize> {
        let cost = |c: &Coded| c.noise + price * c.size;
        let best = |all: &Vec<Coded>| {
            let costs = all.iter().map(cost).enumerate();
            costs
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .map_or(0, |(at, _)| at)
        };
        candidates.iter().map(best).collect()
    };
    let size = |chosen: &[usize]| -> f64 {
        candidates
            .iter()
            .zip(chosen)
            .map(|(c, &at)| c[at].size)
            .sum()
    };
    // Prices from nothing to far above what any bit is worth, on a logarithmic scale.
    let (mut low, mut high) = (-40.0f64, 20.0f64);
    if size(&choose(low.exp2())) <= budget {
        return choose(low.exp2());
    }
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if size(&choose(middle.exp2())) <= budget {
            high = middle;
        } else {
            low = middle;
        }
    }
    choose(high.exp2())
}

/// A float as it is stored.
pub(super) fn stored(x: f32, float: DataType) -> f32 {
    match float {
        DataType::Float16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}
