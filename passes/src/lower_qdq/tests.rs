//! Tests of lower_qdq: what is folded, merged, written out and left.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use onnx_quant_ir::pass::Manager;
use std::collections::BTreeMap;

/// A model with an input `x` and, as `build` says, nodes and outputs.
fn model(build: impl FnOnce(&mut Model, ValueId)) -> Model {
    let mut m = crate::testing::empty(21);
    let x = m.add_graph_input(Model::MAIN, "x", None);
    build(&mut m, x);
    m
}

fn constant(m: &mut Model, name: &str, tensor: Tensor) -> ValueId {
    m.add_initializer(Model::MAIN, name, tensor)
}

fn op(m: &mut Model, op: &str, inputs: &[ValueId], output: &str) -> ValueId {
    m.add_op(Model::MAIN, NodeSpec::new(op), inputs, output)
}

fn lower(m: &mut Model) -> (Changed, PassContext) {
    let mut cx = PassContext::default();
    let changed = Manager::default()
        .run(&LowerQdq, BTreeMap::new(), m, &mut cx)
        .unwrap();
    (changed, cx)
}

/// `op(inputs) → outputs` of every node, in order.
fn lines(m: &Model) -> Vec<String> {
    let name = |v: &Option<ValueId>| v.map_or("-".to_owned(), |v| m.value(v).name.clone());
    let list = |vs: Vec<Option<ValueId>>| vs.iter().map(name).collect::<Vec<_>>().join(", ");
    let nodes = m.main().nodes.iter();
    nodes
        .map(|&n| {
            let op = m.node(n).op_type();
            format!("{op}({}) → {}", list(m.inputs(n)), list(m.outputs(n)))
        })
        .collect()
}

fn scale_and_zero(m: &mut Model, tag: &str, scale: f32) -> (ValueId, ValueId) {
    let s = constant(m, &format!("s{tag}"), Tensor::from_f32(&[], &[scale]));
    let zero = Tensor::from_raw(DataType::Uint8, &[], vec![7u8]);
    (s, constant(m, &format!("z{tag}"), zero))
}

#[test]
fn a_pair_with_equal_parameters_becomes_one_operator() {
    let mut m = model(|m, x| {
        let (s, z) = scale_and_zero(m, "1", 0.5);
        let (s2, z2) = scale_and_zero(m, "2", 0.5);
        let q = op(m, "QuantizeLinear", &[x, s, z], "q");
        let a = op(m, "DequantizeLinear", &[q, s2, z2], "a");
        let b = op(m, "DequantizeLinear", &[q, s, z], "b");
        let y = op(m, "Add", &[a, b], "y");
        m.make_graph_output(y, None);
    });
    let (changed, _) = lower(&mut m);
    assert_eq!(changed, Changed::Yes);
    assert_eq!(
        lines(&m),
        [
            "FakeQuantize(x, s1, z1) → a",
            "Identity(a) → b",
            "Add(a, b) → y"
        ]
    );
    let fake = m.node(m.main().nodes[0]);
    assert_eq!(fake.domain(), EXEC_DOMAIN);
    assert_eq!(
        (fake.attr_i("qmin"), fake.attr_i("qmax")),
        (Some(0), Some(255))
    );
    assert_eq!(m.main().initializers.len(), 2);
    assert_eq!(lower(&mut m).0, Changed::No);
}

#[test]
fn pairs_that_are_none_stay_apart() {
    // Other parameters, codes that are an output, codes that something else reads.
    let mut m = model(|m, x| {
        let (s, z) = scale_and_zero(m, "1", 0.5);
        let (s2, z2) = scale_and_zero(m, "2", 0.25);
        let q = op(m, "QuantizeLinear", &[x, s, z], "q");
        let y = op(m, "DequantizeLinear", &[q, s2, z2], "y");
        let q2 = op(m, "QuantizeLinear", &[x, s, z], "q2");
        let y2 = op(m, "DequantizeLinear", &[q2, s, z], "y2");
        let q3 = op(m, "QuantizeLinear", &[x, s, z], "q3");
        let y3 = op(m, "DequantizeLinear", &[q3, s, z], "y3");
        let i3 = op(m, "Identity", &[q3], "i3");
        for v in [y, q2, y2, y3, i3] {
            m.make_graph_output(v, None);
        }
    });
    lower(&mut m);
    let mut found = lines(&m);
    found.sort();
    assert_eq!(
        found,
        [
            "Dequantize(q, s2, z2) → y",
            "Dequantize(q2, s1, z1) → y2",
            "Dequantize(q3, s1, z1) → y3",
            "Identity(q3) → i3",
            "Quantize(x, s1, z1) → q",
            "Quantize(x, s1, z1) → q2",
            "Quantize(x, s1, z1) → q3",
        ]
    );
}

#[test]
fn constants_are_decoded() {
    let mut m = model(|m, x| {
        let w = Tensor::from_raw(DataType::Int4, &[2, 2], vec![0x2fu8, 0x81]);
        let w = constant(m, "w", w);
        let s = constant(m, "s", Tensor::from_f32(&[2], &[0.5, 2.0]));
        let spec = NodeSpec::new("DequantizeLinear").attr_i("axis", 0);
        let real = m.add_op(Model::MAIN, spec, &[w, s], "real");
        let y = op(m, "Add", &[x, real], "y");
        m.make_graph_output(y, None);
    });
    lower(&mut m);
    assert_eq!(lines(&m), ["Add(x, real) → y"]);
    let real = m.constant(m.find_value("real").unwrap()).unwrap();
    assert_eq!(real.to_f32().unwrap(), [-0.5, 1.0, 2.0, -16.0]);
    assert_eq!(m.main().initializers.len(), 1);
}

#[test]
fn half_precision_scales_give_half_precision_values() {
    let mut m = model(|m, x| {
        let w = constant(m, "w", Tensor::from_raw(DataType::Int8, &[1], vec![3u8]));
        let s = Tensor::from_f32_as(DataType::Float16, &[], &[0.1]).unwrap();
        let s = constant(m, "s", s);
        let real = op(m, "DequantizeLinear", &[w, s], "real");
        let y = op(m, "Add", &[x, real], "y");
        m.make_graph_output(y, None);
    });
    lower(&mut m);
    let real = m.constant(m.find_value("real").unwrap()).unwrap();
    assert_eq!(real.dtype(), DataType::Float16);
    let expected = half::f16::from_f32(half::f16::from_f32(0.1).to_f32() * 3.0);
    assert_eq!(real.to_f32().unwrap(), [expected.to_f32()]);
}

#[test]
fn narrow_codes_travel_in_8_bits_and_saturate_in_4() {
    let mut m = model(|m, x| {
        let s = constant(m, "s", Tensor::from_f32(&[], &[1.0]));
        let spec = NodeSpec::new("QuantizeLinear").attr_i("output_dtype", 22);
        let q = m.add_op(Model::MAIN, spec, &[x, s], "q");
        m.make_graph_output(q, None);
        let info = ValueInfoProto {
            r#type: Some(onnx_quant_proto::TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: Some(22),
                    shape: None,
                })),
                ..Default::default()
            }),
            ..Default::default()
        };
        m.value_mut(q).output_info = Some(Box::new(info));
    });
    lower(&mut m);
    let q = m.node(m.main().nodes[0]);
    let attributes = ["qmin", "qmax", "to"].map(|a| q.attr_i(a).unwrap());
    assert_eq!(attributes, [-8, 7, DataType::Int8 as i64]);
    let out = m.main().outputs[0];
    assert_eq!(m.value(out).dtype(), Some(DataType::Int8));
}

#[test]
fn other_code_types_stay_and_say_so() {
    let mut m = model(|m, x| {
        let s = constant(m, "s", Tensor::from_f32(&[], &[1.0]));
        let z = constant(
            m,
            "z",
            Tensor::from_raw(DataType::Uint64, &[], vec![0u8; 8]),
        );
        let q = op(m, "QuantizeLinear", &[x, s, z], "q");
        m.make_graph_output(q, None);
    });
    let (changed, cx) = lower(&mut m);
    assert_eq!(changed, Changed::No);
    assert_eq!(lines(&m), ["QuantizeLinear(x, s, z) → q"]);
    assert!(!cx.skips[0].reason.is_empty());
}

#[test]
fn contradictions_are_errors() {
    let mut m = model(|m, x| {
        let w = constant(m, "w", Tensor::from_raw(DataType::Int8, &[2], vec![1u8, 2]));
        let s = constant(m, "s", Tensor::from_f32(&[3], &[1.0; 3]));
        let real = op(m, "DequantizeLinear", &[w, s], "real");
        let y = op(m, "Add", &[x, real], "y");
        m.make_graph_output(y, None);
    });
    let error = LowerQdq
        .run(&mut m, &mut PassContext::default())
        .unwrap_err();
    assert!(error.message.contains("DequantizeLinear `real`"), "{error}");
}
