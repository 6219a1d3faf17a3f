//! Parts of a model as one unit, residual blocks and the two halves of a transformer block above all: the rounding of their
//! layers is learned together from what the part computes.

mod build;
mod operators;
mod samples;

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::optimize::adaround;
use onnx_quant_numerics::optimize::block::{Block, Data, Learning, State};
use onnx_quant_numerics::optimize::grid::Grid;
use onnx_quant_numerics::scaling::ScaleKind;
use onnx_quant_passes::layer::Matrix;

use super::Options;
use super::methods::Method;

pub(super) use build::find;
pub(super) use samples::{numbers, samples};

/// The most samples in a step.
const BATCH: usize = 16;
/// Positions or tokens in a step that show a layer enough: samples of large images are fewer.
const PLACES: usize = 16_384;
/// Multiplications that a block may take to learn: samples in a step, and then steps, are fewer where they would be more.
const WORK: usize = 250_000_000_000;
/// Fewer steps than this are not worth it.
const STEPS: usize = 200;

/// A layer that a block may learn: its node, its matrix and the grid that was chosen for it.
pub(super) struct Member {
    pub(super) task: usize,
    pub(super) node: NodeId,
    pub(super) matrix: Matrix,
    pub(super) grid: Grid,
    /// Float weights, as the matrix.
    pub(super) weights: Vec<f32>,
    /// What was chosen for the layer alone.
    pub(super) values: Vec<f32>,
    /// How its scales are stored, where they may be chosen.
    pub(super) free: Option<ScaleKind>,
    /// Its bias may be changed.
    pub(super) free_bias: bool,
}

/// A block of the graph.
pub(super) struct Found {
    block: Block,
    /// What the block reads, and what it makes.
    inputs: Vec<ValueId>,
    output: ValueId,
    /// Their elements for one sample; the result comes last.
    sizes: Vec<usize>,
    /// For each layer of the block its place among the members.
    layers: Vec<usize>,
    /// Positions of a result `[samples, positions, channels]`.
    positions: Option<usize>,
    /// Neighbours of the result that a pooling behind it averages; 1 where there is none.
    pool: usize,
    /// For each quantizer the value that is quantized and the initializer of its scale.
    quantizers: Vec<(ValueId, ValueId)>,
}

/// What one layer of a block learned.
pub(super) struct LearnedLayer {
    /// Its place among the members.
    pub(super) member: usize,
    /// Values on the grid.
    pub(super) values: Vec<f32>,
    /// The grid.
    pub(super) grid: Grid,
    /// Added to the bias.
    pub(super) delta: Vec<f32>,
}

/// What a block learned.
pub(super) struct Learned {
    pub(super) layers: Vec<LearnedLayer>,
    /// Activations with new scales: the value that is quantized, the initializer of the scale, the scale.
    pub(super) scales: Vec<(ValueId, ValueId, f32)>,
    /// Whether held-out samples say that it is better than its layers learned one by one.
    pub(super) better: bool,
}

/// Where a block between two values of the float model really begins and ends: a layout that is changed before all of it, and
/// what moves, scales or pools its result, stay outside; and whether a mean follows.
pub(super) fn inside(
    float: &Model,
    (mut first, mut last): (ValueId, ValueId),
) -> (ValueId, ValueId, bool) {
    let moves = |node: NodeId| matches!(float.node(node).op_type(), "Transpose" | "Identity");
    while let [(node, 0)] = float.consumers(first).as_slice()
        && moves(*node)
        && first != last
        && let Some(next) = float.output(*node, 0)
    {
        first = next;
    }
    let pools = [
        "Reshape",
        "Flatten",
        "Squeeze",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
    ];
    let scales = |node: NodeId| {
        float.node(node).op_type() == "Mul" && float.input_constant(node, 1).is_some()
    };
    while let Some((node, 0)) = float.producer(last)
        && (moves(node) || scales(node) || pools.contains(&float.node(node).op_type()))
        && first != last
        && let Some(before) = float.input(node, 0)
    {
        last = before;
    }
    let means = ["AveragePool", "GlobalAveragePool", "ReduceMean"];
    let mut readers = float.consumers(last).into_iter();
    let pooled = readers.any(|(n, _)| means.contains(&float.node(n).op_type()));
    (first, last, pooled)
}

/// Learns a block, from what was chosen for its layers one by one.
///
/// # Errors
/// Why it cannot be learned in reasonable time.
pub(super) fn learn(
    found: &Found,
    members: &[Member],
    [train, held]: &[Data; 2],
    options: &Options,
) -> Result<Learned, String> {
    let judge = if held.inputs.is_empty() { train } else { held };
    let block = &found.block;
    let alone = found.layers.iter().map(|&m| members[m].values.clone());
    let alone: Vec<Vec<f32>> = alone.collect();
    let judged = |state: &State| {
        let pooled = block.pooled_error(state, judge, found.pool);
        (block.error(state, judge), pooled)
    };
    let first = judged(&block.state(alone.clone()));
    let Pace { batch, iterations } = pace(block.work(), block.places(), options.iterations)?;
    let learning = Learning {
        rounding: adaround::Options {
            iterations,
            batch,
            ..adaround::Options::default()
        },
        steps: options.methods.has(Method::LearnedSteps),
        drop: options.methods.has(Method::Qdrop),
        seed: options.seed,
    };
    let mut state = block.reconstruct(train, &learning);
    let layers = (0..found.layers.len())
        .map(|at| stored(found, members, &mut state, at))
        .collect();
    let after = judged(&state);
    let quantizers = state.scales.iter().zip(&block.quantizers);
    let moved = quantizers
        .zip(&found.quantizers)
        .filter(|((_, q), _)| q.learned && learning.steps);
    Ok(Learned {
        layers,
        scales: moved
            .map(|((&s, _), &(value, init))| (value, init, s))
            .collect(),
        better: after.0 < first.0 && after.1 < first.1,
    })
}

/// Samples in a step, and steps.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    batch: usize,
    iterations: usize,
}

/// The pace of a block that takes `work` multiplications forward and about three times as many with the gradients, and
/// whose layers are used at so many places of a sample.
fn pace(work: usize, places: usize, iterations: usize) -> Result<Pace, String> {
    let sample = work.saturating_mul(3).max(1);
    let affordable = WORK / sample;
    if affordable < STEPS.min(iterations) {
        return Err(format!(
            "one sample takes {} million multiplications, and {STEPS} steps are more than a block may take",
            work / 1_000_000
        ));
    }
    Ok(Pace {
        batch: (affordable / iterations.max(1))
            .min(PLACES / places.max(1))
            .clamp(1, BATCH),
        iterations: iterations.min(affordable),
    })
}

/// What a layer learned, its scales as they are stored; the state gets the same values.
fn stored(found: &Found, members: &[Member], state: &mut State, at: usize) -> LearnedLayer {
    let layer = &found.block.layers[at];
    let mut grid = layer.grid.clone();
    if let Some(kind) = members[found.layers[at]].free {
        let factors = &mut state.factors[at];
        for (scale, factor) in grid.scales.iter_mut().zip(factors.iter_mut()) {
            let learned = kind.stored(*scale * *factor);
            (*scale, *factor) = (learned, learned / *scale);
        }
        // Codes stay: the learned values are nearest to their own on the grid that is stored.
        state.weights[at] = grid.nearest(&state.weights[at]);
    }
    let pairs = state.biases[at].iter().zip(&layer.bias);
    LearnedLayer {
        member: found.layers[at],
        values: state.weights[at].clone(),
        grid,
        delta: pairs.map(|(learned, first)| learned - first).collect(),
    }
}

#[cfg(test)]
mod tests;
