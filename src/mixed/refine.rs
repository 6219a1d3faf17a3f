//! Choices better than the sum of single losses says: with what layers do together.
//!
//! The loss of a choice is, to second order, the squared length of the sum of its layers' error vectors
//! ([`super::errors`]): an inner product for each pair of formats. From the solution of the additive problem single and
//! double exchanges descend to a choice that none of them makes better; where there are few choices in all, every one
//! is looked at.

use std::collections::BTreeMap;

use super::assign::{Assignment, Problem};

/// Choices up to which all are looked at.
const ALL: usize = 20_000;
/// Formats of all layers up to which inner products are kept.
const LARGEST: usize = 4000;
/// Formats of all layers up to which two are exchanged at once.
const PAIRS: usize = 800;

/// Choices beside the best that are kept.
const NEAR: usize = 32;

/// One format of one class of layers that choose together.
struct Item {
    class: usize,
    cost: u64,
    /// For each layer its pick.
    picks: Vec<(usize, usize)>,
}

/// The quadratic problem.
struct Quadratic {
    items: Vec<Item>,
    /// The items of each class.
    classes: Vec<Vec<usize>>,
    /// Inner products of error vectors, the squared length on the diagonal.
    products: Vec<f64>,
}

/// A choice: an item for each class.
#[derive(Clone)]
struct Chosen {
    items: Vec<usize>,
    cost: u64,
    loss: f64,
}

/// Whether every choice can be looked at, by the formats of each class.
pub(super) fn few(formats: impl Iterator<Item = usize>) -> bool {
    formats.fold(1usize, usize::saturating_mul) <= ALL
}

impl Problem {
    /// The choices of least loss within a limit, by what layers do together: at most `count`, the best first. The
    /// additive solution is among them; none where it does not exist.
    pub(super) fn best(&self, limit: u64, count: usize) -> Vec<Assignment> {
        let Some(additive) = self.solve(limit) else {
            return Vec::new();
        };
        let Some(quadratic) = Quadratic::new(self) else {
            return vec![additive];
        };
        let mut found = quadratic.search(self, &additive, limit, count);
        if count > 1 && !found.iter().any(|a| a.picks == additive.picks) {
            found.truncate(count - 1);
            found.push(additive);
        }
        found
    }

    /// The front, each point the best of its cost by what layers do together.
    pub(super) fn front_together(&self) -> Vec<Assignment> {
        let (front, _) = self.front();
        let Some(quadratic) = Quadratic::new(self) else {
            return front;
        };
        let better = |a: Assignment| {
            let Some(items) = quadratic.find(&a) else {
                return a;
            };
            let limit = quadratic.chosen(items).cost;
            quadratic.search(self, &a, limit, 1).pop().unwrap_or(a)
        };
        front.into_iter().map(better).collect()
    }
}

impl Quadratic {
    /// `None` where no directions are known, or there are too many formats.
    fn new(problem: &Problem) -> Option<Self> {
        let (given, ways) = problem.classes();
        let (mut items, mut classes) = (Vec::new(), Vec::new());
        for (class, (choices, ways)) in given.iter().zip(ways).enumerate() {
            classes.push((items.len()..items.len() + choices.len()).collect());
            items.extend(choices.iter().zip(ways).map(|(c, picks)| Item {
                class,
                cost: c.cost,
                picks,
            }));
        }
        let length = problem.layers.iter().flat_map(|(_, _, c)| c);
        let length = length.map(|c| c.direction.len()).max()?;
        if length == 0 || items.len() > LARGEST {
            return None;
        }
        let vectors: Vec<(Vec<f32>, f64)> =
            items.iter().map(|i| vector(problem, i, length)).collect();
        let mut products = vec![0.0; items.len() * items.len()];
        for (i, (a, alone)) in vectors.iter().enumerate() {
            for (j, (b, _)) in vectors.iter().enumerate().take(i) {
                let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                products[i * items.len() + j] = f64::from(dot);
                products[j * items.len() + i] = f64::from(dot);
            }
            products[i * items.len() + i] = *alone;
        }
        Some(Self {
            items,
            classes,
            products,
        })
    }

    fn product(&self, a: usize, b: usize) -> f64 {
        self.products[a * self.items.len() + b]
    }

    fn chosen(&self, items: Vec<usize>) -> Chosen {
        let pairs = items
            .iter()
            .flat_map(|&a| items.iter().map(move |&b| (a, b)));
        Chosen {
            loss: pairs.map(|(a, b)| self.product(a, b)).sum(),
            cost: items.iter().map(|&i| self.items[i].cost).sum(),
            items,
        }
    }

    fn search(
        &self,
        problem: &Problem,
        additive: &Assignment,
        limit: u64,
        count: usize,
    ) -> Vec<Assignment> {
        let mut seen: BTreeMap<Vec<usize>, (f64, u64)> = BTreeMap::new();
        if few(self.classes.iter().map(Vec::len)) {
            self.all(limit, &mut seen);
        } else if let Some(start) = self.find(additive) {
            self.descend(self.chosen(start), limit, &mut seen);
        }
        let mut all: Vec<(Vec<usize>, (f64, u64))> = seen.into_iter().collect();
        all.sort_by(|a, b| {
            a.1.0
                .total_cmp(&b.1.0)
                .then(a.1.1.cmp(&b.1.1))
                .then(a.0.cmp(&b.0))
        });
        all.truncate(count);
        let assignment = |(items, _): (Vec<usize>, _)| {
            let mut picks = vec![0; problem.layers.len()];
            for &(layer, pick) in items.iter().flat_map(|&i| &self.items[i].picks) {
                picks[layer] = pick;
            }
            problem.assignment(picks)
        };
        all.into_iter().map(assignment).collect()
    }

    /// The items of an assignment.
    fn find(&self, of: &Assignment) -> Option<Vec<usize>> {
        let same = |&&i: &&usize| self.items[i].picks.iter().all(|&(l, p)| of.picks[l] == p);
        self.classes
            .iter()
            .map(|c| c.iter().find(same).copied())
            .collect()
    }

    /// Every choice within the limit.
    fn all(&self, limit: u64, seen: &mut BTreeMap<Vec<usize>, (f64, u64)>) {
        let mut at = vec![0; self.classes.len()];
        loop {
            let items = at.iter().zip(&self.classes).map(|(&a, c)| c[a]);
            let chosen = self.chosen(items.collect());
            if chosen.cost <= limit {
                seen.insert(chosen.items, (chosen.loss, chosen.cost));
            }
            let Some(next) = (0..at.len()).find(|&c| at[c] + 1 < self.classes[c].len()) else {
                return;
            };
            at[next] += 1;
            at[..next].fill(0);
        }
    }

    /// Takes the exchange of one or two items that lowers the loss most, until none does. What was taken is kept, and
    /// what comes next to the last.
    fn descend(&self, mut from: Chosen, limit: u64, seen: &mut BTreeMap<Vec<usize>, (f64, u64)>) {
        for _ in 0..4 * self.classes.len() {
            seen.insert(from.items.clone(), (from.loss, from.cost));
            let mut offers = self.offers(&from, limit);
            offers.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
            let with = |offer: &(f64, [Option<usize>; 2])| {
                let mut items = from.items.clone();
                for &to in offer.1.iter().flatten() {
                    items[self.items[to].class] = to;
                }
                self.chosen(items)
            };
            let best = offers.first().filter(|o| o.0 < -1e-9 * from.loss.abs());
            let Some(best) = best else {
                for near in offers.iter().take(NEAR).map(with) {
                    seen.insert(near.items, (near.loss, near.cost));
                }
                return;
            };
            from = with(best);
        }
    }

    /// What exchanges of one or two items add to the loss, where they keep to the limit.
    fn offers(&self, from: &Chosen, limit: u64) -> Vec<(f64, [Option<usize>; 2])> {
        let steps = self.steps(from);
        let room = i128::from(limit) - i128::from(from.cost);
        let mut offers = Vec::new();
        for (i, &(to, loss, cost)) in steps.iter().enumerate() {
            if cost <= room {
                offers.push((loss, [Some(to), None]));
            }
            if steps.len() > PAIRS {
                continue;
            }
            let out = from.items[self.items[to].class];
            for &(other, lost, more) in &steps[i + 1..] {
                if cost + more > room || self.items[other].class == self.items[to].class {
                    continue;
                }
                let left = from.items[self.items[other].class];
                let entering = self.product(to, other) - self.product(to, left);
                let both = entering - self.product(out, other) + self.product(out, left);
                offers.push((loss + lost + 2.0 * both, [Some(to), Some(other)]));
            }
        }
        offers
    }

    /// Every other item: what the loss and the cost become with it.
    fn steps(&self, from: &Chosen) -> Vec<(usize, f64, i128)> {
        let with = |i: usize| -> f64 { from.items.iter().map(|&j| self.product(i, j)).sum() };
        let own: Vec<f64> = from.items.iter().map(|&i| with(i)).collect();
        let others = (0..self.items.len()).filter(|&i| from.items[self.items[i].class] != i);
        others
            .map(|i| {
                let class = self.items[i].class;
                let out = from.items[class];
                let length =
                    self.product(i, i) + self.product(out, out) - 2.0 * self.product(i, out);
                let loss = 2.0 * (with(i) - own[class]) + length;
                let cost = i128::from(self.items[i].cost) - i128::from(self.items[out].cost);
                (i, loss, cost)
            })
            .collect()
    }
}

/// The error vector of an item and its squared length: layers whose direction is not known add their loss alone.
fn vector(problem: &Problem, item: &Item, length: usize) -> (Vec<f32>, f64) {
    let mut sum = vec![0f32; length];
    let mut alone = 0.0;
    for &(layer, pick) in &item.picks {
        let c = &problem.layers[layer].2[pick];
        if c.direction.len() == length {
            let scale = c.loss.clamp(0.0, 1e30).sqrt() as f32;
            for (s, d) in sum.iter_mut().zip(&c.direction) {
                *s += scale * d;
            }
        } else {
            alone += c.loss;
        }
    }
    let square: f64 = sum.iter().map(|&x| f64::from(x).powi(2)).sum();
    (sum, square + alone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixed::assign::{Choosable, Cost};
    use proptest::prelude::*;

    /// Layers of three formats whose errors point into directions of five numbers.
    fn problem(layers: usize, numbers: &[f32]) -> Problem {
        let at = |i: usize| numbers[i % numbers.len()];
        let layer = |l: usize| {
            let choice = |f: usize| {
                let raw: Vec<f32> = (0..5).map(|k| at(l * 31 + f * 7 + k * 3) - 0.5).collect();
                let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-3);
                Choosable {
                    weights: None,
                    activations: None,
                    loss: if f == 0 {
                        0.0
                    } else {
                        f64::from(at(l * 5 + f)) * 4f64.powi(f as i32)
                    },
                    bytes: [40, 10, 5][f] * (l as u64 + 1),
                    bops: 0,
                    micros: None,
                    direction: raw.iter().map(|x| x / length).collect(),
                }
            };
            (format!("layer {l}"), 10, (0..3).map(choice).collect())
        };
        Problem::of_layers((0..layers).map(layer).collect(), Cost::Bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn few_choices_are_all_looked_at(numbers in proptest::collection::vec(0f32..1.0, 97)) {
            let problem = problem(6, &numbers);
            let quadratic = Quadratic::new(&problem).expect("directions are known");
            for limit in [150u64, 300, 500] {
                let best = problem.best(limit, 3);
                let additive = problem.solve(limit).expect("a solution");
                let loss = |a: &Assignment| {
                    let items = quadratic.find(a).expect("an assignment of the problem");
                    quadratic.chosen(items).loss
                };
                let mut least = f64::INFINITY;
                let mut all = BTreeMap::new();
                quadratic.all(limit, &mut all);
                for (loss, _) in all.values() {
                    least = least.min(*loss);
                }
                prop_assert!((loss(&best[0]) - least).abs() <= 1e-9 * least.abs().max(1.0));
                prop_assert!(best.iter().any(|a| a.picks == additive.picks));
                prop_assert!(best.iter().all(|a| problem.cost_of(a) <= limit));
            }
        }

        #[test]
        fn a_descent_is_never_worse_than_its_start(numbers in proptest::collection::vec(0f32..1.0, 97)) {
            let problem = problem(30, &numbers);
            let quadratic = Quadratic::new(&problem).expect("directions are known");
            let limit = 4000;
            let additive = problem.solve(limit).expect("a solution");
            let best = &problem.best(limit, 1)[0];
            let loss = |a: &Assignment| {
                let items = quadratic.find(a).expect("an assignment of the problem");
                quadratic.chosen(items).loss
            };
            prop_assert!(loss(best) <= loss(&additive) + 1e-9);
            prop_assert!(problem.cost_of(best) <= limit);
        }
    }
}
