//! From the nodes between two cuts to a [`Block`].

use std::collections::{BTreeMap, HashSet};

use onnx_quant_ir::{DataType, Model, NodeId, Tensor, ValueId};
use onnx_quant_numerics::optimize::adaround::Activation;
use onnx_quant_numerics::optimize::block::{Block, Layer, Quantizer, Step};
use onnx_quant_passes::infer::Facts;
use onnx_quant_passes::layer::{self, geometry};
use onnx_quant_passes::qdq;

use super::samples::numbers;
use super::{Found, Member};

/// Values between the result and what the block reads.
const DEPTH: usize = 400;

/// Builds the block from `roots`, which the cut before holds, to `last`. What depends neither on them nor on a layer, masks
/// above all, is read from outside.
///
/// # Errors
/// The operator that a block cannot hold, or what else is in the way.
pub(in super::super) fn find(
    (float, quantized): (&Model, &Model),
    facts: &Facts,
    roots: &[ValueId],
    (last, pooled): (ValueId, bool),
    members: &[Member],
) -> Result<Found, String> {
    let mut build = Build {
        float,
        model: quantized,
        facts,
        members,
        numbers: BTreeMap::new(),
        inside: inside(quantized, roots, members),
        found: Found {
            block: Block::default(),
            inputs: Vec::new(),
            output: last,
            sizes: Vec::new(),
            positions: None,
            layers: Vec::new(),
            pool: 1,
            quantizers: Vec::new(),
        },
    };
    for &root in roots {
        build.read(root)?;
    }
    build.found.block.output = build.value(last, 0)?;
    let dims = build.dims(last)?;
    build.found.sizes.push(dims.iter().product());
    build.found.positions = match dims[..] {
        [1, positions, _] => Some(positions),
        _ => None,
    };
    if pooled {
        build.found.pool = dims.iter().skip(2).product::<usize>().max(1);
    }
    if build.found.layers.len() < 2 {
        return Err("it has fewer than two layers".to_owned());
    }
    Ok(build.found)
}

/// The values that depend on the roots or on a layer.
fn inside(model: &Model, roots: &[ValueId], members: &[Member]) -> HashSet<ValueId> {
    let layers: HashSet<NodeId> = members.iter().map(|m| m.node).collect();
    let mut inside: HashSet<ValueId> = roots.iter().copied().collect();
    for &node in &model.main().nodes {
        let reads = |v: &ValueId| inside.contains(v);
        if layers.contains(&node)
            || model.inputs(node).iter().flatten().any(reads)
            || model.captured_by(node).iter().any(reads)
        {
            inside.extend(model.outputs(node).into_iter().flatten());
        }
    }
    inside
}

pub(super) struct Build<'a> {
    float: &'a Model,
    pub(super) model: &'a Model,
    pub(super) facts: &'a Facts,
    members: &'a [Member],
    numbers: BTreeMap<ValueId, usize>,
    inside: HashSet<ValueId>,
    found: Found,
}

impl Build<'_> {
    /// The number of a value; what makes it is put into the program before.
    pub(super) fn value(&mut self, value: ValueId, depth: usize) -> Result<usize, String> {
        if let Some(&n) = self.numbers.get(&value) {
            return Ok(n);
        }
        let producer = self.model.producer(value);
        if let Some((node, _)) = producer
            && let Some(dq) = qdq::dequantize(self.model, node)
            && let Some(q) = self.codes(&dq)
        {
            return self.quantize(value, (&q, &dq), depth);
        }
        let Some((node, _)) = producer.filter(|_| self.inside.contains(&value)) else {
            return self.read(value);
        };
        if depth > DEPTH {
            return Err("it is too deep".to_owned());
        }
        let kind = self.model.node(node).op_type();
        if let Some(place) = self.members.iter().position(|m| m.node == node) {
            return self.linear(value, (node, place), depth);
        }
        if matches!(kind, "Relu" | "Clip" | "LeakyRelu" | "PRelu") {
            return self.activate(value, node, depth);
        }
        self.apply(value, node, depth)
    }

    /// A constant, or a value from outside.
    fn read(&mut self, value: ValueId) -> Result<usize, String> {
        let known = self.model.constant(value);
        if let Some(constant) = known.or_else(|| self.facts.value(value)) {
            let x = numbers(constant).ok_or("it reads a constant that is no number")?;
            let n = self.number(Some(value));
            self.found.block.constants.push((n, x));
            return Ok(n);
        }
        if !self.float.has_value(value) {
            return Err("it reads a value that the float model does not have".to_owned());
        }
        let size = self.dims(value)?.iter().product();
        let n = self.number(Some(value));
        self.found.block.inputs.push(n);
        self.found.inputs.push(value);
        self.found.sizes.push(size);
        Ok(n)
    }

    /// The shape of a value for one sample.
    pub(super) fn dims(&self, value: ValueId) -> Result<Vec<usize>, String> {
        let known = self.facts.dims(value).or_else(|| {
            let dq = qdq::dequantized_by(self.model, value)?;
            self.facts.dims(self.codes(&dq)?.input)
        });
        let known = known.ok_or_else(|| {
            let key = self.model.value_key(value);
            format!("the shape of `{key}` is not known")
        })?;
        Ok(known.into_iter().map(|d| d as usize).collect())
    }

    /// What makes the codes that are dequantized.
    fn codes(&self, dq: &qdq::Qdq) -> Option<qdq::Qdq> {
        let (node, _) = self.model.producer(dq.input)?;
        qdq::quantize(self.model, node)
    }

    /// Input `slot` of a node.
    pub(super) fn input(&self, node: NodeId, slot: usize) -> Result<ValueId, String> {
        let found = self.model.input(node, slot);
        found.ok_or_else(|| "an input is missing".to_owned())
    }

    /// A value that is another one, in another shape perhaps.
    pub(super) fn alias(&mut self, value: ValueId, number: usize) -> usize {
        self.numbers.insert(value, number);
        number
    }

    pub(super) fn push(&mut self, step: Step) {
        self.found.block.steps.push(step);
    }

    pub(super) fn number(&mut self, value: Option<ValueId>) -> usize {
        let n = self.found.block.values;
        self.found.block.values += 1;
        if let Some(value) = value {
            self.numbers.insert(value, n);
        }
        n
    }

    fn activate(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let before = self.input(node, 0)?;
        let input = self.value(before, depth + 1)?;
        let (activations, run) = self
            .activations(node, before)
            .ok_or_else(|| format!("it holds {}", self.model.node(node).op_type()))?;
        let output = self.number(Some(value));
        self.push(Step::Activate {
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
        let dims = self.dims(before).ok()?;
        let conv = matches!(self.model.node(linear?).op_type(), "Conv" | "ConvTranspose");
        let run = if conv {
            dims.get(2..)?.iter().product()
        } else {
            1
        };
        Some((found, Some(run).filter(|&r| r > 0)?))
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

    fn quantize(
        &mut self,
        value: ValueId,
        (q, dq): (&qdq::Qdq, &qdq::Qdq),
        depth: usize,
    ) -> Result<usize, String> {
        let model = self.model;
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
        let output = self.number(Some(value));
        let alone = q.scale == dq.scale && model.consumers(dq.scale).len() == 2;
        self.found.block.quantizers.push(Quantizer {
            scale,
            low: low - zero,
            high: high - zero,
            learned: alone,
        });
        self.found.quantizers.push((q.input, dq.scale));
        let quantizer = self.found.quantizers.len() - 1;
        self.push(Step::Quantize {
            input,
            output,
            quantizer,
        });
        Ok(output)
    }

    fn linear(
        &mut self,
        value: ValueId,
        (node, place): (NodeId, usize),
        depth: usize,
    ) -> Result<usize, String> {
        let (model, member) = (self.model, &self.members[place]);
        let n = model.node(node);
        let kind = n.op_type();
        let before = self.input(node, 0)?;
        let (from, to) = (self.dims(before)?, self.dims(value)?);
        let geometry = geometry(model, node, &from, &to);
        let fits = match kind {
            "MatMul" | "Gemm" => from.last() == Some(&member.matrix.cols),
            _ => geometry.is_some(),
        };
        if !fits
            || n.attr_f("alpha")
                .is_some_and(|a| a != 1.0 && kind == "Gemm")
        {
            return Err(format!("it holds a {kind} of another form"));
        }
        let input = self.value(before, depth + 1)?;
        let output = self.number(Some(value));
        self.found.block.layers.push(Layer {
            weights: member.weights.clone(),
            bias: self.bias(node, member.matrix.rows)?,
            grid: member.grid.clone(),
            groups: member.matrix.groups,
            geometry,
            tokens: from.iter().product::<usize>() / member.matrix.cols,
            free_scales: member.free.is_some(),
            free_bias: member.free_bias,
        });
        self.found.layers.push(place);
        let layer = self.found.layers.len() - 1;
        self.push(Step::Linear {
            layer,
            input,
            output,
        });
        Ok(output)
    }

    /// The bias that is an input of the operator.
    fn bias(&self, node: NodeId, rows: usize) -> Result<Vec<f32>, String> {
        let n = self.model.node(node);
        let Some(value) = self.model.input(node, 2) else {
            return Ok(vec![0.0; rows]);
        };
        let constant = self.model.constant(value).and_then(|t| t.to_f32().ok());
        let beta = match n.op_type() {
            "Gemm" => n.attr_f("beta").unwrap_or(1.0),
            _ => 1.0,
        };
        match constant {
            Some(b) if b.len() == rows => Ok(b.iter().map(|b| b * beta).collect()),
            Some(b) if b.len() == 1 => Ok(vec![b[0] * beta; rows]),
            _ => Err("a bias is not known".to_owned()),
        }
    }
}
