//! From an assignment to a model that holds its budget: built, measured, and where need be chosen again.

use std::collections::BTreeMap;

use onnx_quant_ir::Model;
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::settings::QuantSettings;
use serde::Serialize;

use super::assign::{Assignment, Budget, Problem, title};
use super::exchange::{Step, swaps};
use super::judge::{Judge, Verdict};
use super::loss::LossKind;
use super::refine;
use super::sensitivity::Sensitivity;
use crate::error::Error;
use crate::extend::Stage;
use crate::metadata::{self, Metadata};
use crate::pipeline::{Run, Watch};
use crate::quantize::Say;

/// Models that are built and run at most while the smallest one that holds is looked for.
const RUNS: usize = 24;

/// A model that was built from an assignment.
#[derive(Clone)]
pub struct Built {
    /// The assignment.
    pub assignment: Assignment,
    /// The settings that carry it out.
    pub settings: QuantSettings,
    /// The plan before it was carried out.
    pub plan: PrecisionPlan,
    /// The model.
    pub model: Model,
    /// Bytes of its file.
    pub bytes: u64,
}

/// A point of the front, for reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trade {
    /// Bytes stored for the layers.
    pub bytes: u64,
    /// The sum of the losses that were measured one by one.
    pub loss: f64,
    /// What the whole model lost where it was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Bytes of its file, where it was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Whether it was chosen.
    pub chosen: bool,
}

/// Builds models of one problem.
pub struct Builder<'a> {
    /// The normalized model.
    pub model: &'a Model,
    /// SHA-256 of the float model's file.
    pub source: String,
    /// The settings of what is not a layer.
    pub base: &'a QuantSettings,
    /// The layers and their formats.
    pub problem: &'a Problem,
}

impl Builder<'_> {
    /// Builds an assignment.
    ///
    /// # Errors
    /// A pass that refuses.
    pub fn build(&self, assignment: &Assignment) -> Result<Built, Error> {
        let settings = self.problem.settings(assignment, self.base, self.model)?;
        let mut run = Run::new(Watch::default())?;
        run.cx.insert(settings.clone());
        let mut model = self.model.clone();
        run.stage(Stage::Plan, &mut model)?;
        let plan = run.cx.get::<PrecisionPlan>().cloned().unwrap_or_default();
        run.stage(Stage::Rewrite, &mut model)?;
        crate::pipeline::name_producer(&mut model);
        let carried_out = run.cx.get::<PrecisionPlan>().cloned().unwrap_or_default();
        Metadata {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.source.clone(),
            plan: metadata::summary(&carried_out),
            command: String::new(),
        }
        .write(&mut model);
        let bytes = crate::stages::size_of(&model)?;
        Ok(Built {
            assignment: assignment.clone(),
            settings,
            plan,
            model,
            bytes,
        })
    }
}

/// Complete models that are run to choose among them: those that are best by what was measured of single layers.
const RATED: usize = 16;
/// The same where all choices are few.
const RATED_OF_FEW: usize = 64;

/// Runs complete models on the samples of the analysis.
pub struct Rater<'a> {
    /// What runs them.
    pub judge: Judge<'a>,
    /// Their loss.
    pub kind: LossKind,
}

/// The best model whose cost is within a budget: of the best by what was measured of single layers the one that loses
/// least when it is run, where there is data to run.
///
/// # Errors
/// A budget that no assignment holds, with the least that can be had.
pub fn within(
    builder: &Builder<'_>,
    budget: Budget,
    rater: Option<&Rater<'_>>,
    say: Say<'_>,
) -> Result<Built, Error> {
    let problem = builder.problem;
    let weights = problem.weights();
    let (front, _) = problem.front();
    let least = front
        .first()
        .ok_or_else(|| Error::usage("no layer has a format to choose"))?;
    let mut best = |limit: u64, none: String| match problem.solve(limit) {
        None => Err(Error::usage(none)),
        Some(_) => rated(builder, limit, u64::MAX, rater, say),
    };
    match budget {
        Budget::Size(limit) => {
            let (built, layers) = size(builder, limit, least, say)?;
            let better = rated(builder, layers, limit, rater, say)?;
            Ok(if better.bytes <= limit { better } else { built })
        }
        Budget::AvgBits(bits) => {
            let limit = (bits * weights as f64 / 8.0) as u64;
            let have = least.bytes as f64 * 8.0 / weights as f64;
            best(
                limit,
                format!(
                    "no plan has {bits} bits a weight: the least is {have:.2}; give --candidates of fewer bits"
                ),
            )
        }
        Budget::Bops(limit) => best(
            limit as u64,
            format!(
                "no plan has {limit:.3e} bit operations: the least is {:.3e}",
                least.bops as f64
            ),
        ),
        Budget::Latency(limit) => best(
            (limit * 1000.0) as u64,
            format!(
                "no plan takes {limit} microseconds: `analyze --latency` measures what can be had"
            ),
        ),
    }
}

/// Of the best assignments whose layers cost at most `limit` the model that loses least, if its file has at most `bytes`.
fn rated(
    builder: &Builder<'_>,
    limit: u64,
    bytes: u64,
    rater: Option<&Rater<'_>>,
    say: Say<'_>,
) -> Result<Built, Error> {
    let problem = builder.problem;
    let few = refine::few(problem.layers.iter().map(|(_, _, c)| c.len()));
    let count = match rater {
        None => 1,
        Some(_) if few => RATED_OF_FEW,
        Some(_) => RATED,
    };
    let assignments = problem.best(limit, count);
    let rate = |a: &Assignment| -> Result<(f64, Built), Error> {
        let built = builder.build(a)?;
        let loss = match rater {
            Some(r) if built.bytes <= bytes => r.judge.loss(&built.model, r.kind)?,
            Some(_) => f64::INFINITY,
            None => 0.0,
        };
        Ok((loss, built))
    };
    let mut best: Option<(f64, Built)> = None;
    for a in &assignments {
        let (loss, built) = rate(a)?;
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, built));
        }
    }
    let (loss, built) = best.ok_or_else(|| Error::usage("no layer has a format to choose"))?;
    if rater.is_some() {
        say(format!(
            "assign      of {} plans that were run the best loses {loss:.3e}",
            assignments.len()
        ));
    }
    Ok(built)
}

/// What stands in the file beside the layers is known when a model is built: the limit of the layers is corrected by it
/// until the file fits. Also the bytes that are left for the layers.
fn size(
    builder: &Builder<'_>,
    limit: u64,
    least: &Assignment,
    say: Say<'_>,
) -> Result<(Built, u64), Error> {
    let smallest = builder.build(least)?;
    let none = || {
        Error::usage(format!(
            "no plan fits into {limit} bytes: the smallest model has {}; give --candidates of fewer bits",
            smallest.bytes
        ))
    };
    if smallest.bytes > limit {
        return Err(none());
    }
    let mut best = smallest;
    let mut other = best.bytes.saturating_sub(least.bytes);
    for _ in 0..8 {
        let found = builder.problem.solve(limit.saturating_sub(other));
        let Some(found) = found.filter(|f| f.picks != best.assignment.picks) else {
            break;
        };
        let built = builder.build(&found)?;
        say(format!(
            "assign      {} bytes where {limit} are allowed",
            built.bytes
        ));
        // What is over the limit, or below it, is what stands beside the layers more, or less, than was thought.
        if built.bytes <= limit {
            other = other.saturating_sub(limit - built.bytes);
            if built.assignment.loss >= best.assignment.loss {
                break;
            }
            best = built;
        } else {
            other += built.bytes - limit;
        }
    }
    let layers = limit.saturating_sub(best.bytes) + best.assignment.bytes;
    Ok((best, layers))
}

/// The result of a search.
pub struct Searched {
    /// The model; absent where none holds.
    pub built: Option<Built>,
    /// What it loses.
    pub verdict: Option<Verdict>,
    /// Every model that was run.
    pub runs: Vec<(Assignment, u64, Verdict)>,
    /// Why no model holds, in one sentence.
    pub failure: Option<String>,
}

/// The smallest model, of arithmetic in the fewest bits, whose loss is within `max_drop` with the judge's confidence.
///
/// # Errors
/// A model that cannot be built or run.
pub fn smallest(
    builder: &Builder<'_>,
    judge: &Judge<'_>,
    max_drop: f64,
    found: &Sensitivity,
    say: Say<'_>,
) -> Result<Searched, Error> {
    let mut front = builder.problem.front_together();
    front.retain(|a| builder.problem.quantizes(a));
    let mut searched = Searched {
        built: None,
        verdict: None,
        runs: Vec::new(),
        failure: None,
    };
    let mut hunt = Hunt {
        builder,
        judge,
        max_drop,
        say,
        best: None,
        searched: &mut searched,
        known: BTreeMap::new(),
    };
    // The loss of the whole falls along the front but for noise: bisection finds where it begins to hold.
    let (mut low, mut high) = (0, front.len());
    while low < high && hunt.searched.runs.len() < RUNS / 2 {
        let middle = low + (high - low) / 2;
        if hunt.holds(&front[middle])? {
            high = middle
        } else {
            low = middle + 1
        }
    }
    if hunt.best.is_none()
        && let Some(last) = front.last()
    {
        hunt.holds(last)?;
    }
    if let Some((built, _)) = hunt.best.clone() {
        hunt.exchange(built.assignment, found)?;
    }
    let best = hunt.best.take();
    match best {
        Some((built, verdict)) => (searched.built, searched.verdict) = (Some(built), Some(verdict)),
        None => searched.failure = Some(failure(builder.problem, &searched.runs, max_drop, judge)),
    }
    Ok(searched)
}

struct Hunt<'a, 'b> {
    builder: &'a Builder<'a>,
    judge: &'a Judge<'a>,
    max_drop: f64,
    say: Say<'b>,
    best: Option<(Built, Verdict)>,
    searched: &'a mut Searched,
    known: BTreeMap<Vec<usize>, bool>,
}

impl Hunt<'_, '_> {
    /// Builds and runs an assignment; the smallest that holds is kept.
    fn holds(&mut self, assignment: &Assignment) -> Result<bool, Error> {
        if let Some(&known) = self.known.get(&assignment.picks) {
            return Ok(known);
        }
        let built = self.builder.build(assignment)?;
        let verdict = self.judge.judge(&built.model)?;
        let held = verdict.upper <= self.max_drop;
        (self.say)(format!(
            "try         {} bytes: {} {:.4} → {:.4}, a drop of {:.2} % (at most {:.2} %): {}",
            built.bytes,
            verdict.metric,
            verdict.reference,
            verdict.candidate,
            verdict.drop * 100.0,
            verdict.upper * 100.0,
            if held { "holds" } else { "too much" }
        ));
        self.known.insert(assignment.picks.clone(), held);
        self.searched
            .runs
            .push((assignment.clone(), built.bytes, verdict.clone()));
        let key = |b: &Built| (self.builder.problem.cost_of(&b.assignment), b.bytes);
        if held && self.best.as_ref().is_none_or(|(b, _)| key(&built) < key(b)) {
            self.best = Some((built, verdict));
        }
        Ok(held)
    }

    /// Makes a model that holds smaller as long as it holds: layers go down one step, those first that lose least for
    /// what they save and last those whose neighbours make it worse; then one layer gets more so that another can do
    /// with less.
    fn exchange(&mut self, mut from: Assignment, found: &Sensitivity) -> Result<(), Error> {
        let mut excess: BTreeMap<&str, f64> = BTreeMap::new();
        for i in &found.interactions {
            for layer in [&i.first, &i.second] {
                *excess.entry(layer).or_default() += i.excess.max(0.0) / 2.0;
            }
        }
        let problem = self.builder.problem;
        let mut failures = 0;
        for step in Step::all(problem, &from, &excess) {
            if step.saved <= 0 {
                break;
            }
            // An earlier step may have taken the layer down already, or a layer that must agree with it.
            let own = problem.price(problem.chosen(&from, step.layer));
            if problem.price(&problem.layers[step.layer].2[step.pick]) >= own {
                continue;
            }
            if self.ends(failures) {
                return Ok(());
            }
            match problem.with(&from, step.layer, step.pick) {
                Some(next) if self.holds(&next)? => from = next,
                Some(_) => failures += 1,
                None => {}
            }
        }
        failures = 0;
        while !self.ends(failures) {
            let steps = Step::all(problem, &from, &excess);
            let swaps = swaps(problem, &from, &steps);
            let untried = |a: &Assignment| !self.known.contains_key(&a.picks);
            let Some(next) = swaps.into_iter().find(untried) else {
                break;
            };
            match self.holds(&next)? {
                true => from = next,
                false => failures += 1,
            }
        }
        Ok(())
    }

    /// Whether enough models were run, or enough of them in vain.
    fn ends(&self, failures: usize) -> bool {
        self.searched.runs.len() >= RUNS || failures >= 4
    }
}

/// Why nothing holds: the best that was seen, and the layers that lose most in it.
fn failure(
    problem: &Problem,
    runs: &[(Assignment, u64, Verdict)],
    max_drop: f64,
    judge: &Judge<'_>,
) -> String {
    let best = runs.iter().min_by(|a, b| a.2.upper.total_cmp(&b.2.upper));
    let Some((assignment, bytes, verdict)) = best else {
        return "no model could be built".to_owned();
    };
    let mut text = format!(
        "no plan holds a drop of {:.2} % with a confidence of {:.0} %: the best has {bytes} bytes and loses {:.2} %, at most {:.2} %, on {} samples",
        max_drop * 100.0,
        verdict.confidence * 100.0,
        verdict.drop * 100.0,
        verdict.upper * 100.0,
        judge.samples()
    );
    let mut lossy: Vec<usize> = (0..problem.layers.len())
        .filter(|&l| problem.chosen(assignment, l).loss > 0.0)
        .collect();
    lossy.sort_by(|&a, &b| {
        problem
            .chosen(assignment, b)
            .loss
            .total_cmp(&problem.chosen(assignment, a).loss)
    });
    if verdict.drop <= max_drop {
        text.push_str("; the drop itself is small enough, but so few samples do not prove it: give more, or a lower --confidence");
    }
    if lossy.is_empty() {
        return text;
    }
    let named = lossy.iter().take(3).map(|&l| {
        format!(
            "`{}` as {}",
            problem.layers[l].0,
            title(problem.chosen(assignment, l))
        )
    });
    let named: Vec<String> = named.collect();
    format!("{text}; most is lost by {}", named.join(", "))
}

/// The front as rows for reports, with what was run.
pub fn trades(
    problem: &Problem,
    chosen: Option<&Assignment>,
    runs: &[(Assignment, u64, Verdict)],
) -> Vec<Trade> {
    let (front, _) = problem.front();
    let mut all: Vec<&Assignment> = front.iter().collect();
    for a in runs.iter().map(|(a, _, _)| a).chain(chosen) {
        if !all.iter().any(|b| b.picks == a.picks) {
            all.push(a);
        }
    }
    all.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(b.loss.total_cmp(&a.loss)));
    let of = |a: &Assignment| {
        let run = runs.iter().find(|(r, _, _)| r.picks == a.picks);
        Trade {
            bytes: a.bytes,
            loss: a.loss,
            verdict: run.map(|(_, _, v)| v.clone()),
            file_bytes: run.map(|(_, b, _)| *b),
            chosen: chosen.is_some_and(|c| c.picks == a.picks),
        }
    };
    all.into_iter().map(of).collect()
}
