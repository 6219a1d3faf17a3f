//! Whether an activation bears its format: the parameters that calibration gives, and the noise they cost.

use onnx_quant_ir::{DataType, Model, ValueId};
use onnx_quant_numerics::affine::{QOptions, QParams, choose_qparams, code_range};
use onnx_quant_numerics::format::{Base, Scheme};
use onnx_quant_numerics::histogram::Histogram;
use onnx_quant_numerics::minifloat::{MiniFloat, pow2};
use onnx_quant_numerics::observer::{self, Calibrator, Care, Target};
use onnx_quant_numerics::scaling::ScaleKind;
use onnx_quant_numerics::stats::TensorStats;

use crate::calibration::Calibration;
use crate::importance;
use crate::layers::Pinned;
use crate::ops;
use crate::qdq;
use crate::settings::QuantSettings;

/// The parameters of an activation.
///
/// # Errors
/// Why it cannot be quantized: no statistics, values that are not finite, or too much noise (`force` allows that).
pub(super) fn parameters(
    model: &Model,
    value: ValueId,
    (base, float): (Base, DataType),
    settings: &QuantSettings,
    (calibration, pinned): (&Calibration, Option<Pinned>),
    force: bool,
) -> Result<QParams, String> {
    let name = &model.value(value).name;
    let stats = calibration.values.get(&model.value_key(value));
    let stats = stats.filter(|s| !s.is_empty());
    let histogram = stats.map(TensorStats::histogram);
    let options = QOptions {
        narrow: false,
        reduce_range: settings.reduce_range,
    };
    let target = Target {
        base,
        scheme: settings.activation_scheme,
        options,
    };
    let given = calibration.ranges.get(&model.value_key(value)).copied();
    let known = match pinned {
        Some(Pinned::Params(params)) if (params.qmin, params.qmax) == code_range(base, options) => {
            return Ok(params);
        }
        Some(Pinned::Params(_)) => {
            return Err(format!(
                "the scale that is given for the activation `{name}` is of another format than {base}: give its range"
            ));
        }
        Some(Pinned::Range(min, max)) => Some((min, max)),
        None => given.or_else(|| ops::known_range(model, value)),
    };
    let range = match (known, stats) {
        (Some(range), _) => range,
        (None, Some(stats)) if base.element().is_some() => {
            float_range(model, value, stats, base, settings.calibrator)
                .map_err(|e| format!("activation `{name}`: {e}"))?
        }
        (None, Some(stats)) => choose(model, value, stats, settings.calibrator, target)
            .map_err(|e| format!("activation `{name}`: {e}"))?,
        (None, None) => return Err(unseen(model, value)),
    };
    let mut params = choose_qparams(range.0, range.1, base, settings.activation_scheme, options)
        .map_err(|e| format!("activation `{name}`: {e}"))?;
    if settings.storage.power_of_two {
        params = with_power_of_two(params, range.1, settings.activation_scheme);
    }
    if let Base::Fixed { fraction, .. } = base {
        params = QParams::for_type(pow2(-i32::from(fraction)), 0, base);
    }
    params.scale = qdq::stored_scale(params.scale, float);
    if let Some(h) = histogram.filter(|_| !force) {
        let sqnr = expected_sqnr(h, &params, base);
        let least = least_sqnr(settings, base);
        if sqnr < least {
            let (min, max) = h.extremes().unwrap_or(range);
            return Err(format!(
                "activation `{name}` (range {min:.4} to {max:.4}) would keep only {sqnr:.1} dB in {base}, less than {least:.0}",
            ));
        }
    }
    Ok(params)
}

/// Why a value has no statistics.
fn unseen(model: &Model, value: ValueId) -> String {
    let v = model.value(value);
    let reason = match model.graph_path(v.graph) {
        path if path.is_empty() => String::new(),
        path => format!(": no sample runs the body `{path}`"),
    };
    format!(
        "activation `{}` was not seen in calibration{reason}",
        v.name
    )
}

/// The range that a calibrator chooses; a refusal of values that are not finite names the first sample with them.
fn choose(
    model: &Model,
    value: ValueId,
    stats: &TensorStats,
    calibrator: Calibrator,
    target: Target,
) -> Result<(f32, f32), String> {
    let care = match calibrator {
        Calibrator::Auto => importance::care(model, value, stats),
        _ => Care::default(),
    };
    observer::choose(stats, calibrator, target, &care).map_err(|e| match stats.first_non_finite() {
        Some(sample) => format!("{e}, first in calibration sample {sample} (counted from 0)"),
        None => e.to_string(),
    })
}

/// The ratio in dB that an activation must keep. The setting is meant for 8-bit integers; a format that keeps less of any
/// value is asked for less: 6.02 dB for each bit of an integer, and of a float the difference between 40 dB, which 8-bit
/// integers reach, and `6.02 (m + 1) + 7.5` with `m` mantissa bits.
pub(super) fn least_sqnr(settings: &QuantSettings, base: Base) -> f64 {
    let info = base.info();
    let less = match base.element() {
        Some(element) => 40.0 - (6.02 * f64::from(element.mantissa_bits() + 1) + 7.5),
        None => 6.02 * (8.0 - f64::from(info.bits.min(8))),
    };
    settings.min_activation_sqnr - less
}

/// The scale raised to the next power of two, with the zero point that belongs to it: at the lowest code it stays, so
/// that no code lies below zero.
fn with_power_of_two(mut params: QParams, high: f32, scheme: Scheme) -> QParams {
    let kind = ScaleKind {
        power_of_two: true,
        half: false,
    };
    params.scale = kind.stored(params.scale);
    if scheme == Scheme::Asymmetric && ![0, params.qmin].contains(&params.zero_point) {
        let exact = f64::from(params.qmax) - f64::from(high.max(0.0)) / f64::from(params.scale);
        params.zero_point = (exact.round_ties_even() as i32).clamp(params.qmin, params.qmax);
    }
    params
}

/// The range of an activation in a float format: by the calibrator, or of least squared error.
fn float_range(
    model: &Model,
    value: ValueId,
    stats: &TensorStats,
    base: Base,
    calibrator: Calibrator,
) -> Result<(f32, f32), String> {
    let target = Target {
        base: Base::INT8,
        scheme: Scheme::Symmetric,
        options: QOptions::default(),
    };
    let searched = matches!(calibrator, Calibrator::Mse | Calibrator::Auto);
    let Some(element) = base.element().filter(|_| searched) else {
        return choose(model, value, stats, calibrator, target);
    };
    let (low, high) = choose(model, value, stats, Calibrator::MinMax, target)?;
    let reach = high.max(-low);
    let mut best = (f64::INFINITY, 1.0f32);
    for step in 0..28u8 {
        let factor = (-f32::from(step) / 4.0).exp2();
        let scale = (reach * factor / element.largest()).max(f32::MIN_POSITIVE);
        let (_, noise) = float_noise(stats.histogram(), scale, element);
        if noise < best.0 {
            best = (noise, factor);
        }
    }
    let reach = reach * best.1;
    Ok((low.max(-reach), high.min(reach)))
}

/// `Σ x²` and `Σ (x − Q(x))²` over a histogram, every bin taken as its centre.
fn float_noise(histogram: &Histogram, scale: f32, element: MiniFloat) -> (f64, f64) {
    let (mut signal, mut noise) = (0.0, 0.0);
    for bin in histogram.bins().filter(|b| b.count > 0) {
        let x = ((bin.low + bin.high) / 2.0) as f32;
        let rounded = element.decode(element.encode(x / scale, true)) * scale;
        let count = bin.count as f64;
        signal += count * f64::from(x).powi(2);
        noise += count * (f64::from(x) - f64::from(rounded)).powi(2);
    }
    (signal, noise)
}

/// The signal-to-quantization-noise ratio in dB that a tensor with this histogram has after quantization:
/// `10 log10(E[x²] / E[(x − Q(x))²])`, every bin taken as its centre. Bins narrower than half a step cost their own
/// rounding error; wider ones `S²/12`, the error of a uniform distribution (Bennett, 1948). Infinite without error.
pub(super) fn expected_sqnr(histogram: &Histogram, params: &QParams, base: Base) -> f64 {
    if let Some(element) = base.element() {
        let (signal, noise) = float_noise(histogram, params.scale, element);
        return match noise {
            0.0 => f64::INFINITY,
            _ => 10.0 * (signal / noise).log10(),
        };
    }
    let scale = f64::from(params.scale);
    let (low, high) = params.real_range();
    let (low, high) = (f64::from(low), f64::from(high));
    let fine = histogram.bin_width() * 2.0 <= scale;
    let (mut signal, mut noise) = (0.0, 0.0);
    for bin in histogram.bins().filter(|b| b.count > 0) {
        let x = (bin.low + bin.high) / 2.0;
        let count = bin.count as f64;
        signal += count * x * x;
        let clipped = x.clamp(low, high);
        let error = if bin.low <= 0.0 && bin.high >= 0.0 && histogram_is_zero_heavy(&bin, scale) {
            0.0
        } else if clipped != x {
            (x - clipped).powi(2)
        } else if fine {
            (x - (x / scale).round_ties_even() * scale).powi(2)
        } else {
            scale * scale / 12.0
        };
        noise += count * error;
    }
    if noise == 0.0 {
        return f64::INFINITY;
    }
    10.0 * (signal / noise).log10()
}

/// The bin around zero holds what is exactly zero (after a Relu) or rounds to it.
fn histogram_is_zero_heavy(bin: &onnx_quant_numerics::histogram::Bin, scale: f64) -> bool {
    (bin.high - bin.low) < scale
}
