//! Codebooks against exhaustive search, against linear grids, and against each other.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::random::uniform;

fn error(values: &[f32], weights: Option<&[f32]>, c: &Clusters) -> f64 {
    let weight = |i: usize| weights.map_or(1.0, |w| f64::from(w[i]));
    let pairs = values.iter().zip(c.decode()).enumerate();
    pairs
        .map(|(i, (&x, y))| weight(i) * (f64::from(x) - f64::from(y)).powi(2))
        .sum()
}

/// The least error over all ways to cut sorted values into runs.
fn exhaustive(values: &[(f32, f32)], k: usize) -> f64 {
    let cost = |run: &[(f32, f32)]| -> f64 {
        let w: f64 = run.iter().map(|(_, w)| f64::from(*w)).sum();
        if w == 0.0 {
            return 0.0;
        }
        let of = |f: &dyn Fn(f64) -> f64| -> f64 {
            run.iter()
                .map(|&(x, w)| f64::from(w) * f(f64::from(x)))
                .sum()
        };
        let mean = of(&|x| x) / w;
        of(&|x| (x - mean) * (x - mean))
    };
    if k == 1 || values.len() <= 1 {
        return cost(values);
    }
    (1..=values.len())
        .map(|at| cost(&values[at..]) + exhaustive(&values[..at], k - 1))
        .fold(f64::INFINITY, f64::min)
}

/// Near to normal, with a few outliers.
fn bell(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let sum: f64 = (0..4).map(|j| uniform(seed, i * 4 + j) - 0.5).sum();
            let far = if i % 97 == 5 { 3.0 } else { 1.0 };
            (sum * far) as f32
        })
        .collect()
}

fn options(k: usize, init: Init) -> Options {
    Options {
        clusters: k,
        init,
        seed: 1,
        half: false,
        groups: 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_optimum_is_that_of_exhaustive_search(
        values in proptest::collection::vec((-20i32..20, 0u8..4), 1..9), k in 1usize..5
    ) {
        let mut pairs: Vec<(f32, f32)> =
            values.iter().map(|&(x, w)| (x as f32 * 0.37, f32::from(w))).collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (x, w): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        prop_assume!(w.iter().any(|&w| w > 0.0));
        let least = exhaustive(&pairs, k);
        let found = kmeans(&x, Some(&w), &options(k, Init::Optimal)).unwrap();
        // Entries are stored in FP32, the search is in FP64.
        prop_assert!((error(&x, Some(&w), &found) - least).abs() <= 1e-5 * (1.0 + least));
        let known = exact::least_error(&x, Some(&w), k).unwrap();
        prop_assert!((known - least).abs() <= 1e-9 * (1.0 + least));
    }

    #[test]
    fn every_value_gets_its_nearest_entry(
        values in proptest::collection::vec(-1e3f32..1e3, 1..60),
        mut book in proptest::collection::vec(-1e3f32..1e3, 1..40),
    ) {
        book.sort_by(f32::total_cmp);
        for (&x, code) in values.iter().zip(assign(&values, &book)) {
            let far = |c: f32| (f64::from(x) - f64::from(c)).abs();
            let nearest = book.iter().map(|&c| far(c)).fold(f64::INFINITY, f64::min);
            prop_assert_eq!(far(book[usize::from(code)]), nearest);
        }
    }
}

#[test]
fn no_start_is_worse_than_linear_rounding_and_none_is_better_than_the_optimum() {
    for (seed, n) in [(1, 500), (2, 4000), (3, 20_000)] {
        let values = bell(n, seed);
        for bits in [2u32, 3, 4] {
            let k = 1usize << bits;
            let most = values.iter().fold(0f32, |m, x| m.max(x.abs()));
            let steps = (k / 2 - 1) as f32;
            let linear: f64 = values
                .iter()
                .map(|&x| {
                    let q = (x / most * steps).round_ties_even() / steps * most;
                    f64::from(x - q).powi(2)
                })
                .sum();
            let least = exact::least_error(&values, None, k).unwrap();
            for init in [Init::Optimal, Init::Linear, Init::Density, Init::Random] {
                let found = error(
                    &values,
                    None,
                    &kmeans(&values, None, &options(k, init)).unwrap(),
                );
                assert!(found <= linear, "{init} {bits}: {found} against {linear}");
                assert!(
                    found >= least * (1.0 - 1e-6),
                    "{init} {bits}: {found} < {least}"
                );
                if init == Init::Optimal {
                    assert!(found <= least * (1.0 + 1e-5), "{bits}: {found} > {least}");
                }
            }
        }
    }
}

#[test]
fn joined_values_lose_next_to_nothing() {
    let mut values = bell(300_000, 9);
    values[17] = 400.0;
    let least = exact::least_error(&values, None, 8).unwrap();
    let found = kmeans(&values, None, &options(8, Init::Optimal)).unwrap();
    let e = error(&values, None, &found);
    assert!(e <= least * 1.0001, "{e} against {least}");
}

#[test]
fn few_different_values_are_kept_exactly() {
    let values = [1.0f32, -2.0, 1.0, 0.5, -0.0, 0.0];
    let found = kmeans(&values, None, &options(16, Init::Optimal)).unwrap();
    assert_eq!(found.decode(), values);
    assert_eq!(found.codebook.len(), 16);
    assert!(found.codebook.is_sorted());
    let constant = kmeans(&[3.5; 9], None, &options(2, Init::Random)).unwrap();
    assert_eq!(constant.decode(), [3.5; 9]);
}

#[test]
fn importance_moves_entries() {
    let values = [0.0f32, 1.0, 10.0, 11.0];
    let plain = kmeans(&values, None, &options(1, Init::Optimal)).unwrap();
    let heavy = kmeans(
        &values,
        Some(&[1.0, 1.0, 0.0, 0.0]),
        &options(1, Init::Optimal),
    )
    .unwrap();
    assert_eq!((plain.codebook[0], heavy.codebook[0]), (5.5, 0.5));
}

#[test]
fn half_entries_are_fp16_numbers() {
    let found = kmeans(
        &bell(1000, 4),
        None,
        &Options {
            half: true,
            ..options(16, Init::Optimal)
        },
    )
    .unwrap();
    assert!(
        found
            .codebook
            .iter()
            .all(|&x| f16::from_f32(x).to_f32() == x)
    );
}

#[test]
fn threads_do_not_change_the_result() {
    let values = bell(150_000, 5);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            [Init::Optimal, Init::Random]
                .map(|init| kmeans(&values, None, &options(16, init)).unwrap())
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn bad_input_is_refused() {
    let o = options(4, Init::Optimal);
    assert_eq!(
        kmeans(&[0.0, f32::NAN], None, &o),
        Err(KMeansError::NotFinite(1))
    );
    assert_eq!(
        kmeans(&[1.0], None, &options(0, Init::Linear)),
        Err(KMeansError::Clusters(0))
    );
    assert_eq!(
        kmeans(&[1.0], None, &options(257, Init::Linear)),
        Err(KMeansError::Clusters(257))
    );
    for bad in [-1.0, f32::NAN, 0.0] {
        assert_eq!(kmeans(&[1.0], Some(&[bad]), &o), Err(KMeansError::Weights));
    }
    assert_eq!(
        kmeans(&[1.0], Some(&[]), &o),
        Err(KMeansError::Length {
            values: 1,
            weights: 0
        })
    );
    assert_eq!(kmeans(&[], None, &o).unwrap().codes, Vec::<u8>::new());
    assert!(
        "optimum"
            .parse::<Init>()
            .unwrap_err()
            .to_string()
            .contains("`optimal`")
    );
}
