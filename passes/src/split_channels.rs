//! Splits a channel that is far larger than the others into equal parts, so that it does not set the scale for all.
//!
//! # What it does
//! Outlier channel splitting. Where one channel dominates the weights that make it, it is made twice at half the size, and
//! the weights that read it read both halves; where it dominates the weights that read it, it is made twice, and each copy is
//! read with half the weight. At most one in twenty channels of a tensor is split (one at least), into at most four parts.
//!
//! # Before → After
//! `Conv(W₂, Relu(Conv(W₁, x)))` with `W₁ = [a; 8b]` becomes the same with `W₁ = [a; 4b; 4b]` and the second column of `W₂`
//! standing twice.
//!
//! # When it does not fire
//! Where no channel is twice as large as those that would then be the largest; where the channels are those of a depthwise or
//! grouped convolution, or cannot be followed (see `equalize_layers`); behind a PRelu with a slope for each channel and where
//! a Reshape states their number.
//!
//! # Invariants kept
//! Signature and names. The net computes the same up to rounding. Shapes of values inside are dropped where they change.
//! Constants with other readers stay, and these uses get copies.
//!
//! # Opset notes
//! None.
//!
//! # References
//! Zhao et al., *Improving Neural Network Quantization without Retraining using Outlier Channel Splitting*, 2019.

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};

use crate::equalize_layers::channels::{self, Group, Side};
use crate::normals::ChannelNormals;

/// A channel this much larger than the rest dominates.
const DOMINATES: f32 = 2.0;
/// One channel in this many may be split.
const SHARE: usize = 20;
/// The most parts of a channel.
const PARTS: usize = 4;

/// See the head of this file.
pub struct SplitChannels;

static INFO: PassInfo = PassInfo {
    name: "split_channels",
    summary: "Splits a channel that is far larger than the others into equal parts",
    source: include_str!("split_channels.rs"),
    exact: false,
};

impl Pass for SplitChannels {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let groups = channels::groups(model);
        for blocked in &groups.blocked {
            cx.skip_subject(blocked.subject.clone(), blocked.reason.clone());
        }
        let mut added = 0;
        for group in &groups.free {
            let plan = splits(model, group);
            if plan.is_empty() {
                continue;
            }
            match split(model, group, &plan, cx.get_mut()) {
                Ok(n) => added += n,
                Err(why) => {
                    let subject = group.makers.first().map(|s| model.node_key(s.node));
                    cx.skip_subject(subject.unwrap_or_default(), why);
                }
            }
        }
        if added > 0 {
            cx.note(format!("{added} channels were added by splitting"));
        }
        Ok((added > 0).into())
    }
}

/// One channel that is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    channel: usize,
    parts: usize,
    /// What makes it is divided; else what reads it.
    before: bool,
}

/// The channels that dominate a group.
fn splits(model: &Model, group: &Group) -> Vec<Split> {
    let sizes = |sides: &[Side]| {
        let mut largest = vec![0.0f32; group.size];
        for side in sides {
            let tensor = model.input_constant(side.node, side.slot);
            let values = tensor.and_then(|t| t.to_f32().ok()).unwrap_or_default();
            for (i, w) in values.iter().enumerate() {
                let at = &mut largest[side.layout.channel(i)];
                *at = at.max(w.abs());
            }
        }
        largest
    };
    let [made, read] = [&group.makers, &group.readers].map(|s| dominance(&sizes(s)));
    let each = made.into_iter().zip(read).enumerate();
    each.filter_map(|(channel, (made, read))| {
        let before = made >= read;
        let parts = (made.max(read).ceil() as usize).min(PARTS);
        (made.max(read) >= DOMINATES).then_some(Split {
            channel,
            parts,
            before,
        })
    })
    .collect()
}

/// How much larger each channel is than the largest of those that may not be split.
fn dominance(sizes: &[f32]) -> Vec<f32> {
    let mut sorted = sizes.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let budget = (sizes.len() / SHARE).max(1);
    let rest = sorted.get(budget).copied().unwrap_or(0.0);
    let ratio = |&s: &f32| {
        if rest > 0.0 && s.is_finite() {
            s / rest
        } else {
            0.0
        }
    };
    sizes.iter().map(ratio).collect()
}

/// Why the channels of a group cannot become more.
fn obstacle(model: &Model, group: &Group) -> Option<String> {
    for side in group.makers.iter().chain(&group.readers) {
        if model.node(side.node).attr_i("group").unwrap_or(1) != 1 {
            return Some("a grouped convolution makes or reads the channels".to_owned());
        }
    }
    let sides = || {
        group
            .makers
            .iter()
            .chain(&group.added)
            .chain(&group.readers)
    };
    if sides().any(|s| s.layout.groups != 1 || s.layout.repeat != 1) {
        return Some("a Reshape mixes the channels with other axes".to_owned());
    }
    for &value in &group.values {
        let Some((node, _)) = model.producer(value) else {
            continue;
        };
        let n = model.node(node);
        let stated = match n.op_type() {
            "Reshape" => true,
            "PRelu" => model
                .input_constant(node, 1)
                .is_none_or(|t| t.element_count() != Ok(1)),
            _ => false,
        };
        if stated {
            let label = model.node_label(node);
            return Some(format!("`{label}` states the number of channels"));
        }
    }
    None
}

fn split(
    model: &mut Model,
    group: &Group,
    plan: &[Split],
    normals: Option<&mut ChannelNormals>,
) -> Result<usize, String> {
    if let Some(why) = obstacle(model, group) {
        return Err(why);
    }
    let added: usize = plan.iter().map(|s| s.parts - 1).sum();
    let mut changes: Vec<(NodeId, usize, Tensor)> = Vec::new();
    for (sides, divided) in [
        (&group.makers, true),
        (&group.added, true),
        (&group.readers, false),
    ] {
        for side in sides {
            changes.push((side.node, side.slot, widened(model, side, plan, divided)?));
        }
    }
    for (node, slot, tensor) in changes {
        replace(model, node, slot, tensor);
    }
    if let Some(normals) = normals {
        for value in &group.values {
            let Some(known) = normals.0.get_mut(&model.value_key(*value)) else {
                continue;
            };
            for s in plan {
                let divisor = if s.before { s.parts as f64 } else { 1.0 };
                known[s.channel].mean /= divisor;
                known[s.channel].deviation /= divisor;
                known.extend(vec![known[s.channel]; s.parts - 1]);
            }
        }
    }
    for &value in &group.values {
        drop_shape(model, value);
    }
    Ok(added)
}

/// A constant with the parts of the split channels: each in its old place, and the others behind all channels.
fn widened(model: &Model, side: &Side, plan: &[Split], divided: bool) -> Result<Tensor, String> {
    let unfit = || "a constant does not have one place for each channel".to_owned();
    let tensor = model
        .input_constant(side.node, side.slot)
        .ok_or_else(unfit)?;
    let values = tensor.to_f32().map_err(|e| e.to_string())?;
    let layout = side.layout;
    let (size, inner) = (layout.channels, layout.inner);
    let mut dims = tensor.dims().to_vec();
    let axis = (0..dims.len()).find(|&a| {
        let behind: i64 = dims[a + 1..].iter().product();
        dims[a] == size as i64 && behind == inner as i64
    });
    let axis = axis
        .filter(|_| values.len() == layout.outer * size * inner)
        .ok_or_else(unfit)?;
    let factor = |s: &Split| {
        if s.before == divided {
            s.parts as f32
        } else {
            1.0
        }
    };
    let mut out = Vec::new();
    for rows in values.chunks_exact(size * inner) {
        let mut rows = rows.to_vec();
        for s in plan {
            let row = &mut rows[s.channel * inner..(s.channel + 1) * inner];
            row.iter_mut().for_each(|x| *x /= factor(s));
            let part = row.to_vec();
            (1..s.parts).for_each(|_| rows.extend_from_slice(&part));
        }
        out.extend(rows);
    }
    dims[axis] += plan.iter().map(|s| s.parts as i64 - 1).sum::<i64>();
    Tensor::from_f32_as(tensor.dtype(), &dims, &out).map_err(|e| e.to_string())
}

fn replace(model: &mut Model, node: NodeId, slot: usize, tensor: Tensor) {
    let Some(old) = model.input(node, slot) else {
        return;
    };
    if model.consumers(old).len() == 1 && !model.value(old).is_output() {
        drop_shape(model, old);
        model.set_initializer(old, tensor);
        return;
    }
    let name = format!("{}_split", model.value(old).name);
    let name = model.names().fresh(&name);
    let graph = model.value(old).graph;
    let copy = model.add_initializer(graph, &name, tensor);
    model.set_input(node, slot, Some(copy));
}

fn drop_shape(model: &mut Model, value: ValueId) {
    model.drop_value_info(value);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn dominating_channels_are_halved_on_the_side_that_they_dominate() {
        let text = "main (float[1,1,2,2] X) => (float[1,1,2,2] Y)
<
  float[3,1,1,1] W1 = {1, 6, 1},
  float[3] B1 = {1, 3, 3},
  float[1,3,1,1] W2 = {1, 0.5, 8}
>
{
  [a] A = Conv (X, W1, B1)
  [b] R = Relu (A)
  [c] Y = Conv (R, W2)
}";
        let mut model = onnx_quant_ir::text::parse(text).unwrap();
        let mut cx = PassContext::default();
        assert_eq!(
            SplitChannels.run(&mut model, &mut cx).unwrap(),
            Changed::Yes
        );
        let read = |name: &str| {
            let value = model.find_value(name).unwrap();
            let t = model.constant(value).unwrap();
            (t.dims().to_vec(), t.to_f32().unwrap())
        };
        // The second channel is made in four parts, the third is read in four parts.
        let (dims, w1) = read("W1");
        assert_eq!(dims, [9, 1, 1, 1]);
        assert_eq!(w1, [1.0, 1.5, 1.0, 1.5, 1.5, 1.5, 1.0, 1.0, 1.0]);
        assert_eq!(
            read("B1").1,
            [1.0, 0.75, 3.0, 0.75, 0.75, 0.75, 3.0, 3.0, 3.0]
        );
        let (dims, w2) = read("W2");
        assert_eq!(dims, [1, 9, 1, 1]);
        assert_eq!(w2, [1.0, 0.5, 2.0, 0.5, 0.5, 0.5, 2.0, 2.0, 2.0]);
        assert_eq!(SplitChannels.run(&mut model, &mut cx).unwrap(), Changed::No);
    }
}
