//! Text in, text out: what is printed is read back as the same model.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::{Print, TextError, parse, print};

const SMALL: &str = include_str!("tests/small.onnxtxt");

#[test]
fn everything_in_the_small_model_survives() {
    let model = parse(SMALL).unwrap();
    let full = print(&model, Print::Full);
    let again = parse(&full).unwrap();
    assert_eq!(full, print(&again, Print::Full));
    assert_eq!(model.to_proto(), again.to_proto());
}

fn snapshots() -> insta::Settings {
    let mut s = insta::Settings::clone_current();
    s.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots/text"));
    s.set_prepend_module_to_snapshot(false);
    s.set_omit_expression(true);
    s
}

#[test]
fn both_levels_read_well() {
    let model = parse(SMALL).unwrap();
    snapshots().bind(|| {
        insta::assert_snapshot!("small_full", print(&model, Print::Full));
        insta::assert_snapshot!("small_summary", print(&model, Print::Summary));
    });
}

#[test]
fn errors_name_line_and_column() {
    let bad = [
        "",
        "g (float[2] X) => (float[2] Y) {\n  Y = Relu (X\n}",
        "g (float[2] X) => (float[2] Y) {\n  Y = Relu < alpha = > (X)\n}",
        "g (float[2] X) => (float[2] Y) <float[2] W = {1, 2, 3}> { Y = Add (X, W) }",
        "g (float[2] X) => (float[2] Y) <int8[2] W = {1, 200}> { Y = Add (X, W) }",
        "g (float[2] X) => (float[2] Y) <float[N] W = zeros> { Y = Add (X, W) }",
        "g (float[2] X) => (float[2] Y) <float[99999999999] W = zeros> { Y = Add (X, W) }",
        "g (float[2] X) => (float[2] Y) <float[2] W = noise(1)> { Y = Add (X, W) }",
        "g (float[2] X) => (float[2] Y) { Y = Foo <a = [1, \"x\"]> (X) }",
        "g (float[2] X) => (float[2] Y) { Y = Foo <a = []> (X) }",
        "g (float[2] X) => (float[2] Y) { Y = Foo <a: float = \"x\"> (X) }",
        "g (float[2] X) => (float[2] Y) { Y = Foo (X) } \"open",
        "<ir: 10> g () => () {}",
        "<ir_version: 99, opset_import: [\"\" : 21]> g () => () {}",
        "g () => (float Y) { Y = Relu (nothing) }",
        "g (float X) => (float Y) { Y = Add (X, Z) Z = Relu (Y) }",
        "g (float[2] X $\"zz\") => () {}",
        "g (float[2] X $\"0a05\") => () {}",
    ];
    let errors: Vec<String> = bad
        .iter()
        .map(|text| format!("{text}\n→ {}\n", parse(text).unwrap_err()))
        .collect();
    snapshots().bind(|| insta::assert_snapshot!("errors", errors.join("\n")));
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    let deep = format!(
        "g ({}float{} X) => () {{}}",
        "seq(".repeat(100_000),
        ")".repeat(100_000)
    );
    assert!(matches!(parse(&deep), Err(TextError::Syntax { .. })));
    let deep = "a () => () { = If <b = ".repeat(100_000);
    assert!(matches!(parse(&deep), Err(TextError::Syntax { .. })));
}

#[test]
fn random_weights_stay_in_range_and_are_the_same_everywhere() {
    let text = "g () => () <float[1000] A = random(7), int4[1001] B = random(1), uint8[9] C = random(3, 4, 6)> {}";
    let model = parse(text).unwrap();
    let tensor = |n| {
        model
            .value(model.find_value(n).unwrap())
            .init
            .clone()
            .unwrap()
    };
    let a = tensor("A").to_f32().unwrap();
    assert!(a.iter().all(|x| (-1.0..=1.0).contains(x)));
    assert_eq!(a[0].to_bits(), (-0.220_340_5f32).to_bits());
    let b = super::literal::integers(&tensor("B"), &tensor("B").bytes().unwrap()).unwrap();
    assert!(b.iter().all(|x| (-8..8).contains(x)));
    assert!((-8..8).all(|x| b.contains(&x)));
    assert!(
        tensor("C")
            .to_i64()
            .unwrap()
            .iter()
            .all(|x| (4..=6).contains(x))
    );
}

#[test]
fn data_that_was_not_loaded_stays_a_reference() {
    let mut proto = parse("g () => () <float[2] W = {1, 2}> {}")
        .unwrap()
        .to_proto();
    let entry = |k: &str, v: &str| onnx_quant_proto::StringStringEntryProto {
        key: Some(k.to_owned()),
        value: Some(v.to_owned()),
    };
    let t = &mut proto.graph.as_mut().unwrap().initializer[0];
    t.raw_data = None;
    t.data_location = Some(1);
    t.external_data = vec![entry("location", "w.bin")];
    let wanted = proto.clone();
    let model = crate::Model::from_proto(proto).unwrap();
    let full = print(&model, Print::Full);
    assert_eq!(super::parse::model(&full).unwrap(), wanted);
    assert!(print(&model, Print::Summary).contains("float[2] W = <data not loaded>"));
    assert!(matches!(parse(&full), Err(TextError::Tensor { tensor, .. }) if tensor == "W"));
}
