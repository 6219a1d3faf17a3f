//! The distributions of quantized tensors: of activations from the statistics of the calibration, of weights from the
//! float model.

use onnx_quant_ir::Model;
use onnx_quant_numerics::affine::{QOptions, code_range};
use onnx_quant_numerics::format::{Family, Scheme};
use onnx_quant_numerics::histogram::Histogram;
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::plan::{PrecisionPlan, WeightPlan};
use onnx_quant_passes::qdq;
use onnx_quant_passes::settings::QuantSettings;

use super::figures::TensorHistogram;

/// Bins of a report; statistics have some thousand.
const BINS: usize = 64;

/// The distribution of every quantized activation that was observed, in the order of their names.
pub(crate) fn activations(
    plan: &PrecisionPlan,
    calibration: Option<&Calibration>,
) -> Vec<TensorHistogram> {
    let Some(calibration) = calibration else {
        return Vec::new();
    };
    let seen = plan.activations.iter().filter_map(|(key, a)| {
        let histogram = calibration.values.get(key)?.histogram();
        let mut drawn = of(histogram)?;
        drawn.tensor.clone_from(key);
        drawn.kind = "activation";
        drawn.format = a.format.base.to_string();
        drawn.scales = 1;
        if let Some(p) = a.params {
            let (low, high) = p.real_range();
            clip(&mut drawn, histogram, (f64::from(low), f64::from(high)));
            drawn.levels = Some((i64::from(p.qmax) - i64::from(p.qmin) + 1).unsigned_abs());
        }
        Some(drawn)
    });
    seen.collect()
}

/// The distribution of every quantized weight, in the order of the plan, from a model whose weights are float still.
pub(crate) fn weights(plan: &PrecisionPlan, float: &Model) -> Vec<(Histogram, TensorHistogram)> {
    let mut found: Vec<(Histogram, TensorHistogram)> = Vec::new();
    let keys = float
        .all_values()
        .into_iter()
        .filter(|v| float.is_constant(*v));
    let by_key: std::collections::BTreeMap<String, _> =
        keys.map(|v| (float.value_key(v), v)).collect();
    for w in &plan.weights {
        let format = w.format.to_string();
        if found
            .iter()
            .any(|(_, h)| h.tensor == w.key && h.format == format)
        {
            continue;
        }
        let tensor = by_key.get(&w.key).and_then(|&v| float.constant(v));
        let Some(values) = tensor.and_then(|t| t.to_f32().ok()) else {
            continue;
        };
        let mut histogram = Histogram::new();
        histogram.observe(&values);
        if let Some(mut drawn) = of(&histogram) {
            drawn.tensor.clone_from(&w.key);
            drawn.kind = "weight";
            drawn.format = format;
            found.push((histogram, drawn));
        }
    }
    found
}

/// Adds scales and clip ranges, which the quantized model knows.
pub(crate) fn clipped(
    weights: Vec<(Histogram, TensorHistogram)>,
    plan: &PrecisionPlan,
    settings: &QuantSettings,
    quantized: &Model,
) -> Vec<TensorHistogram> {
    let decoders = quantized.all_nodes().into_iter();
    let decoders = decoders.filter_map(|n| qdq::dequantize(quantized, n));
    let by_codes: std::collections::BTreeMap<String, qdq::Qdq> =
        decoders.map(|d| (codes_key(quantized, &d), d)).collect();
    let add = |(histogram, mut drawn): (Histogram, TensorHistogram)| {
        let plan = plan
            .weights
            .iter()
            .find(|w| w.key == drawn.tensor && w.format.to_string() == drawn.format);
        let decoder = by_codes.get(&format!("{}_quantized", drawn.tensor));
        if let (Some(w), Some(d)) = (plan, decoder) {
            scaled(&mut drawn, &histogram, w, settings, quantized, d);
        }
        drawn
    };
    weights.into_iter().map(add).collect()
}

/// Graph path and name of the codes, also of those that are gathered before they are decoded.
fn codes_key(model: &Model, d: &qdq::Qdq) -> String {
    let gathered = model
        .producer(d.input)
        .filter(|(n, _)| model.node(*n).is("Gather"))
        .and_then(|(n, _)| model.input(n, 0));
    model.value_key(gathered.unwrap_or(d.input))
}

/// Scales, levels and the widest range of integer codes.
fn scaled(
    drawn: &mut TensorHistogram,
    histogram: &Histogram,
    plan: &WeightPlan,
    settings: &QuantSettings,
    quantized: &Model,
    d: &qdq::Qdq,
) {
    let Some(scales) = quantized.constant(d.scale).and_then(|s| s.to_f32().ok()) else {
        return;
    };
    drawn.scales = scales.len() as u64;
    let base = plan.format.base;
    if !matches!(base.info().family, Family::Integer | Family::FixedPoint) {
        return;
    }
    let zeros = d.zero_point.and_then(|z| quantized.constant(z));
    let zeros = zeros.and_then(|z| z.to_i64().ok()).unwrap_or_default();
    let scheme = if zeros.iter().any(|z| *z != 0) {
        Scheme::Asymmetric
    } else {
        Scheme::Symmetric
    };
    let options = QOptions {
        narrow: settings.storage.narrow(base, scheme),
        reduce_range: settings.reduce_range,
    };
    let (qmin, qmax) = code_range(base, options);
    drawn.levels = Some((i64::from(qmax) - i64::from(qmin) + 1).unsigned_abs());
    let range = |(i, s): (usize, &f32)| {
        let zero = zeros.get(i).copied().unwrap_or(0) as f64;
        let s = f64::from(*s);
        ((f64::from(qmin) - zero) * s, (f64::from(qmax) - zero) * s)
    };
    let widest = scales
        .iter()
        .enumerate()
        .map(range)
        .max_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0)));
    if let Some(widest) = widest {
        clip(drawn, histogram, widest);
        // What each scale clips is not in the distribution of all.
        if drawn.scales > 1 {
            drawn.clipped = None;
        }
    }
}

/// Few bins of many; `None` without finite values.
fn of(histogram: &Histogram) -> Option<TensorHistogram> {
    let (min, max) = histogram.extremes()?;
    let (mut low, mut high) = (f64::from(min), f64::from(max));
    if low == high {
        let room = low.abs().max(1e-6) / 2.0;
        (low, high) = (low - room, high + room);
    }
    // Bins that are no narrower than those of the statistics have no gaps between them.
    let most = ((high - low) / histogram.bin_width()).floor();
    let bins = if most >= 1.0 {
        BINS.min(most as usize)
    } else {
        1
    };
    let mut counts = vec![0u64; bins];
    for b in histogram.bins() {
        let place = ((b.low + b.high) / 2.0 - low) / (high - low) * bins as f64;
        counts[(place.max(0.0) as usize).min(bins - 1)] += b.count;
    }
    Some(TensorHistogram {
        values: histogram.count(),
        edges: (low, high),
        counts,
        ..TensorHistogram::default()
    })
}

/// Sets the range that codes reach, and the share of values outside.
fn clip(drawn: &mut TensorHistogram, histogram: &Histogram, (low, high): (f64, f64)) {
    // Half a level beyond the last one is rounded, not clipped: bins tell no finer than this.
    let outside = |b: &onnx_quant_numerics::histogram::Bin| b.high <= low || b.low >= high;
    let clipped: u64 = histogram.bins().filter(outside).map(|b| b.count).sum();
    drawn.clip = Some((low, high));
    drawn.clipped = Some(clipped as f64 / drawn.values.max(1) as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[f32]) -> (Histogram, TensorHistogram) {
        let mut histogram = Histogram::new();
        histogram.observe(values);
        let drawn = of(&histogram).unwrap_or_default();
        (histogram, drawn)
    }

    #[test]
    fn every_value_is_in_a_bin_and_none_is_between() {
        let values: Vec<f32> = (0..10_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let (_, drawn) = seen(&values);
        assert_eq!(drawn.counts.len(), BINS);
        assert_eq!(drawn.counts.iter().sum::<u64>(), 10_000);
        assert!(drawn.counts.iter().all(|&n| n > 0), "{:?}", drawn.counts);
        let (_, narrow) = seen(&[100.0, 100.01, 100.02]);
        assert_eq!(narrow.counts.iter().sum::<u64>(), 3);
        let (_, one) = seen(&[0.0; 5]);
        assert_eq!(one.counts.iter().sum::<u64>(), 5);
        assert!(one.edges.0 < 0.0 && one.edges.1 > 0.0);
    }

    #[test]
    fn what_lies_outside_is_counted() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let (histogram, mut drawn) = seen(&values);
        clip(&mut drawn, &histogram, (0.0, 899.5));
        let share = drawn.clipped.unwrap_or(0.0);
        assert!((share - 0.1).abs() < 0.005, "{share}");
    }

    #[test]
    fn nothing_is_drawn_of_no_values() {
        assert!(of(&Histogram::new()).is_none());
    }
}
