//! The operators that may stand between the layers of a block.

use onnx_quant_ir::{DataType, NodeId, Tensor, ValueId};
use onnx_quant_numerics::optimize::block::ops::{Binary, Op, Unary};
use onnx_quant_numerics::optimize::block::{Spread, Step};
use onnx_quant_passes::eval::evaluate;

use super::build::Build;

/// Bytes of the places that an operator takes elements from.
const PLACES: usize = 256 << 20;

/// A value with its shape.
type Shaped = (usize, Vec<usize>);

fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    let valid = usize::try_from(from_front)
        .ok()
        .filter(|&a| a < rank.max(1));
    valid.ok_or_else(|| format!("an axis {axis} is none of {rank}"))
}

impl Build<'_> {
    /// An operator without weights; the number of the value that it makes.
    pub(super) fn apply(
        &mut self,
        value: ValueId,
        node: NodeId,
        depth: usize,
    ) -> Result<usize, String> {
        let model = self.model;
        let n = model.node(node);
        let kind = n.op_type();
        let unknown = || Err(format!("it holds {kind}, of which no gradient is known"));
        if !matches!(n.domain(), "" | "com.microsoft") {
            return unknown();
        }
        if let Some(f) = self.unary(node) {
            let x = self.value(self.input(node, 0)?, depth + 1)?;
            return Ok(self.op(Some(value), Op::Unary(f), vec![x]));
        }
        let binary = match kind {
            "Add" | "Sum" => Some(Binary::Add),
            "Sub" => Some(Binary::Sub),
            "Mul" => Some(Binary::Mul),
            "Div" => Some(Binary::Div),
            "Min" => Some(Binary::Min),
            "Max" => Some(Binary::Max),
            _ => None,
        };
        if let Some(kind) = binary {
            let [a, b] = model.inputs(node)[..] else {
                return unknown();
            };
            let (Some(a), Some(b)) = (a, b) else {
                return unknown();
            };
            let (a, b) = (self.shaped(a, depth)?, self.shaped(b, depth)?);
            let to = self.dims(value)?;
            return self.binary(Some(value), kind, [&a, &b], &to);
        }
        match kind {
            "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Dropout" => {
                let x = self.value(self.input(node, 0)?, depth + 1)?;
                Ok(self.alias(value, x))
            }
            "Cast" if is_float(n.attr_i("to").unwrap_or(0)) => {
                let x = self.value(self.input(node, 0)?, depth + 1)?;
                Ok(self.alias(value, x))
            }
            "MatMul" => self.product(value, node, depth),
            "Softmax" => self.softmax(value, node, depth),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                self.normalize(value, node, depth)
            }
            "ReduceMean" | "ReduceSum" | "GlobalAveragePool" => self.reduce(value, node, depth),
            "Concat" => self.concat(value, node, depth),
            "Where" => self.select(value, node, depth),
            "Transpose" | "Slice" | "Split" | "Gather" | "Expand" | "Tile" => {
                self.take(value, node, depth)
            }
            _ => unknown(),
        }
    }

    /// The function of one element that an operator is.
    fn unary(&self, node: NodeId) -> Option<Unary> {
        let n = self.model.node(node);
        let f = |name: &str, default: f32| n.attr_f(name).unwrap_or(default);
        Some(match n.op_type() {
            "Abs" => Unary::Abs,
            "Exp" => Unary::Exp,
            "Log" => Unary::Log,
            "Neg" => Unary::Neg,
            "Sqrt" => Unary::Sqrt,
            "Reciprocal" => Unary::Reciprocal,
            "Erf" => Unary::Erf,
            "Tanh" => Unary::Tanh,
            "Sigmoid" => Unary::Sigmoid,
            "Softplus" => Unary::Softplus,
            "Swish" => Unary::Swish(f("alpha", 1.0)),
            "QuickGelu" => Unary::Swish(f("alpha", 1.702)),
            "Gelu" if n.attr_s("approximate") == Some("tanh") => Unary::GeluTanh,
            "Gelu" => Unary::Gelu,
            "HardSigmoid" => Unary::HardSigmoid(f("alpha", 0.2), f("beta", 0.5)),
            "HardSwish" => Unary::HardSwish,
            "Pow" => Unary::Power(self.model.input_constant(node, 1)?.scalar_f32()?),
            _ => return None,
        })
    }

    fn op(&mut self, value: Option<ValueId>, op: Op, inputs: Vec<usize>) -> usize {
        let output = self.number(value);
        self.push(Step::Apply { op, inputs, output });
        output
    }

    fn shaped(&mut self, value: ValueId, depth: usize) -> Result<Shaped, String> {
        Ok((self.value(value, depth + 1)?, self.dims(value)?))
    }

    fn binary(
        &mut self,
        value: Option<ValueId>,
        kind: Binary,
        [a, b]: [&Shaped; 2],
        to: &[usize],
    ) -> Result<usize, String> {
        let spreads = [spread(&a.1, to)?, spread(&b.1, to)?];
        let op = Op::Binary {
            kind,
            spreads,
            size: to.iter().product(),
        };
        Ok(self.op(value, op, vec![a.0, b.0]))
    }

    fn product(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let (a, mut left) = self.shaped(self.input(node, 0)?, depth)?;
        let (b, mut right) = self.shaped(self.input(node, 1)?, depth)?;
        // A vector is a row on the left and a column on the right.
        if left.len() == 1 {
            left.insert(0, 1);
        }
        if right.len() == 1 {
            right.push(1);
        }
        let (&[.., m, k], &[.., same, n]) = (&left[..], &right[..]) else {
            return Err("it holds a MatMul of scalars".to_owned());
        };
        if k != same {
            return Err("it holds a MatMul whose operands do not fit".to_owned());
        }
        let (left, right) = (&left[..left.len() - 2], &right[..right.len() - 2]);
        let rank = left.len().max(right.len());
        let size = |dims: &[usize], at: usize| {
            let missing = rank - dims.len();
            if at < missing { 1 } else { dims[at - missing] }
        };
        let to: Vec<usize> = (0..rank)
            .map(|at| size(left, at).max(size(right, at)))
            .collect();
        let count: usize = to.iter().product();
        let places = |dims: &[usize]| -> Result<Vec<usize>, String> {
            let size: usize = dims.iter().product();
            let own: Vec<f32> = (0..size).map(|i| i as f32).collect();
            let spread = spread(dims, &to)?.expand(&own, count);
            Ok(spread.into_iter().map(|i| i as usize).collect())
        };
        let op = Op::Product {
            pairs: places(left)?.into_iter().zip(places(right)?).collect(),
            sizes: [m, k, n],
        };
        Ok(self.op(Some(value), op, vec![a, b]))
    }

    fn softmax(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let (x, dims) = self.shaped(self.input(node, 0)?, depth)?;
        let given = self.model.node(node).attr_i("axis");
        // Before opset 13 all axes from the given one on were one.
        let flat = self.model.opset("").unwrap_or(1) < 13;
        let at = axis(given.unwrap_or(if flat { 1 } else { -1 }), dims.len())?;
        let behind: usize = dims[at + 1..].iter().product();
        let op = match flat {
            true => Op::Softmax {
                len: dims[at] * behind,
                inner: 1,
            },
            false => Op::Softmax {
                len: dims[at],
                inner: behind,
            },
        };
        Ok(self.op(Some(value), op, vec![x]))
    }

    fn normalize(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let n = self.model.node(node);
        if self.model.output(node, 0) != Some(value) {
            return Err(format!("it holds the statistics of a {}", n.op_type()));
        }
        let (x, dims) = self.shaped(self.input(node, 0)?, depth)?;
        let at = axis(n.attr_i("axis").unwrap_or(-1), dims.len())?;
        let op = Op::Normalize {
            len: dims[at..].iter().product(),
            epsilon: n.attr_f("epsilon").unwrap_or(1e-5),
            centred: n.op_type() == "LayerNormalization",
        };
        let scale = self.shaped(self.input(node, 1)?, depth)?;
        let bias = match self.model.input(node, 2) {
            Some(bias) => Some(self.shaped(bias, depth)?),
            None => None,
        };
        let x = (self.op(None, op, vec![x]), dims.clone());
        let own = bias.is_none().then_some(value);
        let scaled = self.binary(own, Binary::Mul, [&x, &scale], &dims)?;
        match bias {
            Some(bias) => {
                let scaled = (scaled, dims.clone());
                self.binary(Some(value), Binary::Add, [&scaled, &bias], &dims)
            }
            None => Ok(scaled),
        }
    }

    fn reduce(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let n = self.model.node(node);
        let (x, dims) = self.shaped(self.input(node, 0)?, depth)?;
        let given: Vec<i64> = match (n.op_type(), self.model.input(node, 1)) {
            ("GlobalAveragePool", _) => (2..dims.len() as i64).collect(),
            (_, Some(axes)) => {
                let known = self.model.constant(axes).or_else(|| self.facts.value(axes));
                let known = known.and_then(|t| t.to_i64().ok());
                known.ok_or("it holds sums over axes that are not constant")?
            }
            (_, None) => n.attr_ints("axes").unwrap_or_default().to_vec(),
        };
        if given.is_empty() && n.attr_i("noop_with_empty_axes").unwrap_or(0) != 0 {
            return Ok(self.alias(value, x));
        }
        let mut to = dims.clone();
        match given.is_empty() {
            true => to.fill(1),
            false => {
                for a in given {
                    to[axis(a, dims.len())?] = 1;
                }
            }
        }
        let size: usize = to.iter().product();
        let count: usize = dims.iter().product::<usize>() / size.max(1);
        let op = Op::Sum {
            spread: spread(&to, &dims)?,
            factor: match n.op_type() {
                "ReduceSum" => 1.0,
                _ => 1.0 / count as f32,
            },
            size,
        };
        Ok(self.op(Some(value), op, vec![x]))
    }

    fn concat(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let mut inputs = Vec::new();
        let mut widths = Vec::new();
        for part in self.model.inputs(node).into_iter().flatten() {
            let (x, dims) = self.shaped(part, depth)?;
            let at = self.model.node(node).attr_i("axis").unwrap_or(1);
            widths.push(dims[axis(at, dims.len())?..].iter().product());
            inputs.push(x);
        }
        Ok(self.op(Some(value), Op::Concat(widths), inputs))
    }

    fn select(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let to = self.dims(value)?;
        let mut inputs = Vec::new();
        let mut spreads = Vec::new();
        for slot in 0..3 {
            let (x, dims) = self.shaped(self.input(node, slot)?, depth)?;
            spreads.push(spread(&dims, &to)?);
            inputs.push(x);
        }
        let spreads = spreads.try_into().map_err(|_| "an input is missing")?;
        let op = Op::Select {
            spreads,
            size: to.iter().product(),
        };
        Ok(self.op(Some(value), op, inputs))
    }

    /// Operators that move elements: the evaluator says where each comes from.
    fn take(&mut self, value: ValueId, node: NodeId, depth: usize) -> Result<usize, String> {
        let (model, n) = (self.model, self.model.node(node));
        let (x, dims) = self.shaped(self.input(node, 0)?, depth)?;
        let count: usize = dims.iter().product();
        let own: Vec<i64> = (0..count as i64).collect();
        let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let own = Tensor::from_i64(&dims, &own);
        let mut inputs = vec![Some(&own)];
        for given in model.inputs(node).into_iter().skip(1) {
            let known = given.map(|v| {
                let known = model.constant(v).or_else(|| self.facts.value(v));
                known.ok_or_else(|| format!("it holds a {} that is computed", n.op_type()))
            });
            inputs.push(known.transpose()?);
        }
        let opset = model.opset("").unwrap_or(1);
        let moved = evaluate(n, opset, &inputs, PLACES).map_err(|e| e.to_string())?;
        let slot = model.producer(value).map_or(0, |(_, slot)| slot);
        let places = moved.get(slot).and_then(|t| t.to_i64().ok());
        let places = places.ok_or("an output is missing")?;
        let places = places.into_iter().map(|p| p as u32).collect();
        Ok(self.op(Some(value), Op::Take(places), vec![x]))
    }
}

fn spread(from: &[usize], to: &[usize]) -> Result<Spread, String> {
    Spread::of(from, to).ok_or_else(|| format!("it spreads {from:?} to {to:?}"))
}

fn is_float(dtype: i64) -> bool {
    [
        DataType::Float,
        DataType::Float16,
        DataType::Bfloat16,
        DataType::Double,
    ]
    .iter()
    .any(|&d| d as i64 == dtype)
}
