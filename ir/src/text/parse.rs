//! Tokens → `ModelProto`: a recursive descent with one function for each part of the syntax.

mod attribute;
mod data;
mod header;
mod types;

use onnx_quant_proto::{GraphProto, Message, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use super::lex::{Kind, Token, tokens};
use super::{TextError, names};

/// Types, graphs and lists nest at most this deep.
const MAX_DEPTH: usize = 40;

type Parsed<T> = Result<T, TextError>;

/// A whole model.
pub(super) fn model(source: &str) -> Parsed<ModelProto> {
    let mut p = Parser {
        tokens: tokens(source)?,
        at: 0,
        depth: 0,
    };
    let mut model = p.header()?;
    model.graph = Some(p.graph()?);
    while p.peek() != &Kind::End {
        let f = p.function()?;
        model.functions.push(f);
    }
    Ok(model)
}

/// The tokens and the place in them.
struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn token(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &Kind {
        &self.token().kind
    }

    fn peek_second(&self) -> &Kind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    fn next(&mut self) -> Kind {
        let kind = self.peek().clone();
        self.at += 1;
        kind
    }

    fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        let t = self.token();
        Err(TextError::Syntax {
            line: t.line,
            column: t.column,
            message: message.into(),
        })
    }

    fn wanted<T>(&self, what: &str) -> Parsed<T> {
        self.error(format!(
            "{what} is expected, {} is found",
            self.token().shown()
        ))
    }

    /// An error at the token before.
    fn error_before<T>(&mut self, message: impl Into<String>) -> Parsed<T> {
        self.at = self.at.saturating_sub(1);
        self.error(message)
    }

    fn take(&mut self, sign: char) -> bool {
        let found = *self.peek() == Kind::Sign(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: char) -> Parsed<()> {
        if self.take(sign) {
            return Ok(());
        }
        self.wanted(&format!("`{sign}`"))
    }

    fn expect_arrow(&mut self) -> Parsed<()> {
        if *self.peek() == Kind::Arrow {
            self.at += 1;
            return Ok(());
        }
        self.wanted("`=>`")
    }

    /// A bare word or a string that is UTF-8.
    fn name(&mut self) -> Parsed<String> {
        match self.next() {
            Kind::Word(w) => Ok(w),
            Kind::Text(t) => match String::from_utf8(t) {
                Ok(s) => Ok(s),
                Err(_) => self.error_before("a name must be UTF-8"),
            },
            _ => {
                self.at -= 1;
                self.wanted("a name")
            }
        }
    }

    fn string(&mut self) -> Parsed<String> {
        match self.peek() {
            Kind::Text(_) => self.name(),
            _ => self.wanted("a string"),
        }
    }

    fn integer(&mut self) -> Parsed<i64> {
        match self.next() {
            Kind::Number(n) => match n.parse() {
                Ok(i) => Ok(i),
                Err(_) => self.error_before(format!("`{n}` is not a 64-bit integer")),
            },
            _ => {
                self.at -= 1;
                self.wanted("an integer")
            }
        }
    }

    /// Goes one level deeper.
    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return self.error(format!("nested more than {MAX_DEPTH} levels deep"));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// Items with commas between them, up to a closing sign; a comma may stand after the last.
    fn list<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut out = Vec::new();
        loop {
            if self.take(close) {
                return Ok(out);
            }
            out.push(item(self)?);
            if !self.take(',') && *self.peek() != Kind::Sign(close) {
                return self.wanted(&format!("`,` or `{close}`"));
            }
        }
    }

    /// `$"…"`, merged into a message; nothing where none stands here.
    fn residue<M: Message>(&mut self, message: &mut M) -> Parsed<()> {
        if !self.take('$') {
            return Ok(());
        }
        let Kind::Text(digits) = self.next() else {
            self.at -= 1;
            return self.wanted("an encoded message in quotes");
        };
        let Some(bytes) = names::unhex(&digits) else {
            return self.error_before("an encoded message is hexadecimal digits");
        };
        match message.merge(bytes::Bytes::from(bytes)) {
            Ok(()) => Ok(()),
            Err(e) => self.error_before(format!("the encoded message is damaged: {e}")),
        }
    }

    /// Whether a graph stands here: a name and then `(` or `$`.
    fn at_graph(&self) -> bool {
        matches!(self.peek(), Kind::Word(_) | Kind::Text(_))
            && matches!(self.peek_second(), Kind::Sign('(' | '$'))
    }

    fn graph(&mut self) -> Parsed<GraphProto> {
        self.deeper(|p| {
            let mut g = GraphProto {
                name: Some(p.name()?),
                ..GraphProto::default()
            };
            p.residue(&mut g)?;
            p.expect('(')?;
            let inputs = p.list(')', Self::declaration)?;
            p.expect_arrow()?;
            p.expect('(')?;
            let outputs = p.list(')', Self::declaration)?;
            let inner = if p.take('<') {
                p.list('>', Self::declaration)?
            } else {
                Vec::new()
            };
            for (info, tensor) in inputs {
                g.initializer.extend(tensor);
                g.input.push(info);
            }
            for (info, tensor) in outputs {
                if tensor.is_some() {
                    return p.error_before("an output has no initial value");
                }
                g.output.push(info);
            }
            for (info, tensor) in inner {
                match tensor {
                    Some(t) => g.initializer.push(t),
                    None => g.value_info.push(info),
                }
            }
            p.expect('{')?;
            g.node = p.nodes()?;
            Ok(g)
        })
    }

    /// Nodes up to the closing brace.
    fn nodes(&mut self) -> Parsed<Vec<NodeProto>> {
        let mut out = Vec::new();
        while !self.take('}') {
            out.push(self.node()?);
        }
        Ok(out)
    }

    fn node(&mut self) -> Parsed<NodeProto> {
        let mut n = NodeProto::default();
        if self.take('[') {
            n.name = Some(self.name()?);
            self.expect(']')?;
        }
        n.output = self.list('=', Self::name)?;
        let mut parts = vec![self.name()?];
        while self.take('.') {
            parts.push(self.name()?);
        }
        n.op_type = parts.pop();
        if !parts.is_empty() {
            n.domain = Some(parts.join("."));
        }
        if self.take(':') {
            n.overload = Some(self.name()?);
        }
        if self.take('<') {
            n.attribute = self.list('>', Self::attribute)?;
        }
        self.expect('(')?;
        n.input = self.list(')', |p| match p.peek() {
            Kind::Sign(',') => Ok(String::new()),
            _ => p.name(),
        })?;
        if n.attribute.is_empty() && self.take('<') {
            n.attribute = self.list('>', Self::attribute)?;
        }
        self.residue(&mut n)?;
        Ok(n)
    }

    /// A declared value, with its data where it is an initializer.
    fn declaration(&mut self) -> Parsed<(ValueInfoProto, Option<TensorProto>)> {
        let mut info = ValueInfoProto::default();
        if self.at_type() {
            info.r#type = Some(self.ty()?);
        }
        let name = self.name()?;
        info.name = Some(name.clone());
        if !self.take('=') {
            self.residue(&mut info)?;
            return Ok((info, None));
        }
        let Some((element, dims)) = info.r#type.as_ref().and_then(types::constant_shape) else {
            return self.error_before("an initializer needs a tensor type with a known shape");
        };
        let mut t = self.data(element, &dims)?;
        t.name = Some(name);
        Ok((info, Some(t)))
    }
}
