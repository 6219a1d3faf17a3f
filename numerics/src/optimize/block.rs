//! Block reconstruction: the rounding of several layers, and the steps of the activations between them, learned together
//! from what the whole block computes.
//!
//! A block is a short program over values: linear layers (convolutions and matrix products), additions, activations and
//! quantizers. Its gradient is written out by hand over the crate's own kernels: forward and backward together take
//! three products a layer, as many as any framework needs, with no graph to build and nothing to allocate twice.
//!
//! Source: Li et al., *BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction*, 2021; learned
//! steps: Esser et al., *Learned Step Size Quantization*, 2020, equation 3.

use rayon::prelude::*;

use super::adam::Adam;
use super::adaround::{Activation, Options, Soft, finish_gradient, regulariser};
use super::grid::Grid;
use super::matrix::{add_ab, add_abt, add_atb};
use super::patches::Geometry;
use super::random::Random;

/// Samples that one task works on.
const CHUNK: usize = 4;
/// Step size of the logarithm of activation scales.
const SCALE_RATE: f32 = 1e-3;

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
    /// The sum of two values of the same shape.
    Add {
        /// One.
        a: usize,
        /// The other.
        b: usize,
        /// The sum.
        output: usize,
    },
    /// An activation.
    Activate {
        /// Its input.
        input: usize,
        /// Its result.
        output: usize,
        /// Which.
        activation: Activation,
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
    /// The result.
    pub output: usize,
    /// Number of values.
    pub values: usize,
}

/// Samples of a block.
#[derive(Debug, Clone, Default)]
pub struct Data {
    /// For each sample the values from outside.
    pub inputs: Vec<Vec<Vec<f32>>>,
    /// For each sample what the float model computes.
    pub targets: Vec<Vec<f32>>,
}

/// Where each tap of a convolution reads: `[taps, positions]`, [`OUTSIDE`] for padding.
struct Taps {
    places: Vec<u32>,
    positions: usize,
    plane: usize,
    /// One tap that reads every position in order.
    plain: bool,
}

const OUTSIDE: u32 = u32::MAX;

impl Taps {
    fn of(g: &Geometry) -> Self {
        let positions = g.positions();
        let taps = g.kernel.iter().product::<usize>();
        let mut places = vec![OUTSIDE; taps * positions];
        let mut row = Vec::new();
        for p in 0..positions {
            g.places(p, &mut row);
            for (t, place) in row.iter().enumerate() {
                if let Some(i) = place {
                    places[t * positions + p] = *i as u32;
                }
            }
        }
        let plane = g.input.iter().product();
        let plain = taps == 1
            && positions == plane
            && places.iter().enumerate().all(|(i, &p)| p == i as u32);
        Self {
            places,
            positions,
            plane,
            plain,
        }
    }

    /// `[channels · taps, positions]` of some channels.
    fn columns(&self, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(x.len() / self.plane * self.places.len());
        for channel in x.chunks_exact(self.plane) {
            let read = |&p: &u32| {
                if p == OUTSIDE {
                    0.0
                } else {
                    channel[p as usize]
                }
            };
            out.extend(self.places.iter().map(read));
        }
        out
    }

    /// Adds the gradient of the columns to that of the input.
    fn scatter(&self, columns: &[f32], x: &mut [f32]) {
        let rows = columns.chunks_exact(self.places.len());
        for (channel, columns) in x.chunks_exact_mut(self.plane).zip(rows) {
            for (&p, &g) in self.places.iter().zip(columns) {
                if p != OUTSIDE {
                    channel[p as usize] += g;
                }
            }
        }
    }
}

/// What a pass over one sample leaves: values, or gradients of values.
type Values = Vec<Vec<f32>>;

/// Gradients of the weights by layer, of the logarithms of the scales, and the error.
struct Sums {
    weights: Vec<Vec<f32>>,
    scales: Vec<f32>,
    error: f64,
}

/// A block that is ready to run.
struct Ready<'a> {
    block: &'a Block,
    taps: Vec<Option<Taps>>,
}

impl Ready<'_> {
    fn forward(&self, weights: &[&[f32]], scales: &[f32], inputs: &[Vec<f32>]) -> Values {
        let b = self.block;
        let mut values: Values = vec![Vec::new(); b.values];
        for (&at, x) in b.inputs.iter().zip(inputs) {
            values[at].clone_from(x);
        }
        for step in &b.steps {
            let (output, result) = match *step {
                Step::Linear {
                    layer,
                    input,
                    output,
                } => (output, self.linear(layer, weights[layer], &values[input])),
                Step::Add { a, b, output } => {
                    let sum = values[a].iter().zip(&values[b]).map(|(x, y)| x + y);
                    (output, sum.collect())
                }
                Step::Activate {
                    input,
                    output,
                    activation,
                } => {
                    let f = values[input].iter().map(|&x| activation.apply(x).0);
                    (output, f.collect())
                }
                Step::Quantize {
                    input,
                    output,
                    quantizer,
                } => {
                    let q = &b.quantizers[quantizer];
                    let s = scales[quantizer];
                    let f = |&x: &f32| (x / s).round_ties_even().max(q.low).min(q.high) * s;
                    (output, values[input].iter().map(f).collect())
                }
            };
            values[output] = result;
        }
        values
    }

    fn linear(&self, layer: usize, weights: &[f32], x: &[f32]) -> Vec<f32> {
        let l = &self.block.layers[layer];
        let (rows, cols) = (l.bias.len(), l.grid.cols);
        let Some(taps) = &self.taps[layer] else {
            let tokens = x.len() / cols;
            let mut y = l.bias.repeat(tokens);
            add_abt(&mut y, x, weights, cols, 1.0);
            return y;
        };
        let p = taps.positions;
        let mut y: Vec<f32> = l
            .bias
            .iter()
            .flat_map(|&b| std::iter::repeat_n(b, p))
            .collect();
        let (per_rows, size) = (rows / l.groups, x.len() / l.groups);
        for g in 0..l.groups {
            let x = &x[g * size..(g + 1) * size];
            let own = if taps.plain {
                None
            } else {
                Some(taps.columns(x))
            };
            let columns = own.as_deref().unwrap_or(x);
            let w = &weights[g * per_rows * cols..(g + 1) * per_rows * cols];
            let y = &mut y[g * per_rows * p..(g + 1) * per_rows * p];
            if per_rows == 1 {
                for (w, column) in w.iter().zip(columns.chunks_exact(p)) {
                    y.iter_mut().zip(column).for_each(|(y, x)| *y += w * x);
                }
            } else {
                add_ab(y, w, columns, cols, 1.0);
            }
        }
        y
    }

    /// The gradients behind `values` for the gradient `last` of the result.
    fn backward(
        &self,
        weights: &[&[f32]],
        scales: &[f32],
        values: &Values,
        last: Vec<f32>,
        sums: &mut Sums,
    ) {
        let b = self.block;
        let mut grads: Values = values.iter().map(|v| vec![0.0; v.len()]).collect();
        grads[b.output] = last;
        for step in b.steps.iter().rev() {
            match *step {
                Step::Linear {
                    layer,
                    input,
                    output,
                } => {
                    let dy = std::mem::take(&mut grads[output]);
                    let wanted = !b.inputs.contains(&input);
                    let dx = wanted.then_some(&mut grads[input]);
                    self.linear_back(
                        layer,
                        weights[layer],
                        &values[input],
                        &dy,
                        (dx, &mut sums.weights[layer]),
                    );
                }
                Step::Add { a, b, output } => {
                    let dy = std::mem::take(&mut grads[output]);
                    for at in [a, b] {
                        grads[at].iter_mut().zip(&dy).for_each(|(g, d)| *g += d);
                    }
                }
                Step::Activate {
                    input,
                    output,
                    activation,
                } => {
                    let dy = std::mem::take(&mut grads[output]);
                    let pairs = values[input].iter().zip(&dy);
                    for (g, (&x, d)) in grads[input].iter_mut().zip(pairs) {
                        *g += d * activation.apply(x).1;
                    }
                }
                Step::Quantize {
                    input,
                    output,
                    quantizer,
                } => {
                    let dy = std::mem::take(&mut grads[output]);
                    let (q, s) = (&b.quantizers[quantizer], scales[quantizer]);
                    let pairs = values[input].iter().zip(&dy);
                    let mut sum = 0.0f32;
                    for (g, (&x, &d)) in grads[input].iter_mut().zip(pairs) {
                        let u = x / s;
                        let r = u.round_ties_even();
                        if r < q.low {
                            sum += d * q.low;
                        } else if r > q.high {
                            sum += d * q.high;
                        } else {
                            sum += d * (r - u);
                            *g += d;
                        }
                    }
                    sums.scales[quantizer] += sum * s;
                }
            }
        }
    }

    fn linear_back(
        &self,
        layer: usize,
        weights: &[f32],
        x: &[f32],
        dy: &[f32],
        (mut dx, dw): (Option<&mut Vec<f32>>, &mut [f32]),
    ) {
        let l = &self.block.layers[layer];
        let (rows, cols) = (l.bias.len(), l.grid.cols);
        let Some(taps) = &self.taps[layer] else {
            add_atb(dw, dy, x, x.len() / cols, 1.0);
            if let Some(dx) = dx {
                add_ab(dx, dy, weights, rows, 1.0);
            }
            return;
        };
        let p = taps.positions;
        let (per_rows, size) = (rows / l.groups, x.len() / l.groups);
        for g in 0..l.groups {
            let own = (!taps.plain).then(|| taps.columns(&x[g * size..(g + 1) * size]));
            let columns = own.as_deref().unwrap_or(&x[g * size..(g + 1) * size]);
            let span = g * per_rows * cols..(g + 1) * per_rows * cols;
            let dy = &dy[g * per_rows * p..(g + 1) * per_rows * p];
            add_abt(&mut dw[span.clone()], dy, columns, p, 1.0);
            if let Some(dx) = dx.as_deref_mut() {
                let dx = &mut dx[g * size..(g + 1) * size];
                if taps.plain {
                    add_atb(dx, &weights[span], dy, per_rows, 1.0);
                } else {
                    let mut back = vec![0.0; columns.len()];
                    add_atb(&mut back, &weights[span], dy, per_rows, 1.0);
                    taps.scatter(&back, dx);
                }
            }
        }
    }

    /// Gradients and error of a batch, summed in the order of the samples.
    fn batch(
        &self,
        weights: &[&[f32]],
        scales: &[f32],
        data: &Data,
        batch: &[usize],
        unit: f32,
    ) -> Sums {
        let zero = || Sums {
            weights: weights.iter().map(|w| vec![0.0; w.len()]).collect(),
            scales: vec![0.0; scales.len()],
            error: 0.0,
        };
        let parts: Vec<Sums> = batch
            .par_chunks(CHUNK)
            .map(|samples| {
                let mut sums = zero();
                for &s in samples {
                    let values = self.forward(weights, scales, &data.inputs[s]);
                    let mut last = values[self.block.output].clone();
                    for (y, t) in last.iter_mut().zip(&data.targets[s]) {
                        let e = *y - t;
                        sums.error += f64::from(e) * f64::from(e);
                        *y = 2.0 * e * unit;
                    }
                    self.backward(weights, scales, &values, last, &mut sums);
                }
                sums
            })
            .collect();
        let mut total = zero();
        for part in parts {
            for (t, p) in total.weights.iter_mut().zip(&part.weights) {
                t.iter_mut().zip(p).for_each(|(t, p)| *t += p);
            }
            total
                .scales
                .iter_mut()
                .zip(&part.scales)
                .for_each(|(t, p)| *t += p);
            total.error += part.error;
        }
        total
    }
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
        }
    }

    /// The scales of the quantizers.
    pub fn scales(&self) -> Vec<f32> {
        self.quantizers.iter().map(|q| q.scale).collect()
    }

    /// The mean over the samples of the squared error of the result, with some weights and activation scales.
    pub fn error(&self, weights: &[Vec<f32>], scales: &[f32], data: &Data) -> f64 {
        let ready = self.ready();
        let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let each: Vec<f64> = (0..data.inputs.len())
            .into_par_iter()
            .map(|s| {
                let values = ready.forward(&weights, scales, &data.inputs[s]);
                let pairs = values[self.output].iter().zip(&data.targets[s]);
                pairs
                    .map(|(y, t)| f64::from(y - t) * f64::from(y - t))
                    .sum()
            })
            .collect();
        each.iter().sum::<f64>() / data.inputs.len().max(1) as f64
    }

    /// Learns the rounding of all layers and the steps of the learned quantizers. `batch` of the options counts samples.
    ///
    /// The result does not depend on the number of threads.
    pub fn reconstruct(
        &self,
        data: &Data,
        options: &Options,
        seed: u64,
    ) -> (Vec<Vec<f32>>, Vec<f32>) {
        let ready = self.ready();
        let first: Vec<Vec<f32>> = self
            .layers
            .iter()
            .map(|l| l.grid.nearest(&l.weights))
            .collect();
        let count = data.inputs.len();
        let start = self.error(&first, &self.scales(), data);
        if count == 0 || start == 0.0 || !start.is_finite() {
            return (first, self.scales());
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
        let mut logs = vec![0.0f32; self.quantizers.len()];
        // The loss counts the weights; the steps are few, and their rate is the same for all.
        let mut scale_adam = Adam::new(logs.len(), SCALE_RATE);
        let mut random = Random::new(seed);
        let mut order: Vec<usize> = Vec::new();
        for step in 0..options.iterations {
            soft.iter_mut().for_each(Soft::refresh);
            if order.len() < batch {
                order = (0..count).collect();
                random.shuffle(&mut order);
            }
            let chosen = order.split_off(order.len() - batch);
            let scales = self.scaled(&logs);
            let weights: Vec<&[f32]> = soft.iter().map(|s| s.weights.as_slice()).collect();
            let mut sums = ready.batch(&weights, &scales, data, &chosen, unit);
            let (lambda, beta) = regulariser(step, options);
            for ((soft, adam), gradient) in soft.iter_mut().zip(&mut adams).zip(&mut sums.weights) {
                finish_gradient(gradient, soft, lambda, beta);
                adam.step(&mut soft.v, gradient);
            }
            for (g, q) in sums.scales.iter_mut().zip(&self.quantizers) {
                *g = if q.learned { *g } else { 0.0 };
            }
            scale_adam.step(&mut logs, &sums.scales);
        }
        let weights = soft
            .iter_mut()
            .zip(&self.layers)
            .map(|(s, l)| s.hard(&l.grid))
            .collect();
        (weights, self.scaled(&logs))
    }

    fn scaled(&self, logs: &[f32]) -> Vec<f32> {
        let pairs = self.quantizers.iter().zip(logs);
        pairs
            .map(|(q, l)| {
                if q.learned {
                    q.scale * l.exp()
                } else {
                    q.scale
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
