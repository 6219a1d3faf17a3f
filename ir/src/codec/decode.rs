//! `ModelProto` → [`Model`]: names become edges.

use std::collections::HashMap;

use onnx_quant_proto::attribute_proto::AttributeType;
use onnx_quant_proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use crate::model::{Edge, Graph, GraphId, Model, NodeId, Value, ValueId, Vertex};
use crate::node::Node;
use crate::tensor::Tensor;

/// Why a message is not a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message has no graph.
    #[error("the file has no graph: it is not an ONNX model, or it is truncated")]
    NoGraph,
    /// The message has no IR version.
    #[error("the file names no IR version: it is not an ONNX model, or it is truncated")]
    NoIrVersion,
    /// The IR version is newer than the standard that this program knows.
    #[error("IR version {0} is newer than 14, the newest that is known here")]
    NewIrVersion(i64),
    /// The message imports no operator set.
    #[error(
        "the file imports no operator set: it is not a complete ONNX model, or it is truncated"
    )]
    NoOpset,
    /// Two definitions of one name.
    #[error("value `{name}` of graph `{graph}` is defined twice ({what})")]
    DefinedTwice {
        /// The name.
        name: String,
        /// Path or name of the graph.
        graph: String,
        /// What the second definition is.
        what: String,
    },
    /// A name that nothing defines.
    #[error("{user} of graph `{graph}` uses `{name}`, which nothing defines")]
    Undefined {
        /// The name.
        name: String,
        /// Path or name of the graph.
        graph: String,
        /// Who uses it.
        user: String,
    },
    /// An input, output or initializer has no name.
    #[error("{what} of graph `{graph}` has no name")]
    Unnamed {
        /// What lacks the name.
        what: &'static str,
        /// Path or name of the graph.
        graph: String,
    },
    /// An attribute holds graphs in a field that its type does not name, or two attributes of one name hold graphs.
    #[error(
        "attribute `{attribute}` of node `{node}` holds graphs in a way that its type does not allow"
    )]
    Graphs {
        /// Label of the node.
        node: String,
        /// Name of the attribute.
        attribute: String,
    },
    /// Subgraphs nest deeper than any real model's.
    #[error("subgraphs nest more than {0} levels deep")]
    TooDeep(usize),
}

const MAX_DEPTH: usize = 64;

impl Model {
    /// Builds the graph of a decoded file. External data is not read: see [`crate::load::load`].
    ///
    /// # Errors
    /// What makes the message no valid model.
    pub fn from_proto(mut header: ModelProto) -> Result<Self, DecodeError> {
        let graph = header.graph.take().ok_or(DecodeError::NoGraph)?;
        match header.ir_version {
            None | Some(..=0) => return Err(DecodeError::NoIrVersion),
            Some(v) if v > 14 => return Err(DecodeError::NewIrVersion(v)),
            Some(_) => {}
        }
        if header.opset_import.is_empty() {
            return Err(DecodeError::NoOpset);
        }
        let model = Self {
            header,
            ..Self::default()
        };
        let mut decoder = Decoder {
            model,
            scopes: Vec::new(),
            next: 0,
        };
        decoder.graph(graph, None)?;
        let mut model = decoder.model;
        model.refresh_captures();
        Ok(model)
    }
}

struct Decoder {
    model: Model,
    scopes: Vec<HashMap<String, ValueId>>,
    next: u32,
}

impl Decoder {
    fn graph(
        &mut self,
        mut proto: GraphProto,
        parent: Option<(NodeId, String)>,
    ) -> Result<GraphId, DecodeError> {
        if self.scopes.len() >= MAX_DEPTH {
            return Err(DecodeError::TooDeep(MAX_DEPTH));
        }
        let id = GraphId(self.next);
        self.next += 1;
        let label = match &parent {
            None => proto.name().to_owned(),
            Some((n, attr)) => format!("{}/{attr}", self.model.node(*n).name()),
        };
        let inputs = std::mem::take(&mut proto.input);
        let outputs = std::mem::take(&mut proto.output);
        let nodes = std::mem::take(&mut proto.node);
        let initializers = std::mem::take(&mut proto.initializer);
        let value_info = std::mem::take(&mut proto.value_info);
        self.model.graphs.insert(
            id,
            Graph {
                header: proto,
                parent,
                ..Graph::default()
            },
        );
        self.scopes.push(HashMap::new());
        let mut scope = Scope { id, label };
        self.inputs(&mut scope, inputs)?;
        self.initializers(&mut scope, initializers)?;
        self.node_outputs_and_bodies(&mut scope, nodes)?;
        self.outputs(&scope, outputs)?;
        self.value_info(&scope, value_info);
        self.scopes.pop();
        Ok(id)
    }

    fn define(&mut self, scope: &Scope, name: &str, what: &str) -> Result<ValueId, DecodeError> {
        let id = self.model.add_value(scope.id, name);
        let here = self.scopes.last_mut();
        if here.is_some_and(|s| s.insert(name.to_owned(), id).is_some()) {
            return Err(DecodeError::DefinedTwice {
                name: name.to_owned(),
                graph: scope.label.clone(),
                what: what.to_owned(),
            });
        }
        Ok(id)
    }

    fn resolve(
        &self,
        scope: &Scope,
        name: &str,
        user: impl Fn() -> String,
    ) -> Result<ValueId, DecodeError> {
        self.scopes
            .iter()
            .rev()
            .find_map(|s| s.get(name).copied())
            .ok_or_else(|| DecodeError::Undefined {
                name: name.to_owned(),
                graph: scope.label.clone(),
                user: user(),
            })
    }

    fn inputs(&mut self, scope: &mut Scope, infos: Vec<ValueInfoProto>) -> Result<(), DecodeError> {
        for mut info in infos {
            let name = scope.named(info.name.take(), "an input")?;
            let id = self.define(scope, &name, "a graph input")?;
            self.model.value_mut(id).input_info = Some(Box::new(info));
            self.model.graph_mut(scope.id).inputs.push(id);
        }
        Ok(())
    }

    fn initializers(
        &mut self,
        scope: &mut Scope,
        tensors: Vec<TensorProto>,
    ) -> Result<(), DecodeError> {
        for mut t in tensors {
            let name = scope.named(t.name.take(), "an initializer")?;
            let known = self.scopes.last().and_then(|s| s.get(&name).copied());
            let id = match known {
                Some(id) if self.model.value(id).init.is_none() => id,
                _ => self.define(scope, &name, "an initializer")?,
            };
            self.model.value_mut(id).init = Some(Tensor::from_proto(t));
            self.model.graph_mut(scope.id).initializers.push(id);
        }
        let sparse: Vec<String> = self
            .model
            .graph(scope.id)
            .header
            .sparse_initializer
            .iter()
            .filter_map(|s| s.values.as_ref().and_then(|v| v.name.clone()))
            .collect();
        for name in sparse {
            let known = self.scopes.last().and_then(|s| s.get(&name).copied());
            let id = match known {
                Some(id) => id,
                None => self.define(scope, &name, "a sparse initializer")?,
            };
            self.model.value_mut(id).sparse_init = true;
        }
        Ok(())
    }

    /// First all outputs of all nodes, so that a file whose nodes stand out of order still loads; then the uses.
    fn node_outputs_and_bodies(
        &mut self,
        scope: &mut Scope,
        nodes: Vec<NodeProto>,
    ) -> Result<(), DecodeError> {
        let mut pending = Vec::with_capacity(nodes.len());
        for mut proto in nodes {
            let inputs = std::mem::take(&mut proto.input);
            let outputs = std::mem::take(&mut proto.output);
            let node = NodeId(self.model.arena.add_node(Vertex::Node(Box::new(Node {
                graph: scope.id,
                subgraphs: Vec::new(),
                input_count: inputs.len(),
                output_count: outputs.len(),
                proto,
            }))));
            self.model.graph_mut(scope.id).nodes.push(node);
            for (slot, name) in outputs.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                let what = format!("an output of {}", self.model.node(node).op_type());
                let v = self.define(scope, name, &what)?;
                self.model
                    .arena
                    .add_edge(node.0, v.0, Edge::Output(slot as u32));
            }
            pending.push((node, inputs));
        }
        for (node, inputs) in pending {
            for (slot, name) in inputs.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                let v = self.resolve(scope, name, || {
                    let n = self.model.node(node);
                    format!("{} `{}`", n.op_type(), self.model.node_label(node))
                })?;
                self.model
                    .arena
                    .add_edge(v.0, node.0, Edge::Input(slot as u32));
            }
            self.bodies(node)?;
        }
        Ok(())
    }

    fn bodies(&mut self, node: NodeId) -> Result<(), DecodeError> {
        let mut bodies: Vec<(String, GraphProto)> = Vec::new();
        let mut wrong = None;
        for a in &mut self.model.node_mut(node).proto.attribute {
            if a.g.is_none() && a.graphs.is_empty() {
                continue;
            }
            let name = a.name().to_owned();
            let fits = match a.r#type() {
                AttributeType::Graphs => a.g.is_none(),
                _ => a.graphs.is_empty(),
            };
            if !fits || bodies.iter().any(|(n, _)| *n == name) {
                wrong = Some(name.clone());
            }
            bodies.extend(a.g.take().map(|g| (name.clone(), g)));
            bodies.extend(a.graphs.drain(..).map(|g| (name.clone(), g)));
        }
        if let Some(attribute) = wrong {
            let node = self.model.node_label(node);
            return Err(DecodeError::Graphs { node, attribute });
        }
        for (attr, g) in bodies {
            let id = self.graph(g, Some((node, attr.clone())))?;
            self.model.node_mut(node).subgraphs.push((attr, id));
        }
        Ok(())
    }

    fn outputs(&mut self, scope: &Scope, infos: Vec<ValueInfoProto>) -> Result<(), DecodeError> {
        for mut info in infos {
            let name = scope.named(info.name.take(), "an output")?;
            let id = self.resolve(scope, &name, || "the list of outputs".to_owned())?;
            let value = self.model.value_mut(id);
            if value.graph == scope.id {
                value.output_info = Some(Box::new(info));
            } else {
                info.name = Some(name);
                self.model.graph_mut(scope.id).header.output.push(info);
            }
            self.model.graph_mut(scope.id).outputs.push(id);
        }
        Ok(())
    }

    fn value_info(&mut self, scope: &Scope, infos: Vec<ValueInfoProto>) {
        for mut info in infos {
            let known = self.scopes.last().and_then(|s| s.get(info.name()).copied());
            match known {
                Some(id) if self.model.value(id).value_info.is_none() => {
                    info.name = None;
                    let v: &mut Value = self.model.value_mut(id);
                    v.value_info = Some(Box::new(info));
                    self.model.graph_mut(scope.id).value_info.push(id);
                }
                _ => self.model.graph_mut(scope.id).header.value_info.push(info),
            }
        }
    }
}

struct Scope {
    id: GraphId,
    label: String,
}

impl Scope {
    fn named(&self, name: Option<String>, what: &'static str) -> Result<String, DecodeError> {
        name.filter(|n| !n.is_empty())
            .ok_or_else(|| DecodeError::Unnamed {
                what,
                graph: self.label.clone(),
            })
    }
}
