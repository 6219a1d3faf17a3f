//! Operators that make tensors, and those whose result sizes depend on data.

use onnx_quant_ir::DataType;

use super::fact::{Dim, Fact};
use super::{Op, type_attr};
use crate::eval::shape as formula;

pub(super) fn rule(op: &Op<'_>, name: &str) -> Option<Vec<Fact>> {
    Some(match name {
        "Constant" => vec![constant(op)],
        "ConstantOfShape" => {
            let value = op.node.attr_tensor("value");
            let dtype = value.map_or(DataType::Float, |t| t.dtype());
            vec![Fact::new(Some(dtype), sizes(op, 0))]
        }
        "RandomNormal" | "RandomUniform" => {
            let dims = op.node.attr_ints("shape")?;
            let shape = dims.iter().map(|&d| Dim::Known(d)).collect();
            let dtype = type_attr(op, "dtype").or(Some(DataType::Float));
            vec![Fact::new(dtype, Some(shape))]
        }
        "Range" => vec![Fact::new(op.dtype(0), Some(vec![range(op)]))],
        "OneHot" => vec![Fact::new(op.dtype(2), one_hot(op))],
        "NonZero" => {
            let rank = op
                .shape(0)
                .map_or(Dim::Unknown, |s| Dim::Known(s.len() as i64));
            vec![Fact::new(
                Some(DataType::Int64),
                Some(vec![rank, Dim::Unknown]),
            )]
        }
        "NonMaxSuppression" => vec![Fact::new(
            Some(DataType::Int64),
            Some(vec![Dim::Unknown, Dim::Known(3)]),
        )],
        "Compress" => {
            let shape = match (op.node.attr_i("axis"), op.shape(0)) {
                (None, _) => Some(vec![Dim::Unknown]),
                (Some(a), Some(x)) => {
                    let mut x = x.to_vec();
                    let a = formula::axis(a, x.len())?;
                    x[a] = Dim::Unknown;
                    Some(x)
                }
                _ => None,
            };
            vec![Fact::new(op.dtype(0), shape)]
        }
        "Unique" => vec![Fact::new(op.dtype(0), None)],
        "Multinomial" => vec![Fact::new(
            type_attr(op, "dtype").or(Some(DataType::Int32)),
            None,
        )],
        _ => return None,
    })
}

/// A constant too large or of too odd a kind to be evaluated.
fn constant(op: &Op<'_>) -> Fact {
    match op.node.attr_tensor("value") {
        Some(t) if t.validate().is_ok() => Fact::constant(t),
        _ => Fact::default(),
    }
}

/// A shape that an input computes.
fn sizes(op: &Op<'_>, slot: usize) -> Option<Vec<Dim>> {
    op.input(slot)?
        .elements()
        .or_else(|| match op.shape(slot)? {
            [Dim::Known(n)] => usize::try_from(*n)
                .ok()
                .filter(|&n| n < 64)
                .map(|n| vec![Dim::Unknown; n]),
            _ => None,
        })
}

fn range(op: &Op<'_>) -> Dim {
    let one = |slot: usize| match op.input(slot)?.elements()?.as_slice() {
        [d] => Some(d.clone()),
        _ => None,
    };
    match (one(0), one(1), one(2)) {
        (Some(Dim::Known(0)), Some(limit), Some(Dim::Known(1))) => limit,
        (Some(Dim::Known(a)), Some(Dim::Known(b)), Some(Dim::Known(d))) if d != 0 => {
            let (a, b, d) = (i128::from(a), i128::from(b), i128::from(d));
            let span = b - a;
            let n = span / d + i128::from(span % d != 0 && (span < 0) == (d < 0));
            i64::try_from(n.max(0)).map_or(Dim::Unknown, Dim::Known)
        }
        _ => Dim::Unknown,
    }
}

fn one_hot(op: &Op<'_>) -> Option<Vec<Dim>> {
    let mut x = op.shape(0)?.to_vec();
    let depth = op.input(1).and_then(Fact::elements);
    let depth = depth
        .and_then(|d| d.first().cloned())
        .unwrap_or(Dim::Unknown);
    let axis = formula::axis(op.node.attr_i("axis").unwrap_or(-1), x.len() + 1)?;
    x.insert(axis, depth);
    Some(x)
}
