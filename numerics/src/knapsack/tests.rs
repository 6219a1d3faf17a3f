//! Tests of the knapsack against enumeration of all solutions.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn all(classes: &[Vec<Choice>]) -> Vec<Solution> {
    let mut picks: Vec<Vec<usize>> = vec![Vec::new()];
    for class in classes {
        let longer = |p: Vec<usize>| (0..class.len()).map(move |c| [&p[..], &[c]].concat());
        picks = picks.into_iter().flat_map(longer).collect();
    }
    picks
        .into_iter()
        .map(|p| Solution::new(classes, p))
        .collect()
}

fn classes(choices: usize, most: usize) -> impl Strategy<Value = Vec<Vec<Choice>>> {
    let choice = (0u64..60, 0u32..1000).prop_map(|(cost, loss)| Choice {
        cost,
        loss: f64::from(loss) / 64.0,
    });
    prop::collection::vec(prop::collection::vec(choice, 1..=choices), 1..=most)
}

proptest! {
    #[test]
    fn the_best_within_a_budget_is_that_of_enumeration(classes in classes(4, 6), budget in 0u64..300) {
        let best = all(&classes).into_iter().filter(|s| s.cost <= budget).map(|s| s.loss).min_by(f64::total_cmp);
        let found = least_loss(&classes, budget);
        prop_assert!(found.as_ref().is_none_or(|s| s.cost <= budget));
        prop_assert_eq!(found.map(|s| s.loss), best);
    }

    #[test]
    fn the_front_is_that_of_enumeration(classes in classes(3, 6)) {
        let front = front(&classes);
        prop_assert!(front.is_complete());
        for (i, p) in front.points().iter().enumerate() {
            let s = front.solution(&classes, i);
            prop_assert_eq!((s.cost, s.loss), (p.cost, p.loss));
        }
        for s in all(&classes) {
            prop_assert!(front.points().iter().any(|p| p.cost <= s.cost && p.loss <= s.loss));
        }
    }

    #[test]
    fn corners_are_best_for_their_cost(classes in classes(4, 5)) {
        let front = front::corners(&classes);
        for (i, p) in front.points().iter().enumerate() {
            let best = least_loss(&classes, p.cost).unwrap();
            prop_assert!((best.loss - p.loss).abs() < 1e-9);
            prop_assert!((front.solution(&classes, i).loss - p.loss).abs() < 1e-9);
        }
    }
}

/// Numbers of 31 bits.
fn generator(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// A class for each layer of a made-up network: fewer bytes for more loss, eight formats.
fn network(layers: usize) -> Vec<Vec<Choice>> {
    made(layers, 1, &[2, 3, 4, 5, 6, 8, 16, 32])
}

/// The same in four formats.
fn layers(count: usize, seed: u64) -> Vec<Vec<Choice>> {
    made(count, seed, &[2, 4, 8, 16])
}

fn made(layers: usize, seed: u64, bits: &[u32]) -> Vec<Vec<Choice>> {
    let mut next = generator(seed);
    let mut random = || next() as f64 / f64::from(1u32 << 31);
    (0..layers)
        .map(|_| {
            let values = 1000.0 + random() * 1e6;
            let weight = (random() * 8.0).exp2();
            let choice = |bits: u32, noise: f64| Choice {
                cost: (values * f64::from(bits) / 8.0) as u64 + 64,
                loss: weight * noise * (-1.4 * f64::from(bits)).exp(),
            };
            let each = bits.iter().map(|&b| choice(b, 0.5 + random()));
            each.collect()
        })
        .collect()
}

#[test]
fn large_networks_are_solved_to_the_bound() {
    let classes = network(1000);
    let front = front(&classes);
    assert!(!front.is_complete());
    let total = |bits: u64| classes.iter().map(|c| c[7].cost / 32 * bits).sum::<u64>();
    for bits in [3, 4, 6] {
        let s = least_loss(&classes, total(bits)).unwrap();
        assert!(s.cost <= total(bits));
        // The corner before is a solution, the line to the corner behind a bound.
        let at = front.points().partition_point(|p| p.cost <= total(bits));
        let (a, b) = (front.points()[at - 1], front.points()[at]);
        let share = (total(bits) - a.cost) as f64 / (b.cost - a.cost) as f64;
        let bound = a.loss + share * (b.loss - a.loss);
        assert!(s.loss <= a.loss + 1e-9 && s.loss >= bound - 1e-9);
    }
    assert_eq!(least_loss(&classes, 0), None);
}

#[test]
fn trying_choice_by_choice_finds_what_enumerating_everything_finds() {
    for layers in [150, 250, 400] {
        let classes = network(layers);
        let least: u64 = classes.iter().map(|c| c[0].cost).sum();
        for budget in [least + least / 50, least + least / 9, 2 * least] {
            let branched = least_loss(&classes, budget).unwrap();
            let whole = search(&mut classes.clone(), budget, f64::INFINITY, usize::MAX).unwrap();
            assert_eq!(branched.loss, whole.loss);
        }
    }
}

#[test]
fn layers_have_the_best_formats_that_enumeration_finds() {
    for seed in 0..300 {
        let classes = layers(6, seed);
        let least: u64 = classes.iter().map(|c| c[0].cost).sum();
        let every = all(&classes);
        for share in [3, 10, 30, 60] {
            let budget = least + least * share / 40;
            let fits = every.iter().filter(|s| s.cost <= budget);
            let best = fits.map(|s| s.loss).min_by(f64::total_cmp);
            assert_eq!(least_loss(&classes, budget).map(|s| s.loss), best, "{seed}");
        }
    }
}

#[test]
fn where_every_byte_is_worth_the_same_the_budget_is_used_up() {
    // The hard case of the literature: each choice loses what it saves, so that no price tells one from another.
    let mut random = generator(7);
    let classes: Vec<Vec<Choice>> = (0..1000)
        .map(|_| {
            let costs = (0..8).map(|_| random() >> 11);
            let of = |cost: u64| Choice {
                cost,
                loss: ((1u64 << 20) - cost) as f64,
            };
            costs.map(of).collect()
        })
        .collect();
    let extreme = |of: fn(std::slice::Iter<'_, Choice>) -> Option<u64>| {
        classes.iter().filter_map(|c| of(c.iter())).sum::<u64>()
    };
    let least = extreme(|c| c.map(|c| c.cost).min());
    let most = extreme(|c| c.map(|c| c.cost).max());
    for share in [1, 10, 500] {
        let budget = least + (most - least) * share / 1000;
        assert_eq!(least_loss(&classes, budget).unwrap().cost, budget);
    }
}

#[test]
fn a_class_without_choices_has_no_solution() {
    let classes = [vec![Choice { cost: 1, loss: 0.0 }], vec![]];
    assert_eq!(least_loss(&classes, 10), None);
    assert!(front(&classes).points().is_empty());
    assert_eq!(least_loss(&[], 10).unwrap().picks, Vec::<usize>::new());
}
