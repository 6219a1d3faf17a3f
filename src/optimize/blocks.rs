//! Residual blocks as one unit: several convolutions whose rounding is learned together from what the block computes.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};
use onnx_quant_numerics::optimize::adaround::{Activation, Options as Learning};
use onnx_quant_numerics::optimize::block::{Block, Data, Layer, Quantizer, Step};
use onnx_quant_numerics::optimize::grid::Grid;
use onnx_quant_passes::infer::Facts;
use onnx_quant_passes::layer::{Matrix, geometry};
use onnx_quant_passes::{ops, qdq};

use super::Options;
use super::flow::Flow;
use crate::data::Batch;
use crate::error::Error;

/// Values by sample.
type Samples = Vec<(usize, Vec<f32>)>;

/// Bytes that the samples of a block may take.
const BYTES: usize = 512 << 20;
/// Samples in a step.
const BATCH: usize = 16;
/// One sample in this many is held out to judge by.
const HELD_OUT: usize = 4;

/// A layer that a block may learn: its node, its matrix and the grid that was chosen for it.
pub(super) struct Member {
    pub(super) task: usize,
    pub(super) node: NodeId,
    pub(super) matrix: Matrix,
    pub(super) grid: Grid,
    /// Float weights, as the matrix.
    pub(super) weights: Vec<f32>,
    /// What was chosen for the layer alone.
    pub(super) values: Vec<f32>,
}

/// A block of the graph.
pub(super) struct Found {
    block: Block,
    /// For each layer of the block its place among the members.
    layers: Vec<usize>,
    /// For each quantizer the value that is quantized and the initializer of its scale.
    quantizers: Vec<(ValueId, ValueId)>,
}

/// What a block learned.
pub(super) struct Learned {
    /// For each member that was learned, by its place among the members, its values.
    pub(super) values: BTreeMap<usize, Vec<f32>>,
    /// Activations with new scales: the value that is quantized, the initializer of the scale, the scale.
    pub(super) scales: Vec<(ValueId, ValueId, f32)>,
    /// Error on held-out samples, before and after.
    pub(super) errors: (f64, f64),
}

/// Builds the block between two values of the quantized model.
///
/// # Errors
/// The operator that a block cannot hold.
pub(super) fn find(
    quantized: &Model,
    facts: &Facts,
    (first, last): (ValueId, ValueId),
    members: &[Member],
) -> Result<Found, String> {
    let mut build = Build {
        model: quantized,
        facts,
        members,
        numbers: BTreeMap::from([(first, 0)]),
        found: Found {
            block: Block {
                inputs: vec![0],
                values: 1,
                ..Block::default()
            },
            layers: Vec::new(),
            quantizers: Vec::new(),
        },
    };
    build.found.block.output = build.value(last, 0)?;
    if build.found.layers.len() < 2 {
        return Err("it has fewer than two layers".to_owned());
    }
    Ok(build.found)
}

struct Build<'a> {
    model: &'a Model,
    facts: &'a Facts,
    members: &'a [Member],
    numbers: BTreeMap<ValueId, usize>,
    found: Found,
}

impl Build<'_> {
    /// The number of a value; what makes it is put into the program before.
    fn value(&mut self, value: ValueId, depth: usize) -> Result<usize, String> {
        if let Some(&n) = self.numbers.get(&value) {
            return Ok(n);
        }
        let (node, _) = self
            .model
            .producer(value)
            .ok_or("it reads another value from outside")?;
        if depth > 200 {
            return Err("it is too deep".to_owned());
        }
        let op = self.model.node(node);
        let input = |slot: usize| {
            self.model
                .input(node, slot)
                .ok_or_else(|| "an input is missing".to_owned())
        };
        if let Some(dq) = qdq::dequantize(self.model, node) {
            return self.quantize(value, &dq, depth);
        }
        if let Some((low, high)) = ops::clamp_bounds(self.model, node) {
            let activation = Activation::Clamp { low, high };
            return self.activate(value, input(0)?, activation, depth);
        }
        match (op.domain(), op.op_type()) {
            ("", "LeakyRelu") => {
                let slope = op.attr_f("alpha").unwrap_or(0.01);
                self.activate(value, input(0)?, Activation::Leaky { slope }, depth)
            }
            ("", "Add") => {
                let (x, y) = (input(0)?, input(1)?);
                if self.facts.dims(x).is_none() || self.dims(x) != self.dims(y) {
                    return Err("an Add stretches an operand".to_owned());
                }
                let (a, b) = (self.value(x, depth + 1)?, self.value(y, depth + 1)?);
                let output = self.number(value);
                self.found.block.steps.push(Step::Add { a, b, output });
                Ok(output)
            }
            _ => self.linear(value, node, depth),
        }
    }

    /// The shape of a value, also of the dequantized form of one.
    fn dims(&self, value: ValueId) -> Option<Vec<i64>> {
        let known = self.facts.dims(value);
        known.or_else(|| {
            let dq = qdq::dequantized_by(self.model, value)?;
            let (node, _) = self.model.producer(dq.input)?;
            self.facts.dims(qdq::quantize(self.model, node)?.input)
        })
    }

    fn number(&mut self, value: ValueId) -> usize {
        let n = self.found.block.values;
        self.found.block.values += 1;
        self.numbers.insert(value, n);
        n
    }

    fn activate(
        &mut self,
        value: ValueId,
        before: ValueId,
        activation: Activation,
        depth: usize,
    ) -> Result<usize, String> {
        let input = self.value(before, depth + 1)?;
        let output = self.number(value);
        self.found.block.steps.push(Step::Activate {
            input,
            output,
            activation,
        });
        Ok(output)
    }

    fn quantize(&mut self, value: ValueId, dq: &qdq::Qdq, depth: usize) -> Result<usize, String> {
        let model = self.model;
        let codes = model
            .producer(dq.input)
            .and_then(|(n, _)| qdq::quantize(model, n));
        let q = codes.ok_or("a value is dequantized that was not quantized")?;
        let scale = qdq::scalar_scale(model, dq).ok_or("an activation has several scales")?;
        let zero = dq.zero_point.and_then(|z| model.constant(z));
        let dtype = zero.map_or(onnx_quant_ir::DataType::Uint8, Tensor::dtype);
        let zero = zero.and_then(Tensor::scalar_i64).unwrap_or(0) as f32;
        let (low, high) = match dtype {
            onnx_quant_ir::DataType::Uint8 => (0.0, 255.0),
            onnx_quant_ir::DataType::Int8 => (-128.0, 127.0),
            _ => return Err("an activation has another format than 8 bits".to_owned()),
        };
        let input = self.value(q.input, depth + 1)?;
        let output = self.number(value);
        let alone = q.scale == dq.scale && model.consumers(dq.scale).len() == 2;
        self.found.block.quantizers.push(Quantizer {
            scale,
            low: low - zero,
            high: high - zero,
            learned: alone,
        });
        self.found.quantizers.push((q.input, dq.scale));
        self.found.block.steps.push(Step::Quantize {
            input,
            output,
            quantizer: self.found.quantizers.len() - 1,
        });
        Ok(output)
    }

    fn linear(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let model = self.model;
        let kind = model.node(node).op_type();
        let place = self.members.iter().position(|m| m.node == node);
        let place = place.ok_or_else(|| format!("it holds {kind}"))?;
        let member = &self.members[place];
        let before = model.input(node, 0).ok_or("an input is missing")?;
        let sizes = |v: ValueId, this: &Self| -> Option<Vec<usize>> {
            Some(this.dims(v)?.iter().map(|&d| d as usize).collect())
        };
        let (from, to) = (sizes(before, self), sizes(value, self));
        let (from, to) = from.zip(to).ok_or("a shape is not known")?;
        let geometry =
            geometry(model, node, &from, &to).ok_or_else(|| format!("it holds {kind}"))?;
        let bias = match model.input(node, 2) {
            None => vec![0.0; member.matrix.rows],
            Some(b) => model
                .constant(b)
                .and_then(|t| t.to_f32().ok())
                .filter(|b| b.len() == member.matrix.rows)
                .ok_or("a bias is not known")?,
        };
        let input = self.value(before, depth + 1)?;
        let output = self.number(value);
        self.found.block.layers.push(Layer {
            weights: member.weights.clone(),
            bias,
            grid: member.grid.clone(),
            groups: member.matrix.groups,
            geometry: Some(geometry),
        });
        self.found.layers.push(place);
        self.found.block.steps.push(Step::Linear {
            layer: self.found.layers.len() - 1,
            input,
            output,
        });
        Ok(output)
    }
}

/// Samples of a block: what it reads in the quantized model, and what the float model computes.
pub(super) fn samples(
    (float, float_flow): (&Model, &Flow<'_>),
    (quantized, quantized_flow): (&Model, &Flow<'_>),
    (first, last): (ValueId, ValueId),
) -> Result<Option<[Data; 2]>, Error> {
    let split = |batch: &Batch, tensors: Vec<Tensor>| {
        let tensor = &tensors[0];
        let whole = tensor.dims().first() == Some(&((batch.samples + batch.padded) as i64));
        let values = tensor.to_f32().ok().filter(|_| whole)?;
        let size = values.len() / (batch.samples + batch.padded);
        let each = values.chunks_exact(size.max(1)).take(batch.samples);
        Some((
            batch.first_sample,
            each.map(<[f32]>::to_vec).collect::<Vec<_>>(),
        ))
    };
    let gather =
        |model: &Model, flow: &Flow<'_>, value: ValueId| -> Result<Option<Samples>, Error> {
            let (mut all, mut whole, mut bytes) = (Vec::new(), true, 0);
            flow.run(
                model,
                &[value],
                |b, t| Ok(split(b, t)),
                |part| {
                    match part {
                        Some((first, samples)) => {
                            for (i, s) in samples.into_iter().enumerate() {
                                bytes += s.len() * 4;
                                if bytes <= BYTES / 2 {
                                    all.push((first + i, s));
                                }
                            }
                        }
                        None => whole = false,
                    }
                    Ok(())
                },
            )?;
            Ok(whole.then_some(all))
        };
    let Some(inputs) = gather(quantized, quantized_flow, first)? else {
        return Ok(None);
    };
    let Some(targets) = gather(float, float_flow, last)? else {
        return Ok(None);
    };
    let mut parts = [Data::default(), Data::default()];
    for ((at, x), (_, t)) in inputs.into_iter().zip(targets) {
        let part = &mut parts[usize::from(at % HELD_OUT == HELD_OUT - 1)];
        part.inputs.push(vec![x]);
        part.targets.push(t);
    }
    Ok(Some(parts))
}

/// Learns a block; `None` where held-out samples say that it is worse than its layers learned one by one.
pub(super) fn learn(
    found: &Found,
    members: &[Member],
    [train, held]: &[Data; 2],
    options: &Options,
    seed: u64,
) -> Learned {
    let judge = if held.inputs.is_empty() { train } else { held };
    let block = &found.block;
    let before: Vec<Vec<f32>> = found
        .layers
        .iter()
        .map(|&m| members[m].values.clone())
        .collect();
    let first = block.error(&before, &block.scales(), judge);
    let learning = Learning {
        iterations: options.iterations,
        batch: BATCH,
        ..Learning::default()
    };
    let (values, scales) = block.reconstruct(train, &learning, seed);
    let after = block.error(&values, &scales, judge);
    let learned = scales.iter().zip(&block.quantizers).zip(&found.quantizers);
    Learned {
        values: found.layers.iter().copied().zip(values).collect(),
        scales: learned
            .filter(|((_, q), _)| q.learned)
            .map(|((&s, _), &(value, init))| (value, init, s))
            .collect(),
        errors: (first, after),
    }
}
