//! What the user asks of a quantization: formats, schemes, ranges, and which nodes.

use onnx_quant_ir::{Model, NodeId};
use onnx_quant_numerics::format::{Base, Format, Granularity, Scheme};
use onnx_quant_numerics::observer::Calibrator;

use crate::codebook_weights::CodebookSettings;
use crate::layers::{LayerRule, Pinned};
use crate::target::{Isa, TargetName};

mod floats;
mod storage;

pub use floats::FloatSettings;
pub use storage::StorageSettings;

/// The choices of one quantization.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantSettings {
    /// Format of the weights of Conv, ConvTranspose, Gemm, MatMul and embeddings; `None` leaves them in float.
    pub weights: Option<Format>,
    /// Format of the activations; `None` quantizes weights only.
    pub activations: Option<Format>,
    /// Whether weights have a zero point.
    pub weight_scheme: Scheme,
    /// Whether activations have a zero point.
    pub activation_scheme: Scheme,
    /// Leave out one bit, for kernels that saturate.
    pub reduce_range: bool,
    /// How a range is chosen from the statistics.
    pub calibrator: Calibrator,
    /// Signal-to-noise ratio in dB below which an activation is not quantized.
    pub min_activation_sqnr: f64,
    /// Which nodes.
    pub selection: Selection,
    /// What holds for single layers; the last rule that names a node wins.
    pub layers: Vec<LayerRule>,
    /// Ranges or parameters of activations that are fixed, by value key (graph path and name).
    pub ranges: std::collections::BTreeMap<String, Pinned>,
    /// The runtime that the model is made for.
    pub target: TargetName,
    /// The instructions that its kernels will use, where they are known.
    pub isa: Option<Isa>,
    /// Operators of integer arithmetic instead of pairs around float operators.
    pub qoperator: bool,
    /// Activations are quantized at run time, each by its own range; no calibration is needed.
    pub dynamic: bool,
    /// How codes and scales are stored.
    pub storage: StorageSettings,
    /// How codebooks, signs and thresholds are chosen.
    pub codebook: CodebookSettings,
    /// The type of the values that are not quantized.
    pub floats: FloatSettings,
}

impl Default for QuantSettings {
    fn default() -> Self {
        Self {
            weights: Some(Format {
                base: Base::INT8,
                granularity: Some(Granularity::Channel),
            }),
            activations: Some(Format {
                base: Base::UINT8,
                granularity: Some(Granularity::Tensor),
            }),
            weight_scheme: Scheme::Symmetric,
            activation_scheme: Scheme::Asymmetric,
            reduce_range: false,
            calibrator: Calibrator::Mse,
            min_activation_sqnr: 26.0,
            selection: Selection::default(),
            layers: Vec::new(),
            ranges: std::collections::BTreeMap::new(),
            target: TargetName::Ort,
            isa: None,
            qoperator: false,
            dynamic: false,
            storage: StorageSettings::default(),
            codebook: CodebookSettings::default(),
            floats: FloatSettings::default(),
        }
    }
}

impl QuantSettings {
    /// Whether weights leave out one bit: asked for, or because the kernels saturate.
    pub fn reduce_weights(&self) -> bool {
        self.reduce_range || self.isa == Some(Isa::Avx2)
    }
}

/// Which nodes are quantized: globs over node names, or operator types.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only these, and these also where the rules would leave them in float; empty means what the rules say.
    pub include: Vec<String>,
    /// Never these.
    pub exclude: Vec<String>,
}

/// A pattern that selects nothing, or is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// The glob cannot be read.
    #[error("{option} `{pattern}` is not a valid pattern: {reason}")]
    Pattern {
        /// The option it was given with.
        option: String,
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// Nothing has such a name or type.
    #[error("{option} `{pattern}` names no node and no operator type of the model{suggestion}")]
    NoMatch {
        /// The option it was given with.
        option: String,
        /// The pattern.
        pattern: String,
        /// A near name, ready to be printed.
        suggestion: String,
    },
}

/// A compiled [`Selection`].
#[derive(Debug, Clone)]
pub struct Selector {
    include: Vec<(String, globset::GlobMatcher)>,
    exclude: Vec<(String, globset::GlobMatcher)>,
}

impl Selector {
    /// Compiles the patterns and checks that each selects something in the model.
    ///
    /// # Errors
    /// The first pattern that is not valid or selects nothing.
    pub fn new(selection: &Selection, model: &Model) -> Result<Self, SelectionError> {
        let selector = Self {
            include: compile("--include", &selection.include)?,
            exclude: compile("--exclude", &selection.exclude)?,
        };
        let nodes = model.all_nodes();
        for (option, list) in [
            ("--include", &selector.include),
            ("--exclude", &selector.exclude),
        ] {
            for (pattern, glob) in list {
                if !nodes.iter().any(|&n| matches(pattern, glob, model, n)) {
                    return Err(SelectionError::NoMatch {
                        option: option.to_owned(),
                        pattern: pattern.clone(),
                        suggestion: suggest(pattern, model),
                    });
                }
            }
        }
        Ok(selector)
    }

    /// The pattern that excludes the node.
    pub fn excluded_by(&self, model: &Model, node: NodeId) -> Option<String> {
        let hit = self
            .exclude
            .iter()
            .find(|(p, g)| matches(p, g, model, node));
        hit.map(|(p, _)| format!("excluded by `{p}`")).or_else(|| {
            (!self.include.is_empty() && !self.included(model, node))
                .then(|| "not named by --include".to_owned())
        })
    }

    /// Whether the node is named by an `--include`.
    pub fn included(&self, model: &Model, node: NodeId) -> bool {
        self.include.iter().any(|(p, g)| matches(p, g, model, node))
    }
}

pub(crate) fn compile(
    option: &str,
    patterns: &[String],
) -> Result<Vec<(String, globset::GlobMatcher)>, SelectionError> {
    patterns
        .iter()
        .map(|p| {
            globset::Glob::new(p)
                .map(|g| (p.clone(), g.compile_matcher()))
                .map_err(|e| SelectionError::Pattern {
                    option: option.to_owned(),
                    pattern: p.clone(),
                    reason: e.kind().to_string(),
                })
        })
        .collect()
}

pub(crate) fn matches(
    pattern: &str,
    glob: &globset::GlobMatcher,
    model: &Model,
    node: NodeId,
) -> bool {
    let key = model.node_key(node);
    model.node(node).op_type() == pattern || key == pattern || glob.is_match(&key)
}

pub(crate) fn suggest(pattern: &str, model: &Model) -> String {
    let nodes = model.all_nodes();
    let names = nodes
        .iter()
        .flat_map(|&n| [model.node_key(n), model.node(n).op_type().to_owned()]);
    names
        .map(|n| (strsim::normalized_damerau_levenshtein(&n, pattern), n))
        .filter(|(score, _)| *score > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(&a.1)))
        .map(|(_, n)| format!("; did you mean `{n}`?"))
        .unwrap_or_else(|| "; `inspect` lists the operator types".to_owned())
}
