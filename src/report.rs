//! What a quantization did, as data: for `--json`, for `--report`, and for the tables of the command line.
//!
//! [`Report`] is the data. [`summary`] makes a [`document::Document`] of it, which is written as text ([`text`]) or as a
//! page ([`html`]); what is drawn are [`figures`].

pub mod document;
pub mod figures;
mod graph;
#[cfg(feature = "html")]
pub mod html;
pub mod mixed;
pub mod summary;
mod tensors;
pub mod text;
pub(crate) mod words;

use onnx_quant_ir::pass::PassContext;
use onnx_quant_ir::{DataType, Model};
use onnx_quant_passes::plan::{Precision, PrecisionPlan};
use serde::Serialize;

use crate::check::CheckReport;
use crate::inspect;
use crate::stages::{Planned, Rewritten};
use figures::{Figures, TensorHistogram};

/// Program and version.
pub(crate) const TOOL: &str = concat!("onnx-quant ", env!("CARGO_PKG_VERSION"));

/// The report of one quantization.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Program and version.
    pub tool: String,
    /// The model that was read.
    pub model: String,
    /// The model that was written; absent where none was.
    pub output: Option<String>,
    /// Why no model was written, where none was.
    pub not_written: Option<String>,
    /// The settings that were in force.
    pub settings: SettingsReport,
    /// Sizes before and after.
    pub size: SizeReport,
    /// The calibration data: a path, or `random:N` for a dry run; absent where there was none.
    pub calibration_data: Option<String>,
    /// Samples that were run for calibration.
    pub calibration_samples: usize,
    /// Files of the calibration data that were left out because they cannot be read.
    pub calibration_skipped: usize,
    /// What became of every node.
    pub nodes: Vec<NodeReport>,
    /// Every quantized activation.
    pub activations: Vec<ActivationReport>,
    /// Every quantized weight.
    pub weights: Vec<WeightReport>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Where a pass could have acted and did not.
    pub skips: Vec<SkipReport>,
    /// The comparison with the float model, where evaluation data was given.
    pub check: Option<CheckReport>,
    /// The budget and whether it holds, where one was given.
    pub budget: Option<Budget>,
    /// What the chosen formats lose on the evaluation data, with its interval, where formats were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<crate::mixed::judge::Verdict>,
    /// What is drawn.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The settings that were in force.
#[derive(Debug, Clone, Serialize)]
pub struct SettingsReport {
    /// Format of the weights.
    pub weights: String,
    /// Format of the activations.
    pub activations: String,
    /// Zero points of the weights.
    pub weight_scheme: String,
    /// Zero points of the activations.
    pub activation_scheme: String,
    /// How ranges are chosen.
    pub calibrator: String,
    /// One bit is left out.
    pub reduce_range: bool,
    /// The runtime that the model is made for.
    pub target: String,
    /// The instructions that its kernels will use, where they were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isa: Option<String>,
    /// `qdq` or `qoperator`.
    pub format: &'static str,
    /// Activations are quantized at run time.
    pub dynamic: bool,
}

/// Sizes before and after.
#[derive(Debug, Clone, Serialize)]
pub struct SizeReport {
    /// Bytes of the model that was read, external data included.
    pub before_bytes: u64,
    /// Bytes of the quantized model, external data included.
    pub after_bytes: u64,
    /// Values that the quantized weights held.
    pub quantized_values: u64,
    /// Everything stored for them (codes, scales, zero points), in bits for each value.
    pub effective_bits: Option<f64>,
}

/// What became of a node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeReport {
    /// Graph path and name.
    pub node: String,
    /// Operator type.
    pub op: String,
    /// `integer`, `weight-only`, `follows` or `float`.
    pub precision: &'static str,
    /// Why it is not an integer operator.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A quantized activation.
#[derive(Debug, Clone, Serialize)]
pub struct ActivationReport {
    /// Graph path and name.
    pub value: String,
    /// Format of the codes.
    pub format: String,
    /// Scale.
    pub scale: Option<f32>,
    /// Zero point.
    pub zero_point: Option<i32>,
}

/// A quantized weight.
#[derive(Debug, Clone, Serialize)]
pub struct WeightReport {
    /// Graph path and name of the float initializer.
    pub weight: String,
    /// Format of the codes.
    pub format: String,
    /// Axis of the scales; absent for one scale.
    pub axis: Option<usize>,
}

/// A place where a pass could have acted and did not.
#[derive(Debug, Clone, Serialize)]
pub struct SkipReport {
    /// The pass.
    pub pass: String,
    /// Node or value.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// A budget and its fate.
#[derive(Debug, Clone, Serialize)]
pub struct Budget {
    /// The largest drop that is allowed.
    pub max_drop: f64,
    /// The drop that was measured.
    pub drop: f64,
    /// Whether the budget holds.
    pub held: bool,
}

/// The nodes of a plan as rows.
pub fn node_rows(plan: &PrecisionPlan) -> Vec<NodeReport> {
    plan.nodes
        .iter()
        .map(|n| NodeReport {
            node: n.key.clone(),
            op: n.op_type.clone(),
            precision: n.precision.name(),
            reason: n.reason.clone(),
        })
        .collect()
}

/// The activations of a plan as rows.
pub fn activation_rows(plan: &PrecisionPlan) -> Vec<ActivationReport> {
    plan.activations
        .iter()
        .map(|(key, a)| ActivationReport {
            value: key.clone(),
            format: a.format.to_string(),
            scale: a.params.map(|p| p.scale),
            zero_point: a.params.map(|p| p.zero_point),
        })
        .collect()
}

/// The weights of a plan as rows.
pub fn weight_rows(plan: &PrecisionPlan) -> Vec<WeightReport> {
    plan.weights
        .iter()
        .map(|w| WeightReport {
            weight: w.key.clone(),
            format: w.format.to_string(),
            axis: w.axis,
        })
        .collect()
}

impl SkipReport {
    /// The places in words: those with one reason and one pass in a line of their own, in the order of the first.
    pub fn lines<'a>(skips: impl IntoIterator<Item = &'a Self>) -> Vec<String> {
        let mut groups: Vec<(&Self, Vec<&str>)> = Vec::new();
        for skip in skips {
            let same = |(s, _): &&mut (&Self, _)| s.reason == skip.reason && s.pass == skip.pass;
            match groups.iter_mut().find(same) {
                Some((_, subjects)) => subjects.push(&skip.subject),
                None => groups.push((skip, vec![&skip.subject])),
            }
        }
        let line = |(skip, subjects): (&Self, Vec<&str>)| {
            let shown = subjects[..subjects.len().min(4)].join(", ");
            let more = match subjects.len() {
                0..=4 => String::new(),
                n => format!(" and {} more", n - 4),
            };
            format!("{shown}{more}: {} ({})", skip.reason, skip.pass)
        };
        groups.into_iter().map(line).collect()
    }
}

/// What the passes that quantize left as it was, in lines.
pub fn quantize_skips(report: &Report) -> Vec<String> {
    let skips = report.skips.iter();
    SkipReport::lines(skips.filter(|s| s.pass.starts_with("quantize")))
}

/// The skips of a run as rows, each once.
pub fn skip_rows(cx: &PassContext) -> Vec<SkipReport> {
    let mut rows: Vec<SkipReport> = Vec::new();
    for s in &cx.skips {
        let known = rows
            .iter()
            .any(|r| r.subject == s.subject && r.reason == s.reason && r.pass == s.pass);
        if !known {
            rows.push(SkipReport {
                pass: s.pass.clone(),
                subject: s.subject.clone(),
                reason: s.reason.clone(),
            });
        }
    }
    rows
}

/// Sizes of a quantized model against the bytes of the model it was made from.
pub fn size(before_bytes: u64, after_bytes: u64, quantized: &Model) -> SizeReport {
    let (mut values, mut bits) = (0u64, 0u64);
    for w in inspect::quantized_weights(quantized) {
        if w.dtype != DataType::Int32 {
            values += w.values;
            bits += w.stored_bits;
        }
    }
    SizeReport {
        before_bytes,
        after_bytes,
        quantized_values: values,
        effective_bits: (values > 0).then(|| bits as f64 / values as f64),
    }
}

/// The reasons for which nodes with weights are not integer operators, with their number, most frequent first.
pub fn float_reasons(plan: &PrecisionPlan) -> Vec<(String, Vec<String>)> {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for n in &plan.nodes {
        let weighted = matches!(
            n.op_type.as_str(),
            "Conv" | "ConvTranspose" | "Gemm" | "MatMul" | "LSTM" | "GRU" | "RNN" | "Gather"
        );
        let left = match n.precision {
            Precision::Float => weighted && n.op_type != "Gather",
            Precision::WeightOnly => true,
            _ => false,
        };
        if !left {
            continue;
        }
        match reasons.iter_mut().find(|(r, _)| *r == n.reason) {
            Some((_, nodes)) => nodes.push(n.key.clone()),
            None => reasons.push((n.reason.clone(), vec![n.key.clone()])),
        }
    }
    reasons.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.0.cmp(&b.0)));
    reasons
}

/// What is drawn of a plan before it is carried out, while weights are float.
pub(crate) struct Sketch {
    graph: figures::Picture,
    weights: Vec<(onnx_quant_numerics::histogram::Histogram, TensorHistogram)>,
}

impl Sketch {
    pub(crate) fn of(planned: &Planned) -> Self {
        let plan = planned.plan();
        Self {
            graph: graph::picture(planned.model(), &plan),
            weights: tensors::weights(&plan, planned.model()),
        }
    }

    /// The figures of the quantized model.
    pub(crate) fn figures(self, rewritten: &Rewritten) -> Figures {
        let plan = rewritten.plan();
        let mut histograms = tensors::activations(&plan, rewritten.carried.run.cx.get());
        let (settings, model) = (&rewritten.settings, rewritten.model());
        histograms.extend(tensors::clipped(self.weights, &plan, settings, model));
        Figures {
            histograms,
            graph: Some(self.graph),
            ..Figures::default()
        }
    }
}
