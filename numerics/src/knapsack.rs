//! The multiple-choice knapsack: one choice of each class, the least total loss, a total cost within a budget.
//!
//! Classes are layers, choices are number formats, costs are bytes, bits or time. [`front`] gives every best trade of
//! cost against loss, [`least_loss`] the best one within a budget, exactly.
//!
//! Sources: Sinha and Zoltners, *The multiple-choice knapsack problem*, Operations Research 27 (1979), for dominance and
//! the linear relaxation; Pisinger, *A minimal algorithm for the multiple-choice knapsack problem*, EJOR 83 (1995), for
//! fixing choices by their reduced cost and enumerating what is left with dominance; Horowitz and Sahni, *Computing
//! partitions with applications to the knapsack problem*, Journal of the ACM 21 (1974), for doing so in two halves.

mod front;
mod halves;
#[cfg(test)]
mod tests;

pub use front::{Front, Point, front};
use halves::{Price, Unsettled, enumerate, unsettled};

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
    search(&mut classes.to_vec(), budget, f64::INFINITY, WIDE)
}

/// Partial solutions of each half that the first, quick enumeration goes on with.
const NARROW: usize = 256;

/// Classes that it looks at.
const FEW: usize = 48;

/// Partial solutions of each half beyond which enumerating is given up for trying a class choice by choice; inside of
/// that it is an eighth more, up to [`WIDEST`], which bounds the memory.
const WIDE: usize = 2048;
const WIDEST: usize = 1 << 16;

/// The best solution that loses less than `known`, if there is one.
fn search(classes: &mut [Vec<Choice>], budget: u64, known: f64, wide: usize) -> Option<Solution> {
    let (first, steps) = relaxation(classes);
    let cheapest: u64 = classes.iter().zip(&first).map(|(c, &p)| c[p].cost).sum();
    if cheapest > budget {
        return None;
    }
    let mut picks = first;
    let mut cost = cheapest;
    let mut closed = vec![false; classes.len()];
    // The first step that does not fit, and what was chosen before it: its slope is the price of cost, for which they
    // are best.
    let mut split: Option<(&Step, Vec<usize>)> = None;
    for step in &steps {
        if closed[step.class] {
            continue;
        }
        if cost + step.cost > budget {
            split = split.or_else(|| Some((step, picks.clone())));
            closed[step.class] = true;
            continue;
        }
        cost += step.cost;
        picks[step.class] = step.to;
    }
    let greedy = Solution::new(classes, picks);
    let mut best = (greedy.loss < known).then_some(greedy);
    // Where no step was left out, every class has its best choice.
    let Some((step, before)) = split else {
        return best;
    };
    let before = Solution::new(classes, before);
    let price = Price::new(before, budget, step.slope());
    let split = step.class;
    let gap = price.gap(best.as_ref().map_or(known, |b| b.loss));
    if gap <= 0.0 {
        return best;
    }
    let core = unsettled(classes, &price, gap, split);
    let all: Vec<&Unsettled> = core.iter().collect();
    // A narrow enumeration first, of the classes nearest to the price: the better the solution known, the less the exact
    // one has to look at.
    let mut few = all.clone();
    few.sort_by(|a, b| a.slope.total_cmp(&b.slope));
    few.truncate(FEW);
    for (open, width) in [(few, NARROW), (all, wide)] {
        let known = best.as_ref().map_or(known, |b| b.loss);
        let (better, complete) = enumerate(classes, &price, &open, known, width);
        best = better.or(best);
        let gap = price.gap(best.as_ref().map_or(known, |b| b.loss));
        if gap <= 0.0 || complete && open.len() == core.len() {
            return best;
        }
    }
    // Too many: the class at which the relaxation splits is tried choice by choice, each with a price of its own.
    let all = std::mem::take(&mut classes[split]);
    let wider = (wide + wide / 8).min(WIDEST);
    for pick in undominated(&all) {
        classes[split] = vec![all[pick]];
        let known = best.as_ref().map_or(known, |b| b.loss);
        if let Some(mut better) = search(classes, budget, known, wider) {
            better.picks[split] = pick;
            best = Some(better);
        }
    }
    classes[split] = all;
    best
}
