//! The header of a model, and local functions.

use onnx_quant_proto::{FunctionProto, ModelProto, OperatorSetIdProto};

use super::super::attribute;
use super::super::names::{name, quoted};
use super::super::types::{blob, residue};
use super::{Printer, pairs};

impl<'a> Printer<'a> {
    pub(super) fn header(&mut self, m: &ModelProto) {
        let mut lines = vec![format!("ir_version: {}", m.ir_version())];
        lines.push(format!("opset_import: {}", imports(&m.opset_import)));
        let texts = [
            ("producer_name", &m.producer_name),
            ("producer_version", &m.producer_version),
            ("domain", &m.domain),
            ("doc_string", &m.doc_string),
        ];
        for (key, value) in texts {
            lines.extend(
                value
                    .as_ref()
                    .map(|v| format!("{key}: {}", quoted(v.as_bytes()))),
            );
        }
        lines.extend(m.model_version.map(|v| format!("model_version: {v}")));
        if !m.metadata_props.is_empty() {
            let pairs = pairs(&m.metadata_props, " : ");
            lines.push(format!("metadata_props: [{}]", pairs.join(", ")));
        }
        let rest = ModelProto {
            training_info: m.training_info.clone(),
            configuration: m.configuration.clone(),
            ..ModelProto::default()
        };
        if rest != ModelProto::default() {
            lines.push(format!("extra: {}", blob(&rest)));
        }
        self.out.push_str("<\n  ");
        self.out.push_str(&lines.join(",\n  "));
        self.out.push_str("\n>\n");
    }

    pub(super) fn function(&mut self, f: &'a FunctionProto) {
        let mut head = vec![format!("domain: {}", quoted(f.domain().as_bytes()))];
        head.push(format!("opset_import: {}", imports(&f.opset_import)));
        if let Some(o) = &f.overload {
            head.push(format!("overload: {}", quoted(o.as_bytes())));
        }
        self.out
            .push_str(&format!("<{}>\n{}", head.join(", "), name(f.name())));
        let rest = FunctionProto {
            doc_string: f.doc_string.clone(),
            value_info: f.value_info.clone(),
            metadata_props: f.metadata_props.clone(),
            ..FunctionProto::default()
        };
        self.out.push_str(&residue(&rest, self.level));
        let mut first = true;
        for a in &f.attribute {
            self.out.push_str(if first { " <" } else { ", " });
            self.out.push_str(&name(a));
            first = false;
        }
        for a in &f.attribute_proto {
            self.out.push_str(if first { " <" } else { ", " });
            attribute::print(self, a);
            first = false;
        }
        self.out.push_str(if first { "" } else { ">" });
        let all = |names: &[String]| names.iter().map(|i| name(i)).collect::<Vec<_>>().join(", ");
        let signature = format!(" ({}) => ({})\n{{", all(&f.input), all(&f.output));
        self.out.push_str(&signature);
        self.nodes(&f.node);
        self.out.push_str("}\n");
    }
}

fn imports(sets: &[OperatorSetIdProto]) -> String {
    let each = sets
        .iter()
        .map(|o| format!("{} : {}", quoted(o.domain().as_bytes()), o.version()));
    format!("[{}]", each.collect::<Vec<_>>().join(", "))
}
