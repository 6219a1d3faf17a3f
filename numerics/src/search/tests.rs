//! The searches on data with a known or an exhaustively found optimum.
#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::affine::QOptions;
use crate::format::{Base, Scheme};
use crate::observer::{Calibrator, range_for};

fn observed(x: &[f32]) -> Histogram {
    let mut histogram = Histogram::new();
    histogram.observe(x);
    histogram
}

fn target(base: Base, scheme: Scheme) -> Target {
    Target {
        base,
        scheme,
        options: QOptions::default(),
    }
}

/// Normal values by Box and Muller's method from a linear congruential sequence.
fn normal(len: usize) -> Vec<f32> {
    let mut state = 12_345u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut value = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..len).map(|_| value() as f32).collect()
}

const TARGETS: [(Base, Scheme); 3] = [
    (Base::INT8, Scheme::Symmetric),
    (Base::UINT8, Scheme::Asymmetric),
    (Base::UINT8, Scheme::Symmetric),
];

#[test]
fn an_outlier_is_clipped_and_the_bulk_is_kept() {
    let mut x = normal(1_000_000);
    x.push(50.0);
    let histogram = observed(&x);
    for (base, scheme) in TARGETS {
        let (low, high) = range_for(&histogram, Calibrator::Kl, target(base, scheme)).unwrap();
        assert!((4.5..=7.0).contains(&high), "{base} {scheme}: {high}");
        assert!((-7.0..=-4.5).contains(&low), "{base} {scheme}: {low}");
    }
    // Squared errors weigh the outlier more: 10^6 (t/127)²/12 + (50 − t)² is least at 8.11.
    let (_, high) = mse_range(&histogram, target(Base::INT8, Scheme::Symmetric)).unwrap();
    assert!((8.0..8.25).contains(&high), "{high}");
}

#[test]
fn one_sided_data_keeps_its_side() {
    let mut x: Vec<f32> = normal(200_000).iter().map(|x| x.max(0.0)).collect();
    x.push(20.0);
    let (low, high) = range_for(&observed(&x), Calibrator::Kl, Target::default()).unwrap();
    assert_eq!(low, 0.0);
    assert!((3.5..=7.0).contains(&high), "{high}");
    assert_eq!(mse_range(&observed(&x), Target::default()).unwrap().0, 0.0);
}

#[test]
fn no_range_of_a_grid_has_a_smaller_error() {
    let mut x = normal(20_000);
    x.extend([9.0, -6.0]);
    let error = |low: f32, high: f32, base, scheme| {
        let p = choose_qparams(low, high, base, scheme, QOptions::default()).unwrap();
        let mut faked = x.clone();
        crate::quantize::fake_quant(&mut faked, &p);
        x.iter()
            .zip(faked)
            .map(|(&x, y)| f64::from(y - x).powi(2))
            .sum::<f64>()
    };
    let grid = |end: f32| (1..=30u8).map(move |step| end * f32::from(step) / 30.0);
    for (base, scheme) in TARGETS
        .into_iter()
        .chain([(Base::INT4, Scheme::Asymmetric)])
    {
        let (low, high) = mse_range(&observed(&x), target(base, scheme)).unwrap();
        let found = error(low, high, base, scheme);
        let least = grid(9.0)
            .flat_map(|high| grid(-6.0).map(move |low| (low, high)))
            .map(|(low, high)| error(low, high, base, scheme))
            .fold(f64::INFINITY, f64::min);
        assert!(found <= least * 1.02, "{base} {scheme}: {found} {least}");
    }
}

#[test]
fn no_narrower_range_has_an_error_below_the_floor() {
    let mut x = normal(20_000);
    x.extend([30.0, -17.0]);
    let density = Density::of(&observed(&x));
    for (base, scheme) in TARGETS {
        let trials: Vec<Trial> = (0..64u8)
            .map(|quarter| 30.0 * (-f32::from(quarter) / 4.0).exp2())
            .map(|reach| Trial::of(&density, -reach.min(17.0), reach, target(base, scheme)))
            .collect();
        assert_eq!(trials[0].floor, 0.0);
        for (i, wide) in trials.iter().enumerate() {
            for narrow in &trials[i..] {
                assert!(wide.floor <= narrow.error, "{base} {scheme}");
            }
        }
        let last = &trials[63];
        assert!(last.floor > 0.9 * last.error, "{base} {scheme}");
    }
}

#[test]
fn few_codes_clip_more() {
    let histogram = observed(&normal(100_000));
    // Least mean squared error for a normal distribution and 16 uniform levels is near 2.6 deviations.
    let (low, high) = range_for(
        &histogram,
        Calibrator::Mse,
        target(Base::INT4, Scheme::Symmetric),
    )
    .unwrap();
    assert!(
        (2.3..2.9).contains(&high) && (-2.9..-2.3).contains(&low),
        "{low} {high}"
    );
}

#[test]
fn the_error_equals_that_of_the_values() {
    let x = normal(100_000);
    let histogram = observed(&x);
    for (base, scheme) in TARGETS
        .into_iter()
        .chain([(Base::INT4, Scheme::Asymmetric)])
    {
        let p = choose_qparams(-2.0, 2.5, base, scheme, QOptions::default()).unwrap();
        let exact: f64 = x
            .iter()
            .map(|&x| f64::from(p.dequantize(p.quantize(x)) - x).powi(2))
            .sum();
        let estimate = squared_error(&histogram, &p);
        assert!(
            (estimate / exact - 1.0).abs() < 0.01,
            "{base} {scheme}: {estimate} {exact}"
        );
    }
}

#[test]
fn constants_and_single_values() {
    for x in [
        &[0.0][..],
        &[3.0; 9],
        &[-1e-40],
        &[f32::MAX, f32::MIN],
        &[-2.0, 5.0],
    ] {
        for calibrator in [Calibrator::Kl, Calibrator::Mse] {
            for (base, scheme) in TARGETS {
                let (low, high) =
                    range_for(&observed(x), calibrator, target(base, scheme)).unwrap();
                assert!(low <= 0.0 && high >= 0.0 && low.is_finite() && high.is_finite());
                choose_qparams(low, high, base, scheme, QOptions::default()).unwrap();
            }
        }
    }
    assert_eq!(
        mse_range(&Histogram::new(), Target::default()),
        Err(RangeError::NoValues)
    );
    assert_eq!(
        kl_range(&Histogram::new(), Target::default()),
        Err(RangeError::NoValues)
    );
}
