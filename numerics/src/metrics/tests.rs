//! The metrics on small cases with known answers.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn compared(reference: &[f32], candidate: &[f32]) -> Compare {
    let mut compare = Compare::default();
    compare.add(reference, candidate).unwrap();
    compare
}

#[test]
fn sums_of_a_small_case() {
    let c = compared(&[3.0, 4.0, 0.0], &[3.0, 4.0, 1.0]);
    assert_eq!(
        (c.count, c.sum_reference_squared, c.sum_error_squared),
        (3, 25.0, 1.0)
    );
    assert_eq!(
        (c.dot, c.sum_candidate_squared, c.max_abs_error),
        (25.0, 26.0, 1.0)
    );
    assert!((c.sqnr_db() - 10.0 * 25f64.log10()).abs() < 1e-12);
    assert!((c.cosine() - 25.0 / (5.0 * 26f64.sqrt())).abs() < 1e-12);
    assert!((c.mean_squared_error() - 1.0 / 3.0).abs() < 1e-15);
}

#[test]
fn equal_zero_and_empty_sides() {
    let equal = compared(&[1.0, -2.0], &[1.0, -2.0]);
    assert_eq!((equal.sqnr_db(), equal.is_equal()), (f64::INFINITY, true));
    assert!((equal.cosine() - 1.0).abs() < 1e-15);
    let zero = compared(&[0.0], &[1.0]);
    assert_eq!((zero.sqnr_db(), zero.cosine()), (f64::NEG_INFINITY, 0.0));
    assert_eq!(compared(&[0.0], &[0.0]).cosine(), 1.0);
    assert_eq!(compared(&[], &[]).sqnr_db(), f64::INFINITY);
    assert_eq!(
        Compare::default().add(&[1.0], &[]),
        Err(MetricError::Length {
            reference: 1,
            candidate: 0
        })
    );
}

#[test]
fn non_finite_pairs_are_counted_apart() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let c = compared(
        &[1.0, nan, inf, inf, 1.0, 2.0],
        &[1.0, nan, inf, -inf, nan, 2.0],
    );
    assert_eq!(
        (c.count, c.non_finite_matches, c.non_finite_mismatches),
        (2, 2, 2)
    );
    assert_eq!(
        (c.sum_reference_squared, c.sqnr_db()),
        (5.0, f64::NEG_INFINITY)
    );
    assert!(!c.is_equal());
}

#[test]
fn divergence_of_distributions_and_of_logits() {
    let mut kl = KlDivergence::default();
    assert_eq!(kl.mean(), None);
    kl.add(&[0.5, 0.5], &[0.25, 0.75], 2).unwrap();
    let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
    assert!((kl.mean().unwrap() - expected).abs() < 1e-9);

    let mut of_logits = KlDivergence::default();
    let logits = [0.5f32.ln() + 90.0, 0.5f32.ln() + 90.0];
    of_logits
        .add(&logits, &[0.25f32.ln() - 7.0, 0.75f32.ln() - 7.0], 2)
        .unwrap();
    assert!((of_logits.mean().unwrap() - expected).abs() < 1e-5);

    let mut zero = KlDivergence::default();
    zero.add(&[1.0, 0.0, 5.0, f32::NAN], &[0.0, 1.0, 5.0, 5.0], 2)
        .unwrap();
    assert_eq!((zero.rows, zero.non_finite_rows), (1, 1));
    assert!((zero.sum - 1e12f64.ln()).abs() < 1e-6);
    assert!(matches!(
        kl.add(&[1.0; 3], &[1.0; 3], 2),
        Err(MetricError::Rows { values: 3, row: 2 })
    ));
    assert!(kl.add(&[1.0], &[1.0], 0).is_err());
}

#[test]
fn agreement_and_argmax() {
    assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
    assert_eq!(argmax(&[f32::NAN, -1.0]), Some(1));
    assert_eq!(argmax(&[f32::NEG_INFINITY; 2]), Some(0));
    assert_eq!(argmax(&[f32::NAN]), None);
    let mut agreement = Agreement::default();
    agreement
        .add(&[1.0, 2.0, 2.0, 1.0], &[0.0, 9.0, 0.0, 9.0], 2)
        .unwrap();
    assert_eq!(agreement.share(), Some(0.5));
    agreement.add(&[f32::NAN; 2], &[f32::NAN; 2], 2).unwrap();
    assert_eq!((agreement.rows, agreement.same), (3, 1));
}

#[test]
fn top_k_and_its_ties() {
    let scores = [0.1, 0.9, 0.5, 0.5, 0.5, 0.1];
    let accuracy = |k, labels: &[i64]| {
        let mut top = TopK::new(k);
        top.add(&scores, 3, labels).unwrap();
        top.hits
    };
    assert_eq!(accuracy(1, &[1, 0]), 2);
    assert_eq!(accuracy(1, &[2, 1]), 0);
    assert_eq!(accuracy(2, &[2, 1]), 2);
    assert_eq!(accuracy(5, &[0, 2]), 2);
    let mut top = TopK::new(1);
    assert_eq!(
        top.add(&scores, 3, &[0]),
        Err(MetricError::Labels { labels: 1, rows: 2 })
    );
    for label in [-1, 3] {
        assert_eq!(
            top.add(&scores, 3, &[0, label]),
            Err(MetricError::Label {
                index: 1,
                label,
                classes: 3
            })
        );
    }
    top.add(&[f32::NAN, f32::NAN], 2, &[0]).unwrap();
    assert_eq!((top.rows, top.accuracy()), (1, Some(0.0)));
}

#[test]
fn perplexity_of_uniform_logits_is_the_number_of_classes() {
    let mut perplexity = Perplexity::default();
    assert_eq!(perplexity.perplexity(), None);
    perplexity.add(&[1000.0; 8], 4, &[0, 3]).unwrap();
    assert!((perplexity.perplexity().unwrap() - 4.0).abs() < 1e-12);
    let mut sure = Perplexity::default();
    sure.add(&[0.0, 3f32.ln()], 2, &[1]).unwrap();
    assert!((sure.perplexity().unwrap() - 4.0 / 3.0).abs() < 1e-7);
}

proptest! {
    #[test]
    fn compare_equals_a_plain_loop(pairs in proptest::collection::vec((-9f32..9.0, -9f32..9.0), 0..50)) {
        let (r, c): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        let found = compared(&r, &c);
        let error = |(r, c): &(f32, f32)| f64::from(*c) - f64::from(*r);
        let squared: f64 = pairs.iter().map(|p| error(p).powi(2)).sum();
        let dot: f64 = pairs.iter().map(|(r, c)| f64::from(*r) * f64::from(*c)).sum();
        let max = pairs.iter().map(|p| error(p).abs()).fold(0.0, f64::max);
        prop_assert_eq!(found.count, pairs.len() as u64);
        prop_assert!((found.sum_error_squared - squared).abs() <= 1e-9);
        prop_assert!((found.dot - dot).abs() <= 1e-9);
        prop_assert_eq!(found.max_abs_error, max);
        prop_assert!(found.cosine().abs() <= 1.0);
    }
}
