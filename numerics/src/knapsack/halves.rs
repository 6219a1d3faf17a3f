//! Enumerating the classes that a price of cost leaves open.

use super::{Choice, NARROW, Solution, undominated};
use std::cmp::Ordering;

/// Of partial solutions with near to the same reduced cost those are followed that stay near the budget: this share of
/// the price of what they differ from it is added.
const AWAY: f64 = 1e-3;

/// A choice that may stand in a better solution than the one known, as what it adds to the best one for the price.
#[derive(Debug, Clone, Copy)]
struct Open {
    pick: usize,
    cost: i64,
    loss: f64,
    /// The reduced cost, at least zero.
    reduced: f64,
}

/// A class that is not settled by the price.
#[derive(Debug)]
pub(super) struct Unsettled {
    class: usize,
    open: Vec<Open>,
    /// The least reduced cost of a choice that is not the best for the price.
    pub(super) nearest: f64,
    /// The least reduced cost for each unit of cost: how near to the price another choice comes.
    pub(super) slope: f64,
}

/// A partial solution of the classes enumerated so far, as what it adds to the best choices for the price.
#[derive(Debug, Clone, Copy)]
struct State {
    cost: i64,
    loss: f64,
    reduced: f64,
    parent: u32,
    pick: u32,
}

/// Partial solutions of one half of the unsettled classes, class by class.
#[derive(Debug)]
struct Half {
    classes: Vec<usize>,
    /// By number of classes enumerated, ascending in cost and falling in loss.
    levels: Vec<Vec<State>>,
}

impl Half {
    fn new() -> Self {
        let nothing = State {
            cost: 0,
            loss: 0.0,
            reduced: 0.0,
            parent: 0,
            pick: 0,
        };
        Self {
            classes: Vec::new(),
            levels: vec![vec![nothing]],
        }
    }

    fn states(&self) -> &[State] {
        self.levels.last().map_or(&[], Vec::as_slice)
    }

    /// Enumerates one more class: what no other partial solution beats in both cost and loss is kept, but nothing whose
    /// reduced cost is `gap` or more, and no more than `width` of the least reduced cost. Whether the width sufficed.
    fn extend(&mut self, with: &Unsettled, gap: f64, (width, away): (usize, f64)) -> bool {
        let states = self.states();
        let mut next = Vec::with_capacity(states.len() * with.open.len());
        // Choice by choice: each makes an ascending run, and the sort merges runs.
        for o in with.open.iter().filter(|o| o.reduced < gap) {
            let of = |(at, s): (usize, &State)| State {
                cost: s.cost + o.cost,
                loss: s.loss + o.loss,
                reduced: s.reduced + o.reduced,
                parent: at as u32,
                pick: o.pick as u32,
            };
            let made = states.iter().enumerate().map(of);
            next.extend(made.filter(|s| s.reduced < gap));
        }
        next.sort_by(|a, b| match a.cost.cmp(&b.cost) {
            Ordering::Equal => a.loss.total_cmp(&b.loss),
            other => other,
        });
        let mut least = f64::INFINITY;
        next.retain(|s| {
            let keep = s.loss < least;
            least = least.min(s.loss);
            keep
        });
        let complete = next.len() <= width;
        if !complete {
            let worth = |s: &State| s.reduced + away * s.cost.unsigned_abs() as f64;
            let mut by: Vec<f64> = next.iter().map(worth).collect();
            let (_, &mut limit, _) = by.select_nth_unstable_by(width, f64::total_cmp);
            next.retain(|s| worth(s) < limit);
        }
        self.classes.push(with.class);
        self.levels.push(next);
        complete
    }

    /// Writes the choices that led to a state.
    fn trace(&self, mut at: usize, picks: &mut [usize]) {
        for (&class, level) in self.classes.iter().zip(&self.levels[1..]).rev() {
            picks[class] = level[at].pick as usize;
            at = level[at].parent as usize;
        }
    }
}

/// The pair of states, one of each half, of least loss among those that together add at most `room` to the cost.
fn pair(a: &[State], b: &[State], room: i64) -> Option<(usize, usize, f64)> {
    let mut best: Option<(usize, usize, f64)> = None;
    let mut j = b.len();
    for (i, s) in a.iter().enumerate() {
        // The dearest partner that fits loses least.
        while j > 0 && s.cost + b[j - 1].cost > room {
            j -= 1;
        }
        if j == 0 {
            break;
        }
        let loss = s.loss + b[j - 1].loss;
        if best.is_none_or(|(_, _, l)| loss < l) {
            best = Some((i, j - 1, loss));
        }
    }
    best
}

/// The choices that are best where each unit of cost has a price, and the bound that follows.
///
/// With reduced costs `r = loss + price·cost − min(loss + price·cost)` of the choices, each solution within the budget
/// loses at least `bound + Σ r + price·(budget − cost)`, where `bound` is the Lagrangian bound.
#[derive(Debug)]
pub(super) struct Price {
    price: f64,
    best: Solution,
    /// What the best choices leave of the budget; below zero where they are over it.
    room: i64,
    /// Sums of many floats differ in their last digits: a choice is left out only where it is worse beyond doubt.
    slack: f64,
}

impl Price {
    /// Of the price and the choices that are best for it: of several that are, those that leave the least room count,
    /// as then the fewest others have to be looked at.
    pub(super) fn new(best: Solution, budget: u64, price: f64) -> Self {
        Self {
            price,
            room: budget as i64 - best.cost as i64,
            slack: 1e-12 * (best.loss.abs() + price * best.cost as f64 + 1.0),
            best,
        }
    }

    /// What the reduced costs of a solution that loses less than `known` sum up to at most; zero where `known` is at the
    /// bound but for rounding.
    pub(super) fn gap(&self, known: f64) -> f64 {
        let gap = known - self.best.loss + self.price * self.room as f64;
        if gap > self.slack {
            gap + self.slack
        } else {
            0.0
        }
    }
}

/// The best solution that loses less than `known`, if one was found, and whether nothing was left out: the unsettled
/// classes are enumerated in two halves, with all others fixed.
pub(super) fn enumerate(
    classes: &[Vec<Choice>],
    price: &Price,
    core: &[&Unsettled],
    known: f64,
    width: usize,
) -> (Option<Solution>, bool) {
    let mut found: Option<Solution> = None;
    let mut halves = [Half::new(), Half::new()];
    let mut complete = true;
    let mut next = core.iter();
    loop {
        let [a, b] = &halves;
        let least = found.as_ref().map_or(known, |f| f.loss);
        if let Some((i, j, loss)) = pair(a.states(), b.states(), price.room)
            && price.best.loss + loss < least
        {
            let mut picks = price.best.picks.clone();
            a.trace(i, &mut picks);
            b.trace(j, &mut picks);
            let solution = Solution::new(classes, picks);
            if solution.loss < least {
                found = Some(solution);
            }
        }
        let gap = price.gap(found.as_ref().map_or(known, |f| f.loss));
        if !complete && width > NARROW {
            return (found, gap <= 0.0);
        }
        let Some(class) = next.find(|c| c.nearest < gap) else {
            return (found, complete || gap <= 0.0);
        };
        let smaller = usize::from(b.states().len() < a.states().len());
        complete &= halves[smaller].extend(class, gap, (width, AWAY * price.price));
    }
}

/// The classes whose choice a price leaves open, the most uncertain first: those with a choice that is not the best for
/// the price by less than `gap`.
pub(super) fn unsettled(
    classes: &[Vec<Choice>],
    price: &Price,
    gap: f64,
    split: usize,
) -> Vec<Unsettled> {
    let mut core = Vec::new();
    for (class, choices) in classes.iter().enumerate() {
        let best = price.best.picks[class];
        let own = choices[best];
        let open = |pick: usize| {
            let cost = choices[pick].cost as i64 - own.cost as i64;
            let loss = choices[pick].loss - own.loss;
            Open {
                pick,
                cost,
                loss,
                reduced: (loss + price.price * cost as f64).max(0.0),
            }
        };
        let kept = undominated(choices).into_iter().map(open);
        let open: Vec<Open> = kept.filter(|o| o.pick == best || o.reduced < gap).collect();
        let rest = open.iter().filter(|o| o.pick != best);
        let nearest = rest
            .clone()
            .map(|o| o.reduced)
            .fold(f64::INFINITY, f64::min);
        let slope = rest
            .map(|o| o.reduced / o.cost.unsigned_abs() as f64)
            .fold(f64::INFINITY, f64::min);
        if nearest.is_finite() {
            core.push(Unsettled {
                class,
                open,
                nearest,
                slope,
            });
        }
    }
    // Of equal ones those around the split: the relaxation has raised the cost of those before it, not of those behind.
    let from_split = |u: &Unsettled| (u.class.abs_diff(split), u.class);
    core.sort_by(|a, b| {
        let near = a.nearest.total_cmp(&b.nearest);
        near.then_with(|| from_split(a).cmp(&from_split(b)))
    });
    core
}
