//! The layers of a model: the operators with weights, whose formats are chosen one by one.

use std::collections::{BTreeMap, HashMap};

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_passes::layers::{LayerChoice, LayerChoices};
use onnx_quant_passes::ops;
use onnx_quant_passes::settings::{QuantSettings, Selector};
use onnx_quant_passes::target::{Role, Target};

use crate::error::Error;

/// A layer as it stands in the model.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// Graph path and name.
    pub(super) key: String,
    /// Operator type.
    pub(super) op: String,
    /// The float activation that it reads, by key.
    pub(super) input: Option<String>,
    /// The values that are quantized in one format with that activation, by the key of one of them.
    pub(super) stream: Option<String>,
    /// The initializers that hold its weights, by key.
    pub(super) tensors: Vec<String>,
    /// Number of weights.
    pub(super) weights: u64,
    /// Weights for each output channel: the multiplications behind one output value. 0 where rows are looked up.
    pub(super) fan_in: u64,
}

/// What stands in a model.
pub(super) struct Found {
    /// The layers, in program order.
    pub(super) sites: Vec<Site>,
    /// Layers that are left out, with the reason.
    pub(super) others: BTreeMap<String, String>,
    /// Operators between layers that can run in few bits, with the stream that they stand in.
    pub(super) between: BTreeMap<String, String>,
}

/// All layers of a model in program order.
///
/// # Errors
/// A selection that names nothing.
pub(super) fn find(model: &Model, settings: &QuantSettings) -> Result<Found, Error> {
    let selector =
        Selector::new(&settings.selection, model).map_err(|e| Error::usage(e.to_string()))?;
    let (mut sites, mut others) = (Vec::new(), BTreeMap::new());
    let free = QuantSettings {
        weights: None,
        activations: None,
        ..settings.clone()
    };
    let rules = LayerChoices::new(&free, model).map_err(Error::Usage)?;
    let streams = Streams::new(model, settings.target.rules());
    for node in model.all_nodes() {
        let Some(site) = site(model, &streams, node) else {
            continue;
        };
        let key = model.node_key(node);
        let reason = match site {
            Err(reason) => reason,
            Ok(_) if model.node(node).graph != Model::MAIN => {
                "stands inside a subgraph: it gets the format of the settings".to_owned()
            }
            Ok(_) if *rules.of(node) != LayerChoice::default() => {
                "its format is fixed by a rule".to_owned()
            }
            Ok(site) => match selector.excluded_by(model, node) {
                Some(reason) => reason,
                None => {
                    sites.push(site);
                    continue;
                }
            },
        };
        others.insert(key, reason);
    }
    let fixed = |n: &NodeId| *rules.of(*n) != LayerChoice::default();
    let between = streams.between.iter().filter(|(n, _)| !fixed(n));
    let key = |v: ValueId| model.value_key(streams.of(v));
    Ok(Found {
        between: between.map(|&(n, v)| (model.node_key(n), key(v))).collect(),
        sites,
        others,
    })
}

fn site(model: &Model, streams: &Streams, node: NodeId) -> Option<Result<Site, String>> {
    let mut input = None;
    let (slots, lookup) = match ops::linear(model, node) {
        Some(Err(reason)) => return Some(Err(reason)),
        Some(Ok(linear)) => {
            input = model.input(node, linear.activation);
            (vec![linear.weight], false)
        }
        None if ops::embedding(model, node).is_some() => (vec![0], true),
        None => (ops::recurrent(model, node), false),
    };
    if slots.is_empty() {
        return None;
    }
    let axis = ops::linear(model, node)
        .and_then(Result::ok)
        .and_then(|l| l.axis);
    let (mut weights, mut channels, mut tensors) = (0, 1, Vec::new());
    for slot in slots {
        let value = model.input(node, slot)?;
        let tensor = model.constant(value)?;
        weights += tensor.element_count().ok()? as u64;
        channels = axis
            .and_then(|a| tensor.dims().get(a).copied())
            .unwrap_or(1)
            .max(1);
        tensors.push(model.value_key(value));
    }
    Some(Ok(Site {
        key: model.node_key(node),
        op: model.node(node).op_type().to_owned(),
        input: input.map(|v| model.value_key(v)),
        stream: input.map(|v| model.value_key(streams.of(v))),
        tensors,
        weights,
        fan_in: if lookup { 0 } else { weights / channels as u64 },
    }))
}

/// Values that get one format where they are quantized: those around operators that move codes, around the inputs and
/// the output of a Concat, of a residual addition and of the other operators with an integer kernel between layers, all
/// of which take one type.
struct Streams {
    joined: HashMap<ValueId, ValueId>,
    between: Vec<(NodeId, ValueId)>,
}

impl Streams {
    fn new(model: &Model, target: &Target) -> Self {
        let mut streams = Self {
            joined: HashMap::new(),
            between: Vec::new(),
        };
        for &node in &model.main().nodes {
            let n = model.node(node);
            let kernel = matches!(
                target.role(n.op_type()),
                Some(Role::Supporting | Role::OneScale)
            );
            let slots = if kernel {
                ops::data_slots(n.op_type(), n.input_count)
            } else if ops::is_preserving(model, node)
                || target.is_move(n.op_type())
                || ops::clamp_bounds(model, node).is_some()
            {
                0..1
            } else {
                continue;
            };
            let computed = |v: &ValueId| model.value(*v).init.is_none();
            let inputs = slots.filter_map(|s| model.input(node, s)).filter(computed);
            let outputs = model.outputs(node).into_iter().flatten();
            let around: Vec<ValueId> = inputs.chain(outputs).collect();
            let kept = ops::linear(model, node).is_none() && ops::embedding(model, node).is_none();
            streams
                .between
                .extend(around.first().filter(|_| kept).map(|&v| (node, v)));
            for pair in around.windows(2) {
                streams.join(pair[0], pair[1]);
            }
        }
        streams
    }

    /// The value that stands for all of a stream.
    fn of(&self, mut value: ValueId) -> ValueId {
        while let Some(&next) = self.joined.get(&value) {
            value = next;
        }
        value
    }

    fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.of(a), self.of(b));
        if a != b {
            self.joined.insert(a.max(b), a.min(b));
        }
    }
}
