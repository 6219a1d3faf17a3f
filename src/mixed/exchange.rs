//! Exchanges in a model that holds its budget: one layer gets other bits, or one more so that another can do with less.

use std::collections::BTreeMap;

use super::assign::{Assignment, Problem};

/// Another format for one layer.
pub(super) struct Step {
    /// The layer.
    pub(super) layer: usize,
    /// The place in its formats.
    pub(super) pick: usize,
    /// Cost that it saves; below zero where it costs more.
    pub(super) saved: i64,
    /// Loss that it adds, with what neighbours make of it; below zero where it gains.
    lost: f64,
}

impl Step {
    /// All steps from an assignment: first those that save, by the loss for what they save, then the others.
    pub(super) fn all(
        problem: &Problem,
        from: &Assignment,
        excess: &BTreeMap<&str, f64>,
    ) -> Vec<Self> {
        let mut steps = Vec::new();
        for (layer, (name, _, choices)) in problem.layers.iter().enumerate() {
            let own = &choices[from.picks[layer]];
            let excess = excess.get(name.as_str()).copied().unwrap_or(0.0);
            for (pick, c) in choices.iter().enumerate() {
                let saved = problem.price(own).cast_signed() - problem.price(c).cast_signed();
                if saved != 0 {
                    let lost = c.loss - own.loss + excess * saved.signum() as f64;
                    steps.push(Self {
                        layer,
                        pick,
                        saved,
                        lost,
                    });
                }
            }
        }
        let key = |s: &Self| (s.saved < 0, s.lost / s.saved.unsigned_abs() as f64);
        steps.sort_by(|a, b| {
            let ((up, x), (other, y)) = (key(a), key(b));
            let order = up.cmp(&other).then(x.total_cmp(&y));
            order.then((a.layer, a.pick).cmp(&(b.layer, b.pick)))
        });
        steps
    }
}

/// Steps of either direction from which exchanges are made.
const PARTNERS: usize = 24;

/// Assignments in which one layer gets more and another less, that cost less and by what was measured lose no more: the
/// best first.
pub(super) fn swaps(problem: &Problem, from: &Assignment, steps: &[Step]) -> Vec<Assignment> {
    let (down, up) = steps.split_at(steps.partition_point(|s| s.saved > 0));
    let pairs = up.iter().take(PARTNERS).flat_map(|u| {
        let down = down.iter().take(PARTNERS);
        down.map(move |d| (u, d, u.saved + d.saved, u.lost + d.lost))
    });
    let mut pairs: Vec<_> = pairs
        .filter(|&(u, d, saved, lost)| u.layer != d.layer && saved > 0 && lost <= 0.0)
        .collect();
    pairs.sort_by(|a, b| (a.3 / a.2 as f64).total_cmp(&(b.3 / b.2 as f64)));
    let both = |(u, d, _, _): (&Step, &Step, i64, f64)| {
        let raised = problem.with(from, u.layer, u.pick)?;
        let next = problem.with(&raised, d.layer, d.pick)?;
        // Layers that must agree may have undone the one by the other, or made it cost more.
        (problem.cost_of(&next) < problem.cost_of(from)).then_some(next)
    };
    pairs.into_iter().filter_map(both).collect()
}
