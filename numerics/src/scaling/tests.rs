//! Searched scales against those of the extremes.
#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;

fn how(base: Base, scheme: Scheme, calibrator: WeightCalibrator) -> WeightQuantizer {
    WeightQuantizer {
        base,
        scheme,
        options: QOptions::default(),
        calibrator,
        scale: ScaleKind::default(),
    }
}

#[test]
fn names_and_defaults() {
    for c in [WeightCalibrator::MinMax, WeightCalibrator::Mse] {
        assert_eq!(c.to_string().parse::<WeightCalibrator>().unwrap(), c);
    }
    assert!(
        "msr"
            .parse::<WeightCalibrator>()
            .unwrap_err()
            .to_string()
            .contains("`mse`")
    );
    assert_eq!(
        WeightCalibrator::default_for(Base::INT4),
        WeightCalibrator::Mse
    );
    assert_eq!(
        WeightCalibrator::default_for(Base::INT8),
        WeightCalibrator::MinMax
    );
    assert_eq!(
        WeightCalibrator::default_for(Base::Mxfp4),
        WeightCalibrator::Mse
    );
}

#[test]
fn stored_scales() {
    let two = ScaleKind {
        power_of_two: true,
        half: false,
    };
    assert_eq!(
        (two.stored(0.3), two.stored(0.5), two.stored(3.0)),
        (0.5, 0.5, 4.0)
    );
    assert_eq!(two.stored(f32::MAX), pow2(127));
    let half = ScaleKind {
        power_of_two: false,
        half: true,
    };
    assert_eq!(half.stored(0.1), half::f16::from_f32(0.1).to_f32());
    assert_eq!(half.stored(1e-9), half::f16::MIN_POSITIVE.to_f32());
    assert_eq!(ScaleKind::default().stored(0.0), f32::MIN_POSITIVE);
}

#[test]
fn fixed_point_has_the_scale_of_its_name() {
    let base = Base::Fixed {
        whole: 4,
        fraction: 4,
    };
    let how = how(base, Scheme::Symmetric, WeightCalibrator::Mse);
    let p = choose_params(&[100.0, -3.0], Grouping::tensor(2), &how).unwrap();
    assert_eq!((p[0].scale, p[0].qmin, p[0].qmax), (0.0625, -128, 127));
    assert!(choose_params(&[f32::NAN], Grouping::tensor(1), &how).is_err());
}

fn error_of(values: &[f32], grouping: Grouping, how: &WeightQuantizer) -> f64 {
    let params = choose_params(values, grouping, how).unwrap();
    let errors = grouping.map_groups(values, |g, v| squared_error(v, &params[g]));
    errors.iter().sum()
}

#[test]
fn clipping_pays_with_few_bits() {
    // A sum of uniform values is near to a Gaussian.
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..8192)
        .map(|_| (0..12).map(|_| uniform()).sum())
        .collect();
    let grouping = Grouping::tensor(values.len());
    for bits in [2, 3, 4] {
        let error = |c| {
            error_of(
                &values,
                grouping,
                &how(Base::Int(bits), Scheme::Symmetric, c),
            )
        };
        let (search, extremes) = (
            error(WeightCalibrator::Mse),
            error(WeightCalibrator::MinMax),
        );
        assert!(search < 0.8 * extremes, "{bits}: {search} {extremes}");
    }
}

proptest! {
    #[test]
    fn searched_scales_are_never_worse(
        values in proptest::collection::vec(-4f32..4.0, 96), bits in 2u8..=8, two: bool,
    ) {
        let grouping = Grouping::blocks(&[3, 32], 1, 20).unwrap();
        for base in [Base::Int(bits), Base::Uint(bits)] {
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
                let error = |c| {
                    let scale = ScaleKind { power_of_two: two, half: false };
                    error_of(&values, grouping, &WeightQuantizer { scale, ..how(base, scheme, c) })
                };
                prop_assert!(error(WeightCalibrator::Mse) <= error(WeightCalibrator::MinMax));
            }
        }
        for element in [MiniFloat::E4m3, MiniFloat::E3m2, MiniFloat::E2m1] {
            let error = |c| -> f64 {
                let scales = choose_scales(&values, grouping, element, c, ScaleKind::default()).unwrap();
                let errors = grouping.map_groups(&values, |g, v| float_error(v, scales[g], &Encoder::new(element)));
                errors.iter().sum()
            };
            prop_assert!(error(WeightCalibrator::Mse) <= error(WeightCalibrator::MinMax));
        }
    }
}
