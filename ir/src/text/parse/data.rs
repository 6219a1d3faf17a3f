//! The data of tensors.

use onnx_quant_proto::TensorProto;

use super::super::lex::Kind;
use super::super::literal::{self, Literal};
use super::super::{generate, names};
use super::{Parsed, Parser};

impl Parser {
    /// The data of a tensor: a list in braces, `hex "…"`, `missing` or a generator with its arguments.
    pub(super) fn data(&mut self, element: i32, dims: &[i64]) -> Parsed<TensorProto> {
        let start = self.at;
        let dtype = names::element_type(&names::element_name(element));
        let made = if self.take('{') {
            let items = self.list('}', Self::literal)?;
            match dtype {
                Some(t) => literal::build(t, dims, &items).and_then(|t| counted(t, items.len())),
                None => Err("elements of an unknown type are given as hex".to_owned()),
            }
        } else {
            self.generated(element, dims)?
        };
        match made {
            Ok(mut t) => {
                self.residue(&mut t)?;
                Ok(t)
            }
            Err(message) => {
                self.at = start;
                self.error(message)
            }
        }
    }

    fn generated(&mut self, element: i32, dims: &[i64]) -> Parsed<Result<TensorProto, String>> {
        let Kind::Word(generator) = self.next() else {
            self.at -= 1;
            return self.wanted("a list in braces or a generator");
        };
        let empty = TensorProto {
            dims: dims.to_vec(),
            data_type: Some(element),
            ..TensorProto::default()
        };
        match generator.as_str() {
            "missing" => return Ok(Ok(empty)),
            "hex" => {
                let digits = self.string()?;
                let raw_data = names::unhex(digits.as_bytes()).map(bytes::Bytes::from);
                return match raw_data {
                    Some(_) => Ok(Ok(TensorProto { raw_data, ..empty })),
                    None => self.error_before("hex data is pairs of hexadecimal digits"),
                };
            }
            _ => {}
        }
        let args = if self.take('(') {
            self.list(')', Self::argument)?
        } else {
            Vec::new()
        };
        let Some(dtype) = names::element_type(&names::element_name(element)) else {
            return Ok(Err("an unknown type cannot be made up".to_owned()));
        };
        Ok(generate::tensor(&generator, &args, dtype, dims))
    }

    fn argument(&mut self) -> Parsed<f64> {
        match self.literal()? {
            Literal::Number(n) => n
                .parse()
                .or_else(|_| self.error_before(format!("`{n}` is not a number"))),
            Literal::Text(_) => self.error_before("a number is expected"),
        }
    }

    pub(super) fn literal(&mut self) -> Parsed<Literal> {
        match self.next() {
            Kind::Number(n) => Ok(Literal::Number(n)),
            Kind::Text(t) => Ok(Literal::Text(t)),
            Kind::Word(w) if matches!(w.as_str(), "inf" | "nan" | "true" | "false") => {
                Ok(Literal::Number(w))
            }
            _ => {
                self.at -= 1;
                self.wanted("a number or a string")
            }
        }
    }
}

/// Checks the number of listed elements against the shape.
fn counted(t: TensorProto, found: usize) -> Result<TensorProto, String> {
    let needed = t
        .dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    if needed == Some(found) {
        return Ok(t);
    }
    Err(format!(
        "{found} elements are listed for shape {:?}",
        t.dims
    ))
}
