//! Folds BatchNormalization into the linear operator before it.
//!
//! **What it does.** In inference BatchNormalization is `y = (x − mean) · a + B` with `a = scale / √(var + ε)`, one `a`
//! for each channel. Behind an operator that is linear in a constant weight, `a` goes into the weight's output channels
//! and the rest into the bias. The arithmetic is FP64 and rounded once to the weight's own type.
//!
//! **Before → After.**
//! * `BN(Conv(x, W, b))` → `Conv(x, W·a, (b − mean)·a + B)`; the same for `ConvTranspose` and `Gemm`, grouped and
//!   depthwise too; a missing bias is added;
//! * `BN(Add(Conv(x, W, b), c))` with a constant `c` for each channel → `Conv(x, W·a, (b + c − mean)·a + B)`;
//! * `BN(MatMul(x, W))` → `Add(MatMul(x, W·a), B − mean·a)`; a constant `Add` that is already there takes the bias.
//!   `MatMul` is not turned into `Gemm`: quantizers of weights look for it.
//!
//! What the folded parameters say of the channels, mean `B` and deviation `|scale|`, is kept as [`ChannelNormals`].
//!
//! **When it does not fire.** The BatchNormalization trains, has `spatial = 0`, parameters that are not constant, or no
//! linear operator before it; a value between the two has another use; the weight is not constant; the channels are not
//! axis 1 of the product (a MatMul of rank other than 2); a folded weight would not be finite.
//!
//! **Invariants kept.** Signature and names; a weight with other uses stays and this use gets a copy. Outputs agree up
//! to the rounding of the weights: the pass is not exact.
//!
//! **Opset notes.** 7 and later. `spatial` went with 9, `training_mode` came with 14.
//!
//! **References.** Jacob et al., "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference", 2018, section 3.2; ONNX standard, operator `BatchNormalization`.

mod channels;

use std::collections::HashSet;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, Names, NodeId, NodeSpec, Tensor, ValueId};

use crate::normals::{ChannelNormals, Normal};
use channels::{Layout, from_f64, scale_weight, to_f64};

/// Folds BatchNormalization into the linear operator before it.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldBatchnorm;

static INFO: PassInfo = PassInfo {
    name: "fold_batchnorm",
    summary: "Folds BatchNormalization into Conv, ConvTranspose, Gemm or MatMul",
    source: include_str!("fold_batchnorm.rs"),
    exact: false,
};

/// `epsilon` where the attribute is absent.
const EPSILON: f32 = 1e-5;

type Reason = String;

impl Pass for FoldBatchnorm {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut fold = Fold {
            returned: model
                .graph_ids()
                .into_iter()
                .flat_map(|g| model.graph(g).outputs.clone())
                .collect(),
            names: None,
            nodes: HashSet::new(),
            values: HashSet::new(),
            normals: cx.take().unwrap_or_default(),
        };
        let mut open: Vec<NodeId> = model.all_nodes();
        open.retain(|&n| model.node(n).is("BatchNormalization"));
        let mut changed = false;
        loop {
            let mut refused = Vec::new();
            for &node in &open {
                match fold.try_fold(model, node) {
                    Ok(()) => {}
                    Err(why) => refused.push((node, why)),
                }
            }
            let progress = refused.len() < open.len();
            changed |= progress;
            open = refused.iter().map(|(n, _)| *n).collect();
            if !progress || open.is_empty() {
                for (node, why) in refused {
                    cx.skip(model, node, why);
                }
                break;
            }
        }
        model.remove_nodes(&fold.nodes);
        model.remove_values(&fold.values);
        cx.insert(fold.normals);
        Ok(changed.into())
    }
}

struct Fold {
    /// Values that a graph returns.
    returned: HashSet<ValueId>,
    /// Names in use, gathered when the first new one is needed.
    names: Option<Names>,
    nodes: HashSet<NodeId>,
    values: HashSet<ValueId>,
    normals: ChannelNormals,
}

/// What a BatchNormalization does to each channel: `y = x · a + shift`.
struct Affine {
    a: Vec<f64>,
    shift: Vec<f64>,
}

/// The operators between the weight and the BatchNormalization.
struct Chain {
    linear: NodeId,
    /// A constant addition in between, with the slot of its constant.
    add: Option<(NodeId, usize)>,
}

impl Fold {
    fn try_fold(&mut self, model: &mut Model, bn: NodeId) -> Result<(), Reason> {
        let affine = affine(model, bn)?;
        let behind = model.output(bn, 0).map(|v| model.value_key(v));
        let normals = normals(model, bn);
        let chain = self.chain(model, bn)?;
        let n = affine.a.len();
        let layout = Layout::of(model, chain.linear, n)?;
        let weight = constant(model, chain.linear, 1, "weight")?;
        let added = match chain.add {
            Some((add, slot)) => {
                let c = constant(model, add, slot, "addend")?;
                layout.per_channel(c, n, "the constant that is added")?
            }
            None => vec![0.0; n],
        };
        let dtype = weight.dtype();
        let own = self.own_bias(model, chain.linear, n)?;
        let bias: Vec<f64> = (0..n)
            .map(|i| (own[i] + added[i]) * affine.a[i] + affine.shift[i])
            .collect();
        let scaled = scale_weight(weight, &layout, &affine.a)?;
        let bias = from_f64(dtype, &[n as i64], &bias)?;
        self.replace_constant(model, chain.linear, 1, scaled);
        if model.node(chain.linear).is("MatMul") {
            self.finish_matmul(model, bn, &chain, bias);
        } else {
            self.finish_with_bias(model, bn, &chain, bias);
        }
        self.normals.0.extend(behind.zip(normals));
        Ok(())
    }

    /// Walks from the BatchNormalization back to a linear operator. Nothing else may use what lies between.
    fn chain(&self, model: &Model, bn: NodeId) -> Result<Chain, Reason> {
        let before = self.single(model, bn, 0)?;
        if is_linear(model, before) {
            return Ok(Chain {
                linear: before,
                add: None,
            });
        }
        let n = model.node(before);
        if n.is("Add") {
            let slot = (0..2).find(|&s| model.input_constant(before, s).is_some());
            if let Some(slot) = slot {
                let linear = self.single(model, before, 1 - slot)?;
                if is_linear(model, linear) {
                    return Ok(Chain {
                        linear,
                        add: Some((before, slot)),
                    });
                }
            }
        }
        Err(format!(
            "it follows {}, not an operator with a constant weight",
            n.op_type()
        ))
    }

    /// The node that makes an input, where that input is its only use.
    fn single(&self, model: &Model, node: NodeId, slot: usize) -> Result<NodeId, Reason> {
        let x = model.input(node, slot).ok_or("it has no input")?;
        let (before, _) = model
            .producer(x)
            .ok_or("it follows an input of the graph, not an operator with a constant weight")?;
        let name = &model.value(x).name;
        if self.returned.contains(&x) {
            return Err(format!("`{name}` before it is an output of the graph"));
        }
        if model.consumers(x).len() != 1 {
            return Err(format!("`{name}` before it has other uses"));
        }
        if model.node(before).graph != model.node(node).graph {
            return Err(format!("`{name}` before it belongs to another graph"));
        }
        Ok(before)
    }

    /// The present bias as it counts in the sum, `beta` included.
    fn own_bias(&self, model: &Model, linear: NodeId, n: usize) -> Result<Vec<f64>, Reason> {
        let node = model.node(linear);
        let beta = match node.op_type() {
            "Gemm" => node.attr_f("beta").unwrap_or(1.0),
            _ => 1.0,
        };
        if node.is("MatMul") || model.input(linear, 2).is_none() || beta == 0.0 {
            return Ok(vec![0.0; n]);
        }
        let c = constant(model, linear, 2, "bias")?;
        let row = Layout::row();
        let c = row.per_channel(c, n, "the bias")?;
        Ok(c.into_iter().map(|x| x * f64::from(beta)).collect())
    }

    fn finish_with_bias(&mut self, model: &mut Model, bn: NodeId, chain: &Chain, bias: Tensor) {
        if model.input(chain.linear, 2).is_some() {
            self.replace_constant(model, chain.linear, 2, bias);
        } else {
            let wanted = format!("{}_bias", model.node_label(chain.linear));
            let graph = model.node(chain.linear).graph;
            let name = self.fresh(model, &wanted);
            let v = model.add_initializer(graph, &name, bias);
            model.set_input(chain.linear, 2, Some(v));
        }
        if model.node(chain.linear).is("Gemm") {
            model.node_mut(chain.linear).take_attr("beta");
        }
        if let Some((add, _)) = chain.add {
            self.bypass(model, add, chain.linear);
        }
        self.bypass(model, bn, chain.linear);
    }

    fn finish_matmul(&mut self, model: &mut Model, bn: NodeId, chain: &Chain, bias: Tensor) {
        if let Some((add, slot)) = chain.add {
            self.replace_constant(model, add, slot, bias);
            self.bypass(model, bn, add);
            return;
        }
        let (Some(x), Some(y)) = (model.input(bn, 0), model.output(bn, 0)) else {
            return;
        };
        let graph = model.node(bn).graph;
        let label = model.node_label(bn);
        let bias_name = self.fresh(model, &format!("{label}_bias"));
        let node_name = self.fresh(model, &format!("{label}_Add"));
        let b = model.add_initializer(graph, &bias_name, bias);
        model.set_inputs(bn, &[]);
        model.set_outputs(bn, &[]);
        let spec = NodeSpec::new("Add").name(&node_name);
        model.add_node(graph, spec, &[Some(x), Some(b)], &[Some(y)]);
        self.nodes.insert(bn);
    }

    /// Takes a node out between `before` and the users of its output.
    fn bypass(&mut self, model: &mut Model, node: NodeId, before: NodeId) {
        // The value behind both keeps its name and its meaning; the one between them is gone.
        let between = model.output(before, 0);
        let behind = model.output(node, 0);
        model.set_outputs(node, &[]);
        model.set_output(before, 0, behind);
        self.values.extend(between);
        model.set_inputs(node, &[]);
        self.nodes.insert(node);
    }

    /// Gives one input slot another constant: in its own place, or as a new value where the old has other uses.
    fn replace_constant(&mut self, model: &mut Model, node: NodeId, slot: usize, tensor: Tensor) {
        let Some(old) = model.input(node, slot) else {
            return;
        };
        if model.consumers(old).len() == 1 && !self.returned.contains(&old) {
            if model.value(old).shape() != dims_of(&tensor) {
                model.drop_value_info(old);
            }
            model.set_initializer(old, tensor);
            return;
        }
        let wanted = format!("{}_folded", model.value(old).name);
        let name = self.fresh(model, &wanted);
        let graph = model.node(node).graph;
        let new = model.add_initializer(graph, &name, tensor);
        model.set_input(node, slot, Some(new));
    }

    fn fresh(&mut self, model: &Model, wanted: &str) -> String {
        self.names
            .get_or_insert_with(|| model.names())
            .fresh(wanted)
    }
}

fn dims_of(t: &Tensor) -> Option<Vec<Option<i64>>> {
    Some(t.dims().iter().map(|&d| Some(d)).collect())
}

fn is_linear(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    ["Conv", "ConvTranspose", "Gemm", "MatMul"]
        .iter()
        .any(|op| n.is(op))
}

fn constant<'m>(
    model: &'m Model,
    node: NodeId,
    slot: usize,
    what: &str,
) -> Result<&'m Tensor, Reason> {
    model.input_constant(node, slot).ok_or_else(|| {
        let n = model.node(node);
        format!("the {what} of {} is not a constant", n.op_type())
    })
}

/// What the parameters say of the channels behind.
fn normals(model: &Model, bn: NodeId) -> Option<Vec<Normal>> {
    let scales = to_f64(model.input_constant(bn, 1)?).ok()?;
    let means = to_f64(model.input_constant(bn, 2)?).ok()?;
    let pairs = scales.into_iter().zip(means);
    let normal = |(scale, mean): (f64, f64)| Normal {
        mean,
        deviation: scale.abs(),
    };
    Some(pairs.map(normal).collect())
}

/// What the BatchNormalization does, if it is one of inference with constant parameters.
fn affine(model: &Model, bn: NodeId) -> Result<Affine, Reason> {
    let n = model.node(bn);
    if model.opset("").is_some_and(|v| v < 7) {
        return Err("its form is older than opset 7".to_owned());
    }
    if n.attr_i("spatial") == Some(0) {
        return Err("spatial = 0: it has no channels".to_owned());
    }
    let training = n.attr_i("training_mode").unwrap_or(0) != 0;
    if training || model.outputs(bn).iter().skip(1).any(Option::is_some) {
        return Err("it is in training mode".to_owned());
    }
    let mut p = Vec::new();
    for (slot, what) in [(1, "scale"), (2, "B"), (3, "mean"), (4, "var")] {
        let t = model
            .input_constant(bn, slot)
            .ok_or_else(|| format!("its {what} is not a constant"))?;
        p.push(to_f64(t)?);
    }
    let c = p[0].len();
    if p.iter().any(|v| v.len() != c) {
        return Err("its parameters differ in length".to_owned());
    }
    let epsilon = f64::from(n.attr_f("epsilon").unwrap_or(EPSILON));
    let a: Vec<f64> = (0..c)
        .map(|i| p[0][i] / (p[3][i] + epsilon).sqrt())
        .collect();
    let shift: Vec<f64> = (0..c).map(|i| p[1][i] - p[2][i] * a[i]).collect();
    if a.iter().chain(&shift).any(|x| !x.is_finite()) {
        return Err("a parameter is not finite, or variance + epsilon is not positive".to_owned());
    }
    Ok(Affine { a, shift })
}

#[cfg(test)]
mod tests;
