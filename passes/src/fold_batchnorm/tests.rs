//! Tests of fold_batchnorm: what is folded is equal to what stood there.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::testing::{empty, input, ops, output, run, signature};
use onnx_quant_ir::DataType;
use onnx_quant_ir::node::attr_f;

/// Adds a BatchNormalization with two channels: `a = 2, 3` and `shift = 10 − 2·1, 20 − 3·2`.
fn bn(m: &mut Model, x: ValueId, name: &str) -> ValueId {
    let mut p = |what: &str, data: [f32; 2]| {
        let t = Tensor::from_f32(&[2], &data);
        m.add_initializer(Model::MAIN, &format!("{name}_{what}"), t)
    };
    let ids = [
        x,
        p("scale", [4.0, 9.0]),
        p("b", [10.0, 20.0]),
        p("mean", [1.0, 2.0]),
        p("var", [4.0, 9.0]),
    ];
    let spec = NodeSpec::new("BatchNormalization").attr(attr_f("epsilon", 0.0));
    m.add_op(Model::MAIN, spec, &ids, name)
}

fn f32s(m: &Model, name: &str) -> Vec<f32> {
    m.constant(m.find_value(name).unwrap())
        .unwrap()
        .to_f32()
        .unwrap()
}

fn weight(m: &mut Model, dims: &[i64], data: &[f32]) -> ValueId {
    m.add_initializer(Model::MAIN, "w", Tensor::from_f32(dims, data))
}

fn finish(m: &mut Model, y: ValueId) -> (Changed, Vec<String>) {
    output(m, y);
    let before = signature(m);
    let out = run(&FoldBatchnorm, m);
    assert_eq!(signature(m), before);
    out
}

#[test]
fn conv_without_bias_gets_one() {
    let mut m = empty(17);
    let x = input(&mut m, "x", &[1, 1, 4, 4]);
    let w = weight(&mut m, &[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let c = m.add_op(
        Model::MAIN,
        NodeSpec::new("Conv").name("conv"),
        &[x, w],
        "c",
    );
    let y = bn(&mut m, c, "y");
    assert_eq!(finish(&mut m, y), (Changed::Yes, vec![]));
    assert_eq!(ops(&m), ["Conv"]);
    assert_eq!(f32s(&m, "w"), [2.0, 4.0, 9.0, 12.0]);
    assert_eq!(f32s(&m, "conv_bias"), [8.0, 14.0]);
}

#[test]
fn conv_takes_a_constant_addend_and_two_norms() {
    let mut m = empty(17);
    let x = input(&mut m, "x", &[1, 1, 4, 4]);
    let w = weight(&mut m, &[2, 1, 1, 1], &[1.0, 1.0]);
    let b = m.add_initializer(Model::MAIN, "b", Tensor::from_f32(&[2], &[1.0, 2.0]));
    let c = m.add_op(Model::MAIN, NodeSpec::new("Conv"), &[x, w, b], "c");
    let k = m.add_initializer(Model::MAIN, "k", Tensor::from_f32(&[2, 1, 1], &[5.0, 6.0]));
    let s = m.add_op(Model::MAIN, NodeSpec::new("Add"), &[k, c], "s");
    let first = bn(&mut m, s, "first");
    let y = bn(&mut m, first, "y");
    assert_eq!(finish(&mut m, y), (Changed::Yes, vec![]));
    assert_eq!(ops(&m), ["Conv"]);
    assert_eq!(f32s(&m, "w"), [4.0, 9.0]);
    // ((1 + 5)·2 + 8)·2 + 8 and ((2 + 6)·3 + 14)·3 + 14
    assert_eq!(f32s(&m, "b"), [48.0, 128.0]);
}

#[test]
fn transposed_conv_counts_channels_by_group() {
    let mut m = empty(17);
    let x = input(&mut m, "x", &[1, 4, 4, 4]);
    let w = weight(&mut m, &[4, 1, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
    let spec = NodeSpec::new("ConvTranspose").attr_i("group", 2);
    let c = m.add_op(Model::MAIN, spec, &[x, w], "c");
    let y = bn(&mut m, c, "y");
    assert_eq!(finish(&mut m, y).0, Changed::Yes);
    assert_eq!(f32s(&m, "w"), [2.0, 4.0, 9.0, 12.0]);
}

#[test]
fn gemm_scales_the_right_axis_and_drops_beta() {
    for (trans, dims, expected) in [
        (0, [3, 2], [2.0, 6.0, 6.0, 12.0, 10.0, 18.0]),
        (1, [2, 3], [2.0, 4.0, 6.0, 12.0, 15.0, 18.0]),
    ] {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[1, 3]);
        let w = weight(&mut m, &dims, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = m.add_initializer(Model::MAIN, "b", Tensor::from_f32(&[1], &[4.0]));
        let spec = NodeSpec::new("Gemm")
            .attr_i("transB", trans)
            .attr(attr_f("beta", 0.5));
        let c = m.add_op(Model::MAIN, spec, &[x, w, b], "c");
        let y = bn(&mut m, c, "y");
        assert_eq!(finish(&mut m, y).0, Changed::Yes);
        assert_eq!(f32s(&m, "w"), expected);
        assert_eq!(f32s(&m, "b"), [12.0, 20.0]);
        let gemm = m.main().nodes[0];
        assert!(m.node(gemm).attr("beta").is_none());
    }
}

#[test]
fn matmul_gets_an_add_or_uses_its_own() {
    for with_add in [false, true] {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[1, 1]);
        let w = weight(&mut m, &[1, 2], &[1.0, 2.0]);
        let mut c = m.add_op(Model::MAIN, NodeSpec::new("MatMul"), &[x, w], "c");
        if with_add {
            let k = m.add_initializer(Model::MAIN, "k", Tensor::from_f32(&[2], &[1.0, 1.0]));
            c = m.add_op(Model::MAIN, NodeSpec::new("Add"), &[c, k], "s");
        }
        let y = bn(&mut m, c, "y");
        assert_eq!(finish(&mut m, y), (Changed::Yes, vec![]));
        assert_eq!(ops(&m), ["MatMul", "Add"]);
        assert_eq!(f32s(&m, "w"), [2.0, 6.0]);
        if with_add {
            assert_eq!(f32s(&m, "k"), [10.0, 17.0]);
        } else {
            assert_eq!(f32s(&m, "y_bias"), [8.0, 14.0]);
        }
    }
}

#[test]
fn a_shared_weight_is_copied_for_this_use() {
    let mut m = empty(17);
    let x = input(&mut m, "x", &[1, 1, 4, 4]);
    let w = weight(&mut m, &[2, 1, 1, 1], &[1.0, 2.0]);
    let c = m.add_op(Model::MAIN, NodeSpec::new("Conv"), &[x, w], "c");
    let d = m.add_op(Model::MAIN, NodeSpec::new("Conv"), &[x, w], "d");
    output(&mut m, d);
    let y = bn(&mut m, c, "y");
    assert_eq!(finish(&mut m, y).0, Changed::Yes);
    assert_eq!(f32s(&m, "w"), [1.0, 2.0]);
    assert_eq!(f32s(&m, "w_folded"), [2.0, 6.0]);
}

#[test]
fn half_precision_weights_stay_half() {
    let mut m = empty(17);
    let x = input(&mut m, "x", &[1, 1, 4, 4]);
    let t = Tensor::from_f32_as(DataType::Float16, &[2, 1, 1, 1], &[1.0, 0.1]).unwrap();
    let w = m.add_initializer(Model::MAIN, "w", t);
    let c = m.add_op(Model::MAIN, NodeSpec::new("Conv"), &[x, w], "c");
    let y = bn(&mut m, c, "y");
    assert_eq!(finish(&mut m, y).0, Changed::Yes);
    let w = m.constant(m.find_value("w").unwrap()).unwrap();
    assert_eq!(w.dtype(), DataType::Float16);
    let third = half::f16::from_f64(half::f16::from_f32(0.1).to_f64() * 3.0).to_f32();
    assert_eq!(w.to_f32().unwrap(), [2.0, third]);
}

fn refusal(build: impl FnOnce(&mut Model, ValueId) -> ValueId) -> String {
    let mut m = empty(17);
    let x = input(&mut m, "x", &[1, 2, 4, 4]);
    let y = build(&mut m, x);
    let (changed, skips) = finish(&mut m, y);
    assert_eq!(changed, Changed::No);
    assert_eq!(skips.len(), 1, "{skips:?}");
    skips[0].clone()
}

fn conv(m: &mut Model, x: ValueId) -> ValueId {
    let w = weight(m, &[2, 2, 1, 1], &[1.0; 4]);
    m.add_op(Model::MAIN, NodeSpec::new("Conv"), &[x, w], "c")
}

#[test]
fn says_why_it_does_not_fire() {
    let why = refusal(|m, x| bn(m, x, "y"));
    assert!(why.contains("follows an input"), "{why}");
    let why = refusal(|m, x| {
        let r = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "r");
        bn(m, r, "y")
    });
    assert!(why.contains("follows Relu"), "{why}");
    let why = refusal(|m, x| {
        let c = conv(m, x);
        output(m, c);
        bn(m, c, "y")
    });
    assert!(why.contains("output of the graph"), "{why}");
    let why = refusal(|m, x| {
        let c = conv(m, x);
        m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[c], "r");
        bn(m, c, "y")
    });
    assert!(why.contains("other uses"), "{why}");
    let why = refusal(|m, x| {
        let c = m.add_op(Model::MAIN, NodeSpec::new("Conv"), &[x, x], "c");
        bn(m, c, "y")
    });
    assert!(why.contains("weight of Conv is not a constant"), "{why}");
    let why = refusal(|m, x| {
        let w = weight(m, &[4, 2], &[1.0; 8]);
        let c = m.add_op(Model::MAIN, NodeSpec::new("MatMul"), &[x, w], "c");
        bn(m, c, "y")
    });
    assert!(why.contains("not known to be a matrix"), "{why}");
}

#[test]
fn refuses_training_and_bad_parameters() {
    let with = |change: fn(&mut Model, NodeId)| {
        refusal(|m, x| {
            let c = conv(m, x);
            let y = bn(m, c, "y");
            let (node, _) = m.producer(y).unwrap();
            change(m, node);
            y
        })
    };
    let why = with(|m, n| m.node_mut(n).set_attr_i("training_mode", 1));
    assert!(why.contains("training mode"), "{why}");
    let why = with(|m, n| m.node_mut(n).set_attr_i("spatial", 0));
    assert!(why.contains("spatial"), "{why}");
    let why = with(|m, n| {
        let v = m.input(n, 4).unwrap();
        m.set_initializer(v, Tensor::from_f32(&[2], &[-1.0, 1.0]));
    });
    assert!(why.contains("not positive"), "{why}");
    let why = with(|m, n| {
        let x = m.find_value("x");
        m.set_input(n, 1, x);
    });
    assert!(why.contains("scale is not a constant"), "{why}");
}
