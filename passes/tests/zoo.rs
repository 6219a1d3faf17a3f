//! The passes on real models, where these lie beside the repository.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use onnx_quant_ir::pass::{Changed, Pass, PassContext};
use onnx_quant_ir::{DataType, Model, Tensor, load};
use onnx_quant_passes::fold_constants::FoldConstants;
use onnx_quant_passes::infer::{self, Options, Shapes};
use onnx_quant_passes::specialize::{ConcreteInputs, specialize};

fn zoo(file: &str) -> Option<Model> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // A work tree may lie one level deeper than the repository itself.
    let path = ["../shared/zoo", "../../shared/zoo"]
        .iter()
        .map(|z| root.join(z).join(file))
        .find(|p| p.exists());
    match path {
        Some(p) => Some(load::load(&p).unwrap()),
        None => {
            eprintln!("SKIPPED: there is no zoo beside the repository, `{file}` is not tested");
            None
        }
    }
}

fn inputs(list: &[(&str, DataType, &[usize])]) -> ConcreteInputs {
    let each = list.iter();
    ConcreteInputs::new(
        each.map(|(n, t, d)| ((*n).to_owned(), (*t, d.to_vec())))
            .collect(),
    )
}

/// Specializes, and checks that no shape computation is left and every value has a full shape.
fn concrete(file: &str, given: &ConcreteInputs) -> Option<Model> {
    let mut model = zoo(file)?;
    assert!(specialize(&mut model, given).unwrap());
    let options = Options {
        use_value_info: false,
        ..Options::default()
    };
    let facts = infer::infer(&model, &Shapes::new(), &options);
    for n in model.all_nodes() {
        let node = model.node(n);
        let op = node.op_type();
        assert!(
            !matches!(op, "Shape" | "Size" | "If" | "Constant"),
            "{file}: {op} `{}` is left",
            model.node_label(n)
        );
        for v in model.outputs(n).into_iter().flatten() {
            let name = &model.value(v).name;
            assert!(facts.dims(v).is_some(), "{file}: `{name}` has no shape");
        }
    }
    for &v in &model.main().outputs {
        let declared = model.value(v).shape().unwrap();
        assert!(declared.iter().all(Option::is_some), "{file}: {declared:?}");
    }
    assert!(
        !specialize(&mut model, given).unwrap(),
        "{file}: a second run changes the model"
    );
    Some(model)
}

#[test]
fn magika_becomes_concrete() {
    let given = inputs(&[("bytes", DataType::Int32, &[3, 2048])]);
    if let Some(m) = concrete("magika/model.onnx", &given) {
        let out = m.main().outputs[0];
        assert_eq!(m.value(out).shape(), Some(vec![Some(3), Some(214)]));
    }
}

#[test]
fn minilm_becomes_concrete() {
    let ids = |n| (n, DataType::Int64, &[2, 17][..]);
    let given = inputs(&[
        ids("input_ids"),
        ids("attention_mask"),
        ids("token_type_ids"),
    ]);
    concrete("minilm/model.onnx", &given);
}

#[test]
fn chargpt_becomes_concrete_with_and_without_a_past() {
    for past in [0usize, 5] {
        let mut given = inputs(&[
            ("input_ids", DataType::Int64, &[2, 7]),
            ("attention_mask", DataType::Int64, &[2, past + 7]),
        ]);
        for (layer, kind) in (0..4).flat_map(|l| [(l, "key"), (l, "value")]) {
            let name = format!("past_key_values.{layer}.{kind}");
            let shape = (DataType::Float, vec![2, 4, past, 32]);
            given.shapes.insert(name, shape);
        }
        if let Some(m) = concrete("chargpt-kv/model.onnx", &given) {
            let out = m.main().outputs[1];
            let steps = Some(past as i64 + 7);
            assert_eq!(
                m.value(out).shape(),
                Some(vec![Some(2), Some(4), steps, Some(32)])
            );
        }
    }
}

#[test]
fn silero_loses_all_its_branches() {
    for (rate, samples) in [(16000, 576), (8000, 288)] {
        let mut given = inputs(&[
            ("input", DataType::Float, &[2, samples]),
            ("state", DataType::Float, &[2, 2, 128]),
            ("sr", DataType::Int64, &[]),
        ]);
        given
            .values
            .insert("sr".to_owned(), Tensor::from_i64(&[], &[rate]));
        let Some(m) = concrete("silero-vad/model.onnx", &given) else {
            return;
        };
        assert_eq!(m.graph_ids().len(), 1);
        assert_eq!(m.main().inputs.len(), 3, "the signature stays");
        let count = |op: &str| {
            let nodes = m.all_nodes();
            nodes.iter().filter(|&&n| m.node(n).is(op)).count()
        };
        assert_eq!((count("LSTM"), count("Conv")), (1, 6));
    }
}

#[test]
fn ultraface_becomes_concrete() {
    let given = inputs(&[("input", DataType::Float, &[1, 3, 240, 320])]);
    if let Some(m) = concrete("ultraface-rfb320/model.onnx", &given) {
        assert_eq!(m.main().inputs.len(), 1, "unfed defaults are constants");
    }
}

#[test]
fn nearly_all_shapes_are_known_from_the_declared_inputs() {
    for (file, unknown) in [
        ("resnet8-cifar/model.onnx", 0),
        ("mobilenetv2-cifar/model.onnx", 0),
        ("minilm/model.onnx", 0),
        ("ultraface-rfb320/model.onnx", 0),
    ] {
        let Some(m) = zoo(file) else { continue };
        let options = Options {
            use_value_info: false,
            ..Options::default()
        };
        let facts = infer::infer(&m, &Shapes::new(), &options);
        let outputs = m.all_nodes().into_iter().flat_map(|n| m.outputs(n));
        let missing: Vec<&str> = outputs
            .flatten()
            .filter(|&v| facts.get(v).is_none_or(|f| f.shape.is_none()))
            .map(|v| m.value(v).name.as_str())
            .collect();
        assert_eq!(missing.len(), unknown, "{file}: {missing:?}");
    }
}

#[test]
fn folding_leaves_no_constant_node_and_settles() {
    for file in ["ultraface-rfb320/model.onnx", "silero-vad/model.onnx"] {
        let Some(mut m) = zoo(file) else { continue };
        let before = m.all_nodes().len();
        let mut cx = PassContext::default();
        assert_eq!(FoldConstants.run(&mut m, &mut cx).unwrap(), Changed::Yes);
        m.sort().unwrap();
        assert!(m.all_nodes().len() < before);
        for n in m.all_nodes() {
            let free = m.output(n, 0).is_some_and(|v| !m.value(v).is_output());
            assert!(!(m.node(n).is("Constant") && free), "{file}");
        }
        assert_eq!(FoldConstants.run(&mut m, &mut cx).unwrap(), Changed::No);
    }
}
