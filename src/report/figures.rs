//! What a report draws, as data: the same numbers stand in the JSON, in the text and in the pictures of the page.

use serde::Serialize;

/// Everything that can be drawn; what a command does not measure is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Size against loss, and what was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub front: Option<Front>,
    /// What each layer loses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<Sensitivities>,
    /// Signal to noise of inner values, in the order of the network: a line for each set of formats.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<Line>,
    /// The distribution of each quantized tensor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub histograms: Vec<TensorHistogram>,
    /// The graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<Picture>,
}

/// The trade of size against loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Front {
    /// What the losses are.
    pub loss: String,
    /// The points, smallest first.
    pub points: Vec<Point>,
    /// The metric of the whole models that were run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The largest drop that is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_drop: Option<f64>,
}

/// A choice of formats for all layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Point {
    /// Bytes stored for the layers.
    pub bytes: u64,
    /// The sum of the losses of single layers.
    pub loss: f64,
    /// Whether it was chosen.
    pub chosen: bool,
    /// The whole model, where it was built and run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

/// A whole model that was run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Run {
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Its metric.
    pub metric: f64,
    /// What it lost.
    pub drop: f64,
    /// The ends of the interval of that.
    pub interval: (f64, f64),
}

/// What each layer loses, the most sensitive first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sensitivities {
    /// What the losses are.
    pub loss: String,
    /// Samples on which they were measured.
    pub samples: usize,
    /// The format that layers are compared in; a layer that was not measured in it stands with its largest loss.
    pub format: String,
    /// The layers.
    pub layers: Vec<LayerLoss>,
    /// Layers that were not measured, with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmeasured: Vec<(String, String)>,
}

/// What a layer loses.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LayerLoss {
    /// Graph path and name.
    pub layer: String,
    /// Operator type.
    pub op: String,
    /// The loss by which layers are sorted.
    pub loss: f64,
    /// The format that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// The loss in that format, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_loss: Option<f64>,
    /// Every format that was measured.
    pub formats: Vec<(String, f64)>,
}

/// Signal to noise along the network.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Line {
    /// What was quantized.
    pub name: String,
    /// Samples that were run; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Value or layer, and its ratio in dB (absent where there is no error), in the order of the network.
    pub values: Vec<(String, Option<f64>)>,
}

/// The distribution of a tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TensorHistogram {
    /// Graph path and name.
    pub tensor: String,
    /// `activation` or `weight`.
    pub kind: &'static str,
    /// Format of the codes.
    pub format: String,
    /// Values that were seen.
    pub values: u64,
    /// The lowest edge of the bins, and the highest.
    pub edges: (f64, f64),
    /// Values in each bin; all bins are equally wide.
    pub counts: Vec<u64>,
    /// Number of scales.
    pub scales: u64,
    /// The lowest and the highest number that the codes stand for; of many scales, those of the widest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<(f64, f64)>,
    /// Numbers between which values are rounded; of many scales, those of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<u64>,
    /// The share of values outside the clip range, as far as the bins of the statistics tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clipped: Option<f64>,
}

/// A graph to be drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Picture {
    /// Inputs, operators and outputs; an edge goes from an earlier one to a later one, in a graph without cycles.
    pub nodes: Vec<Vertex>,
    /// From node to node, each pair once.
    pub edges: Vec<(usize, usize)>,
    /// What was left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A node of a picture.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Vertex {
    /// Graph path and name.
    pub name: String,
    /// Operator type, `input` or `output`.
    pub op: String,
    /// Formats of weights and activations, or `float`, or `follows`.
    pub format: String,
    /// Why it runs in that form.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
