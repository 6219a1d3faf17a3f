//! The registry and its texts.
#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;

fn fixed() -> Vec<Base> {
    let pairs = (0..=16u8).flat_map(|whole| (0..=16u8).map(move |fraction| (whole, fraction)));
    pairs
        .filter(|(w, f)| (2..=16).contains(&(w + f)))
        .map(|(whole, fraction)| Base::Fixed { whole, fraction })
        .collect()
}

#[test]
fn every_base_reads_back_as_written() {
    for base in Base::all().into_iter().chain(fixed()) {
        assert_eq!(base.to_string().parse::<Base>().unwrap(), base);
        let info = base.info();
        assert_eq!(info.base, base);
        assert!(info.bits <= info.storage_bits, "{base}");
        assert!(info.range.0 <= 0.0 && info.range.1 > 0.0, "{base}");
        if base.is_integer() {
            let codes = i64::from(info.qmax) - i64::from(info.qmin) + 1;
            assert_eq!(codes, 1 << info.bits, "{base}");
        }
    }
    let ranges = |base: Base| (base.info().qmin, base.info().qmax);
    assert_eq!(ranges(Base::INT8), (-128, 127));
    assert_eq!(ranges(Base::UINT16), (0, 65535));
    assert_eq!(ranges(Base::Int(3)), (-4, 3));
    assert_eq!(
        Base::Fixed {
            whole: 4,
            fraction: 4
        }
        .info()
        .range,
        (-8.0, 7.9375)
    );
}

#[test]
fn storage_types_are_those_of_the_standard() {
    for base in Base::all() {
        let info = base.info();
        let odd_width = base.is_integer() && info.bits != info.storage_bits;
        let own_type =
            !odd_width && matches!(info.family, Family::Integer | Family::Cast | Family::Float);
        if own_type {
            assert_eq!(Base::from_onnx_type(info.onnx_type), Some(base));
        }
    }
    assert_eq!(Base::Int(3).info().onnx_type, Base::INT4.info().onnx_type);
    assert_eq!(Base::Uint(7).info().onnx_type, Base::UINT8.info().onnx_type);
    assert_eq!(Base::Mxfp6.info().onnx_type, 27);
}

#[test]
fn every_format_reads_back_as_written() {
    let granularities = [
        None,
        Some(Granularity::Tensor),
        Some(Granularity::Channel),
        Some(Granularity::Block(32)),
        Some(Granularity::Vsq(16)),
    ];
    for base in Base::all().into_iter().chain(fixed()) {
        for granularity in granularities {
            if let Ok(format) = Format::new(base, granularity) {
                assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
            }
        }
    }
    let shown = |text: &str| text.parse::<Format>().unwrap().to_string();
    assert_eq!(shown("INT8:Channel"), "int8:channel");
    assert_eq!(shown("int4:block:64"), "int4:block64");
    for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
        assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
    }
}

#[test]
fn unknown_names_are_answered_with_the_valid_ones() {
    let message = |text: &str| text.parse::<Format>().unwrap_err().to_string();
    assert_eq!(
        message("itn8"),
        "unknown number format `itn8` (did you mean `int8`?); valid: int2…int16, uint2…uint16, qM.F, fp32, fp16, bf16, \
         fp8e4m3, fp8e5m2, fp6e2m3, fp6e3m2, fp4e2m1, mxfp8, mxfp6, mxfp4, nvfp4, kmeans1…kmeans8, binary, ternary"
    );
    assert_eq!(
        message("int8:chanel"),
        "unknown granularity `chanel` (did you mean `channel`?); valid: tensor, channel, blockN, vsqN"
    );
    assert!(message("mxpf4").contains("did you mean `mxfp4`?"));
    assert!(!message("wxyz").contains("did you mean"));
    let bad = [
        "",
        ":",
        "int8:",
        ":tensor",
        "int8:tensor:channel",
        "int1",
        "int17",
        "q0.1",
        "q9.8",
        "q4.",
        "q.4",
        "q300.1",
        "int8:block0",
        "int8:block1",
        "int4:vsq",
        "int4:block99999999999",
        "kmeans0",
        "kmeans9",
        "fp16:channel",
        "mxfp4:block16",
        "nvfp4:channel",
        "fp8e4m3:vsq16",
        "q4.4:channel",
        "binary:vsq8",
    ];
    for text in bad {
        assert!(text.parse::<Format>().is_err(), "{text}");
    }
    assert!(message("int8:block0").contains("a number from 2 to 1048576"));
    assert_eq!(
        message("mxfp4:block16"),
        "`mxfp4:block16`: mxfp4 has blocks of 32 by definition"
    );
    assert!(
        "symetric"
            .parse::<Scheme>()
            .unwrap_err()
            .to_string()
            .contains("`symmetric`")
    );
}

#[test]
fn opset_and_bytes() {
    let opset = |text: &str| text.parse::<Format>().unwrap().min_opset();
    let wanted = [
        ("int8:tensor", 10),
        ("int8:channel", 13),
        ("int8:block32", 21),
        ("int4:channel", 21),
        ("int3", 21),
        ("int2:channel", 25),
        ("fp8e4m3:channel", 19),
        ("fp4e2m1", 23),
        ("nvfp4", 23),
        ("mxfp4", 24),
        ("mxfp8", 24),
        ("fp6e3m2", 28),
        ("mxfp6", 28),
        ("q4.4", 10),
    ];
    for (text, version) in wanted {
        assert_eq!(opset(text), version, "{text}");
    }
    assert_eq!(Base::INT4.storage_bytes(3), 2);
    assert_eq!(Base::UINT16.storage_bytes(3), 6);
    assert_eq!(Base::INT8.storage_bytes(3), 3);
    assert_eq!(Base::FP6_E2M3.storage_bytes(3), 3);
    assert_eq!(Base::Binary.storage_bytes(9), 2);
}

#[test]
fn what_formats_store() {
    let bits = |text: &str, block: u64, scale_bits, zero_points| {
        let groups = Groups::rows(64, 1024, block);
        let format: Format = text.parse().unwrap();
        let print = format.footprint(groups, scale_bits, zero_points);
        print.effective_bits(groups.values)
    };
    assert_eq!(bits("int4:block32", 32, 32, false), 5.0);
    assert_eq!(bits("int4:block32", 32, 16, false), 4.5);
    assert_eq!(bits("int4:block32", 32, 16, true), 4.625);
    assert_eq!(bits("mxfp4", 32, 32, false), 4.25);
    assert_eq!(bits("nvfp4", 16, 32, false), 4.5 + 32.0 / 65536.0);
    assert_eq!(bits("int4:vsq16", 16, 32, false), 4.25 + 32.0 / 1024.0);
    assert_eq!(bits("fp16", 1, 32, false), 16.0);
    // 16 weights in 4 clusters: 2·16 + 32·4 bits.
    let groups = Groups::rows(1, 16, 16);
    let format: Format = "kmeans2:tensor".parse().unwrap();
    assert_eq!(format.footprint(groups, 32, false).total(), 160);
}
