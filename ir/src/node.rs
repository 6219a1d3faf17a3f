//! One operator: its `NodeProto` without the names of its inputs and outputs (edges hold those), and its attributes.

use onnx_quant_proto::attribute_proto::AttributeType;
use onnx_quant_proto::{AttributeProto, NodeProto, TensorProto};

use crate::model::GraphId;
use crate::tensor::Tensor;

/// One operator of a graph.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Name, operator type, domain, attributes and documentation. `input` and `output` are empty, and so are the
    /// graphs of its attributes: see [`Node::subgraphs`].
    pub proto: NodeProto,
    /// The graph that the node stands in.
    pub graph: GraphId,
    /// The graphs of its attributes (`then_branch`, `body` …), in the order of the attributes.
    pub subgraphs: Vec<(String, GraphId)>,
    /// Number of input slots, missing optional inputs included.
    pub input_count: usize,
    /// Number of output slots, missing optional outputs included.
    pub output_count: usize,
}

impl Node {
    /// The operator type, `Conv` for example.
    pub fn op_type(&self) -> &str {
        self.proto.op_type()
    }

    /// The domain of the operator; `ai.onnx` reads as the empty domain.
    pub fn domain(&self) -> &str {
        match self.proto.domain() {
            "ai.onnx" => "",
            other => other,
        }
    }

    /// Whether the node is `op` of the standard's own domain.
    pub fn is(&self, op: &str) -> bool {
        self.op_type() == op && self.domain().is_empty()
    }

    /// The node's name; may be empty.
    pub fn name(&self) -> &str {
        self.proto.name()
    }

    /// The attribute of this name.
    pub fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name() == name)
    }

    /// An integer attribute.
    pub fn attr_i(&self, name: &str) -> Option<i64> {
        self.attr(name).and_then(|a| a.i)
    }

    /// A float attribute.
    pub fn attr_f(&self, name: &str) -> Option<f32> {
        self.attr(name).and_then(|a| a.f)
    }

    /// A string attribute; `None` too where it is not UTF-8.
    pub fn attr_s(&self, name: &str) -> Option<&str> {
        self.attr(name)
            .and_then(|a| a.s.as_ref())
            .and_then(|s| std::str::from_utf8(s).ok())
    }

    /// A list of integers.
    pub fn attr_ints(&self, name: &str) -> Option<&[i64]> {
        self.attr(name).map(|a| a.ints.as_slice())
    }

    /// A list of floats.
    pub fn attr_floats(&self, name: &str) -> Option<&[f32]> {
        self.attr(name).map(|a| a.floats.as_slice())
    }

    /// A tensor attribute.
    pub fn attr_tensor(&self, name: &str) -> Option<Tensor> {
        self.attr(name)
            .and_then(|a| a.t.clone())
            .map(Tensor::from_proto)
    }

    /// The subgraph of this attribute (the first, where the attribute holds several).
    pub fn subgraph(&self, name: &str) -> Option<GraphId> {
        self.subgraphs
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, g)| *g)
    }

    /// Removes an attribute and returns it.
    pub fn take_attr(&mut self, name: &str) -> Option<AttributeProto> {
        let at = self.proto.attribute.iter().position(|a| a.name() == name)?;
        Some(self.proto.attribute.remove(at))
    }

    /// Sets an attribute, in the place of one with the same name.
    pub fn set_attr(&mut self, attribute: AttributeProto) {
        let name = attribute.name().to_owned();
        match self.proto.attribute.iter_mut().find(|a| a.name() == name) {
            Some(slot) => *slot = attribute,
            None => self.proto.attribute.push(attribute),
        }
    }

    /// Sets an integer attribute.
    pub fn set_attr_i(&mut self, name: &str, value: i64) {
        self.set_attr(attr_i(name, value));
    }

    /// Sets a list of integers.
    pub fn set_attr_ints(&mut self, name: &str, value: &[i64]) {
        self.set_attr(attr_ints(name, value));
    }
}

/// An integer attribute.
pub fn attr_i(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

/// A float attribute.
pub fn attr_f(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Float as i32),
        f: Some(value),
        ..AttributeProto::default()
    }
}

/// A string attribute.
pub fn attr_s(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::String as i32),
        s: Some(bytes::Bytes::copy_from_slice(value.as_bytes())),
        ..AttributeProto::default()
    }
}

/// A list of integers.
pub fn attr_ints(name: &str, value: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Ints as i32),
        ints: value.to_vec(),
        ..AttributeProto::default()
    }
}

/// A tensor attribute.
pub fn attr_tensor(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(value),
        ..AttributeProto::default()
    }
}
