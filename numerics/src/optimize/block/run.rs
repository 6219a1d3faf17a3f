//! A block forward and backward, one sample at a time.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;

use super::elements::{Codes, activate, activate_back, mix, quantized, quantized_back, sum};
use super::taps::Taps;
use super::{Block, Data, State, Step, Value};
use crate::optimize::matrix::{add_ab, add_abt, add_atb};
use crate::optimize::random::Random;

/// Tasks that share the samples of a step.
const TASKS: usize = 4;

/// What a pass over one sample leaves. What comes from outside is borrowed.
type Values<'a> = Vec<Cow<'a, [f32]>>;

/// Gradients of the weights and biases by layer, and of the logarithms of the scales.
pub(super) struct Sums {
    pub(super) weights: Vec<Vec<f32>>,
    pub(super) biases: Vec<Vec<f32>>,
    pub(super) scales: Vec<f32>,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        let mine = self.weights.iter_mut().chain(&mut self.biases);
        let theirs = other.weights.iter().chain(&other.biases);
        let pairs = mine.zip(theirs).chain([(&mut self.scales, &other.scales)]);
        for (mine, theirs) in pairs {
            mine.iter_mut().zip(theirs).for_each(|(m, t)| *m += t);
        }
    }
}

/// A block that is ready to run.
pub(super) struct Ready<'a> {
    pub(super) block: &'a Block,
    pub(super) taps: Vec<Option<Taps>>,
    /// Which values need gradients.
    pub(super) live: Vec<bool>,
}

impl<'b> Ready<'b> {
    /// All values of a sample. With `drop` every element of an activation is quantized or not, at even odds.
    pub(super) fn forward<'a>(
        &self,
        state: &State,
        inputs: &'a [Value],
        mut drop: Option<&mut Random>,
    ) -> Values<'a>
    where
        'b: 'a,
    {
        let b = self.block;
        let mut values: Values<'a> = vec![Cow::Borrowed(&[][..]); b.values];
        for (&at, x) in b.inputs.iter().zip(inputs) {
            values[at] = x.get();
        }
        for (at, x) in &b.constants {
            values[*at] = Cow::Borrowed(x);
        }
        for step in &b.steps {
            let (output, result) = match step {
                &Step::Linear {
                    layer,
                    input,
                    output,
                } => (output, self.linear(layer, state, &values[input])),
                Step::Apply { op, inputs, output } => {
                    let x: Vec<&[f32]> = inputs.iter().map(|&i| &*values[i]).collect();
                    (*output, op.forward(&x))
                }
                Step::Activate {
                    input,
                    output,
                    activations,
                    run,
                } => {
                    let mut y = values[*input].to_vec();
                    let each = activations.iter().cycle();
                    for (run, f) in y.chunks_mut(*run).zip(each) {
                        activate(run, *f);
                    }
                    (*output, y)
                }
                &Step::Quantize {
                    input,
                    output,
                    quantizer,
                } => {
                    let mut y = quantized(&values[input], self.codes(state, quantizer));
                    if let Some(random) = drop.as_deref_mut() {
                        mix(&mut y, &values[input], random);
                    }
                    (output, y)
                }
            };
            values[output] = Cow::Owned(result);
        }
        values
    }

    fn linear(&self, layer: usize, state: &State, x: &[f32]) -> Vec<f32> {
        let l = &self.block.layers[layer];
        let (weights, bias) = (&state.weights[layer], &state.biases[layer]);
        let (rows, cols) = (l.bias.len(), l.grid.cols);
        let Some(taps) = &self.taps[layer] else {
            let tokens = x.len() / cols;
            let mut y = bias.repeat(tokens);
            add_abt(&mut y, x, weights, cols, 1.0);
            return y;
        };
        let p = taps.positions;
        let mut y = vec![0.0; rows * p];
        let pairs = y.chunks_exact_mut(p.max(1)).zip(bias);
        pairs.for_each(|(y, &b)| y.fill(b));
        let (per_rows, size) = (rows / l.groups, x.len() / l.groups);
        for g in 0..l.groups {
            let x = &x[g * size..(g + 1) * size];
            if per_rows == 1 && cols == taps.count {
                let y = &mut y[g * p..(g + 1) * p];
                taps.add_row(y, &weights[g * cols..(g + 1) * cols], x);
                continue;
            }
            let own = if taps.plain {
                None
            } else {
                Some(taps.columns(x))
            };
            let columns = own.as_deref().unwrap_or(x);
            let w = &weights[g * per_rows * cols..(g + 1) * per_rows * cols];
            let y = &mut y[g * per_rows * p..(g + 1) * per_rows * p];
            add_ab(y, w, columns, cols, 1.0);
        }
        y
    }

    /// The gradients behind `values` for the gradient `last` of the result.
    fn backward(&self, state: &State, values: &Values<'_>, last: Vec<f32>, sums: &mut Sums) {
        let b = self.block;
        // Empty where nothing has reached a value yet.
        let mut grads: Vec<Vec<f32>> = vec![Vec::new(); b.values];
        grads[b.output] = last;
        for step in b.steps.iter().rev() {
            if grads[step.output()].is_empty() {
                continue;
            }
            match step {
                &Step::Linear {
                    layer,
                    input,
                    output,
                } => {
                    let dy = std::mem::take(&mut grads[output]);
                    let x = &values[input];
                    let dx = self.live[input].then(|| begun(&mut grads[input], x.len()));
                    self.add_sums(layer, &dy, &mut sums.biases[layer]);
                    self.linear_back(
                        layer,
                        &state.weights[layer],
                        x,
                        &dy,
                        (dx, &mut sums.weights[layer]),
                    );
                }
                Step::Apply { op, inputs, output } => {
                    let dy = std::mem::take(&mut grads[*output]);
                    let x: Vec<&[f32]> = inputs.iter().map(|&i| &*values[i]).collect();
                    for (at, &input) in inputs.iter().enumerate() {
                        if self.live[input] {
                            let dx = op.gradient(&x, &values[*output], &dy, at);
                            add(&mut grads[input], dx);
                        }
                    }
                }
                Step::Activate {
                    input,
                    output,
                    activations,
                    run,
                } => {
                    let dy = std::mem::take(&mut grads[*output]);
                    if !self.live[*input] {
                        continue;
                    }
                    let runs = values[*input].chunks(*run).zip(dy.chunks(*run));
                    let runs = runs.zip(activations.iter().cycle());
                    let grad = begun(&mut grads[*input], dy.len());
                    for (g, ((x, d), f)) in grad.chunks_mut(*run).zip(runs) {
                        activate_back(g, (x, d), *f);
                    }
                }
                &Step::Quantize {
                    input,
                    output,
                    quantizer,
                } => {
                    let dy = std::mem::take(&mut grads[output]);
                    let grad = begun(&mut grads[input], dy.len());
                    let made = (&*values[input], &*values[output]);
                    let codes = self.codes(state, quantizer);
                    sums.scales[quantizer] += quantized_back(made, &dy, codes, grad);
                }
            }
        }
    }

    /// A quantizer as it is in a state.
    fn codes(&self, state: &State, quantizer: usize) -> Codes {
        let q = &self.block.quantizers[quantizer];
        Codes {
            scale: state.scales[quantizer],
            low: q.low,
            high: q.high,
        }
    }

    /// Adds the gradient of each row's bias.
    fn add_sums(&self, layer: usize, dy: &[f32], sums: &mut [f32]) {
        let rows = sums.len();
        match &self.taps[layer] {
            Some(taps) => {
                let pairs = sums.iter_mut().zip(dy.chunks_exact(taps.positions));
                pairs.for_each(|(s, d)| *s += sum(d));
            }
            None => {
                for d in dy.chunks_exact(rows) {
                    sums.iter_mut().zip(d).for_each(|(s, d)| *s += d);
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
            if per_rows == 1 && cols == taps.count {
                let (span, own) = (g * cols..(g + 1) * cols, g * size..(g + 1) * size);
                let known = (&weights[span.clone()], &x[own.clone()]);
                let dx = dx.as_deref_mut().map(|dx| &mut dx[own]);
                taps.row_back(&dy[g * p..(g + 1) * p], known, &mut dw[span], dx);
                continue;
            }
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

    /// Gradients of a batch, summed in the order of the samples.
    pub(super) fn batch(
        &self,
        state: &State,
        data: &Data,
        (batch, unit): (&[usize], f32),
        drop: Option<u64>,
    ) -> Sums {
        let zero = || Sums {
            weights: state.weights.iter().map(|w| vec![0.0; w.len()]).collect(),
            biases: state.biases.iter().map(|b| vec![0.0; b.len()]).collect(),
            scales: vec![0.0; state.scales.len()],
        };
        let parts: Vec<Sums> = batch
            .par_chunks(batch.len().div_ceil(TASKS).max(1))
            .map(|samples| {
                let mut sums = zero();
                for &s in samples {
                    let mut random = drop.map(|seed| Random::new(seed ^ s as u64));
                    let mixed = random.as_mut().and_then(|r| mixed_inputs(data, s, r));
                    let inputs = mixed.as_deref().unwrap_or(&data.inputs[s]);
                    let values = self.forward(state, inputs, random.as_mut());
                    let mut last = values[self.block.output].to_vec();
                    let target = data.targets[s].get();
                    data.hide(s, &mut last, &target);
                    for (y, t) in last.iter_mut().zip(&*target) {
                        *y = 2.0 * (*y - t) * unit;
                    }
                    self.backward(state, &values, last, &mut sums);
                }
                sums
            })
            .collect();
        let mut total = zero();
        parts.iter().for_each(|part| total.add(part));
        total
    }
}

/// A gradient that may be added to.
fn begun(gradient: &mut Vec<f32>, size: usize) -> &mut Vec<f32> {
    if gradient.is_empty() {
        gradient.resize(size, 0.0);
    }
    gradient
}

fn add(gradient: &mut Vec<f32>, more: Vec<f32>) {
    if gradient.is_empty() {
        *gradient = more;
    } else {
        gradient.iter_mut().zip(more).for_each(|(g, m)| *g += m);
    }
}

/// The inputs of a sample, every element that of the quantized model or that of the float model.
fn mixed_inputs(data: &Data, sample: usize, random: &mut Random) -> Option<Vec<Value>> {
    let pairs = data.inputs[sample].iter().zip(data.float.get(sample)?);
    let mixed = pairs.map(|(x, float)| -> Value {
        let (own, float) = (x.get(), float.get());
        if own == float {
            return x.clone();
        }
        let mut own = own.into_owned();
        mix(&mut own, &float, random);
        Arc::new(own)
    });
    Some(mixed.collect())
}
