//! The least value of each channel before a Relu, on calibration data: what of its bias can be absorbed behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, Tensor, ValueId};
use onnx_quant_passes::absorb_biases::{self, LeastValues, Site};

use super::flow::Flow;
use super::store::Budget;
use crate::data::{Batch, DataSet};
use crate::error::Error;

/// Measures the values before the Relu whose bias can be absorbed.
///
/// # Errors
/// A model that cannot be run.
pub(super) fn least_values(
    model: &Model,
    data: &DataSet,
    engine: &Arc<dyn Engine>,
) -> Result<LeastValues, Error> {
    let nodes = model.main().nodes.iter();
    let sites: Vec<Site> = nodes
        .filter_map(|&n| absorb_biases::site(model, n)?.ok())
        .collect();
    if sites.is_empty() {
        return Ok(LeastValues::default());
    }
    let values: Vec<ValueId> = sites.iter().map(|s| s.value).collect();
    let mut least: Vec<Vec<f64>> = sites
        .iter()
        .map(|s| vec![f64::INFINITY; s.channels])
        .collect();
    let measure = |_: &Batch, tensors: Vec<Tensor>| {
        let pairs = tensors.iter().zip(&sites);
        Ok(pairs.map(|(t, site)| minima(t, site)).collect::<Vec<_>>())
    };
    Flow::new(engine, data, &Budget::new(0)).run(model, &values, measure, |parts| {
        for (all, part) in least.iter_mut().zip(parts) {
            all.iter_mut().zip(part).for_each(|(a, p)| *a = a.min(p));
        }
        Ok(())
    })?;
    let keys = values.iter().map(|&v| model.value_key(v));
    let known = keys
        .zip(least)
        .filter(|(_, l)| l.iter().all(|x| x.is_finite()));
    Ok(LeastValues(known.collect::<BTreeMap<_, _>>()))
}

/// The least value of each channel; `−∞` where the tensor cannot be read.
fn minima(tensor: &Tensor, site: &Site) -> Vec<f64> {
    let mut least = vec![f64::INFINITY; site.channels];
    let behind = match site.axis {
        Some(axis) => tensor.dims().iter().skip(axis + 1).product::<i64>() as usize,
        None => 1,
    };
    let Some(values) = tensor.to_f32().ok().filter(|_| behind > 0) else {
        return vec![f64::NEG_INFINITY; site.channels];
    };
    for (i, &x) in values.iter().enumerate() {
        let at = &mut least[i / behind % site.channels];
        *at = at.min(f64::from(x));
    }
    least
}
