//! The model: one petgraph arena of values and nodes for the main graph and all its subgraphs.
//!
//! Ids are indices into the arena. They stay valid while a pass runs and must not be kept longer: freed indices are
//! used again. What has to outlive a pass (statistics, plans, reports) is keyed by [`Model::value_key`] or
//! [`Model::node_key`], graph path and name.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use onnx_quant_proto::{
    GraphProto, ModelProto, TypeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto,
};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use crate::census::UnknownField;
use crate::dtype::{DataType, DataTypeExt};
use crate::node::Node;
use crate::tensor::Tensor;

/// A graph of the model: the main graph or the body of a control-flow node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GraphId(pub(crate) u32);

/// A node vertex of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) NodeIndex);

/// A value vertex of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) NodeIndex);

/// What an edge of the arena says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Edge {
    /// `value → node`: the value is the input in this slot.
    Input(u32),
    /// `node → value`: the value is the output in this slot.
    Output(u32),
    /// `value → control-flow node`: a subgraph of the node uses the value.
    Capture,
}

/// A vertex of the arena.
#[derive(Debug, Clone)]
pub enum Vertex {
    /// A value: graph input, initializer or the output of a node.
    Value(Value),
    /// An operator.
    Node(Box<Node>),
}

/// A named value of a graph.
#[derive(Debug, Clone, Default)]
pub struct Value {
    /// The name; unique in its graph and the graphs around it.
    pub name: String,
    /// The graph that defines it.
    pub graph: GraphId,
    /// Present where the value is an input of its graph.
    pub input_info: Option<Box<ValueInfoProto>>,
    /// Present where the value is an output of its graph.
    pub output_info: Option<Box<ValueInfoProto>>,
    /// Present where the file declares the type of an inner value.
    pub value_info: Option<Box<ValueInfoProto>>,
    /// The initializer, where the value has one.
    pub init: Option<Tensor>,
    /// The value is a sparse initializer; its data stays in the header of its graph.
    pub sparse_init: bool,
}

impl Value {
    /// The declared type, from whichever declaration has one.
    pub fn ty(&self) -> Option<&TypeProto> {
        [&self.input_info, &self.value_info, &self.output_info]
            .into_iter()
            .flatten()
            .find_map(|i| i.r#type.as_ref())
    }

    /// The tensor element type: of the initializer, else of the declaration.
    pub fn dtype(&self) -> Option<DataType> {
        if let Some(t) = &self.init {
            return Some(t.dtype());
        }
        match &self.ty()?.value {
            Some(type_proto::Value::TensorType(t)) => DataType::from_number(t.elem_type()),
            _ => None,
        }
    }

    /// The declared shape: one entry an axis, `None` where it is symbolic or unknown; `None` where no rank is known.
    pub fn shape(&self) -> Option<Vec<Option<i64>>> {
        if let Some(t) = &self.init {
            return Some(t.dims().iter().map(|&d| Some(d)).collect());
        }
        match &self.ty()?.value {
            Some(type_proto::Value::TensorType(t)) => t.shape.as_ref().map(|s| {
                s.dim
                    .iter()
                    .map(|d| match d.value {
                        Some(dimension::Value::DimValue(v)) => Some(v),
                        _ => None,
                    })
                    .collect()
            }),
            _ => None,
        }
    }

    /// Whether the value is an input of its graph.
    pub fn is_input(&self) -> bool {
        self.input_info.is_some()
    }

    /// Whether the value is an output of its graph.
    pub fn is_output(&self) -> bool {
        self.output_info.is_some()
    }

    /// Whether the value is an initializer that no caller can override.
    pub fn is_constant(&self) -> bool {
        self.init.is_some() && self.input_info.is_none()
    }
}

/// One graph of the arena.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Name, documentation, annotations, sparse initializers, declarations of values that do not exist, and of outputs
    /// that belong to a graph around this one; all lists that the arena holds are empty.
    pub header: GraphProto,
    /// The control-flow node that owns the graph and the attribute it stands in; `None` for the main graph.
    pub parent: Option<(NodeId, String)>,
    /// Inputs in the order of the signature.
    pub inputs: Vec<ValueId>,
    /// Outputs in the order of the signature. A subgraph may return a value of a graph around it.
    pub outputs: Vec<ValueId>,
    /// Nodes in program order.
    pub nodes: Vec<NodeId>,
    /// Initializers in file order.
    pub initializers: Vec<ValueId>,
    /// Inner values whose types the file declares, in file order.
    pub value_info: Vec<ValueId>,
}

/// An ONNX model as a graph.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Everything of the file but its graph: versions, opset imports, metadata, functions, training information.
    pub header: ModelProto,
    pub(crate) arena: StableDiGraph<Vertex, Edge>,
    pub(crate) graphs: BTreeMap<GraphId, Graph>,
    /// The file that the model was read from.
    pub path: Option<PathBuf>,
    /// The files that its external data was mapped from.
    pub external_files: Vec<PathBuf>,
    /// Fields of the file that the schema does not have: they are not in the model.
    pub unknown_fields: Vec<UnknownField>,
    /// Lets the model be saved although fields of its file would be lost.
    pub allow_field_loss: bool,
}

impl Model {
    /// The main graph.
    pub const MAIN: GraphId = GraphId(0);

    /// The version of an operator set that the model imports; `""` is the standard's own.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let same = |d: &str| d == domain || (domain.is_empty() && d == "ai.onnx");
        self.header
            .opset_import
            .iter()
            .find(|o| same(o.domain()))
            .map(|o| o.version())
    }

    /// Sets the version of an operator set, importing it where the model does not yet.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let same = |d: &str| d == domain || (domain.is_empty() && d == "ai.onnx");
        match self
            .header
            .opset_import
            .iter_mut()
            .find(|o| same(o.domain()))
        {
            Some(o) => o.version = Some(version),
            None => self
                .header
                .opset_import
                .push(onnx_quant_proto::OperatorSetIdProto {
                    domain: Some(domain.to_owned()),
                    version: Some(version),
                }),
        }
    }

    /// The main graph.
    pub fn main(&self) -> &Graph {
        self.graph(Self::MAIN)
    }

    /// A graph.
    ///
    /// # Panics
    /// If the id is not one of this model's.
    pub fn graph(&self, id: GraphId) -> &Graph {
        &self.graphs[&id]
    }

    /// A graph, to be changed.
    ///
    /// # Panics
    /// If the id is not one of this model's.
    pub fn graph_mut(&mut self, id: GraphId) -> &mut Graph {
        self.graphs
            .get_mut(&id)
            .unwrap_or_else(|| panic!("graph {id:?} is not in the model"))
    }

    /// All graphs, the main graph first, in order of creation.
    pub fn graph_ids(&self) -> Vec<GraphId> {
        self.graphs.keys().copied().collect()
    }

    /// A node.
    ///
    /// # Panics
    /// If the id is not one of this model's.
    pub fn node(&self, id: NodeId) -> &Node {
        match self.arena.node_weight(id.0) {
            Some(Vertex::Node(n)) => n,
            _ => panic!("{id:?} is not a node of the model"),
        }
    }

    /// A node, to be changed. Inputs and outputs change through the editing functions only.
    ///
    /// # Panics
    /// If the id is not one of this model's.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match self.arena.node_weight_mut(id.0) {
            Some(Vertex::Node(n)) => n,
            _ => panic!("{id:?} is not a node of the model"),
        }
    }

    /// A value.
    ///
    /// # Panics
    /// If the id is not one of this model's.
    pub fn value(&self, id: ValueId) -> &Value {
        match self.arena.node_weight(id.0) {
            Some(Vertex::Value(v)) => v,
            _ => panic!("{id:?} is not a value of the model"),
        }
    }

    /// A value, to be changed.
    ///
    /// # Panics
    /// If the id is not one of this model's.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        match self.arena.node_weight_mut(id.0) {
            Some(Vertex::Value(v)) => v,
            _ => panic!("{id:?} is not a value of the model"),
        }
    }

    /// Whether the node is still in the model.
    pub fn has_node(&self, id: NodeId) -> bool {
        matches!(self.arena.node_weight(id.0), Some(Vertex::Node(_)))
    }

    /// Whether the value is still in the model.
    pub fn has_value(&self, id: ValueId) -> bool {
        matches!(self.arena.node_weight(id.0), Some(Vertex::Value(_)))
    }

    /// All nodes of all graphs: graph by graph, in program order.
    pub fn all_nodes(&self) -> Vec<NodeId> {
        self.graphs
            .values()
            .flat_map(|g| g.nodes.iter().copied())
            .collect()
    }

    /// All values, in order of their ids.
    pub fn all_values(&self) -> Vec<ValueId> {
        self.arena
            .node_indices()
            .filter(|&i| matches!(self.arena[i], Vertex::Value(_)))
            .map(ValueId)
            .collect()
    }

    /// The inputs of a node by slot; `None` where an optional input is missing.
    pub fn inputs(&self, node: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(node).input_count];
        for e in self.arena.edges_directed(node.0, Direction::Incoming) {
            if let Edge::Input(slot) = e.weight() {
                slots[*slot as usize] = Some(ValueId(e.source()));
            }
        }
        slots
    }

    /// The value in one input slot.
    pub fn input(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.arena
            .edges_directed(node.0, Direction::Incoming)
            .find(|e| *e.weight() == Edge::Input(slot as u32))
            .map(|e| ValueId(e.source()))
    }

    /// The outputs of a node by slot; `None` where an optional output is not taken.
    pub fn outputs(&self, node: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(node).output_count];
        for e in self.arena.edges_directed(node.0, Direction::Outgoing) {
            if let Edge::Output(slot) = e.weight() {
                slots[*slot as usize] = Some(ValueId(e.target()));
            }
        }
        slots
    }

    /// The value in one output slot.
    pub fn output(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.arena
            .edges_directed(node.0, Direction::Outgoing)
            .find(|e| *e.weight() == Edge::Output(slot as u32))
            .map(|e| ValueId(e.target()))
    }

    /// The node and output slot that define a value; `None` for inputs and initializers.
    pub fn producer(&self, value: ValueId) -> Option<(NodeId, usize)> {
        self.arena
            .edges_directed(value.0, Direction::Incoming)
            .find_map(|e| match e.weight() {
                Edge::Output(slot) => Some((NodeId(e.source()), *slot as usize)),
                _ => None,
            })
    }

    /// The nodes that use a value, with the input slot, in a fixed order. Nodes of subgraphs are among them.
    pub fn consumers(&self, value: ValueId) -> Vec<(NodeId, usize)> {
        let mut uses: Vec<_> = self
            .arena
            .edges_directed(value.0, Direction::Outgoing)
            .filter_map(|e| match e.weight() {
                Edge::Input(slot) => Some((NodeId(e.target()), *slot as usize)),
                _ => None,
            })
            .collect();
        uses.sort_unstable();
        uses
    }

    /// The control-flow nodes whose subgraphs, however deep, use or return a value from outside. Found from the uses
    /// themselves, so that it holds at any time between edits.
    pub fn captures(&self, value: ValueId) -> Vec<NodeId> {
        let home = self.value(value).graph;
        let users = self.consumers(value).into_iter();
        let mut graphs: Vec<GraphId> = users.map(|(n, _)| self.node(n).graph).collect();
        graphs.extend(self.returned_by(value));
        let mut nodes = Vec::new();
        for mut at in graphs {
            while at != home {
                let Some((owner, _)) = self.graph(at).parent else {
                    break;
                };
                nodes.push(owner);
                at = self.node(owner).graph;
            }
        }
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The values that a control-flow node's subgraphs take from outside, as of the last [`Model::sort`] or
    /// [`Model::refresh_captures`]: edits of a subgraph do not keep it up to date.
    pub fn captured_by(&self, node: NodeId) -> Vec<ValueId> {
        let mut values: Vec<_> = self
            .arena
            .edges_directed(node.0, Direction::Incoming)
            .filter(|e| *e.weight() == Edge::Capture)
            .map(|e| ValueId(e.source()))
            .collect();
        values.sort_unstable();
        values
    }

    /// Whether nothing uses the value: no node of any graph, no graph output. Holds at any time between edits.
    pub fn is_unused(&self, value: ValueId) -> bool {
        let mut uses = self.arena.edges_directed(value.0, Direction::Outgoing);
        !self.value(value).is_output()
            && !uses.any(|e| matches!(e.weight(), Edge::Input(_)))
            && self.returned_by(value).next().is_none()
    }

    /// The subgraphs that return this value.
    fn returned_by(&self, value: ValueId) -> impl Iterator<Item = GraphId> {
        let subgraphs = self.graphs.iter().skip(1);
        subgraphs
            .filter(move |(_, g)| g.outputs.contains(&value))
            .map(|(&id, _)| id)
    }

    /// The constant behind a value: an initializer that is not also a graph input.
    pub fn constant(&self, value: ValueId) -> Option<&Tensor> {
        let v = self.value(value);
        v.init.as_ref().filter(|_| v.input_info.is_none())
    }

    /// The constant in an input slot of a node.
    pub fn input_constant(&self, node: NodeId, slot: usize) -> Option<&Tensor> {
        self.constant(self.input(node, slot)?)
    }

    /// Whether the value is an initializer that no caller can override.
    pub fn is_constant(&self, value: ValueId) -> bool {
        self.constant(value).is_some()
    }

    /// The values of one graph by name.
    pub fn values_by_name(&self, graph: GraphId) -> HashMap<&str, ValueId> {
        self.arena
            .node_indices()
            .filter_map(|i| match &self.arena[i] {
                Vertex::Value(v) if v.graph == graph => Some((v.name.as_str(), ValueId(i))),
                _ => None,
            })
            .collect()
    }

    /// The value of this name in the main graph. Scans all values: take [`Self::values_by_name`] for many look-ups.
    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.arena
            .node_indices()
            .find_map(|i| match &self.arena[i] {
                Vertex::Value(v) if v.graph == Self::MAIN && v.name == name => Some(ValueId(i)),
                _ => None,
            })
    }

    /// The node of this name in the main graph. Scans all nodes.
    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        self.main()
            .nodes
            .iter()
            .copied()
            .find(|&n| self.node(n).name() == name)
    }

    /// The path of a graph: empty for the main graph, `If_3/then_branch` for a branch.
    pub fn graph_path(&self, graph: GraphId) -> String {
        let mut parts = Vec::new();
        let mut at = graph;
        while let Some((node, attr)) = &self.graph(at).parent {
            parts.push(format!("{}/{attr}", self.node_label(*node)));
            at = self.node(*node).graph;
        }
        parts.reverse();
        parts.join("/")
    }

    /// What to call a node: its name, else its first output's name, else its type.
    pub fn node_label(&self, node: NodeId) -> String {
        let n = self.node(node);
        if !n.name().is_empty() {
            return n.name().to_owned();
        }
        self.outputs(node)
            .into_iter()
            .flatten()
            .next()
            .map_or_else(|| n.op_type().to_owned(), |v| self.value(v).name.clone())
    }

    /// The key of a node that outlives a pass: graph path and label.
    pub fn node_key(&self, node: NodeId) -> String {
        join_key(
            &self.graph_path(self.node(node).graph),
            &self.node_label(node),
        )
    }

    /// The key of a value that outlives a pass: graph path and name.
    pub fn value_key(&self, value: ValueId) -> String {
        let v = self.value(value);
        join_key(&self.graph_path(v.graph), &v.name)
    }
}

fn join_key(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    }
}
