//! Block reconstruction: the rounding of several layers, and the steps of the activations between them, learned together
//! from what the whole block computes.
//!
//! A block is a short program over values: linear layers (convolutions and matrix products), activations, quantizers, and
//! the operators of [`ops`] that stand between the layers of a transformer. Its gradient is written out by hand over the
//! crate's own kernels: forward and backward together take three products a layer, as many as any framework needs.
//!
//! Source: Li et al., *BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction*, 2021; learned
//! steps: Esser et al., *Learned Step Size Quantization*, 2020, equation 3; activations that are left unquantized at
//! random while learning: Wei et al., *QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
//! Quantization*, 2022.

mod elements;
pub mod ops;
mod run;
mod spread;
mod steps;
mod taps;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::adam::Adam;
use super::adaround::{Activation, Options, Soft, finish_gradient, regulariser};
use super::grid::Grid;
use super::patches::Geometry;
use super::random::Random;
use ops::Op;
use run::Ready;
pub use spread::Spread;
use steps::Steps;
use taps::Taps;

/// Behind the rounding, steps and biases go on alone for the number of iterations by this.
const SETTLE: usize = 4;

/// One operation of a block; values are numbered.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A layer.
    Linear {
        /// Which.
        layer: usize,
        /// Its input.
        input: usize,
        /// Its result.
        output: usize,
    },
    /// An operator without weights.
    Apply {
        /// Which.
        op: Op,
        /// What it reads.
        inputs: Vec<usize>,
        /// Its result.
        output: usize,
    },
    /// An activation.
    Activate {
        /// Its input.
        input: usize,
        /// Its result.
        output: usize,
        /// One for all, or one for each channel.
        activations: Vec<Activation>,
        /// Neighbouring elements that belong to one channel.
        run: usize,
    },
    /// Quantize and dequantize.
    Quantize {
        /// Its input.
        input: usize,
        /// Its result.
        output: usize,
        /// Which quantizer.
        quantizer: usize,
    },
}

impl Step {
    /// The value that it makes.
    fn output(&self) -> usize {
        match self {
            Self::Linear { output, .. }
            | Self::Apply { output, .. }
            | Self::Activate { output, .. }
            | Self::Quantize { output, .. } => *output,
        }
    }
}

/// A linear layer of a block.
#[derive(Debug, Clone)]
pub struct Layer {
    /// `[rows, cols]`.
    pub weights: Vec<f32>,
    /// `[rows]`.
    pub bias: Vec<f32>,
    /// The values that the weights may take.
    pub grid: Grid,
    /// Groups of rows that read different inputs.
    pub groups: usize,
    /// Where a convolution reads; values are then `[channels, positions]`, and else `[tokens, channels]`.
    pub geometry: Option<Geometry>,
    /// Rows that the weight is multiplied with for one sample, where it is no convolution.
    pub tokens: usize,
    /// The scales of the grid may be learned.
    pub free_scales: bool,
    /// The bias may be learned.
    pub free_bias: bool,
}

impl Layer {
    /// How often a sample uses the weights: at each position of an image, for each token of a text.
    fn places(&self) -> usize {
        self.geometry
            .as_ref()
            .map_or(self.tokens, Geometry::positions)
    }
}

/// What a block computes with.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// By layer, `[rows, cols]`.
    pub weights: Vec<Vec<f32>>,
    /// By layer: what the scales of the grid are multiplied by.
    pub factors: Vec<Vec<f32>>,
    /// By layer, `[rows]`.
    pub biases: Vec<Vec<f32>>,
    /// Of the quantizers.
    pub scales: Vec<f32>,
}

/// A quantizer of an activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantizer {
    /// Its step.
    pub scale: f32,
    /// `qmin − Z`.
    pub low: f32,
    /// `qmax − Z`.
    pub high: f32,
    /// The step may be learned.
    pub learned: bool,
}

/// A block.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// The program.
    pub steps: Vec<Step>,
    /// Its layers.
    pub layers: Vec<Layer>,
    /// Its quantizers.
    pub quantizers: Vec<Quantizer>,
    /// Values from outside, in the order of [`Data::inputs`].
    pub inputs: Vec<usize>,
    /// Values that are the same for all samples.
    pub constants: Vec<(usize, Vec<f32>)>,
    /// The result.
    pub output: usize,
    /// Number of values.
    pub values: usize,
}

/// What holds a value of one sample: memory, or a file that it is read from.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The elements.
    fn get(&self) -> Cow<'_, [f32]>;
}

impl Source for Vec<f32> {
    fn get(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self)
    }
}

/// A value of one sample; several may share it.
pub type Value = Arc<dyn Source>;

/// Samples of a block.
#[derive(Debug, Clone, Default)]
pub struct Data {
    /// For each sample the values from outside, as the quantized layers before leave them.
    pub inputs: Vec<Vec<Value>>,
    /// The same of the float model; empty where they are not known.
    pub float: Vec<Vec<Value>>,
    /// For each sample what the float model computes.
    pub targets: Vec<Value>,
    /// For each sample elements of the result that do not count; empty where all do.
    pub hidden: Vec<Vec<Range<usize>>>,
}

impl Data {
    /// Makes a result that which is wanted where it does not count.
    fn hide(&self, sample: usize, result: &mut [f32], target: &[f32]) {
        for at in self.hidden.get(sample).into_iter().flatten() {
            result[at.clone()].copy_from_slice(&target[at.clone()]);
        }
    }
}

/// How a block learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learning {
    /// Of the rounding; `batch` counts samples.
    pub rounding: Options,
    /// Steps are learned too: of the quantizers, and those of the weights and the biases that are free.
    pub steps: bool,
    /// Activations are left unquantized at random while learning (QDrop).
    pub drop: bool,
    /// Seed of the sampling.
    pub seed: u64,
}

impl Block {
    fn ready(&self) -> Ready<'_> {
        let taps = self
            .layers
            .iter()
            .map(|l| l.geometry.as_ref().map(Taps::of));
        Ready {
            block: self,
            taps: taps.collect(),
            live: self.live(),
        }
    }

    /// The values that depend on something that is learned.
    fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.values];
        for step in &self.steps {
            match step {
                Step::Linear { output, .. } => live[*output] = true,
                Step::Apply { inputs, output, .. } => {
                    live[*output] = inputs.iter().any(|&i| live[i]);
                }
                Step::Activate { input, output, .. } => live[*output] = live[*input],
                Step::Quantize {
                    input,
                    output,
                    quantizer,
                } => live[*output] = live[*input] || self.quantizers[*quantizer].learned,
            }
        }
        live
    }

    /// About how many multiplications a pass forward takes for one sample: products only.
    pub fn work(&self) -> usize {
        let each = self.steps.iter().map(|step| match step {
            Step::Linear { layer, .. } => {
                let l = &self.layers[*layer];
                l.places() * l.weights.len()
            }
            Step::Apply { op, .. } => op.work(),
            _ => 0,
        });
        each.sum()
    }

    /// The most times that a sample uses the weights of a layer: positions of an image, tokens of a text.
    pub fn places(&self) -> usize {
        self.layers.iter().map(Layer::places).max().unwrap_or(1)
    }

    /// Each layer with the value that it makes.
    fn outputs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.steps.iter().filter_map(|s| match *s {
            Step::Linear { layer, output, .. } => Some((layer, output)),
            _ => None,
        })
    }

    /// The state with some weights, and all else as it is.
    pub fn state(&self, weights: Vec<Vec<f32>>) -> State {
        let layers = self.layers.iter();
        State {
            weights,
            factors: layers
                .clone()
                .map(|l| vec![1.0; l.grid.scales.len()])
                .collect(),
            biases: layers.map(|l| l.bias.clone()).collect(),
            scales: self.quantizers.iter().map(|q| q.scale).collect(),
        }
    }

    /// The state with weights rounded to nearest.
    pub fn nearest(&self) -> State {
        let rounded = self.layers.iter().map(|l| l.grid.nearest(&l.weights));
        self.state(rounded.collect())
    }

    /// The mean over the samples of the squared error of the result.
    pub fn error(&self, state: &State, data: &Data) -> f64 {
        self.pooled_error(state, data, 1)
    }

    /// The same of the means of `run` neighbours each: what a pooling behind the block sees.
    pub fn pooled_error(&self, state: &State, data: &Data, run: usize) -> f64 {
        let ready = self.ready();
        let each: Vec<f64> = (0..data.inputs.len())
            .into_par_iter()
            .map(|s| {
                let values = ready.forward(state, &data.inputs[s], None);
                let target = data.targets[s].get();
                let mut result = values[self.output].to_vec();
                data.hide(s, &mut result, &target);
                let runs = result.chunks(run).zip(target.chunks(run));
                let error = |(y, t): (&[f32], &[f32])| -> f64 {
                    let sum: f64 = y.iter().zip(t).map(|(y, t)| f64::from(y - t)).sum();
                    (sum / run as f64).powi(2)
                };
                runs.map(error).sum::<f64>()
            })
            .collect();
        each.iter().sum::<f64>() / data.inputs.len().max(1) as f64
    }

    /// Learns the rounding of all layers and, where it is asked for, the steps and the biases.
    ///
    /// The result does not depend on the number of threads.
    pub fn reconstruct(&self, data: &Data, learning: &Learning) -> State {
        let options = &learning.rounding;
        let ready = self.ready();
        let mut state = self.nearest();
        let count = data.inputs.len();
        let start = self.error(&state, data);
        if count == 0 || start == 0.0 || !start.is_finite() {
            return state;
        }
        let batch = options.batch.clamp(1, count);
        let total: usize = self.layers.iter().map(|l| l.weights.len()).sum();
        let unit = (total as f64 / (start * batch as f64)) as f32;
        let mut soft: Vec<Soft> = self
            .layers
            .iter()
            .map(|l| Soft::new(&l.weights, &l.grid))
            .collect();
        let mut adams: Vec<Adam> = soft
            .iter()
            .map(|s| Adam::new(s.v.len(), options.rate))
            .collect();
        let mut steps = learning.steps.then(|| Steps::new(self, &ready, data));
        let mut batches = Batches::new(count, batch, learning.seed);
        for step in 0..options.iterations {
            soft.par_iter_mut().for_each(Soft::refresh);
            let current: Vec<&[f32]> = soft.iter().map(|s| s.weights.as_slice()).collect();
            self.write(&mut state, &current, steps.as_ref());
            let drop = learning.drop.then_some(learning.seed ^ (step as u64) << 24);
            let mut sums = ready.batch(&state, data, (&batches.next(), unit), drop);
            if let Some(steps) = &mut steps {
                let left = 1.0 - step as f32 / options.iterations as f32;
                steps.step(self, &state, &sums, left);
            }
            let (lambda, beta) = regulariser(step, options);
            let layers = soft.par_iter_mut().zip(&mut adams).zip(&mut sums.weights);
            layers
                .enumerate()
                .for_each(|(l, ((soft, adam), gradient))| {
                    if learning.steps {
                        self.scale(l, gradient, &state.factors[l]);
                    }
                    finish_gradient(gradient, soft, lambda, beta);
                    adam.step(&mut soft.v, gradient);
                });
        }
        let pairs = soft.iter_mut().zip(&self.layers);
        let hard: Vec<Vec<f32>> = pairs.map(|(s, l)| s.hard(&l.grid)).collect();
        let hard: Vec<&[f32]> = hard.iter().map(Vec::as_slice).collect();
        self.write(&mut state, &hard, steps.as_ref());
        // Once the codes are fixed, steps and biases settle on what they need.
        if let Some(steps) = &mut steps {
            let last = options.iterations / SETTLE;
            for step in 0..last {
                let sums = ready.batch(&state, data, (&batches.next(), unit), None);
                steps.step(self, &state, &sums, 1.0 - step as f32 / last as f32);
                self.write(&mut state, &hard, Some(steps));
            }
        }
        state
    }

    /// Writes weights of the grid, and steps and biases, into a state.
    fn write(&self, state: &mut State, weights: &[&[f32]], steps: Option<&Steps>) {
        if let Some(steps) = steps {
            steps.apply(self, state);
        }
        for (l, weights) in weights.iter().enumerate() {
            state.weights[l].copy_from_slice(weights);
            if steps.is_some() {
                self.scale(l, &mut state.weights[l], &state.factors[l]);
            }
        }
    }

    /// Multiplies what belongs to the weights of a layer by the factors of their scales.
    fn scale(&self, layer: usize, weights: &mut [f32], factors: &[f32]) {
        let grid = &self.layers[layer].grid;
        let rows = weights.chunks_exact_mut(grid.cols);
        for (row, factors) in rows.zip(factors.chunks_exact(grid.blocks())) {
            for (part, factor) in row.chunks_mut(grid.block).zip(factors) {
                part.iter_mut().for_each(|w| *w *= factor);
            }
        }
    }
}

/// Draws samples, each once before any comes again.
struct Batches {
    random: Random,
    order: Vec<usize>,
    count: usize,
    size: usize,
}

impl Batches {
    fn new(count: usize, size: usize, seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            order: Vec::new(),
            count,
            size,
        }
    }

    fn next(&mut self) -> Vec<usize> {
        if self.order.len() < self.size {
            self.order = (0..self.count).collect();
            self.random.shuffle(&mut self.order);
        }
        self.order.split_off(self.order.len() - self.size)
    }
}

#[cfg(test)]
mod tests;
