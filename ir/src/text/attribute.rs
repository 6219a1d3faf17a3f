//! Attributes → text.

use onnx_quant_proto::attribute_proto::AttributeType;
use onnx_quant_proto::{AttributeProto, TensorProto};

use super::names::{name, quoted};
use super::print::Printer;
use super::types::{self, blob, constant, residue};

/// The words for attribute types, in the standard's spelling.
pub(super) const KINDS: [(AttributeType, &str); 14] = [
    (AttributeType::Float, "float"),
    (AttributeType::Int, "int"),
    (AttributeType::String, "string"),
    (AttributeType::Tensor, "tensor"),
    (AttributeType::Graph, "graph"),
    (AttributeType::SparseTensor, "sparse_tensor"),
    (AttributeType::TypeProto, "type_proto"),
    (AttributeType::Floats, "floats"),
    (AttributeType::Ints, "ints"),
    (AttributeType::Strings, "strings"),
    (AttributeType::Tensors, "tensors"),
    (AttributeType::Graphs, "graphs"),
    (AttributeType::SparseTensors, "sparse_tensors"),
    (AttributeType::TypeProtos, "type_protos"),
];

/// The type of an attribute; files older than IR version 2 do not declare it, and the filled field tells.
fn kind(a: &AttributeProto) -> AttributeType {
    let filled = [
        (a.f.is_some(), AttributeType::Float),
        (a.i.is_some(), AttributeType::Int),
        (a.s.is_some(), AttributeType::String),
        (a.t.is_some(), AttributeType::Tensor),
        (a.g.is_some(), AttributeType::Graph),
        (!a.floats.is_empty(), AttributeType::Floats),
        (!a.ints.is_empty(), AttributeType::Ints),
        (!a.strings.is_empty(), AttributeType::Strings),
        (!a.tensors.is_empty(), AttributeType::Tensors),
        (!a.graphs.is_empty(), AttributeType::Graphs),
    ];
    match a.r#type() {
        AttributeType::Undefined => filled
            .into_iter()
            .find(|f| f.0)
            .map_or(AttributeType::Undefined, |f| f.1),
        declared => declared,
    }
}

/// `name = value`, with the type named where the value does not show it.
pub(super) fn print<'a>(p: &mut Printer<'a>, a: &'a AttributeProto) {
    p.out.push_str(&name(a.name()));
    let kind = kind(a);
    let word = KINDS.iter().find(|k| k.0 == kind).map_or("", |k| k.1);
    if let Some(reference) = a.ref_attr_name.as_ref().filter(|_| !word.is_empty()) {
        p.out.push_str(&format!(": {word} = @{}", name(reference)));
        return;
    }
    let mut rest = AttributeProto {
        name: None,
        r#type: None,
        ..a.clone()
    };
    let typed = format!(": {word} = ");
    let other = a.doc_string.is_some();
    match kind {
        AttributeType::Float if plain(a.f()) => {
            p.out.push_str(&format!(" = {}", float(a.f())));
            rest.f = None;
        }
        AttributeType::Int => {
            p.out.push_str(&format!(" = {}", a.i()));
            rest.i = None;
        }
        AttributeType::String if !other => {
            p.out.push_str(&format!(" = {}", quoted(a.s())));
            rest.s = None;
        }
        AttributeType::Floats if a.floats.iter().all(|&x| plain(x)) => {
            list(p, &typed, a.floats.iter().map(|&x| float(x)).collect());
            rest.floats.clear();
        }
        AttributeType::Ints => {
            list(p, &typed, a.ints.iter().map(i64::to_string).collect());
            rest.ints.clear();
        }
        AttributeType::Strings => {
            list(p, &typed, a.strings.iter().map(|s| quoted(s)).collect());
            rest.strings.clear();
        }
        AttributeType::Tensor if a.t.is_some() => {
            let text = a.t.as_ref().map_or_else(String::new, |t| tensor(p, t));
            p.out.push_str(&format!(" = {text}"));
            rest.t = None;
        }
        AttributeType::Tensors => {
            let tensors: Vec<String> = a.tensors.iter().map(|t| tensor(p, t)).collect();
            list(p, &typed, tensors);
            rest.tensors.clear();
        }
        AttributeType::TypeProto if a.tp.is_some() => {
            p.out.push_str(&typed);
            p.out
                .push_str(&a.tp.as_ref().map_or_else(String::new, types::print));
            rest.tp = None;
        }
        AttributeType::Graph if a.g.is_some() => {
            p.out.push_str(" = ");
            a.g.iter().for_each(|g| p.graph(g));
            rest.g = None;
        }
        AttributeType::Graphs => {
            p.out.push_str(&format!("{typed}["));
            for (i, g) in a.graphs.iter().enumerate() {
                p.out.push_str(if i > 0 { ", " } else { "" });
                p.graph(g);
            }
            p.out.push(']');
            rest.graphs.clear();
        }
        _ => {
            let whole = AttributeProto {
                name: None,
                ..a.clone()
            };
            p.out.push_str(&format!(" = {}", blob(&whole)));
            return;
        }
    }
    p.out.push_str(&residue(&rest, p.level));
}

fn list(p: &mut Printer<'_>, typed: &str, items: Vec<String>) {
    let head = if items.is_empty() { typed } else { " = " };
    p.out.push_str(&format!("{head}[{}]", items.join(", ")));
}

fn tensor(p: &Printer<'_>, t: &TensorProto) -> String {
    let mut out = constant(t.data_type(), &t.dims);
    if let Some(n) = &t.name {
        out.push_str(&format!(" {}", quoted(n.as_bytes())));
    }
    out.push(' ');
    out.push_str(&p.data(t));
    out
}

/// Whether the decimal form of a float says all about it.
fn plain(x: f32) -> bool {
    !x.is_nan() || x.to_bits() == f32::NAN.to_bits()
}

/// A float that does not read as an integer.
fn float(x: f32) -> String {
    format!("{x:?}").replace("NaN", "nan")
}
