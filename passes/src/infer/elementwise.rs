//! Operators that keep the shape of their input or broadcast several.

use onnx_quant_ir::DataType;

use super::fact::{Dim, Fact, broadcast};
use super::{Op, type_attr};

pub(super) fn rule(op: &Op<'_>, name: &str) -> Option<Vec<Fact>> {
    if keeps_shape(name) {
        let mut fact = Fact::new(op.dtype(0), op.shape(0).map(<[Dim]>::to_vec));
        if matches!(name, "Identity") {
            fact = op.input(0)?.clone();
        }
        return Some(vec![fact]);
    }
    match name {
        "Add" | "Sub" | "Mul" | "Div" => {
            let fact = broadcast_all(op, 0, op.dtype(0).or(op.dtype(1)));
            Some(vec![lists(op, name).unwrap_or(fact)])
        }
        "Mod" | "Pow" | "Min" | "Max" | "Sum" | "Mean" | "And" | "Or" | "Xor" | "BitwiseAnd"
        | "BitwiseOr" | "BitwiseXor" | "BitShift" => Some(vec![broadcast_all(op, 0, op.dtype(0))]),
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            Some(vec![broadcast_all(op, 0, Some(DataType::Bool))])
        }
        "Where" => Some(vec![broadcast_all(op, 0, op.dtype(1).or(op.dtype(2)))]),
        "IsNaN" | "IsInf" => Some(vec![Fact::new(
            Some(DataType::Bool),
            op.shape(0).map(<[Dim]>::to_vec),
        )]),
        "Cast" | "CastLike" => Some(vec![cast(op, name)]),
        "EyeLike" | "Bernoulli" | "RandomNormalLike" | "RandomUniformLike" => {
            Some(vec![Fact::new(
                type_attr(op, "dtype").or(op.dtype(0)),
                op.shape(0).map(<[Dim]>::to_vec),
            )])
        }
        "QuantizeLinear" => Some(vec![Fact::new(
            op.dtype(2)
                .or_else(|| type_attr(op, "output_dtype"))
                .or(Some(DataType::Uint8).filter(|_| op.input(2).is_none())),
            op.shape(0).map(<[Dim]>::to_vec),
        )]),
        "DequantizeLinear" => Some(vec![Fact::new(
            type_attr(op, "output_dtype").or(op.dtype(1)),
            op.shape(0).map(<[Dim]>::to_vec),
        )]),
        "DynamicQuantizeLinear" => Some(vec![
            Fact::new(Some(DataType::Uint8), op.shape(0).map(<[Dim]>::to_vec)),
            Fact::new(Some(DataType::Float), Some(vec![])),
            Fact::new(Some(DataType::Uint8), Some(vec![])),
        ]),
        "Dropout" => {
            // The mask had the type of the data before opset 10.
            let mask = op.dtype(0).filter(|_| op.opset < 10);
            Some(vec![
                Fact::new(op.dtype(0), op.shape(0).map(<[Dim]>::to_vec)),
                Fact::new(
                    mask.or(Some(DataType::Bool)),
                    op.shape(0).map(<[Dim]>::to_vec),
                ),
            ])
        }
        _ => None,
    }
}

/// One output of the type and shape of the first input.
fn keeps_shape(name: &str) -> bool {
    matches!(
        name,
        "Abs"
            | "Acos"
            | "Acosh"
            | "Asin"
            | "Asinh"
            | "Atan"
            | "Atanh"
            | "BitwiseNot"
            | "Ceil"
            | "Celu"
            | "Clip"
            | "Cos"
            | "Cosh"
            | "CumSum"
            | "Elu"
            | "Erf"
            | "Exp"
            | "Floor"
            | "Gelu"
            | "GroupNormalization"
            | "HardSigmoid"
            | "HardSwish"
            | "Hardmax"
            | "Identity"
            | "InstanceNormalization"
            | "LRN"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "LpNormalization"
            | "MeanVarianceNormalization"
            | "Mish"
            | "Neg"
            | "Not"
            | "PRelu"
            | "Reciprocal"
            | "Relu"
            | "ReverseSequence"
            | "RotaryEmbedding"
            | "Round"
            | "Scatter"
            | "ScatterElements"
            | "ScatterND"
            | "Selu"
            | "Shrink"
            | "Sigmoid"
            | "Sign"
            | "Sin"
            | "Sinh"
            | "Softmax"
            | "Softplus"
            | "Softsign"
            | "Sqrt"
            | "Swish"
            | "Tan"
            | "Tanh"
            | "ThresholdedRelu"
            | "Trilu"
    )
}

/// The broadcast of all inputs from a slot on.
fn broadcast_all(op: &Op<'_>, from: usize, dtype: Option<DataType>) -> Fact {
    let shapes: Option<Vec<&[Dim]>> = (from..op.inputs.len()).map(|i| op.shape(i)).collect();
    let shape = shapes.map(|s| s.into_iter().fold(Vec::new(), |acc, s| broadcast(&acc, s)));
    Fact::new(dtype, shape)
}

fn cast(op: &Op<'_>, name: &str) -> Fact {
    let to = match name {
        "CastLike" => op.dtype(1),
        _ => type_attr(op, "to"),
    };
    let mut fact = Fact::new(to, op.shape(0).map(<[Dim]>::to_vec));
    if matches!(to, Some(DataType::Int64 | DataType::Int32)) {
        fact.list = op.input(0).and_then(Fact::elements);
    }
    fact
}

/// Arithmetic on integer lists that are known in part.
fn lists(op: &Op<'_>, name: &str) -> Option<Fact> {
    let dtype = op
        .dtype(0)
        .filter(|t| matches!(t, DataType::Int64 | DataType::Int32))?;
    let (a, b) = (op.input(0)?.elements()?, op.input(1)?.elements()?);
    let n = a.len().max(b.len());
    if ![1, n].contains(&a.len()) || ![1, n].contains(&b.len()) {
        return None;
    }
    let scalar = op.shape(0)?.is_empty() && op.shape(1)?.is_empty();
    let at = |v: &[Dim], i: usize| v[if v.len() == 1 { 0 } else { i }].clone();
    let list = (0..n)
        .map(|i| match (name, at(&a, i), at(&b, i)) {
            ("Add", x, y) => x.add(&y),
            ("Sub", x, Dim::Known(0)) => x,
            ("Sub", x, Dim::Known(y)) => x.map(|x| x.checked_sub(y)),
            ("Mul", x, y) => x.mul(&y),
            ("Div", x, Dim::Known(1)) => x,
            ("Div", x, Dim::Known(y)) => x.map(|x| x.checked_div(y)),
            _ => Dim::Unknown,
        })
        .collect();
    Some(Fact::of_list(dtype, list, scalar))
}
