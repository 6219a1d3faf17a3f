//! Confidence intervals of what is lost between two models on the same samples.
//!
//! Sources: Tango, *Equivalence test and confidence interval for the difference in proportions for the paired-sample
//! design*, Statistics in Medicine 17 (1998), for shares; the paired t-interval for means. The normal quantile is
//! Acklam's rational approximation (relative error below 1.2e-9), Student's the expansion in 1/ν of Abramowitz and
//! Stegun 26.7.5.

/// The lower and the upper end; each holds with the stated confidence by itself (one-sided).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Not less than this.
    pub lower: f64,
    /// Not more than this.
    pub upper: f64,
}

/// The value below which a standard normal variable lies with probability `p`, for `p` in (0, 1).
pub fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -39.696_830_286_653_76,
        220.946_098_424_520_8,
        -275.928_510_446_969,
        138.357_751_867_269,
        -30.664_798_066_147_16,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -54.476_098_798_224_06,
        161.585_836_858_040_9,
        -155.698_979_859_886_6,
        66.801_311_887_719_72,
        -13.280_681_552_885_72,
    ];
    const C: [f64; 6] = [
        -0.007_784_894_002_430_293,
        -0.322_396_458_041_136_4,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] = [
        0.007_784_695_709_041_462,
        0.322_467_129_070_039_8,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
    ];
    let horner = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, a| sum * x + a);
    let tail = |q: f64| horner(&C, q) / (horner(&D, q) * q + 1.0);
    if p < 0.024_25 {
        tail((-2.0 * p.ln()).sqrt())
    } else if p > 1.0 - 0.024_25 {
        -tail((-2.0 * (1.0 - p).ln()).sqrt())
    } else {
        let q = p - 0.5;
        let r = q * q;
        horner(&A, r) * q / (horner(&B, r) * r + 1.0)
    }
}

/// The value below which Student's t with `freedom` degrees of freedom lies with probability `p`.
pub fn student_quantile(p: f64, freedom: f64) -> f64 {
    let z = normal_quantile(p);
    if freedom <= 0.0 {
        return f64::INFINITY.copysign(z);
    }
    let (z2, n) = (z * z, freedom);
    let g1 = (z2 + 1.0) * z / 4.0;
    let g2 = ((5.0 * z2 + 16.0) * z2 + 3.0) * z / 96.0;
    let g3 = (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) * z / 384.0;
    z + g1 / n + g2 / (n * n) + g3 / (n * n * n)
}

/// The difference of two shares that were counted on the same `samples`: `lost` samples count for the first only,
/// `won` for the second only. The difference is `(lost − won) / samples`.
pub fn paired_shares(lost: u64, won: u64, samples: u64, confidence: f64) -> Interval {
    if samples == 0 {
        return Interval {
            lower: -1.0,
            upper: 1.0,
        };
    }
    let z = normal_quantile(confidence);
    let (b, c, n) = (lost as f64, won as f64, samples as f64);
    Interval {
        lower: -upper_share(c, b, n, z),
        upper: upper_share(b, c, n, z),
    }
}

/// The largest difference that the score test does not reject, by bisection: the statistic falls with the difference.
fn upper_share(b: f64, c: f64, n: f64, z: f64) -> f64 {
    let score = |d: f64| {
        let (a2, b2, c2) = (2.0 * n, -b - c + (2.0 * n - b + c) * d, -c * d * (1.0 - d));
        let q = ((b2 * b2 - 4.0 * a2 * c2).max(0.0).sqrt() - b2) / (2.0 * a2);
        let variance = n * (2.0 * q + d * (1.0 - d));
        (b - c - n * d) / variance.max(1e-300).sqrt()
    };
    let (mut low, mut high) = ((b - c) / n, 1.0);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if score(middle) < -z {
            high = middle
        } else {
            low = middle
        }
    }
    high
}

/// The mean of differences, one a sample.
pub fn paired_mean(differences: &[f64], confidence: f64) -> Interval {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n.max(1.0);
    if differences.len() < 2 {
        return Interval {
            lower: f64::NEG_INFINITY,
            upper: f64::INFINITY,
        };
    }
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = student_quantile(confidence, n - 1.0) * (variance / n).sqrt();
    Interval {
        lower: mean - half,
        upper: mean + half,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in [
            (0.5, 0.0),
            (0.95, 1.644_853_627),
            (0.975, 1.959_963_985),
            (0.001, -3.090_232_306),
        ] {
            assert!((normal_quantile(p) - z).abs() < 1e-8, "{p}");
        }
        for (p, n, t) in [
            (0.95, 10.0, 1.812_461),
            (0.975, 30.0, 2.042_272),
            (0.95, 5.0, 2.015_048),
        ] {
            assert!((student_quantile(p, n) - t).abs() < 2e-3, "{p} {n}");
        }
    }

    #[test]
    fn shares_have_the_interval_of_the_score_test() {
        // Tango's example: 12 and 2 of 44, the 95 % interval of both sides is 0.0857 to 0.3755 within the table's digits.
        let i = paired_shares(12, 2, 44, 0.975);
        let mean = 10.0 / 44.0;
        assert!(i.lower < mean && mean < i.upper);
        assert!(
            (i.lower - 0.061).abs() < 0.03 && (i.upper - 0.383).abs() < 0.03,
            "{i:?}"
        );
        // Nothing lost: z²/(n + z²).
        let z2 = normal_quantile(0.95).powi(2);
        let none = paired_shares(0, 0, 1000, 0.95);
        assert!((none.upper - z2 / (1000.0 + z2)).abs() < 1e-9, "{none:?}");
        assert_eq!(none.lower, -none.upper);
        let many = paired_shares(30, 20, 2000, 0.95);
        let wald = 0.005 + 1.645 * (50.0f64 / 2000.0 - 0.000_025).sqrt() / 2000f64.sqrt();
        assert!((many.upper - wald).abs() < 1e-3);
    }

    #[test]
    fn means_have_the_t_interval() {
        let i = paired_mean(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.975);
        let half = 2.776_445 * (2.5f64 / 5.0).sqrt();
        assert!((i.upper - (3.0 + half)).abs() < 0.02 && (i.lower - (3.0 - half)).abs() < 0.02);
        assert_eq!(paired_mean(&[1.0], 0.95).upper, f64::INFINITY);
    }
}
