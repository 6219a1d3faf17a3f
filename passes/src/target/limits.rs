//! Operators that a runtime runs slower in integers than in float, by their size.

use onnx_quant_ir::{Model, NodeId, ValueId};

use crate::infer::Facts;

/// One such rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Convolutions with fewer input or output channels.
    ConvChannels(i64),
    /// Matrix products with a smaller K or N.
    MatMulSize(i64),
    /// Products of a matrix and a vector: one row or one column.
    MatrixVector,
}

impl Limit {
    /// Why the rule leaves the node out; `None` where it does not, or where its sizes are not known.
    pub fn refusal(
        self,
        model: &Model,
        facts: &Facts,
        node: NodeId,
        title: &str,
    ) -> Option<String> {
        let n = model.node(node);
        match self {
            Self::ConvChannels(least) if n.is("Conv") || n.is("ConvTranspose") => {
                let (inputs, outputs) = channels(model, node)?;
                (inputs < least || outputs < least).then(|| {
                    format!("has {inputs} input and {outputs} output channels: {title} runs fewer than {least} faster in float")
                })
            }
            Self::MatMulSize(least) if n.is("Gemm") || n.is("MatMul") => {
                let small = |(what, size): (&str, Option<i64>)| {
                    let size = size.filter(|&s| s < least)?;
                    Some(format!(
                        "its {what} is {size}: {title} runs products with fewer than {least} faster in float"
                    ))
                };
                let (_, k, columns) = product(model, facts, node);
                [("K", k), ("N", columns)].into_iter().find_map(small)
            }
            Self::MatrixVector if n.is("Gemm") || n.is("MatMul") => {
                let (rows, _, columns) = product(model, facts, node);
                (rows == Some(1) || columns == Some(1)).then(|| {
                    format!("is the product of a matrix and a vector, which {title} runs faster in float")
                })
            }
            _ => None,
        }
    }
}

/// Input and output channels of a convolution, by its weight.
fn channels(model: &Model, node: NodeId) -> Option<(i64, i64)> {
    let n = model.node(node);
    let shape = model.value(model.input(node, 1)?).shape()?;
    let (first, second) = (shape.first().copied()??, shape.get(1).copied()??);
    let group = n.attr_i("group").unwrap_or(1).max(1);
    Some(if n.is("Conv") {
        (second * group, first)
    } else {
        (first, second * group)
    })
}

/// Rows, inner size and columns of a matrix product, as far as they are known.
fn product(model: &Model, facts: &Facts, node: NodeId) -> (Option<i64>, Option<i64>, Option<i64>) {
    let n = model.node(node);
    let shape = |slot| {
        let v = model.input(node, slot);
        v.and_then(|v| dims(model, facts, v)).unwrap_or_default()
    };
    let (a, b) = (shape(0), shape(1));
    let flipped = |name| n.is("Gemm") && n.attr_i(name).unwrap_or(0) != 0;
    let at = |dims: &[Option<i64>], from_end: usize| {
        dims.len().checked_sub(from_end).and_then(|i| dims[i])
    };
    let (rows, ka) = if flipped("transA") {
        (at(&a, 1), at(&a, 2))
    } else {
        let rows = if a.len() == 1 { Some(1) } else { at(&a, 2) };
        (rows, at(&a, 1))
    };
    // Batches in front of a matrix with one row are rows too where the other side is one matrix.
    let rows = match b.len() {
        2 if a.len() > 2 => a[..a.len() - 1].iter().copied().product::<Option<i64>>(),
        _ => rows,
    };
    let (kb, columns) = if flipped("transB") {
        (at(&b, 1), at(&b, 2))
    } else if b.len() == 1 {
        (b[0], Some(1))
    } else {
        (at(&b, 2), at(&b, 1))
    };
    (rows, ka.or(kb), columns)
}

fn dims(model: &Model, facts: &Facts, value: ValueId) -> Option<Vec<Option<i64>>> {
    let known = facts.get(value).and_then(|f| f.shape.as_ref());
    known.map_or_else(
        || model.value(value).shape(),
        |shape| Some(shape.iter().map(|d| d.known()).collect()),
    )
}
