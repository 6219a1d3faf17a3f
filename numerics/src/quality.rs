//! What a format does to Gaussian values: its error, its dynamic range and the bits it really stores.

use crate::affine::QOptions;
use crate::blockfloat::{e8m0_decode, mx_scales, nvfp4_scales};
use crate::format::{Base, Family, Footprint, Format, Granularity, Groups, Scheme};
use crate::grouping::Grouping;
use crate::minifloat::MiniFloat;
use crate::scaling::{
    ScaleKind, ScalingError, WeightCalibrator, WeightQuantizer, choose_params, choose_scales,
};
use crate::vsq::vector_scales;

/// Rows and columns of the sample.
pub const SAMPLE: (usize, usize) = (64, 1024);

/// Gaussian values of variance 1: the quantiles `Φ⁻¹((i + ½) / n)` in a fixed, scattered order.
pub fn gaussian_sample() -> Vec<f32> {
    let n = SAMPLE.0 * SAMPLE.1;
    // An odd factor runs through all residues of a power of two.
    let at = |i: usize| (i * 40_503 + 12_345) % n;
    (0..n)
        .map(|i| inverse_normal((at(i) as f64 + 0.5) / n as f64) as f32)
        .collect()
}

/// The quantile of the normal distribution, by bisection of `erfc` (53 steps).
fn inverse_normal(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0f64, 9.0f64);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The values after quantization; rows are channels. `None` for formats whose codes are no numbers with a scale.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn round_trip(
    data: &[f32],
    (rows, columns): (usize, usize),
    format: Format,
) -> Result<Option<Vec<f32>>, ScalingError> {
    let base = format.base;
    let shape = [rows, columns];
    let granularity = format.granularity(Granularity::Channel);
    let grouping = match granularity {
        Granularity::Tensor => Grouping::tensor(data.len()),
        Granularity::Channel => Grouping::channels(&shape, 0)?,
        Granularity::Block(n) | Granularity::Vsq(n) => Grouping::blocks(&shape, 1, n as usize)?,
    };
    let info = base.info();
    let how = WeightQuantizer {
        base,
        scheme: if info.signed {
            Scheme::Symmetric
        } else {
            Scheme::Asymmetric
        },
        options: QOptions {
            narrow: info.signed && info.bits >= 8,
            reduce_range: false,
        },
        calibrator: WeightCalibrator::default_for(base),
        scale: ScaleKind::default(),
    };
    let floats = |scales: Vec<f32>, element: MiniFloat| {
        let at = |(i, &x): (usize, &f32)| {
            let scale = scales[grouping.group_of(i)];
            element.decode(element.encode(x / scale, true)) * scale
        };
        data.iter().enumerate().map(at).collect()
    };
    let element = base.element().unwrap_or(MiniFloat::E4m3);
    Ok(Some(match (info.family, granularity) {
        (Family::Codebook | Family::Sign, _) => return Ok(None),
        (Family::Cast, _) => data.iter().map(|&x| cast(x, base)).collect(),
        (Family::Integer | Family::FixedPoint, _) => {
            let params = match granularity {
                Granularity::Vsq(n) => {
                    let in_row = columns.div_ceil(n as usize);
                    vector_scales(data, grouping, rows, |v| v / in_row, &how)?.params
                }
                _ => choose_params(data, grouping, &how)?,
            };
            let at = |(i, &x): (usize, &f32)| {
                let p = &params[grouping.group_of(i)];
                p.dequantize(p.quantize(x))
            };
            data.iter().enumerate().map(at).collect()
        }
        (Family::Float, _) => floats(
            choose_scales(data, grouping, element, how.calibrator, how.scale)?,
            element,
        ),
        (Family::BlockFloat, _) if base == Base::Nvfp4 => floats(
            nvfp4_scales(data, grouping, how.calibrator)?.scales(),
            element,
        ),
        (Family::BlockFloat, _) => {
            let codes = mx_scales(data, grouping, element, how.calibrator)?;
            floats(codes.into_iter().map(e8m0_decode).collect(), element)
        }
    }))
}

fn cast(x: f32, base: Base) -> f32 {
    match base {
        Base::Fp16 => half::f16::from_f32(x).to_f32(),
        Base::Bf16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// The signal-to-noise ratio in dB that Gaussian values keep in a format, `10 log10(E[x²] / E[(x − Q(x))²])`; infinite
/// without error, `None` where [`round_trip`] gives nothing.
pub fn gaussian_sqnr(format: Format) -> Option<f64> {
    let data = gaussian_sample();
    let rounded = round_trip(&data, SAMPLE, format).ok().flatten()?;
    let (mut signal, mut noise) = (0.0, 0.0);
    for (&x, &y) in data.iter().zip(&rounded) {
        signal += f64::from(x).powi(2);
        noise += (f64::from(x) - f64::from(y)).powi(2);
    }
    Some(10.0 * (signal / noise).log10())
}

/// What a matrix of the sample's shape stores, with FP32 scales and without zero points where codes are signed.
pub fn footprint(format: Format) -> Footprint {
    let (rows, columns) = SAMPLE;
    let block = match format.granularity(Granularity::Channel) {
        Granularity::Block(n) | Granularity::Vsq(n) => u64::from(n),
        _ => columns as u64,
    };
    let groups = Groups::rows(rows as u64, columns as u64, block);
    format.footprint(groups, 32, !format.base.info().signed)
}

/// The ratio of the largest to the smallest positive number of one scale, in dB (`20 log10`).
pub fn dynamic_range(base: Base) -> f64 {
    let info = base.info();
    let (largest, smallest) = match (base, base.element()) {
        (_, Some(element)) => (f64::from(element.largest()), f64::from(element.smallest())),
        (Base::Fp32, _) => (f64::from(f32::MAX), f64::from(f32::from_bits(1))),
        (Base::Fp16, _) => (65504.0, 2f64.powi(-24)),
        (Base::Bf16, _) => (f64::from(info.range.1), 2f64.powi(-133)),
        _ if base.is_integer() => (f64::from(info.qmax).max(1.0), 1.0),
        _ => (1.0, 1.0),
    };
    20.0 * (largest / smallest).log10()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_sample_is_gaussian() {
        let data = gaussian_sample();
        let n = data.len() as f64;
        let moment = |p: i32| data.iter().map(|&x| f64::from(x).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 1e-6);
        assert!((moment(2) - 1.0).abs() < 1e-3);
        assert!((moment(4) - 3.0).abs() < 0.02);
    }

    #[test]
    fn errors_are_in_the_known_order() {
        let sqnr = |text: &str| gaussian_sqnr(text.parse().unwrap()).unwrap();
        // 6.02 dB a bit; Max 1960: at best 20.22 dB with 16 levels, of which the zero of a symmetric scale costs some.
        assert!(sqnr("int8:channel") > 38.0 && sqnr("int8:channel") < 44.0);
        assert!(sqnr("int4:tensor") > 18.0 && sqnr("int4:tensor") < 20.22);
        assert!(sqnr("int4:block32") > sqnr("int4:channel"));
        assert!(sqnr("int4:vsq16") > sqnr("int4:channel"));
        assert!(sqnr("fp8e4m3:channel") > sqnr("fp8e5m2:channel"));
        assert!(sqnr("nvfp4") > sqnr("mxfp4"));
        assert!(sqnr("mxfp8") > sqnr("mxfp6") - 3.0 && sqnr("mxfp6") > sqnr("mxfp4"));
        assert!(sqnr("fp32").is_infinite() && sqnr("fp16") > sqnr("bf16"));
        assert!(gaussian_sqnr("kmeans4".parse().unwrap()).is_none());
    }

    #[test]
    fn ranges_and_bits() {
        let base = |text: &str| text.parse::<Base>().unwrap();
        assert!((dynamic_range(base("int8")) - 42.08).abs() < 0.01);
        assert!((dynamic_range(base("fp4e2m1")) - 21.58).abs() < 0.01);
        let bits = |text: &str| footprint(text.parse().unwrap()).effective_bits(65536);
        assert_eq!(bits("int4:block32"), 5.0);
        assert_eq!(bits("mxfp4"), 4.25);
    }
}
