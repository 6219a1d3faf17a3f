//! Changing the graph: every insertion, removal and rewiring goes through these functions of [`Model`].

use std::collections::HashSet;

use onnx_quant_proto::{AttributeProto, NodeProto, TypeProto, ValueInfoProto};
use petgraph::Direction;
use petgraph::visit::EdgeRef;

use crate::model::{Edge, Graph, GraphId, Model, NodeId, Value, ValueId, Vertex};
use crate::node::{self, Node};
use crate::tensor::Tensor;

/// An operator to be inserted.
#[derive(Debug, Clone, Default)]
pub struct NodeSpec {
    proto: NodeProto,
}

impl NodeSpec {
    /// An operator of the standard's own domain.
    pub fn new(op_type: &str) -> Self {
        Self {
            proto: NodeProto {
                op_type: Some(op_type.to_owned()),
                ..NodeProto::default()
            },
        }
    }

    /// Everything of a `NodeProto` but its inputs and outputs.
    pub fn from_proto(mut proto: NodeProto) -> Self {
        proto.input.clear();
        proto.output.clear();
        Self { proto }
    }

    /// Another domain.
    #[must_use]
    pub fn domain(mut self, domain: &str) -> Self {
        self.proto.domain = Some(domain.to_owned());
        self
    }

    /// The node's name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.proto.name = Some(name.to_owned());
        self
    }

    /// An attribute.
    #[must_use]
    pub fn attr(mut self, attribute: AttributeProto) -> Self {
        self.proto.attribute.push(attribute);
        self
    }

    /// An integer attribute.
    #[must_use]
    pub fn attr_i(self, name: &str, value: i64) -> Self {
        self.attr(node::attr_i(name, value))
    }

    /// A list of integers.
    #[must_use]
    pub fn attr_ints(self, name: &str, value: &[i64]) -> Self {
        self.attr(node::attr_ints(name, value))
    }
}

/// The names in use, for making new ones that are unique over the whole model.
#[derive(Debug, Clone, Default)]
pub struct Names(HashSet<String>);

impl Names {
    /// A name that nothing has yet: `wanted`, else `wanted_1`, `wanted_2` …
    pub fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut i = 1u32;
        while !self.0.insert(name.clone()) {
            name = format!("{wanted}_{i}");
            i += 1;
        }
        name
    }

    /// Whether a name is taken.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

impl FromIterator<String> for Names {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

impl Model {
    /// The names of all values and nodes of all graphs.
    pub fn names(&self) -> Names {
        Names(
            self.arena
                .node_weights()
                .map(|v| match v {
                    Vertex::Value(v) => v.name.clone(),
                    Vertex::Node(n) => n.name().to_owned(),
                })
                .collect(),
        )
    }

    /// Adds a value that nothing defines yet.
    pub fn add_value(&mut self, graph: GraphId, name: &str) -> ValueId {
        ValueId(self.arena.add_node(Vertex::Value(Value {
            name: name.to_owned(),
            graph,
            ..Value::default()
        })))
    }

    /// Adds a constant.
    pub fn add_initializer(&mut self, graph: GraphId, name: &str, tensor: Tensor) -> ValueId {
        let id = self.add_value(graph, name);
        self.value_mut(id).init = Some(tensor);
        self.graph_mut(graph).initializers.push(id);
        id
    }

    /// Adds an input to a graph's signature.
    pub fn add_graph_input(
        &mut self,
        graph: GraphId,
        name: &str,
        ty: Option<TypeProto>,
    ) -> ValueId {
        let id = self.add_value(graph, name);
        self.make_graph_input(id, ty);
        id
    }

    /// Makes an existing value the next input of its graph.
    pub fn make_graph_input(&mut self, id: ValueId, ty: Option<TypeProto>) {
        let info = ValueInfoProto {
            r#type: ty,
            ..ValueInfoProto::default()
        };
        let v = self.value_mut(id);
        v.input_info = Some(Box::new(info));
        let graph = v.graph;
        self.graph_mut(graph).inputs.push(id);
    }

    /// Takes a value out of its graph's inputs; an initializer of the same name stays and becomes a constant.
    pub fn remove_graph_input(&mut self, id: ValueId) {
        let v = self.value_mut(id);
        v.input_info = None;
        let graph = v.graph;
        self.graph_mut(graph).inputs.retain(|&i| i != id);
    }

    /// Makes an existing value the next output of its graph.
    pub fn make_graph_output(&mut self, id: ValueId, ty: Option<TypeProto>) {
        let info = ValueInfoProto {
            r#type: ty,
            ..ValueInfoProto::default()
        };
        let v = self.value_mut(id);
        v.output_info = Some(Box::new(info));
        let graph = v.graph;
        self.graph_mut(graph).outputs.push(id);
    }

    /// Takes a value out of its graph's outputs.
    pub fn remove_graph_output(&mut self, id: ValueId) {
        let v = self.value_mut(id);
        v.output_info = None;
        let graph = v.graph;
        self.graph_mut(graph).outputs.retain(|&o| o != id);
    }

    /// Adds a node at the end of its graph's program. `Model::sort` puts it where its inputs and users allow.
    pub fn add_node(
        &mut self,
        graph: GraphId,
        spec: NodeSpec,
        inputs: &[Option<ValueId>],
        outputs: &[Option<ValueId>],
    ) -> NodeId {
        let id = NodeId(self.arena.add_node(Vertex::Node(Box::new(Node {
            proto: spec.proto,
            graph,
            subgraphs: Vec::new(),
            input_count: inputs.len(),
            output_count: outputs.len(),
        }))));
        for (slot, v) in inputs.iter().enumerate() {
            if let Some(v) = v {
                self.arena.add_edge(v.0, id.0, Edge::Input(slot as u32));
            }
        }
        for (slot, v) in outputs.iter().enumerate() {
            if let Some(v) = v {
                self.arena.add_edge(id.0, v.0, Edge::Output(slot as u32));
            }
        }
        self.graph_mut(graph).nodes.push(id);
        id
    }

    /// Adds a node with one output, which gets the given name.
    pub fn add_op(
        &mut self,
        graph: GraphId,
        spec: NodeSpec,
        inputs: &[ValueId],
        output: &str,
    ) -> ValueId {
        let out = self.add_value(graph, output);
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.add_node(graph, spec, &inputs, &[Some(out)]);
        out
    }

    /// Puts a value into an input slot, or empties it. Slots beyond the present number are added.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        let old = self
            .arena
            .edges_directed(node.0, Direction::Incoming)
            .find(|e| *e.weight() == Edge::Input(slot as u32))
            .map(|e| e.id());
        if let Some(e) = old {
            self.arena.remove_edge(e);
        }
        if let Some(v) = value {
            self.arena.add_edge(v.0, node.0, Edge::Input(slot as u32));
        }
        let n = self.node_mut(node);
        n.input_count = n.input_count.max(slot + 1);
    }

    /// Replaces all inputs of a node.
    pub fn set_inputs(&mut self, node: NodeId, values: &[Option<ValueId>]) {
        for slot in 0..self.node(node).input_count {
            self.set_input(node, slot, None);
        }
        self.node_mut(node).input_count = values.len();
        for (slot, &v) in values.iter().enumerate() {
            self.set_input(node, slot, v);
        }
    }

    /// Makes a node define a value in an output slot, or nothing.
    pub fn set_output(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        let old = self
            .arena
            .edges_directed(node.0, Direction::Outgoing)
            .find(|e| *e.weight() == Edge::Output(slot as u32))
            .map(|e| e.id());
        if let Some(e) = old {
            self.arena.remove_edge(e);
        }
        if let Some(v) = value {
            self.arena.add_edge(node.0, v.0, Edge::Output(slot as u32));
        }
        let n = self.node_mut(node);
        n.output_count = n.output_count.max(slot + 1);
    }

    /// Replaces all outputs of a node.
    pub fn set_outputs(&mut self, node: NodeId, values: &[Option<ValueId>]) {
        for slot in 0..self.node(node).output_count {
            self.set_output(node, slot, None);
        }
        self.node_mut(node).output_count = values.len();
        for (slot, &v) in values.iter().enumerate() {
            self.set_output(node, slot, v);
        }
    }

    /// Makes every node that uses `old`, in any graph, use `new`. Graph outputs stay as they are.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        for (node, slot) in self.consumers(old) {
            self.set_input(node, slot, Some(new));
        }
    }

    /// Lets `new` stand wherever `old` stood, graph outputs included, and keeps the signature: where `old` is a graph
    /// output, `new` takes over its name. `false` and no change where that cannot be (`new` is itself part of the
    /// signature, an initializer, or belongs to another graph); the caller then keeps an `Identity`.
    ///
    /// `old` must no longer be wanted: its producer is to be removed by the caller.
    pub fn replace_value(&mut self, old: ValueId, new: ValueId) -> bool {
        let o = self.value(old);
        if o.is_output() {
            let n = self.value(new);
            if n.is_output()
                || n.is_input()
                || n.init.is_some()
                || n.sparse_init
                || n.graph != o.graph
            {
                return false;
            }
            let (graph, name, info) = (o.graph, o.name.clone(), o.output_info.clone());
            let spare = std::mem::replace(&mut self.value_mut(new).name, name);
            self.value_mut(new).output_info = info;
            self.drop_value_info(new);
            let o = self.value_mut(old);
            o.name = spare;
            o.output_info = None;
            for slot in &mut self.graph_mut(graph).outputs {
                if *slot == old {
                    *slot = new;
                }
            }
        }
        self.replace_uses(old, new);
        let inner: Vec<GraphId> = self.graph_ids();
        for g in inner {
            for slot in &mut self.graph_mut(g).outputs {
                if *slot == old {
                    *slot = new;
                }
            }
        }
        true
    }

    /// Forgets the declared type of an inner value (it has changed, or the value has another role now).
    pub fn drop_value_info(&mut self, value: ValueId) {
        let v = self.value_mut(value);
        if v.value_info.take().is_some() {
            let graph = v.graph;
            self.graph_mut(graph).value_info.retain(|&i| i != value);
        }
    }

    /// Declares the type of an inner value.
    pub fn set_value_info(&mut self, value: ValueId, ty: TypeProto) {
        let v = self.value_mut(value);
        let graph = v.graph;
        let new = v.value_info.is_none();
        v.value_info = Some(Box::new(ValueInfoProto {
            r#type: Some(ty),
            ..ValueInfoProto::default()
        }));
        if new {
            self.graph_mut(graph).value_info.push(value);
        }
    }

    /// Moves a constant to a graph around its own, under a name that is free there.
    pub fn move_initializer(&mut self, value: ValueId, graph: GraphId, name: &str) {
        self.drop_value_info(value);
        let v = self.value_mut(value);
        let old = std::mem::replace(&mut v.graph, graph);
        v.name = name.to_owned();
        self.graph_mut(old).initializers.retain(|&i| i != value);
        self.graph_mut(graph).initializers.push(value);
        self.refresh_captures();
    }

    /// Makes a value a constant (it must have no producer), or replaces its data.
    pub fn set_initializer(&mut self, value: ValueId, tensor: Tensor) {
        let v = self.value_mut(value);
        let graph = v.graph;
        let new = v.init.is_none();
        v.init = Some(tensor);
        if new {
            self.graph_mut(graph).initializers.push(value);
        }
    }

    /// Adds an empty subgraph to a control-flow node.
    pub fn add_subgraph(&mut self, node: NodeId, attr: &str) -> GraphId {
        let id = GraphId(self.graphs.keys().next_back().map_or(0, |g| g.0 + 1));
        self.graphs.insert(
            id,
            Graph {
                parent: Some((node, attr.to_owned())),
                ..Graph::default()
            },
        );
        self.node_mut(node).subgraphs.push((attr.to_owned(), id));
        id
    }
}
