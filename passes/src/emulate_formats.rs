//! Writes conversions of formats that the target does not run with basic operators.
//!
//! # What it does
//! A DequantizeLinear of a constant whose codes the target does not read becomes a lookup: the codes are stored as bytes
//! without gaps, operators of bits unpack them, and a Gather reads the number of each code from a table; zero points are
//! subtracted and scales multiplied as the standard says. A QuantizeLinear → DequantizeLinear pair of an activation
//! becomes Div, Round, Clip and Mul; for floats of few bits the step of each value is chosen by comparisons first.
//!
//! # Before → After
//! ```text
//! W_quantized (fp4) → DequantizeLinear → W
//! W_packed (u8) → BitShift → BitwiseAnd → Cast → Reshape → Gather (levels) → Mul (scale) → W
//! ```
//!
//! # When it does not fire
//! Without the setting `emulate`, on formats that the target runs, and on a conversion that is neither of a constant nor
//! one of a pair: a skip says so.
//!
//! # Invariants kept
//! The signature, and every value bit for bit.
//!
//! # Opset notes
//! BitwiseAnd needs opset 18.
//!
//! # References
//! ONNX, QuantizeLinear and DequantizeLinear.

use std::collections::HashSet;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Tensor, ValueId};
use onnx_quant_numerics::blockfloat::e8m0_decode;
use onnx_quant_numerics::format::{Base, Format, Granularity};
use onnx_quant_numerics::minifloat::MiniFloat;
use onnx_quant_numerics::pack::unpack;

use crate::codebook::Writer;
use crate::lower_qdq::widen;
use crate::qdq::{self, Qdq, Versions};
use crate::settings::QuantSettings;
use crate::target::{TargetName, cannot_run};

mod graph;

use graph::{Ops, Place};

/// See the head of this file.
pub struct EmulateFormats;

static INFO: PassInfo = PassInfo {
    name: "emulate_formats",
    summary: "Writes conversions of formats that the target does not run with basic operators",
    source: include_str!("emulate_formats.rs"),
    exact: true,
};

impl Pass for EmulateFormats {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let settings = cx.get::<QuantSettings>();
        let Some(target) = settings.filter(|s| s.storage.emulate).map(|s| s.target) else {
            return Ok(Changed::No);
        };
        let mut names = model.names();
        let mut writer = Writer::new(&mut names);
        let mut changed = false;
        for node in model.all_nodes() {
            let Some(d) = qdq::dequantize(model, node).filter(|d| lacks(model, target, d)) else {
                continue;
            };
            let mut ops = Ops {
                graph: model.value(d.output).graph,
                stem: model.value(d.output).name.clone(),
                model: &mut *model,
                writer: &mut writer,
            };
            match replacement(&mut ops, &d) {
                Ok(real) => {
                    take_over(model, &d, real);
                    changed = true;
                }
                Err(reason) => cx.skip(model, node, format!("is not emulated: {reason}")),
            }
        }
        if changed {
            sweep(model);
            if let Some(before) = cx.get::<Versions>() {
                settle_versions(model, *before);
            }
        }
        Ok(changed.into())
    }
}

/// The type of the codes of a conversion.
fn code_type(model: &Model, d: &Qdq) -> Option<DataType> {
    let of = |v: ValueId| model.value(v).dtype();
    let producer = || model.producer(d.input).map(|(n, _)| n);
    let rows = || of(model.input(producer().filter(|&n| model.node(n).is("Gather"))?, 0)?);
    let quantized = || match qdq::quantize(model, producer()?)?.zero_point {
        Some(zero) => of(zero),
        None => output_type(model, producer()?),
    };
    of(d.input)
        .or_else(|| of(d.zero_point?))
        .or_else(rows)
        .or_else(quantized)
}

/// Whether the target does not run this conversion.
fn lacks(model: &Model, target: TargetName, d: &Qdq) -> bool {
    let base = code_type(model, d).and_then(|t| Base::from_onnx_type(t as i32));
    let Some(base) = base else {
        return false;
    };
    // Scales of powers of two belong to the block formats.
    let base = match (model.value(d.scale).dtype(), base) {
        (Some(DataType::Float8e8m0), Base::FP8_E4M3) => Base::Mxfp8,
        (Some(DataType::Float8e8m0), Base::FP4_E2M1) => Base::Mxfp4,
        _ => base,
    };
    let granularity = match d.block_size {
        0 => Granularity::Channel,
        n => Granularity::Block(n as u32),
    };
    let granularity = Some(granularity);
    cannot_run(target, Format { base, granularity }).is_some()
}

/// The number that each code of a type stands for, and the bits of a code; `None` for types that a Cast reads.
fn levels(dtype: DataType) -> Option<(u32, Vec<f32>)> {
    let signed = |bits: u32| {
        let (codes, half) = (1i32 << bits, 1i32 << (bits - 1));
        (0..codes).map(move |c| (c - if c >= half { codes } else { 0 }) as f32)
    };
    Some(match dtype {
        DataType::Int2 => (2, signed(2).collect()),
        DataType::Int4 => (4, signed(4).collect()),
        DataType::Uint2 => (2, (0..4u8).map(f32::from).collect()),
        DataType::Uint4 => (4, (0..16u8).map(f32::from).collect()),
        DataType::Float8e8m0 => (8, (0..=255).map(e8m0_decode).collect()),
        _ => {
            let element = MiniFloat::from_onnx_type(dtype as i32)?;
            (element.bits(), element.table().to_vec())
        }
    })
}

/// Codes as FP32 numbers.
fn numbers(ops: &mut Ops<'_, '_, '_>, codes: ValueId) -> Result<ValueId, String> {
    let Some(tensor) = ops.model.constant(codes) else {
        return Ok(ops.cast(codes, DataType::Float));
    };
    let Some((bits, levels)) = levels(tensor.dtype()) else {
        return Ok(match tensor.dtype() {
            DataType::Float => codes,
            _ => ops.cast(codes, DataType::Float),
        });
    };
    let say = |e: onnx_quant_ir::TensorError| e.to_string();
    let (count, dims) = (tensor.element_count().map_err(say)?, tensor.dims().to_vec());
    let bytes = tensor.bytes().map_err(say)?;
    let read = unpack(&bytes, count, bits, false).ok_or("its data is too short")?;
    let read: Vec<u8> = read.into_iter().map(|c| c as u8).collect();
    let table = Tensor::from_f32(&[levels.len() as i64], &levels);
    let name = &ops.model.value(codes).name;
    let stem = name.strip_suffix("_quantized").unwrap_or(name).to_owned();
    let codes = (read.as_slice(), bits, dims.as_slice());
    let graph = ops.graph;
    Ok(ops.writer.look_up(ops.model, graph, &stem, codes, table))
}

/// The values that a conversion gives, by basic operators.
fn replacement(ops: &mut Ops<'_, '_, '_>, d: &Qdq) -> Result<ValueId, String> {
    let producer = ops.model.producer(d.input).map(|(n, _)| n);
    if let Some(q) = producer.and_then(|n| qdq::quantize(ops.model, n)) {
        return pair(ops, &q, d);
    }
    let place = match ops.model.constant(d.input).map(|t| t.dims().to_vec()) {
        Some(dims) => Place::of(ops.model, d, &dims)?,
        None if code_type(ops.model, d).is_some_and(|t| levels(t).is_none()) => {
            Place::of_rows(ops.model, d)
                .ok_or("its codes are computed, and its scales lie along an inner axis")?
        }
        None => return Err("its codes are computed".to_owned()),
    };
    let mut real = numbers(ops, d.input)?;
    if let Some(zero) = d.zero_point {
        let all_zero = |t: &Tensor| t.bytes().is_ok_and(|b| b.iter().all(|&x| x == 0));
        if !ops.model.constant(zero).is_some_and(all_zero) {
            let zero = numbers(ops, zero)?;
            let zero = ops.spread(zero, &place);
            real = ops.op("Sub", &[real, zero]);
        }
    }
    let scale_type = ops.model.value(d.scale).dtype();
    let scale = match ops.model.constant(d.scale) {
        Some(_) => numbers(ops, d.scale)?,
        None => d.scale,
    };
    let scale = ops.spread(scale, &place);
    let product = ops.op("Mul", &[real, scale]);
    let made = output_type(ops.model, d.node).or(scale_type);
    Ok(match made {
        Some(half @ (DataType::Float16 | DataType::Bfloat16)) => ops.cast(product, half),
        _ => product,
    })
}

/// The type that a conversion's attribute `output_dtype` gives.
fn output_type(model: &Model, node: onnx_quant_ir::NodeId) -> Option<DataType> {
    let given = i32::try_from(model.node(node).attr_i("output_dtype")?).ok()?;
    DataType::from_number(given).filter(|&t| t != DataType::Undefined)
}

/// A QuantizeLinear → DequantizeLinear pair of an activation.
fn pair(ops: &mut Ops<'_, '_, '_>, q: &Qdq, d: &Qdq) -> Result<ValueId, String> {
    if !qdq::same_parameters(ops.model, q, d) {
        return Err("the QuantizeLinear before it has another scale".to_owned());
    }
    let scale = ops.model.constant(q.scale);
    let scale = scale.filter(|t| t.dtype() == DataType::Float);
    if scale.and_then(Tensor::scalar_f32).is_none() {
        return Err("its scale is not one FP32 number".to_owned());
    }
    let dtype = code_type(ops.model, d).ok_or("the type of its codes is not declared")?;
    let element = MiniFloat::from_onnx_type(dtype as i32);
    let units = ops.op("Div", &[q.input, q.scale]);
    let codes = match element {
        Some(element) => round_float(ops, units, element),
        None => {
            let zero = match q.zero_point.and_then(|z| ops.model.constant(z)) {
                Some(z) => widen(z)?.scalar_i64().unwrap_or(0) as f32,
                None => 0.0,
            };
            let base = Base::from_onnx_type(dtype as i32).ok_or("its codes are no numbers")?;
            let info = base.info();
            let rounded = ops.op("Round", &[units]);
            // Clipping between moved bounds takes the place of adding the zero point and subtracting it again.
            let low = ops.scalar(info.qmin as f32 - zero);
            let high = ops.scalar(info.qmax as f32 - zero);
            ops.op("Clip", &[rounded, low, high])
        }
    };
    Ok(ops.op("Mul", &[codes, q.scale]))
}

/// Rounds to a float of few bits: to a multiple of the step at the value, half to even, and no further than the largest
/// number. Steps are powers of two, so that every operation but the rounding is exact.
fn round_float(ops: &mut Ops<'_, '_, '_>, x: ValueId, element: MiniFloat) -> ValueId {
    let mut positive = element.table().to_vec();
    positive.retain(|&x| x.is_finite() && x >= 0.0);
    positive.sort_by(f32::total_cmp);
    positive.dedup();
    let mut last = positive[1] - positive[0];
    let mut step = ops.scalar(last);
    let size = ops.op("Abs", &[x]);
    for ends in positive.windows(2) {
        let wider = ends[1] - ends[0];
        if wider > last {
            last = wider;
            let (start, wider) = (ops.scalar(ends[0]), ops.scalar(wider));
            let large = ops.op("GreaterOrEqual", &[size, start]);
            step = ops.op("Where", &[large, wider, step]);
        }
    }
    let in_steps = ops.op("Div", &[x, step]);
    let rounded = ops.op("Round", &[in_steps]);
    let back = ops.op("Mul", &[rounded, step]);
    let low = ops.scalar(-element.largest());
    let high = ops.scalar(element.largest());
    ops.op("Clip", &[back, low, high])
}

/// Lets a value stand in the place of the conversion's output.
fn take_over(model: &mut Model, d: &Qdq, real: ValueId) {
    let quantize = model.producer(d.input).map(|(n, _)| n);
    let quantize = quantize.and_then(|n| qdq::quantize(model, n));
    model.remove_node(d.node);
    if let Some((node, slot)) = model.producer(real) {
        model.set_output(node, slot, Some(d.output));
    }
    if let Some(q) = quantize.filter(|_| model.is_unused(d.input)) {
        model.remove_node(q.node);
    }
}

/// Removes constants and values that nothing uses any more: their types would ask for newer versions.
fn sweep(model: &mut Model) {
    let dead = |&v: &ValueId| {
        let value = model.value(v);
        let held = value.is_input() || value.sparse_init;
        model.is_unused(v) && !held && model.producer(v).is_none()
    };
    let dead: HashSet<ValueId> = model.all_values().into_iter().filter(dead).collect();
    model.remove_values(&dead);
}

/// Takes the versions back that only types that are gone had asked for.
fn settle_versions(model: &mut Model, before: Versions) {
    before.restore(model);
    let values = model.all_values().into_iter();
    let left: Vec<DataType> = values.filter_map(|v| model.value(v).dtype()).collect();
    for dtype in left {
        qdq::require_type(model, dtype);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_table_of_a_type_holds_the_number_of_each_code() {
        assert_eq!(levels(DataType::Int2).unwrap().1, [0.0, 1.0, -2.0, -1.0]);
        let (bits, of_int4) = levels(DataType::Int4).unwrap();
        assert_eq!((bits, of_int4[7], of_int4[8]), (4, 7.0, -8.0));
        let (bits, of_fp4) = levels(DataType::Float4e2m1).unwrap();
        assert_eq!((bits, of_fp4.len(), of_fp4[15]), (4, 16, -6.0));
        assert!(levels(DataType::Int8).is_none());
    }
}
