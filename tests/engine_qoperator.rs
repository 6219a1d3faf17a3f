//! Integer operators: what the tract engine gives for them against the formulas of `numerics`, and files for tract in
//! tract itself, with nothing of ours in it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::Arc;

use onnx_quant::data::{DataSet, Signature};
use onnx_quant::engine::TractEngine;
use onnx_quant::stages::Loaded;
use onnx_quant_ir::engine::{Engine, Request};
use onnx_quant_ir::save::ExternalData;
use onnx_quant_ir::{DataType, Model, Tensor, text};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::Base;
use onnx_quant_numerics::integer::{
    Activation, ConvShape, Weight, conv_integer, matmul_integer, qlinear_conv, qlinear_matmul,
};
use onnx_quant_passes::settings::QuantSettings;
use onnx_quant_passes::target::{Given, TargetName, choose};
use tract_onnx::prelude::*;

fn run(m: &Model, feed: &[(&str, Tensor)]) -> Vec<Tensor> {
    let shape = |t: &Tensor| t.dims().iter().map(|&d| d as usize).collect();
    let request = Request {
        feed: feed
            .iter()
            .map(|(n, t)| ((*n).to_owned(), t.dtype(), shape(t)))
            .collect(),
        ..Request::default()
    };
    let tensors: Vec<Tensor> = feed.iter().map(|(_, t)| t.clone()).collect();
    TractEngine
        .prepare(m, &request)
        .unwrap()
        .run(&tensors, None)
        .unwrap()
}

/// Codes that look random and are the same every time.
fn codes(count: usize, low: i32, high: i32, seed: u32) -> Vec<i32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            low + ((state >> 8) % (high - low + 1) as u32) as i32
        })
        .collect()
}

fn bytes(codes: &[i32]) -> Vec<u8> {
    codes.iter().map(|&c| c as u8).collect()
}

fn list(values: &[impl std::fmt::Debug]) -> String {
    let text: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
    text.join(", ")
}

/// Every code is the reference's, but for ties that FP32 sums round the other way.
fn near(found: &Tensor, wanted: &[i32]) {
    let found = found.to_i64().unwrap();
    assert_eq!(found.len(), wanted.len());
    let off = found
        .iter()
        .zip(wanted)
        .map(|(a, &b)| (a - i64::from(b)).abs());
    let off: Vec<i64> = off.collect();
    assert!(off.iter().all(|&d| d <= 1), "{off:?}");
    assert!(
        off.iter().filter(|&&d| d > 0).count() * 100 <= off.len(),
        "{off:?}"
    );
}

#[test]
fn convolutions_equal_the_reference() {
    let shape = ConvShape {
        batch: 1,
        inputs: 4,
        outputs: 6,
        size: [7, 5],
        kernel: [3, 3],
        strides: [2, 1],
        dilations: [1, 1],
        pads: [[1, 1], [1, 1]],
        groups: 2,
    };
    let (x, w) = (codes(140, 0, 255, 1), codes(108, -127, 127, 2));
    let bias = codes(6, -3000, 3000, 3);
    let scales = [0.02f32, 0.03, 0.01, 0.04, 0.025, 0.015];
    let source = format!(
        "main (uint8[1,4,7,5] X) => (uint8[1,6,4,5] Y, int32[1,6,4,5] S)
<
  int8[6,2,3,3] W = {{{}}},
  int32[6] B = {{{}}},
  float[6] ws = {{{}}},
  int8[6] wz = {{0, 0, 0, 0, 0, 0}},
  float xs = {{0.05}},
  uint8 xz = {{117}},
  float ys = {{0.4}},
  uint8 yz = {{130}},
  int8 one = {{0}}
>
{{
  Y = QLinearConv <group = 2, pads = [1, 1, 1, 1], strides = [2, 1]> (X, xs, xz, W, ws, wz, ys, yz, B)
  S = ConvInteger <group = 2, pads = [1, 1, 1, 1], strides = [2, 1]> (X, W, xz, one)
}}
",
        list(&w),
        list(&bias),
        list(&scales)
    );
    let model = text::parse(&source).unwrap();
    let feed = Tensor::from_raw(DataType::Uint8, &[1, 4, 7, 5], bytes(&x));
    let found = run(&model, &[("X", feed)]);
    let a = Activation {
        codes: &x,
        scale: 0.05,
        zero_point: 117,
    };
    let b = Weight {
        codes: &w,
        scales: &scales,
        zero_points: &[0],
    };
    let y = QParams::for_type(0.4, 130, Base::UINT8);
    near(
        &found[0],
        &qlinear_conv(a, b, Some(&bias), &shape, &y).unwrap(),
    );
    let sums: Vec<i64> = conv_integer(a, b, &shape)
        .unwrap()
        .into_iter()
        .map(i64::from)
        .collect();
    assert_eq!(found[1].to_i64().unwrap(), sums);
}

#[test]
fn products_equal_the_reference() {
    let (x, w, bias) = (
        codes(3 * 9, -128, 127, 4),
        codes(9 * 5, -127, 127, 5),
        codes(5, -900, 900, 6),
    );
    let scales = [0.02f32, 0.03, 0.01, 0.04, 0.025];
    let source = format!(
        "<ir_version: 10, opset_import: [\"\" : 21, \"com.microsoft\" : 1]>
main (int8[3,9] X) => (int8[3,5] Y, int8[3,5] G, float[3,5] F, int32[3,5] S)
<
  int8[9,5] W = {{{}}},
  int32[5] B = {{{}}},
  float[5] ws = {{{}}},
  int8[5] wz = {{1, -2, 0, 3, -1}},
  float xs = {{0.05}},
  int8 xz = {{-7}},
  float ys = {{0.4}},
  int8 yz = {{5}}
>
{{
  Y = QLinearMatMul (X, xs, xz, W, ws, wz, ys, yz)
  G = com.microsoft.QGemm (X, xs, xz, W, ws, wz, B, ys, yz)
  F = com.microsoft.QGemm (X, xs, xz, W, ws, wz, B)
  S = MatMulInteger (X, W, xz, wz)
}}
",
        list(&w),
        list(&bias),
        list(&scales)
    );
    let model = text::parse(&source).unwrap();
    let feed = Tensor::from_raw(DataType::Int8, &[3, 9], bytes(&x));
    let found = run(&model, &[("X", feed)]);
    let a = Activation {
        codes: &x,
        scale: 0.05,
        zero_point: -7,
    };
    let zeros = [1, -2, 0, 3, -1];
    let b = Weight {
        codes: &w,
        scales: &scales,
        zero_points: &zeros,
    };
    let y = QParams::for_type(0.4, 5, Base::INT8);
    near(
        &found[0],
        &qlinear_matmul(a, b, None, (3, 9, 5), &y).unwrap(),
    );
    near(
        &found[1],
        &qlinear_matmul(a, b, Some(&bias), (3, 9, 5), &y).unwrap(),
    );
    let sums = matmul_integer(a, b, (3, 9, 5)).unwrap();
    assert_eq!(
        found[3].to_i64().unwrap(),
        sums.iter().map(|&s| i64::from(s)).collect::<Vec<_>>()
    );
    for (i, real) in found[2].to_f32().unwrap().into_iter().enumerate() {
        let wanted = (sums[i] + bias[i % 5]) as f32 * 0.05 * scales[i % 5];
        assert!(
            (real - wanted).abs() <= 1e-5 * wanted.abs().max(1.0),
            "{real} {wanted}"
        );
    }
}

/// The demo's model with integer operators for tract, and the images that it is judged on.
fn for_tract(dynamic: bool) -> (tempfile::TempDir, Model, Vec<Tensor>) {
    let folder = tempfile::tempdir().unwrap();
    let demo = onnx_quant::demo::write(folder.path()).unwrap();
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let mut settings = QuantSettings {
        target: TargetName::Tract,
        qoperator: true,
        dynamic,
        ..QuantSettings::default()
    };
    choose(&mut settings, Given::default()).unwrap();
    let normalized = Loaded::open(&demo.model).unwrap().normalize().unwrap();
    let signature = Signature::of(normalized.model()).unwrap();
    let data = DataSet::open(&demo.calibration, &signature).unwrap();
    let calibrated = if dynamic {
        normalized.without_data(settings)
    } else {
        normalized
            .calibrate(settings, &data.limit(32), &engine)
            .unwrap()
    };
    let rewritten = calibrated.plan().unwrap().rewrite().unwrap();
    let file = folder.path().join("tract.onnx");
    rewritten.save(&file, ExternalData::Auto).unwrap();
    let model = onnx_quant_ir::load::load(&file).unwrap();
    let evaluation = DataSet::open(&demo.evaluation, &signature).unwrap();
    let batches = evaluation.limit(4).batches(1);
    let images = batches.map(|b| b.unwrap().tensors[0].clone()).collect();
    (folder, model, images)
}

#[test]
fn files_for_tract_run_in_tract_with_the_same_values() {
    for (dynamic, operators) in [
        (false, &["QLinearConv", "MatMulInteger"][..]),
        (
            true,
            &["ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"][..],
        ),
    ] {
        let (folder, model, images) = for_tract(dynamic);
        let nodes = model.all_nodes().into_iter();
        let ops: BTreeSet<String> = nodes.map(|n| model.node(n).op_type().to_owned()).collect();
        for op in operators {
            assert!(ops.contains(*op), "{op} is not among {ops:?}");
        }
        assert!(
            model
                .all_nodes()
                .iter()
                .all(|&n| model.node(n).domain().is_empty())
        );
        let input = model.value(model.main().inputs[0]).name.clone();
        for image in images {
            let dims: Vec<usize> = image.dims().iter().map(|&d| d as usize).collect();
            let plan = tract_onnx::onnx()
                .model_for_path(folder.path().join("tract.onnx"))
                .unwrap()
                .with_input_fact(0, f32::fact(&dims).into())
                .unwrap()
                .into_optimized()
                .unwrap()
                .into_runnable()
                .unwrap();
            let data = image.to_f32().unwrap();
            let value = tract_ndarray::ArrayD::from_shape_vec(dims, data).unwrap();
            let theirs = plan.run(tvec!(value.into_tensor().into_tvalue())).unwrap();
            let theirs = theirs[0].cast_to::<f32>().unwrap().into_owned();
            let theirs: Vec<f32> = theirs
                .to_plain_array_view::<f32>()
                .unwrap()
                .iter()
                .copied()
                .collect();
            let ours = run(&model, &[(input.as_str(), image.clone())])[0]
                .to_f32()
                .unwrap();
            let largest = ours.iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = ours
                .iter()
                .zip(&theirs)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max);
            assert!(off <= 0.02 * largest, "{off} of {largest}");
        }
    }
}
