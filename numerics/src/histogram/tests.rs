//! The histogram against one that is counted value by value, and its merge laws.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn observed(x: &[f32]) -> Histogram {
    let mut histogram = Histogram::new();
    histogram.observe(x);
    histogram
}

fn merged(a: &Histogram, b: &Histogram) -> Histogram {
    let mut sum = a.clone();
    sum.merge(b);
    sum
}

/// Counts one value at a time in f64, in which every quotient by a power of two is exact.
fn counted(x: &[f32]) -> Histogram {
    let finite = || x.iter().copied().filter(|x| x.is_finite());
    let amax = finite().fold(0f32, |a, x| a.max(x.abs()));
    let exponent = (EXPONENTS.0..=EXPONENTS.1)
        .find(|&e| f64::from(amax) < SIDE as f64 * 2f64.powi(e))
        .unwrap();
    let mut histogram = Histogram {
        exponent,
        ..Histogram::new()
    };
    for x in finite() {
        let m = (f64::from(x.abs()) / 2f64.powi(exponent)).floor() as usize;
        let side = if x < 0.0 {
            &mut histogram.negative
        } else {
            &mut histogram.positive
        };
        side.resize(side.len().max(m + 1), 0);
        side[m] += 1;
        histogram.min = histogram.min.min(x + 0.0);
        histogram.max = histogram.max.max(x + 0.0);
    }
    histogram.nan = x.iter().filter(|x| x.is_nan()).count() as u64;
    histogram.positive_infinity = x.iter().filter(|&&x| x == f32::INFINITY).count() as u64;
    histogram.negative_infinity = x.iter().filter(|&&x| x == f32::NEG_INFINITY).count() as u64;
    histogram
}

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -1f32..1.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => (-20i32..20).prop_map(|e| 2f32.powi(e)),
        1 => (-20i32..20).prop_map(|e| (-2f32.powi(e)).next_up()),
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => Just(-1e-42),
    ]
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        proptest::collection::vec(value(), 0..60),
        // Long enough for the tables.
        proptest::collection::vec(-4f32..9.0, LONG..LONG + CHUNK + 40),
        (proptest::collection::vec(value(), 40..60), 300usize..500).prop_map(|(x, n)| x.repeat(n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn equals_one_value_at_a_time(x in values()) {
        prop_assert_eq!(observed(&x), counted(&x));
    }

    #[test]
    fn any_split_gives_the_same(x in values(), at in 0.0f64..=1.0, then in 0.0f64..=1.0) {
        let (head, tail) = x.split_at((x.len() as f64 * at) as usize);
        let (middle, tail) = tail.split_at((tail.len() as f64 * then) as usize);
        let whole = observed(&x);
        let (a, b, c) = (observed(head), observed(middle), observed(tail));
        prop_assert_eq!(&merged(&merged(&a, &b), &c), &whole);
        prop_assert_eq!(&merged(&a, &merged(&b, &c)), &whole);
        prop_assert_eq!(&merged(&merged(&c, &a), &b), &whole);
        let mut streamed = a;
        streamed.observe(middle);
        streamed.observe(tail);
        prop_assert_eq!(&streamed, &whole);
    }

    #[test]
    fn a_clamp_counts_as_on_its_own(
        parts in proptest::collection::vec(values(), 1..4),
        upper in prop_oneof![Just(f32::INFINITY), Just(6.0), Just(0.0), Just(1e-41), 0.1f32..8.0],
    ) {
        let (mut all, mut clamped) = (Histogram::new(), Histogram::new());
        let mut together: [Vec<f32>; 2] = Default::default();
        for part in parts {
            let part: Vec<f32> = part.into_iter().filter(|x| x.is_finite()).collect();
            if !part.is_empty() {
                all.observe_clamped(&mut clamped, upper, &part, min_max(&part));
                together[1].extend(part.iter().map(|x| x.max(0.0).min(upper)));
                together[0].extend(part);
            }
        }
        prop_assert_eq!(&all, &counted(&together[0]));
        prop_assert_eq!(&clamped, &counted(&together[1]));
    }

    #[test]
    fn stored_and_read_back(x in values()) {
        let histogram = observed(&x);
        let text = serde_json::to_string(&histogram).unwrap();
        let back: Histogram = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &histogram);
        prop_assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}

#[test]
fn bins_hold_their_values() {
    let histogram = observed(&[-1.5, -0.25, -0.0, 0.0, 1.0, f32::NAN, f32::INFINITY]);
    assert_eq!(histogram.extremes(), Some((-1.5, 1.0)));
    assert_eq!(
        (histogram.count(), histogram.nan(), histogram.infinite()),
        (5, 1, 1)
    );
    assert_eq!(histogram.bin_width(), 1.0 / 2048.0);
    let bins: Vec<Bin> = histogram.bins().collect();
    assert!(bins.is_sorted_by(|a, b| a.high == b.low));
    let filled: Vec<_> = bins
        .iter()
        .filter(|b| b.count > 0)
        .map(|b| (b.high, b.low, b.count))
        .collect();
    let w = histogram.bin_width();
    assert_eq!(
        filled,
        [
            (-1.5, -1.5 - w, 1),
            (-0.25, -0.25 - w, 1),
            (w, 0.0, 2),
            (1.0 + w, 1.0, 1)
        ]
    );
}

#[test]
fn one_side_alone_has_2048_bins_or_more() {
    for max in [1.0f32, 1.999, 3.0, 1e-20, 1e20, f32::MAX] {
        let bins = observed(&[0.0, max]).bins().count();
        assert!((2048..=SIDE).contains(&bins), "{max}: {bins}");
    }
}

#[test]
fn contradictory_files_are_refused() {
    let good = serde_json::to_value(observed(&[1.0, -2.0])).unwrap();
    let read = |value: serde_json::Value| serde_json::from_value::<Histogram>(value);
    assert!(read(good.clone()).is_ok());
    let changes = [
        ("exponent", serde_json::json!(5)),
        ("range", serde_json::Value::Null),
        ("range", serde_json::json!([1.0, -2.0])),
        ("range", serde_json::json!([-2.0, 4.0])),
        ("positive", serde_json::json!([1])),
        ("negative", serde_json::json!([])),
        ("unknown", serde_json::json!(1)),
    ];
    for (field, value) in changes {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(read(bad).is_err(), "{field}");
    }
}
