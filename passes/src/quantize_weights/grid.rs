//! The values that a weight may take in its form, for methods that choose among them.

use onnx_quant_ir::{Model, ValueId};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::blockfloat::{e8m0_decode, mx_scales, nvfp4_scales};
use onnx_quant_numerics::format::{Base, Family, Granularity};
use onnx_quant_numerics::grouping::Grouping;
use onnx_quant_numerics::minifloat::MiniFloat;
use onnx_quant_numerics::optimize::grid::Levels;
use onnx_quant_numerics::scaling::{ScaleKind, choose_scales};

use super::encode::{View, integer_params, quantizer, vector_params};
use super::readers;
use crate::codebook_weights::{self, Coded};
use crate::plan::WeightPlan;
use crate::settings::QuantSettings;

/// A weight and the values that it may take.
#[derive(Debug, Clone)]
pub struct WeightGrid {
    /// Elements in the tensor's order.
    pub data: Vec<f32>,
    /// The group of each element.
    pub grouping: Grouping,
    /// The scale of each group.
    pub scales: Vec<f32>,
    /// The zero point of each group.
    pub zeros: Vec<i32>,
    /// The codes.
    pub levels: Levels,
    /// How a scale is stored; `None` where scales cannot be chosen one by one.
    pub free: Option<ScaleKind>,
}

impl WeightGrid {
    /// The weight rounded to the nearest values.
    pub fn rounded(&self) -> Vec<f32> {
        let cells = onnx_quant_numerics::optimize::grid::Grid {
            cols: 1,
            block: 1,
            scales: self.scales.clone(),
            zeros: self.zeros.clone(),
            levels: self.levels.clone(),
        };
        let values = self.data.iter().enumerate();
        values
            .map(|(i, &x)| cells.cell_of(self.grouping.group_of(i)).nearest(x))
            .collect()
    }
}

/// The values that a weight may take in the form that the plan gives it, with the scales or codebooks that it gets by itself;
/// `importance` says how much its values count in a codebook.
///
/// # Errors
/// Why it has none.
pub fn grid(
    model: &Model,
    value: ValueId,
    form: &WeightPlan,
    settings: &QuantSettings,
    importance: Option<&[f32]>,
) -> Result<WeightGrid, String> {
    let tensor = model.constant(value).ok_or("is not a constant")?;
    let data = tensor.to_f32().map_err(|e| e.to_string())?;
    let (base, granularity) = (form.format.base, form.granularity());
    let view = View::of(&data, tensor.dims(), form);
    let how = quantizer(base, settings, tensor.dtype());
    let grouping = view.grouping(granularity)?;
    let say = |e: &dyn std::fmt::Display| e.to_string();
    let of_params = |params: Vec<QParams>, free| {
        let (qmin, qmax) = params.first().map_or((0, 0), |p| (p.qmin, p.qmax));
        WeightGrid {
            data: data.clone(),
            grouping,
            scales: params.iter().map(|p| p.scale).collect(),
            zeros: params.iter().map(|p| p.zero_point).collect(),
            levels: Levels::Integer { qmin, qmax },
            free,
        }
    };
    let of_scales = |scales: Vec<f32>, element: MiniFloat| WeightGrid {
        data: data.clone(),
        grouping,
        zeros: vec![0; scales.len()],
        scales,
        levels: Levels::Table(ascending(element)),
        free: None,
    };
    match (base.info().family, granularity) {
        (Family::Integer | Family::FixedPoint, Granularity::Vsq(n)) => {
            Ok(of_params(vector_params(&view, n, &how)?, None))
        }
        (Family::Integer | Family::FixedPoint, _) => {
            let readers = readers(model, value, form);
            let raise = |p: &mut [QParams]| super::raise_for_biases(model, &readers, p);
            let params = integer_params(&view, granularity, &how, &raise, None)?;
            let free = base.info().family == Family::Integer;
            Ok(of_params(params, free.then_some(how.scale)))
        }
        (Family::Float, _) => {
            let element = base.element().unwrap_or(MiniFloat::E4m3);
            let scales = choose_scales(&data, grouping, element, how.calibrator, how.scale);
            Ok(of_scales(scales.map_err(|e| say(&e))?, element))
        }
        (Family::BlockFloat, _) => {
            let element = base.element().unwrap_or(MiniFloat::E2m1);
            let scales = if base == Base::Nvfp4 {
                nvfp4_scales(&data, grouping, how.calibrator)
                    .map_err(|e| say(&e))?
                    .scales()
            } else {
                let codes = mx_scales(&data, grouping, element, how.calibrator);
                let codes = codes.map_err(|e| say(&e))?;
                codes.into_iter().map(e8m0_decode).collect()
            };
            Ok(of_scales(scales, element))
        }
        (Family::Codebook | Family::Sign, _) => {
            let known = codebook_weights::encode(
                model,
                value,
                form,
                (importance, None),
                &settings.codebook,
            );
            codebooks(known?, data.clone(), grouping)
        }
        _ => Err(format!(
            "{base} has no grid of values that rounding could choose from"
        )),
    }
}

/// The codebooks of a weight, or the multiples of a scale that its signs stand for.
fn codebooks(coded: Coded, data: Vec<f32>, grouping: Grouping) -> Result<WeightGrid, String> {
    let count = grouping.count();
    if coded.groups.count() != count {
        return Err("its codebooks do not belong to its values".to_owned());
    }
    // The groups in the order of the grid.
    let mut order = vec![0; count];
    for group in 0..count {
        if let Some(at) = coded.groups.members(group).next() {
            order[grouping.group_of(at)] = group;
        }
    }
    let mut grid = WeightGrid {
        data,
        grouping,
        scales: vec![1.0; count],
        zeros: vec![0; count],
        levels: Levels::Table(Vec::new()),
        free: None,
    };
    match coded.levels {
        Some(levels) => {
            let scale = |&group: &usize| coded.entries[group].max(f32::MIN_POSITIVE);
            grid.scales = order.iter().map(scale).collect();
            grid.levels = Levels::Table(levels.to_vec());
        }
        None => {
            let book = |&group: &usize| distinct(coded.table(group).collect());
            grid.levels = Levels::Books(order.iter().map(book).collect());
            grid.zeros = (0..count as i32).collect();
        }
    }
    Ok(grid)
}

fn distinct(mut levels: Vec<f32>) -> Vec<f32> {
    levels.sort_by(f32::total_cmp);
    levels.dedup();
    levels
}

/// The finite values of a float format, each once.
fn ascending(element: MiniFloat) -> Vec<f32> {
    let levels = element.table().into_iter();
    distinct(levels.filter(|x| x.is_finite()).collect())
}
