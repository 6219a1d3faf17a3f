//! Which tensors are compressed: the weights of linear operators, embeddings and recurrent layers.

use std::collections::BTreeMap;

use onnx_quant_ir::{DataType, Model, NodeId, ValueId};
use onnx_quant_passes::ops;
use onnx_quant_passes::settings::{Selection, Selector};

use crate::error::Error;

use super::statistics::{Moments, Statistics};

/// Values that a weight must have for a codebook to pay.
const SMALLEST: usize = 64;

/// Where the input channels of a linear operator's weight lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channels {
    /// The weight's axis of input channels.
    pub(super) input: usize,
    /// The weight's axis of output channels.
    pub(super) output: usize,
    /// Groups of a convolution.
    pub(super) group: usize,
}

/// A reader of a weight: a linear operator whose activation can be watched.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) node: NodeId,
    /// Name of the activation.
    pub(super) input: String,
    /// The activation's axis of channels, counted from the end where negative.
    pub(super) axis: i64,
    pub(super) channels: Channels,
    /// Slot of the bias.
    pub(super) bias: Option<usize>,
}

/// A weight to be compressed.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub(super) value: ValueId,
    pub(super) key: String,
    pub(super) dims: Vec<usize>,
    pub(super) float: DataType,
    pub(super) data: Vec<f32>,
    pub(super) readers: Vec<Reader>,
    /// For each value the mean square of what it is multiplied with; `None` where nothing is known.
    pub(super) importance: Option<Vec<f32>>,
}

/// A tensor that is left as it is, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Left {
    /// Its key.
    pub tensor: String,
    /// Its bytes.
    pub bytes: u64,
    /// Why.
    pub reason: String,
}

/// The weights to be compressed in the order of their first readers, and what is left.
pub(super) fn find(
    model: &Model,
    selection: &Selection,
) -> Result<(Vec<Weight>, Vec<Left>), Error> {
    let selector = Selector::new(selection, model).map_err(|e| Error::usage(e.to_string()))?;
    let mut found: Vec<Weight> = Vec::new();
    let mut refused: BTreeMap<ValueId, String> = BTreeMap::new();
    for node in model.all_nodes() {
        for (slot, channels) in slots(model, node) {
            let Some(value) = model.input(node, slot) else {
                continue;
            };
            if let Some(reason) = selector.excluded_by(model, node) {
                refused.insert(value, reason);
                continue;
            }
            let at = match found.iter().position(|w| w.value == value) {
                Some(at) => at,
                None => match weight(model, value) {
                    Ok(weight) => {
                        found.push(weight);
                        found.len() - 1
                    }
                    Err(reason) => {
                        refused.insert(value, reason);
                        continue;
                    }
                },
            };
            found[at]
                .readers
                .extend(channels.and_then(|c| reader(model, node, c)));
        }
    }
    found.retain(|w| !refused.contains_key(&w.value));
    let taken: Vec<ValueId> = found.iter().map(|w| w.value).collect();
    let left = model
        .all_values()
        .into_iter()
        .filter(|v| !taken.contains(v))
        .filter_map(|v| {
            let tensor = model.value(v).init.as_ref()?;
            let bytes = tensor.byte_len().unwrap_or(0) as u64;
            let reason = refused.get(&v).cloned();
            (bytes >= 1024).then(|| Left {
                tensor: model.value_key(v),
                bytes,
                reason: reason.unwrap_or_else(|| {
                    "is no weight of a linear, recurrent or embedding layer".to_owned()
                }),
            })
        })
        .collect();
    Ok((found, left))
}

/// The weight slots of a node, with the channels of linear operators.
fn slots(model: &Model, node: NodeId) -> Vec<(usize, Option<Channels>)> {
    let n = model.node(node);
    if let Some(Ok(linear)) = ops::linear(model, node) {
        let group = n.attr_i("group").unwrap_or(1).max(1) as usize;
        let channels = |input, output, group| {
            Some(Channels {
                input,
                output,
                group,
            })
        };
        let channels = match n.op_type() {
            "Conv" => channels(1, 0, group),
            "ConvTranspose" if group == 1 => channels(0, 1, 1),
            "Gemm" if n.attr_i("transA").unwrap_or(0) == 0 => match linear.axis {
                Some(output) => channels(1 - output, output, 1),
                None => None,
            },
            "MatMul" if linear.weight == 1 && linear.axis == Some(1) => channels(0, 1, 1),
            _ => None,
        };
        return vec![(linear.weight, channels)];
    }
    if ops::embedding(model, node).is_some() {
        return vec![(0, None)];
    }
    ops::recurrent(model, node)
        .into_iter()
        .map(|s| (s, None))
        .collect()
}

fn weight(model: &Model, value: ValueId) -> Result<Weight, String> {
    let tensor = model.constant(value).ok_or("is no constant")?;
    if model.value(value).is_output() {
        return Err("is an output of the graph".to_owned());
    }
    let data = tensor.to_f32().map_err(|e| e.to_string())?;
    if data.len() < SMALLEST {
        return Err(format!(
            "has {} values, for which a codebook does not pay",
            data.len()
        ));
    }
    if let Some(at) = data.iter().position(|x| !x.is_finite()) {
        return Err(format!("value {at} is not finite"));
    }
    Ok(Weight {
        value,
        key: model.value_key(value),
        dims: tensor.dims().iter().map(|&d| d as usize).collect(),
        float: tensor.dtype(),
        data,
        readers: Vec::new(),
        importance: None,
    })
}

/// The reader, where its activation stands in the main graph.
fn reader(model: &Model, node: NodeId, channels: Channels) -> Option<Reader> {
    let n = model.node(node);
    let Some(Ok(linear)) = ops::linear(model, node) else {
        return None;
    };
    let input = model.input(node, linear.activation)?;
    let watched = n.graph == Model::MAIN && model.constant(input).is_none();
    watched.then(|| Reader {
        node,
        input: model.value(input).name.clone(),
        axis: if n.op_type().starts_with("Conv") {
            1
        } else {
            -1
        },
        channels,
        bias: linear.bias,
    })
}

impl Weight {
    /// For each value the input channel of the activation that it is multiplied with.
    pub(super) fn input_channel(&self, at: usize, channels: Channels) -> usize {
        let (input, output) = (
            self.index(at, channels.input),
            self.index(at, channels.output),
        );
        let per_group = self.dims[channels.output] / channels.group.max(1);
        output / per_group.max(1) * self.dims[channels.input] * usize::from(channels.group > 1)
            + input
    }

    /// The index on an axis of the value at a flat index.
    pub(super) fn index(&self, at: usize, axis: usize) -> usize {
        let inner: usize = self.dims[axis + 1..].iter().product();
        at / inner.max(1) % self.dims[axis].max(1)
    }

    /// Takes the importance of the values from statistics.
    pub(super) fn weigh(&mut self, statistics: &Statistics) {
        let mut sum: Option<Vec<f32>> = None;
        for reader in &self.readers {
            let Some(moments) = statistics.of(&reader.input) else {
                continue;
            };
            let squares = self.spread(&moments.square, reader.channels);
            match (&mut sum, squares) {
                (Some(sum), Some(more)) => sum.iter_mut().zip(more).for_each(|(a, b)| *a += b),
                (none @ None, more) => *none = more,
                _ => {}
            }
        }
        self.importance = sum.filter(|s| s.iter().any(|&x| x > 0.0));
    }

    /// One number for each input channel at each value; `None` where the numbers do not fit.
    pub(super) fn spread(&self, of_channel: &[f64], channels: Channels) -> Option<Vec<f32>> {
        (0..self.data.len())
            .map(|at| {
                let c = self.input_channel(at, channels);
                of_channel.get(c).map(|&x| x as f32)
            })
            .collect()
    }

    /// What the operator's outputs lose in the mean by a change of the weight: `E[(W − Ŵ)x]`, one for each output channel.
    pub(super) fn mean_loss(
        &self,
        changed: &[f32],
        reader: &Reader,
        moments: &Moments,
    ) -> Option<Vec<f64>> {
        let mut loss = vec![0.0; self.dims[reader.channels.output]];
        for (at, (&before, &after)) in self.data.iter().zip(changed).enumerate() {
            let mean = moments.mean.get(self.input_channel(at, reader.channels))?;
            loss[self.index(at, reader.channels.output)] +=
                (f64::from(before) - f64::from(after)) * mean;
        }
        Some(loss)
    }
}
