//! Where pairs stand for each target, asserted node by node on blocks of usual networks, and a test for each rule.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Manager, PassContext};
use onnx_quant_ir::{DataType, Model, NodeId, text};
use onnx_quant_numerics::stats::TensorStats;
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::qdq;
use onnx_quant_passes::registry;
use onnx_quant_passes::settings::QuantSettings;
use onnx_quant_passes::target::{Given, TargetName, choose};

#[path = "targets/formats.rs"]
mod formats;

const STEPS: [&str; 8] = [
    "assign_precision",
    "split_shared_weights",
    "insert_qdq",
    "share_qdq_parameters",
    "quantize_weights",
    "quantize_bias",
    "remove_redundant_qdq",
    "drop_unused",
];

struct Done {
    model: Model,
    plan: PrecisionPlan,
}

/// Quantizes a model in text form for a target; every activation has seen −1 to 1 but those of the list.
fn quantize(source: &str, target: TargetName, ranges: &[(&str, f32, f32)]) -> Done {
    let mut settings = QuantSettings {
        target,
        min_activation_sqnr: 10.0,
        ..QuantSettings::default()
    };
    choose(&mut settings, Given::default()).unwrap();
    with_settings(source, settings, ranges)
}

fn with_settings(source: &str, settings: QuantSettings, ranges: &[(&str, f32, f32)]) -> Done {
    let mut model = text::parse(source).unwrap();
    let mut calibration = Calibration::default();
    for v in model.all_values() {
        let name = model.value(v).name.clone();
        let range = ranges.iter().find(|(n, ..)| *n == name);
        let (low, high) = range.map_or((-1.0, 1.0), |r| (r.1, r.2));
        let spread = (0..=1000u16).map(|i| low + (high - low) * f32::from(i) / 1000.0);
        let h = TensorStats::of(&spread.collect::<Vec<_>>());
        calibration.values.insert(model.value_key(v), h);
    }
    let mut cx = PassContext::default();
    cx.insert(settings);
    cx.insert(calibration);
    let mut manager = Manager::default();
    for step in STEPS {
        let pass = registry::find(step).unwrap();
        manager
            .run(pass, BTreeMap::new(), &mut model, &mut cx)
            .unwrap();
    }
    let plan = cx.take::<PrecisionPlan>().unwrap();
    Done { model, plan }
}

/// The case of the folder of `insert_qdq`.
fn block(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/insert_qdq");
    std::fs::read_to_string(format!("{folder}/{name}.onnxtxt")).unwrap()
}

const RANGES: [(&str, f32, f32); 12] = [
    ("stem", 0.0, 4.0),
    ("a", 0.0, 2.0),
    ("b", 0.0, 8.0),
    ("joined", 0.0, 8.0),
    ("pooled", 0.0, 8.0),
    ("r", 0.0, 7.0),
    ("e", 0.0, 6.0),
    ("d", 0.0, 6.0),
    ("q", -3.0, 3.0),
    ("kt", -3.0, 3.0),
    ("weights", 0.0, 1.0),
    ("mixed", -2.0, 2.0),
];

impl Done {
    fn node(&self, name: &str) -> NodeId {
        let found = self.model.all_nodes().into_iter();
        let mut found = found.filter(|&n| self.model.node(n).name() == name);
        found.next().unwrap_or_else(|| panic!("no node {name}"))
    }

    /// For each input of a node: `q` behind a pair on an activation, `w` a dequantized constant, `f` float.
    fn inputs(&self, name: &str) -> String {
        let node = self.node(name);
        let kinds =
            self.model.inputs(node).into_iter().flatten().map(|v| {
                match qdq::dequantized_by(&self.model, v) {
                    None => 'f',
                    Some(d) if self.model.constant(d.input).is_some() => 'w',
                    Some(d) => {
                        let (maker, _) = self.model.producer(d.input).unwrap();
                        assert!(qdq::quantize(&self.model, maker).is_some(), "{name}");
                        'q'
                    }
                }
            });
        kinds.collect()
    }

    /// Scale of the pair in an input slot.
    fn scale(&self, name: &str, slot: usize) -> f32 {
        let value = self.model.input(self.node(name), slot).unwrap();
        let d = qdq::dequantized_by(&self.model, value).unwrap();
        qdq::scalar_scale(&self.model, &d).unwrap()
    }

    fn reason(&self, name: &str) -> String {
        let node = self.plan.node(name).unwrap();
        format!("{}: {}", node.precision.name(), node.reason)
    }

    /// Every node with a name and what its inputs are.
    fn all(&self) -> Vec<(String, String)> {
        let nodes = self.model.all_nodes().into_iter();
        let named = nodes.map(|n| self.model.node(n).name().to_owned());
        let named = named.filter(|n| !n.is_empty());
        named.map(|n| (n.clone(), self.inputs(&n))).collect()
    }

    #[track_caller]
    fn places(&self, expected: &[(&str, &str)]) {
        let found = self.all();
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (&**a, &**b)).collect();
        assert_eq!(found, expected);
    }

    /// Every zero point of the model with its type.
    fn zero_points(&self) -> Vec<(DataType, Vec<i64>)> {
        let nodes = self.model.all_nodes().into_iter();
        let conversions = nodes.filter_map(|n| {
            qdq::quantize(&self.model, n).or_else(|| qdq::dequantize(&self.model, n))
        });
        let zeros =
            conversions.map(|q| self.model.constant(q.zero_point.unwrap()).unwrap().clone());
        zeros.map(|t| (t.dtype(), t.to_i64().unwrap())).collect()
    }
}

#[test]
fn tensorrt_on_a_residual_block() {
    let done = quantize(&block("tensorrt_residual"), TargetName::TensorRt, &RANGES);
    done.places(&[
        ("stem_conv", "qw"),
        ("stem_relu", "f"),
        ("conv1", "qwf"),
        ("relu1", "f"),
        ("conv2", "qw"),
        // The branch through the two convolutions fuses; the skip has the scale that conv1 reads it with.
        ("add", "fq"),
        ("relu", "f"),
        ("next", "qw"),
    ]);
    assert_eq!(done.scale("add", 1), done.scale("conv1", 0));
    assert_eq!(done.reason("relu1"), "follows: taken into `conv1`");
    assert_eq!(done.reason("relu"), "follows: taken into `add`");
    assert_eq!(done.reason("add"), "integer: its input 1 is quantized");
    for (dtype, zeros) in done.zero_points() {
        assert!(dtype == DataType::Int8 && zeros.iter().all(|&z| z == 0));
    }
}

#[test]
fn tensorrt_on_a_depthwise_block() {
    let done = quantize(&block("tensorrt_depthwise"), TargetName::TensorRt, &RANGES);
    done.places(&[
        ("expand", "qw"),
        ("clip1", "fff"),
        ("depthwise", "qw"),
        ("clip2", "fff"),
        ("project", "qw"),
        ("narrow", "ff"),
    ]);
    assert!(
        done.reason("narrow")
            .contains("has 16 input and 8 output channels")
    );
    assert_eq!(done.scale("depthwise", 0), 6.0 / 127.0);
}

#[test]
fn tensorrt_on_an_attention_block() {
    let done = quantize(&block("tensorrt_attention"), TargetName::TensorRt, &RANGES);
    done.places(&[
        ("query", "qw"),
        ("key", "qw"),
        ("value", "qw"),
        ("turn", "f"),
        ("scores", "qq"),
        ("softmax", "f"),
        ("mix", "qq"),
        ("out", "qw"),
        // No convolution makes a branch, so nothing would fuse.
        ("add", "ff"),
    ]);
    assert!(done.reason("add").contains("no quantized convolution"));
    assert_eq!(done.scale("query", 0), done.scale("value", 0));
}

#[test]
fn tensorrt_on_a_concat_block() {
    let done = quantize(&block("tensorrt_concat"), TargetName::TensorRt, &RANGES);
    done.places(&[
        ("left", "qw"),
        ("left_relu", "f"),
        ("right", "qw"),
        ("right_relu", "f"),
        ("join", "qq"),
        ("pool", "f"),
        ("next", "qw"),
    ]);
    assert_eq!(done.scale("join", 0), done.scale("join", 1));
    assert!((done.scale("join", 0) - 8.0 / 127.0).abs() < 1e-3);
    assert_eq!(
        done.reason("pool"),
        "follows: the runtime lets codes pass through it"
    );
}

#[test]
fn openvino_on_a_residual_block() {
    let done = quantize(&block("openvino_residual"), TargetName::OpenVino, &RANGES);
    done.places(&[
        ("stem_conv", "qw"),
        ("stem_relu", "f"),
        ("conv1", "qwf"),
        ("relu1", "f"),
        ("conv2", "qw"),
        ("add", "qq"),
        ("relu", "f"),
        ("next", "qw"),
    ]);
    assert_eq!(done.scale("add", 1), done.scale("conv1", 0));
}

#[test]
fn openvino_on_a_depthwise_block() {
    let done = quantize(&block("openvino_depthwise"), TargetName::OpenVino, &RANGES);
    done.places(&[
        ("expand", "qw"),
        ("clip1", "fff"),
        ("depthwise", "qw"),
        ("clip2", "fff"),
        ("project", "qw"),
        ("narrow", "qw"),
    ]);
    let weights = done.zero_points().into_iter().filter(|(_, z)| z.len() > 1);
    let weights: Vec<_> = weights.map(|(d, z)| (d, z.len())).collect();
    let int8 = [32, 32, 16, 8].map(|n| (DataType::Int8, n));
    assert_eq!(weights, int8);
}

#[test]
fn openvino_on_an_attention_block() {
    let done = quantize(&block("openvino_attention"), TargetName::OpenVino, &RANGES);
    done.places(&[
        ("query", "qw"),
        ("key", "qw"),
        ("value", "qw"),
        ("turn", "f"),
        ("scores", "qq"),
        ("softmax", "f"),
        ("mix", "qq"),
        ("out", "qw"),
        ("add", "ff"),
    ]);
    assert!(
        done.reason("add")
            .contains("nothing after it runs in integers")
    );
}

#[test]
fn openvino_on_a_concat_block() {
    let done = quantize(&block("openvino_concat"), TargetName::OpenVino, &RANGES);
    done.places(&[
        ("left", "qw"),
        ("left_relu", "f"),
        ("right", "qw"),
        ("right_relu", "f"),
        ("join", "qq"),
        ("pool", "f"),
        ("next", "qw"),
    ]);
    assert_eq!(done.scale("join", 0), done.scale("join", 1));
}

/// A model of one or a few operators: declarations and body of a 32-channel image network.
fn image(body: &str) -> String {
    format!(
        "main (float[1,32,8,8] X, float[1,32,8,8] Z) => (float[1,32,8,8] Y)
<
  float[32,32,1,1] W = random(1),
  float[32,32,1,1] V = random(2),
  float[32,1,3,3] D = random(3),
  float[32] S = random(4),
  float[32] T = random(5)
>
{{
{body}
}}
"
    )
}

/// A matrix product of the given rows, inner size and columns.
fn product(m: usize, k: usize, n: usize) -> String {
    format!(
        "main (float[{m},{k}] X) => (float[{m},{n}] Y) <float[{k},{n}] W = random(1)> {{ [p] Y = MatMul (X, W) }}"
    )
}

#[test]
fn tensorrt_leaves_out_small_products_and_vectors() {
    let trt = |source: &str| quantize(source, TargetName::TensorRt, &[]);
    assert_eq!(trt(&product(16, 16, 16)).inputs("p"), "qw");
    for (m, k, n, says) in [
        (16, 8, 16, "its K is 8"),
        (16, 16, 8, "its N is 8"),
        (1, 32, 32, "matrix and a vector"),
    ] {
        let done = trt(&product(m, k, n));
        assert_eq!(done.inputs("p"), "ff");
        assert!(done.reason("p").contains(says), "{}", done.reason("p"));
    }
    // Not so for other targets.
    for target in [TargetName::Ort, TargetName::OpenVino, TargetName::Generic] {
        assert_eq!(quantize(&product(1, 8, 8), target, &[]).inputs("p"), "qw");
    }
}

#[test]
fn tensorrt_takes_no_weights_without_activations() {
    let settings = QuantSettings {
        target: TargetName::TensorRt,
        activations: None,
        ..QuantSettings::default()
    };
    let done = with_settings(&product(16, 16, 16), settings, &[]);
    assert_eq!(done.inputs("p"), "ff");
    let reason = done.reason("p");
    assert!(
        reason.contains("takes INT8 weights only with quantized activations"),
        "{reason}"
    );
}

#[test]
fn tensorrt_puts_a_pair_between_convolution_and_layer_normalization() {
    let source = image("  [c] c = Conv (X, W)\n  [n] Y = LayerNormalization <axis = -1> (c, N)")
        .replace("float[32] S", "float[8] N = random(9),\n  float[32] S");
    assert_eq!(
        quantize(&source, TargetName::TensorRt, &[]).inputs("n"),
        "qf"
    );
    assert_eq!(
        quantize(&source, TargetName::OpenVino, &[]).inputs("n"),
        "ff"
    );
    let alone = image("  [c] Y = Conv (m, W)\n  [n] m = LayerNormalization <axis = -1> (X, N)")
        .replace("float[32] S", "float[8] N = random(9),\n  float[32] S");
    assert_eq!(
        quantize(&alone, TargetName::TensorRt, &[]).inputs("n"),
        "ff"
    );
}

#[test]
fn tensorrt_and_openvino_quantize_transposed_convolutions() {
    let source = image("  [t] Y = ConvTranspose (X, W)");
    for (target, places) in [
        (TargetName::TensorRt, "qw"),
        (TargetName::OpenVino, "qw"),
        (TargetName::Generic, "qw"),
        // Only the weights are stored in few bits.
        (TargetName::Ort, "fw"),
        (TargetName::Tract, "fw"),
    ] {
        let done = quantize(&source, target, &[]);
        assert_eq!(done.inputs("t"), places, "{target}");
        assert_eq!(done.plan.weights[0].axis, Some(1));
    }
}

#[test]
fn a_transposed_convolution_with_groups_has_a_scale_for_each_input_channel_where_the_target_allows()
{
    let source = image("  [t] Y = ConvTranspose <group = 32, pads = [1, 1, 1, 1]> (X, D)");
    for (target, axis) in [
        (TargetName::Ort, Some(0)),
        (TargetName::OpenVino, Some(0)),
        (TargetName::TensorRt, None),
    ] {
        let done = quantize(&source, target, &[]);
        assert_eq!(done.plan.weights[0].axis, axis, "{target}");
    }
}

#[test]
fn a_skip_with_the_paths_swapped_is_still_the_skip() {
    let source = image(
        "  [s] s = Conv (X, W)\n  [a] a = Conv (s, V)\n  [add] t = Add (s, a)\n  [n] Y = Conv (t, W)",
    );
    assert_eq!(
        quantize(&source, TargetName::TensorRt, &[]).inputs("add"),
        "qf"
    );
    // Two inputs without a common ancestor are no residual addition.
    let source = image(
        "  [a] a = Conv (X, W)\n  [b] b = Conv (Z, V)\n  [add] t = Add (a, b)\n  [n] Y = Conv (t, W)",
    );
    let done = quantize(&source, TargetName::TensorRt, &[]);
    assert_eq!(done.inputs("add"), "ff");
    assert!(done.reason("add").contains("no residual addition"));
}

#[test]
fn openvino_quantizes_its_operators_between_integer_operators_only() {
    for (operator, places) in [
        ("Sub (a, b)", "qq"),
        ("Mul (a, b)", "qq"),
        ("Min (a, b)", "qq"),
        ("Max (a, b)", "qq"),
        ("Div (a, b)", "ff"),
        ("HardSigmoid (a)", "q"),
        ("Sigmoid (a)", "f"),
        ("AveragePool <kernel_shape = [1, 1]> (a)", "q"),
    ] {
        let body = format!(
            "  [a] a = Conv (X, W)\n  [b] b = Conv (X, V)\n  [o] o = {operator}\n  [n] Y = Conv (o, W)"
        );
        let done = quantize(&image(&body), TargetName::OpenVino, &[("o", 0.0, 1.0)]);
        assert_eq!(done.inputs("o"), places, "{operator}");
        assert_eq!(done.inputs("n"), "qw", "{operator}");
        let lone = format!("  [a] a = Neg (X)\n  [b] b = Neg (Z)\n  [o] Y = {operator}");
        let done = quantize(&image(&lone), TargetName::OpenVino, &[]);
        assert!(!done.inputs("o").contains('q'), "{operator}");
    }
}

#[test]
fn generic_targets_quantize_linear_operators_alone() {
    let body = "  [a] a = Conv (X, W)\n  [b] b = Conv (X, V)\n  [add] t = Add (a, b)\n  [n] Y = Conv (t, W)";
    for target in [TargetName::Generic, TargetName::Tract] {
        let done = quantize(&image(body), target, &[]);
        // Its inputs come from a Q because the convolutions give codes.
        done.places(&[("a", "qw"), ("b", "qw"), ("add", "qq"), ("n", "qw")]);
        let reason = done.reason("add");
        assert!(
            reason.starts_with("float: ") && reason.contains("no integer kernel for Add"),
            "{reason}"
        );
    }
    let done = quantize(&image(body), TargetName::Ort, &[]);
    assert_eq!(done.reason("add"), "integer: ");
}

#[test]
fn half_precision_scales_are_refused_by_tract() {
    let half = product(16, 16, 16).replace("float", "float16");
    let done = quantize(&half, TargetName::Tract, &[]);
    assert_eq!(done.inputs("p"), "ff");
    assert!(done.reason("p").contains("no scales in FP16"));
    assert_eq!(quantize(&half, TargetName::Ort, &[]).inputs("p"), "qw");
}

#[test]
fn biases_are_float_where_the_target_wants_that() {
    let source = image("  [c] Y = Conv (X, W, S)");
    for (target, places) in [
        (TargetName::Ort, "qww"),
        (TargetName::Generic, "qww"),
        (TargetName::Tract, "qww"),
        (TargetName::TensorRt, "qwf"),
        (TargetName::OpenVino, "qwf"),
    ] {
        assert_eq!(
            quantize(&source, target, &[]).inputs("c"),
            places,
            "{target}"
        );
    }
}

#[test]
fn the_instruction_set_decides_sign_and_range() {
    let source = image("  [c] Y = Conv (X, W)");
    for (isa, dtype, largest) in [
        ("avx2", DataType::Uint8, 64),
        ("vnni", DataType::Uint8, 127),
        ("arm", DataType::Int8, 127),
    ] {
        let mut settings = QuantSettings {
            isa: Some(isa.parse().unwrap()),
            ..QuantSettings::default()
        };
        choose(&mut settings, Given::default()).unwrap();
        let done = with_settings(&source, settings, &[]);
        let node = done.node("c");
        let pair = |slot| {
            let value = done.model.input(node, slot).unwrap();
            qdq::dequantized_by(&done.model, value).unwrap()
        };
        let zero = done.model.value(pair(0).zero_point.unwrap()).dtype();
        assert_eq!(zero, Some(dtype), "{isa}");
        let codes = done
            .model
            .constant(pair(1).input)
            .unwrap()
            .to_i64()
            .unwrap();
        assert_eq!(codes.iter().map(|c| c.abs()).max(), Some(largest), "{isa}");
    }
}

#[test]
fn bodies_are_quantized_by_the_same_rules() {
    let done = quantize(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4] x, bool c) => (float[N, 4] y) <
            float[4, 4] shared = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}
        > {
            [first] a = MatMul (x, shared)
            [choice] y = If (c) <
                then_branch = t () => (float[N, 4] r) <float[4, 4] own = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> {
                    [inner] b = MatMul (a, own)
                    [relu] p = Relu (b)
                    [last] r = MatMul (p, shared)
                },
                else_branch = e () => (float[N, 4] q) { [other] q = Neg (a) }
            >
        }"#,
        TargetName::Ort,
        &[("p", 0.0, 3.0)],
    );
    done.places(&[
        ("first", "qw"),
        ("choice", "f"),
        ("inner", "qw"),
        ("relu", "f"),
        ("last", "qw"),
        ("other", "f"),
    ]);
    let m = &done.model;
    for node in ["inner", "last"] {
        for slot in [0, 1] {
            let value = m.input(done.node(node), slot).unwrap();
            let maker = m.producer(value).unwrap().0;
            assert_eq!(m.node(maker).graph, m.node(done.node(node)).graph, "{node}");
        }
    }
    assert_eq!(done.scale("last", 0), 3.0 / 255.0);
}
