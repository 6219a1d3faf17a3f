//! Chooses a format for every layer: the least loss under a budget, exactly.

use std::collections::{BTreeMap, BTreeSet};

use globset::Glob;
use onnx_quant_ir::Model;
use onnx_quant_numerics::affine::{QOptions, QParams, code_range};
use onnx_quant_numerics::format::Format;
use onnx_quant_numerics::knapsack::{self, Front};
use onnx_quant_passes::layers::{Choice, LayerRule, Pinned};
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::settings::QuantSettings;

use super::candidates::{Candidate, Pin};
use super::errors;
use super::sensitivity::{Layer, Sensitivity, name};
use super::ties::Ties;
use crate::error::Error;
use crate::extend::Stage;
use crate::pipeline::{Run, Watch};

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Bytes of the model's file.
    Size(u64),
    /// Bits stored for each weight, scales and zero points included.
    AvgBits(f64),
    /// Multiplications times bits of weight times bits of activation, of one sample.
    Bops(f64),
    /// Microseconds of all layers for one sample.
    Latency(f64),
}

/// What a unit of cost is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Bytes stored.
    Bytes,
    /// Bit operations.
    Bops,
    /// Nanoseconds.
    Nanos,
    /// Bytes and bit operations, each as a share of the float model's: what is to become small where only the loss is
    /// limited.
    Both,
}

impl Budget {
    /// What is counted for this budget.
    pub fn cost(self) -> Cost {
        match self {
            Self::Size(_) | Self::AvgBits(_) => Cost::Bytes,
            Self::Bops(_) => Cost::Bops,
            Self::Latency(_) => Cost::Nanos,
        }
    }
}

/// A format that a layer may get.
#[derive(Debug, Clone, PartialEq)]
pub struct Choosable {
    /// Format of the weights; `None` is float.
    pub weights: Option<Format>,
    /// Format of the activation; `None` is float.
    pub activations: Option<Format>,
    /// The loss that was measured.
    pub loss: f64,
    /// Bytes stored.
    pub bytes: u64,
    /// Bit operations of a sample.
    pub bops: u64,
    /// Microseconds of a sample.
    pub micros: Option<f64>,
    /// Where it moves the model's outputs, of length one; empty where that is not known.
    pub direction: Vec<f32>,
}

/// The layers with the formats that each may get, and which layers must agree.
#[derive(Debug, Clone)]
pub struct Problem {
    /// By layer: name, number of weights, formats.
    pub layers: Vec<(String, u64, Vec<Choosable>)>,
    pub(super) ties: Ties,
    pub(super) cost: Cost,
    total: (u64, u64),
    ranges: BTreeMap<String, BTreeMap<Format, QParams>>,
    /// Operators between layers, with their streams.
    between: BTreeMap<String, String>,
    /// By format of the activations: operators between layers that stay in float, with the reason.
    floats: BTreeMap<Format, BTreeMap<String, String>>,
}

/// A format for every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// By layer: the place in its formats.
    pub picks: Vec<usize>,
    /// The sum of the losses.
    pub loss: f64,
    /// Bytes stored for the layers.
    pub bytes: u64,
    /// Bit operations.
    pub bops: u64,
}

impl Problem {
    /// Puts the problem up.
    ///
    /// # Errors
    /// A pin that names nothing, or a format that was not measured.
    pub fn new(
        found: &Sensitivity,
        candidates: &[Candidate],
        pins: &[Pin],
        cost: Cost,
    ) -> Result<Self, Error> {
        let asked = candidates_of(found, candidates)?;
        let candidates = asked.as_slice();
        let mut layers = Vec::with_capacity(found.layers.len());
        let mut pinned = vec![None; found.layers.len()];
        for pin in pins {
            let glob = Glob::new(&pin.pattern)
                .map_err(|e| {
                    Error::usage(format!(
                        "--pin `{}` is not a valid pattern: {}",
                        pin.pattern,
                        e.kind()
                    ))
                })?
                .compile_matcher();
            let named =
                |l: &Layer| l.op == pin.pattern || l.name == pin.pattern || glob.is_match(&l.name);
            let mut any = false;
            for (l, slot) in found
                .layers
                .iter()
                .zip(&mut pinned)
                .filter(|(l, _)| named(l))
            {
                *slot = Some((pin, l));
                any = true;
            }
            if !any {
                return Err(Error::usage(format!(
                    "--pin `{}` names no layer that was measured",
                    pin.pattern
                )));
            }
        }
        for (layer, pin) in found.layers.iter().zip(&pinned) {
            let mut choices = choosable(layer)?;
            match pin {
                Some((pin, _)) => {
                    choices.retain(|c| admits(&pin.candidate, c));
                    if choices.is_empty() {
                        return Err(Error::usage(format!(
                            "--pin `{}`: the layer `{}` was not measured as {}, or cannot be stored so",
                            pin.pattern, layer.name, pin.candidate
                        )));
                    }
                }
                None => {
                    let float = |c: &Choosable| c.weights.is_none() && c.activations.is_none();
                    choices.retain(|c| float(c) || candidates.iter().any(|k| admits(k, c)));
                    if cost != Cost::Both {
                        both_sides(&mut choices, candidates, found.loss.hopeless());
                    }
                }
            }
            layers.push((layer.name.clone(), layer.weights, choices));
        }
        let mut floats = BTreeMap::new();
        for (format, nodes) in &found.floats {
            floats.insert(parse(format)?, nodes.clone());
        }
        let total = found.layers.iter().fold((0, 0), |(b, o), l| {
            (b + l.float_bytes, o + l.macs.saturating_mul(1024))
        });
        Ok(Self {
            layers,
            ties: Ties::new(found),
            cost,
            total,
            ranges: ranges(found)?,
            between: found.between.clone(),
            floats,
        })
    }

    #[cfg(test)]
    pub(super) fn of_layers(layers: Vec<(String, u64, Vec<Choosable>)>, cost: Cost) -> Self {
        Self {
            ties: Ties::none(layers.len()),
            layers,
            cost,
            total: (0, 0),
            ranges: BTreeMap::new(),
            between: BTreeMap::new(),
            floats: BTreeMap::new(),
        }
    }

    /// Leaves a format out for a layer, where another one stays.
    pub fn ban(&mut self, layer: usize, choice: &Choosable) -> bool {
        let choices = &mut self.layers[layer].2;
        let before = choices.len();
        if before > 1 {
            choices.retain(|c| c != choice);
        }
        choices.len() < before
    }

    pub(super) fn price(&self, c: &Choosable) -> u64 {
        let share =
            |x: u64, of: u64, unit: f64| (x as f64 / of.max(1) as f64 * unit).round() as u64;
        match self.cost {
            Cost::Bytes => c.bytes,
            Cost::Bops => c.bops,
            Cost::Nanos => c
                .micros
                .map_or(u64::MAX >> 24, |m| (m * 1000.0).round() as u64),
            Cost::Both => share(c.bytes, self.total.0, 1e9) + share(c.bops, self.total.1, 0.25e9),
        }
    }

    /// An assignment with its sums. A tensor that several layers share is stored once.
    pub(super) fn assignment(&self, picks: Vec<usize>) -> Assignment {
        let chosen = || self.layers.iter().zip(&picks).map(|((_, _, c), &p)| &c[p]);
        let bytes = |g: &Vec<usize>| {
            let of = |&l: &usize| self.layers[l].2[picks[l]].bytes;
            g.iter().map(of).max().unwrap_or(0)
        };
        Assignment {
            loss: chosen().map(|c| c.loss).sum(),
            bops: chosen().map(|c| c.bops).sum(),
            bytes: self.ties.shared.iter().map(bytes).sum(),
            picks,
        }
    }

    /// The assignment of least loss whose cost is within the limit.
    pub fn solve(&self, limit: u64) -> Option<Assignment> {
        let (classes, ways) = self.classes();
        let solution = knapsack::least_loss(&classes, limit)?;
        Some(self.assignment(self.picks(&ways, &solution.picks)))
    }

    /// All best trades of cost against loss, by rising cost, and whether there are no others.
    pub fn front(&self) -> (Vec<Assignment>, bool) {
        let (classes, ways) = self.classes();
        let front: Front = knapsack::front(&classes);
        let points = 0..front.points().len();
        let all = points.map(|i| self.assignment(self.picks(&ways, &front.picks(i))));
        (all.collect(), front.is_complete())
    }

    /// The assignment with another format for a layer and for those that share its tensors; `None` where one of those
    /// does not have it, or a layer of its stream reads another format.
    pub fn with(&self, from: &Assignment, layer: usize, pick: usize) -> Option<Assignment> {
        let wanted = &self.layers[layer].2[pick];
        let group = self.ties.shared.iter().find(|g| g.contains(&layer))?;
        let mut picks = from.picks.clone();
        for &l in group {
            let same =
                |c: &Choosable| c.weights == wanted.weights && c.activations == wanted.activations;
            picks[l] = self.layers[l].2.iter().position(same)?;
        }
        self.agrees(&picks).then(|| self.assignment(picks))
    }

    /// The chosen format of a layer.
    pub fn chosen<'a>(&'a self, assignment: &Assignment, layer: usize) -> &'a Choosable {
        &self.layers[layer].2[assignment.picks[layer]]
    }

    /// Weights of all layers; those that layers share count once, as they are stored once.
    pub fn weights(&self) -> u64 {
        let of = |group: &Vec<usize>| group.iter().map(|&l| self.layers[l].1).max().unwrap_or(0);
        self.ties.shared.iter().map(of).sum()
    }

    /// What an assignment costs.
    pub fn cost_of(&self, assignment: &Assignment) -> u64 {
        let prices = (0..self.layers.len()).map(|l| self.price(self.chosen(assignment, l)));
        prices.sum()
    }

    /// Whether any layer is not in float.
    pub fn quantizes(&self, assignment: &Assignment) -> bool {
        let float = |c: &Choosable| c.weights.is_none() && c.activations.is_none();
        (0..self.layers.len()).any(|l| !float(self.chosen(assignment, l)))
    }

    /// The settings that carry an assignment out: a rule for each layer, and the scales that were measured. Rules of the
    /// user stand behind them and win.
    ///
    /// # Errors
    /// What the model says to the rules.
    pub fn settings(
        &self,
        assignment: &Assignment,
        base: &QuantSettings,
        model: &Model,
    ) -> Result<QuantSettings, Error> {
        let mut settings = base.clone();
        let chosen = || (0..self.layers.len()).map(|i| self.chosen(assignment, i));
        let rule = |name: &str, weights, activations, reason: &str| LayerRule {
            pattern: name.to_owned(),
            weights,
            activations: Some(activations),
            reason: Some(reason.to_owned()),
            ..LayerRule::default()
        };
        let mut rules = Vec::new();
        for ((name, _, _), c) in self.layers.iter().zip(chosen()) {
            let choice = |f: Option<Format>| f.map_or(Choice::Float, Choice::Format);
            rules.push(rule(
                name,
                Some(choice(c.weights)),
                choice(c.activations),
                match c.weights {
                    None => "mixed precision: float is the best choice under the budget",
                    Some(_) => {
                        "mixed precision: its activation in float is the best choice under the budget"
                    }
                },
            ));
        }
        // An operator between layers has the format of its stream, and where no layer reads that, one of the others.
        settings.activations = chosen().filter_map(|c| c.activations).next();
        let streams = self.ties.read(&self.layers, &assignment.picks);
        for (name, stream) in &self.between {
            let format = streams
                .get(stream.as_str())
                .copied()
                .or(settings.activations);
            let Some(format) = format else { continue };
            let stays = self.floats.get(&format).and_then(|f| f.get(name));
            rules.push(match stays {
                Some(reason) => rule(name, None, Choice::Float, reason),
                None => rule(name, None, Choice::Format(format), ""),
            });
        }
        let names: BTreeSet<&str> = self.layers.iter().map(|(n, _, _)| n.as_str()).collect();
        let floats = settings.activations.and_then(|f| self.floats.get(&f));
        for (name, reason) in floats.into_iter().flatten() {
            if !names.contains(name.as_str()) && !self.between.contains_key(name) {
                rules.push(rule(name, None, Choice::Float, reason));
            }
        }
        rules.append(&mut settings.layers);
        settings.layers = rules;
        self.pin(&mut settings, model)?;
        Ok(settings)
    }

    /// Fixes the scales of the activations that the plan will quantize, each in the format that it gets.
    fn pin(&self, settings: &mut QuantSettings, model: &Model) -> Result<(), Error> {
        let mut run = Run::new(Watch::default())?;
        run.cx.insert(settings.clone());
        run.stage(Stage::Plan, &mut model.clone())?;
        let plan = run.cx.get::<PrecisionPlan>().cloned().unwrap_or_default();
        for (key, a) in plan.activations {
            let known = self.ranges.get(&key).and_then(|by| by.get(&a.format));
            if let (Some(&p), false) = (known, settings.ranges.contains_key(&key)) {
                settings.ranges.insert(key, Pinned::Params(p));
            }
        }
        Ok(())
    }
}

/// The candidates: those that are given, or those of the analysis.
fn candidates_of(found: &Sensitivity, given: &[Candidate]) -> Result<Vec<Candidate>, Error> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let all = found.candidates.iter().map(|text| text.parse());
    all.collect::<Result<_, String>>()
        .map_err(|e| Error::usage(format!("the sensitivities: {e}")))
}

/// Where a candidate leaves the activation open and both sides bear few bits, they are.
fn both_sides(choices: &mut Vec<Choosable>, candidates: &[Candidate], hopeless: f64) {
    let open: BTreeSet<Option<Format>> = candidates
        .iter()
        .filter(|c| c.activations.is_none())
        .map(|c| c.weights)
        .collect();
    let asked: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| c.activations.is_some())
        .collect();
    let paired: BTreeSet<Option<Format>> = choices
        .iter()
        .filter(|c| c.activations.is_some() && c.loss < hopeless)
        .map(|c| c.weights)
        .collect();
    choices.retain(|c| {
        c.activations.is_some()
            || c.weights.is_none()
            || !open.contains(&c.weights)
            || !paired.contains(&c.weights)
            || asked.iter().any(|k| admits(k, c))
    });
}

/// The formats of a layer that were measured and are possible; float is one.
fn choosable(layer: &Layer) -> Result<Vec<Choosable>, Error> {
    let mut all = vec![Choosable {
        weights: None,
        activations: None,
        loss: 0.0,
        bytes: layer.float_bytes,
        bops: layer.macs.saturating_mul(1024),
        micros: layer.float_micros,
        direction: Vec::new(),
    }];
    for m in &layer.formats {
        let (Some(w), Some(loss)) = (&m.weights, m.loss) else {
            continue;
        };
        all.push(Choosable {
            weights: Some(parse(w)?),
            activations: m.activations.as_deref().map(parse).transpose()?,
            loss,
            bytes: m.bytes,
            bops: layer.macs.saturating_mul(m.bits),
            micros: m.micros,
            direction: m
                .direction
                .as_deref()
                .and_then(errors::read)
                .unwrap_or_default(),
        });
    }
    Ok(all)
}

fn admits(candidate: &Candidate, c: &Choosable) -> bool {
    candidate.weights == c.weights
        && match candidate.activations {
            None => true,
            Some(a) => a.format() == c.activations,
        }
}

fn parse(format: &str) -> Result<Format, Error> {
    format
        .parse()
        .map_err(|e| Error::usage(format!("the sensitivities: {e}")))
}

/// The scales of the activations.
fn ranges(found: &Sensitivity) -> Result<BTreeMap<String, BTreeMap<Format, QParams>>, Error> {
    let settings = found.settings()?;
    let options = QOptions {
        narrow: false,
        reduce_range: settings.reduce_range,
    };
    let mut all = BTreeMap::new();
    for (key, by_format) in &found.ranges {
        let mut own = BTreeMap::new();
        for (text, &(scale, zero_point)) in by_format {
            let format = parse(text)?;
            let (qmin, qmax) = code_range(format.base, options);
            let params = QParams {
                scale: scale as f32,
                zero_point,
                qmin,
                qmax,
            };
            own.insert(format, params);
        }
        all.insert(key.clone(), own);
    }
    Ok(all)
}

/// How a choice is written.
pub fn title(c: &Choosable) -> String {
    let text = |f: Option<Format>| f.map(|f| f.to_string());
    name(text(c.weights).as_deref(), text(c.activations).as_deref())
}
