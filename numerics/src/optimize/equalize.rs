//! Cross-layer equalization: factors that move the size of a channel from one weight to the next without changing the
//! function, and biases that are moved past an activation.
//!
//! Source: Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019, sections 4.1
//! (equation 11) and 4.2 (absorbing high biases).

/// The factor of each channel between two weights: the first is divided by it, the second multiplied. `first` and
/// `second` are the largest magnitudes of the channel in each. A channel that is 0 in one of them keeps 1.
pub fn pair_factors(first: &[f32], second: &[f32]) -> Vec<f32> {
    let factor = |(&a, &b): (&f32, &f32)| valid((f64::from(a) / f64::from(b)).sqrt(), a.min(b));
    first.iter().zip(second).map(factor).collect()
}

/// The factors around a depthwise weight: after the first weight, and after the depthwise one. All three then have the
/// channel at the cube root of the product.
pub fn depthwise_factors(first: &[f32], middle: &[f32], last: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut outer = Vec::with_capacity(first.len());
    let mut inner = Vec::with_capacity(first.len());
    for ((&a, &b), &c) in first.iter().zip(middle).zip(last) {
        let (x, y, z) = (f64::from(a), f64::from(b), f64::from(c));
        let least = a.min(b).min(c);
        outer.push(valid((x * x / (y * z)).cbrt(), least));
        inner.push(valid((x * y / (z * z)).cbrt(), least));
    }
    (outer, inner)
}

fn valid(s: f64, least: f32) -> f32 {
    let s32 = s as f32;
    if least > 0.0 && s32.is_normal() {
        s32.clamp(1e-8, 1e8)
    } else {
        1.0
    }
}

/// How much of a channel's bias is absorbed by the layer behind a Relu: `max(0, β − 3γ)`, for a pre-activation of mean
/// β and standard deviation γ; it is then below 0 in few cases only.
pub fn absorbed(mean: &[f64], deviation: &[f64]) -> Vec<f64> {
    let part = |(m, d): (&f64, &f64)| (m - 3.0 * d.abs()).max(0.0);
    mean.iter().zip(deviation).map(part).collect()
}

/// Mean and standard deviation of `max(low, min(high, x))` for a normal `x`: what an activation has, from
/// BatchNormalization's statistics.
pub fn clamped_normal(mean: f64, deviation: f64, low: f64, high: f64) -> (f64, f64) {
    let sd = deviation.abs();
    if sd == 0.0 {
        return (mean.max(low).min(high), 0.0);
    }
    let below = |bound: f64| {
        if bound.is_finite() {
            (bound - mean) / sd
        } else {
            bound
        }
    };
    let (a, b) = (below(low), below(high));
    // `z φ(z)`, which is 0 at infinity.
    let moment = |z: f64| if z.is_finite() { z * density(z) } else { 0.0 };
    let inside = distribution(b) - distribution(a);
    let step = density(a) - density(b);
    let mut first = mean * inside + sd * step;
    let mut second =
        mean * mean * inside + 2.0 * mean * sd * step + sd * sd * (inside + moment(a) - moment(b));
    for (bound, share) in [(low, distribution(a)), (high, 1.0 - distribution(b))] {
        if bound.is_finite() {
            first += bound * share;
            second += bound * bound * share;
        }
    }
    (first, (second - first * first).max(0.0).sqrt())
}

fn density(x: f64) -> f64 {
    if x.is_finite() {
        (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    } else {
        0.0
    }
}

/// The normal distribution function, by Abramowitz and Stegun 26.2.17 (error below 7.5e-8).
fn distribution(x: f64) -> f64 {
    if x == f64::INFINITY {
        return 1.0;
    }
    if x == f64::NEG_INFINITY {
        return 0.0;
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let c = [
        0.319_381_530,
        -0.356_563_782,
        1.781_477_937,
        -1.821_255_978,
        1.330_274_429,
    ];
    let tail = density(x) * c.iter().rev().fold(0.0, |sum, c| (sum + c) * t);
    if x >= 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_make_channels_equal() {
        let (a, b) = ([8.0f32, 1.0, 0.0], [2.0f32, 4.0, 1.0]);
        let s = pair_factors(&a, &b);
        assert_eq!(s, [2.0, 0.5, 1.0]);
        for i in 0..2 {
            assert_eq!(a[i] / s[i], b[i] * s[i]);
        }
        let (s, t) = depthwise_factors(&[8.0], &[1.0], &[27.0]);
        let (x, y, z) = (8.0 / s[0], s[0] / t[0], 27.0 * t[0]);
        assert!((x - 6.0).abs() < 1e-4 && (y - 6.0).abs() < 1e-4 && (z - 6.0).abs() < 1e-4);
    }

    #[test]
    fn only_what_is_surely_positive_is_absorbed() {
        assert_eq!(
            absorbed(&[10.0, 1.0, -4.0], &[2.0, -1.0, 0.1]),
            [4.0, 0.0, 0.0]
        );
    }

    #[test]
    fn moments_of_clamped_normals() {
        let inf = f64::INFINITY;
        let (mean, sd) = clamped_normal(0.0, 1.0, 0.0, inf);
        assert!((mean - 0.398_942_28).abs() < 1e-6 && (sd - 0.583_819_3).abs() < 1e-5);
        let capped = clamped_normal(50.0, 1.0, 0.0, 6.0);
        assert!((capped.0 - 6.0).abs() < 1e-9 && capped.1 < 1e-4);
        let free = clamped_normal(3.0, 0.5, -inf, inf);
        assert!((free.0 - 3.0).abs() < 1e-9 && (free.1 - 0.5).abs() < 1e-9);
        assert_eq!(clamped_normal(-1.0, 0.0, 0.0, 6.0), (0.0, 0.0));
        // By numerical integration.
        let (mean, sd) = (1.5, 2.0);
        let steps = (0..200_000).map(|i| -18.5 + 40.0 * (f64::from(i) + 0.5) / 200_000.0);
        let (mut first, mut second) = (0.0, 0.0);
        for x in steps {
            let share = density((x - mean) / sd) / sd * (40.0 / 200_000.0);
            let y: f64 = x.clamp(0.0, 6.0);
            first += y * share;
            second += y * y * share;
        }
        let found = clamped_normal(mean, sd, 0.0, 6.0);
        assert!((found.0 - first).abs() < 1e-6);
        assert!((found.1 - (second - first * first).sqrt()).abs() < 1e-5);
    }
}
