//! [`Model`] → `ModelProto`: edges become names.

use onnx_quant_proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use crate::model::{GraphId, Model, NodeId, ValueId};

impl Model {
    /// The model as a message. Weights are shared, not copied. Nodes stand in the order of [`crate::Graph::nodes`].
    pub fn to_proto(&self) -> ModelProto {
        ModelProto {
            graph: Some(self.encode_graph(Self::MAIN)),
            ..self.header.clone()
        }
    }

    /// One graph as a message.
    pub(crate) fn encode_graph(&self, id: GraphId) -> GraphProto {
        let g = self.graph(id);
        let mut out = g.header.clone();
        out.node = g.nodes.iter().map(|&n| self.encode_node(n)).collect();
        out.initializer = g
            .initializers
            .iter()
            .filter_map(|&v| self.encode_initializer(v))
            .collect();
        out.input = g
            .inputs
            .iter()
            .map(|&v| self.encode_info(v, self.value(v).input_info.as_deref()))
            .collect();
        out.output = g
            .outputs
            .iter()
            .map(|&v| {
                let value = self.value(v);
                let foreign = || g.header.output.iter().find(|o| o.name() == value.name);
                let info = match value.output_info.as_deref() {
                    Some(info) if value.graph == id => Some(info),
                    _ => foreign(),
                };
                self.encode_info(v, info)
            })
            .collect();
        let mut infos: Vec<_> = g
            .value_info
            .iter()
            .map(|&v| self.encode_info(v, self.value(v).value_info.as_deref()))
            .collect();
        infos.append(&mut out.value_info);
        out.value_info = infos;
        out
    }

    fn encode_info(&self, id: ValueId, info: Option<&ValueInfoProto>) -> ValueInfoProto {
        ValueInfoProto {
            name: Some(self.value(id).name.clone()),
            ..info.cloned().unwrap_or_default()
        }
    }

    fn encode_initializer(&self, id: ValueId) -> Option<TensorProto> {
        let v = self.value(id);
        v.init.as_ref().map(|t| TensorProto {
            name: Some(v.name.clone()),
            ..t.proto().clone()
        })
    }

    /// One node as a message, with its subgraphs.
    pub fn encode_node(&self, id: NodeId) -> NodeProto {
        let n = self.node(id);
        let name_of =
            |v: Option<ValueId>| v.map_or_else(String::new, |v| self.value(v).name.clone());
        let mut out = n.proto.clone();
        out.input = self.inputs(id).into_iter().map(name_of).collect();
        out.output = self.outputs(id).into_iter().map(name_of).collect();
        for a in &mut out.attribute {
            let graphs: Vec<GraphProto> = n
                .subgraphs
                .iter()
                .filter(|(name, _)| name == a.name())
                .map(|(_, g)| self.encode_graph(*g))
                .collect();
            if a.r#type() == onnx_quant_proto::attribute_proto::AttributeType::Graphs {
                a.graphs = graphs;
            } else {
                a.g = graphs.into_iter().next();
            }
        }
        out
    }
}
