//! Attributes.

use onnx_quant_proto::attribute_proto::AttributeType;
use onnx_quant_proto::{AttributeProto, GraphProto, TensorProto};

use super::super::attribute::KINDS;
use super::super::lex::Kind;
use super::super::literal::Literal;
use super::{Parsed, Parser, types};

/// One value of an attribute or of its list.
enum Item {
    Number(String),
    Text(Vec<u8>),
    Tensor(TensorProto),
    Graph(GraphProto),
}

impl Parser {
    /// `name = value` or `name: type = value`.
    pub(super) fn attribute(&mut self) -> Parsed<AttributeProto> {
        let mut a = AttributeProto {
            name: Some(self.name()?),
            ..AttributeProto::default()
        };
        let mut declared = None;
        if self.take(':') {
            let word = self.name()?;
            declared = KINDS.iter().find(|k| k.1 == word).map(|k| k.0);
            if declared.is_none() {
                return self.error_before(format!("`{word}` is not a type of attributes"));
            }
        }
        self.expect('=')?;
        match (self.peek(), declared) {
            (Kind::Sign('$'), None) => {
                self.residue(&mut a)?;
                return Ok(a);
            }
            (Kind::Sign('@'), kind) => {
                self.next();
                a.ref_attr_name = Some(self.name()?);
                a.r#type = Some(kind.unwrap_or(AttributeType::Undefined) as i32);
                return Ok(a);
            }
            (_, Some(AttributeType::TypeProto)) => {
                a.r#type = Some(AttributeType::TypeProto as i32);
                a.tp = Some(self.ty()?);
            }
            (Kind::Sign('['), _) => {
                self.next();
                let items = self.list(']', Self::item)?;
                self.fill_list(&mut a, items, declared)?;
            }
            _ => {
                let item = self.item()?;
                self.fill(&mut a, item, declared)?;
            }
        }
        self.residue(&mut a)?;
        Ok(a)
    }

    fn item(&mut self) -> Parsed<Item> {
        if self.at_graph() && !self.at_type() {
            return Ok(Item::Graph(self.graph()?));
        }
        if self.at_type() {
            return Ok(Item::Tensor(self.tensor()?));
        }
        Ok(match self.literal()? {
            Literal::Number(n) => Item::Number(n),
            Literal::Text(t) => Item::Text(t),
        })
    }

    /// `float[2] "name" {1, 2}`, the name optional, `=` before a generator.
    fn tensor(&mut self) -> Parsed<TensorProto> {
        let ty = self.ty()?;
        let Some((element, dims)) = types::constant_shape(&ty) else {
            return self.error_before("a tensor needs a tensor type with a known shape");
        };
        let name = match self.peek() {
            Kind::Word(_) | Kind::Text(_) => Some(self.name()?),
            _ => None,
        };
        if !self.take('=') && *self.peek() != Kind::Sign('{') {
            return self.wanted("`{` or `=`");
        }
        let mut t = self.data(element, &dims)?;
        t.name = name;
        Ok(t)
    }

    fn fill(
        &mut self,
        a: &mut AttributeProto,
        item: Item,
        declared: Option<AttributeType>,
    ) -> Parsed<()> {
        let kind = match item {
            Item::Number(n) => match n.parse::<i64>() {
                Ok(i) if declared != Some(AttributeType::Float) => {
                    a.i = Some(i);
                    AttributeType::Int
                }
                _ => {
                    a.f = Some(self.float(&n)?);
                    AttributeType::Float
                }
            },
            Item::Text(t) => {
                a.s = Some(t.into());
                AttributeType::String
            }
            Item::Tensor(t) => {
                a.t = Some(t);
                AttributeType::Tensor
            }
            Item::Graph(g) => {
                a.g = Some(g);
                AttributeType::Graph
            }
        };
        self.agree(a, kind, declared)
    }

    fn fill_list(
        &mut self,
        a: &mut AttributeProto,
        items: Vec<Item>,
        declared: Option<AttributeType>,
    ) -> Parsed<()> {
        let Some(first) = items.first() else {
            return match declared {
                Some(kind) if kind.as_str_name().ends_with('S') => {
                    a.r#type = Some(kind as i32);
                    Ok(())
                }
                _ => self.error_before("an empty list needs a type: `name: ints = []`"),
            };
        };
        let kind = match first {
            Item::Number(_) => {
                let numbers = items.iter().map(|i| match i {
                    Item::Number(n) => n.parse::<i64>().ok(),
                    _ => None,
                });
                match numbers.collect::<Option<Vec<_>>>() {
                    Some(_) if declared == Some(AttributeType::Floats) => AttributeType::Floats,
                    Some(ints) => {
                        a.ints = ints;
                        AttributeType::Ints
                    }
                    None => AttributeType::Floats,
                }
            }
            Item::Text(_) => AttributeType::Strings,
            Item::Tensor(_) => AttributeType::Tensors,
            Item::Graph(_) => AttributeType::Graphs,
        };
        for item in items {
            match (item, kind) {
                (Item::Number(_), AttributeType::Ints) => {}
                (Item::Number(n), AttributeType::Floats) => {
                    let x = self.float(&n)?;
                    a.floats.push(x);
                }
                (Item::Text(t), AttributeType::Strings) => a.strings.push(t.into()),
                (Item::Tensor(t), AttributeType::Tensors) => a.tensors.push(t),
                (Item::Graph(g), AttributeType::Graphs) => a.graphs.push(g),
                _ => return self.error_before("the items of a list are of one type"),
            }
        }
        self.agree(a, kind, declared)
    }

    fn float(&mut self, text: &str) -> Parsed<f32> {
        text.parse()
            .or_else(|_| self.error_before(format!("`{text}` is not a number")))
    }

    fn agree(
        &mut self,
        a: &mut AttributeProto,
        kind: AttributeType,
        declared: Option<AttributeType>,
    ) -> Parsed<()> {
        a.r#type = Some(kind as i32);
        match declared {
            Some(d) if d != kind => {
                let (d, k) = (d.as_str_name(), kind.as_str_name());
                self.error_before(format!(
                    "the attribute is declared {d}, but its value is {k}"
                ))
            }
            _ => Ok(()),
        }
    }
}
