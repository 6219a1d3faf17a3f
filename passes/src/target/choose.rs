//! What a target makes of the user's settings: its own formats where none were asked for, and a refusal where those
//! asked for have no kernel.

use onnx_quant_numerics::format::{Base, Format, Granularity};

use super::{Isa, Target, TargetName};
use crate::settings::QuantSettings;

/// Which settings the user has asked for; the others are defaults that a target may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// The format of activations.
    pub activations: bool,
    /// The format of weights.
    pub weights: bool,
    /// The scheme of activations.
    pub activation_scheme: bool,
    /// The scheme of weights.
    pub weight_scheme: bool,
}

/// Brings the settings into what their target takes.
///
/// # Errors
/// A format, a scheme or a form that was asked for and that the target does not have.
pub fn choose(settings: &mut QuantSettings, given: Given) -> Result<(), String> {
    let target = settings.target.rules();
    if settings.isa.is_some() && target.name != TargetName::Ort {
        return Err(format!(
            "--isa chooses among the kernels of onnxruntime and means nothing to --target {}",
            target.word
        ));
    }
    for (asked, option) in [
        (settings.qoperator, "--format qoperator"),
        (settings.dynamic, "--dynamic"),
    ] {
        if asked && !target.integer_operators {
            return Err(format!(
                "{option}: {} has no integer operators, it reads the Q/DQ form; use --format qdq with --calib",
                target.title
            ));
        }
    }
    if settings.storage.matmul_nbits && !target.contrib {
        return Err(format!(
            "--matmul-nbits: MatMulNBits is an operator of onnxruntime, which {} does not have; leave it out, or use --target ort",
            target.title
        ));
    }
    if settings.floats.base == Some(Base::Fp16) {
        settings.storage.half_scales = true;
    }
    if settings.dynamic {
        if given.activations {
            return Err(
                "--dynamic quantizes activations to uint8 at run time: leave out --activations"
                    .to_owned(),
            );
        }
        settings.activations = None;
    }
    if settings.dynamic && settings.weights.is_none() {
        return Err("--dynamic needs quantized weights: leave out --weights none".to_owned());
    }
    activations(settings, target, given)?;
    weights(settings, target, given)?;
    schemes(settings, target, given)
}

fn names(bases: &[Base]) -> String {
    let names: Vec<String> = bases.iter().map(ToString::to_string).collect();
    names.join(" or ")
}

fn activations(settings: &mut QuantSettings, target: &Target, given: Given) -> Result<(), String> {
    let Some(format) = settings.activations else {
        return Ok(());
    };
    let arm = settings.isa == Some(Isa::Arm);
    let taken: &[_] = match arm {
        true => &target.activations[1..],
        false => target.activations,
    };
    if !given.activations && (arm || !taken.contains(&format.base)) {
        settings.activations = Some(Format {
            base: taken[0],
            granularity: Some(Granularity::Tensor),
        });
    } else if matches!(format.base, Base::Int(8) | Base::Uint(8)) && !taken.contains(&format.base) {
        let who = if arm {
            "onnxruntime on ARM"
        } else {
            target.title
        };
        return Err(format!(
            "--activations {format}: {who} takes {} activations",
            names(taken)
        ));
    }
    Ok(())
}

fn weights(settings: &mut QuantSettings, target: &Target, given: Given) -> Result<(), String> {
    let Some(format) = settings.weights else {
        return Ok(());
    };
    let eight = matches!(format.base, Base::Int(8) | Base::Uint(8));
    if given.weights && eight && !target.weights.contains(&format.base) {
        return Err(format!(
            "--weights {format}: {} takes {} weights",
            target.title,
            names(target.weights)
        ));
    }
    Ok(())
}

fn schemes(settings: &mut QuantSettings, target: &Target, given: Given) -> Result<(), String> {
    let pairs = [
        (
            "--activation-scheme",
            given.activation_scheme,
            target.activation_scheme,
            &mut settings.activation_scheme,
        ),
        (
            "--weight-scheme",
            given.weight_scheme,
            target.weight_scheme,
            &mut settings.weight_scheme,
        ),
    ];
    for (option, asked, taken, scheme) in pairs {
        let Some(taken) = taken else { continue };
        if asked && *scheme != taken {
            return Err(format!(
                "{option} {scheme}: {} takes {taken} only",
                target.title
            ));
        }
        *scheme = taken;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use onnx_quant_numerics::format::Scheme;

    use super::*;

    fn settled(change: impl Fn(&mut QuantSettings, &mut Given)) -> Result<QuantSettings, String> {
        let (mut settings, mut given) = (QuantSettings::default(), Given::default());
        change(&mut settings, &mut given);
        choose(&mut settings, given).map(|()| settings)
    }

    #[test]
    fn a_target_gives_its_own_defaults() {
        let s = settled(|s, _| s.target = TargetName::TensorRt).unwrap();
        assert_eq!(s.activations.unwrap().base, Base::INT8);
        assert_eq!(s.activation_scheme, Scheme::Symmetric);
        let s = settled(|s, _| s.isa = Some(Isa::Arm)).unwrap();
        assert_eq!(s.activations.unwrap().base, Base::INT8);
        assert_eq!(s.activation_scheme, Scheme::Asymmetric);
        let s = settled(|s, _| s.isa = Some(Isa::Avx2)).unwrap();
        assert!(s.reduce_weights() && !s.reduce_range);
        let s = settled(|s, _| s.isa = Some(Isa::Vnni)).unwrap();
        assert!(!s.reduce_weights());
        assert_eq!(s.activations.unwrap().base, Base::UINT8);
    }

    #[test]
    fn what_a_target_lacks_is_refused_by_name() {
        type Change = fn(&mut QuantSettings, &mut Given);
        let cases: [(Change, &str); 7] = [
            (
                |s, _| {
                    s.target = TargetName::OpenVino;
                    s.storage.matmul_nbits = true;
                },
                "--matmul-nbits: MatMulNBits is an operator of onnxruntime, which OpenVINO does not have",
            ),
            (
                |s, g| {
                    s.target = TargetName::TensorRt;
                    g.activations = true;
                },
                "TensorRT takes int8 activations",
            ),
            (
                |s, g| {
                    s.target = TargetName::TensorRt;
                    g.activation_scheme = true;
                },
                "--activation-scheme asymmetric: TensorRT takes symmetric only",
            ),
            (
                |s, g| {
                    s.target = TargetName::OpenVino;
                    s.weights = Some("uint8".parse().unwrap());
                    g.weights = true;
                },
                "OpenVINO takes int8 weights",
            ),
            (
                |s, _| {
                    s.target = TargetName::OpenVino;
                    s.dynamic = true;
                },
                "--dynamic: OpenVINO has no integer operators",
            ),
            (
                |s, _| {
                    s.target = TargetName::Generic;
                    s.isa = Some(Isa::Vnni);
                },
                "--isa chooses among the kernels of onnxruntime",
            ),
            (
                |s, g| {
                    s.isa = Some(Isa::Arm);
                    g.activations = true;
                },
                "onnxruntime on ARM takes int8 activations",
            ),
        ];
        for (change, says) in cases {
            let e = settled(change).unwrap_err();
            assert!(e.contains(says), "{e}");
        }
    }
}
