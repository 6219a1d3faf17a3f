//! Documents of what commands did.

use crate::check::{CheckReport, LayerReport, Task};

use super::document::{Document, Fact, Table};
use super::figures::{Figures, Line};
use super::words::{bytes, count, decibels, number, percent, signed_percent};
use super::{Budget, Report};

/// The document of a quantization.
pub fn of_quantization(report: &Report) -> Document {
    let mut facts = vec![size(report.size.before_bytes, report.size.after_bytes)];
    if let Some(bits) = report.size.effective_bits {
        facts.push(Fact::new(
            "Bits a weight",
            format!("{bits:.2}"),
            format!(
                "{} weights, with scales and zero points",
                count(report.size.quantized_values)
            ),
        ));
    }
    if let Some(check) = &report.check {
        facts.extend(metric(&check.task, check.samples));
    }
    facts.push(operators(report));
    let check = report.check.as_ref();
    Document {
        title: "Quantization report".to_owned(),
        subject: file_name(&report.model),
        tool: report.tool.clone(),
        verdict: match (&report.chosen, &report.budget) {
            (Some(v), Some(b)) if b.held => Some((true, super::mixed::held(v, b.max_drop))),
            (_, budget) => budget.as_ref().map(verdict),
        },
        facts,
        settings: settings(report),
        outputs: check.map_or_else(Table::default, outputs),
        figures: report.figures.clone(),
        float: float(report),
        notes: notes(report),
        neighbours: Table::default(),
    }
}

/// The document of a comparison of two models.
pub fn of_check(
    models: [&str; 2],
    check: &CheckReport,
    budget: Option<&Budget>,
    notes: &[String],
) -> Document {
    Document {
        title: "Comparison of two models".to_owned(),
        subject: format!("{} against {}", file_name(models[1]), file_name(models[0])),
        tool: super::TOOL.to_owned(),
        verdict: budget.map(verdict),
        facts: metric(&check.task, check.samples),
        settings: vec![
            ("reference".to_owned(), models[0].to_owned()),
            ("candidate".to_owned(), models[1].to_owned()),
        ],
        outputs: outputs(check),
        figures: Figures {
            network: network(check),
            ..Figures::default()
        },
        notes: notes.to_vec(),
        ..Document::default()
    }
}

/// The values that were compared, in the order of the network.
pub(crate) fn network(check: &CheckReport) -> Vec<Line> {
    if check.layers.is_empty() {
        return Vec::new();
    }
    let mut layers: Vec<&LayerReport> = check.layers.iter().collect();
    layers.sort_by(|a, b| {
        a.position
            .cmp(&b.position)
            .then_with(|| a.value.cmp(&b.value))
    });
    vec![Line {
        name: "the whole model quantized".to_owned(),
        samples: Some(check.layer_samples),
        values: layers
            .into_iter()
            .map(|l| (l.value.clone(), l.sqnr_db))
            .collect(),
    }]
}

/// The last part of a path.
pub(crate) fn file_name(path: &str) -> String {
    let name = std::path::Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |n| n.to_string_lossy().into_owned())
}

fn size(before: u64, after: u64) -> Fact {
    let share = 100.0 * after as f64 / before.max(1) as f64;
    Fact::new(
        "Size",
        bytes(after),
        format!("{share:.1} % of {}", bytes(before)),
    )
}

fn metric(task: &Task, samples: usize) -> Vec<Fact> {
    let on = match samples {
        0 => String::new(),
        n => format!(", {n} samples"),
    };
    let mut facts = vec![
        Fact::new(
            task.metric.clone(),
            format!("{:.4}", task.candidate),
            format!("{:.4} before{on}", task.reference),
        ),
        Fact::new("Lost", lost(task), interval(task)),
    ];
    if let Some((before, after)) = task.top5 {
        facts.push(Fact::new(
            "top-5",
            format!("{after:.4}"),
            format!("{before:.4} before"),
        ));
    }
    facts
}

fn lost(task: &Task) -> String {
    match task.metric.as_str() {
        "perplexity" => format!("{:+.2} %", task.drop * 100.0),
        "cosine" => number(task.drop),
        _ => format!("{:.2} points", task.drop * 100.0),
    }
}

/// The ends of the interval in words.
fn interval(task: &Task) -> String {
    task.interval.map_or(String::new(), |i| {
        format!(
            "{} to {}, each end with {:.0} %",
            signed_percent(i.lower),
            signed_percent(i.upper),
            i.confidence * 100.0
        )
    })
}

fn operators(report: &Report) -> Fact {
    let of = |what: &str| report.nodes.iter().filter(|n| n.precision == what).count();
    Fact::new(
        "Operators",
        format!("{} integer", of("integer")),
        format!(
            "{} weight-only, {} follow, {} float",
            of("weight-only"),
            of("follows"),
            of("float")
        ),
    )
}

fn verdict(budget: &Budget) -> (bool, String) {
    let text = format!(
        "a drop of {} where {} is allowed",
        percent(budget.drop),
        percent(budget.max_drop)
    );
    (budget.held, text)
}

fn settings(report: &Report) -> Vec<(String, String)> {
    let s = &report.settings;
    let mut all = vec![
        ("weights", format!("{}, {}", s.weights, s.weight_scheme)),
        (
            "activations",
            match s.activations.as_str() {
                "none" => "none".to_owned(),
                a => format!("{a}, {}", s.activation_scheme),
            },
        ),
        ("calibrator", s.calibrator.clone()),
        ("target", s.target.clone()),
        ("form", s.format.to_owned()),
    ];
    if let Some(isa) = &s.isa {
        all.push(("instructions", isa.clone()));
    }
    if s.reduce_range {
        all.push(("range", "reduced by a bit".to_owned()));
    }
    if s.dynamic {
        all.push(("ranges", "found at run time".to_owned()));
    }
    if let Some(data) = &report.calibration_data {
        let samples = report.calibration_samples;
        all.push(("calibration data", format!("{data}, {samples} samples")));
    }
    all.push(("model", report.model.clone()));
    match (&report.output, &report.not_written) {
        (Some(path), _) => all.push(("written", path.clone())),
        (None, Some(why)) => all.push(("not written", why.clone())),
        (None, None) => {}
    }
    let all = all.into_iter();
    all.map(|(k, v)| (k.to_owned(), v)).collect()
}

fn outputs(check: &CheckReport) -> Table {
    let share = |x: Option<f64>| x.map_or("-".to_owned(), |v| format!("{v:.4}"));
    let row = |o: &crate::check::OutputReport| {
        vec![
            o.name.clone(),
            share(o.agreement),
            format!("{:.6}", o.cosine),
            decibels(o.sqnr_db),
            o.kl.map_or("-".to_owned(), |v| format!("{v:.2e}")),
            number(o.max_abs_error),
            o.non_finite_mismatches.to_string(),
        ]
    };
    Table {
        head: vec![
            "output",
            "agreement",
            "cosine",
            "SQNR dB",
            "KL",
            "largest difference",
            "not finite in one",
        ],
        rows: check.outputs.iter().map(row).collect(),
    }
}

/// What does not compute in integers, float first.
fn float(report: &Report) -> Table {
    let mut rows = Vec::new();
    for form in ["float", "weight-only", "follows"] {
        let nodes = report.nodes.iter().filter(|n| n.precision == form);
        rows.extend(nodes.map(|n| {
            vec![
                n.node.clone(),
                n.op.clone(),
                form.to_owned(),
                n.reason.clone(),
            ]
        }));
    }
    Table {
        head: vec!["node", "operator", "form", "reason"],
        rows,
    }
}

fn notes(report: &Report) -> Vec<String> {
    let mut notes = report.notes.clone();
    let lines = super::quantize_skips(report).into_iter();
    notes.extend(lines.map(|line| format!("left: {line}")));
    notes
}
