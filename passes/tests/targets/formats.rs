//! Which formats a target takes, one test for each rule, and what the ends of their codes do.

use onnx_quant_numerics::format::Scheme;

use super::*;

/// Quantizes for TensorRT with these formats of weights and activations.
fn tensorrt_formats(source: &str, weights: &str, activations: Option<&str>) -> Done {
    let settings = QuantSettings {
        target: TargetName::TensorRt,
        weights: Some(weights.parse().unwrap()),
        activations: activations.map(|a| a.parse().unwrap()),
        activation_scheme: Scheme::Symmetric,
        min_activation_sqnr: 0.0,
        ..QuantSettings::default()
    };
    with_settings(source, settings, &[])
}

#[test]
fn tensorrt_reads_int4_weights_alone_in_blocks_of_64_or_128() {
    let matrix = product(16, 256, 16);
    for weights in ["int4:block64", "int4:block128"] {
        for activations in [None, Some("int8")] {
            let done = tensorrt_formats(&matrix, weights, activations);
            assert_eq!(done.inputs("p"), "fw", "{weights} {activations:?}");
            assert!(
                done.reason("p").starts_with("weight"),
                "{}",
                done.reason("p")
            );
        }
    }
    for weights in ["int4:block32", "int4:channel", "int4:tensor"] {
        let done = tensorrt_formats(&matrix, weights, None);
        assert_eq!(done.inputs("p"), "ff", "{weights}");
        let reason = done.reason("p");
        assert!(
            reason.contains("int4 weights in blocks of 64 or 128 only"),
            "{reason}"
        );
    }
    let conv = tensorrt_formats(&image("  [c] Y = Conv (X, W)"), "int4:block64", None);
    assert_eq!(conv.inputs("c"), "ff");
    assert!(
        conv.reason("c")
            .contains("int4 weights of Gemm and MatMul only")
    );
}

#[test]
fn tensorrt_takes_fp8_on_both_sides_with_a_scale_for_a_tensor_or_a_channel() {
    let matrix = product(16, 256, 16);
    let fp8 = Some("fp8e4m3");
    for weights in ["fp8e4m3:channel", "fp8e4m3:tensor"] {
        assert_eq!(
            tensorrt_formats(&matrix, weights, fp8).inputs("p"),
            "qw",
            "{weights}"
        );
    }
    let conv = image("  [c] Y = Conv (X, W)");
    assert_eq!(
        tensorrt_formats(&conv, "fp8e4m3:channel", fp8).inputs("c"),
        "qw"
    );
    for (source, node, weights, activations, says) in [
        (
            &matrix,
            "p",
            "fp8e4m3:block32",
            fp8,
            "a scale for the tensor or each channel only",
        ),
        (
            &matrix,
            "p",
            "fp8e4m3:channel",
            None,
            "takes FP8E4M3 weights only with quantized activations",
        ),
        (
            &image("  [c] Y = ConvTranspose (X, W)"),
            "c",
            "fp8e4m3:tensor",
            fp8,
            "of Conv and Gemm and MatMul only",
        ),
    ] {
        let done = tensorrt_formats(source, weights, activations);
        assert_eq!(done.inputs(node), "ff", "{weights}");
        assert!(done.reason(node).contains(says), "{}", done.reason(node));
    }
}

#[test]
fn tensorrt_takes_block_scales_of_products_in_their_own_lengths() {
    for (base, length) in [("mxfp8", 32), ("nvfp4", 16)] {
        let matrix = product(16, 256, 16);
        assert_eq!(
            tensorrt_formats(&matrix, base, Some("int8")).inputs("p"),
            "qw",
            "{base}"
        );
        let alone = tensorrt_formats(&matrix, base, None);
        assert_eq!(alone.inputs("p"), "ff", "{base}");
        let conv = tensorrt_formats(&image("  [c] Y = Conv (X, W)"), base, Some("int8"));
        let reason = conv.reason("c");
        assert!(
            reason.contains("weights of Gemm and MatMul only"),
            "{reason}"
        );
        let rule = TargetName::TensorRt
            .rules()
            .format(base.parse().unwrap())
            .unwrap();
        assert_eq!(rule.blocks, [length], "{base}");
    }
}

#[test]
fn a_clamp_is_taken_in_where_the_codes_end_at_its_bounds() {
    let relu = "  [c] A = Conv (X, W)\n  [r] B = Relu (A)\n  [d] Y = Conv (B, V)";
    let clip = "  [c] A = Conv (X, W)\n  [r] B = Clip (A, low, high)\n  [d] Y = Conv (B, V)";
    let bounds = "float low = {0}, float high = {6}, float[32] T";
    let bounded = |source: &str| image(source).replace("float[32] T", bounds);
    let ranges = [("A", -3.0, 6.0), ("B", 0.0, 6.0)];
    for (base, reduce_range, power_of_two, relu_goes, clip_goes) in [
        ("uint8", false, false, true, true),
        ("int8", false, false, true, true),
        // 0 stays the lowest code, but 255 lies beyond the bound.
        ("uint8", true, false, true, false),
        // Codes from −128 to −65 lie below zero.
        ("int8", true, false, false, false),
        ("uint8", false, true, true, false),
        ("int8", false, true, true, false),
    ] {
        for (source, goes) in [(relu, relu_goes), (clip, clip_goes)] {
            let mut settings = QuantSettings {
                activations: Some(base.parse().unwrap()),
                min_activation_sqnr: 10.0,
                reduce_range,
                ..QuantSettings::default()
            };
            settings.storage.power_of_two = power_of_two;
            let done = with_settings(&bounded(source), settings, &ranges);
            let says = format!("{base} {reduce_range} {power_of_two} {source}");
            // What is taken in stands between the operator and the Q; else the operator has a Q of its own.
            assert_eq!(done.inputs("r").starts_with('f'), goes, "{says}");
            assert_eq!(done.inputs("d"), "qw", "{says}");
            if goes {
                let value = done.model.input(done.node("d"), 0).unwrap();
                let pair = qdq::dequantized_by(&done.model, value).unwrap();
                let zero = done.model.constant(pair.zero_point.unwrap()).unwrap();
                let lowest = if base == "uint8" { 0 } else { -128 };
                assert_eq!(zero.scalar_i64(), Some(lowest), "{says}");
            }
        }
    }
}
