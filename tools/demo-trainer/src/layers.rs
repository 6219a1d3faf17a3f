//! The layers but the convolution: each with its forward pass, its backward pass and its parameters.
//!
//! A forward pass keeps what the backward pass needs; a backward pass takes the gradient of the loss with respect to the
//! layer's output, leaves the gradients of its parameters in them, and returns the gradient of its input.

use crate::conv::Conv;
use crate::rng::Rng;
use crate::tensor::{Param, Tensor, accumulate, dot, fold};
use rayon::prelude::*;

/// Whether batch normalization uses the statistics of the batch or those it has gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own, and gathers them.
    Training,
    /// The gathered ones.
    Inference,
}

/// A layer with the name that its node and its weights get in the file.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Unique in the network.
    pub name: String,
    /// What it computes.
    pub op: Op,
}

/// What a layer computes.
#[derive(Clone, Debug)]
pub enum Op {
    /// Convolution.
    Conv(Conv),
    /// Batch normalization over each channel.
    BatchNorm(BatchNorm),
    /// Limits to [0, cap], or [0, ∞).
    Activation(Activation),
    /// The mean of each plane; remembers the input's shape.
    GlobalAveragePool([usize; 4]),
    /// All but the samples into one axis; no effect here, where vectors are maps of one pixel.
    Flatten,
    /// Dense layer.
    Gemm(Gemm),
    /// The sum of the input and of what the layers make of it.
    Residual(Vec<Layer>),
}

/// Runs layers one after the other.
pub fn forward(layers: &mut [Layer], x: Tensor, mode: Mode) -> Tensor {
    layers
        .iter_mut()
        .fold(x, |x, layer| layer.op.forward(x, mode))
}

/// Runs layers backward, the last first.
pub fn backward(layers: &mut [Layer], dy: Tensor) -> Tensor {
    layers
        .iter_mut()
        .rev()
        .fold(dy, |dy, layer| layer.op.backward(dy))
}

/// All trainable parameters, in order.
pub fn params(layers: &mut [Layer]) -> Vec<&mut Param> {
    let each = layers.iter_mut().map(|layer| match &mut layer.op {
        Op::Conv(conv) => vec![&mut conv.weight],
        Op::BatchNorm(norm) => vec![&mut norm.scale, &mut norm.bias],
        Op::Gemm(gemm) => vec![&mut gemm.weight, &mut gemm.bias],
        Op::Residual(inner) => params(inner),
        Op::Activation(_) | Op::GlobalAveragePool(_) | Op::Flatten => Vec::new(),
    });
    each.flatten().collect()
}

impl Op {
    /// The layer's output, of the shape that ONNX gives its operator.
    pub fn forward(&mut self, x: Tensor, mode: Mode) -> Tensor {
        match self {
            Op::Conv(conv) => conv.forward(x),
            Op::BatchNorm(norm) => norm.forward(x, mode),
            Op::Activation(activation) => activation.forward(x),
            Op::GlobalAveragePool(shape) => {
                *shape = x.shape;
                let plane = x.plane();
                let means = x.data.chunks(plane);
                Tensor {
                    shape: [shape[0], shape[1], 1, 1],
                    data: means.map(|p| fold(p, p, |x, _| x) / plane as f32).collect(),
                }
            }
            Op::Flatten => x,
            Op::Gemm(gemm) => gemm.forward(x),
            Op::Residual(inner) => {
                let y = forward(inner, x.clone(), mode);
                add(x, &y)
            }
        }
    }

    /// The gradient of the input.
    pub fn backward(&mut self, dy: Tensor) -> Tensor {
        match self {
            Op::Conv(conv) => conv.backward(&dy),
            Op::BatchNorm(norm) => norm.backward(&dy),
            Op::Activation(activation) => activation.backward(dy),
            Op::GlobalAveragePool(shape) => {
                let mut dx = Tensor::zeros(*shape);
                let plane = dx.plane();
                for (dx, dy) in dx.data.chunks_mut(plane).zip(&dy.data) {
                    dx.fill(dy / plane as f32);
                }
                dx
            }
            Op::Flatten => dy,
            Op::Gemm(gemm) => gemm.backward(&dy),
            Op::Residual(inner) => {
                let through = backward(inner, dy.clone());
                add(dy, &through)
            }
        }
    }
}

fn add(mut a: Tensor, b: &Tensor) -> Tensor {
    for (a, b) in a.data.iter_mut().zip(&b.data) {
        *a += b;
    }
    a
}

/// `min(max(x, 0), cap)`.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The upper limit, or none.
    pub cap: Option<f32>,
    output: Tensor,
}

impl Activation {
    /// An activation with an upper limit, or none.
    pub fn new(cap: Option<f32>) -> Self {
        let output = Tensor::default();
        Self { cap, output }
    }

    fn forward(&mut self, mut x: Tensor) -> Tensor {
        let cap = self.cap.unwrap_or(f32::INFINITY);
        for value in &mut x.data {
            *value = value.clamp(0.0, cap);
        }
        self.output = x.clone();
        x
    }

    fn backward(&self, mut dy: Tensor) -> Tensor {
        let cap = self.cap.unwrap_or(f32::INFINITY);
        for (d, y) in dy.data.iter_mut().zip(&self.output.data) {
            *d = if *y > 0.0 && *y < cap { *d } else { 0.0 };
        }
        dy
    }
}

/// Batch normalization (Ioffe, Szegedy 2015): `scale · (x − mean) / √(variance + ε) + bias` for each channel.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// `[channels]`.
    pub scale: Param,
    /// `[channels]`.
    pub bias: Param,
    /// The decaying average of the batches' means.
    pub mean: Vec<f32>,
    /// The decaying average of the batches' unbiased variances.
    pub variance: Vec<f32>,
    normalized: Tensor,
    inverse: Vec<f32>,
}

impl BatchNorm {
    /// Added to the variance.
    pub const EPSILON: f32 = 1e-5;
    /// What a batch leaves of the averages.
    const KEEP: f32 = 0.9;

    /// The identity, for inputs of mean 0 and variance 1.
    pub fn new(channels: usize) -> Self {
        Self {
            scale: Param::constant("scale", channels, 1.0),
            bias: Param::constant("bias", channels, 0.0),
            mean: vec![0.0; channels],
            variance: vec![1.0; channels],
            normalized: Tensor::default(),
            inverse: vec![0.0; channels],
        }
    }

    /// The dimensions of the statistics, those of the parameters.
    pub fn mean_dims(&self) -> [usize; 1] {
        [self.mean.len()]
    }

    fn forward(&mut self, mut x: Tensor, mode: Mode) -> Tensor {
        let [samples, channels, ..] = x.shape;
        let plane = x.plane();
        let (mean, variance) = if mode == Mode::Training {
            let count = (samples * plane) as f32;
            let mean = by_channel(&x, &x, |_, x, _| x);
            let mean: Vec<f32> = mean.iter().map(|sum| sum / count).collect();
            let squares = by_channel(&x, &x, |c, x, _| (x - mean[c]) * (x - mean[c]));
            for c in 0..channels {
                let unbiased = squares[c] / (count - 1.0);
                self.mean[c] = Self::KEEP * self.mean[c] + (1.0 - Self::KEEP) * mean[c];
                self.variance[c] = Self::KEEP * self.variance[c] + (1.0 - Self::KEEP) * unbiased;
            }
            (mean, squares.iter().map(|sum| sum / count).collect())
        } else {
            (self.mean.clone(), self.variance.clone())
        };
        self.inverse = variance
            .iter()
            .map(|v: &f32| 1.0 / (v + Self::EPSILON).sqrt())
            .collect();
        self.normalized = Tensor::zeros(x.shape);
        let planes = x.data.par_chunks_mut(plane);
        planes
            .zip(self.normalized.data.par_chunks_mut(plane))
            .enumerate()
            .for_each(|(i, (x, normalized))| {
                let c = i % channels;
                let (scale, bias) = (self.scale.value[c], self.bias.value[c]);
                for (x, n) in x.iter_mut().zip(normalized) {
                    *n = (*x - mean[c]) * self.inverse[c];
                    *x = scale * *n + bias;
                }
            });
        x
    }

    /// The gradient through the statistics of the batch as well (section 3 of the paper).
    fn backward(&mut self, dy: &Tensor) -> Tensor {
        let [samples, channels, ..] = dy.shape;
        let plane = dy.plane();
        let count = (samples * plane) as f32;
        self.bias.grad = by_channel(dy, dy, |_, d, _| d);
        self.scale.grad = by_channel(dy, &self.normalized, |_, d, n| d * n);
        let mut dx = dy.clone();
        dx.data
            .par_chunks_mut(plane)
            .zip(self.normalized.data.par_chunks(plane))
            .enumerate()
            .for_each(|(i, (dx, normalized))| {
                let c = i % channels;
                let factor = self.scale.value[c] * self.inverse[c];
                let (mean, slope) = (self.bias.grad[c] / count, self.scale.grad[c] / count);
                for (d, n) in dx.iter_mut().zip(normalized) {
                    *d = factor * (*d - mean - n * slope);
                }
            });
        dx
    }
}

/// `Σ f(channel, a, b)` over the samples and pixels of each channel.
fn by_channel(a: &Tensor, b: &Tensor, f: impl Fn(usize, f32, f32) -> f32 + Sync) -> Vec<f32> {
    let [samples, channels, ..] = a.shape;
    let plane = a.plane();
    let sum = |c: usize| {
        let planes = (0..samples).map(|n| (n * channels + c) * plane);
        planes
            .map(|at| {
                let (a, b) = (&a.data[at..at + plane], &b.data[at..at + plane]);
                f64::from(fold(a, b, |x, y| f(c, x, y)))
            })
            .sum::<f64>() as f32
    };
    (0..channels).into_par_iter().map(sum).collect()
}

/// A dense layer, `x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub struct Gemm {
    /// `[outputs, inputs]`.
    pub weight: Param,
    /// `[outputs]`.
    pub bias: Param,
    input: Tensor,
}

impl Gemm {
    /// A dense layer with random weights.
    pub fn new(inputs: usize, outputs: usize, rng: &mut Rng) -> Self {
        Self {
            weight: Param::random("weight", &[outputs, inputs], rng),
            bias: Param::constant("bias", outputs, 0.0),
            input: Tensor::default(),
        }
    }

    fn forward(&mut self, x: Tensor) -> Tensor {
        let (inputs, outputs) = (self.weight.dims[1], self.weight.dims[0]);
        let mut y = Tensor::zeros([x.shape[0], outputs, 1, 1]);
        for (x, y) in x.data.chunks(inputs).zip(y.data.chunks_mut(outputs)) {
            let rows = self.weight.value.chunks(inputs).zip(&self.bias.value);
            for (y, (row, bias)) in y.iter_mut().zip(rows) {
                *y = dot(x, row) + bias;
            }
        }
        self.input = x;
        y
    }

    fn backward(&mut self, dy: &Tensor) -> Tensor {
        let (inputs, outputs) = (self.weight.dims[1], self.weight.dims[0]);
        let mut dx = Tensor::zeros(self.input.shape);
        for (dx, dy) in dx.data.chunks_mut(inputs).zip(dy.data.chunks(outputs)) {
            accumulate(dx, dy, &self.weight.value);
        }
        self.weight.grad.fill(0.0);
        for (output, row) in self.weight.grad.chunks_mut(inputs).enumerate() {
            let taps: Vec<f32> = dy
                .data
                .iter()
                .skip(output)
                .step_by(outputs)
                .copied()
                .collect();
            accumulate(row, &taps, &self.input.data);
            self.bias.grad[output] = taps.iter().sum();
        }
        dx
    }
}
