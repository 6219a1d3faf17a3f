//! Mixed precision in reports: sensitivities, the front, and the documents of `analyze` and `assign`.

use std::collections::BTreeMap;

use crate::mixed::auto::{Chosen, Mixed};
use crate::mixed::judge::Verdict;
use crate::mixed::sensitivity::{Layer, Sensitivity};

use super::document::{Document, Fact, Table};
use super::figures::{Figures, Front, LayerLoss, Line, Point, Run, Sensitivities};
use super::words::{FLOAT, named};
use super::words::{bytes, count, loss, percent, signed_percent};

/// What a choice with its measurements draws.
pub(crate) fn figures(mixed: &Mixed, max_drop: Option<f64>) -> Figures {
    Figures {
        front: front(&mixed.chosen, &mixed.sensitivity, max_drop),
        sensitivity: sensitivities(&mixed.sensitivity, &mixed.chosen.formats),
        ..Figures::default()
    }
}

/// The document of an analysis.
pub fn of_analysis(found: &Sensitivity) -> Document {
    let weights: u64 = found.layers.iter().map(|l| l.weights).sum();
    let tried: usize = found.layers.iter().map(|l| l.formats.len()).sum();
    let facts = vec![
        Fact::new(
            "Layers",
            found.layers.len().to_string(),
            format!("{} could not be measured", found.unmeasured.len()),
        ),
        Fact::new(
            "Weights",
            count(weights),
            format!("{} in float", bytes(found.float_bytes)),
        ),
        Fact::new(
            "Formats",
            tried.to_string(),
            format!("tried, on up to {} samples each", found.samples),
        ),
    ];
    Document {
        title: "Sensitivity analysis".to_owned(),
        subject: super::summary::file_name(&found.model),
        tool: found.tool.clone(),
        facts,
        settings: settings(found),
        figures: Figures {
            sensitivity: sensitivities(found, &[]),
            network: accumulated(found),
            ..Figures::default()
        },
        neighbours: neighbours(found),
        ..Document::default()
    }
}

/// The document of an assignment.
pub fn of_assignment(found: &Sensitivity, chosen: &Chosen, max_drop: Option<f64>) -> Document {
    let mut facts = Vec::new();
    if let Some(b) = &chosen.built {
        let share = 100.0 * b.bytes as f64 / found.float_bytes.max(1) as f64;
        let float = bytes(found.float_bytes);
        facts.push(Fact::new(
            "Size",
            bytes(b.bytes),
            format!("{share:.1} % of {float}"),
        ));
        let sum = b.assignment.loss;
        facts.push(Fact::new("Sum of losses", loss(sum), found.loss.title()));
    }
    if let Some(v) = &chosen.verdict {
        let before = format!("{:.4} before, {} samples", v.reference, v.samples);
        facts.push(Fact::new(
            v.metric.clone(),
            format!("{:.4}", v.candidate),
            before,
        ));
        facts.push(Fact::new("Lost", percent(v.drop), interval(v)));
    }
    let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, format) in &chosen.formats {
        *layers.entry(named(format)).or_default() += 1;
    }
    for (format, n) in layers {
        facts.push(Fact::new(format, n.to_string(), "layers"));
    }
    let verdict = match (&chosen.failure, max_drop, &chosen.verdict) {
        (Some(why), _, _) => Some((false, why.clone())),
        (None, Some(max), Some(v)) => Some((true, held(v, max))),
        _ => None,
    };
    let float = chosen.formats.iter().filter(|(_, f)| named(f) == FLOAT);
    let float = float.map(|(l, _)| {
        vec![
            l.clone(),
            "chosen: no format in few bits is worth its loss".to_owned(),
        ]
    });
    let unmeasured = found
        .unmeasured
        .iter()
        .map(|(l, r)| vec![l.clone(), r.clone()]);
    Document {
        title: "Assignment of formats".to_owned(),
        subject: super::summary::file_name(&found.model),
        tool: super::TOOL.to_owned(),
        verdict,
        facts,
        settings: settings(found),
        figures: Figures {
            front: front(chosen, found, max_drop),
            sensitivity: sensitivities(found, &chosen.formats),
            ..Figures::default()
        },
        float: Table {
            head: vec!["node", "reason"],
            rows: float.chain(unmeasured).collect(),
        },
        ..Document::default()
    }
}

/// The ends of the interval in words.
fn interval(v: &Verdict) -> String {
    format!(
        "{} to {}, each end with {:.0} %",
        signed_percent(v.lower),
        signed_percent(v.upper),
        v.confidence * 100.0
    )
}

/// Why a budget holds.
pub(super) fn held(v: &Verdict, max_drop: f64) -> String {
    format!(
        "a drop of {}, at most {} with a confidence of {:.0} %, where {} is allowed",
        percent(v.drop),
        percent(v.upper),
        v.confidence * 100.0,
        percent(max_drop)
    )
}

fn settings(found: &Sensitivity) -> Vec<(String, String)> {
    let mut all = vec![
        ("model".to_owned(), found.model.clone()),
        ("loss".to_owned(), found.loss.title().to_owned()),
        ("samples".to_owned(), found.samples.to_string()),
        ("candidates".to_owned(), found.candidates.join(", ")),
    ];
    if let Some(a) = &found.activations {
        all.push(("activations between layers".to_owned(), a.clone()));
    }
    all
}

/// The layers by their loss in the format that is measured for most of them, of several the one that loses most.
fn sensitivities(found: &Sensitivity, chosen: &[(String, String)]) -> Option<Sensitivities> {
    let losses = |l: &Layer| -> Vec<(String, f64)> {
        let measured = l
            .formats
            .iter()
            .filter_map(|m| m.loss.map(|x| (m.name(), x)));
        measured.collect()
    };
    let mut formats: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for (name, x) in found.layers.iter().flat_map(losses) {
        let of = formats.entry(name).or_default();
        *of = (of.0 + 1, of.1 + x);
    }
    let common = formats
        .iter()
        .max_by(|a, b| a.1.0.cmp(&b.1.0).then(a.1.1.total_cmp(&b.1.1)))?;
    let format = common.0.clone();
    let chosen: BTreeMap<&str, &str> = chosen
        .iter()
        .map(|(l, f)| (l.as_str(), f.as_str()))
        .collect();
    let mut layers: Vec<LayerLoss> = Vec::new();
    for l in &found.layers {
        let formats = losses(l);
        let own = formats.iter().find(|(f, _)| *f == format).map(|f| f.1);
        let most = formats.iter().map(|f| f.1).fold(0.0, f64::max);
        let chosen = chosen.get(l.name.as_str()).map(|f| (*f).to_owned());
        let in_it = |c: &String| formats.iter().find(|(f, _)| f == c).map(|f| f.1);
        layers.push(LayerLoss {
            layer: l.name.clone(),
            op: l.op.clone(),
            loss: own.unwrap_or(most),
            chosen_loss: chosen.as_ref().and_then(in_it),
            chosen,
            formats,
        });
    }
    layers.sort_by(|a, b| {
        b.loss
            .total_cmp(&a.loss)
            .then_with(|| a.layer.cmp(&b.layer))
    });
    let unmeasured = found.unmeasured.iter();
    Some(Sensitivities {
        loss: found.loss.title().to_owned(),
        samples: found.samples,
        format,
        layers,
        unmeasured: unmeasured.map(|(l, r)| (l.clone(), r.clone())).collect(),
    })
}

fn front(chosen: &Chosen, found: &Sensitivity, max_drop: Option<f64>) -> Option<Front> {
    if chosen.front.is_empty() {
        return None;
    }
    let points = chosen.front.iter().map(|t| Point {
        bytes: t.bytes,
        loss: t.loss,
        chosen: t.chosen,
        run: t
            .verdict
            .as_ref()
            .zip(t.file_bytes)
            .map(|(v, file_bytes)| Run {
                file_bytes,
                metric: v.candidate,
                drop: v.drop,
                interval: (v.lower, v.upper),
            }),
    });
    let run = chosen.front.iter().find_map(|t| t.verdict.as_ref());
    Some(Front {
        loss: found.loss.title().to_owned(),
        points: points.collect(),
        metric: run.map(|v| v.metric.clone()),
        max_drop,
    })
}

/// All layers quantized: a line for each set of formats.
fn accumulated(found: &Sensitivity) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for a in &found.accumulated {
        let value = (a.layer.clone(), a.sqnr_db);
        match lines.iter_mut().find(|l| l.name == a.format) {
            Some(line) => line.values.push(value),
            None => lines.push(Line {
                name: a.format.clone(),
                samples: None,
                values: vec![value],
            }),
        }
    }
    lines
}

/// Neighbours quantized together, those first whose errors make each other worse.
fn neighbours(found: &Sensitivity) -> Table {
    let mut pairs: Vec<_> = found.interactions.iter().collect();
    pairs.sort_by(|a, b| {
        b.excess
            .total_cmp(&a.excess)
            .then_with(|| a.first.cmp(&b.first))
    });
    let row = |i: &crate::mixed::sensitivity::Interaction| {
        vec![
            i.first.clone(),
            i.second.clone(),
            i.format.clone(),
            loss(i.loss),
            loss(i.excess),
        ]
    };
    Table {
        head: vec![
            "layer",
            "and its reader",
            "format",
            "loss together",
            "more than the sum",
        ],
        rows: pairs.into_iter().map(row).collect(),
    }
}
