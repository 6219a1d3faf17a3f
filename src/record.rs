//! How a model is quantized, as text that is stable and can be read: one line for each layer.
//!
//! `onnx-quant diff` compares two such records, and snapshot tests keep one.

use std::fmt::Write as _;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};
use onnx_quant_passes::qdq::{self, Qdq};

use crate::metadata::digest;

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Graph path and name of the node.
    pub layer: String,
    /// Operator type, and what is quantized of it.
    pub text: String,
}

/// The layers of a model that read or write quantized values, in program order. `digits` is the number of significant
/// digits of scales.
///
/// A layer's line holds, for each of its inputs: the type of the codes; the scale, or the smallest and the largest where
/// there are several; the zero point; for weights also eight digits of the codes' SHA-256, so that other weights are
/// another line.
pub fn record(model: &Model, digits: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for node in model.all_nodes() {
        let n = model.node(node);
        if n.is("QuantizeLinear") || n.is("DequantizeLinear") {
            continue;
        }
        let mut parts: Vec<String> = Vec::new();
        for (slot, input) in model.inputs(node).into_iter().enumerate() {
            let quantized = input.and_then(|v| qdq::dequantized_by(model, v));
            if let Some(d) = quantized {
                parts.push(format!("in{slot} {}", describe(model, &d, digits)));
            }
        }
        if let Some(q) = written(model, node) {
            parts.push(format!("out {}", describe(model, &q, digits)));
        }
        if !parts.is_empty() {
            lines.push(Line {
                layer: model.node_key(node),
                text: format!("{}: {}", n.op_type(), parts.join(" | ")),
            });
        }
    }
    lines
}

/// The QuantizeLinear behind a node's first output.
fn written(model: &Model, node: NodeId) -> Option<Qdq> {
    let out = model.output(node, 0)?;
    let mut readers = model.consumers(out).into_iter();
    readers.find_map(|(n, _)| qdq::quantize(model, n))
}

fn describe(model: &Model, q: &Qdq, digits: usize) -> String {
    let codes = model.constant(q.input);
    let zero = q.zero_point.and_then(|z| model.constant(z));
    let dtype = zero.or(codes).map_or("u8", |t| t.dtype().short_name());
    let mut text = dtype.to_owned();
    let scales = model.constant(q.scale).and_then(|t| t.to_f32().ok());
    match scales.as_deref() {
        Some([one]) => {
            let _ = write!(text, " scale {}", rounded(*one, digits));
        }
        Some(many) if !many.is_empty() => {
            let low = many.iter().copied().fold(f32::INFINITY, f32::min);
            let high = many.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let block = match q.block_size {
                0 => String::new(),
                n => format!(" block {n}"),
            };
            let _ = write!(
                text,
                "[axis {}{block}] {} scales {}…{}",
                q.axis,
                many.len(),
                rounded(low, digits),
                rounded(high, digits)
            );
        }
        _ => text.push_str(" scale computed"),
    }
    if let Some(z) = zero.and_then(Tensor::scalar_i64).filter(|z| *z != 0) {
        let _ = write!(text, " zero {z}");
    }
    if let Some(bytes) = codes_of(model, q.input) {
        let _ = write!(text, " codes {}", &digest(&bytes)[..8]);
    }
    text
}

fn codes_of(model: &Model, value: ValueId) -> Option<Vec<u8>> {
    let tensor = model.constant(value)?;
    tensor.bytes().ok().map(|b| b.into_owned())
}

/// A number with some significant digits, in the shortest form.
fn rounded(x: f32, digits: usize) -> String {
    let text = format!("{x:.*e}", digits.max(1) - 1);
    text.parse::<f64>().map_or(text, |x| x.to_string())
}

/// What differs between two records: lines with `-` and `+`, each with the layer's name. Empty where nothing does.
pub fn difference(before: &[Line], after: &[Line]) -> String {
    let mut out = String::new();
    let find = |lines: &[Line], layer: &str| -> Option<String> {
        let line = lines.iter().find(|l| l.layer == layer);
        line.map(|l| l.text.clone())
    };
    let mut layers: Vec<&String> = before.iter().map(|l| &l.layer).collect();
    layers.extend(after.iter().map(|l| &l.layer));
    let mut seen = std::collections::BTreeSet::new();
    for layer in layers.into_iter().filter(|l| seen.insert((*l).clone())) {
        let (old, new) = (find(before, layer), find(after, layer));
        if old == new {
            continue;
        }
        for (sign, text) in [("-", old), ("+", new)] {
            if let Some(text) = text {
                let _ = writeln!(out, "{sign} {layer}  {text}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_significant_digits() {
        let found = [0.012_345_f32, 123.456, 1.0, 0.000_098_76].map(|x| rounded(x, 3));
        assert_eq!(found, ["0.0123", "123", "1", "0.0000988"]);
    }

    #[test]
    fn a_difference_names_the_layer() {
        let line = |layer: &str, text: &str| Line {
            layer: layer.to_owned(),
            text: text.to_owned(),
        };
        let a = [line("conv", "x"), line("gone", "y"), line("same", "z")];
        let b = [line("conv", "w"), line("same", "z")];
        assert_eq!(difference(&a, &b), "- conv  x\n+ conv  w\n- gone  y\n");
        assert_eq!(difference(&a, &a), "");
    }
}
