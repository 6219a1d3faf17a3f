//! What the tests of the passes share: small models, and a run that checks what every pass promises.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Changed, Manager, Pass, PassContext, RunError};
use onnx_quant_ir::proto::{
    AttributeProto, GraphProto, ModelProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
    attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use onnx_quant_ir::{DataType, GraphId, Model, NodeId, ValueId};

/// A model without nodes that imports the standard's operators in this version.
pub(crate) fn empty(opset: i64) -> Model {
    Model::from_proto(ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(opset),
        }],
        graph: Some(GraphProto {
            name: Some("test".to_owned()),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    })
    .unwrap()
}

/// A tensor type; a negative dimension is a symbolic one.
pub(crate) fn tensor_type(dtype: DataType, dims: &[i64]) -> TypeProto {
    let dim = dims
        .iter()
        .map(|&d| tensor_shape_proto::Dimension {
            denotation: None,
            value: Some(if d < 0 {
                tensor_shape_proto::dimension::Value::DimParam("n".to_owned())
            } else {
                tensor_shape_proto::dimension::Value::DimValue(d)
            }),
        })
        .collect();
    TypeProto {
        denotation: None,
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(dtype as i32),
            shape: Some(TensorShapeProto { dim }),
        })),
    }
}

/// Adds an FP32 input to the main graph.
pub(crate) fn input(model: &mut Model, name: &str, dims: &[i64]) -> ValueId {
    let ty = tensor_type(DataType::Float, dims);
    model.add_graph_input(Model::MAIN, name, Some(ty))
}

/// Makes a value the next FP32 output of the main graph.
pub(crate) fn output(model: &mut Model, value: ValueId) {
    let ty = tensor_type(DataType::Float, &[]);
    let ty = match ty.value {
        Some(type_proto::Value::TensorType(t)) => TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                shape: None,
                ..t
            })),
        },
        _ => ty,
    };
    model.make_graph_output(value, Some(ty));
}

/// Names of inputs and of outputs, graph by graph.
pub(crate) fn signature(model: &Model) -> Vec<(Vec<String>, Vec<String>)> {
    let names = |ids: &[ValueId]| -> Vec<String> {
        ids.iter().map(|&v| model.value(v).name.clone()).collect()
    };
    model
        .graph_ids()
        .into_iter()
        .map(|g| {
            (
                names(&model.graph(g).inputs),
                names(&model.graph(g).outputs),
            )
        })
        .collect()
}

/// The operator types of all graphs in program order.
pub(crate) fn ops(model: &Model) -> Vec<String> {
    model
        .all_nodes()
        .into_iter()
        .map(|n| model.node(n).op_type().to_owned())
        .collect()
}

/// Runs a pass through the manager.
pub(crate) fn try_run(
    pass: &dyn Pass,
    options: &[(&str, &str)],
    model: &mut Model,
    cx: &mut PassContext,
) -> Result<Changed, RunError> {
    let options: BTreeMap<_, _> = options
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let mut manager = Manager::default();
    manager.run(pass, options, model, cx)
}

/// Runs a pass twice: the second run changes nothing, `Changed::No` means the same message, and what was written can
/// be read again.
pub(crate) fn run_with(pass: &dyn Pass, model: &mut Model, cx: &mut PassContext) -> Changed {
    model.sort().unwrap();
    let before = model.to_proto();
    let changed = try_run(pass, &[], model, cx).unwrap();
    let after = model.to_proto();
    assert_eq!(changed == Changed::Yes, before != after);
    let mut again = model.clone();
    let mut other = PassContext::default();
    if let Some(keep) = cx.get::<crate::freeze_initializers::KeepInputs>() {
        other.insert(keep.clone());
    }
    assert_eq!(
        try_run(pass, &[], &mut again, &mut other).unwrap(),
        Changed::No
    );
    assert!(again.to_proto() == after);
    Model::from_proto(after).unwrap();
    changed
}

/// As [`run_with`], with a fresh context whose skips are returned as `subject: reason`.
pub(crate) fn run(pass: &dyn Pass, model: &mut Model) -> (Changed, Vec<String>) {
    let mut cx = PassContext::default();
    let changed = run_with(pass, model, &mut cx);
    let skips = cx
        .skips
        .iter()
        .map(|s| format!("{}: {}", s.subject, s.reason))
        .collect();
    (changed, skips)
}

/// Adds a body to a control-flow node, with the attribute that a file holds for it.
pub(crate) fn body(
    model: &mut Model,
    node: NodeId,
    attr: &str,
    fill: impl FnOnce(&mut Model, GraphId),
) {
    model.node_mut(node).set_attr(AttributeProto {
        name: Some(attr.to_owned()),
        r#type: Some(AttributeType::Graph as i32),
        ..AttributeProto::default()
    });
    let g = model.add_subgraph(node, attr);
    fill(model, g);
}
