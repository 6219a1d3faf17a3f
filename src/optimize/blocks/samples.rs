//! What a block learns from: the values that it reads and makes, sample by sample.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use onnx_quant_ir::{DataType, Model, Tensor, ValueId};
use onnx_quant_numerics::optimize::block::{Data, Source, Value};

use super::Found;
use crate::data::Batch;
use crate::error::Error;
use crate::optimize::flow::Flow;
use crate::optimize::padding::Padding;
use crate::optimize::store::{Budget, Floats, Put, Scratch, Sealed};

/// One sample in this many is held out to judge by.
const HELD_OUT: usize = 4;

/// Values by sample.
type Samples = BTreeMap<usize, Vec<Value>>;

/// Samples of a block, to learn from and to judge by: what it reads in the quantized model and, where quantization is
/// dropped at random, in the float model, and what the float model computes. Samples of another shape than the first are
/// left out, and padding does not count.
///
/// # Errors
/// A part of a model that cannot be run; `Ok(Err)` where values cannot be told apart by sample.
pub(in super::super) fn samples(
    (float, float_flow): (&Model, &Flow<'_>),
    (quantized, quantized_flow): (&Model, &Flow<'_>),
    found: &Found,
    (drop, padding): (bool, &Padding),
    budget: &Budget,
) -> Result<Result<[Data; 2], String>, Error> {
    let (sizes, size) = found.sizes.split_at(found.inputs.len());
    let read = (&found.inputs[..], sizes);
    let inputs = gather(quantized, quantized_flow, read, budget)?;
    let targets = gather(float, float_flow, (&[found.output], size), budget)?;
    let exact = match drop {
        true => gather(float, float_flow, read, budget)?,
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
        part.hidden.push(match found.positions {
            Some(positions) => padding.hidden(at, positions, size[0] / positions.max(1)),
            None => Vec::new(),
        });
        part.targets.push(target.clone());
        part.float.extend(own.cloned());
    }
    if parts[0].inputs.is_empty() {
        return Ok(Err("its values cannot be told apart by sample".to_owned()));
    }
    Ok(Ok(parts))
}

/// Values by sample; samples whose values have other sizes are left out.
fn gather(
    model: &Model,
    flow: &Flow<'_>,
    (values, sizes): (&[ValueId], &[usize]),
    budget: &Budget,
) -> Result<Samples, Error> {
    let split = |batch: &Batch, tensors: Vec<Tensor>| {
        let each = tensors.iter().zip(sizes);
        let each = each.map(|(t, &size)| by_sample(t, size, batch));
        Ok((batch.first_sample, batch.samples, each.collect()))
    };
    let mut scratch = Scratch::new(budget);
    let mut batches: Vec<(usize, usize, Vec<Split<Put>>)> = Vec::new();
    // What all samples share is kept once.
    let mut shared: Vec<Option<Value>> = vec![None; values.len()];
    let take = |part: (usize, usize, Option<Vec<Split<Vec<f32>>>>)| {
        let (first, count, Some(parts)) = part else {
            return Ok(());
        };
        let mut kept = Vec::with_capacity(parts.len());
        for (part, last) in parts.into_iter().zip(&mut shared) {
            kept.push(match part {
                Split::Shared(x) => match last {
                    Some(last) if last.get() == x.get() => Split::Shared(last.clone()),
                    _ => Split::Shared(last.insert(x).clone()),
                },
                Split::Each(x) => Split::Each(scratch.floats(x.len(), std::iter::once(&x[..]))?),
            });
        }
        batches.push((first, count, kept));
        Ok(())
    };
    flow.run(model, values, split, take)?;
    let sealed = scratch.seal()?;
    let mut all = Samples::new();
    for (first, count, parts) in &batches {
        for sample in 0..*count {
            let each = parts.iter().zip(sizes);
            let own = each.map(|(part, &size)| part.of(sample, size, &sealed));
            all.insert(first + sample, own.collect());
        }
    }
    Ok(all)
}

/// A value of a batch.
enum Split<T> {
    /// Numbers, sample after sample.
    Each(T),
    Shared(Value),
}

impl Split<Put> {
    /// The value of a sample.
    fn of(&self, sample: usize, size: usize, sealed: &Sealed) -> Value {
        match self {
            Self::Each(put) => Arc::new(Slice {
                batch: sealed.floats(put),
                at: sample * size..(sample + 1) * size,
            }),
            Self::Shared(x) => x.clone(),
        }
    }
}

/// The numbers of one sample.
#[derive(Debug)]
struct Slice {
    batch: Floats,
    at: Range<usize>,
}

impl Source for Slice {
    fn get(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.batch.part(self.at.clone()))
    }
}

/// A value by sample; `None` where it is of another size.
fn by_sample(tensor: &Tensor, size: usize, batch: &Batch) -> Option<Split<Vec<f32>>> {
    let fed = batch.samples + batch.padded;
    let values = numbers(tensor)?;
    if tensor.dims().first() == Some(&(fed as i64)) && values.len() == size * fed {
        return Some(Split::Each(values));
    }
    (values.len() == size).then(|| Split::Shared(Arc::new(values)))
}

/// The elements as numbers: truth is 1.
pub(in super::super) fn numbers(tensor: &Tensor) -> Option<Vec<f32>> {
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
