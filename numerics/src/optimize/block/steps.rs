//! What a block learns beside its rounding: the logarithms of the steps of activations and weights, and biases.

use super::run::{Ready, Sums};
use super::{Block, Data, State};
use crate::optimize::adam::Adam;

/// Step size of the logarithms, and of biases relative to the size of the layer's result. It falls to 0.
const RATE: f32 = 1e-3;

/// Samples that the size of a layer's result is measured on.
const SAMPLES: usize = 8;

/// Parameters of one kind, and how they move.
struct Kind {
    values: Vec<f32>,
    adam: Adam,
    free: bool,
}

impl Kind {
    fn new(count: usize, free: bool) -> Self {
        Self {
            values: vec![0.0; count],
            adam: Adam::new(count, RATE),
            free,
        }
    }

    fn step(&mut self, gradient: &[f32], left: f32) {
        if self.free {
            self.adam.rate = RATE * left;
            self.adam.step(&mut self.values, gradient);
        }
    }
}

/// See the head of this file.
pub(super) struct Steps {
    activations: Kind,
    weights: Vec<Kind>,
    biases: Vec<Kind>,
    /// The root mean square of each layer's result.
    sizes: Vec<f32>,
}

impl Steps {
    pub(super) fn new(block: &Block, ready: &Ready<'_>, data: &Data) -> Self {
        let state = block.state(block.layers.iter().map(|l| l.weights.clone()).collect());
        let mut sums = vec![(0.0f64, 0usize); block.layers.len()];
        for x in data.inputs.iter().take(SAMPLES) {
            let values = ready.forward(&state, x, None);
            for (layer, output) in block.outputs() {
                sums[layer].0 += values[output]
                    .iter()
                    .map(|&y| f64::from(y).powi(2))
                    .sum::<f64>();
                sums[layer].1 += values[output].len();
            }
        }
        let size = |(sum, n): (f64, usize)| (sum / n.max(1) as f64).sqrt() as f32;
        Self {
            activations: Kind::new(block.quantizers.len(), true),
            weights: (block.layers.iter())
                .map(|l| Kind::new(l.grid.scales.len(), l.free_scales))
                .collect(),
            biases: (block.layers.iter())
                .map(|l| Kind::new(l.bias.len(), l.free_bias))
                .collect(),
            sizes: sums.into_iter().map(size).collect(),
        }
    }

    /// Writes the parameters into a state.
    pub(super) fn apply(&self, block: &Block, state: &mut State) {
        let quantizers = block.quantizers.iter().zip(&self.activations.values);
        for (scale, (q, log)) in state.scales.iter_mut().zip(quantizers) {
            *scale = if q.learned {
                q.scale * log.exp()
            } else {
                q.scale
            };
        }
        for (factors, kind) in state.factors.iter_mut().zip(&self.weights) {
            let logs = factors.iter_mut().zip(&kind.values);
            logs.for_each(|(f, log)| *f = log.exp());
        }
        for (l, (biases, kind)) in state.biases.iter_mut().zip(&self.biases).enumerate() {
            let own = biases
                .iter_mut()
                .zip(&block.layers[l].bias)
                .zip(&kind.values);
            own.for_each(|((b, first), x)| *b = first + self.sizes[l] * x);
        }
    }

    /// Moves the parameters against the gradients of the weights, biases and logarithms of activation scales.
    pub(super) fn step(&mut self, block: &Block, state: &State, sums: &Sums, left: f32) {
        let quantizers = sums.scales.iter().zip(&block.quantizers);
        let gradient: Vec<f32> = quantizers
            .map(|(g, q)| if q.learned { *g } else { 0.0 })
            .collect();
        self.activations.step(&gradient, left);
        for (l, layer) in block.layers.iter().enumerate() {
            let grid = &layer.grid;
            let rows = sums.weights[l].chunks_exact(grid.cols);
            let rows = rows.zip(state.weights[l].chunks_exact(grid.cols));
            let gradient: Vec<f32> = rows
                .flat_map(|(g, w)| g.chunks(grid.block).zip(w.chunks(grid.block)))
                .map(|(g, w)| g.iter().zip(w).map(|(g, w)| g * w).sum())
                .collect();
            self.weights[l].step(&gradient, left);
            let size = self.sizes[l];
            let gradient: Vec<f32> = sums.biases[l].iter().map(|g| g * size).collect();
            self.biases[l].step(&gradient, left);
        }
    }
}
