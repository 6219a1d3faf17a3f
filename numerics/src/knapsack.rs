//! The multiple-choice knapsack: one choice of each class, the least total loss, a total cost within a budget.
//!
//! Classes are layers, choices are number formats, costs are bytes, bits or time. [`front`] gives every best trade of
//! cost against loss, [`least_loss`] the best one within a budget, exactly.
//!
//! Sources: Sinha and Zoltners, *The multiple-choice knapsack problem*, Operations Research 27 (1979), for dominance and
//! the linear relaxation; Pisinger, *A minimal algorithm for the multiple-choice knapsack problem*, EJOR 83 (1995), for
//! fixing choices by their reduced cost and enumerating what is left with dominance.

use std::cmp::Ordering;

mod front;
#[cfg(test)]
mod tests;

pub use front::{Front, Point, front};

/// One choice of a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What it costs.
    pub cost: u64,
    /// What is lost by it: finite.
    pub loss: f64,
}

/// A choice for every class.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// By class: the index of the choice.
    pub picks: Vec<usize>,
    /// The total cost.
    pub cost: u64,
    /// The total loss.
    pub loss: f64,
}

impl Solution {
    pub(super) fn new(classes: &[Vec<Choice>], picks: Vec<usize>) -> Self {
        let chosen = || classes.iter().zip(&picks).map(|(class, &p)| class[p]);
        let cost = chosen().map(|c| c.cost).sum();
        let loss = chosen().map(|c| c.loss).sum();
        Self { picks, cost, loss }
    }
}

/// One step on a class's lower hull: from the choice before to `to`, for `cost` more and `gain` less loss.
#[derive(Debug, Clone, Copy)]
struct Step {
    class: usize,
    to: usize,
    cost: u64,
    gain: f64,
}

impl Step {
    fn slope(&self) -> f64 {
        self.gain / self.cost as f64
    }
}

/// The choices that no other one beats in both cost and loss, by rising cost and falling loss.
fn undominated(class: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..class.len()).collect();
    order.sort_by(|&a, &b| {
        let by_loss = class[a].loss.total_cmp(&class[b].loss);
        class[a]
            .cost
            .cmp(&class[b].cost)
            .then(by_loss)
            .then(a.cmp(&b))
    });
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.last().is_none_or(|&k| class[i].loss < class[k].loss) {
            kept.push(i);
        }
    }
    kept
}

/// The cheapest choice of a class, and the steps along the lower convex hull from there.
fn hull(class: &[Choice], index: usize) -> (usize, Vec<Step>) {
    let kept = undominated(class);
    let mut corners: Vec<usize> = Vec::new();
    for &i in &kept {
        while let [.., a, b] = corners[..] {
            let flat = |from: usize, to: usize| {
                (class[from].loss - class[to].loss) / (class[to].cost - class[from].cost) as f64
            };
            if flat(a, b) > flat(b, i) {
                break;
            }
            corners.pop();
        }
        corners.push(i);
    }
    let step = |w: &[usize]| Step {
        class: index,
        to: w[1],
        cost: class[w[1]].cost - class[w[0]].cost,
        gain: class[w[0]].loss - class[w[1]].loss,
    };
    (corners[0], corners.windows(2).map(step).collect())
}

/// The cheapest choices, and all steps of all hulls by falling gain for each cost.
fn relaxation(classes: &[Vec<Choice>]) -> (Vec<usize>, Vec<Step>) {
    let hulls = classes.iter().enumerate().map(|(i, c)| hull(c, i));
    let (first, steps): (Vec<usize>, Vec<Vec<Step>>) = hulls.unzip();
    let mut steps: Vec<Step> = steps.into_iter().flatten().collect();
    // Stable: steps of one class have falling slopes and stay in order.
    steps.sort_by(|a, b| b.slope().total_cmp(&a.slope()).then(a.class.cmp(&b.class)));
    (first, steps)
}

/// The solution of least loss whose cost is within the budget; `None` where even the cheapest is not, or where a class
/// has no choice. Of equal ones the same is found every time.
pub fn least_loss(classes: &[Vec<Choice>], budget: u64) -> Option<Solution> {
    if classes.iter().any(Vec::is_empty) {
        return None;
    }
    let (first, steps) = relaxation(classes);
    let cheapest: u64 = classes.iter().zip(&first).map(|(c, &p)| c[p].cost).sum();
    if cheapest > budget {
        return None;
    }
    let mut picks = first;
    let mut cost = cheapest;
    let mut closed = vec![false; classes.len()];
    let mut price = 0.0;
    for step in &steps {
        if closed[step.class] {
            continue;
        }
        if cost + step.cost > budget {
            if price == 0.0 {
                price = step.slope();
            }
            closed[step.class] = true;
            continue;
        }
        cost += step.cost;
        picks[step.class] = step.to;
    }
    let greedy = Solution::new(classes, picks);
    if price == 0.0 {
        // No step was left out: every class has its best choice.
        return Some(greedy);
    }
    Some(improve(classes, budget, price, greedy))
}

/// A choice that may stand in a better solution than the one known.
#[derive(Debug, Clone, Copy)]
struct Open {
    pick: usize,
    cost: u64,
    loss: f64,
}

/// A partial solution of the classes enumerated so far, all others at their best for the price.
#[derive(Debug, Clone, Copy)]
struct State {
    cost: u64,
    loss: f64,
    parent: u32,
    pick: u32,
}

/// Proves the greedy solution the best one, or finds a better: classes whose choice the price leaves open are
/// enumerated, with all others fixed.
///
/// With reduced costs `r = loss + price·cost − min(loss + price·cost)` of the choices, each solution within the budget
/// loses at least `bound + Σ r + price·(budget − cost)`, where `bound` is the Lagrangian bound.
fn improve(classes: &[Vec<Choice>], budget: u64, price: f64, greedy: Solution) -> Solution {
    let value = |c: &Choice| c.loss + price * c.cost as f64;
    let mut best = Vec::with_capacity(classes.len());
    for class in classes {
        let least = (0..class.len()).min_by(|&a, &b| value(&class[a]).total_cmp(&value(&class[b])));
        best.push(least.unwrap_or(0));
    }
    let total: f64 = classes.iter().zip(&best).map(|(c, &b)| value(&c[b])).sum();
    let bound = total - price * budget as f64;
    // Sums of many floats differ in their last digits: a choice is left out only where it is worse beyond doubt.
    let slack = 1e-12 * (total.abs() + 1.0);
    let mut gap = greedy.loss - bound + slack;
    let mut core: Vec<(usize, Vec<Open>, f64)> = Vec::new();
    for (i, class) in classes.iter().enumerate() {
        let least = value(&class[best[i]]);
        let open: Vec<Open> = undominated(class)
            .into_iter()
            .filter(|&p| p == best[i] || value(&class[p]) - least < gap)
            .map(|pick| Open {
                pick,
                cost: class[pick].cost,
                loss: class[pick].loss,
            })
            .collect();
        let rest = open.iter().filter(|o| o.pick != best[i]);
        let nearest = rest
            .map(|o| o.loss + price * o.cost as f64 - least)
            .fold(f64::INFINITY, f64::min);
        if nearest.is_finite() || open.iter().all(|o| o.pick != best[i]) {
            core.push((i, open, nearest));
        }
    }
    core.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.0.cmp(&b.0)));
    let base = Solution::new(classes, best.clone());
    let mut levels: Vec<Vec<State>> = vec![vec![State {
        cost: base.cost,
        loss: base.loss,
        parent: 0,
        pick: 0,
    }]];
    let mut found: Option<(usize, usize, f64)> = None;
    let mut known = greedy.loss;
    if base.cost <= budget && base.loss < known {
        (known, found) = (base.loss, Some((0, 0, base.loss)));
    }
    for (depth, (class, open, nearest)) in core.iter().enumerate() {
        if *nearest >= gap {
            break;
        }
        let own = classes[*class][best[*class]];
        // What the classes still to come can save at most, so that a state over the budget may come back below it.
        let coming: u64 = core[depth + 1..]
            .iter()
            .map(|(c, o, _)| saving(classes[*c][best[*c]].cost, o))
            .sum();
        let mut next = Vec::new();
        for (at, s) in levels[depth].iter().enumerate() {
            for o in open {
                let cost = s.cost - own.cost + o.cost;
                let loss = s.loss - own.loss + o.loss;
                let lost = loss + price * (cost as f64 - budget as f64) - bound;
                if cost > budget.saturating_add(coming) || lost >= gap {
                    continue;
                }
                next.push(State {
                    cost,
                    loss,
                    parent: at as u32,
                    pick: o.pick as u32,
                });
            }
        }
        let next = thin(next);
        for (at, s) in next.iter().enumerate() {
            if s.cost <= budget && s.loss < known {
                (known, found) = (s.loss, Some((depth + 1, at, s.loss)));
            }
        }
        gap = gap.min(known - bound + slack);
        levels.push(next);
    }
    let Some((mut depth, mut at, _)) = found else {
        return greedy;
    };
    let mut picks = best;
    while depth > 0 {
        let s = levels[depth][at];
        picks[core[depth - 1].0] = s.pick as usize;
        (depth, at) = (depth - 1, s.parent as usize);
    }
    let solution = Solution::new(classes, picks);
    if solution.cost <= budget && solution.loss < greedy.loss {
        solution
    } else {
        greedy
    }
}

fn saving(cost: u64, open: &[Open]) -> u64 {
    open.iter()
        .map(|o| cost.saturating_sub(o.cost))
        .max()
        .unwrap_or(0)
}

/// Keeps the states that no other one beats in both cost and loss.
fn thin(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| match a.cost.cmp(&b.cost) {
        Ordering::Equal => a.loss.total_cmp(&b.loss),
        other => other,
    });
    let mut least = f64::INFINITY;
    states.retain(|s| {
        let keep = s.loss < least;
        least = least.min(s.loss);
        keep
    });
    states
}
