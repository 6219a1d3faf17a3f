//! `ModelProto` → text.

mod header;

use std::collections::HashMap;

use onnx_quant_proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};

use super::names::{comment, is_identifier, name, quoted};
use super::types::{constant, declaration, residue};
use super::{Print, QuantType, attribute, digest, literal, quant};
use crate::dtype::{DataType, DataTypeExt};
use crate::tensor::Tensor;

/// A whole model.
pub(super) fn model(proto: &ModelProto, level: Print) -> String {
    let mut p = Printer {
        out: String::new(),
        level,
        indent: 0,
        scopes: Vec::new(),
    };
    p.header(proto);
    if let Some(g) = &proto.graph {
        p.graph(g);
        p.out.push('\n');
    }
    for f in &proto.functions {
        p.function(f);
    }
    p.out
}

/// One node with the quantized type that stands beside it.
pub(super) fn node(proto: &NodeProto, quantized: Option<QuantType>) -> String {
    let mut p = Printer {
        out: String::new(),
        level: Print::Summary,
        indent: 0,
        scopes: Vec::new(),
    };
    p.node_text(proto);
    if let Some(q) = quantized {
        p.out.push_str(&format!("  # {q}"));
    }
    p.out
}

/// Text under construction.
pub(super) struct Printer<'a> {
    pub(super) out: String,
    pub(super) level: Print,
    pub(super) indent: usize,
    /// The initializers in scope, outermost graph first.
    scopes: Vec<HashMap<&'a str, &'a TensorProto>>,
}

impl<'a> Printer<'a> {
    pub(super) fn line(&mut self) {
        self.out.push('\n');
        self.out.push_str(&"  ".repeat(self.indent));
    }

    /// A graph; the cursor stands where its name goes.
    pub(super) fn graph(&mut self, g: &'a GraphProto) {
        self.out.push_str(&name(g.name()));
        let rest = GraphProto {
            name: None,
            node: Vec::new(),
            initializer: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            value_info: Vec::new(),
            ..g.clone()
        };
        self.out.push_str(&residue(&rest, self.level));
        let list = |infos: &[_]| {
            let all: Vec<String> = infos.iter().map(|i| declaration(i, self.level)).collect();
            all.join(", ")
        };
        let signature = format!(" ({}) => ({})", list(&g.input), list(&g.output));
        self.out.push_str(&signature);
        let shown = self.level == Print::Full;
        let count = g.initializer.len() + if shown { g.value_info.len() } else { 0 };
        if count > 0 {
            self.line();
            self.out.push('<');
            self.indent += 1;
            let mut left = count;
            for t in &g.initializer {
                self.line();
                let text = self.initializer(t);
                self.out.push_str(&text);
                left -= 1;
                self.out.push_str(if left > 0 { "," } else { "" });
            }
            for v in g.value_info.iter().filter(|_| shown) {
                self.line();
                self.out.push_str(&declaration(v, self.level));
                left -= 1;
                self.out.push_str(if left > 0 { "," } else { "" });
            }
            self.indent -= 1;
            self.line();
            self.out.push('>');
        }
        self.line();
        self.out.push('{');
        self.scopes
            .push(g.initializer.iter().map(|t| (t.name(), t)).collect());
        self.nodes(&g.node);
        self.scopes.pop();
        self.out.push('}');
    }

    fn nodes(&mut self, nodes: &'a [NodeProto]) {
        self.indent += 1;
        for n in nodes {
            self.line();
            self.node_text(n);
            let mut comments: Vec<String> = Vec::new();
            if self.level == Print::Summary {
                comments.extend(self.quantized(n).map(|q| q.to_string()));
            }
            if !n.doc_string().is_empty() {
                comments.push(comment(n.doc_string()));
            }
            comments.extend(pairs(&n.metadata_props, " = ").iter().map(|p| comment(p)));
            if !comments.is_empty() {
                self.out.push_str("  # ");
                self.out.push_str(&comments.join("; "));
            }
        }
        self.indent -= 1;
        self.line();
    }

    fn initializer(&self, t: &TensorProto) -> String {
        let ty = constant(t.data_type(), &t.dims);
        format!(
            "{ty} {} = {}",
            name(t.name()),
            self.data(t).trim_start_matches("= ")
        )
    }

    /// The data of a tensor: `{…}` or `= …`, and what has no syntax.
    pub(super) fn data(&self, t: &TensorProto) -> String {
        let tensor = Tensor::from_proto(t.clone());
        if self.level == Print::Summary {
            return digest::summarize(&tensor);
        }
        let mut rest = t.clone();
        rest.name = None;
        let text = literal::print(&tensor);
        if text.is_some() {
            rest = TensorProto {
                doc_string: rest.doc_string,
                metadata_props: rest.metadata_props,
                segment: rest.segment,
                ..TensorProto::default()
            };
        } else {
            rest.dims.clear();
            rest.data_type = None;
        }
        let text = text.unwrap_or_else(|| "= missing".to_owned());
        format!("{text}{}", residue(&rest, self.level))
    }

    /// A node without comments.
    fn node_text(&mut self, n: &'a NodeProto) {
        if !n.name().is_empty() {
            self.out.push_str(&format!("[{}] ", name(n.name())));
        }
        let all = |names: &[String]| names.iter().map(|i| name(i)).collect::<Vec<_>>().join(", ");
        self.out.push_str(&all(&n.output));
        self.out
            .push_str(if n.output.is_empty() { "= " } else { " = " });
        self.out.push_str(&operator(n));
        self.attributes(&n.attribute);
        self.out.push_str(&format!(" ({})", all(&n.input)));
        let rest = NodeProto {
            doc_string: n.doc_string.clone(),
            metadata_props: n.metadata_props.clone(),
            device_configurations: n.device_configurations.clone(),
            ..NodeProto::default()
        };
        self.out.push_str(&residue(&rest, self.level));
    }

    fn attributes(&mut self, attributes: &'a [onnx_quant_proto::AttributeProto]) {
        if attributes.is_empty() {
            return;
        }
        let nested = attributes
            .iter()
            .any(|a| a.g.is_some() || !a.graphs.is_empty());
        self.out.push_str(" <");
        self.indent += 1;
        for (i, a) in attributes.iter().enumerate() {
            if i > 0 {
                self.out.push_str(if nested { "," } else { ", " });
            }
            if nested {
                self.line();
            }
            attribute::print(self, a);
        }
        self.indent -= 1;
        if nested {
            self.line();
        }
        self.out.push('>');
    }

    fn find(&self, name: &str) -> Option<Tensor> {
        let found = self.scopes.iter().rev().find_map(|s| s.get(name));
        found.map(|&t| Tensor::from_proto(t.clone()))
    }

    fn quantized(&self, n: &NodeProto) -> Option<QuantType> {
        let quantizes = n.op_type() == "QuantizeLinear";
        if !matches!(n.domain(), "" | "ai.onnx") || !quantizes && n.op_type() != "DequantizeLinear"
        {
            return None;
        }
        let attr = |key: &str| {
            n.attribute
                .iter()
                .find(|a| a.name() == key)
                .and_then(|a| a.i)
        };
        let input = |slot: usize| n.input.get(slot).and_then(|i| self.find(i));
        let declared = attr("output_dtype").and_then(|t| DataType::from_number(t as i32));
        quant::read(&quant::Parts {
            axis: attr("axis"),
            block: attr("block_size").filter(|&b| b > 0),
            declared: declared.filter(|_| quantizes),
            codes: input(0).filter(|_| !quantizes).as_ref(),
            scale: &input(1)?,
            zero_point: input(2).as_ref(),
        })
    }
}

/// Domain, operator and overload: `Conv`, `com.microsoft.Gelu`, `local.f:variant`.
fn operator(n: &NodeProto) -> String {
    let mut out = String::new();
    if !n.domain().is_empty() {
        let plain = n.domain().split('.').all(is_identifier);
        out = if plain {
            n.domain().to_owned()
        } else {
            quoted(n.domain().as_bytes())
        };
        out.push('.');
    }
    out.push_str(&if is_identifier(n.op_type()) {
        n.op_type().to_owned()
    } else {
        quoted(n.op_type().as_bytes())
    });
    if let Some(o) = n.overload.as_ref().filter(|o| !o.is_empty()) {
        out.push(':');
        out.push_str(&name(o));
    }
    out
}

fn pairs(entries: &[StringStringEntryProto], between: &str) -> Vec<String> {
    let each = entries.iter().map(|e| {
        let (k, v) = (quoted(e.key().as_bytes()), quoted(e.value().as_bytes()));
        format!("{k}{between}{v}")
    });
    each.collect()
}
