//! Loading and saving real files gives back the same bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod zoo;

use onnx_quant_ir::load::load;
use onnx_quant_ir::proto::attribute_proto::AttributeType;
use onnx_quant_ir::proto::{AttributeProto, GraphProto};
use onnx_quant_ir::save::to_bytes;
use onnx_quant_ir::{Model, text};

#[test]
fn zoo_models_round_trip_to_the_byte() {
    for path in zoo::models() {
        let model = load(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let back = to_bytes(&model).unwrap();
        assert_eq!(bytes.len(), back.len(), "{}", path.display());
        assert!(bytes == back, "{}", path.display());
        let mut sorted = model.clone();
        sorted.sort().unwrap();
        let again = to_bytes(&sorted).unwrap();
        assert!(bytes == again, "{} sorted", path.display());
        assert_eq!(model.unknown_fields, vec![], "{}", path.display());
    }
}

#[test]
fn declared_types_of_outputs_stay_with_their_graphs() {
    let source = "g (float[N] X, bool c) => (float[N] Y, float[N] Z, float[N] Z) {
        Y = Relu (X)
        Z = If <then_branch = t () => (float[7] Y) {}, else_branch = e () => (int8 X) {}> (c)
    }";
    let model = text::parse(source).unwrap();
    let full = text::print(&model, text::Print::Full);
    for part in [
        "=> (float[N] Y, float[N] Z, float[N] Z)",
        "=> (float[7] Y)",
        "=> (int8 X)",
    ] {
        assert!(full.contains(part), "{part} in {full}");
    }
    assert_eq!(model.to_proto(), text::parse(&full).unwrap().to_proto());
    assert_eq!(onnx_quant_ir::verify::verify(&model), vec![]);
}

#[test]
fn graphs_that_the_arena_cannot_keep_apart_are_refused() {
    let body = || GraphProto {
        name: Some("body".into()),
        ..GraphProto::default()
    };
    let attribute = |kind: AttributeType, g: usize, graphs: usize| AttributeProto {
        name: Some("a".into()),
        r#type: Some(kind as i32),
        g: (g > 0).then(body),
        graphs: (0..graphs).map(|_| body()).collect(),
        ..AttributeProto::default()
    };
    let single = || attribute(AttributeType::Graph, 1, 0);
    let cases = [
        (vec![single()], true),
        (vec![attribute(AttributeType::Graphs, 0, 3)], true),
        (vec![attribute(AttributeType::Undefined, 1, 0)], true),
        (vec![attribute(AttributeType::Graphs, 1, 0)], false),
        (vec![attribute(AttributeType::Graph, 1, 1)], false),
        (vec![attribute(AttributeType::Graph, 0, 1)], false),
        (vec![single(), single()], false),
    ];
    for (attributes, good) in cases {
        let plain = text::parse("g () => () { = com.acme.Op () }").unwrap();
        let mut proto = plain.to_proto();
        proto.graph.as_mut().unwrap().node[0].attribute = attributes;
        let read = Model::from_proto(proto.clone());
        assert_eq!(read.is_ok(), good, "{proto:?}");
        if let Ok(model) = read {
            assert_eq!(model.to_proto(), proto);
        }
    }
}
