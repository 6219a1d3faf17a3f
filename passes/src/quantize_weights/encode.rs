//! From a weight to what is stored: codes, scales and zero points as tensors, for every format.
//!
//! A family of formats plugs in at [`encode`]: it makes [`Stored`] of the values, and `emit` writes that into the graph.

use onnx_quant_ir::{DataType, Model, NodeId, Tensor};
use onnx_quant_numerics::affine::{QOptions, QParams};
use onnx_quant_numerics::blockfloat::{mx_scales, nvfp4_scales};
use onnx_quant_numerics::encode::{
    Quantized, code_floats, code_integers, encode_groups, quantize_groups,
};
use onnx_quant_numerics::format::{Base, Family, Granularity};
use onnx_quant_numerics::grouping::Grouping;
use onnx_quant_numerics::minifloat::MiniFloat;
use onnx_quant_numerics::quantize::codes_to_bytes;
use onnx_quant_numerics::scaling::{WeightQuantizer, choose_params, choose_scales};
use onnx_quant_numerics::vsq::{VectorScales, vector_scales};

use crate::codebook_weights::{Coded, SignStorage};
use crate::overrides::WeightOverride;
use crate::plan::{BlockAxis, WeightPlan};
use crate::qdq;
use crate::settings::QuantSettings;

/// What is stored for a weight.
pub(super) struct Stored {
    /// The codes, in the shape that they are decoded in.
    pub codes: Tensor,
    /// Their scales.
    pub scale: Scale,
    /// Their zero points, where they are written.
    pub zero_point: Option<Tensor>,
    /// The axis of the scales, where there are several.
    pub axis: Option<usize>,
    /// Values of a block along the axis; 0 where there are no blocks.
    pub block: usize,
    /// The shape of the weight.
    pub dims: Vec<i64>,
}

/// The scales of codes.
pub(super) enum Scale {
    /// None: the codes are cast.
    None,
    /// Numbers.
    Float(Tensor),
    /// Powers of two.
    E8m0(Tensor),
    /// Codes that are dequantized by scales of their own, with the axis of those.
    Codes(Tensor, Tensor, Option<usize>),
}

/// A weight as it is looked at: the values in a shape, with the axes that matter.
pub(super) struct View<'a> {
    /// What scales are chosen from.
    data: &'a [f32],
    /// What is coded.
    values: &'a [f32],
    shape: Vec<usize>,
    /// Axis of the output channels.
    channel: Option<usize>,
    /// Axis of the blocks.
    along: usize,
}

impl<'a> View<'a> {
    pub(super) fn of(data: &'a [f32], dims: &[i64], form: &WeightPlan) -> Self {
        let dims: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
        let (shape, along) = match form.blocks {
            Some(BlockAxis::From(at)) => {
                let rest = dims[at..].iter().product();
                ([&dims[..at], &[rest]].concat(), at)
            }
            Some(BlockAxis::Axis(at)) => (dims, at),
            None => (dims, 0),
        };
        View {
            data,
            values: data,
            shape,
            channel: form.axis,
            along,
        }
    }

    /// Whether the values that scales are chosen from are those that are coded.
    fn is_plain(&self) -> bool {
        std::ptr::eq(self.data, self.values)
    }

    fn dims(&self) -> Vec<i64> {
        self.shape.iter().map(|&d| d as i64).collect()
    }

    pub(super) fn grouping(&self, granularity: Granularity) -> Result<Grouping, String> {
        let grouping = match (granularity, self.channel) {
            (Granularity::Block(n) | Granularity::Vsq(n), _) => {
                Grouping::blocks(&self.shape, self.along, n as usize)
            }
            (Granularity::Channel, Some(axis)) => Grouping::channels(&self.shape, axis),
            _ => Ok(Grouping::tensor(self.data.len())),
        };
        grouping.map_err(|e| e.to_string())
    }

    /// The shape of the scales.
    fn scale_dims(&self, granularity: Granularity) -> Vec<i64> {
        match (granularity, self.channel) {
            (Granularity::Block(n) | Granularity::Vsq(n), _) => {
                let mut dims = self.dims();
                dims[self.along] = self.shape[self.along].div_ceil(n as usize) as i64;
                dims
            }
            (Granularity::Channel, Some(axis)) => vec![self.shape[axis] as i64],
            _ => vec![],
        }
    }
}

/// The codes of a weight.
///
/// # Errors
/// In words, why it has none.
pub(super) fn encode(
    model: &Model,
    tensor: &Tensor,
    form: &WeightPlan,
    readers: &[(NodeId, usize)],
    (settings, chosen): (&QuantSettings, Option<&WeightOverride>),
) -> Result<Stored, String> {
    let base = form.format.base;
    let data = tensor.to_f32().map_err(|e| e.to_string())?;
    let mut view = View::of(&data, tensor.dims(), form);
    if let Some(chosen) = chosen {
        if chosen.values.len() != data.len() {
            return Err("the values that were chosen for it have another shape".to_owned());
        }
        view.values = &chosen.values;
    }
    let params = chosen.and_then(|c| c.params.as_deref());
    let float = tensor.dtype();
    let how = quantizer(base, settings, float);
    let (family, granularity) = (base.info().family, form.granularity());
    let parts = match (family, granularity) {
        (Family::Cast, _) => cast(&view, base)?,
        (Family::Integer | Family::FixedPoint, Granularity::Vsq(n)) => vectors(&view, n, &how)?,
        (Family::Integer | Family::FixedPoint, _) => {
            let raise = |params: &mut [QParams]| super::raise_for_biases(model, readers, params);
            integers(&view, granularity, &how, float, &raise, params)?
        }
        (Family::Float, _) => floats(&view, granularity, &how, float)?,
        (Family::BlockFloat, _) => block_floats(&view, granularity, &how)?,
        (Family::Codebook | Family::Sign, _) => {
            return Err(format!(
                "{base} is not a format of a single DequantizeLinear"
            ));
        }
    };
    let in_blocks = matches!(granularity, Granularity::Block(_) | Granularity::Vsq(_));
    Ok(Stored {
        codes: parts.codes,
        scale: parts.scale,
        zero_point: parts.zero_point,
        axis: match granularity {
            Granularity::Channel => form.axis,
            _ if in_blocks => Some(view.along),
            _ => None,
        },
        block: match granularity {
            Granularity::Block(n) | Granularity::Vsq(n) => n as usize,
            _ => 0,
        },
        dims: tensor.dims().to_vec(),
    })
}

/// Signs and trits as integers with a scale.
///
/// # Errors
/// A type that cannot hold the scales.
pub(super) fn signs(
    tensor: &Tensor,
    form: &WeightPlan,
    coded: &Coded,
    settings: &QuantSettings,
) -> Result<Stored, String> {
    let levels = coded.levels.unwrap_or_default();
    let base = match settings.codebook.signs {
        SignStorage::Int4 => Base::INT4,
        _ => Base::INT2,
    };
    let codes: Vec<i32> = coded
        .codes
        .iter()
        .map(|&c| levels[usize::from(c)] as i32)
        .collect();
    let granularity = form.granularity();
    let view = View::of(&[], tensor.dims(), form);
    let dims = view.scale_dims(granularity);
    let storage = qdq::storage_type(base);
    let zeros = vec![0u8; base.storage_bytes(coded.entries.len())];
    let block = match granularity {
        Granularity::Block(n) => n as usize,
        _ => 0,
    };
    Ok(Stored {
        codes: Tensor::from_raw(storage, &view.dims(), codes_to_bytes(&codes, base)),
        scale: Scale::Float(float_scales(&dims, &coded.entries, tensor.dtype())?),
        zero_point: (block == 0).then(|| Tensor::from_raw(storage, &dims, zeros)),
        axis: match granularity {
            Granularity::Channel => form.axis,
            _ => (block > 0).then_some(view.along),
        },
        block,
        dims: tensor.dims().to_vec(),
    })
}

/// How the settings quantize weights in a format.
pub(super) fn quantizer(base: Base, settings: &QuantSettings, float: DataType) -> WeightQuantizer {
    let storage = &settings.storage;
    let scheme = settings.weight_scheme;
    WeightQuantizer {
        base,
        scheme,
        options: QOptions {
            narrow: storage.narrow(base, scheme),
            reduce_range: settings.reduce_weights(),
        },
        calibrator: storage.calibrator(base),
        scale: storage.scale(float == DataType::Float16),
    }
}

/// Codes, scales and zero points.
struct Parts {
    codes: Tensor,
    scale: Scale,
    zero_point: Option<Tensor>,
}

fn cast(view: &View<'_>, base: Base) -> Result<Parts, String> {
    let codes = Tensor::from_f32_as(qdq::storage_type(base), &view.dims(), view.data);
    let codes = codes.map_err(|e| e.to_string())?;
    let (min, max) = onnx_quant_numerics::minmax::min_max(view.data);
    let largest = base.info().range.1;
    if max.max(-min) > largest {
        return Err(format!(
            "its largest magnitude {} is beyond {base}",
            max.max(-min)
        ));
    }
    Ok(Parts {
        codes,
        scale: Scale::None,
        zero_point: None,
    })
}

/// The type that float scales are stored in.
fn scale_type(how: &WeightQuantizer, float: DataType) -> DataType {
    match how.scale.half {
        true => DataType::Float16,
        false => float,
    }
}

fn float_scales(dims: &[i64], scales: &[f32], dtype: DataType) -> Result<Tensor, String> {
    Tensor::from_f32_as(dtype, dims, scales).map_err(|e| e.to_string())
}

fn integers(
    view: &View<'_>,
    granularity: Granularity,
    how: &WeightQuantizer,
    float: DataType,
    raise: &dyn Fn(&mut [QParams]) -> Result<(), String>,
    chosen: Option<&[QParams]>,
) -> Result<Parts, String> {
    let grouping = view.grouping(granularity)?;
    let blocks = matches!(granularity, Granularity::Block(_));
    let coded = if blocks && chosen.is_none() && view.is_plain() {
        code_integers(view.data, grouping, how).map_err(|e| e.to_string())?
    } else {
        let params = integer_params(view, granularity, how, raise, chosen)?;
        let codes = quantize_groups(view.values, grouping, &params, how.base);
        Quantized {
            codes: codes.map_err(|e| e.to_string())?,
            scales: params.iter().map(|p| p.scale).collect(),
            zero_points: params.iter().map(|p| p.zero_point).collect(),
        }
    };
    let dims = view.scale_dims(granularity);
    Ok(Parts {
        codes: Tensor::from_raw(qdq::storage_type(how.base), &view.dims(), coded.codes),
        scale: Scale::Float(float_scales(&dims, &coded.scales, scale_type(how, float))?),
        zero_point: zero_points(&coded.zero_points, &dims, how.base, blocks),
    })
}

/// The parameters of the groups of an integer format: those that were chosen, else those that the values suggest; raised
/// where a bias would not fit.
pub(super) fn integer_params(
    view: &View<'_>,
    granularity: Granularity,
    how: &WeightQuantizer,
    raise: &dyn Fn(&mut [QParams]) -> Result<(), String>,
    chosen: Option<&[QParams]>,
) -> Result<Vec<QParams>, String> {
    let grouping = view.grouping(granularity)?;
    let mut params = match chosen {
        Some(p) if p.len() == grouping.count() => p.to_vec(),
        Some(_) => {
            return Err("the scales that were chosen for it are too many or too few".to_owned());
        }
        None => choose_params(view.data, grouping, how).map_err(|e| e.to_string())?,
    };
    let blocks = matches!(granularity, Granularity::Block(_));
    let integer_bias = how.base.info().storage_bits == 8;
    if !blocks && integer_bias && !matches!(how.base, Base::Fixed { .. }) {
        raise(&mut params)?;
        params
            .iter_mut()
            .for_each(|p| p.scale = how.scale.stored(p.scale));
    }
    Ok(params)
}

/// Zero points as they are stored. Of blocks of signed codes they are left out where all are 0, because they are as many as
/// the scales; int8 keeps them, as onnxruntime does not run it without.
fn zero_points(zeros: &[i32], dims: &[i64], base: Base, blocks: bool) -> Option<Tensor> {
    let eight = base.info().storage_bits == 8;
    if blocks && !eight && zeros.iter().all(|&z| z == 0) {
        return None;
    }
    let bytes = codes_to_bytes(zeros, base);
    Some(Tensor::from_raw(qdq::storage_type(base), dims, bytes))
}

/// The parameters of the vectors of a two-level form.
pub(super) fn vector_params(
    view: &View<'_>,
    length: u32,
    how: &WeightQuantizer,
) -> Result<Vec<QParams>, String> {
    let found = vector_levels(view, length, how)?;
    Ok(found.params)
}

fn vector_levels(
    view: &View<'_>,
    length: u32,
    how: &WeightQuantizer,
) -> Result<VectorScales, String> {
    let granularity = Granularity::Vsq(length);
    let grouping = view.grouping(granularity)?;
    let dims = view.scale_dims(granularity);
    // The channel of a vector is its index on the channel axis of the scales.
    let shape: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
    let of_scales = match view.channel {
        Some(axis) => Grouping::channels(&shape, axis).map_err(|e| e.to_string())?,
        None => Grouping::tensor(shape.iter().product()),
    };
    let channel_of = |vector| of_scales.group_of(vector);
    vector_scales(view.data, grouping, of_scales.count(), channel_of, how)
        .map_err(|e| e.to_string())
}

fn vectors(view: &View<'_>, length: u32, how: &WeightQuantizer) -> Result<Parts, String> {
    let granularity = Granularity::Vsq(length);
    let grouping = view.grouping(granularity)?;
    let dims = view.scale_dims(granularity);
    let found = vector_levels(view, length, how)?;
    let codes = quantize_groups(view.values, grouping, &found.params, how.base)
        .map_err(|e| e.to_string())?;
    let zeros: Vec<i32> = found.params.iter().map(|p| p.zero_point).collect();
    let scale_codes: Vec<i32> = found.codes.iter().map(|&c| i32::from(c)).collect();
    let scale_codes = codes_to_bytes(&scale_codes, Base::UINT4);
    let channel_dims: Vec<i64> = match view.channel {
        Some(axis) => vec![dims[axis]],
        None => vec![],
    };
    let dtype = match how.scale.half {
        true => DataType::Float16,
        false => DataType::Float,
    };
    Ok(Parts {
        codes: Tensor::from_raw(qdq::storage_type(how.base), &view.dims(), codes),
        scale: Scale::Codes(
            Tensor::from_raw(DataType::Uint4, &dims, scale_codes),
            float_scales(&channel_dims, &found.channels, dtype)?,
            view.channel,
        ),
        zero_point: zero_points(&zeros, &dims, how.base, true),
    })
}

fn floats(
    view: &View<'_>,
    granularity: Granularity,
    how: &WeightQuantizer,
    float: DataType,
) -> Result<Parts, String> {
    let element = how.base.element().unwrap_or(MiniFloat::E4m3);
    let grouping = view.grouping(granularity)?;
    let coded = if view.is_plain() {
        code_floats(view.data, grouping, element, how.calibrator, how.scale)
            .map_err(|e| e.to_string())?
    } else {
        let scales = choose_scales(view.data, grouping, element, how.calibrator, how.scale)
            .map_err(|e| e.to_string())?;
        let codes = encode_groups(view.values, grouping, &scales, element);
        Quantized {
            codes: codes.map_err(|e| e.to_string())?,
            zero_points: vec![0; scales.len()],
            scales,
        }
    };
    let dims = view.scale_dims(granularity);
    let storage = qdq::storage_type(how.base);
    let zeros = dims.iter().product::<i64>() as usize;
    let zero_point = (!matches!(granularity, Granularity::Block(_)))
        .then(|| Tensor::from_raw(storage, &dims, vec![0u8; how.base.storage_bytes(zeros)]));
    Ok(Parts {
        codes: Tensor::from_raw(storage, &view.dims(), coded.codes),
        scale: Scale::Float(float_scales(&dims, &coded.scales, scale_type(how, float))?),
        zero_point,
    })
}

fn block_floats(
    view: &View<'_>,
    granularity: Granularity,
    how: &WeightQuantizer,
) -> Result<Parts, String> {
    let say = |e: &dyn std::fmt::Display| e.to_string();
    let element = how.base.element().unwrap_or(MiniFloat::E2m1);
    let grouping = view.grouping(granularity)?;
    let dims = view.scale_dims(granularity);
    let (scales, scale) = if how.base == Base::Nvfp4 {
        let levels = nvfp4_scales(view.data, grouping, how.calibrator).map_err(|e| say(&e))?;
        let scales = levels.scales();
        let tensor = Tensor::from_f32(&[], &[levels.tensor]);
        let codes = Tensor::from_raw(DataType::Float8e4m3fn, &dims, levels.codes);
        (scales, Scale::Codes(codes, tensor, None))
    } else {
        let codes = mx_scales(view.data, grouping, element, how.calibrator).map_err(|e| say(&e))?;
        let decode = onnx_quant_numerics::blockfloat::e8m0_decode;
        let scales = codes.iter().map(|&c| decode(c)).collect();
        (
            scales,
            Scale::E8m0(Tensor::from_raw(DataType::Float8e8m0, &dims, codes)),
        )
    };
    let codes = encode_groups(view.values, grouping, &scales, element).map_err(|e| say(&e))?;
    Ok(Parts {
        codes: Tensor::from_raw(qdq::storage_type(how.base), &view.dims(), codes),
        scale,
        zero_point: None,
    })
}
