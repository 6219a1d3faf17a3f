//! A model in pieces: each layer is a piece, and what stands between layers is one too. One run keeps all values that
//! pass between pieces, and another in which one layer's output differs runs only the pieces that depend on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use onnx_quant_ir::engine::{Engine, Request, Session};
use onnx_quant_ir::proto::{TypeProto, type_proto};
use onnx_quant_ir::{DataType, Model, NodeId, Tensor, ValueId};
use onnx_quant_passes::infer::{Facts, infer_declared};
use onnx_quant_passes::specialize::{ConcreteInputs, specialize};

use crate::error::Error;

/// Type and shape of each fed input.
pub(super) type Feed = Vec<(String, DataType, Vec<usize>)>;

/// Gives the outputs that a layer is to have, from its inputs; `None` where it runs as it is.
pub(super) type Replaced<'a> =
    &'a mut dyn FnMut(usize, &[Tensor]) -> Option<Result<Vec<Tensor>, Error>>;

/// A model in pieces, for one shape of its inputs.
pub(super) struct Chunks {
    engine: Arc<dyn Engine>,
    model: Model,
    pieces: Vec<Piece>,
    /// By value: the last piece that reads it.
    last_use: HashMap<ValueId, usize>,
    outputs: Vec<ValueId>,
}

/// Nodes that run together.
struct Piece {
    model: Model,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    layer: Option<usize>,
    session: Option<Arc<dyn Session>>,
}

/// The values that pass between pieces, of one batch.
#[derive(Default)]
pub(super) struct Values(HashMap<ValueId, Tensor>);

impl Values {
    /// Bytes that they hold.
    pub(super) fn bytes(&self) -> usize {
        self.0.values().filter_map(|t| t.byte_len().ok()).sum()
    }
}

/// A layer of the pieces.
pub(super) struct LayerPiece<'a> {
    /// Its place among the pieces.
    pub(super) at: usize,
    /// The layer alone: a model of one node.
    pub(super) model: &'a Model,
}

impl Chunks {
    /// Cuts a model at its layers, given by their keys, for inputs of these shapes.
    ///
    /// # Errors
    /// A model that cannot be made concrete for the shapes.
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        model: &Model,
        feed: &Feed,
        layers: &[String],
    ) -> Result<Self, Error> {
        let mut model = model.clone();
        let shapes = feed.iter().map(|(n, t, d)| (n.clone(), (*t, d.clone())));
        let inputs = ConcreteInputs::new(shapes.collect());
        specialize(&mut model, &inputs).map_err(|e| Error::usage(e.to_string()))?;
        let by_key: BTreeMap<&str, usize> = layers
            .iter()
            .enumerate()
            .map(|(i, k)| (k.as_str(), i))
            .collect();
        let groups = groups(&model, &by_key);
        let facts = infer_declared(&model, false);
        let mut chunks = Self {
            engine: Arc::clone(engine),
            pieces: Vec::with_capacity(groups.len()),
            last_use: HashMap::new(),
            outputs: model.main().outputs.clone(),
            model,
        };
        for (at, (layer, nodes)) in groups.into_iter().enumerate() {
            let piece = piece(&chunks.model, &facts, layer, &nodes);
            for &v in &piece.inputs {
                chunks.last_use.insert(v, at);
            }
            chunks.pieces.push(piece);
        }
        for &v in &chunks.outputs {
            chunks.last_use.insert(v, usize::MAX);
        }
        Ok(chunks)
    }

    /// The pieces that are layers, by layer.
    pub(super) fn layers(&self) -> BTreeMap<usize, LayerPiece<'_>> {
        let pieces = self.pieces.iter().enumerate();
        pieces
            .filter_map(|(at, p)| {
                Some((
                    p.layer?,
                    LayerPiece {
                        at,
                        model: &p.model,
                    },
                ))
            })
            .collect()
    }

    /// Runs all pieces on a batch, one tensor for each fed input, and keeps what passes between them.
    ///
    /// # Errors
    /// A piece that the engine cannot run.
    pub(super) fn forward(&mut self, names: &Feed, feed: &[Tensor]) -> Result<Values, Error> {
        let by_name = self.model.values_by_name(Model::MAIN);
        let mut values = HashMap::new();
        for ((name, _, _), tensor) in names.iter().zip(feed) {
            if let Some(&v) = by_name.get(name.as_str()) {
                values.insert(v, tensor.clone());
            }
        }
        for piece in &mut self.pieces {
            let inputs = piece.inputs.iter().map(|v| values.get(v).cloned());
            let Some(inputs) = inputs.collect::<Option<Vec<Tensor>>>() else {
                return Err(Error::usage(
                    "an input of the model is not in the data, and the model cannot be cut",
                ));
            };
            let session = match &piece.session {
                Some(s) => Arc::clone(s),
                None => {
                    let request = request(&piece.model, &inputs);
                    let session = self.engine.prepare(&piece.model, &request)?;
                    Arc::clone(piece.session.insert(session))
                }
            };
            let outputs = session.run(&inputs, None)?;
            values.extend(piece.outputs.iter().copied().zip(outputs));
        }
        Ok(Values(values))
    }

    /// What a layer reads.
    pub(super) fn inputs_of(&self, at: usize, values: &Values) -> Vec<Tensor> {
        let inputs = self.pieces[at].inputs.iter();
        inputs.filter_map(|v| values.0.get(v).cloned()).collect()
    }

    /// What a piece gives.
    pub(super) fn outputs_of(&self, at: usize, values: &Values) -> Vec<Tensor> {
        let outputs = self.pieces[at].outputs.iter();
        outputs.filter_map(|v| values.0.get(v).cloned()).collect()
    }

    /// Runs what depends on layers whose outputs are replaced, and gives the outputs of the model. `replaced` gives for
    /// a layer's piece, from the inputs that it has then, the outputs that it is to have, or `None` to run it as it is.
    ///
    /// # Errors
    /// A piece that fails.
    pub(super) fn rerun(
        &self,
        clean: &Values,
        first: usize,
        replaced: Replaced<'_>,
    ) -> Result<Vec<Tensor>, Error> {
        let mut dirty: HashMap<ValueId, Tensor> = HashMap::new();
        for (at, piece) in self.pieces.iter().enumerate().skip(first) {
            let touched = piece.inputs.iter().any(|v| dirty.contains_key(v));
            if !touched && piece.layer.is_none() {
                continue;
            }
            let inputs: Vec<Tensor> = piece
                .inputs
                .iter()
                .filter_map(|v| dirty.get(v).or_else(|| clean.0.get(v)).cloned())
                .collect();
            let outputs = match piece.layer.and_then(|l| replaced(l, &inputs)) {
                Some(outputs) => outputs?,
                None if !touched => continue,
                None => match &piece.session {
                    Some(session) => session.run(&inputs, None)?,
                    None => continue,
                },
            };
            dirty.extend(piece.outputs.iter().copied().zip(outputs));
            dirty.retain(|v, _| self.last_use.get(v).is_some_and(|&last| last > at));
        }
        Ok(self.results(clean, &dirty))
    }

    /// Layers that follow each other with no other layer between.
    pub(super) fn neighbours(&self) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (first, piece) in self.layers() {
            let mut reached: HashSet<ValueId> =
                self.pieces[piece.at].outputs.iter().copied().collect();
            for p in &self.pieces[piece.at + 1..] {
                if !p.inputs.iter().any(|v| reached.contains(v)) {
                    continue;
                }
                match p.layer {
                    Some(second) => pairs.push((first, second)),
                    None => reached.extend(p.outputs.iter().copied()),
                }
            }
        }
        pairs
    }

    /// The outputs of the model.
    pub(super) fn outputs(&self, values: &Values) -> Vec<Tensor> {
        self.results(values, &HashMap::new())
    }

    fn results(&self, clean: &Values, dirty: &HashMap<ValueId, Tensor>) -> Vec<Tensor> {
        let constant = |v: &ValueId| self.model.value(*v).init.as_ref();
        let found = |v: &ValueId| {
            dirty
                .get(v)
                .or_else(|| clean.0.get(v))
                .or_else(|| constant(v))
        };
        self.outputs.iter().filter_map(found).cloned().collect()
    }
}

/// The request for a piece that is fed these tensors.
pub(super) fn request(model: &Model, inputs: &[Tensor]) -> Request {
    let names = model
        .main()
        .inputs
        .iter()
        .map(|&v| model.value(v).name.clone());
    let size = |&d: &i64| usize::try_from(d).unwrap_or(0);
    let feed = names
        .zip(inputs)
        .map(|(n, t)| (n, t.dtype(), t.dims().iter().map(size).collect()));
    Request {
        feed: feed.collect(),
        ..Request::default()
    }
}

/// The nodes of each piece, in an order in which they can run: layers alone, and what stands between them in parts that
/// have nothing to do with each other.
fn groups(model: &Model, layers: &BTreeMap<&str, usize>) -> Vec<(Option<usize>, Vec<NodeId>)> {
    let mut groups = Vec::new();
    let mut between: Vec<NodeId> = Vec::new();
    for &node in &model.main().nodes {
        match layers.get(model.node_key(node).as_str()) {
            Some(&layer) => {
                groups.extend(parts(model, &between).into_iter().map(|p| (None, p)));
                between.clear();
                groups.push((Some(layer), vec![node]));
            }
            None => between.push(node),
        }
    }
    groups.extend(parts(model, &between).into_iter().map(|p| (None, p)));
    groups
}

/// Everything that a node reads, what its subgraphs capture included.
fn reads(model: &Model, node: NodeId) -> Vec<ValueId> {
    let mut all: Vec<ValueId> = model.inputs(node).into_iter().flatten().collect();
    all.extend(model.captured_by(node));
    all
}

/// Nodes in program order, in parts that pass no values to each other.
fn parts(model: &Model, nodes: &[NodeId]) -> Vec<Vec<NodeId>> {
    let mut part_of: HashMap<ValueId, usize> = HashMap::new();
    let mut parts: Vec<Vec<NodeId>> = Vec::new();
    for &node in nodes {
        let before: BTreeSet<usize> = reads(model, node)
            .iter()
            .filter_map(|v| part_of.get(v).copied())
            .collect();
        let mut before = before.into_iter();
        let own = before.next().unwrap_or_else(|| {
            parts.push(Vec::new());
            parts.len() - 1
        });
        for other in before {
            let moved = std::mem::take(&mut parts[other]);
            parts[own].extend(moved);
            part_of
                .values_mut()
                .filter(|p| **p == other)
                .for_each(|p| *p = own);
        }
        parts[own].push(node);
        part_of.extend(model.outputs(node).into_iter().flatten().map(|v| (v, own)));
    }
    parts.retain(|p| !p.is_empty());
    parts
}

fn piece(model: &Model, facts: &Facts, layer: Option<usize>, nodes: &[NodeId]) -> Piece {
    let inside: HashSet<NodeId> = nodes.iter().copied().collect();
    let made = |v: ValueId| model.producer(v).is_some_and(|(n, _)| inside.contains(&n));
    let mut inputs: Vec<ValueId> = Vec::new();
    let mut outputs: Vec<ValueId> = Vec::new();
    for &node in nodes {
        for v in reads(model, node) {
            if !made(v) && model.value(v).init.is_none() && !inputs.contains(&v) {
                inputs.push(v);
            }
        }
        for v in model.outputs(node).into_iter().flatten() {
            let outside = |n: &NodeId| !inside.contains(n);
            let read = model.consumers(v).iter().any(|(n, _)| outside(n))
                || model.captures(v).iter().any(outside)
                || model.main().outputs.contains(&v);
            if read {
                outputs.push(v);
            }
        }
    }
    let types = |v: &ValueId| (*v, facts.get(*v).and_then(|f| f.dtype));
    let typed_inputs: Vec<_> = inputs.iter().map(types).collect();
    let typed_outputs: Vec<_> = outputs.iter().map(types).collect();
    Piece {
        model: extract(model, &inside, &typed_inputs, &typed_outputs),
        inputs,
        outputs,
        layer,
        session: None,
    }
}

/// A model of some nodes of the main graph, with these values as its signature.
fn extract(
    model: &Model,
    nodes: &HashSet<NodeId>,
    inputs: &[(ValueId, Option<DataType>)],
    outputs: &[(ValueId, Option<DataType>)],
) -> Model {
    let mut m = model.clone();
    let others = m
        .main()
        .nodes
        .iter()
        .copied()
        .filter(|n| !nodes.contains(n));
    let others: HashSet<NodeId> = others.collect();
    m.remove_nodes(&others);
    for v in m.main().inputs.clone() {
        m.remove_graph_input(v);
    }
    for v in m.main().outputs.clone() {
        m.remove_graph_output(v);
    }
    for &(v, dtype) in inputs {
        m.make_graph_input(v, dtype.map(tensor_type));
    }
    for &(v, dtype) in outputs {
        m.make_graph_output(v, dtype.map(tensor_type));
    }
    let idle = |v: &ValueId| {
        let value = m.value(*v);
        value.graph == Model::MAIN
            && !value.is_input()
            && !value.is_output()
            && m.producer(*v).is_none()
            && m.is_unused(*v)
    };
    let idle: HashSet<ValueId> = m.all_values().into_iter().filter(idle).collect();
    m.remove_values(&idle);
    m.path = None;
    m
}

fn tensor_type(dtype: DataType) -> TypeProto {
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(dtype as i32),
            ..type_proto::Tensor::default()
        })),
        ..TypeProto::default()
    }
}
