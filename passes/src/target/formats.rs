//! Which number formats a runtime reads, and what to use instead where it does not.

use onnx_quant_numerics::format::{Base, Family, Format, Granularity};

use super::TargetName;

/// Why a runtime does not run a format, and the nearest that it does; `None` where it does.
pub fn cannot_run(target: TargetName, format: Format) -> Option<String> {
    let (why, nearest) = match target {
        TargetName::Ort => onnxruntime(format)?,
        TargetName::Tract => tract(format)?,
        TargetName::TensorRt => tensorrt(format)?,
        TargetName::OpenVino => openvino(format)?,
        TargetName::Generic => return None,
    };
    Some(format!("{why}; the nearest that it runs is {nearest}"))
}

type Answer = Option<(&'static str, &'static str)>;

fn onnxruntime(format: Format) -> Answer {
    match format.base.info().onnx_type {
        27 | 28 => Some((
            "onnxruntime 1.32 does not load opset 28, which FP6 needs",
            "fp8e4m3, or mxfp8 for mxfp6",
        )),
        23 => Some((
            "onnxruntime 1.32 has no operators for FP4 on CPUs",
            "int4:block32, for nvfp4 int4:block16",
        )),
        _ => None,
    }
}

fn tract(format: Format) -> Answer {
    let info = format.base.info();
    let eight = info.family == Family::Integer && info.storage_bits == 8;
    let single = matches!(
        format.weight_granularity(),
        Granularity::Tensor | Granularity::Channel
    );
    let cast = matches!(format.base, Base::Fp32 | Base::Fp16);
    let packed = matches!(info.family, Family::Codebook | Family::Sign);
    if cast || packed || eight && single {
        return None;
    }
    Some((
        "tract's own reader takes int8 and uint8 codes without blocks only (this program lowers the others for its check)",
        "int8:channel",
    ))
}

fn tensorrt(format: Format) -> Answer {
    let target = TargetName::TensorRt.rules();
    let taken = match target.format(format.base) {
        // Whatever the operator: this is about the numbers.
        Some(rule) => rule.refusal(format, rule.ops[0], target.title).is_none(),
        None => matches!(format.base, Base::Fp32 | Base::Fp16 | Base::Bf16),
    };
    (!taken).then_some((
        "TensorRT reads int8 and fp8e4m3 a tensor or a channel, int4:block64, int4:block128, mxfp8 and nvfp4",
        if format.base.info().bits <= 4 { "int4:block64" } else { "int8:channel" },
    ))
}

fn openvino(format: Format) -> Answer {
    let taken = matches!(
        format.base,
        Base::INT8 | Base::UINT8 | Base::INT4 | Base::UINT4 | Base::Fp32 | Base::Fp16 | Base::Bf16
    ) && !matches!(format.granularity, Some(Granularity::Vsq(_)));
    let packed = matches!(format.base.info().family, Family::Codebook | Family::Sign);
    (!taken && !packed).then_some((
        "OpenVINO reads int8, uint8, int4 and uint4",
        if format.base.info().bits <= 4 {
            "int4:block32"
        } else {
            "int8:channel"
        },
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_not_run_has_a_nearest_that_is() {
        let says = |target, text: &str| cannot_run(target, text.parse().unwrap());
        assert!(says(TargetName::Ort, "int4:block32").is_none());
        assert!(says(TargetName::Ort, "mxfp8").is_none());
        assert!(
            says(TargetName::Ort, "mxfp4")
                .unwrap()
                .contains("int4:block32")
        );
        assert!(
            says(TargetName::Ort, "fp6e3m2:channel")
                .unwrap()
                .contains("opset 28")
        );
        assert!(
            says(TargetName::TensorRt, "int4:block32")
                .unwrap()
                .contains("int4:block64")
        );
        assert!(says(TargetName::OpenVino, "mxfp4").is_some());
        assert!(says(TargetName::Tract, "int8:channel").is_none());
        assert!(says(TargetName::Tract, "int8:block32").is_some());
        assert!(says(TargetName::Generic, "mxfp6").is_none());
    }
}
