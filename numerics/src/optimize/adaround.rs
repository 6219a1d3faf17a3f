//! AdaRound: for every weight, whether to round up or down, learned from the layer's output.
//!
//! `Ŵ = low + (high − low) · h(V)`, `low` and `high` the grid's neighbours of the weight, `h(V) = clip(1.2·σ(V) − 0.1,
//! 0, 1)`. Adam minimises `‖f(W̃x̂ + b + r) − t‖² + λ Σ (1 − |2h(V) − 1|^β)`: `x̂` the input as the quantized layers
//! before leave it, `r` what a residual connection adds, `f` the activation, `t` the float model's result. β is
//! annealed from 20 to 2 after a warm start without the regulariser, so that `h` first finds where it wants to be and
//! then moves to 0 or 1.
//!
//! Source: Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization*, 2020, equations 20 to 25;
//! the regulariser's annealing and the warm start are those of section 3.4 of that paper and of its implementations.

use rayon::prelude::*;

use super::adam::Adam;
use super::fast;
use super::grid::Grid;
use super::matrix::{add_abt, add_atb};

/// Rows that are learned together by one task.
const ROWS: usize = 32;
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;

/// What follows the layer, element by element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `max(low, min(high, y))`: nothing, Relu, Relu6, Clip.
    Clamp {
        /// Lower bound.
        low: f32,
        /// Upper bound.
        high: f32,
    },
    /// `y` above 0, `slope · y` below.
    Leaky {
        /// The slope below 0.
        slope: f32,
    },
}

impl Activation {
    /// Nothing follows.
    pub const NONE: Self = Self::Clamp {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
    };

    /// The value and the derivative.
    #[inline(always)]
    pub fn apply(self, y: f32) -> (f32, f32) {
        match self {
            Self::Clamp { low, high } => {
                let inside = y > low && y < high;
                (y.max(low).min(high), f32::from(u8::from(inside)))
            }
            Self::Leaky { slope } if y < 0.0 => (slope * y, slope),
            Self::Leaky { .. } => (y, 1.0),
        }
    }
}

/// What a group of rows is learned from.
#[derive(Debug, Clone, Copy)]
pub struct Samples<'a> {
    /// Inputs of the reduction `[count, cols]`, in random order.
    pub inputs: &'a [f32],
    /// Wanted results `[count, rows]`, after the activation.
    pub targets: &'a [f32],
    /// What is added before the activation, `[count, rows]`.
    pub residual: Option<&'a [f32]>,
}

/// How long and how fast it learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Steps of Adam.
    pub iterations: usize,
    /// Samples in a step.
    pub batch: usize,
    /// Step size.
    pub rate: f32,
    /// Weight of the regulariser, relative to the error of rounding to nearest.
    pub lambda: f32,
    /// Share of the steps without the regulariser.
    pub warm_start: f32,
    /// First and last exponent of the regulariser.
    pub beta: (f32, f32),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            iterations: 1000,
            batch: 256,
            rate: 0.05,
            lambda: 5.0,
            warm_start: 0.2,
            beta: (20.0, 2.0),
        }
    }
}

/// Rounded weights, with the objective before and after.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// Values of the grid, `[rows, cols]`.
    pub weights: Vec<f32>,
    /// Mean squared error of each row with weights rounded to nearest, on all samples.
    pub before: Vec<f64>,
    /// The same with these weights; never larger.
    pub after: Vec<f64>,
}

/// Rows of a weight that read the same inputs, with their biases.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// `[rows, cols]`.
    pub weights: &'a [f32],
    /// `[rows]`.
    pub bias: &'a [f32],
    /// The values that the weights may take.
    pub grid: &'a Grid,
    /// What follows each row.
    pub activations: &'a [Activation],
}

/// Learns the rounding of rows that read the same inputs. A row that does not get better stays rounded to nearest.
///
/// The result does not depend on the number of threads.
pub fn adaround(rows: Rows<'_>, samples: Samples<'_>, options: &Options) -> Rounded {
    let (cols, count) = (rows.grid.cols, rows.bias.len());
    let starts: Vec<usize> = (0..count).step_by(ROWS).collect();
    let parts: Vec<Rounded> = starts
        .into_par_iter()
        .map(|start| {
            let end = (start + ROWS).min(count);
            let columns = |all: &[f32]| -> Vec<f32> {
                let rows = all.chunks_exact(count);
                rows.flat_map(|r| &r[start..end]).copied().collect()
            };
            let (targets, residual) = (columns(samples.targets), samples.residual.map(columns));
            let grid = rows.grid.slice(start..end);
            let part = Rows {
                weights: &rows.weights[start * cols..end * cols],
                bias: &rows.bias[start..end],
                grid: &grid,
                activations: &rows.activations[start..end],
            };
            let samples = Samples {
                targets: &targets,
                residual: residual.as_deref(),
                ..samples
            };
            learn(part, samples, options)
        })
        .collect();
    let mut all = Rounded {
        weights: Vec::with_capacity(rows.weights.len()),
        before: Vec::with_capacity(count),
        after: Vec::with_capacity(count),
    };
    for part in parts {
        all.weights.extend(part.weights);
        all.before.extend(part.before);
        all.after.extend(part.after);
    }
    all
}

/// Mean squared error of each row on all samples.
pub fn errors(rows: Rows<'_>, weights: &[f32], samples: Samples<'_>) -> Vec<f64> {
    let (cols, count) = (rows.grid.cols, rows.bias.len());
    let mut sums = vec![0.0f64; count];
    if cols == 0 || count == 0 {
        return sums;
    }
    let total = samples.inputs.len() / cols;
    let mut at = 0;
    while at < total {
        let n = (total - at).min(1024);
        let y = forward(rows, weights, samples, at..at + n);
        let targets = samples.targets[at * count..(at + n) * count].chunks_exact(count);
        for (y, t) in y.chunks_exact(count).zip(targets) {
            for (((s, &y), &t), f) in sums.iter_mut().zip(y).zip(t).zip(rows.activations) {
                let e = f64::from(f.apply(y).0 - t);
                *s += e * e;
            }
        }
        at += n;
    }
    sums.iter().map(|s| s / total.max(1) as f64).collect()
}

/// `Wx + b + r`, before the activation, `[batch, rows]`.
fn forward(
    rows: Rows<'_>,
    weights: &[f32],
    samples: Samples<'_>,
    batch: std::ops::Range<usize>,
) -> Vec<f32> {
    let (cols, count) = (rows.grid.cols, rows.bias.len());
    let mut y = match samples.residual {
        Some(r) => r[batch.start * count..batch.end * count].to_vec(),
        None => vec![0.0; batch.len() * count],
    };
    for row in y.chunks_exact_mut(count) {
        row.iter_mut().zip(rows.bias).for_each(|(y, b)| *y += b);
    }
    let inputs = &samples.inputs[batch.start * cols..batch.end * cols];
    if count == 1 {
        for (y, x) in y.iter_mut().zip(inputs.chunks_exact(cols)) {
            *y += x.iter().zip(weights).map(|(x, w)| x * w).sum::<f32>();
        }
    } else {
        add_abt(&mut y, inputs, weights, cols, 1.0);
    }
    y
}

/// The `V` for which `h(V)` is a share of the way up.
fn inverse(share: f32) -> f32 {
    let s = (share.clamp(0.001, 0.999) - GAMMA) / (ZETA - GAMMA);
    (s / (1.0 - s)).ln()
}

/// The soft rounding of a piece of rows.
pub(super) struct Soft {
    low: Vec<f32>,
    delta: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// `h(V)` and its derivative.
    h: Vec<f32>,
    slope: Vec<f32>,
    pub(super) weights: Vec<f32>,
}

impl Soft {
    pub(super) fn new(weights: &[f32], grid: &Grid) -> Self {
        let cols = grid.cols;
        let n = weights.len();
        let (mut low, mut delta, mut v) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        for (i, &w) in weights.iter().enumerate() {
            let (l, u) = grid.cell(i / cols, i % cols).neighbours(w);
            low[i] = l;
            delta[i] = u - l;
            v[i] = if u > l {
                inverse((w - l) / (u - l))
            } else {
                0.0
            };
        }
        Self {
            low,
            delta,
            v,
            h: vec![0.0; n],
            slope: vec![0.0; n],
            weights: vec![0.0; n],
        }
    }

    /// The weights rounded for good.
    pub(super) fn hard(&mut self, grid: &Grid) -> Vec<f32> {
        self.refresh();
        let parts = self.h.iter().zip(&self.low).zip(&self.delta);
        let chosen: Vec<f32> = parts
            .map(|((&h, &low), &delta)| if h >= 0.5 { low + delta } else { low })
            .collect();
        // `low + delta` may be off by one bit from the product that the grid stores.
        grid.nearest(&chosen)
    }

    pub(super) fn refresh(&mut self) {
        let outputs = self
            .h
            .iter_mut()
            .zip(&mut self.slope)
            .zip(&mut self.weights);
        let grid = self.low.iter().zip(&self.delta);
        for ((&v, (&low, &delta)), ((h, slope), w)) in self.v.iter().zip(grid).zip(outputs) {
            let s = 1.0 / (1.0 + fast::exp(-v));
            let raw = s * (ZETA - GAMMA) + GAMMA;
            *h = raw.clamp(0.0, 1.0);
            let inside = raw > 0.0 && raw < 1.0;
            *slope = if inside {
                (ZETA - GAMMA) * s * (1.0 - s)
            } else {
                0.0
            };
            *w = low + delta * *h;
        }
    }
}

fn learn(rows: Rows<'_>, samples: Samples<'_>, options: &Options) -> Rounded {
    let (cols, count) = (rows.grid.cols, rows.bias.len());
    let nearest = rows.grid.nearest(rows.weights);
    let before = errors(rows, &nearest, samples);
    let total = samples.inputs.len().checked_div(cols).unwrap_or(0);
    if total == 0 || before.iter().all(|&e| e == 0.0) {
        return Rounded {
            weights: nearest,
            after: before.clone(),
            before,
        };
    }
    let batch = options.batch.min(total);
    let batches = total / batch;
    let mut soft = Soft::new(rows.weights, rows.grid);
    let mut adam = Adam::new(soft.v.len(), options.rate);
    let mut gradient = vec![0.0f32; soft.v.len()];
    // The error of rounding to nearest is the unit of each row: the regulariser then weighs the same in every layer.
    let norms: Vec<f32> = before
        .iter()
        .map(|&e| (2.0 * cols as f64 / (e.max(f64::from(f32::MIN_POSITIVE)) * batch as f64)) as f32)
        .map(|n| if n.is_finite() { n } else { 0.0 })
        .collect();
    for step in 0..options.iterations {
        soft.refresh();
        let at = step % batches * batch;
        let mut y = forward(rows, &soft.weights, samples, at..at + batch);
        let targets = samples.targets[at * count..(at + batch) * count].chunks_exact(count);
        for (y, t) in y.chunks_exact_mut(count).zip(targets) {
            let each = y.iter_mut().zip(t).zip(&norms).zip(rows.activations);
            for (((y, &t), &norm), f) in each {
                let (value, slope) = f.apply(*y);
                *y = (value - t) * slope * norm;
            }
        }
        gradient.fill(0.0);
        let inputs = &samples.inputs[at * cols..(at + batch) * cols];
        if count == 1 {
            for (&e, x) in y.iter().zip(inputs.chunks_exact(cols)) {
                gradient.iter_mut().zip(x).for_each(|(g, x)| *g += e * x);
            }
        } else {
            add_atb(&mut gradient, &y, inputs, batch, 1.0);
        }
        let (lambda, beta) = regulariser(step, options);
        finish_gradient(&mut gradient, &soft, lambda, beta);
        adam.step(&mut soft.v, &gradient);
    }
    let learned = soft.hard(rows.grid);
    keep_better(rows, samples, nearest, before, &learned)
}

pub(super) fn finish_gradient(gradient: &mut [f32], soft: &Soft, lambda: f32, beta: f32) {
    let known = soft.h.iter().zip(&soft.slope).zip(&soft.delta);
    if lambda == 0.0 {
        for (g, ((_, &slope), &delta)) in gradient.iter_mut().zip(known) {
            *g *= delta * slope;
        }
        return;
    }
    let unit = 2.0 * lambda * beta;
    for (g, ((&h, &slope), &delta)) in gradient.iter_mut().zip(known) {
        let d = 2.0 * h - 1.0;
        let pull = (unit * fast::power(d.abs(), beta - 1.0)).copysign(d);
        *g = (*g * delta - pull) * slope;
    }
}

/// λ and β at a step: no regulariser in the warm start, then β falls along a cosine.
pub(super) fn regulariser(step: usize, options: &Options) -> (f32, f32) {
    let at = step as f32 / options.iterations.max(1) as f32;
    if at < options.warm_start {
        return (0.0, options.beta.0);
    }
    let t = (at - options.warm_start) / (1.0 - options.warm_start);
    let (first, last) = options.beta;
    let beta = last + 0.5 * (first - last) * (1.0 + (t * std::f32::consts::PI).cos());
    (options.lambda, beta)
}

fn keep_better(
    rows: Rows<'_>,
    samples: Samples<'_>,
    mut weights: Vec<f32>,
    before: Vec<f64>,
    learned: &[f32],
) -> Rounded {
    let cols = rows.grid.cols;
    let mut after = errors(rows, learned, samples);
    for (row, (after, &before)) in after.iter_mut().zip(&before).enumerate() {
        let span = row * cols..(row + 1) * cols;
        if *after < before {
            weights[span.clone()].copy_from_slice(&learned[span]);
        } else {
            *after = before;
        }
    }
    Rounded {
        weights,
        before,
        after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::QParams;
    use crate::optimize::random::Random;

    fn int4(scale: f32) -> QParams {
        QParams {
            scale,
            zero_point: 0,
            qmin: -8,
            qmax: 7,
        }
    }

    fn normal(random: &mut Random) -> f32 {
        (0..12).map(|_| random.unit()).sum::<f32>() - 6.0
    }

    #[test]
    fn nearest_is_not_optimal_and_learning_finds_the_optimum() {
        // Two inputs that are always equal: the sum of both weights counts, and nearest rounds both the same way.
        let grid = Grid::per_row(2, &[int4(1.0)]);
        let (weights, bias) = ([0.4f32, 0.45], [0.0]);
        let mut random = Random::new(5);
        let inputs: Vec<f32> = (0..64)
            .map(|_| normal(&mut random))
            .flat_map(|x| [x, x])
            .collect();
        let targets: Vec<f32> = inputs.chunks(2).map(|x| 0.4 * x[0] + 0.45 * x[1]).collect();
        let rows = Rows {
            weights: &weights,
            bias: &bias,
            grid: &grid,
            activations: &[Activation::NONE],
        };
        let samples = Samples {
            inputs: &inputs,
            targets: &targets,
            residual: None,
        };
        let done = adaround(rows, samples, &Options::default());
        assert_eq!(grid.nearest(&weights), [0.0, 0.0]);
        // Of the four roundings the best two have the sum 1: an error of 0.15 instead of 0.85.
        assert_eq!(done.weights.iter().sum::<f32>(), 1.0);
        assert!((done.after[0] / done.before[0] - (0.15f64 / 0.85).powi(2)).abs() < 1e-3);
    }

    #[test]
    fn the_objective_falls_and_rounding_moves_by_one_step_only() {
        let mut random = Random::new(7);
        let (count, cols, n) = (70, 40, 700);
        let weights: Vec<f32> = (0..count * cols).map(|_| normal(&mut random)).collect();
        let bias: Vec<f32> = (0..count).map(|_| normal(&mut random)).collect();
        let params: Vec<QParams> = (0..count).map(|_| int4(0.4)).collect();
        let grid = Grid::per_row(cols, &params);
        let mix: Vec<f32> = (0..cols * cols).map(|_| normal(&mut random)).collect();
        let raw: Vec<f32> = (0..n * cols)
            .map(|_| normal(&mut random).max(0.0))
            .collect();
        let inputs = crate::optimize::matrix::abt(&raw, &mix, cols);
        let relu = Activation::Clamp {
            low: 0.0,
            high: f32::INFINITY,
        };
        let rows = Rows {
            weights: &weights,
            bias: &bias,
            grid: &grid,
            activations: &vec![relu; count],
        };
        let residual: Vec<f32> = (0..n * count).map(|_| normal(&mut random)).collect();
        let blank = vec![0.0; n * count];
        let samples = Samples {
            inputs: &inputs,
            targets: &blank,
            residual: Some(&residual),
        };
        let targets: Vec<f32> = forward(rows, &weights, samples, 0..n)
            .into_iter()
            .map(|y| relu.apply(y).0)
            .collect();
        let samples = Samples {
            targets: &targets,
            ..samples
        };
        let options = Options {
            iterations: 600,
            ..Options::default()
        };
        let done = adaround(rows, samples, &options);
        let (before, after): (f64, f64) = (done.before.iter().sum(), done.after.iter().sum());
        assert!(after < 0.4 * before, "{before} → {after}");
        let nearest = grid.nearest(&weights);
        let mut moved = 0;
        for (i, (&q, &r)) in done.weights.iter().zip(&nearest).enumerate() {
            let (low, high) = grid.cell(i / cols, i % cols).neighbours(weights[i]);
            assert!(q == low || q == high);
            assert!((q - r).abs() < 0.41);
            moved += usize::from(q != r);
        }
        assert!(moved > count * cols / 20, "{moved}");
        let again = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let again = again.map(|pool| pool.install(|| adaround(rows, samples, &options)));
        assert!(again.is_ok_and(|a| a == done));
    }
}
