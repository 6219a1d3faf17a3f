//! The statistics against values that are known, and their merge laws.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -3f32..5.0,
        1 => Just(0.0),
        1 => any::<u32>().prop_map(f32::from_bits),
    ]
}

/// Runs of a few samples each, of shape `[samples, 2, 3]`.
fn runs() -> impl Strategy<Value = Vec<(Samples, Vec<f32>)>> {
    let run = (1usize..4, 0usize..2, proptest::collection::vec(value(), 30));
    proptest::collection::vec(run, 1..8).prop_map(|runs| {
        let mut first = 0;
        let number = |(count, padded, data): (usize, usize, Vec<f32>)| {
            let samples = Samples {
                first,
                count,
                padded,
            };
            first += count as u64;
            (samples, data[..6 * (count + padded)].to_vec())
        };
        runs.into_iter().map(number).collect()
    })
}

fn observed<'a>(runs: impl IntoIterator<Item = &'a (Samples, Vec<f32>)>) -> TensorStats {
    let mut stats = TensorStats::new(&[1, -1]);
    for (samples, data) in runs {
        stats.observe(*samples, &[data.len() / 6, 2, 3], data);
    }
    stats
}

proptest! {
    #[test]
    fn any_split_gives_the_same(runs in runs(), at in 0usize..8, then in 0usize..8) {
        let whole = observed(&runs);
        let (a, rest) = runs.split_at(at.min(runs.len()));
        let (b, c) = rest.split_at(then.min(rest.len()));
        let (a, b, c) = (observed(a), observed(b), observed(c));
        let merged = |parts: [&TensorStats; 3]| {
            let mut sum = TensorStats::default();
            parts.into_iter().for_each(|p| sum.merge(p));
            sum
        };
        prop_assert_eq!(&merged([&a, &b, &c]), &whole);
        prop_assert_eq!(&merged([&c, &a, &b]), &whole);
        let mut pair = b.clone();
        pair.merge(&c);
        let mut nested = a.clone();
        nested.merge(&pair);
        prop_assert_eq!(&nested, &whole);
        prop_assert_eq!(&observed(runs.iter().rev()), &whole);
    }

    #[test]
    fn a_clamp_is_observed_as_on_its_own(runs in runs(), upper in prop_oneof![Just(f32::INFINITY), -0.0f32..4.0]) {
        let (mut stats, mut clamped) = (TensorStats::new(&[-1]), TensorStats::new(&[1, -1]));
        let mut expected = [stats.clone(), clamped.clone()];
        for (samples, data) in &runs {
            let dims = [data.len() / 6, 2, 3];
            stats.observe_clamped(&mut clamped, upper, *samples, &dims, data);
            expected[0].observe(*samples, &dims, data);
            let clamp = |&x: &f32| if x.is_nan() { x } else { x.max(0.0).min(upper) };
            let data: Vec<f32> = data.iter().map(clamp).collect();
            expected[1].observe(*samples, &dims, &data);
        }
        prop_assert_eq!([stats, clamped], expected);
    }

    #[test]
    fn stored_and_read_back(runs in runs()) {
        let stats = observed(&runs);
        let text = serde_json::to_string(&stats).unwrap();
        let back: TensorStats = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &stats);
        prop_assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }

    #[test]
    fn channels_are_those_of_the_values(runs in runs()) {
        let stats = observed(&runs);
        for (axis, stride, channels) in [(1, 3, 2), (-1, 1, 3)] {
            let found: Vec<_> = stats.channels_of(axis).unwrap().ranges().collect();
            for (channel, found) in found.into_iter().enumerate() {
                let mut expected: Option<(f32, f32)> = None;
                for (samples, data) in &runs {
                    let valid = data[..6 * samples.count].iter().enumerate();
                    for (_, &x) in valid.filter(|(i, x)| i / stride % channels == channel && x.is_finite()) {
                        let (min, max) = expected.unwrap_or((x + 0.0, x + 0.0));
                        expected = Some((min.min(x + 0.0), max.max(x + 0.0)));
                    }
                }
                prop_assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn samples_have_their_own_extremes() {
    let mut stats = TensorStats::default();
    let samples = Samples {
        first: 4,
        count: 2,
        padded: 1,
    };
    // The third sample is a copy that fills the batch.
    stats.observe(samples, &[3, 2], &[-1.0, 2.0, 3.0, 4.0, 3.0, 9.0]);
    stats.observe(Samples::one(3), &[1, 2], &[0.0, 8.0]);
    assert_eq!(stats.histogram().extremes(), Some((-1.0, 8.0)));
    assert_eq!(stats.samples().mean(), Some((2.0 / 3.0, 14.0 / 3.0)));
    // In the order of the samples: (0, 8), (−1, 2), (3, 4).
    assert_eq!(stats.samples().moving_average(0.5), Some((1.25, 4.5)));
    assert_eq!(stats.samples().moving_average(0.0), Some((3.0, 4.0)));
}

#[test]
fn a_tensor_without_the_batch_counts_as_one_sample() {
    let mut stats = TensorStats::default();
    let samples = Samples {
        first: 0,
        count: 2,
        padded: 0,
    };
    stats.observe(samples, &[3], &[1.0, 2.0, 3.0]);
    stats.observe(samples, &[], &[7.0]);
    assert_eq!(stats.samples().count(), 2);
    assert_eq!(stats.histogram().count(), 4);
}

#[test]
fn the_last_samples_are_kept() {
    let mut stats = TensorStats::default();
    for i in 0..3 * RECENT as u64 {
        stats.observe(Samples::one(i), &[1], &[i as f32]);
    }
    let last = 3.0 * RECENT as f32 - 1.0;
    assert_eq!(stats.samples().moving_average(0.0), Some((last, last)));
    assert_eq!(stats.samples().mean(), Some((last / 2.0, last / 2.0)));
    assert_eq!(stats.samples().recent.len(), RECENT);
}

#[test]
fn the_sample_at_fault_is_known() {
    let mut stats = TensorStats::new(&[0]);
    let samples = Samples {
        first: 10,
        count: 3,
        padded: 0,
    };
    let data = [1.0, 2.0, f32::NAN, 3.0, f32::INFINITY, f32::NAN];
    stats.observe(samples, &[3, 2], &data);
    assert_eq!(stats.first_non_finite(), Some(11));
    assert_eq!(stats.samples().count(), 2);
    let ranges: Vec<_> = stats.channels()[0].ranges().collect();
    assert_eq!(ranges, [Some((1.0, 2.0)), Some((3.0, 3.0)), None]);
    let mut other = TensorStats::default();
    other.observe(Samples::one(2), &[1], &[f32::NEG_INFINITY]);
    other.merge(&stats);
    assert_eq!(other.first_non_finite(), Some(2));
}

#[test]
fn contradictory_files_are_refused() {
    let mut stats = TensorStats::new(&[1]);
    stats.observe(Samples::one(0), &[1, 2], &[1.0, -2.0]);
    stats.observe(Samples::one(1), &[1, 2], &[0.5, -1.0]);
    let good = serde_json::to_value(&stats).unwrap();
    let read = |value: serde_json::Value| serde_json::from_value::<TensorStats>(value);
    assert!(read(good.clone()).is_ok());
    let changes = [
        ("/samples/count", serde_json::json!(0)),
        ("/samples/count", serde_json::json!(1)),
        ("/samples/minima", serde_json::json!("12")),
        ("/samples/recent/0/0", serde_json::json!(5)),
        ("/samples/recent/0/1", serde_json::json!(-7.0)),
        ("/first_non_finite", serde_json::json!(1)),
        ("/histogram/nan", serde_json::json!(1)),
    ];
    for (field, value) in changes {
        let mut bad = good.clone();
        *bad.pointer_mut(field).unwrap() = value;
        assert!(read(bad).is_err(), "{field}");
    }
}
