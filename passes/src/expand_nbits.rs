//! Writes `MatMulNBits` of com.microsoft as a product with the decoded weight, for execution only.
//!
//! # What it does
//! The weight is decoded, `S · (q − Z)` block by block, and a MatMul multiplies with it.
//!
//! # Before → After
//! ```text
//! X → MatMulNBits(W_nbits, W_nbits_scale) → Y
//! X → MatMul(W) → Y
//! ```
//!
//! # When it does not fire
//! On a weight that is computed at run time, on a `g_idx` that reorders its rows, and on zero points that are floats.
//!
//! # Invariants kept
//! The signature, and every value but for the order of sums.
//!
//! # Opset notes
//! com.microsoft 1.
//!
//! # References
//! onnxruntime, contrib operators, MatMulNBits.

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Names, NodeId, NodeSpec, Tensor};
use onnx_quant_numerics::pack::unpack;

use crate::matmul_nbits::DOMAIN;

/// See the head of this file.
pub struct ExpandNbits;

static INFO: PassInfo = PassInfo {
    name: "expand_nbits",
    summary: "Writes MatMulNBits as a product with the decoded weight (for execution only)",
    source: include_str!("expand_nbits.rs"),
    exact: false,
};

impl Pass for ExpandNbits {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut names = model.names();
        let mut changed = false;
        for node in model.all_nodes() {
            let n = model.node(node);
            if n.op_type() != "MatMulNBits" || n.domain() != DOMAIN {
                continue;
            }
            match decoded(model, node) {
                Ok(weight) => {
                    replace(model, &mut names, node, weight);
                    changed = true;
                }
                Err(reason) => cx.skip(model, node, reason),
            }
        }
        Ok(changed.into())
    }
}

/// The weight `[K, N]`.
fn decoded(model: &Model, node: NodeId) -> Result<Tensor, String> {
    if model.input(node, 4).is_some() {
        return Err("`g_idx` is not read".to_owned());
    }
    let size = |name: &str| {
        let given = model.node(node).attr_i(name).unwrap_or(0);
        let fits = usize::try_from(given).ok().filter(|&x| x > 0);
        fits.ok_or_else(|| format!("its attribute {name} is {given}"))
    };
    let (k, n, bits, block) = (size("K")?, size("N")?, size("bits")?, size("block_size")?);
    if ![2, 4, 8].contains(&bits) {
        return Err(format!("it has {bits} bits, and 2, 4 and 8 are read"));
    }
    let blocks = k.div_ceil(block);
    let constant = |slot| {
        model
            .input_constant(node, slot)
            .ok_or("its weight is no constant")
    };
    let say = |e: onnx_quant_ir::TensorError| e.to_string();
    let (codes, scales) = (constant(1)?, constant(2)?);
    let float = scales.dtype();
    let (bytes, scales) = (codes.bytes().map_err(say)?, scales.to_f32().map_err(say)?);
    let row = (block * bits).div_ceil(8);
    if bytes.len() != n * blocks * row || scales.len() != n * blocks {
        return Err("the sizes of its weight and scales do not fit its attributes".to_owned());
    }
    let zero_row = (blocks * bits).div_ceil(8);
    let zeros = match model.input(node, 3) {
        None => None,
        Some(_) => {
            let zeros = constant(3)?;
            let bytes = zeros.bytes().map_err(say)?;
            if zeros.dtype() != DataType::Uint8 || bytes.len() != n * zero_row {
                return Err("its zero points are no packed codes".to_owned());
            }
            Some(bytes)
        }
    };
    let read = |bytes: &[u8], count| unpack(bytes, count, bits as u32, false).unwrap_or_default();
    let mut real = vec![0f32; k * n];
    for column in 0..n {
        let zero_of = zeros.as_ref().map(|z| {
            let own = &z[column * zero_row..(column + 1) * zero_row];
            read(own, blocks)
        });
        for b in 0..blocks {
            let at = column * blocks + b;
            let zero = zero_of.as_ref().map_or(1 << (bits - 1), |z| z[b]);
            let codes = read(&bytes[at * row..(at + 1) * row], block);
            let rows = (b * block..k).zip(codes);
            for (i, code) in rows {
                real[i * n + column] = scales[at] * (code - zero) as f32;
            }
        }
    }
    Tensor::from_f32_as(float, &[k as i64, n as i64], &real).map_err(say)
}

fn replace(model: &mut Model, names: &mut Names, node: NodeId, weight: Tensor) {
    let graph = model.node(node).graph;
    let label = model.node_label(node);
    let weight = model.add_initializer(graph, &names.fresh(&format!("{label}_weight")), weight);
    let (x, bias, out) = (
        model.input(node, 0),
        model.input(node, 5),
        model.output(node, 0),
    );
    model.remove_node(node);
    let spec = NodeSpec::new("MatMul").name(&label);
    let Some(bias) = bias else {
        model.add_node(graph, spec, &[x, Some(weight)], &[out]);
        return;
    };
    let product = model.add_value(graph, &names.fresh(&format!("{label}_product")));
    model.add_node(graph, spec, &[x, Some(weight)], &[Some(product)]);
    let add = NodeSpec::new("Add").name(&names.fresh(&format!("{label}_bias")));
    model.add_node(graph, add, &[Some(product), Some(bias)], &[out]);
}
