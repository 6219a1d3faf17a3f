//! The tract engine on small models made here: Q/DQ against the formulas of `numerics`, refusals, and rewrites.
#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant::engine::TractEngine;
use onnx_quant_ir::engine::{Engine, EngineError, Observed, Request};
use onnx_quant_ir::node::{attr_i, attr_s};
use onnx_quant_ir::{DataType, Model, NodeSpec, Tensor, ValueId};
use onnx_quant_numerics::affine::{dequantize_reference, quantize_reference};
use onnx_quant_proto::{GraphProto, ModelProto, OperatorSetIdProto};
use proptest::prelude::*;

fn empty() -> Model {
    Model::from_proto(ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(22),
        }],
        graph: Some(GraphProto::default()),
        ..ModelProto::default()
    })
    .unwrap()
}

fn op(m: &mut Model, spec: NodeSpec, inputs: &[ValueId], output: &str) -> ValueId {
    m.add_op(Model::MAIN, spec, inputs, output)
}

fn output(m: &mut Model, value: ValueId) {
    m.make_graph_output(value, None);
}

fn request(feed: &[(&str, &Tensor)], observe: &[&str]) -> Request {
    Request {
        feed: feed
            .iter()
            .map(|(n, t)| {
                let dims = t.dims().iter().map(|&d| d as usize).collect();
                ((*n).to_owned(), t.dtype(), dims)
            })
            .collect(),
        observe: observe.iter().map(|&n| n.to_owned()).collect(),
        ..Request::default()
    }
}

fn run(m: &Model, feed: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
    let session = TractEngine.prepare(m, &request(feed, &[]))?;
    let tensors: Vec<Tensor> = feed.iter().map(|(_, t)| (*t).clone()).collect();
    session.run(&tensors, None)
}

fn any_f32() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        (-600i32..600).prop_map(|half_steps| half_steps as f32 * 0.5),
        -300f32..300.0,
    ]
}

/// Bits, with one NaN for all.
fn bits(x: f32) -> u32 {
    if x.is_nan() {
        f32::NAN.to_bits()
    } else {
        x.to_bits()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn q_and_dq_equal_the_reference(
        x in proptest::collection::vec(any_f32(), 24),
        scales in proptest::collection::vec(prop_oneof![Just(1f32), Just(0.1), 1e-3f32..10.0], 3),
        zero_points in proptest::collection::vec(any::<u8>(), 3),
        signed in any::<bool>(),
        per_axis in any::<bool>(),
        runtime_scale in any::<bool>(),
    ) {
        let code = if signed { DataType::Int8 } else { DataType::Uint8 };
        let (qmin, qmax) = if signed { (-128, 127) } else { (0, 255) };
        let zero = |p: usize| if signed { i32::from(zero_points[p] as i8) } else { i32::from(zero_points[p]) };
        let count = if per_axis { 3 } else { 1 };
        let dims: &[i64] = if per_axis { &[3] } else { &[] };
        let scale = Tensor::from_f32(dims, &scales[..count]);
        let mut m = empty();
        let input = m.add_graph_input(Model::MAIN, "x", None);
        let s = if runtime_scale {
            m.add_graph_input(Model::MAIN, "s", None)
        } else {
            m.add_initializer(Model::MAIN, "s", scale.clone())
        };
        let zero_tensor = Tensor::from_raw(code, dims, zero_points[..count].to_vec());
        let z = m.add_initializer(Model::MAIN, "z", zero_tensor);
        let q = op(&mut m, NodeSpec::new("QuantizeLinear"), &[input, s, z], "q");
        let y = op(&mut m, NodeSpec::new("DequantizeLinear"), &[q, s, z], "y");
        output(&mut m, y);
        let fused = m.clone();
        output(&mut m, q);
        let x_tensor = Tensor::from_f32(&[2, 3, 4], &x);
        let mut feed = vec![("x", &x_tensor)];
        if runtime_scale {
            feed.push(("s", &scale));
        }
        let apart = run(&m, &feed).unwrap();
        let together = run(&fused, &feed).unwrap();
        let real = apart[0].to_f32().unwrap();
        let codes = apart[1].to_i64().unwrap();
        prop_assert_eq!(apart[1].dtype(), code);
        let fused = together[0].to_f32().unwrap();
        for (i, &x) in x.iter().enumerate() {
            let p = if per_axis { i / 4 % 3 } else { 0 };
            let expected = quantize_reference(x, scales[p], zero(p), qmin, qmax);
            prop_assert_eq!(codes[i], i64::from(expected));
            let expected = bits(dequantize_reference(expected, scales[p], zero(p)));
            prop_assert_eq!(bits(real[i]), expected);
            prop_assert_eq!(bits(fused[i]), expected);
        }
    }
}

#[test]
fn codes_may_be_inputs() {
    let mut m = empty();
    let q = m.add_graph_input(Model::MAIN, "q", None);
    let s = m.add_initializer(Model::MAIN, "s", Tensor::from_f32(&[], &[0.5]));
    let y = op(&mut m, NodeSpec::new("DequantizeLinear"), &[q, s], "y");
    output(&mut m, y);
    let codes = Tensor::from_raw(DataType::Int4, &[3], vec![0xf1u8, 0x08]);
    let found = run(&m, &[("q", &codes)]).unwrap();
    assert_eq!(found[0].to_f32().unwrap(), [0.5, -0.5, -4.0]);
}

#[test]
fn a_node_may_be_called_like_an_input() {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let y = op(&mut m, NodeSpec::new("Relu").name("x"), &[x], "y");
    output(&mut m, y);
    let found = run(&m, &[("x", &Tensor::from_f32(&[1], &[-1.0]))]).unwrap();
    assert_eq!(found[0].to_f32().unwrap(), [0.0]);
}

#[test]
fn unknown_operators_are_named() {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let spec = NodeSpec::new("Det").name("the determinant");
    let y = op(&mut m, spec, &[x], "y");
    output(&mut m, y);
    let error = run(&m, &[("x", &Tensor::from_f32(&[2, 2], &[1.0; 4]))]).unwrap_err();
    let EngineError::Unsupported {
        op, node, advice, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((op.as_str(), node.as_str()), ("Det", "the determinant"));
    assert!(advice.contains("weights only"));
}

#[test]
fn types_that_tract_lacks_are_decoded_before_it_sees_them() {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let codes = Tensor::from_raw(DataType::Float8e4m3fn, &[2], vec![1u8, 2]);
    let w = m.add_initializer(Model::MAIN, "w", codes);
    let s = m.add_initializer(Model::MAIN, "s", Tensor::from_f32(&[], &[1.0]));
    let spec = NodeSpec::new("DequantizeLinear").name("decode");
    let w = op(&mut m, spec, &[w, s], "real");
    let y = op(&mut m, NodeSpec::new("Add"), &[x, w], "y");
    output(&mut m, y);
    let result = run(&m, &[("x", &Tensor::from_f32(&[2], &[1.0; 2]))]).unwrap();
    // The smallest subnormal numbers of E4M3 are multiples of 2^-9.
    let step = 2f32.powi(-9);
    assert_eq!(result[0].to_f32().unwrap(), [1.0 + step, 1.0 + 2.0 * step]);
}

#[test]
fn failures_inside_tract_name_the_node() {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let w = m.add_initializer(Model::MAIN, "w", Tensor::from_f32(&[3, 1], &[1.0; 3]));
    let y = op(
        &mut m,
        NodeSpec::new("MatMul").name("product"),
        &[x, w],
        "y",
    );
    output(&mut m, y);
    let error = run(&m, &[("x", &Tensor::from_f32(&[2, 2], &[1.0; 4]))]).unwrap_err();
    assert!(
        matches!(&error, EngineError::Unsupported { node, .. } if node == "product"),
        "{error}"
    );
}

#[test]
fn what_tract_computes_wrongly_is_refused() {
    let refused = |op_type: &str, attribute, dtype| {
        let mut m = empty();
        let x = m.add_graph_input(Model::MAIN, "x", None);
        let spec = NodeSpec::new(op_type).attr(attribute);
        let y = op(&mut m, spec, &[x], "y");
        output(&mut m, y);
        let x = Tensor::from_f32_as(dtype, &[1, 4, 2, 2], &[1.0; 16]).unwrap();
        matches!(run(&m, &[("x", &x)]), Err(EngineError::Unsupported { op, .. }) if op == op_type)
    };
    let alpha = |a: f32| onnx_quant_ir::node::attr_f("alpha", a);
    assert!(refused("Swish", alpha(2.0), DataType::Float));
    assert!(!refused("Swish", alpha(1.0), DataType::Float));
    assert!(refused("Celu", alpha(2.0), DataType::Float16));
    assert!(!refused("Celu", alpha(2.0), DataType::Float));
}

/// A recurrent model over `[time 4, batch 1, features 2]` with the given direction.
fn gru(direction: &str) -> Model {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let ramp = |n: usize| {
        (0..n)
            .map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.1)
            .collect::<Vec<_>>()
    };
    let w = Tensor::from_f32(&[1, 9, 2], &ramp(18));
    let w = m.add_initializer(Model::MAIN, "w", w);
    let r = Tensor::from_f32(&[1, 9, 3], &ramp(27));
    let r = m.add_initializer(Model::MAIN, "r", r);
    let (y, h) = (m.add_value(Model::MAIN, "y"), m.add_value(Model::MAIN, "h"));
    let spec = NodeSpec::new("GRU")
        .attr(attr_i("hidden_size", 3))
        .attr(attr_s("direction", direction));
    m.add_node(
        Model::MAIN,
        spec,
        &[Some(x), Some(w), Some(r)],
        &[Some(y), Some(h)],
    );
    output(&mut m, y);
    output(&mut m, h);
    m
}

#[test]
fn a_reversed_recurrence_is_the_forward_one_on_reversed_time() {
    let x: Vec<f32> = (0..8).map(|i| (i as f32 * 1.3).sin()).collect();
    let reversed: Vec<f32> = x.chunks(2).rev().flatten().copied().collect();
    let backward = run(&gru("reverse"), &[("x", &Tensor::from_f32(&[4, 1, 2], &x))]).unwrap();
    let forward = run(
        &gru("forward"),
        &[("x", &Tensor::from_f32(&[4, 1, 2], &reversed))],
    )
    .unwrap();
    let y = forward[0].to_f32().unwrap();
    let expected: Vec<f32> = y.chunks(3).rev().flatten().copied().collect();
    assert_eq!(backward[0].to_f32().unwrap(), expected);
    assert_eq!(backward[1].to_f32().unwrap(), forward[1].to_f32().unwrap());
    let straight = run(&gru("forward"), &[("x", &Tensor::from_f32(&[4, 1, 2], &x))]).unwrap();
    assert_ne!(straight[0].to_f32().unwrap(), backward[0].to_f32().unwrap());
}

#[test]
fn feeds_that_do_not_fit_are_refused() {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let y = op(&mut m, NodeSpec::new("Relu"), &[x], "y");
    output(&mut m, y);
    let t = Tensor::from_f32(&[2], &[1.0, -1.0]);
    let refuse = |feed: &[(&str, &Tensor)], observe: &[&str]| {
        let result = TractEngine.prepare(&m, &request(feed, observe));
        match result.map(drop) {
            Err(EngineError::Feed(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    assert!(refuse(&[("z", &t)], &[]).contains("inputs are x"));
    assert!(refuse(&[], &[]).contains("`x` is not fed"));
    assert!(refuse(&[("x", &t)], &["nothing"]).contains("`nothing`"));
    let session = TractEngine
        .prepare(&m, &request(&[("x", &t)], &[]))
        .unwrap();
    let wrong = Tensor::from_f32(&[3], &[0.0; 3]);
    assert!(matches!(
        session.run(&[wrong], None),
        Err(EngineError::Feed(_))
    ));
}

#[test]
fn inputs_constants_and_unused_values_can_be_watched() {
    let mut m = empty();
    let x = m.add_graph_input(Model::MAIN, "x", None);
    let c = m.add_initializer(Model::MAIN, "c", Tensor::from_f32(&[2], &[3.0, 4.0]));
    let folded = op(&mut m, NodeSpec::new("Neg"), &[c], "folded");
    let y = op(&mut m, NodeSpec::new("Add"), &[x, folded], "y");
    op(&mut m, NodeSpec::new("Abs"), &[x], "unused");
    output(&mut m, y);
    let t = Tensor::from_f32(&[2], &[1.0, -1.0]);
    let names = ["x", "c", "folded", "y", "unused", "y"];
    let session = TractEngine
        .prepare(&m, &request(&[("x", &t)], &names))
        .unwrap();
    let mut seen = vec![vec![]; names.len()];
    let mut observer = |o: Observed<'_>| seen[o.index].extend_from_slice(o.data);
    let out = session.run(&[t], Some(&mut observer)).unwrap();
    assert_eq!(out.len(), 1);
    let y = [-2.0, -5.0];
    assert_eq!(out[0].to_f32().unwrap(), y);
    assert_eq!(
        seen,
        [[1.0, -1.0], [3.0, 4.0], [-3.0, -4.0], y, [1.0, 1.0], y]
    );
}
