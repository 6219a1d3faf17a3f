//! The methods on one layer, each kept only if the layer's output on held-out samples gets better.

use std::borrow::Cow;

use onnx_quant_numerics::optimize::adaround::{self, Activation, Rows as Matrix2};
use onnx_quant_numerics::optimize::grid::Grid;
use onnx_quant_numerics::optimize::matrix::Gram;
use onnx_quant_numerics::optimize::{bias, gptq, hqq, scales};
use onnx_quant_numerics::scaling::ScaleKind;
use onnx_quant_passes::layer::Matrix;
use rayon::prelude::*;

use super::Options;
use super::capture::{Rows, Samples};
use super::methods::Method;

/// A layer with its grid.
pub(super) struct Layer<'a> {
    /// The weight's matrix.
    pub(super) matrix: &'a Matrix,
    /// Float weights, as the matrix.
    pub(super) weights: Vec<f32>,
    /// One value for each row.
    pub(super) bias: Vec<f32>,
    /// What follows each row.
    pub(super) activations: Vec<Activation>,
    /// Zero points may be moved.
    pub(super) asymmetric: bool,
    /// Which parts of the weight share a scale.
    pub(super) ties: Ties,
    /// Convolutions learn their rounding, products round with error feedback, where a preset chose the methods.
    pub(super) convolution: bool,
    /// The bias cannot be changed.
    pub(super) fixed_bias: bool,
}

/// Which parts of a weight share a scale, beside the blocks of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ties {
    /// None: every entry of the grid is stored.
    Free,
    /// One scale serves the whole weight.
    One,
    /// Entries of different rows are stored once: scales stay.
    Some,
}

impl Ties {
    /// From the number of scales that are stored and of entries in the grid.
    pub(super) fn of(stored: usize, entries: usize) -> Self {
        match (stored, entries) {
            (a, b) if a == b => Self::Free,
            (1, _) => Self::One,
            _ => Self::Some,
        }
    }
}

/// What was chosen for a layer.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    /// Values on the grid.
    pub(super) values: Vec<f32>,
    /// The grid.
    pub(super) grid: Grid,
    /// Added to the bias.
    pub(super) delta: Vec<f32>,
    /// How the scales are stored, where each may be chosen.
    pub(super) free: Option<ScaleKind>,
    /// Mean squared error of the output on held-out rows: rounded to nearest, and now.
    pub(super) errors: (f64, f64),
    /// Methods that helped.
    pub(super) kept: Vec<Method>,
    /// Methods that were undone.
    pub(super) undone: Vec<Method>,
}

impl Chosen {
    /// Whether anything but rounding to nearest was chosen.
    pub(super) fn changed(&self) -> bool {
        !self.kept.is_empty()
    }
}

/// Runs the methods on a layer; `store` is how a scale is stored.
pub(super) fn improve(
    layer: &Layer<'_>,
    grid: Grid,
    samples: &Samples,
    options: &Options,
    store: &(dyn Fn(f32) -> f32 + Sync),
) -> Chosen {
    let judge = if samples.held.count > 0 {
        &samples.held
    } else {
        &samples.train
    };
    let zero = vec![0.0; layer.matrix.rows];
    let values = grid.nearest(&layer.weights);
    let first = layer.error(&values, &grid, &zero, judge);
    let mut best = Chosen {
        values,
        grid,
        delta: zero,
        free: None,
        errors: (first, first),
        kept: Vec::new(),
        undone: Vec::new(),
    };
    let grams = Grams::of(layer.matrix, &samples.train, &options.methods);
    for method in Method::ALL {
        if !layer.wants(method, options) {
            continue;
        }
        let Some((values, grid, delta)) =
            layer.propose(method, &best, samples, &grams, options, store)
        else {
            continue;
        };
        let error = layer.error(&values, &grid, &delta, judge);
        if error < best.errors.1 {
            best.values = values;
            best.grid = grid;
            best.delta = delta;
            best.errors.1 = error;
            best.kept.push(method);
        } else if error > best.errors.1 {
            best.undone.push(method);
        }
    }
    best
}

/// Chooses scales by the weights alone.
pub(super) fn improve_without_data(
    layer: &Layer<'_>,
    grid: Grid,
    options: &Options,
    store: &(dyn Fn(f32) -> f32 + Sync),
) -> Chosen {
    let error = |grid: &Grid| -> f64 {
        let pairs = grid.nearest(&layer.weights).into_iter().zip(&layer.weights);
        pairs
            .map(|(q, w)| f64::from(q - w) * f64::from(q - w))
            .sum()
    };
    let first = error(&grid);
    let mut best = Chosen {
        values: Vec::new(),
        grid,
        delta: vec![0.0; layer.matrix.rows],
        free: None,
        errors: (first, first),
        kept: Vec::new(),
        undone: Vec::new(),
    };
    if layer.ties == Ties::Free {
        let methods = &options.methods;
        let before = best.grid.clone();
        if methods.has(Method::MseScales) {
            scales::search_scales(&mut best.grid, &layer.weights, None, store);
            best.kept.push(Method::MseScales);
        }
        if methods.has(Method::Hqq) {
            hqq::hqq(
                &mut best.grid,
                &layer.weights,
                layer.asymmetric,
                store,
                &hqq::Options::default(),
            );
            best.kept.push(Method::Hqq);
        }
        if best.grid == before {
            best.kept.clear();
        }
    }
    best.errors.1 = error(&best.grid);
    best.values = best.grid.nearest(&layer.weights);
    best
}

/// Sums over the training rows, for each group.
struct Grams {
    /// `Σ x̂ x̂ᵀ`.
    seen: Vec<Gram>,
    /// `Σ x x̂ᵀ`.
    cross: Vec<Gram>,
}

impl Grams {
    fn of(matrix: &Matrix, rows: &Rows, methods: &super::Methods) -> Self {
        let sum = |x: &[f32], y: &[f32]| {
            let mut gram = Gram::new(matrix.cols, matrix.cols);
            gram.add(x, y);
            gram
        };
        let seen = rows.inputs.par_iter().map(|x| sum(x, x)).collect();
        let cross = match methods.has(Method::Gptq) {
            true => {
                let pairs = rows.float.par_iter().zip(&rows.inputs);
                pairs.map(|(x, y)| sum(x, y)).collect()
            }
            false => Vec::new(),
        };
        Self { seen, cross }
    }
}

type Proposal = (Vec<f32>, Grid, Vec<f32>);

impl Layer<'_> {
    fn wants(&self, method: Method, options: &Options) -> bool {
        let methods = &options.methods;
        let other_kind = methods.is_preset()
            && match method {
                // Error feedback starts from scales that serve the weights; those that serve the output of plain
                // rounding overfit.
                Method::MseScales => methods.has(Method::Gptq) && !self.convolution,
                Method::Adaround => !self.convolution,
                Method::Gptq => self.convolution,
                _ => false,
            };
        methods.has(method) && !other_kind && !(method == Method::BiasCorrection && self.fixed_bias)
    }

    fn propose(
        &self,
        method: Method,
        best: &Chosen,
        samples: &Samples,
        grams: &Grams,
        options: &Options,
        store: &(dyn Fn(f32) -> f32 + Sync),
    ) -> Option<Proposal> {
        let mut grid = best.grid.clone();
        let delta = best.delta.clone();
        match method {
            Method::Equalize
            | Method::AbsorbBiases
            | Method::SplitChannels
            | Method::Smooth
            | Method::Blocks
            | Method::LearnedSteps
            | Method::Qdrop => None,
            Method::MseScales if self.ties == Ties::Some => None,
            Method::MseScales => {
                self.search(&mut grid, grams, store);
                Some((grid.nearest(&self.weights), grid, delta))
            }
            Method::Hqq => {
                if self.ties != Ties::Free {
                    return None;
                }
                hqq::hqq(
                    &mut grid,
                    &self.weights,
                    self.asymmetric,
                    store,
                    &hqq::Options::default(),
                );
                Some((grid.nearest(&self.weights), grid, delta))
            }
            Method::Adaround => {
                let values = self.learn(&grid, &samples.train, options);
                Some((values, grid, delta))
            }
            Method::Gptq => Some((self.feed_back(&grid, grams)?, grid, delta)),
            Method::BiasCorrection => {
                let delta = self.correction(&best.values, &samples.train);
                Some((best.values.clone(), grid, delta))
            }
        }
    }

    /// The rows of a group.
    fn span(&self, group: usize) -> std::ops::Range<usize> {
        let n = self.matrix.group_rows();
        group * n..(group + 1) * n
    }

    fn weights_of(&self, group: usize) -> &[f32] {
        let rows = self.span(group);
        &self.weights[rows.start * self.matrix.cols..rows.end * self.matrix.cols]
    }

    fn search(&self, grid: &mut Grid, grams: &Grams, store: &(dyn Fn(f32) -> f32 + Sync)) {
        if self.ties == Ties::One {
            scales::search_shared_scale(grid, &self.weights, &grams.seen, store);
            return;
        }
        let parts: Vec<Grid> = (0..self.matrix.groups)
            .into_par_iter()
            .map(|g| {
                let mut part = grid.slice(self.span(g));
                scales::search_scales(&mut part, self.weights_of(g), Some(&grams.seen[g]), store);
                part
            })
            .collect();
        grid.scales = parts.into_iter().flat_map(|p| p.scales).collect();
    }

    /// One group's rows of a matrix `[count, rows]`.
    fn columns<'a>(&self, all: &'a [f32], group: usize) -> Cow<'a, [f32]> {
        if self.matrix.groups == 1 {
            return Cow::Borrowed(all);
        }
        let span = self.span(group);
        let rows = all.chunks_exact(self.matrix.rows);
        rows.flat_map(|r| &r[span.clone()]).copied().collect()
    }

    fn learn(&self, grid: &Grid, rows: &Rows, options: &Options) -> Vec<f32> {
        let settings = adaround::Options {
            iterations: options.iterations,
            ..adaround::Options::default()
        };
        let parts: Vec<Vec<f32>> = (0..self.matrix.groups)
            .into_par_iter()
            .map(|g| {
                let span = self.span(g);
                let part = grid.slice(span.clone());
                let targets = self.columns(&rows.targets, g);
                let residual = (!rows.residual.is_empty()).then(|| self.columns(&rows.residual, g));
                let samples = adaround::Samples {
                    inputs: &rows.inputs[g],
                    targets: &targets,
                    residual: residual.as_deref(),
                };
                let own = Matrix2 {
                    weights: self.weights_of(g),
                    bias: &self.bias[span.clone()],
                    grid: &part,
                    activations: &self.activations[span],
                };
                adaround::adaround(own, samples, &settings).weights
            })
            .collect();
        parts.concat()
    }

    fn feed_back(&self, grid: &Grid, grams: &Grams) -> Option<Vec<f32>> {
        let options = gptq::Options::default();
        let mut all = Vec::with_capacity(self.weights.len());
        for g in 0..self.matrix.groups {
            let part = grid.slice(self.span(g));
            let (seen, cross) = (&grams.seen[g], &grams.cross[g]);
            let wanted = gptq::retarget(self.weights_of(g), seen, cross, options.damping).ok()?;
            let mut values = gptq::gptq(&wanted, seen, &part, &options).ok()?;
            gptq::descend(&mut values, &wanted, seen, &part, 4);
            all.extend(values);
        }
        Some(all)
    }

    fn correction(&self, values: &[f32], rows: &Rows) -> Vec<f32> {
        let cols = self.matrix.cols;
        let mut delta = Vec::with_capacity(self.matrix.rows);
        for g in 0..self.matrix.groups {
            let span = self.span(g);
            let values = &values[span.start * cols..span.end * cols];
            let float = bias::column_means(&rows.float[g], cols);
            let seen = bias::column_means(&rows.inputs[g], cols);
            let part = bias::correction(self.weights_of(g), values, &float, &seen);
            delta.extend(part.into_iter().map(|d| d as f32));
        }
        delta
    }

    /// Mean squared error of the output, summed over the output channels.
    fn error(&self, values: &[f32], grid: &Grid, delta: &[f32], rows: &Rows) -> f64 {
        let cols = self.matrix.cols;
        let bias: Vec<f32> = self.bias.iter().zip(delta).map(|(b, d)| b + d).collect();
        let parts: Vec<f64> = (0..self.matrix.groups)
            .into_par_iter()
            .map(|g| {
                let span = self.span(g);
                let part = grid.slice(span.clone());
                let targets = self.columns(&rows.targets, g);
                let residual = (!rows.residual.is_empty()).then(|| self.columns(&rows.residual, g));
                let samples = adaround::Samples {
                    inputs: &rows.inputs[g],
                    targets: &targets,
                    residual: residual.as_deref(),
                };
                let own = Matrix2 {
                    weights: self.weights_of(g),
                    bias: &bias[span.clone()],
                    grid: &part,
                    activations: &self.activations[span.clone()],
                };
                let values = &values[span.start * cols..span.end * cols];
                adaround::errors(own, values, samples).iter().sum()
            })
            .collect();
        parts.iter().sum()
    }
}
