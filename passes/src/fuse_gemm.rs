//! Joins a matrix product and the bias behind it into a Gemm.
//!
//! # What it does
//! A MatMul of two matrices, the right one constant, followed by an Add of a constant with one value for each column,
//! becomes a Gemm. Runtimes do the same before they look for integer kernels: only with the bias inside can it be
//! stored as INT32 and the whole run in integers.
//!
//! # Before → After
//! `Y = Add(MatMul(X, W), b)` becomes `Y = Gemm(X, W, b)`.
//!
//! # When it does not fire
//! Where the left operand is not known to be a matrix, the product has other users or is part of the signature, or the
//! constant has not one value for each column.
//!
//! # Invariants kept
//! The name of the sum. The result may differ in the last bit: a Gemm may start its sum with the bias.
//!
//! # Opset notes
//! The bias of Gemm may have one dimension since opset 7.
//!
//! # References
//! onnxruntime, `MatMulAddFusion`.

use std::collections::HashSet;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, NodeSpec, ValueId};

use crate::infer::{self, Facts, Options, Shapes};

/// See the head of this file.
pub struct FuseGemm;

static INFO: PassInfo = PassInfo {
    name: "fuse_gemm",
    summary: "Joins a matrix product and the bias behind it into a Gemm",
    source: include_str!("fuse_gemm.rs"),
    exact: false,
};

impl Pass for FuseGemm {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, _cx: &mut PassContext) -> Result<Changed, PassError> {
        let facts = infer::infer(model, &Shapes::new(), &Options::default());
        let found: Vec<Fusion> = model
            .all_nodes()
            .into_iter()
            .filter_map(|n| fusion(model, &facts, n))
            .collect();
        let mut nodes = HashSet::new();
        let mut values = HashSet::new();
        for f in &found {
            let graph = model.node(f.product).graph;
            let name = model.node(f.product).name().to_owned();
            nodes.extend([f.product, f.sum]);
            values.insert(f.between);
            model.set_outputs(f.sum, &[]);
            let mut spec = NodeSpec::new("Gemm");
            if !name.is_empty() {
                spec = spec.name(&name);
            }
            let bias = bias(model, f);
            let inputs = [Some(f.x), Some(f.weight), Some(bias)];
            model.add_node(graph, spec, &inputs, &[Some(f.y)]);
        }
        model.remove_nodes(&nodes);
        model.remove_values(&values);
        Ok((!found.is_empty()).into())
    }
}

/// A product and a sum that can be one Gemm.
struct Fusion {
    product: NodeId,
    sum: NodeId,
    x: ValueId,
    weight: ValueId,
    between: ValueId,
    bias: ValueId,
    y: ValueId,
    columns: i64,
}

fn fusion(model: &Model, facts: &Facts, product: NodeId) -> Option<Fusion> {
    if !model.node(product).is("MatMul") {
        return None;
    }
    let (x, weight) = (model.input(product, 0)?, model.input(product, 1)?);
    let &[_, columns] = model.constant(weight)?.dims() else {
        return None;
    };
    let rank = facts.get(x).and_then(|f| f.shape.as_ref()).map(Vec::len);
    let between = model.output(product, 0)?;
    let [(sum, slot)] = model.consumers(between)[..] else {
        return None;
    };
    let one_use = !model.value(between).is_output() && model.captures(between).is_empty();
    let same_graph = model.node(sum).graph == model.node(product).graph;
    if rank != Some(2) || !one_use || !same_graph || !model.node(sum).is("Add") {
        return None;
    }
    let bias = model.input(sum, 1 - slot)?;
    let tensor = model.constant(bias)?;
    let fits = tensor.dims().last() == Some(&columns)
        && tensor.element_count().ok() == usize::try_from(columns).ok()
        && tensor.dims().len() <= 2
        && tensor.dtype() == model.constant(weight)?.dtype();
    fits.then_some(Fusion {
        product,
        sum,
        x,
        weight,
        between,
        bias,
        y: model.output(sum, 0)?,
        columns,
    })
}

/// The bias with one dimension; a new initializer where the constant has two.
fn bias(model: &mut Model, f: &Fusion) -> ValueId {
    let Some(tensor) = model.constant(f.bias) else {
        return f.bias;
    };
    if tensor.dims().len() == 1 {
        return f.bias;
    }
    let (dtype, bytes) = (tensor.dtype(), tensor.shared_bytes());
    let Ok(bytes) = bytes else { return f.bias };
    let flat = onnx_quant_ir::Tensor::from_raw(dtype, &[f.columns], bytes);
    let name = model
        .names()
        .fresh(&format!("{}_flat", model.value(f.bias).name));
    let graph = model.value(f.bias).graph;
    model.add_initializer(graph, &name, flat)
}
