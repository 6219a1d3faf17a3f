//! The header of a model, and local functions.

use onnx_quant_proto::{FunctionProto, ModelProto, OperatorSetIdProto, StringStringEntryProto};

use super::super::lex::Kind;
use super::{Parsed, Parser};

impl Parser {
    /// `<ir_version: 10, opset_import: ["" : 21], …>`; a missing header means IR version 10 and opset 21.
    pub(super) fn header(&mut self) -> Parsed<ModelProto> {
        let mut m = ModelProto::default();
        if !self.take('<') {
            m.ir_version = Some(10);
            m.opset_import = vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(21),
            }];
            return Ok(m);
        }
        self.list('>', |p| {
            let key = p.name()?;
            p.expect(':')?;
            match key.as_str() {
                "ir_version" => m.ir_version = Some(p.integer()?),
                "model_version" => m.model_version = Some(p.integer()?),
                "opset_import" => m.opset_import = p.imports()?,
                "producer_name" => m.producer_name = Some(p.string()?),
                "producer_version" => m.producer_version = Some(p.string()?),
                "domain" => m.domain = Some(p.string()?),
                "doc_string" => m.doc_string = Some(p.string()?),
                "metadata_props" => m.metadata_props = p.pairs()?,
                "extra" => p.residue(&mut m)?,
                _ => return p.error_before(format!("there is no header entry `{key}`")),
            }
            Ok(())
        })?;
        Ok(m)
    }

    fn imports(&mut self) -> Parsed<Vec<OperatorSetIdProto>> {
        self.expect('[')?;
        self.list(']', |p| {
            let domain = Some(p.string()?);
            p.expect(':')?;
            let version = Some(p.integer()?);
            Ok(OperatorSetIdProto { domain, version })
        })
    }

    fn pairs(&mut self) -> Parsed<Vec<StringStringEntryProto>> {
        self.expect('[')?;
        self.list(']', |p| {
            let key = Some(p.string()?);
            p.expect(':')?;
            let value = Some(p.string()?);
            Ok(StringStringEntryProto { key, value })
        })
    }

    /// `<domain: "d", opset_import: […]> f <attribute, attribute = default> (x) => (y) { … }`
    pub(super) fn function(&mut self) -> Parsed<FunctionProto> {
        let mut f = FunctionProto::default();
        self.expect('<')?;
        self.list('>', |p| {
            let key = p.name()?;
            p.expect(':')?;
            match key.as_str() {
                "domain" => f.domain = Some(p.string()?),
                "overload" => f.overload = Some(p.string()?),
                "opset_import" => f.opset_import = p.imports()?,
                _ => return p.error_before(format!("a function has no entry `{key}`")),
            }
            Ok(())
        })?;
        f.name = Some(self.name()?);
        self.residue(&mut f)?;
        if self.take('<') {
            self.list('>', |p| {
                if matches!(p.peek_second(), Kind::Sign(':' | '=')) {
                    f.attribute_proto.push(p.attribute()?);
                } else {
                    f.attribute.push(p.name()?);
                }
                Ok(())
            })?;
        }
        self.expect('(')?;
        f.input = self.list(')', Self::name)?;
        self.expect_arrow()?;
        self.expect('(')?;
        f.output = self.list(')', Self::name)?;
        self.expect('{')?;
        f.node = self.nodes()?;
        Ok(f)
    }
}
