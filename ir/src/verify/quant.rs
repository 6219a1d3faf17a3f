//! Rules Q01 to Q08.

use super::Findings;
use crate::dtype::{DataType, DataTypeExt};
use crate::model::{Model, NodeId};
use crate::tensor::Tensor;

/// Largest relative difference of a bias scale from input scale × weight scale.
const BIAS_TOLERANCE: f64 = 1e-5;

pub(super) fn check(model: &Model, found: &mut Findings) {
    for n in model.all_nodes() {
        let node = model.node(n);
        if node.is("QuantizeLinear") || node.is("DequantizeLinear") {
            Checked::new(model, n).all(found);
        } else if ["Conv", "ConvTranspose", "Gemm"]
            .iter()
            .any(|op| node.is(op))
        {
            bias(model, n, found);
        }
    }
}

/// A Q or DQ node under examination.
struct Checked<'a> {
    model: &'a Model,
    node: NodeId,
    quantizes: bool,
    opset: i64,
    scale: Option<&'a Tensor>,
    zero_point: Option<&'a Tensor>,
    shape: Option<Vec<Option<i64>>>,
    codes: Option<DataType>,
    block: i64,
}

impl<'a> Checked<'a> {
    fn new(model: &'a Model, node: NodeId) -> Self {
        let n = model.node(node);
        let quantizes = n.is("QuantizeLinear");
        let input = model.input(node, 0).map(|v| model.value(v));
        let output = model.output(node, 0).map(|v| model.value(v));
        let codes = if quantizes {
            Some(produced(model, node))
        } else {
            let by = model.input(node, 0).and_then(|v| model.producer(v));
            input
                .and_then(|v| v.dtype())
                .or_else(|| {
                    by.filter(|(p, _)| model.node(*p).is("QuantizeLinear"))
                        .map(|(p, _)| produced(model, p))
                })
                .or_else(|| model.value(model.input(node, 2)?).dtype())
        };
        Self {
            model,
            node,
            quantizes,
            opset: model.opset("").unwrap_or(0),
            scale: model.input_constant(node, 1),
            zero_point: model.input_constant(node, 2),
            shape: input
                .and_then(|v| v.shape())
                .or_else(|| output.and_then(|v| v.shape())),
            codes,
            block: n.attr_i("block_size").unwrap_or(0),
        }
    }

    fn add(&self, found: &mut Findings, rule: &'static str, message: impl Into<String>) {
        found.add(rule, self.model.node_key(self.node), message);
    }

    fn all(&self, found: &mut Findings) {
        self.scales(found);
        self.zero_points(found);
        self.granularity(found);
        self.gates(found);
    }

    fn scales(&self, found: &mut Findings) {
        let Some(scale) = self.scale else { return };
        if !scale.dtype().is_float() {
            let message = format!("the scale is of type {}", scale.dtype().short_name());
            return self.add(found, "Q01", message);
        }
        let wrong = scale.to_f32().ok().and_then(|s| {
            s.into_iter()
                .enumerate()
                .find(|(_, x)| !x.is_finite() || *x <= 0.0)
        });
        if let Some((i, x)) = wrong {
            self.add(found, "Q01", format!("scale {i} is {x}"));
        }
    }

    fn zero_points(&self, found: &mut Findings) {
        let slot = self.model.input(self.node, 2).map(|v| self.model.value(v));
        let dtype = slot.and_then(|v| v.dtype());
        if let (Some(z), Some(codes)) = (dtype, self.codes)
            && z != codes
        {
            let (z, c) = (z.short_name(), codes.short_name());
            self.add(
                found,
                "Q02",
                format!("the zero point is {z}, but the codes are {c}"),
            );
        }
        if let (Some(z), Some(s)) = (self.zero_point, self.scale)
            && z.dims() != s.dims()
        {
            let (z, s) = (z.dims(), s.dims());
            self.add(
                found,
                "Q02",
                format!("zero point of shape {z:?}, scale of shape {s:?}"),
            );
        }
        if self.codes == Some(DataType::Int32) && !self.quantizes {
            let zero = self
                .zero_point
                .is_none_or(|z| z.to_i64().is_ok_and(|z| z.iter().all(|&z| z == 0)));
            if !zero {
                self.add(found, "Q05", "INT32 codes have a zero point that is not 0");
            }
        }
    }

    fn granularity(&self, found: &mut Findings) {
        let slot = self.model.input(self.node, 1).map(|v| self.model.value(v));
        let Some(dims) = slot.and_then(|v| v.shape()) else {
            return;
        };
        let axis = self.model.node(self.node).attr_i("axis").unwrap_or(1);
        let Some(shape) = &self.shape else { return };
        let rank = shape.len() as i64;
        let at = if axis < 0 { axis + rank } else { axis };
        let at = usize::try_from(at).ok().filter(|&a| a < shape.len());
        if self.block > 0 {
            return self.blocked(&dims, shape, at, found);
        }
        match dims.as_slice() {
            [] | [Some(1)] => {}
            [length] => match at.map(|a| shape[a]) {
                None => self.add(found, "Q03", format!("axis {axis} is outside rank {rank}")),
                Some(Some(d)) if length.is_some_and(|l| l != d) => {
                    let message =
                        format!("{} scales for axis {axis} of length {d}", shown(*length));
                    self.add(found, "Q03", message);
                }
                Some(_) => {}
            },
            more => {
                let message = format!("the scale has {} dimensions and no block size", more.len());
                self.add(found, "Q03", message);
            }
        }
    }

    fn blocked(
        &self,
        dims: &[Option<i64>],
        shape: &[Option<i64>],
        at: Option<usize>,
        found: &mut Findings,
    ) {
        let fits = at.is_some()
            && dims.len() == shape.len()
            && shape
                .iter()
                .zip(dims)
                .enumerate()
                .all(|(i, pair)| match pair {
                    (Some(d), Some(s)) if Some(i) == at => *s == (d + self.block - 1) / self.block,
                    (Some(d), Some(s)) => d == s,
                    _ => true,
                });
        if !fits {
            let list =
                |s: &[Option<i64>]| s.iter().map(|&d| shown(d)).collect::<Vec<_>>().join(",");
            let message = format!(
                "a scale of shape [{}] does not fit [{}] in blocks of {}",
                list(dims),
                list(shape),
                self.block
            );
            self.add(found, "Q04", message);
        }
    }

    fn gates(&self, found: &mut Findings) {
        if let Some((codes, needed)) = self.codes.and_then(|c| codes_opset(c).map(|o| (c, o)))
            && self.opset < needed
        {
            let message = format!("{} codes need opset {needed}", codes.short_name());
            self.add(found, "Q07", message);
        }
        let scale = self
            .model
            .input(self.node, 1)
            .and_then(|v| self.model.value(v).dtype());
        let needed = match scale {
            Some(DataType::Float16 | DataType::Bfloat16) => 19,
            Some(DataType::Float8e8m0) => 24,
            _ => 10,
        };
        if self.opset < needed {
            self.add(
                found,
                "Q07",
                format!("a scale of this type needs opset {needed}"),
            );
        }
        let attributes = [
            ("axis", 13),
            ("saturate", 19),
            ("block_size", 21),
            ("output_dtype", if self.quantizes { 21 } else { 23 }),
            ("precision", 23),
        ];
        for (name, needed) in attributes {
            if self.opset < needed && self.model.node(self.node).attr(name).is_some() {
                self.add(
                    found,
                    "Q08",
                    format!("attribute `{name}` needs opset {needed}"),
                );
            }
        }
    }
}

/// The type of the codes that a QuantizeLinear node makes: declared, of its zero point, else unsigned 8 bit.
fn produced(model: &Model, node: NodeId) -> DataType {
    let declared = model.node(node).attr_i("output_dtype").unwrap_or(0);
    i32::try_from(declared)
        .ok()
        .and_then(DataType::from_number)
        .or_else(|| model.value(model.input(node, 2)?).dtype())
        .unwrap_or(DataType::Uint8)
}

fn shown(d: Option<i64>) -> String {
    d.map_or_else(|| "?".to_owned(), |d| d.to_string())
}

/// The first operator set whose Q and DQ know a type of codes; `None` for types that are no codes.
fn codes_opset(codes: DataType) -> Option<i64> {
    Some(match codes {
        DataType::Uint8 | DataType::Int8 | DataType::Int32 => 10,
        DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz => 19,
        DataType::Uint4 | DataType::Int4 | DataType::Uint16 | DataType::Int16 => 21,
        DataType::Float4e2m1 => 23,
        DataType::Uint2 | DataType::Int2 => 25,
        DataType::Float6e2m3 | DataType::Float6e3m2 => 28,
        _ => return None,
    })
}

/// The DQ node with a constant scale that fills an input slot, and its scales.
fn dequantized(model: &Model, n: NodeId, slot: usize) -> Option<(NodeId, Vec<f32>)> {
    let (dq, _) = model.producer(model.input(n, slot)?)?;
    let node = model.node(dq);
    let blocked = node.attr_i("block_size").unwrap_or(0) > 0;
    if !node.is("DequantizeLinear") || blocked {
        return None;
    }
    Some((dq, model.input_constant(dq, 1)?.to_f32().ok()?))
}

fn bias(model: &Model, n: NodeId, found: &mut Findings) {
    let node = model.node(n);
    let one = |name: &str| node.attr_f(name).is_none_or(|x| x == 1.0);
    let parts = (
        dequantized(model, n, 0),
        dequantized(model, n, 1),
        dequantized(model, n, 2),
    );
    let (Some((_, x)), Some((_, w)), Some((dq, b))) = parts else {
        return;
    };
    let codes = model.input(dq, 0).and_then(|v| model.value(v).dtype());
    if codes != Some(DataType::Int32) || x.len() != 1 || !one("alpha") || !one("beta") {
        return;
    }
    let at = |list: &[f32], i: usize| f64::from(list[i.min(list.len() - 1)]);
    let fits = b.len() == 1 || w.len() == 1 || b.len() == w.len();
    if b.is_empty() || w.is_empty() || !fits {
        let message = format!("{} bias scales, but {} weight scales", b.len(), w.len());
        found.add("Q06", model.node_key(n), message);
        return;
    }
    for i in 0..b.len().max(w.len()) {
        let (found_scale, needed) = (at(&b, i), at(&x, 0) * at(&w, i));
        if (found_scale - needed).abs() > BIAS_TOLERANCE * needed.abs() {
            let message = format!(
                "bias scale {i} is {found_scale:e}, but input scale × weight scale is {needed:e}"
            );
            found.add("Q06", model.node_key(n), message);
            return;
        }
    }
}
