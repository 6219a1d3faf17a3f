//! Finds the factors and applies them.

use std::collections::{BTreeMap, HashSet};

use onnx_quant_ir::{DataType, Model, NodeId, NodeSpec, Tensor, ValueId};
use onnx_quant_numerics::optimize::equalize::pair_factors;

use super::channels::{Bounded, Group, Side};
use crate::normals::ChannelNormals;

/// Turns through all groups.
const SWEEPS: usize = 60;
/// A turn that moves no factor by more than this share is the last.
const SETTLED: f32 = 0.02;
/// Channels whose sizes differ by less than this factor from what they should be stay.
const WORTH: f32 = 1.5;
/// The same behind a Clip whose bound then differs from channel to channel, which costs an operator more.
const WORTH_A_MIN: f32 = 4.0;

/// Finds and applies the factors; returns how many groups were changed. What is known of the channels changes with them.
pub(super) fn equalize(
    model: &mut Model,
    groups: &[Group],
    mut normals: Option<&mut ChannelNormals>,
) -> usize {
    let mut weights = Weights::read(model, groups);
    let mut factors: Vec<Vec<f32>> = groups.iter().map(|g| vec![1.0; g.size]).collect();
    for _ in 0..SWEEPS {
        let mut moved = 0.0f32;
        for (group, factors) in groups.iter().zip(&mut factors) {
            let made = weights.sizes(&group.makers, group.size);
            let read = weights.sizes(&group.readers, group.size);
            let step = centred(&pair_factors(&made, &read));
            for side in &group.makers {
                weights.scale(side, &step.iter().map(|s| 1.0 / s).collect::<Vec<_>>());
            }
            for side in &group.readers {
                weights.scale(side, &step);
            }
            for (f, s) in factors.iter_mut().zip(&step) {
                *f *= s;
                moved = moved.max((s.ln()).abs());
            }
        }
        if moved < SETTLED {
            break;
        }
    }
    let mut done = 0;
    for (group, factors) in groups.iter().zip(&factors) {
        let exact = factors.clone();
        let worth = if group.clips.is_empty() {
            WORTH
        } else {
            WORTH_A_MIN
        };
        let spread = factors.iter().any(|f| *f > worth || *f < 1.0 / worth);
        if !spread || exact.iter().all(|f| *f == 1.0) || !applies(model, group, &exact) {
            continue;
        }
        let inverse: Vec<f32> = exact.iter().map(|f| 1.0 / f).collect();
        for side in group.makers.iter().chain(&group.added) {
            apply(model, side, &inverse);
        }
        for side in &group.readers {
            apply(model, side, &exact);
        }
        for clip in &group.clips {
            move_bounds(model, clip, &inverse);
        }
        for value in &group.values {
            let known = normals.as_deref_mut();
            let known = known.and_then(|n| n.0.get_mut(&model.value_key(*value)));
            for (normal, f) in known.into_iter().flatten().zip(&exact) {
                normal.mean /= f64::from(*f);
                normal.deviation /= f64::from(*f);
            }
        }
        done += 1;
    }
    done
}

/// Factors whose geometric mean is 1: a factor that all channels share changes nothing.
fn centred(factors: &[f32]) -> Vec<f32> {
    let logs: f64 = factors.iter().map(|f| f64::from(*f).ln()).sum();
    let mean = (logs / factors.len().max(1) as f64).exp() as f32;
    factors.iter().map(|f| f / mean).collect()
}

/// Working copies of the weights, by use.
struct Weights(BTreeMap<(NodeId, usize), Vec<f32>>);

impl Weights {
    fn read(model: &Model, groups: &[Group]) -> Self {
        let sides = groups
            .iter()
            .flat_map(|g| g.makers.iter().chain(&g.readers));
        let read = |side: &Side| {
            let tensor = model.input_constant(side.node, side.slot)?;
            Some(((side.node, side.slot), tensor.to_f32().ok()?))
        };
        Self(sides.filter_map(read).collect())
    }

    /// The size of each channel: the geometric mean over the weights of its largest magnitude, relative to that of the
    /// weight. 0 where it is 0 in all of them.
    fn sizes(&self, sides: &[Side], channels: usize) -> Vec<f32> {
        let mut logs = vec![(0.0f64, 0u32); channels];
        for side in sides {
            let Some(weight) = self.0.get(&(side.node, side.slot)) else {
                continue;
            };
            let mut largest = vec![0.0f32; channels];
            for (i, w) in weight.iter().enumerate() {
                let m = &mut largest[side.layout.channel(i)];
                *m = m.max(w.abs());
            }
            let most = largest.iter().fold(0.0f32, |a, b| a.max(*b));
            for ((sum, n), x) in logs.iter_mut().zip(largest) {
                if x > 0.0 && x.is_finite() {
                    *sum += f64::from(x / most).ln();
                    *n += 1;
                }
            }
        }
        let size = |(sum, n): (f64, u32)| {
            if n == 0 {
                0.0
            } else {
                (sum / f64::from(n)).exp() as f32
            }
        };
        logs.into_iter().map(size).collect()
    }

    fn scale(&mut self, side: &Side, factors: &[f32]) {
        if let Some(weight) = self.0.get_mut(&(side.node, side.slot)) {
            for (i, w) in weight.iter_mut().enumerate() {
                *w *= factors[side.layout.channel(i)];
            }
        }
    }
}

/// Whether all constants of a group stay finite and nothing underflows.
fn applies(model: &Model, group: &Group, factors: &[f32]) -> bool {
    let fits = |side: &Side, inverse: bool| {
        let Some(values) = model
            .input_constant(side.node, side.slot)
            .and_then(|t| t.to_f32().ok())
        else {
            return false;
        };
        values.iter().enumerate().all(|(i, x)| {
            let f = factors[side.layout.channel(i)];
            let y = if inverse { x / f } else { x * f };
            y.is_finite() && (*x == 0.0) == (y == 0.0)
        })
    };
    group
        .makers
        .iter()
        .chain(&group.added)
        .all(|s| fits(s, true))
        && group.readers.iter().all(|s| fits(s, false))
}

fn apply(model: &mut Model, side: &Side, factors: &[f32]) {
    let Some(value) = model.input(side.node, side.slot) else {
        return;
    };
    let Some(tensor) = model.constant(value) else {
        return;
    };
    let Ok(values) = tensor.to_f32() else {
        return;
    };
    let scaled: Vec<f32> = values
        .iter()
        .enumerate()
        .map(|(i, x)| x * factors[side.layout.channel(i)])
        .collect();
    let Ok(tensor) = Tensor::from_f32_as(tensor.dtype(), tensor.dims(), &scaled) else {
        return;
    };
    let alone = model.consumers(value).len() == 1 && !model.value(value).is_output();
    if alone {
        model.set_initializer(value, tensor);
        return;
    }
    let name = format!("{}_equalized", model.value(value).name);
    let name = model.names().fresh(&name);
    let graph = model.value(value).graph;
    let copy = model.add_initializer(graph, &name, tensor);
    model.set_input(side.node, side.slot, Some(copy));
}

/// Replaces a Clip by Max and Min with bounds for each channel; a lower bound of 0 becomes a Relu.
fn move_bounds(model: &mut Model, clip: &Bounded, factors: &[f32]) {
    let node = clip.node;
    let (Some(input), Some(output)) = (model.input(node, 0), model.output(node, 0)) else {
        return;
    };
    let graph = model.node(node).graph;
    let label = model.node_label(node);
    let dtype = model.value(input).dtype().unwrap_or(DataType::Float);
    let mut dims = vec![factors.len() as i64];
    dims.resize(clip.behind + 1, 1);
    // Name, operator, and the bounds of each step; Relu has none.
    let mut steps: Vec<(&str, Option<Tensor>)> = Vec::new();
    for (bound, op) in [(clip.low, "Max"), (clip.high, "Min")] {
        if bound == 0.0 && op == "Max" {
            steps.push(("Relu", None));
        } else if bound.is_finite() {
            let bounds: Vec<f32> = factors.iter().map(|f| bound * f).collect();
            match Tensor::from_f32_as(dtype, &dims, &bounds) {
                Ok(t) => steps.push((op, Some(t))),
                Err(_) => return,
            }
        }
    }
    model.set_inputs(node, &[]);
    model.set_outputs(node, &[]);
    let mut x = input;
    let last = steps.len() - 1;
    for (at, (op, bounds)) in steps.into_iter().enumerate() {
        let mut names = model.names();
        let mut inputs = vec![Some(x)];
        if let Some(bounds) = bounds {
            let name = names.fresh(&format!("{label}_{}_bounds", op.to_lowercase()));
            inputs.push(Some(model.add_initializer(graph, &name, bounds)));
        }
        let spec = NodeSpec::new(op).name(&names.fresh(&format!("{label}_{op}")));
        if at == last {
            model.add_node(graph, spec, &inputs, &[Some(output)]);
        } else {
            let inputs: Vec<ValueId> = inputs.into_iter().flatten().collect();
            let name = names.fresh(&format!("{label}_{}_out", op.to_lowercase()));
            x = model.add_op(graph, spec, &inputs, &name);
        }
    }
    model.remove_nodes(&HashSet::from([node]));
}
