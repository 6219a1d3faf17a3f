//! Moves the size of channels from an activation into the weights that read it, by factors that were searched before.
//!
//! # What it does
//! For each activation of the [`ChannelFactors`] the readers' weights are multiplied by the factor of each input channel,
//! and the activation is divided: in the constants of what makes it (LayerNormalization, RMSNormalization, a Mul or Add
//! with a constant, the MatMul or Gemm before, through Relu) where nothing else reads it, and else by a Mul in front of
//! the readers. With SmoothQuant's factors outlier channels of the activation become small; with AWQ's the weights of
//! channels that matter become large, so that rounding costs them less.
//!
//! # Before → After
//! `MatMul(LayerNormalization(x, γ, β), W)` becomes `MatMul(LayerNormalization(x, γ/s, β/s), s·W)`.
//! `MatMul(x, W)` becomes `MatMul(x · (1/s), s·W)` where nothing can take the factors.
//!
//! # When it does not fire
//! Without factors. On readers whose weight would not stay finite.
//!
//! # Invariants kept
//! Signature and names; the net computes the same up to rounding. Constants with other readers stay, and these uses get
//! copies.
//!
//! # Opset notes
//! None.
//!
//! # References
//! Xiao et al., *SmoothQuant*, 2023. Lin et al., *AWQ: Activation-aware Weight Quantization*, 2024.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, NodeSpec, Tensor, ValueId};

use crate::layer::Matrix;
use crate::ops;

#[cfg(test)]
mod tests;

/// What the readers' weights are multiplied by, for each channel of the last axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// One for each channel, positive.
    pub values: Vec<f32>,
    /// Keys of the MatMul and Gemm nodes that read the activation and take the factors.
    pub readers: BTreeSet<String>,
}

/// Factors by the key of the activation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelFactors(pub BTreeMap<String, Factors>);

/// See the head of this file.
pub struct SmoothActivations;

static INFO: PassInfo = PassInfo {
    name: "smooth_activations",
    summary: "Moves the size of channels from an activation into the weights that read it (SmoothQuant, AWQ)",
    source: include_str!("smooth_activations.rs"),
    exact: false,
};

impl Pass for SmoothActivations {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        // A second run must not apply them again.
        let Some(ChannelFactors(all)) = cx.take::<ChannelFactors>() else {
            return Ok(Changed::No);
        };
        let by_key: BTreeMap<String, ValueId> = model
            .all_values()
            .into_iter()
            .map(|v| (model.value_key(v), v))
            .collect();
        let (mut taken, mut inserted) = (0, 0);
        for (key, factors) in &all {
            let Some(&value) = by_key.get(key) else {
                cx.skip_subject(key.clone(), "the model has no such activation");
                continue;
            };
            match apply(model, value, factors) {
                Ok(true) => taken += 1,
                Ok(false) => inserted += 1,
                Err(reason) => cx.skip_subject(key.clone(), reason),
            }
        }
        if taken + inserted > 0 {
            cx.note(format!(
                "{taken} activations were scaled in the constants before them, {inserted} by a Mul of their own"
            ));
        }
        Ok((taken + inserted > 0).into())
    }
}

/// Applies the factors of one activation; `true` where the constants before it took them, `false` where a Mul did.
///
/// # Errors
/// Why they cannot be applied; the model is then as it was.
pub fn apply(model: &mut Model, value: ValueId, factors: &Factors) -> Result<bool, String> {
    let all = model.consumers(value);
    let readers: Vec<(NodeId, usize)> = all
        .iter()
        .copied()
        .filter(|(n, _)| factors.readers.contains(&model.node_key(*n)))
        .collect();
    let mut scaled = Vec::new();
    for &(node, slot) in &readers {
        scaled.push((node, scaled_weight(model, node, slot, &factors.values)?));
    }
    if scaled.is_empty() {
        return Err("nothing that reads it takes factors".to_owned());
    }
    let inverse: Vec<f32> = factors.values.iter().map(|s| 1.0 / s).collect();
    let alone = readers.len() == all.len() && is_inner(model, value);
    let before = alone
        .then(|| constants_before(model, value, inverse.len()))
        .flatten()
        .and_then(|sides| scaled_constants(model, sides, &inverse));
    for (node, tensor) in scaled {
        replace(model, node, 1, tensor);
    }
    if let Some(constants) = before {
        for (node, slot, tensor) in constants {
            replace(model, node, slot, tensor);
        }
        return Ok(true);
    }
    let graph = model.value(value).graph;
    let mut names = model.names();
    let stem = model.value(value).name.clone();
    let dtype = model.input_constant(readers[0].0, 1).map(Tensor::dtype);
    let constant = dtype
        .and_then(|d| Tensor::from_f32_as(d, &[inverse.len() as i64], &inverse).ok())
        .ok_or("its weights have no float type")?;
    let constant = model.add_initializer(
        graph,
        &names.fresh(&format!("{stem}_smooth_scale")),
        constant,
    );
    let name = names.fresh(&format!("{stem}_smoothed"));
    let out = model.add_op(graph, NodeSpec::new("Mul"), &[value, constant], &name);
    for (node, slot) in readers {
        model.set_input(node, slot, Some(out));
    }
    Ok(false)
}

/// The weight of a reader, its input channels multiplied.
fn scaled_weight(
    model: &Model,
    node: NodeId,
    slot: usize,
    factors: &[f32],
) -> Result<Tensor, String> {
    let linear = match ops::linear(model, node) {
        Some(Ok(l)) if l.activation == slot => l,
        _ => return Err("a reader is no linear operator with a constant weight".to_owned()),
    };
    if !matches!(model.node(node).op_type(), "MatMul" | "Gemm") || linear.weight != 1 {
        return Err("only MatMul and Gemm with the weight on the right take factors".to_owned());
    }
    let matrix = Matrix::of(model, node)?;
    let tensor = model
        .input_constant(node, 1)
        .ok_or("its weight is not a constant")?;
    if matrix.cols != factors.len() {
        return Err("the factors are not those of its input channels".to_owned());
    }
    let mut values = tensor.to_f32().map_err(|e| e.to_string())?;
    for row in 0..matrix.rows {
        for (col, s) in factors.iter().enumerate() {
            values[matrix.place(row, col)] *= s;
        }
    }
    finite(tensor, &values)
}

fn finite(like: &Tensor, values: &[f32]) -> Result<Tensor, String> {
    let tensor =
        Tensor::from_f32_as(like.dtype(), like.dims(), values).map_err(|e| e.to_string())?;
    let fits = tensor
        .to_f32()
        .is_ok_and(|v| v.iter().all(|x| x.is_finite()));
    if fits {
        Ok(tensor)
    } else {
        Err("a scaled constant would not be finite".to_owned())
    }
}

fn is_inner(model: &Model, value: ValueId) -> bool {
    let v = model.value(value);
    !v.is_output()
        && !model.graph(v.graph).outputs.contains(&value)
        && model.captures(value).is_empty()
}

/// The constants that set the size of an activation's channels: node, slot, and whether the channels are its first axis.
type Sides = Vec<(NodeId, usize, bool)>;

fn constants_before(model: &Model, value: ValueId, channels: usize) -> Option<Sides> {
    let (node, output) = model.producer(value)?;
    let n = model.node(node);
    let constant = |slot: usize| {
        let t = model.input_constant(node, slot)?;
        let last = t.dims().last().copied() == Some(channels as i64);
        (last && t.element_count() == Ok(channels)).then_some((node, slot, false))
    };
    let alone = |v: ValueId| is_inner(model, v) && model.consumers(v).len() == 1;
    let other = |slot: usize| model.input(node, 1 - slot).filter(|&v| alone(v));
    match (output, n.op_type()) {
        (0, "LayerNormalization") if last_axis(model, node) => {
            let mut sides = vec![constant(1)?];
            if model.input(node, 2).is_some() {
                sides.push(constant(2)?);
            }
            Some(sides)
        }
        (0, "RMSNormalization" | "SimplifiedLayerNormalization") if last_axis(model, node) => {
            Some(vec![constant(1)?])
        }
        (0, "Mul") => (0..2).find_map(constant).map(|c| vec![c]),
        (0, "Add") => {
            let (node, slot, first) = (0..2).find_map(constant)?;
            let mut sides = constants_before(model, other(slot)?, channels)?;
            sides.push((node, slot, first));
            Some(sides)
        }
        (0, "Relu") => {
            constants_before(model, model.input(node, 0).filter(|&v| alone(v))?, channels)
        }
        (0, "MatMul" | "Gemm") => {
            let linear = ops::linear(model, node)?.ok()?;
            let matrix = Matrix::of(model, node).ok()?;
            if linear.weight != 1 || matrix.rows != channels {
                return None;
            }
            let mut sides = vec![(node, 1, n.attr_i("transB").unwrap_or(0) != 0)];
            if let Some(slot) = linear.bias {
                sides.push(constant(slot)?);
            }
            Some(sides)
        }
        _ => None,
    }
}

fn last_axis(model: &Model, node: NodeId) -> bool {
    let axis = model.node(node).attr_i("axis").unwrap_or(-1);
    let rank = model
        .input(node, 0)
        .and_then(|v| model.value(v).shape())
        .map(|s| s.len() as i64);
    axis == -1 || rank.is_some_and(|r| axis == r - 1)
}

fn scaled_constants(
    model: &Model,
    sides: Sides,
    factors: &[f32],
) -> Option<Vec<(NodeId, usize, Tensor)>> {
    let n = factors.len();
    let scale = |(node, slot, first): (NodeId, usize, bool)| {
        let tensor = model.input_constant(node, slot)?;
        let mut values = tensor.to_f32().ok()?;
        let inner = if first { values.len() / n } else { 1 };
        for (i, x) in values.iter_mut().enumerate() {
            *x *= factors[i / inner % n];
        }
        Some((node, slot, finite(tensor, &values).ok()?))
    };
    sides.into_iter().map(scale).collect()
}

fn replace(model: &mut Model, node: NodeId, slot: usize, tensor: Tensor) {
    let Some(old) = model.input(node, slot) else {
        return;
    };
    if model.consumers(old).len() == 1 && is_inner(model, old) {
        model.set_initializer(old, tensor);
        return;
    }
    let name = format!("{}_smoothed", model.value(old).name);
    let name = model.names().fresh(&name);
    let graph = model.value(old).graph;
    let copy = model.add_initializer(graph, &name, tensor);
    model.set_input(node, slot, Some(copy));
}
