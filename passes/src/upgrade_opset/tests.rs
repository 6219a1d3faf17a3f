//! Tests of upgrade_opset, version by version.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::testing::{body, empty, input, ops, output, run, signature, try_run};
use onnx_quant_ir::NodeSpec;
use onnx_quant_ir::node::{attr_f, attr_s};

#[test]
fn the_table_covers_every_change_of_the_standard_once() {
    assert!(schema::OPERATORS.is_sorted_by_key(|(name, _)| name));
    for (op, since) in schema::OPERATORS {
        for v in since
            .iter()
            .skip(1)
            .filter(|v| (8..=NEWEST_TARGET).contains(*v))
        {
            let compatible = rules::COMPATIBLE
                .iter()
                .any(|(name, versions)| name == op && versions.contains(v));
            let changed = rules::action(op, *v).is_some();
            assert!(compatible != changed, "{op} {v}");
        }
    }
    for (op, v, _) in rules::CHANGED {
        let i = schema::OPERATORS.binary_search_by_key(op, |(name, _)| name);
        assert!(schema::OPERATORS[i.unwrap()].1.contains(v) || *op == "Upsample");
    }
}

/// A model of one node on an input of shape 2 × 3 × 4 × 4.
fn one(opset: i64, spec: NodeSpec, extra: &[Tensor]) -> (Model, NodeId) {
    let mut m = empty(opset);
    let mut ids = vec![input(&mut m, "x", &[2, 3, 4, 4])];
    for (i, t) in extra.iter().enumerate() {
        ids.push(m.add_initializer(Model::MAIN, &format!("p{i}"), t.clone()));
    }
    let y = m.add_op(Model::MAIN, spec.name("n"), &ids, "y");
    output(&mut m, y);
    let node = m.main().nodes[0];
    (m, node)
}

fn upgraded(opset: i64, spec: NodeSpec, extra: &[Tensor]) -> (Model, NodeId) {
    let (mut m, node) = one(opset, spec, extra);
    let before = signature(&m);
    assert_eq!(run(&UpgradeOpset, &mut m).0, Changed::Yes);
    assert_eq!(signature(&m), before);
    assert_eq!(m.opset(""), Some(21));
    assert_eq!(m.header.ir_version(), 10);
    (m, node)
}

fn ints(m: &Model, node: NodeId, slot: usize) -> Vec<i64> {
    m.input_constant(node, slot).unwrap().to_i64().unwrap()
}

fn refusal(opset: i64, spec: NodeSpec) -> String {
    let (mut m, _) = one(opset, spec, &[]);
    let e = try_run(&UpgradeOpset, &[], &mut m, &mut PassContext::default()).unwrap_err();
    e.to_string()
}

#[test]
fn attributes_become_inputs() {
    for op in [
        "Squeeze",
        "Unsqueeze",
        "ReduceSum",
        "ReduceMean",
        "ReduceLogSumExp",
    ] {
        let (m, n) = upgraded(11, NodeSpec::new(op).attr_ints("axes", &[1, -1]), &[]);
        assert_eq!(ints(&m, n, 1), [1, -1]);
        assert!(m.node(n).attr("axes").is_none());
    }
    let (m, n) = upgraded(7, NodeSpec::new("ReduceMax"), &[]);
    assert_eq!(m.input(n, 1), None);

    let spec = NodeSpec::new("Slice")
        .attr_ints("starts", &[0, 1])
        .attr_ints("ends", &[1, i64::MAX])
        .attr_ints("axes", &[2, 3]);
    let (m, n) = upgraded(9, spec, &[]);
    assert_eq!((ints(&m, n, 1), ints(&m, n, 3)), (vec![0, 1], vec![2, 3]));
    assert_eq!(ints(&m, n, 2), [1, i64::MAX]);

    let (m, n) = upgraded(7, NodeSpec::new("TopK").attr_i("k", 2), &[]);
    assert_eq!(ints(&m, n, 1), [2]);
    let (m, n) = upgraded(17, NodeSpec::new("DFT"), &[]);
    assert_eq!((ints(&m, n, 2), m.input(n, 1)), (vec![1], None));
}

#[test]
fn clip_and_pad_take_scalars_of_their_input_type() {
    let spec = NodeSpec::new("Clip")
        .attr(attr_f("min", 0.0))
        .attr(attr_f("max", f32::MAX));
    let (m, n) = upgraded(7, spec, &[]);
    assert_eq!(m.input_constant(n, 1).unwrap().scalar_f32(), Some(0.0));
    assert_eq!(m.input(n, 2), None);

    let pads = [0, 0, 1, 1, 0, 0, 1, 1];
    let spec = || NodeSpec::new("Pad").attr_ints("pads", &pads);
    let (m, n) = upgraded(9, spec().attr(attr_f("value", 2.5)), &[]);
    assert_eq!(ints(&m, n, 1), pads);
    assert_eq!(m.input_constant(n, 2).unwrap().scalar_f32(), Some(2.5));
    let (m, n) = upgraded(9, spec().attr(attr_s("mode", "edge")), &[]);
    assert_eq!(m.input(n, 2), None);
}

/// `y = Clip(<an operator of another domain>(x))`, so that the type of the clipped value is unknown.
fn clip_of_unknown() -> Model {
    let mut m = empty(9);
    let x = input(&mut m, "x", &[2]);
    let a = m.add_op(Model::MAIN, NodeSpec::new("F").domain("my.ops"), &[x], "a");
    let clip = NodeSpec::new("Clip").attr(attr_f("min", 0.5)).name("c");
    let y = m.add_op(Model::MAIN, clip, &[a], "y");
    output(&mut m, y);
    m
}

#[test]
fn an_unknown_type_is_the_only_float_type_of_the_model_or_refused() {
    let mut m = clip_of_unknown();
    let mut cx = PassContext::default();
    assert_eq!(
        try_run(&UpgradeOpset, &[], &mut m, &mut cx).unwrap(),
        Changed::Yes
    );
    let bound = m.input_constant(m.find_node("c").unwrap(), 1).unwrap();
    assert_eq!(bound.scalar_f32(), Some(0.5));
    assert_eq!(cx.notes.len(), 1);
    assert!(
        cx.notes[0].message.contains("taken to be f32"),
        "{}",
        cx.notes[0].message
    );

    let mut m = clip_of_unknown();
    let half = Tensor::from_f32_as(onnx_quant_ir::DataType::Float16, &[], &[1.0]).unwrap();
    m.add_initializer(Model::MAIN, "h", half);
    let e = try_run(&UpgradeOpset, &[], &mut m, &mut PassContext::default()).unwrap_err();
    assert!(e.to_string().contains("not just one float type"), "{e}");
}

#[test]
fn types_and_ranks_are_inferred_where_the_file_does_not_declare_them() {
    let source = "<ir_version: 4, opset_import: [\"\" : 9]>
main (float16[N,3,8] x) => (float16[A,B,C] y, float16[A,B,C] z) <float16[2,3] w = {1, 2, 3, 4, 5, 6}, int64[3] s = {0, 2, -1}, float f = {1}>
{
  u = Unsqueeze <axes = [2]> (x)
  v = Squeeze <axes = [2]> (u)
  t = MatMul (w, v)
  p = Pad <pads = [0, 0, 1, 0, 0, 1], value = 1.5> (t)
  c = Clip <min = -1.0> (p)
  y = Softmax <axis = 2> (c)
  r = Reshape (c, s)
  z = LogSoftmax <axis = 2> (r)
}";
    let mut m = onnx_quant_ir::text::parse(source).unwrap();
    run(&UpgradeOpset, &mut m);
    let all = ["Unsqueeze", "Squeeze", "MatMul", "Pad", "Clip"];
    assert_eq!(ops(&m)[..5], all);
    assert_eq!(ops(&m)[5..], ["Softmax", "Reshape", "LogSoftmax"]);
    for (node, slot, value) in [(3, 2, 1.5), (4, 1, -1.0)] {
        let t = m.input_constant(m.main().nodes[node], slot).unwrap();
        assert_eq!(t.dtype(), onnx_quant_ir::DataType::Float16);
        assert_eq!(t.scalar_f32(), Some(value));
    }
}

#[test]
fn split_keeps_its_parts() {
    let (m, n) = upgraded(11, NodeSpec::new("Split").attr_ints("split", &[2]), &[]);
    assert_eq!(ints(&m, n, 1), [2]);
    assert!(m.node(n).attr("num_outputs").is_none());
    let (m, n) = upgraded(11, NodeSpec::new("Split"), &[]);
    assert_eq!(m.node(n).attr_i("num_outputs"), Some(1));
}

#[test]
fn softmax_is_flattened_only_where_it_spanned_axes() {
    let (m, n) = upgraded(11, NodeSpec::new("Softmax").attr_i("axis", -1), &[]);
    assert_eq!(
        (ops(&m), m.node(n).attr_i("axis")),
        (vec!["Softmax".to_owned()], Some(3))
    );
    let (m, n) = upgraded(11, NodeSpec::new("LogSoftmax"), &[]);
    assert_eq!(ops(&m), ["Flatten", "LogSoftmax", "Shape", "Reshape"]);
    assert_eq!(m.node(n).attr_i("axis"), Some(-1));
    let flat = m.producer(m.input(n, 0).unwrap()).unwrap().0;
    assert_eq!(m.node(flat).attr_i("axis"), Some(1));
    let (m, _) = upgraded(13, NodeSpec::new("Softmax"), &[]);
    assert_eq!(ops(&m), ["Softmax"]);
}

#[test]
fn resize_spells_out_its_coordinates() {
    let scales = |f: [f32; 4]| [Tensor::from_f32(&[4], &f)];
    let spec = NodeSpec::new("Upsample").attr(onnx_quant_ir::proto::AttributeProto {
        floats: vec![1.0, 1.0, 2.0, 2.0],
        ..attr_f("scales", 0.0)
    });
    let (m, n) = upgraded(7, spec, &[]);
    assert_eq!(m.node(n).op_type(), "Resize");
    assert_eq!(m.node(n).attr_s("nearest_mode"), Some("floor"));
    assert_eq!(
        m.node(n).attr_s("coordinate_transformation_mode"),
        Some("asymmetric")
    );
    assert_eq!(m.input(n, 1), None);
    assert_eq!(m.input_constant(n, 2).unwrap().to_f32().unwrap()[2], 2.0);

    let (m, n) = upgraded(10, NodeSpec::new("Resize"), &scales([1.0, 1.0, 0.5, 0.5]));
    assert_eq!(m.node(n).attr_s("nearest_mode"), Some("ceil"));
    let (m, _) = upgraded(10, NodeSpec::new("Resize"), &scales([1.0, 1.0, 2.0, 0.5]));
    assert_eq!(ops(&m), ["Resize", "Resize"]);

    let half = attr_s("coordinate_transformation_mode", "tf_half_pixel_for_nn");
    let roi = Tensor::from_f32(&[0], &[]);
    let extra = [roi, Tensor::from_f32(&[4], &[1.0, 1.0, 2.0, 2.0])];
    let spec = NodeSpec::new("Resize")
        .attr(half.clone())
        .attr(attr_s("nearest_mode", "floor"));
    let (m, n) = upgraded(11, spec, &extra);
    assert_eq!(m.node(n).attr_s("nearest_mode"), Some("round_prefer_ceil"));
    assert!(refusal(11, NodeSpec::new("Resize").attr(half)).contains("tf_half_pixel"));
}

#[test]
fn renamed_modes_and_operators() {
    let (m, n) = upgraded(16, NodeSpec::new("GridSample"), &[]);
    assert_eq!(m.node(n).attr_s("mode"), Some("linear"));
    let (m, n) = upgraded(10, NodeSpec::new("RoiAlign"), &[]);
    let mode = m.node(n).attr_s("coordinate_transformation_mode");
    assert_eq!(mode, Some("output_half_pixel"));
    let (m, n) = upgraded(9, NodeSpec::new("Scatter"), &[]);
    assert_eq!(m.node(n).op_type(), "ScatterElements");
    let (m, n) = upgraded(7, NodeSpec::new("Dropout").attr(attr_f("ratio", 0.25)), &[]);
    assert_eq!(m.input_constant(n, 1).unwrap().scalar_f32(), Some(0.25));
    let t = Tensor::from_f32(&[3], &[1.0, 2.0, 3.0]);
    let spec = NodeSpec::new("GroupNormalization").attr_i("num_groups", 3);
    let (m, _) = upgraded(18, spec, &[t.clone(), t]);
    assert_eq!(ops(&m).iter().filter(|o| *o == "Expand").count(), 2);
}

#[test]
fn refusals_name_operator_and_node() {
    let bn = NodeSpec::new("BatchNormalization").attr_i("spatial", 0);
    let e = refusal(7, bn);
    assert!(
        e.contains("BatchNormalization (node `n`)") && e.contains("spatial"),
        "{e}"
    );
    assert!(refusal(8, NodeSpec::new("Scan")).contains("sequence lengths"));
    let e = refusal(6, NodeSpec::new("Relu"));
    assert!(e.contains("opset 6 is older than 7"), "{e}");
    assert!(refusal(99, NodeSpec::new("Relu")).contains("newer than 28"));
    let e = refusal(17, NodeSpec::new("Frobnicate"));
    assert!(
        e.contains("op Frobnicate (node `n`) is unknown in opset 17"),
        "{e}"
    );
    assert!(refusal(12, NodeSpec::new("HardSwish")).contains("came with opset 14"));
    assert!(refusal(11, NodeSpec::new("Upsample")).contains("went with opset 10"));
}

#[test]
fn new_models_and_other_domains_stay() {
    let (mut m, _) = one(21, NodeSpec::new("Relu"), &[]);
    assert_eq!(run(&UpgradeOpset, &mut m), (Changed::No, vec![]));
    let (mut m, _) = one(23, NodeSpec::new("RMSNormalization"), &[]);
    assert_eq!(run(&UpgradeOpset, &mut m).0, Changed::No);
    let (m, n) = upgraded(
        9,
        NodeSpec::new("Slice").domain("my.ops").attr_i("k", 1),
        &[],
    );
    assert_eq!((m.node(n).input_count, m.node(n).attr_i("k")), (1, Some(1)));
}

#[test]
fn the_target_can_be_chosen() {
    let spec = NodeSpec::new("ReduceMean").attr_ints("axes", &[1]);
    let mut cx = PassContext::default();
    let (mut m, n) = one(9, spec, &[]);
    let to = |to| [("to", to)];
    assert_eq!(
        try_run(&UpgradeOpset, &to("13"), &mut m, &mut cx).unwrap(),
        Changed::Yes
    );
    assert_eq!((m.opset(""), m.node(n).input_count), (Some(13), 1));
    assert_eq!(
        try_run(&UpgradeOpset, &to("11"), &mut m, &mut cx).unwrap(),
        Changed::No
    );
    assert_eq!(
        try_run(&UpgradeOpset, &to("25"), &mut m, &mut cx).unwrap(),
        Changed::Yes
    );
    assert_eq!((m.opset(""), m.node(n).input_count), (Some(25), 2));
    for bad in ["6", "26", "x"] {
        assert!(try_run(&UpgradeOpset, &to(bad), &mut m, &mut cx).is_err());
    }
}

#[test]
fn bodies_are_upgraded_where_they_stand() {
    let mut m = empty(9);
    let x = input(&mut m, "x", &[2, 1]);
    let y = m.add_value(Model::MAIN, "y");
    let branch = m.add_node(Model::MAIN, NodeSpec::new("If"), &[Some(x)], &[Some(y)]);
    output(&mut m, y);
    body(&mut m, branch, "then_branch", |m, g| {
        let spec = NodeSpec::new("Squeeze").attr_ints("axes", &[1]);
        let r = m.add_op(g, spec, &[x], "r");
        m.make_graph_output(r, None);
    });
    run(&UpgradeOpset, &mut m);
    let g = m.graph_ids()[1];
    assert_eq!(m.graph(g).initializers.len(), 1);
    assert!(m.main().initializers.is_empty());
}

#[test]
fn the_standard_is_imported_once() {
    let (mut m, _) = one(9, NodeSpec::new("Relu"), &[]);
    m.set_opset("my.ops", 1);
    m.header
        .opset_import
        .push(onnx_quant_ir::proto::OperatorSetIdProto {
            domain: Some("ai.onnx".to_owned()),
            version: Some(9),
        });
    assert_eq!(run(&UpgradeOpset, &mut m).0, Changed::Yes);
    let imports: Vec<_> = m.header.opset_import.iter().map(|o| o.version()).collect();
    assert_eq!(imports, [21, 1]);
}
