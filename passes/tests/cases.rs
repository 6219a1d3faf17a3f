//! Every registered pass on every one of its case files: `cases/PASS/CASE.onnxtxt` → `snapshots/PASS/CASE.snap`.
//!
//! A case file is a model in text form. Comment lines at its top may say:
//!
//! ```text
//! // options: key=value, other=value     options of the pass
//! // before: pass1, pass2                passes that run first, without being checked
//! // expect: changed                     or `unchanged`, or `error`
//! // signature: changes                  the pass may change inputs and outputs
//! // verify: no                          the input breaks rules of the verifier on purpose
//! // repeat: changes                     a second run may change the model again
//! // settings: weights=none, exclude=fc  what the user asks (defaults otherwise); see `settings`
//! // layer: PATTERN=int8/none           rules for layers: weights / activations; `-` for no word, `!` at the end insists
//! // pinned: NAME=-1..2                  ranges that are given; `settings` apply to the others
//! // smooth: VALUE=2/0.5                factors of an activation's channels, for the node of `smooth_readers: VALUE=NODE`
//! // correct: NODE=0.5/-1                what is to be added to the bias of a node
//! // range: NAME=-1..2                   the values that calibration saw; every other activation saw -1..1
//! ```
//!
//! What is checked: the input is valid → the pass runs → the output is valid → it looks as in the snapshot → a second
//! run changes nothing → `Changed::No` means the same text → names and order of inputs and outputs are kept → for a pass
//! that claims to be exact, the outputs are the same bits where the reference evaluator knows all operators.
#![expect(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::fmt::Write as _;

use harness::Case;
use onnx_quant_ir::Model;
use onnx_quant_ir::pass::PassContext;
use onnx_quant_numerics::stats::TensorStats;
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::layers::{LayerRule, Pinned};
use onnx_quant_passes::overrides::BiasCorrections;
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::settings::QuantSettings;
use onnx_quant_passes::smooth_activations::{ChannelFactors, Factors};
use onnx_quant_passes::target::{Given, choose};

/// Gives every pass the data that it may need: settings and statistics.
fn prepare(case: &Case, model: &Model, cx: &mut PassContext) {
    cx.insert(settings(case));
    cx.insert(corrections(case));
    cx.insert(factors(case));
    if !case.says("range", "none") {
        cx.insert(calibration(case, model));
    }
}

fn settings(case: &Case) -> QuantSettings {
    let mut s = QuantSettings::default();
    let format = |text: &str| (text != "none").then(|| text.parse().unwrap());
    for (key, value) in case.pairs("settings") {
        match key {
            "weights" => s.weights = format(value),
            "activation_scheme" => s.activation_scheme = value.parse().unwrap(),
            "weight_scheme" => s.weight_scheme = value.parse().unwrap(),
            "activations" => s.activations = format(value),
            "min_activation_sqnr" => s.min_activation_sqnr = value.parse().unwrap(),
            "reduce_range" => s.reduce_range = value.parse().unwrap(),
            "exclude" => s.selection.exclude.push(value.to_owned()),
            "include" => s.selection.include.push(value.to_owned()),
            "target" => s.target = value.parse().unwrap(),
            "isa" => s.isa = Some(value.parse().unwrap()),
            "qoperator" => s.qoperator = value.parse().unwrap(),
            "dynamic" => s.dynamic = value.parse().unwrap(),
            "matmul_nbits" => s.storage.matmul_nbits = value.parse().unwrap(),
            "emulate" => s.storage.emulate = value.parse().unwrap(),
            "floats" => s.floats.base = Some(value.parse().unwrap()),
            "cast_io" => s.floats.cast_io = value.parse().unwrap(),
            "half_biases" => s.floats.half_biases = value.parse().unwrap(),
            other => panic!("there is no setting `{other}`"),
        }
    }
    for (pattern, formats) in case.pairs("layer") {
        let (formats, force) = match formats.strip_suffix('!') {
            Some(rest) => (rest, true),
            None => (formats, false),
        };
        let (weights, activations) = formats.split_once('/').unwrap();
        let choice = |text: &str| (text != "-").then(|| text.parse().unwrap());
        s.layers.push(LayerRule {
            pattern: pattern.to_owned(),
            weights: choice(weights),
            activations: choice(activations),
            force,
            ..LayerRule::default()
        });
    }
    for (name, range) in case.pairs("pinned") {
        let (low, high) = bounds(range);
        s.ranges.insert(name.to_owned(), Pinned::Range(low, high));
    }
    // What a case says is asked for; the rest is the target's choice.
    let asked = |name: &str| case.pairs("settings").iter().any(|(key, _)| *key == name);
    let given = Given {
        activations: asked("activations"),
        weights: asked("weights"),
        activation_scheme: asked("activation_scheme"),
        weight_scheme: asked("weight_scheme"),
    };
    choose(&mut s, given).unwrap();
    s
}

/// Reads `-1..2`.
fn bounds(range: &str) -> (f32, f32) {
    let (low, high) = range.split_once("..").unwrap();
    (low.parse().unwrap(), high.parse().unwrap())
}

fn factors(case: &Case) -> ChannelFactors {
    let readers = case.pairs("smooth_readers");
    let factors = |(value, text): (&str, &str)| {
        let own = readers.iter().filter(|(v, _)| *v == value);
        let factors = Factors {
            values: text.split('/').map(|x| x.parse().unwrap()).collect(),
            readers: own.map(|(_, node)| (*node).to_owned()).collect(),
        };
        (value.to_owned(), factors)
    };
    ChannelFactors(case.pairs("smooth").into_iter().map(factors).collect())
}

fn corrections(case: &Case) -> BiasCorrections {
    let values = |text: &str| text.split('/').map(|x| x.parse().unwrap()).collect();
    let pairs = case.pairs("correct").into_iter();
    BiasCorrections(pairs.map(|(n, v)| (n.to_owned(), values(v))).collect())
}

/// Values spread evenly over the range of each activation.
fn calibration(case: &Case, model: &Model) -> Calibration {
    let mut c = Calibration {
        samples: 1,
        ..Calibration::default()
    };
    for v in model.all_values() {
        if model.value(v).init.is_some() {
            continue;
        }
        let key = model.value_key(v);
        let ranges = case.pairs("range");
        let own = ranges.iter().find(|(name, _)| *name == key);
        let (low, high) = own.map_or((-1.0, 1.0), |(_, range)| bounds(range));
        let data: Vec<f32> = (0..=1000u16)
            .map(|i| low + (high - low) * f32::from(i) / 1000.0)
            .collect();
        c.values.insert(key, TensorStats::of(&data));
    }
    c
}

/// What a pass leaves in the context beside the graph, for the snapshot.
fn describe(pass: &str, cx: &PassContext) -> String {
    let plan = cx
        .get::<PrecisionPlan>()
        .filter(|_| pass == "assign_precision");
    let Some(plan) = plan else {
        return String::new();
    };
    let mut out = String::new();
    for n in &plan.nodes {
        let _ = writeln!(
            out,
            "{} {}: {} {}",
            n.op_type,
            n.key,
            n.precision.name(),
            n.reason
        );
    }
    for (key, a) in &plan.activations {
        let _ = writeln!(out, "activation {key}: {} {:?}", a.format, a.readers);
    }
    for w in &plan.weights {
        let _ = writeln!(
            out,
            "weight {}: {} axis {:?} {:?}",
            w.key, w.format, w.axis, w.readers
        );
    }
    out
}

#[test]
fn every_case_of_every_pass() {
    harness::run_all(&prepare, &describe);
}
