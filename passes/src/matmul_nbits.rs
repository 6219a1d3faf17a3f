//! Writes products with a weight of 2, 4 or 8 bits as `MatMulNBits` of com.microsoft.
//!
//! # What it does
//! A MatMul or Gemm whose constant weight stands behind a DequantizeLinear becomes one MatMulNBits, which decodes the
//! weight block by block while it multiplies. Signed codes become unsigned, with the zero point moved along. A weight
//! with one scale for the tensor or for each column gets the blocks that take the least room, all with that scale.
//!
//! # Before → After
//! ```text
//! X → MatMul(W_quantized → DequantizeLinear) → Y
//! X → MatMulNBits(W_nbits, W_nbits_scale [, W_nbits_zero_point]) → Y
//! ```
//!
//! # When it does not fire
//! Without the setting `matmul_nbits`. On blocks that are no power of two of 16 and more, on codes of other widths, on
//! scales of two levels, on a weight that is no matrix, and on a Gemm with `alpha`, `beta` or `transA`: a skip says so.
//!
//! # Invariants kept
//! The signature. The weight's values, bit for bit; products are summed in the runtime's order.
//!
//! # Opset notes
//! com.microsoft 1.
//!
//! # References
//! onnxruntime, contrib operators, MatMulNBits.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, Names, NodeId, NodeSpec, Tensor, ValueId};
use onnx_quant_numerics::pack::pack;

use crate::lower_qdq::widen;
use crate::qdq::{self, Qdq};
use crate::settings::QuantSettings;

/// See the head of this file.
pub struct MatmulNbits;

static INFO: PassInfo = PassInfo {
    name: "matmul_nbits",
    summary: "Writes products with a weight of 2, 4 or 8 bits as MatMulNBits of com.microsoft",
    source: include_str!("matmul_nbits.rs"),
    exact: false,
};

/// The domain of the operator.
pub const DOMAIN: &str = "com.microsoft";

/// The least block that the operator takes.
const LEAST_BLOCK: usize = 16;

impl Pass for MatmulNbits {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let asked = |s: &QuantSettings| s.storage.matmul_nbits;
        if !cx.get::<QuantSettings>().is_some_and(asked) {
            return Ok(Changed::No);
        }
        let mut names = model.names();
        let mut changed = false;
        for node in model.all_nodes() {
            let n = model.node(node);
            if !n.is("MatMul") && !n.is("Gemm") {
                continue;
            }
            let Some(weight) = model
                .input(node, 1)
                .and_then(|v| qdq::dequantized_by(model, v))
            else {
                continue;
            };
            match packed(model, node, &weight) {
                Ok(packed) => {
                    write(model, &mut names, node, &weight, packed);
                    changed = true;
                }
                Err(reason) => cx.skip(model, node, format!("stays a DequantizeLinear: {reason}")),
            }
        }
        if changed {
            model.set_opset(DOMAIN, 1);
        }
        Ok(changed.into())
    }
}

/// A weight as the operator stores it.
struct Packed {
    /// Values that are summed, columns of the result, bits of a code, values of a block.
    sizes: [i64; 4],
    codes: Tensor,
    scales: Tensor,
    zero_points: Option<Tensor>,
}

/// Where the parameters of a weight lie.
enum Places {
    Tensor,
    Column,
    /// Blocks of this length along the sum, blocks of a column.
    Block(usize, usize),
}

fn packed(model: &Model, node: NodeId, weight: &Qdq) -> Result<Packed, String> {
    let n = model.node(node);
    let one = |name| n.attr_f(name).unwrap_or(1.0) == 1.0;
    if n.attr_i("transA").unwrap_or(0) != 0 || !one("alpha") || !one("beta") {
        return Err("MatMulNBits knows no alpha, beta or transA".to_owned());
    }
    let codes = model
        .constant(weight.input)
        .ok_or("its weight is no constant")?;
    let (bits, offset) = match codes.dtype() {
        DataType::Int2 => (2, 2),
        DataType::Uint2 => (2, 0),
        DataType::Int4 => (4, 8),
        DataType::Uint4 => (4, 0),
        DataType::Int8 => (8, 128),
        DataType::Uint8 => (8, 0),
        other => {
            return Err(format!(
                "MatMulNBits takes integers of 2, 4 and 8 bits, not {}; use int4:block32",
                other.short_name()
            ));
        }
    };
    let &[rows, columns] = codes.dims() else {
        return Err("its weight is no matrix".to_owned());
    };
    let turned = n.attr_i("transB").unwrap_or(0) != 0;
    let (sum_axis, k, columns) = match turned {
        true => (1, columns, rows),
        false => (0, rows, columns),
    };
    let (k, columns) = (k as usize, columns as usize);
    let places = places(model, weight, sum_axis, k, columns)?;
    let (scales, float) = scales(model, weight).ok_or(TWO_LEVELS)?;
    if !matches!(float, DataType::Float | DataType::Float16) {
        return Err(TWO_LEVELS.to_owned());
    }
    let scales = scales.to_f32().map_err(|e| e.to_string())?;
    let integers =
        |t: &Tensor| -> Result<Vec<i64>, String> { widen(t)?.to_i64().map_err(|e| e.to_string()) };
    let zeros = match weight.zero_point.map(|z| model.constant(z)) {
        Some(Some(z)) => integers(z)?,
        Some(None) => return Err("its zero point is no constant".to_owned()),
        None => vec![0; scales.len()],
    };
    let block = match places {
        Places::Block(block, _) => block,
        _ => least_block(k, bits),
    };
    let blocks = k.div_ceil(block);
    let parameter = |column: usize, b: usize| match places {
        Places::Tensor => 0,
        Places::Column => column,
        Places::Block(_, count) if turned => column * count + b,
        Places::Block(..) => b * columns + column,
    };
    let whole = integers(codes)?;
    let mut bytes = Vec::with_capacity(columns * blocks * block * bits as usize / 8);
    let mut scale_of = Vec::with_capacity(columns * blocks);
    let mut zero_bytes = Vec::new();
    for column in 0..columns {
        let mut zero_of = Vec::with_capacity(blocks);
        for b in 0..blocks {
            let at = parameter(column, b);
            let zero = (zeros[at] + offset) as u8;
            scale_of.push(scales[at]);
            zero_of.push(zero);
            let code = |i: usize| match (i < k, turned) {
                (false, _) => zero,
                (true, true) => (whole[column * k + i] + offset) as u8,
                (true, false) => (whole[i * columns + column] + offset) as u8,
            };
            let run: Vec<u8> = (b * block..(b + 1) * block).map(code).collect();
            bytes.extend(pack(&run, bits));
        }
        zero_bytes.extend(pack(&zero_of, bits));
    }
    let (columns, blocks) = (columns as i64, blocks as i64);
    let middle = 1i64 << (bits - 1);
    let zero_points = zeros.iter().any(|z| z + offset != middle).then(|| {
        let row = zero_bytes.len() as i64 / columns.max(1);
        Tensor::from_raw(DataType::Uint8, &[columns, row], zero_bytes)
    });
    let codes = [columns, blocks, block as i64 * i64::from(bits) / 8];
    Ok(Packed {
        sizes: [k as i64, columns, i64::from(bits), block as i64],
        codes: Tensor::from_raw(DataType::Uint8, &codes, bytes),
        scales: Tensor::from_f32_as(float, &[columns, blocks], &scale_of)
            .map_err(|e| e.to_string())?,
        zero_points,
    })
}

/// The scales, and the type that they are computed in: those of another type are cast before they are used, and the
/// operator stores them in the type of its input.
fn scales<'a>(model: &'a Model, weight: &Qdq) -> Option<(&'a Tensor, DataType)> {
    if let Some(scales) = model.constant(weight.scale) {
        return Some((scales, scales.dtype()));
    }
    let (cast, _) = model.producer(weight.scale)?;
    let to = model
        .node(cast)
        .attr_i("to")
        .filter(|_| model.node(cast).op_type() == "Cast")?;
    let to = [DataType::Float, DataType::Float16]
        .into_iter()
        .find(|t| *t as i64 == to)?;
    Some((model.constant(model.input(cast, 0)?)?, to))
}

const TWO_LEVELS: &str =
    "MatMulNBits takes one level of FP32 or FP16 scales; use int4:block16 in place of vsq16";

fn places(
    model: &Model,
    weight: &Qdq,
    sum_axis: i64,
    k: usize,
    columns: usize,
) -> Result<Places, String> {
    let (scale, _) = scales(model, weight).ok_or(TWO_LEVELS)?;
    let axis = if weight.axis < 0 {
        weight.axis + 2
    } else {
        weight.axis
    };
    let block = weight.block_size as usize;
    match scale.dims() {
        [_, _] if block > 0 && axis == sum_axis => {
            if block < LEAST_BLOCK || !block.is_power_of_two() {
                return Err(format!(
                    "MatMulNBits takes blocks of {LEAST_BLOCK} and more that are powers of two, not {block}"
                ));
            }
            Ok(Places::Block(block, k.div_ceil(block)))
        }
        &[n] if block == 0 && n as usize == columns && axis == 1 - sum_axis => Ok(Places::Column),
        [] | [1] if block == 0 => Ok(Places::Tensor),
        _ => Err("its scales lie along another axis than the sum".to_owned()),
    }
}

/// The block that takes the least room where the scales do not ask for one.
fn least_block(k: usize, bits: u32) -> usize {
    let room = |block: &usize| {
        let blocks = k.div_ceil(*block);
        blocks * (block * bits as usize + 32)
    };
    let blocks = (4..).map(|power| 1usize << power);
    let longest = k.max(LEAST_BLOCK).next_power_of_two();
    let fitting = blocks.take_while(|&block| block <= longest);
    fitting.min_by_key(room).unwrap_or(LEAST_BLOCK)
}

fn write(model: &mut Model, names: &mut Names, node: NodeId, weight: &Qdq, packed: Packed) {
    let graph = model.node(node).graph;
    let stem = model.value(weight.input).name.clone();
    let stem = stem.strip_suffix("_quantized").unwrap_or(&stem).to_owned();
    let mut constant = |model: &mut Model, ending: &str, tensor: Tensor| {
        let name = names.fresh(&format!("{stem}_{ending}"));
        model.add_initializer(graph, &name, tensor)
    };
    let codes = constant(model, "nbits", packed.codes);
    let scales = constant(model, "nbits_scale", packed.scales);
    let zeros = packed
        .zero_points
        .map(|z| constant(model, "nbits_zero_point", z));
    let bias: Option<ValueId> = match model.node(node).is("Gemm") {
        true => model.input(node, 2),
        false => None,
    };
    let inputs = [model.input(node, 0), Some(codes), Some(scales), zeros];
    let out = model.output(node, 0);
    let name = model.node(node).name().to_owned();
    let [k, n, bits, block] = packed.sizes;
    let spec = NodeSpec::new("MatMulNBits")
        .domain(DOMAIN)
        .name(&name)
        .attr_i("K", k)
        .attr_i("N", n)
        .attr_i("bits", bits)
        .attr_i("block_size", block);
    let used = if zeros.is_some() { 4 } else { 3 };
    model.remove_node(node);
    let Some(bias) = bias else {
        model.add_node(graph, spec, &inputs[..used], &[out]);
        return;
    };
    let product = names.fresh(&format!("{stem}_product"));
    let product = model.add_value(graph, &product);
    model.add_node(graph, spec, &inputs[..used], &[Some(product)]);
    let add = NodeSpec::new("Add").name(&names.fresh(&format!("{name}_bias")));
    model.add_node(graph, add, &[Some(product), Some(bias)], &[out]);
}
