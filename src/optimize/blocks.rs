//! Residual blocks as one unit: several convolutions whose rounding is learned together from what the block computes.

use std::collections::BTreeMap;

use onnx_quant_ir::{DataType, Model, NodeId, Tensor, ValueId};
use onnx_quant_numerics::optimize::adaround::{self, Activation};
use onnx_quant_numerics::optimize::block::{Block, Data, Layer, Learning, Quantizer, State, Step};
use onnx_quant_numerics::optimize::grid::Grid;
use onnx_quant_numerics::scaling::ScaleKind;
use onnx_quant_passes::infer::Facts;
use onnx_quant_passes::layer::{self, Matrix, geometry};
use onnx_quant_passes::qdq;

use super::Options;
use super::flow::Flow;
use super::methods::Method;
use crate::data::Batch;
use crate::error::Error;

/// Values by sample.
type Samples = Vec<(usize, Vec<f32>)>;

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
    /// How its scales are stored, where they may be chosen.
    pub(super) free: Option<ScaleKind>,
    /// Its bias may be changed.
    pub(super) free_bias: bool,
}

/// A block of the graph.
pub(super) struct Found {
    block: Block,
    /// For each layer of the block its place among the members.
    layers: Vec<usize>,
    /// Neighbours of the result that a pooling behind it averages; 1 where there is none.
    pool: usize,
    /// For each quantizer the value that is quantized and the initializer of its scale.
    quantizers: Vec<(ValueId, ValueId)>,
}

/// What one layer of a block learned.
pub(super) struct LearnedLayer {
    /// Its place among the members.
    pub(super) member: usize,
    /// Values on the grid.
    pub(super) values: Vec<f32>,
    /// The grid.
    pub(super) grid: Grid,
    /// Added to the bias.
    pub(super) delta: Vec<f32>,
}

/// What a block learned.
pub(super) struct Learned {
    pub(super) layers: Vec<LearnedLayer>,
    /// Activations with new scales: the value that is quantized, the initializer of the scale, the scale.
    pub(super) scales: Vec<(ValueId, ValueId, f32)>,
    /// Whether held-out samples say that it is better than its layers learned one by one.
    pub(super) better: bool,
}

/// Where a block between two values of the float model really begins and ends: a layout that is changed before all of it, and
/// what moves or pools its result, stay outside; and whether a mean follows.
pub(super) fn inside(
    float: &Model,
    (mut first, mut last): (ValueId, ValueId),
) -> (ValueId, ValueId, bool) {
    let moves = |node: NodeId| matches!(float.node(node).op_type(), "Transpose" | "Identity");
    while let [(node, 0)] = float.consumers(first).as_slice()
        && moves(*node)
        && first != last
        && let Some(next) = float.output(*node, 0)
    {
        first = next;
    }
    let pools = [
        "Reshape",
        "Flatten",
        "Squeeze",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
    ];
    while let Some((node, 0)) = float.producer(last)
        && (moves(node) || pools.contains(&float.node(node).op_type()))
        && first != last
        && let Some(before) = float.input(node, 0)
    {
        last = before;
    }
    let means = ["AveragePool", "GlobalAveragePool", "ReduceMean"];
    let mut readers = float.consumers(last).into_iter();
    let pooled = readers.any(|(n, _)| means.contains(&float.node(n).op_type()));
    (first, last, pooled)
}

/// Builds the block between two values of the quantized model.
///
/// # Errors
/// The operator that a block cannot hold.
pub(super) fn find(
    quantized: &Model,
    facts: &Facts,
    (first, last, pooled): (ValueId, ValueId, bool),
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
            pool: 1,
            quantizers: Vec::new(),
        },
    };
    build.found.block.output = build.value(last, 0)?;
    if pooled {
        let area = build
            .dims(last)
            .and_then(|d| Some(d.get(2..)?.iter().product::<i64>()));
        let area = area.and_then(|a| usize::try_from(a).ok());
        build.found.pool = area.unwrap_or(1).max(1);
    }
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
        if matches!(op.op_type(), "Relu" | "Clip" | "LeakyRelu" | "PRelu") {
            return self.activate(value, node, depth);
        }
        match (op.domain(), op.op_type()) {
            ("", "Add") => {
                let (x, y) = (input(0)?, input(1)?);
                if self.dims(x).is_none() || self.dims(x) != self.dims(y) {
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

    fn activate(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let before = self.model.input(node, 0).ok_or("an input is missing")?;
        let input = self.value(before, depth + 1)?;
        let (activations, run) = self
            .activations(node, before)
            .ok_or_else(|| format!("it holds {}", self.model.node(node).op_type()))?;
        let output = self.number(value);
        self.found.block.steps.push(Step::Activate {
            input,
            output,
            activations,
            run,
        });
        Ok(output)
    }

    /// What an activation does, and how many neighbours belong to one channel.
    fn activations(&self, node: NodeId, before: ValueId) -> Option<(Vec<Activation>, usize)> {
        let linear = self.maker(before);
        let found = layer::activations(self.model, node, linear.unwrap_or(node))?;
        if found.len() == 1 {
            return Some((found, usize::MAX));
        }
        let dims = self.dims(before)?;
        let conv = matches!(self.model.node(linear?).op_type(), "Conv" | "ConvTranspose");
        let run = if conv {
            dims.get(2..)?.iter().product::<i64>()
        } else {
            1
        };
        Some((found, usize::try_from(run).ok().filter(|&r| r > 0)?))
    }

    /// The layer that makes a value, behind additions and pairs of Q and DQ.
    fn maker(&self, mut value: ValueId) -> Option<NodeId> {
        for _ in 0..8 {
            let (node, _) = self.model.producer(value)?;
            if self.members.iter().any(|m| m.node == node) {
                return Some(node);
            }
            value = self.model.input(node, 0)?;
        }
        None
    }

    fn quantize(&mut self, value: ValueId, dq: &qdq::Qdq, depth: usize) -> Result<usize, String> {
        let model = self.model;
        let codes = model
            .producer(dq.input)
            .and_then(|(n, _)| qdq::quantize(model, n));
        let q = codes.ok_or("a value is dequantized that was not quantized")?;
        let scale = qdq::scalar_scale(model, dq).ok_or("an activation has several scales")?;
        let zero = dq.zero_point.and_then(|z| model.constant(z));
        let dtype = zero.map_or(DataType::Uint8, Tensor::dtype);
        let zero = zero.and_then(Tensor::scalar_i64).unwrap_or(0) as f32;
        let (low, high) = match dtype {
            DataType::Uint4 => (0.0, 15.0),
            DataType::Int4 => (-8.0, 7.0),
            DataType::Uint8 => (0.0, 255.0),
            DataType::Int8 => (-128.0, 127.0),
            DataType::Uint16 => (0.0, 65535.0),
            DataType::Int16 => (-32768.0, 32767.0),
            _ => return Err("an activation has no integer format of 4, 8 or 16 bits".to_owned()),
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
            free_scales: member.free.is_some(),
            free_bias: member.free_bias,
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

/// Samples of a block, to learn from and to judge by: what it reads in the quantized model and, where quantization is
/// dropped at random, in the float model, and what the float model computes.
pub(super) fn samples(
    (float, float_flow): (&Model, &Flow<'_>),
    (quantized, quantized_flow): (&Model, &Flow<'_>),
    (first, last): (ValueId, ValueId),
    options: &Options,
) -> Result<Option<[Data; 2]>, Error> {
    let drop = options.methods.has(Method::Qdrop);
    let bytes = options.memory / if drop { 3 } else { 2 };
    let (Some(inputs), Some(targets)) = (
        gather(quantized, quantized_flow, first, bytes)?,
        gather(float, float_flow, last, bytes)?,
    ) else {
        return Ok(None);
    };
    let exact = match drop {
        true => gather(float, float_flow, first, bytes)?,
        false => None,
    };
    let mut parts = [Data::default(), Data::default()];
    let mut exact = exact.into_iter().flatten();
    for ((at, x), (_, t)) in inputs.into_iter().zip(targets) {
        let part = &mut parts[usize::from(at % HELD_OUT == HELD_OUT - 1)];
        part.inputs.push(vec![x]);
        part.targets.push(t);
        part.float.extend(exact.next().map(|(_, x)| vec![x]));
    }
    Ok(Some(parts))
}

/// A value by sample, as many as fit into `limit` bytes; `None` where its first axis does not count samples.
fn gather(
    model: &Model,
    flow: &Flow<'_>,
    value: ValueId,
    limit: usize,
) -> Result<Option<Samples>, Error> {
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
    let (mut all, mut whole, mut bytes) = (Vec::new(), true, 0);
    flow.run(
        model,
        &[value],
        |b, t| Ok(split(b, t)),
        |part| {
            let Some((first, samples)) = part else {
                whole = false;
                return Ok(());
            };
            for (i, s) in samples.into_iter().enumerate() {
                bytes += s.len() * 4;
                if bytes <= limit {
                    all.push((first + i, s));
                }
            }
            Ok(())
        },
    )?;
    Ok(whole.then_some(all))
}

/// Learns a block; `None` where held-out samples say that it is worse than its layers learned one by one.
pub(super) fn learn(
    found: &Found,
    members: &[Member],
    [train, held]: &[Data; 2],
    options: &Options,
) -> Learned {
    let judge = if held.inputs.is_empty() { train } else { held };
    let block = &found.block;
    let alone = found.layers.iter().map(|&m| members[m].values.clone());
    let judged = |state: &State| {
        let pooled = block.pooled_error(state, judge, found.pool);
        (block.error(state, judge), pooled)
    };
    let first = judged(&block.state(alone.collect()));
    let learning = Learning {
        rounding: adaround::Options {
            iterations: options.iterations,
            batch: BATCH,
            ..adaround::Options::default()
        },
        steps: options.methods.has(Method::LearnedSteps),
        drop: options.methods.has(Method::Qdrop),
        seed: options.seed,
    };
    let mut state = block.reconstruct(train, &learning);
    let layers = (0..found.layers.len())
        .map(|at| stored(found, members, &mut state, at))
        .collect();
    let after = judged(&state);
    let quantizers = state.scales.iter().zip(&block.quantizers);
    let moved = quantizers
        .zip(&found.quantizers)
        .filter(|((_, q), _)| q.learned && learning.steps);
    Learned {
        layers,
        scales: moved
            .map(|((&s, _), &(value, init))| (value, init, s))
            .collect(),
        better: after.0 < first.0 && after.1 < first.1,
    }
}

/// What a layer learned, its scales as they are stored; the state gets the same values.
fn stored(found: &Found, members: &[Member], state: &mut State, at: usize) -> LearnedLayer {
    let layer = &found.block.layers[at];
    let mut grid = layer.grid.clone();
    if let Some(kind) = members[found.layers[at]].free {
        let factors = &mut state.factors[at];
        for (scale, factor) in grid.scales.iter_mut().zip(factors.iter_mut()) {
            let learned = kind.stored(*scale * *factor);
            (*scale, *factor) = (learned, learned / *scale);
        }
        // Codes stay: the learned values are nearest to their own on the grid that is stored.
        state.weights[at] = grid.nearest(&state.weights[at]);
    }
    let pairs = state.biases[at].iter().zip(&layer.bias);
    LearnedLayer {
        member: found.layers[at],
        values: state.weights[at].clone(),
        grid,
        delta: pairs.map(|(learned, first)| learned - first).collect(),
    }
}
