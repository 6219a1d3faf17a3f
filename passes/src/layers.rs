//! Rules for single layers: which formats a node gets where they are not those of the whole model.
//!
//! The rules stand in an order and the last one that names a node wins, setting by setting: a rule that says nothing
//! of the weights leaves them to the rules before it, and at last to the settings of the model.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::{Format, Granularity};

use crate::ops;
use crate::settings::{QuantSettings, SelectionError, compile, matches, suggest};

/// What a rule says of one kind of tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// It stays in float.
    Float,
    /// It is quantized to this format.
    Format(Format),
}

impl Choice {
    /// The format, where there is one.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Float => None,
            Self::Format(f) => Some(f),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float => f.pad("none"),
            Self::Format(format) => format.fmt(f),
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = String;

    /// `none` and `fp32` are float, everything else is a format.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" | "float" | "fp32" => Ok(Self::Float),
            _ => text
                .parse()
                .map(Self::Format)
                .map_err(|e: onnx_quant_numerics::format::FormatError| e.to_string()),
        }
    }
}

/// The range or the parameters of an activation that the user has fixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pinned {
    /// The smallest and the largest real value; scale and zero point follow from them.
    Range(f32, f32),
    /// Scale and zero point themselves. They hold for the format that they were made for.
    Params(QParams),
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerRule {
    /// Glob over node names, or an operator type.
    pub pattern: String,
    /// Format of the weights.
    pub weights: Option<Choice>,
    /// Format of the activations that the node reads.
    pub activations: Option<Choice>,
    /// The range of the activation that a Conv, Gemm or MatMul reads, or of the first input of another operator.
    pub input_range: Option<(f32, f32)>,
    /// Quantize also where the statistics or the neighbours speak against it.
    pub force: bool,
    /// Why, for the plan.
    pub reason: Option<String>,
    /// Where the rule stands, for errors: `plan.toml:12` for example. Without it errors say `layer rule`.
    pub origin: Option<String>,
}

/// What holds for one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerChoice {
    /// Format of the weights.
    pub weights: Option<Format>,
    /// Format of the activations that the node reads.
    pub activations: Option<Format>,
    /// Quantize also where the statistics or the neighbours speak against it.
    pub force: bool,
    /// Why weights are in float, where a rule says so.
    pub weights_reason: Option<String>,
    /// Why activations are in float, where a rule says so.
    pub activations_reason: Option<String>,
}

impl LayerChoice {
    /// Whether the weights get a scale for each output channel (the default) or one for the tensor.
    pub fn per_channel(&self) -> bool {
        self.weights
            .is_some_and(|f| f.granularity != Some(Granularity::Tensor))
    }
}

/// Whether an operator is of a kind that carries weights.
fn has_weight(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    let kinds = ["LSTM", "GRU", "RNN", "Gather"];
    ops::linear(model, node).is_some() || kinds.iter().any(|op| n.is(op))
}

/// The rules of a model, worked out for every node.
#[derive(Debug, Clone)]
pub struct LayerChoices {
    general: LayerChoice,
    nodes: BTreeMap<NodeId, LayerChoice>,
    pinned: BTreeMap<ValueId, Pinned>,
}

impl LayerChoices {
    /// Works the rules out.
    ///
    /// # Errors
    /// A pattern that is none or names nothing, a range that is none, a pinned value that the model does not have.
    pub fn new(settings: &QuantSettings, model: &Model) -> Result<Self, String> {
        let mut choices = Self {
            general: LayerChoice {
                weights: settings.weights,
                activations: settings.activations,
                ..LayerChoice::default()
            },
            nodes: BTreeMap::new(),
            pinned: pinned(settings, model)?,
        };
        let nodes = model.all_nodes();
        // Names may hold what a glob reads as a pattern, and a plan names every node: exact names come first.
        let by_name: BTreeMap<String, NodeId> = match settings.layers.is_empty() {
            true => BTreeMap::new(),
            false => nodes.iter().map(|&n| (model.node_key(n), n)).collect(),
        };
        for rule in &settings.layers {
            let place = rule.origin.clone().unwrap_or_else(|| "layer rule".into());
            let patterns = std::slice::from_ref(&rule.pattern);
            let named: Vec<NodeId> = match by_name.get(&rule.pattern) {
                Some(&node) => vec![node],
                None => {
                    let (_, glob) = compile(&place, patterns)
                        .map_err(|e| e.to_string())?
                        .remove(0);
                    let named = |n: &&NodeId| matches(&rule.pattern, &glob, model, **n);
                    nodes.iter().filter(named).copied().collect()
                }
            };
            if named.is_empty() {
                return Err(SelectionError::NoMatch {
                    option: place,
                    pattern: rule.pattern.clone(),
                    suggestion: suggest(&rule.pattern, model),
                }
                .to_string());
            }
            let coded = matches!(rule.weights, Some(Choice::Format(_)));
            if coded && !named.iter().any(|&n| has_weight(model, n)) {
                return Err(format!(
                    "{place} `{}`: weights: a {} has no weight that could be quantized; Conv, ConvTranspose, Gemm, MatMul, \
                     Gather of a table, LSTM, GRU and RNN have",
                    rule.pattern,
                    model.node(named[0]).op_type()
                ));
            }
            for node in named {
                choices.apply(rule, model, node, &place)?;
            }
        }
        Ok(choices)
    }

    fn apply(
        &mut self,
        rule: &LayerRule,
        model: &Model,
        node: NodeId,
        place: &str,
    ) -> Result<(), String> {
        let general = &self.general;
        let choice = self.nodes.entry(node).or_insert_with(|| general.clone());
        let why = |what: &str| match &rule.reason {
            Some(reason) => reason.clone(),
            None => format!("{what} stay in float by the rule `{}`", rule.pattern),
        };
        if let Some(weights) = rule.weights {
            choice.weights = weights.format();
            choice.weights_reason = (weights == Choice::Float).then(|| why("weights"));
        }
        if let Some(activations) = rule.activations {
            choice.activations = activations.format();
            choice.activations_reason = (activations == Choice::Float).then(|| why("activations"));
        }
        choice.force |= rule.force;
        if let Some((min, max)) = rule.input_range {
            check_range(place, &rule.pattern, min, max)?;
            let slot = match ops::linear(model, node) {
                Some(Ok(linear)) => linear.activation,
                _ => 0,
            };
            if let Some(value) = model.input(node, slot) {
                self.pinned.insert(value, Pinned::Range(min, max));
            }
        }
        Ok(())
    }

    /// What holds for a node.
    pub fn of(&self, node: NodeId) -> &LayerChoice {
        self.nodes.get(&node).unwrap_or(&self.general)
    }

    /// What is fixed of an activation.
    pub fn pinned(&self, value: ValueId) -> Option<Pinned> {
        self.pinned.get(&value).copied()
    }

    /// Whether any activation is quantized.
    pub fn any_activations(&self) -> bool {
        self.general.activations.is_some() || self.nodes.values().any(|c| c.activations.is_some())
    }
}

fn pinned(settings: &QuantSettings, model: &Model) -> Result<BTreeMap<ValueId, Pinned>, String> {
    if settings.ranges.is_empty() {
        return Ok(BTreeMap::new());
    }
    let values = model.all_values();
    let by_key: BTreeMap<String, ValueId> = values
        .into_iter()
        .map(|v| (model.value_key(v), v))
        .collect();
    let mut found = BTreeMap::new();
    for (key, pin) in &settings.ranges {
        let Some(&value) = by_key.get(key) else {
            return Err(format!(
                "a range is given for `{key}`, which is no value of the model"
            ));
        };
        if let Pinned::Range(min, max) = *pin {
            check_range("the range", key, min, max)?;
        }
        found.insert(value, *pin);
    }
    Ok(found)
}

fn check_range(place: &str, subject: &str, min: f32, max: f32) -> Result<(), String> {
    if min.is_finite() && max.is_finite() && min <= max {
        return Ok(());
    }
    Err(format!(
        "{place}: the range {min} to {max} of `{subject}` is none: give two finite numbers, the smaller first"
    ))
}

#[cfg(test)]
mod tests;
