//! Recognizing weights that are stored as packed indices, and computing them.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Model, NodeId, Tensor, ValueId};

use crate::eval;

/// A weight that a graph stores as packed indices into a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The initializer of the packed indices.
    pub packed: ValueId,
    /// The value that holds the weight.
    pub weight: ValueId,
    /// The operators that compute it, in program order.
    pub nodes: Vec<NodeId>,
    /// Bits of an index.
    pub bits: u32,
    /// Shape of the weight.
    pub dims: Vec<i64>,
    /// Codebooks, or scales where all groups share the table.
    pub groups: u64,
    /// Entries of the table that all groups share; `None` where each has a codebook.
    pub levels: Option<u64>,
    /// Bits of the indices, codebooks and scales.
    pub stored_bits: u64,
}

impl Stored {
    /// The name of the number format.
    pub fn format(&self) -> String {
        match self.levels {
            Some(2) => "binary".to_owned(),
            Some(3) => "ternary".to_owned(),
            Some(_) => format!("codes of {} bits", self.bits),
            None => format!("kmeans{}", self.bits),
        }
    }

    /// Values of the weight.
    pub fn values(&self) -> u64 {
        self.dims.iter().map(|&d| d.max(0) as u64).product()
    }
}

/// The operators that indices pass through, and from which input.
const PATH: &[&str] = &[
    "Add",
    "Reshape",
    "Cast",
    "Slice",
    "BitwiseAnd",
    "BitwiseOr",
    "BitShift",
    "Gather",
];

/// Longest path from packed indices to the lookup.
const LONGEST: usize = 12;

/// Every weight of the model that is stored as packed indices, in program order.
pub fn find(model: &Model) -> Vec<Stored> {
    let nodes = model.all_nodes().into_iter();
    let found: Vec<(NodeId, Stored)> = nodes.filter_map(|n| Some((n, stored(model, n)?))).collect();
    // Scales and zero points may be looked up themselves: they belong to their weight.
    let outer = |lookup: NodeId| {
        let holds = |w: &(NodeId, Stored)| w.0 != lookup && w.1.nodes.contains(&lookup);
        !found.iter().any(holds)
    };
    let own = found.iter().filter(|(lookup, _)| outer(*lookup));
    own.map(|(_, w)| w.clone()).collect()
}

/// The weight whose lookup is this node.
fn stored(model: &Model, lookup: NodeId) -> Option<Stored> {
    if !model.node(lookup).is("Gather") {
        return None;
    }
    let table = model.input_constant(lookup, 0)?;
    if !table.dtype().is_float() || table.dims().len() != 1 {
        return None;
    }
    let mut at = model.input(lookup, 1)?;
    let (mut bits, mut offset, mut shape) = (8, false, None);
    let mut first = true;
    for _ in 0..LONGEST {
        if model.constant(at).is_some() {
            break;
        }
        let (node, _) = model.producer(at)?;
        let n = model.node(node);
        if !n.domain().is_empty() || !PATH.contains(&n.op_type()) {
            return None;
        }
        match n.op_type() {
            "Add" if first => offset = true,
            "Add" => return None,
            "BitwiseAnd" => {
                let mask = model.input_constant(node, 1)?.scalar_i64()?;
                bits = (mask + 1).checked_ilog2()?;
            }
            "Reshape" if shape.is_none() => shape = model.input_constant(node, 1)?.to_i64().ok(),
            _ => {}
        }
        first = false;
        at = model.input(node, 0)?;
    }
    let packed = model.constant(at)?;
    if packed.dtype() != DataType::Uint8 || !(1..=8).contains(&bits) {
        return None;
    }
    let dims = shape.unwrap_or_else(|| packed.dims().to_vec());
    let size = |t: &Tensor| t.byte_len().unwrap_or(0) as u64 * 8;
    let looked_up = model.output(lookup, 0)?;
    let (scaled, scales) = scaled(model, looked_up);
    let groups = match scales.first() {
        Some(scale) => scale.element_count().ok()? as u64,
        None if offset => table.element_count().ok()? as u64 >> bits,
        None => 1,
    };
    let (weight, dims) = reshaped(model, scaled, dims);
    Some(Stored {
        packed: at,
        weight,
        nodes: cone(model, weight)?,
        bits,
        dims,
        groups,
        levels: match scales.is_empty() {
            true => None,
            false => Some(table.element_count().ok()? as u64),
        },
        stored_bits: size(packed)
            + match scales.is_empty() {
                true => size(table),
                false => scales.iter().map(size).sum(),
            },
    })
}

/// The only reader of a value that is not a graph's output.
fn only_reader(model: &Model, value: ValueId) -> Option<NodeId> {
    let uses = model.consumers(value);
    let inner = !model.value(value).is_output() && model.captures(value).is_empty();
    match uses[..] {
        [(node, 0)] if inner => Some(node),
        _ => None,
    }
}

/// The product with scales behind a lookup, after a zero point is subtracted where there is one; and what is stored for
/// them.
fn scaled(model: &Model, value: ValueId) -> (ValueId, Vec<Tensor>) {
    let step = |value: ValueId, op: &str| {
        let node = only_reader(model, value).filter(|&n| model.node(n).is(op))?;
        let stored = parameters(model, model.input(node, 1)?, LONGEST)?;
        Some((model.output(node, 0)?, stored))
    };
    let (moved, zeros) = step(value, "Sub").unwrap_or((value, Vec::new()));
    match step(moved, "Mul") {
        Some((product, mut stored)) => {
            stored.extend(zeros);
            (product, stored)
        }
        None => (value, Vec::new()),
    }
}

/// The constants that scales or zero points are stored as; `None` where they depend on anything else.
fn parameters(model: &Model, value: ValueId, depth: usize) -> Option<Vec<Tensor>> {
    if let Some(tensor) = model.constant(value) {
        return Some(vec![tensor.clone()]);
    }
    let (node, _) = model.producer(value).filter(|_| depth > 0)?;
    let n = model.node(node);
    let slots = match n.op_type() {
        _ if !n.domain().is_empty() => return None,
        "Slice" | "Reshape" | "Expand" | "Cast" | "BitwiseAnd" | "BitwiseOr" | "BitShift" => 0..1,
        // The table is no parameter, its indices are.
        "Gather" if n.attr_i("axis").unwrap_or(0) == 0 => 1..2,
        "Gather" => 0..1,
        "DequantizeLinear" => 0..3,
        _ => return None,
    };
    let inputs = slots.filter_map(|slot| model.input(node, slot));
    let parts: Option<Vec<_>> = inputs.map(|v| parameters(model, v, depth - 1)).collect();
    parts.map(|p| p.concat())
}

/// The value behind a Reshape to a constant shape.
fn reshaped(model: &Model, value: ValueId, dims: Vec<i64>) -> (ValueId, Vec<i64>) {
    let found = only_reader(model, value).filter(|&n| model.node(n).is("Reshape"));
    let shape = found.and_then(|node| {
        let shape = model.input_constant(node, 1)?.to_i64().ok()?;
        let counts = shape.iter().all(|&d| d > 0);
        let same = shape.iter().product::<i64>() == dims.iter().product::<i64>();
        (counts && same).then_some((model.output(node, 0)?, shape))
    });
    shape.unwrap_or((value, dims))
}

/// The operators that a value is computed with from constants; `None` where it depends on anything else.
fn cone(model: &Model, value: ValueId) -> Option<Vec<NodeId>> {
    let mut found = Vec::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if model.constant(value).is_some() {
            continue;
        }
        let (node, _) = model.producer(value)?;
        if !model.node(node).subgraphs.is_empty() {
            return None;
        }
        if !found.contains(&node) {
            found.push(node);
            open.extend(model.inputs(node).into_iter().flatten());
        }
    }
    found.reverse();
    Some(found)
}

/// Computes the weight with the operators that the graph holds, as the standard defines them.
///
/// # Errors
/// What the evaluator refuses.
pub fn evaluate(model: &Model, weight: &Stored) -> Result<Tensor, String> {
    let limit = weight.values().saturating_mul(16).max(1 << 20) as usize;
    value(model, weight.weight, limit)
}

fn value(model: &Model, at: ValueId, limit: usize) -> Result<Tensor, String> {
    if let Some(t) = model.constant(at) {
        return Ok(t.clone());
    }
    let (node, slot) = model.producer(at).ok_or("depends on an input")?;
    let mut inputs = Vec::new();
    for input in model.inputs(node) {
        inputs.push(input.map(|v| value(model, v, limit)).transpose()?);
    }
    let given: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let opset = model.opset("").unwrap_or(21);
    let mut outputs = eval::evaluate(model.node(node), opset, &given, limit)
        .map_err(|e| e.to_string())?
        .into_iter();
    outputs
        .nth(slot)
        .ok_or_else(|| "has no such output".to_owned())
}
