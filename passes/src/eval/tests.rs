//! Tests of the evaluator, operator by operator.

#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant_ir::node::{attr_i, attr_ints, attr_s};
use onnx_quant_ir::proto::{AttributeProto, NodeProto};
use onnx_quant_ir::{DataType, Node, Tensor};
use proptest::prelude::*;

use super::{EvalError, evaluate};

const LIMIT: usize = 1 << 20;

fn node(op: &str, attributes: Vec<AttributeProto>) -> Node {
    Node {
        proto: NodeProto {
            op_type: Some(op.to_owned()),
            attribute: attributes,
            ..NodeProto::default()
        },
        output_count: 1,
        ..Node::default()
    }
}

fn run(op: &str, attributes: Vec<AttributeProto>, inputs: &[&Tensor]) -> Result<Tensor, EvalError> {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let mut outputs = evaluate(&node(op, attributes), 18, &inputs, LIMIT)?;
    Ok(outputs.remove(0))
}

fn ints(v: &[i64]) -> Tensor {
    Tensor::from_i64(&[v.len() as i64], v)
}

fn floats(v: &[f32]) -> Tensor {
    Tensor::from_f32(&[v.len() as i64], v)
}

fn iota(dims: &[i64]) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_i64(dims, &(0..n).collect::<Vec<_>>())
}

#[test]
fn integer_division_truncates_and_refuses_zero() {
    let q = run("Div", vec![], &[&ints(&[-7, 7, -8]), &ints(&[2, -2, 3])]).unwrap();
    assert_eq!(q.to_i64().unwrap(), [-3, -3, -2]);
    let zero = run("Div", vec![], &[&ints(&[1]), &ints(&[0])]);
    assert!(matches!(zero, Err(EvalError::Invalid { .. })), "{zero:?}");
}

#[test]
fn integers_wrap_at_the_width_of_their_type() {
    let a = Tensor::from_raw(DataType::Int8, &[2], vec![127u8, 0x80]);
    let b = Tensor::from_raw(DataType::Int8, &[2], vec![1u8, 0xff]);
    let sum = run("Add", vec![], &[&a, &b]).unwrap();
    assert_eq!(sum.to_i64().unwrap(), [-128, 127]);
}

#[test]
fn mod_follows_the_sign_that_the_attribute_says() {
    let (a, b) = (ints(&[-4, 7, 5]), ints(&[3, -3, 8]));
    let floor = run("Mod", vec![], &[&a, &b]).unwrap();
    assert_eq!(floor.to_i64().unwrap(), [2, -2, 5]);
    let c = run("Mod", vec![attr_i("fmod", 1)], &[&a, &b]).unwrap();
    assert_eq!(c.to_i64().unwrap(), [-1, 1, 5]);
}

#[test]
fn slices_clamp_and_run_backwards() {
    let x = iota(&[2, 5]);
    let back = run(
        "Slice",
        vec![],
        &[
            &x,
            &ints(&[-1]),
            &ints(&[i64::MIN]),
            &ints(&[1]),
            &ints(&[-2]),
        ],
    )
    .unwrap();
    assert_eq!(back.dims(), [2, 3]);
    assert_eq!(back.to_i64().unwrap(), [4, 2, 0, 9, 7, 5]);
    let old = vec![
        attr_ints("starts", &[1]),
        attr_ints("ends", &[99]),
        attr_ints("axes", &[0]),
    ];
    let tail = run("Slice", old, &[&x]).unwrap();
    assert_eq!(tail.to_i64().unwrap(), [5, 6, 7, 8, 9]);
}

#[test]
fn gather_takes_negative_indices_and_refuses_those_outside() {
    let x = iota(&[3, 2]);
    let rows = run("Gather", vec![], &[&x, &ints(&[-1, 0])]).unwrap();
    assert_eq!(rows.to_i64().unwrap(), [4, 5, 0, 1]);
    let outside = run("Gather", vec![], &[&x, &ints(&[3])]);
    assert!(matches!(outside, Err(EvalError::Invalid { .. })));
}

#[test]
fn reshape_knows_zero_minus_one_and_allowzero() {
    let x = iota(&[2, 6]);
    let y = run("Reshape", vec![], &[&x, &ints(&[0, -1, 3])]).unwrap();
    assert_eq!(y.dims(), [2, 2, 3]);
    let empty = Tensor::from_f32(&[0, 3], &[]);
    let z = run(
        "Reshape",
        vec![attr_i("allowzero", 1)],
        &[&empty, &ints(&[3, 0])],
    )
    .unwrap();
    assert_eq!(z.dims(), [3, 0]);
    assert!(run("Reshape", vec![], &[&x, &ints(&[5, -1])]).is_err());
}

#[test]
fn casts_truncate_and_refuse_what_has_no_counterpart() {
    let to = |t: DataType| vec![attr_i("to", t as i64)];
    let x = floats(&[-1.9, 2.5]);
    let y = run("Cast", to(DataType::Int64), &[&x]).unwrap();
    assert_eq!(y.to_i64().unwrap(), [-1, 2]);
    for bad in [f32::NAN, 300.0, -1.0] {
        assert!(run("Cast", to(DataType::Uint8), &[&floats(&[bad])]).is_err());
    }
    let half = run("Cast", to(DataType::Float16), &[&floats(&[2049.0])]).unwrap();
    assert_eq!(half.to_f32().unwrap(), [2048.0]);
}

#[test]
fn halves_are_computed_in_single_and_rounded_once() {
    let h = |v: &[f32]| Tensor::from_f32_as(DataType::Float16, &[v.len() as i64], v).unwrap();
    let y = run("Add", vec![], &[&h(&[2048.0]), &h(&[1.5])]).unwrap();
    assert_eq!(y.dtype(), DataType::Float16);
    assert_eq!(y.to_f32().unwrap(), [2050.0]);
}

#[test]
fn split_pads_and_reductions() {
    let mut split = node("Split", vec![attr_i("axis", 1), attr_i("num_outputs", 2)]);
    split.output_count = 2;
    let parts = evaluate(&split, 18, &[Some(&iota(&[1, 5]))], LIMIT).unwrap();
    assert_eq!(parts[1].to_i64().unwrap(), [3, 4]);
    let padded = run("Pad", vec![], &[&ints(&[1, 2, 3]), &ints(&[-1, 2])]).unwrap();
    assert_eq!(padded.to_i64().unwrap(), [2, 3, 0, 0]);
    let reflect = run(
        "Pad",
        vec![attr_s("mode", "reflect")],
        &[&ints(&[1, 2, 3]), &ints(&[1, 0])],
    );
    assert!(matches!(reflect, Err(EvalError::Unsupported { .. })));
    let sum = run(
        "ReduceSum",
        vec![attr_i("keepdims", 0)],
        &[&iota(&[2, 3]), &ints(&[0])],
    )
    .unwrap();
    assert_eq!(sum.to_i64().unwrap(), [3, 5, 7]);
    let none = vec![attr_i("noop_with_empty_axes", 1)];
    let same = run("ReduceSum", none, &[&iota(&[2, 3]), &ints(&[])]).unwrap();
    assert_eq!(same.dims(), [2, 3]);
}

#[test]
fn sizes_are_bounded() {
    let huge = run(
        "Expand",
        vec![],
        &[&floats(&[0.0]), &ints(&[1 << 40, 1 << 40])],
    );
    assert!(matches!(huge, Err(EvalError::TooLarge { .. })), "{huge:?}");
    let range = run(
        "Range",
        vec![],
        &[&ints(&[0]), &ints(&[i64::MAX]), &ints(&[1])],
    );
    assert!(
        matches!(range, Err(EvalError::TooLarge { .. })),
        "{range:?}"
    );
}

/// Every operator that the evaluator knows, for the test that nothing panics.
const OPS: &[&str] = &[
    "Identity",
    "Shape",
    "Size",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Tile",
    "Slice",
    "Concat",
    "Split",
    "Gather",
    "GatherElements",
    "GatherND",
    "ScatterND",
    "ScatterElements",
    "NonZero",
    "ConstantOfShape",
    "Range",
    "Pad",
    "Trilu",
    "OneHot",
    "EyeLike",
    "ReduceSum",
    "ReduceMax",
    "ReduceMean",
    "ArgMax",
    "CumSum",
    "MatMul",
    "Gemm",
    "Add",
    "Div",
    "Mod",
    "Pow",
    "Min",
    "Equal",
    "And",
    "Not",
    "IsNaN",
    "Cast",
    "Where",
    "Clip",
    "Neg",
    "Sign",
    "Sqrt",
    "Erf",
];

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let dims = prop::collection::vec(0i64..4, 0..4);
    (dims, 0usize..3, any::<u64>()).prop_map(|(dims, kind, seed)| {
        let n: i64 = dims.iter().product();
        let value = |i: i64| (seed.wrapping_mul(i as u64 + 1) >> 40) as i64 % 7 - 3;
        let all: Vec<i64> = (0..n).map(value).collect();
        match kind {
            0 => Tensor::from_i64(&dims, &all),
            1 => Tensor::from_f32(&dims, &all.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            _ => {
                let bits: Vec<u8> = all.iter().map(|&x| u8::from(x > 0)).collect();
                Tensor::from_raw(DataType::Bool, &dims, bits)
            }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the inputs: an error or tensors whose data fits their shapes.
    #[test]
    fn nothing_panics(
        op in prop::sample::select(OPS),
        inputs in prop::collection::vec(any_tensor(), 0..4),
        axis in -4i64..4,
        list in prop::collection::vec(-3i64..5, 0..4),
    ) {
        let attributes = vec![
            attr_i("axis", axis),
            attr_i("to", 7),
            attr_i("batch_dims", axis.abs()),
            attr_ints("axes", &list),
        ];
        let inputs: Vec<_> = inputs.iter().map(Some).collect();
        if let Ok(outputs) = evaluate(&node(op, attributes), 18, &inputs, LIMIT) {
            for t in outputs {
                prop_assert!(t.validate().is_ok(), "{op}: {:?}", t.validate());
            }
        }
    }

    /// Single-precision arithmetic is that of the machine, through every broadcast of a scalar.
    #[test]
    fn floats_are_ieee(x in any::<f32>(), y in any::<f32>()) {
        type Function = fn(f32, f32) -> f32;
        let pairs: [(&str, Function); 4] = [
            ("Add", |a, b| a + b),
            ("Sub", |a, b| a - b),
            ("Mul", |a, b| a * b),
            ("Div", |a, b| a / b),
        ];
        for (op, f) in pairs {
            let z = run(op, vec![], &[&floats(&[x]), &Tensor::from_f32(&[], &[y])]).unwrap();
            let (got, want) = (z.to_f32().unwrap()[0], f(x, y));
            prop_assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()));
        }
    }

    /// A slice holds what indexing step by step gives.
    #[test]
    fn slices_are_steps(n in 0i64..7, start in -9i64..9, end in -9i64..9, step in -3i64..4) {
        prop_assume!(step != 0);
        let x: Vec<i64> = (0..n).collect();
        let got = run(
            "Slice",
            vec![],
            &[&ints(&x), &ints(&[start]), &ints(&[end]), &ints(&[0]), &ints(&[step])],
        ).unwrap();
        let wrap = |i: i64| if i < 0 { i + n } else { i };
        let (mut want, mut i) = (Vec::new(), wrap(start));
        i = if step > 0 { i.clamp(0, n) } else { i.clamp(-1, n - 1) };
        let stop = wrap(end);
        while (step > 0 && i < stop.min(n)) || (step < 0 && i > stop.max(-1)) {
            want.push(i);
            i += step;
        }
        prop_assert_eq!(got.to_i64().unwrap(), want);
    }
}
