//! The difference of two models, for people: signature, operator sets, nodes, weights, and the quantization that was
//! put in.
//!
//! Nodes are matched by graph path and name, and where a node has no name by its first output; weights by path and
//! name. QuantizeLinear and DequantizeLinear nodes that were added are told per tensor with the quantized type.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::dtype::DataTypeExt;
use crate::model::{Model, NodeId, ValueId};
use crate::text::{print_node, quant_type, summarize};

/// A thing that differs: on the left only, on the right only, or on both sides and not equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Graph path and name.
    pub key: String,
    /// How it reads on the left; `None` where it was added.
    pub before: Option<String>,
    /// How it reads on the right; `None` where it was removed.
    pub after: Option<String>,
}

/// A node that is the same operator with the same attributes, but reads or writes values of other names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewired {
    /// Graph path and name.
    pub key: String,
    /// The operator type.
    pub op_type: String,
    /// The names that differ, left and right; empty where a slot is.
    pub values: Vec<(String, String)>,
}

/// A tensor that is quantized on the right and was not on the left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizedTensor {
    /// The value that is quantized: an activation, or the codes of a weight.
    pub key: String,
    /// The quantized type in MLIR's notation, or `dynamic` where the scale is no constant.
    pub ty: String,
    /// A QuantizeLinear node stands there (an activation); else constant codes are dequantized (a weight).
    pub activation: bool,
}

/// What differs between two models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphDiff {
    /// Header: IR version, operator sets, metadata.
    pub header: Vec<Change>,
    /// Inputs and outputs of the main graph.
    pub signature: Vec<Change>,
    /// Nodes, without the QuantizeLinear and DequantizeLinear nodes that were added.
    pub nodes: Vec<Change>,
    /// Nodes that read or write other values under the same name; a consequence of other changes, most of the time.
    pub rewired: Vec<Rewired>,
    /// Weights: type, shape, digest or values.
    pub initializers: Vec<Change>,
    /// Operator types and their number on the left and on the right, where these differ.
    pub operators: Vec<(String, usize, usize)>,
    /// Tensors that are quantized now.
    pub quantized: Vec<QuantizedTensor>,
    /// Bytes of all weights, left and right.
    pub weight_bytes: (usize, usize),
}

impl GraphDiff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.header.is_empty()
            && self.signature.is_empty()
            && self.nodes.is_empty()
            && self.rewired.is_empty()
            && self.initializers.is_empty()
            && self.quantized.is_empty()
    }
}

/// Compares two models.
pub fn diff(a: &Model, b: &Model) -> GraphDiff {
    let mut out = GraphDiff {
        header: changes(&header(a), &header(b)),
        signature: changes(&signature(a), &signature(b)),
        initializers: changes(&initializers(a), &initializers(b)),
        operators: operators(a, b),
        weight_bytes: (weight_bytes(a), weight_bytes(b)),
        ..GraphDiff::default()
    };
    let (left, right) = (nodes(a), nodes(b));
    let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    for key in keys {
        let (old, new) = (left.get(key), right.get(key));
        if let (None, Some(n)) = (old, new)
            && (b.node(*n).is("QuantizeLinear") || b.node(*n).is("DequantizeLinear"))
        {
            out.quantized.extend(quantized(b, *n));
            continue;
        }
        let before = old.map(|&n| print_node(a, n));
        let after = new.map(|&n| print_node(b, n));
        if before == after {
            continue;
        }
        if let (Some(&o), Some(&n)) = (old, new)
            && alike(a, o, b, n)
        {
            out.rewired.push(Rewired {
                key: key.clone(),
                op_type: b.node(n).op_type().to_owned(),
                values: other_values((a, o), (b, n)),
            });
            continue;
        }
        out.nodes.push(Change {
            key: key.clone(),
            before,
            after,
        });
    }
    out.quantized
        .sort_by(|x, y| (&x.key, &x.ty).cmp(&(&y.key, &y.ty)));
    out.quantized.dedup();
    out
}

/// Whether two nodes differ in the names of their inputs and outputs alone. Nodes with subgraphs are compared whole.
fn alike(a: &Model, x: NodeId, b: &Model, y: NodeId) -> bool {
    let (m, n) = (a.node(x), b.node(y));
    m.proto == n.proto && m.subgraphs.is_empty() && n.subgraphs.is_empty()
}

/// The names that differ, slot by slot, inputs first.
fn other_values((a, x): (&Model, NodeId), (b, y): (&Model, NodeId)) -> Vec<(String, String)> {
    let names = |m: &Model, ids: Vec<Option<ValueId>>| -> Vec<String> {
        let each = ids.into_iter();
        each.map(|v| v.map_or_else(String::new, |v| m.value(v).name.clone()))
            .collect()
    };
    let sides = [
        (names(a, a.inputs(x)), names(b, b.inputs(y))),
        (names(a, a.outputs(x)), names(b, b.outputs(y))),
    ];
    let mut out = Vec::new();
    for (left, right) in sides {
        for i in 0..left.len().max(right.len()) {
            let name = |side: &[String]| side.get(i).cloned().unwrap_or_default();
            out.push((name(&left), name(&right)));
        }
    }
    out.retain(|(x, y)| x != y);
    out
}

fn changes(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Change> {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|&k| a.get(k) != b.get(k))
        .map(|k| Change {
            key: k.clone(),
            before: a.get(k).cloned(),
            after: b.get(k).cloned(),
        })
        .collect()
}

fn header(m: &Model) -> BTreeMap<String, String> {
    let h = &m.header;
    let mut out = BTreeMap::from([("ir_version".to_owned(), h.ir_version().to_string())]);
    for o in &h.opset_import {
        let domain = if o.domain().is_empty() {
            "ai.onnx"
        } else {
            o.domain()
        };
        out.insert(format!("opset {domain}"), o.version().to_string());
    }
    for p in &h.metadata_props {
        out.insert(format!("metadata {}", p.key()), p.value().to_owned());
    }
    for f in &h.functions {
        out.insert(
            format!("function {}.{}", f.domain(), f.name()),
            format!("{} nodes", f.node.len()),
        );
    }
    let texts = [
        ("producer", h.producer_name()),
        ("producer version", h.producer_version()),
        ("documentation", h.doc_string()),
    ];
    for (key, value) in texts.into_iter().filter(|t| !t.1.is_empty()) {
        out.insert(key.to_owned(), value.to_owned());
    }
    out
}

fn signature(m: &Model) -> BTreeMap<String, String> {
    let main = m.main();
    let sides = [("input", &main.inputs), ("output", &main.outputs)];
    let mut out = BTreeMap::new();
    for (side, values) in sides {
        for (i, &v) in values.iter().enumerate() {
            let value = m.value(v);
            let key = format!("{side} {i} `{}`", value.name);
            out.insert(
                key,
                value
                    .ty()
                    .map_or_else(|| "no type".to_owned(), crate::text::print_type),
            );
        }
    }
    out
}

fn nodes(m: &Model) -> BTreeMap<String, NodeId> {
    let mut out = BTreeMap::new();
    for n in m.all_nodes() {
        let key = m.node_key(n);
        let free = if out.contains_key(&key) {
            let taken = (2..)
                .map(|i| format!("{key} ({i})"))
                .find(|k| !out.contains_key(k));
            taken.unwrap_or(key)
        } else {
            key
        };
        out.insert(free, n);
    }
    out
}

fn initializers(m: &Model) -> BTreeMap<String, String> {
    let all = m.all_values().into_iter();
    all.filter_map(|v| {
        let t = m.value(v).init.as_ref()?;
        let dims: Vec<String> = t.dims().iter().map(i64::to_string).collect();
        let bytes = t
            .byte_len()
            .map_or(String::new(), |b| format!(", {b} bytes"));
        let text = format!(
            "{}[{}] {}{bytes}",
            t.dtype().short_name(),
            dims.join(","),
            summarize(t)
        );
        Some((m.value_key(v), text))
    })
    .collect()
}

fn operators(a: &Model, b: &Model) -> Vec<(String, usize, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let name = |m: &Model, n| {
        let n = m.node(n);
        if n.domain().is_empty() {
            n.op_type().to_owned()
        } else {
            format!("{}.{}", n.domain(), n.op_type())
        }
    };
    for n in a.all_nodes() {
        counts.entry(name(a, n)).or_default().0 += 1;
    }
    for n in b.all_nodes() {
        counts.entry(name(b, n)).or_default().1 += 1;
    }
    let differing = counts.into_iter().filter(|(_, (x, y))| x != y);
    differing.map(|(op, (x, y))| (op, x, y)).collect()
}

fn weight_bytes(m: &Model) -> usize {
    let all = m.all_values().into_iter();
    all.filter_map(|v| m.value(v).init.as_ref()?.byte_len().ok())
        .fold(0, usize::saturating_add)
}

/// The tensor at an added node: what a QuantizeLinear reads, or the constant that a DequantizeLinear reads.
fn quantized(m: &Model, n: NodeId) -> Option<QuantizedTensor> {
    let activation = m.node(n).is("QuantizeLinear");
    let value = m.input(n, 0)?;
    if !activation && !m.is_constant(value) {
        return None;
    }
    let ty = quant_type(m, n);
    Some(QuantizedTensor {
        key: m.value_key(value),
        ty: ty.map_or_else(|| "dynamic".to_owned(), |t| t.to_string()),
        activation,
    })
}

impl fmt::Display for GraphDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "no difference");
        }
        let lists = [
            ("header", &self.header),
            ("signature", &self.signature),
            ("nodes", &self.nodes),
            ("weights", &self.initializers),
        ];
        for (title, list) in lists.into_iter().filter(|l| !l.1.is_empty()) {
            let named = title != "nodes";
            writeln!(f, "{title}:")?;
            for c in list {
                side(f, '-', c.before.as_deref(), named.then_some(&c.key))?;
                side(f, '+', c.after.as_deref(), named.then_some(&c.key))?;
            }
        }
        if !self.rewired.is_empty() {
            writeln!(f, "rewired nodes:")?;
            for r in &self.rewired {
                let each = r.values.iter().map(|(x, y)| format!("{x} → {y}"));
                let values = each.collect::<Vec<_>>().join(", ");
                writeln!(f, "  ~ {} {}: {values}", r.op_type, r.key)?;
            }
        }
        if !self.quantized.is_empty() {
            writeln!(f, "quantized:")?;
            for q in &self.quantized {
                let kind = if q.activation { "activation" } else { "weight" };
                writeln!(f, "  + {kind} {}: {}", q.key, q.ty)?;
            }
        }
        if !self.operators.is_empty() {
            writeln!(f, "operators:")?;
            for (op, x, y) in &self.operators {
                writeln!(f, "  {op}: {x} → {y}")?;
            }
        }
        let (x, y) = self.weight_bytes;
        writeln!(f, "weights: {x} → {y} bytes")
    }
}

fn side(
    f: &mut fmt::Formatter<'_>,
    sign: char,
    text: Option<&str>,
    key: Option<&String>,
) -> fmt::Result {
    let Some(text) = text else { return Ok(()) };
    let head = key.map_or_else(String::new, |k| format!("{k}: "));
    writeln!(f, "  {sign} {head}{}", text.replace('\n', "\n    "))
}

#[cfg(test)]
mod tests;
