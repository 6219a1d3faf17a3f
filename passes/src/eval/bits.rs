//! Operators on the bits of integers, and the integer arithmetic that unpacking codes needs, without widening: a packed
//! weight has many elements.

use onnx_quant_ir::{DataType, Tensor};

use super::array::{Raw, Walk, broadcast_strides};
use super::{Ctx, EvalError, Outcome, shape, stored};

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let dtype = cx.opt(0).map(Tensor::dtype);
    let result = match op {
        "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => binary(cx, op),
        "BitwiseNot" => not(cx),
        "Add" if dtype == Some(DataType::Int32) => binary(cx, op),
        "Cast" if dtype == Some(DataType::Uint8) => match cx.node.attr_i("to") {
            Some(to) if to == DataType::Int32 as i64 => widen(cx),
            _ => return None,
        },
        _ => return None,
    };
    Some(result.map(|t| vec![t]))
}

/// An unsigned 8-bit tensor as INT32.
fn widen(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    cx.room(DataType::Int32, &x.dims)?;
    let bytes: Vec<u8> = x.data.iter().flat_map(|&b| [b, 0, 0, 0]).collect();
    Ok(Tensor::from_raw(DataType::Int32, &stored(&x.dims), bytes))
}

fn not(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    if !is_integer(x.dtype) {
        return Err(cx.unsupported("elements that are no integers"));
    }
    let bytes: Vec<u8> = x.data.iter().map(|b| !b).collect();
    Ok(Tensor::from_raw(x.dtype, &stored(&x.dims), bytes))
}

fn is_integer(dtype: DataType) -> bool {
    use DataType::{Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    matches!(
        dtype,
        Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64
    )
}

fn binary(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let (a, b) = (Raw::read(cx, 0)?, Raw::read(cx, 1)?);
    if a.dtype != b.dtype || !is_integer(a.dtype) {
        return Err(cx.unsupported("inputs that are not integers of one type"));
    }
    let out = shape::broadcast(&a.dims, &b.dims)
        .ok_or_else(|| cx.invalid(format!("{:?} and {:?} do not broadcast", a.dims, b.dims)))?;
    cx.room(a.dtype, &out)?;
    let bits = a.size as u32 * 8;
    if op == "BitShift" {
        use DataType::{Int8, Int16, Int32, Int64};
        if matches!(a.dtype, Int8 | Int16 | Int32 | Int64) {
            return Err(cx.unsupported("signed elements"));
        }
        let wide = |x: &[u8]| x.iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        if b.data.chunks(b.size).any(|s| wide(s) >= u64::from(bits)) {
            return Err(
                cx.invalid("a shift by the width of the type or more has no defined result")
            );
        }
    }
    let left = match (op, cx.node.attr_s("direction")) {
        ("BitShift", Some("LEFT")) => true,
        ("BitShift", Some("RIGHT")) => false,
        ("BitShift", _) => return Err(cx.invalid("`direction` is LEFT or RIGHT")),
        _ => false,
    };
    macro_rules! each {
        ($t:ty) => {{
            let f = |x: $t, y: $t| match op {
                "BitwiseAnd" => x & y,
                "BitwiseOr" => x | y,
                "BitwiseXor" => x ^ y,
                "Add" => x.wrapping_add(y),
                _ if left => x << y,
                _ => x >> y,
            };
            const N: usize = size_of::<$t>();
            apply(&a, &b, &out, |x, y| {
                f(<$t>::from_le_bytes(x), <$t>::from_le_bytes(y)).to_le_bytes() as [u8; N]
            })
        }};
    }
    let bytes = match a.size {
        1 => each!(u8),
        2 => each!(u16),
        4 => each!(u32),
        _ => each!(u64),
    };
    Ok(Tensor::from_raw(a.dtype, &stored(&out), bytes))
}

/// Applies `f` to each pair of elements of the broadcast of two arrays.
fn apply<const N: usize>(
    a: &Raw<'_>,
    b: &Raw<'_>,
    out: &[usize],
    f: impl Fn([u8; N], [u8; N]) -> [u8; N],
) -> Vec<u8> {
    let (x, y) = (a.data.as_chunks::<N>().0, b.data.as_chunks::<N>().0);
    // The last axis in a loop of its own: runs of `b` repeat for every run of `a`.
    let suffix = b.dims.len() <= a.dims.len() && a.dims.ends_with(&b.dims);
    if a.dims == out && (suffix || y.len() == 1) && !y.is_empty() {
        let rows = x.chunks(y.len());
        return rows
            .flat_map(|row| row.iter().zip(y).flat_map(|(&x, &y)| f(x, y)))
            .collect();
    }
    let (sa, sb) = (
        broadcast_strides(&a.dims, out),
        broadcast_strides(&b.dims, out),
    );
    Walk::new(out, &sa, 0)
        .zip(Walk::new(out, &sb, 0))
        .flat_map(|(i, j)| f(x[i], y[j]))
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::eval;
    use onnx_quant_ir::Node;
    use onnx_quant_ir::node::{attr_i, attr_s};
    use onnx_quant_ir::proto::{AttributeProto, NodeProto};

    fn run(
        op: &str,
        attribute: Vec<AttributeProto>,
        inputs: &[&Tensor],
    ) -> Result<Tensor, EvalError> {
        let node = Node {
            proto: NodeProto {
                op_type: Some(op.to_owned()),
                attribute,
                ..NodeProto::default()
            },
            ..Node::default()
        };
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|t| Some(*t)).collect();
        eval::evaluate(&node, 21, &inputs, 1 << 20).map(|mut all| all.remove(0))
    }

    fn bytes(dims: &[i64], data: &[u8]) -> Tensor {
        Tensor::from_raw(DataType::Uint8, dims, data.to_vec())
    }

    #[test]
    fn shifts_and_masks_broadcast() {
        let packed = bytes(&[2, 1], &[0b1110_0100, 0b0001_1011]);
        let shifts = bytes(&[4], &[0, 2, 4, 6]);
        let right = vec![attr_s("direction", "RIGHT")];
        let fields = run("BitShift", right, &[&packed, &shifts]).unwrap();
        assert_eq!(fields.dims(), [2, 4]);
        let codes = run("BitwiseAnd", vec![], &[&fields, &bytes(&[], &[3])]).unwrap();
        assert_eq!(codes.to_i64().unwrap(), [0, 1, 2, 3, 3, 2, 1, 0]);
        let left = vec![attr_s("direction", "LEFT")];
        let shifted = run(
            "BitShift",
            left,
            &[&bytes(&[2], &[255, 1]), &bytes(&[], &[7])],
        );
        assert_eq!(shifted.unwrap().to_i64().unwrap(), [128, 128]);
        let or = run(
            "BitwiseOr",
            vec![],
            &[&bytes(&[2], &[1, 2]), &bytes(&[2], &[4, 2])],
        );
        assert_eq!(or.unwrap().to_i64().unwrap(), [5, 2]);
        let xor = run(
            "BitwiseXor",
            vec![],
            &[&bytes(&[1], &[6]), &bytes(&[1], &[3])],
        );
        assert_eq!(xor.unwrap().to_i64().unwrap(), [5]);
        let not = run("BitwiseNot", vec![], &[&bytes(&[1], &[6])]);
        assert_eq!(not.unwrap().to_i64().unwrap(), [249]);
    }

    #[test]
    fn wide_integers() {
        let a = Tensor::from_raw(
            DataType::Uint32,
            &[1],
            0x8000_0001u32.to_le_bytes().to_vec(),
        );
        let b = Tensor::from_raw(DataType::Uint32, &[1], 31u32.to_le_bytes().to_vec());
        let right = vec![attr_s("direction", "RIGHT")];
        let shifted = run("BitShift", right, &[&a, &b]).unwrap();
        assert_eq!(shifted.to_i64().unwrap(), [1]);
        let and = run(
            "BitwiseAnd",
            vec![],
            &[
                &Tensor::from_i64(&[1], &[-2]),
                &Tensor::from_i64(&[1], &[7]),
            ],
        );
        assert_eq!(and.unwrap().to_i64().unwrap(), [6]);
        let sum = run(
            "Add",
            vec![],
            &[
                &Tensor::from_i32(&[2, 1], &[1, i32::MAX]),
                &Tensor::from_i32(&[2], &[1, -1]),
            ],
        );
        assert_eq!(
            sum.unwrap().to_i64().unwrap(),
            [2, 0, i64::from(i32::MIN), i64::from(i32::MAX) - 1]
        );
    }

    #[test]
    fn codes_become_indices() {
        let to = vec![attr_i("to", DataType::Int32 as i64)];
        let wide = run("Cast", to, &[&bytes(&[2], &[0, 255])]).unwrap();
        assert_eq!(
            (wide.dtype(), wide.to_i64().unwrap()),
            (DataType::Int32, vec![0, 255])
        );
    }

    #[test]
    fn what_has_no_defined_result_is_refused() {
        let right = || vec![attr_s("direction", "RIGHT")];
        let (x, eight) = (bytes(&[1], &[1]), bytes(&[1], &[8]));
        assert!(matches!(
            run("BitShift", right(), &[&x, &eight]),
            Err(EvalError::Invalid { .. })
        ));
        assert!(run("BitShift", vec![], &[&x, &x]).is_err());
        let signed = Tensor::from_i64(&[1], &[1]);
        assert!(run("BitShift", right(), &[&signed, &signed]).is_err());
        let float = Tensor::from_f32(&[1], &[1.0]);
        assert!(run("BitwiseAnd", vec![], &[&float, &float]).is_err());
        assert!(run("BitwiseAnd", vec![], &[&x, &signed]).is_err());
    }
}
