//! The search for the factors of SmoothQuant and AWQ: for each activation the exponent α with the least error of what its
//! readers compute, kept only where held-out rows agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};
use onnx_quant_numerics::affine::{QOptions, QParams, choose_qparams};
use onnx_quant_numerics::histogram::Histogram;
use onnx_quant_numerics::observer::{self, Target};
use onnx_quant_numerics::optimize::matrix::abt;
use onnx_quant_numerics::optimize::random::Random;
use onnx_quant_numerics::optimize::scales;
use onnx_quant_numerics::quantize::fake_quant;
use onnx_quant_passes::layer::Matrix;
use onnx_quant_passes::plan::{Precision, PrecisionPlan, WeightPlan};
use onnx_quant_passes::settings::QuantSettings;
use onnx_quant_passes::smooth_activations::{ChannelFactors, Factors};
use onnx_quant_passes::{ops, quantize_weights};
use rayon::prelude::*;

use super::flow::Flow;
use super::padding::Padding;
use super::store::Budget;
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::pipeline::{Run, Watch, plan_passes};

/// Rows of an activation that are looked at.
const ROWS: usize = 1024;
/// Samples that are run.
const SAMPLES: usize = 64;
/// Exponents that are tried.
const ALPHAS: [f32; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// A gain below this share is none.
const WORTH: f64 = 0.02;

/// An activation with the products that read it.
struct Site {
    value: ValueId,
    /// Node, form of its weight, matrix.
    readers: Vec<(NodeId, WeightPlan, Matrix)>,
    /// The activation is quantized too.
    quantized: bool,
    channels: usize,
}

/// Searches factors for the activations of a normalized model.
///
/// # Errors
/// A model that cannot be run.
pub(super) fn search(
    model: &Model,
    settings: &QuantSettings,
    data: &DataSet,
    engine: &Arc<dyn Engine>,
    seed: u64,
) -> Result<(ChannelFactors, usize), Error> {
    let mut run = Run::new(Watch::default())?;
    run.cx.insert(settings.clone());
    let mut planned = model.clone();
    run.passes(plan_passes(), &mut planned)?;
    let plan = run.cx.take::<PrecisionPlan>().unwrap_or_default();
    let sites = sites(model, &plan);
    if sites.is_empty() {
        return Ok((ChannelFactors::default(), 0));
    }
    let data = data.clone().limit(SAMPLES);
    let flow = Flow::new(engine, &data, &Budget::new(0));
    let values: Vec<ValueId> = sites.iter().map(|s| s.value).collect();
    // The range of a quantized activation has to hold what stands at padding too, and its step follows.
    let padding = match settings.activations {
        Some(_) => Padding::default(),
        None => Padding::of(&data)?,
    };
    let per_sample = ROWS.div_ceil(data.len().max(1));
    let mut rows: Vec<[Vec<f32>; 2]> = vec![[Vec::new(), Vec::new()]; sites.len()];
    let pick = |batch: &Batch, tensors: Vec<Tensor>| {
        let each = tensors.iter().zip(&sites).enumerate();
        let picked: Vec<[Vec<f32>; 2]> = each
            .map(|(i, (t, site))| {
                pick_rows(
                    t,
                    site.channels,
                    (batch, &padding),
                    per_sample,
                    seed ^ (i as u64) << 32,
                )
            })
            .collect();
        Ok(picked)
    };
    flow.run(model, &values, pick, |picked| {
        for (all, part) in rows.iter_mut().zip(picked) {
            let [learn, judge] = part;
            all[0].extend(learn);
            all[1].extend(judge);
        }
        Ok(())
    })?;
    let found: Vec<Option<Vec<f32>>> = sites
        .par_iter()
        .zip(&rows)
        .map(|(site, rows)| best(model, settings, site, rows))
        .collect();
    let mut factors = BTreeMap::new();
    for (site, values) in sites.iter().zip(found) {
        if let Some(values) = values {
            let readers: BTreeSet<String> = site
                .readers
                .iter()
                .map(|(n, _, _)| model.node_key(*n))
                .collect();
            factors.insert(model.value_key(site.value), Factors { values, readers });
        }
    }
    Ok((ChannelFactors(factors), sites.len()))
}

fn sites(model: &Model, plan: &PrecisionPlan) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for &node in &model.main().nodes {
        let key = model.node_key(node);
        let Some(mode) = plan.node(&key).map(|n| n.precision) else {
            continue;
        };
        let quantized = mode == Precision::Integer;
        if !quantized && mode != Precision::WeightOnly
            || !matches!(model.node(node).op_type(), "MatMul" | "Gemm")
        {
            continue;
        }
        let Some(Ok(linear)) = ops::linear(model, node) else {
            continue;
        };
        let form = plan
            .weights
            .iter()
            .find(|f| f.readers.contains(&(key.clone(), linear.weight)));
        let (Some(value), Ok(matrix), Some(form)) = (
            model.input(node, linear.activation),
            Matrix::of(model, node),
            form,
        ) else {
            continue;
        };
        if model.constant(value).is_some() || linear.weight != 1 {
            continue;
        }
        let entry = (node, form.clone(), matrix.clone());
        match sites
            .iter_mut()
            .find(|s| s.value == value && s.quantized == quantized && s.channels == matrix.cols)
        {
            Some(site) => site.readers.push(entry),
            None => sites.push(Site {
                value,
                channels: matrix.cols,
                readers: vec![entry],
                quantized,
            }),
        }
    }
    sites
}

fn pick_rows(
    tensor: &Tensor,
    channels: usize,
    (batch, padding): (&Batch, &Padding),
    per_sample: usize,
    seed: u64,
) -> [Vec<f32>; 2] {
    let Ok(x) = tensor.to_f32() else {
        return Default::default();
    };
    let rows = rows(tensor, channels, batch, padding);
    let mut random = Random::new(seed ^ batch.index as u64);
    let mut out: [Vec<f32>; 2] = Default::default();
    if rows.is_empty() {
        return out;
    }
    for _ in 0..(per_sample * batch.samples).min(rows.len()) {
        let r = rows[random.below(rows.len())];
        // Every fourth row judges what the others chose.
        let side = usize::from(random.below(4) == 3);
        out[side].extend_from_slice(&x[r * channels..(r + 1) * channels]);
    }
    out
}

/// The rows of an activation that are no padding.
fn rows(tensor: &Tensor, channels: usize, batch: &Batch, padding: &Padding) -> Vec<usize> {
    let dims: Vec<usize> = tensor.dims().iter().map(|&d| d as usize).collect();
    let fed = batch.samples + batch.padded;
    match dims[..] {
        [n, positions, width] if n == fed && width == channels => {
            let of = |sample| {
                let own = padding.positions(batch.first_sample + sample, positions);
                own.into_iter().map(move |p| sample * positions + p)
            };
            (0..batch.samples).flat_map(of).collect()
        }
        _ => (0..dims.iter().product::<usize>() / channels.max(1)).collect(),
    }
}

/// The factors with the least error, where they pay on held-out rows.
fn best(
    model: &Model,
    settings: &QuantSettings,
    site: &Site,
    [learn, judge]: &[Vec<f32>; 2],
) -> Option<Vec<f32>> {
    let n = site.channels;
    if learn.len() < 8 * n || judge.is_empty() || learn.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let mut largest = vec![0.0f32; n];
    let mut mean = vec![0.0f32; n];
    for row in learn.chunks_exact(n) {
        for ((l, m), x) in largest.iter_mut().zip(&mut mean).zip(row) {
            *l = l.max(x.abs());
            *m += x.abs();
        }
    }
    let rows = (learn.len() / n) as f32;
    mean.iter_mut().for_each(|m| *m /= rows);
    let weights: Vec<Vec<f32>> = site
        .readers
        .iter()
        .map(|(node, _, matrix)| {
            let t = model.input_constant(*node, 1)?;
            Some(matrix.gather(&t.to_f32().ok()?))
        })
        .collect::<Option<_>>()?;
    let mut heaviest = vec![0.0f32; n];
    for row in weights.iter().flat_map(|w| w.chunks_exact(n)) {
        heaviest
            .iter_mut()
            .zip(row)
            .for_each(|(h, w)| *h = h.max(w.abs()));
    }
    let trial = |factors: &[f32], x: &[f32]| error(model, settings, site, &weights, factors, x);
    let ones = vec![1.0f32; n];
    let before = trial(&ones, learn)?;
    let mut best: Option<(f64, Vec<f32>)> = None;
    for alpha in ALPHAS {
        let factors = match site.quantized {
            true => scales::smooth_factors(&largest, &heaviest, alpha),
            false => scales::awq_factors(&mean, alpha),
        };
        let e = trial(&factors, learn)?;
        if best.as_ref().is_none_or(|(least, _)| e < *least) {
            best = Some((e, factors));
        }
    }
    let (least, factors) = best?;
    let pays = |now: f64, was: f64| now < (1.0 - WORTH) * was;
    (pays(least, before) && pays(trial(&factors, judge)?, trial(&ones, judge)?)).then_some(factors)
}

/// The squared error of all readers on some rows with some factors.
fn error(
    model: &Model,
    settings: &QuantSettings,
    site: &Site,
    weights: &[Vec<f32>],
    factors: &[f32],
    x: &[f32],
) -> Option<f64> {
    let n = site.channels;
    let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
    let mut seen = scales::scale_columns(x, &inverse);
    if site.quantized {
        let params = activation_params(settings, &seen)?;
        fake_quant(&mut seen, &params);
    }
    let mut sum = 0.0;
    for ((node, form, matrix), weights) in site.readers.iter().zip(weights) {
        let scaled = scales::scale_columns(weights, factors);
        let rounded = rounded(model, settings, *node, form, matrix, &scaled)?;
        let exact = abt(x, weights, n);
        let found = abt(&seen, &rounded, n);
        sum += exact
            .iter()
            .zip(&found)
            .map(|(a, b)| f64::from(a - b) * f64::from(a - b))
            .sum::<f64>();
    }
    sum.is_finite().then_some(sum)
}

fn activation_params(settings: &QuantSettings, x: &[f32]) -> Option<QParams> {
    let base = settings.activations?.base;
    let options = QOptions {
        narrow: false,
        reduce_range: settings.reduce_range,
    };
    let scheme = settings.activation_scheme;
    let mut histogram = Histogram::new();
    histogram.observe(x);
    let target = Target {
        base,
        scheme,
        options,
    };
    let (min, max) = observer::range_for(&histogram, settings.calibrator, target).ok()?;
    choose_qparams(min, max, base, scheme, options).ok()
}

/// A weight, as a matrix, as its form stores it.
fn rounded(
    model: &Model,
    settings: &QuantSettings,
    node: NodeId,
    form: &WeightPlan,
    matrix: &Matrix,
    weights: &[f32],
) -> Option<Vec<f32>> {
    let value = model.input(node, 1)?;
    let dims = model.constant(value)?.dims().to_vec();
    let mut model = model.clone();
    model.set_initializer(value, Tensor::from_f32(&dims, &matrix.scatter(weights)));
    let grid = quantize_weights::grid(&model, value, form, settings, None).ok()?;
    Some(matrix.gather(&grid.rounded()))
}
