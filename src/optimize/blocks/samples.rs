//! What a block learns from: the values that it reads and makes, sample by sample.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use onnx_quant_ir::spill::spill;
use onnx_quant_ir::{DataType, Model, Tensor, ValueId};
use onnx_quant_numerics::optimize::block::{Data, Source, Value};

use super::Found;
use crate::data::Batch;
use crate::error::Error;
use crate::optimize::Options;
use crate::optimize::flow::Flow;
use crate::optimize::methods::Method;

/// One sample in this many is held out to judge by.
const HELD_OUT: usize = 4;

/// Values by sample.
type Samples = BTreeMap<usize, Vec<Value>>;

/// Samples of a block, to learn from and to judge by: what it reads in the quantized model and, where quantization is
/// dropped at random, in the float model, and what the float model computes. Samples of another shape than the first are
/// left out.
///
/// # Errors
/// A part of a model that cannot be run; `Ok(Err)` where values cannot be told apart by sample.
pub(in super::super) fn samples(
    (float, float_flow): (&Model, &Flow<'_>),
    (quantized, quantized_flow): (&Model, &Flow<'_>),
    found: &Found,
    options: &Options,
) -> Result<Result<[Data; 2], String>, Error> {
    let drop = options.methods.has(Method::Qdrop);
    let bytes = options.memory / if drop { 3 } else { 2 };
    let (sizes, size) = found.sizes.split_at(found.inputs.len());
    let inputs = gather(quantized, quantized_flow, (&found.inputs, sizes), bytes)?;
    let targets = gather(float, float_flow, (&[found.output], size), bytes)?;
    let exact = match drop {
        true => gather(float, float_flow, (&found.inputs, sizes), bytes)?,
        false => Samples::new(),
    };
    let mut parts = [Data::default(), Data::default()];
    for (at, inputs) in inputs {
        let Some(target) = targets.get(&at).and_then(|t| t.first()) else {
            continue;
        };
        let own = exact.get(&at);
        if drop && own.is_none() {
            continue;
        }
        let part = &mut parts[usize::from(at % HELD_OUT == HELD_OUT - 1)];
        part.inputs.push(inputs);
        part.targets.push(target.clone());
        part.float.extend(own.cloned());
    }
    if parts[0].inputs.is_empty() {
        return Ok(Err("its values cannot be told apart by sample".to_owned()));
    }
    Ok(Ok(parts))
}

/// Values by sample; samples whose values have other sizes are left out. What is more than `limit` bytes goes into temporary
/// files.
fn gather(
    model: &Model,
    flow: &Flow<'_>,
    (values, sizes): (&[ValueId], &[usize]),
    limit: usize,
) -> Result<Samples, Error> {
    let split = |batch: &Batch, tensors: Vec<Tensor>| {
        let each = tensors.iter().zip(sizes);
        let each = each.map(|(t, &size)| by_sample(t, size, batch));
        Ok((batch.first_sample, batch.samples, each.collect()))
    };
    let (mut all, mut bytes) = (Samples::new(), 0);
    // What all samples share is kept once.
    let mut shared: Vec<Option<Value>> = vec![None; values.len()];
    let take = |part: (usize, usize, Option<Vec<Split>>)| {
        let (first, count, Some(mut parts)) = part else {
            return Ok(());
        };
        for (part, last) in parts.iter_mut().zip(&mut shared) {
            match part {
                Split::Shared(x) => match last {
                    Some(last) if last.get() == x.get() => *x = last.clone(),
                    _ => *last = Some(x.clone()),
                },
                Split::Each(tensor) => {
                    bytes += tensor.byte_len().unwrap_or(0);
                    if bytes > limit
                        && let Ok(away) = spill(tensor)
                    {
                        *tensor = away;
                    }
                }
            }
        }
        for i in 0..count {
            let each = parts.iter().zip(sizes);
            let own = each.map(|(part, &size)| part.of(i, size));
            all.insert(first + i, own.collect());
        }
        Ok(())
    };
    flow.run(model, values, split, take)?;
    Ok(all)
}

/// A value of a batch.
enum Split {
    /// Floats, sample after sample.
    Each(Tensor),
    Shared(Value),
}

impl Split {
    /// The value of a sample.
    fn of(&self, sample: usize, size: usize) -> Value {
        match self {
            Self::Each(tensor) => Arc::new(Slice {
                tensor: tensor.clone(),
                from: sample * size,
                size,
            }),
            Self::Shared(x) => x.clone(),
        }
    }
}

/// Some elements of a tensor of floats, which may stand in a mapped file.
#[derive(Debug)]
struct Slice {
    tensor: Tensor,
    from: usize,
    size: usize,
}

impl Source for Slice {
    fn get(&self) -> Cow<'_, [f32]> {
        let bytes = self.tensor.bytes().unwrap_or_default();
        let own = bytes.get(4 * self.from..4 * (self.from + self.size));
        let read = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let own = own.unwrap_or_default().chunks_exact(4);
        Cow::Owned(own.map(read).collect())
    }
}

/// A value by sample; `None` where it is of another size.
fn by_sample(tensor: &Tensor, size: usize, batch: &Batch) -> Option<Split> {
    let fed = batch.samples + batch.padded;
    let values = numbers(tensor)?;
    if tensor.dims().first() == Some(&(fed as i64)) && values.len() == size * fed {
        let dims = [fed as i64, size as i64];
        return Some(Split::Each(Tensor::from_f32(&dims, &values)));
    }
    (values.len() == size).then(|| Split::Shared(Arc::new(values)))
}

/// The elements as numbers: truth is 1.
pub(super) fn numbers(tensor: &Tensor) -> Option<Vec<f32>> {
    match tensor.dtype() {
        DataType::Bool => {
            let bytes = tensor.bytes().ok()?;
            Some(bytes.iter().map(|&b| f32::from(u8::from(b != 0))).collect())
        }
        dtype if is_whole(dtype) => {
            let ints = tensor.to_i64().ok()?;
            Some(ints.into_iter().map(|x| x as f32).collect())
        }
        _ => tensor.to_f32().ok(),
    }
}

fn is_whole(dtype: DataType) -> bool {
    use DataType::{Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    matches!(
        dtype,
        Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64
    )
}
