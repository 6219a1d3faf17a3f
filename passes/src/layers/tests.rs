//! Tests of the rules for single layers.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

const MODEL: &str = "<ir_version: 10, opset_import: [\"\" : 21]>
main (float[1,2] x) => (float[1,2] y)
<float[2,2] a = {1, 2, 3, 4}, float[2,2] b = {1, 2, 3, 4}>
{
  [block_one] h = MatMul (x, a)
  [block_two] y = MatMul (h, b)
}
";

fn model() -> Model {
    onnx_quant_ir::text::parse(MODEL).unwrap()
}

fn rule(pattern: &str) -> LayerRule {
    LayerRule {
        pattern: pattern.to_owned(),
        ..LayerRule::default()
    }
}

fn choices(rules: Vec<LayerRule>) -> Result<Vec<LayerChoice>, String> {
    let settings = QuantSettings {
        layers: rules,
        ..QuantSettings::default()
    };
    let model = model();
    let choices = LayerChoices::new(&settings, &model)?;
    let nodes = model.all_nodes().into_iter();
    Ok(nodes.map(|n| choices.of(n).clone()).collect())
}

#[test]
fn the_last_rule_wins_setting_by_setting() {
    let int16: Choice = "int16".parse().unwrap();
    let found = choices(vec![
        LayerRule {
            weights: Some(int16),
            activations: Some(Choice::Float),
            ..rule("MatMul")
        },
        LayerRule {
            activations: Some(int16),
            force: true,
            ..rule("block_t*")
        },
    ]);
    let found = found.unwrap();
    assert_eq!(found[0].weights, int16.format());
    assert_eq!(found[0].activations, None);
    assert!(
        found[0]
            .activations_reason
            .as_ref()
            .unwrap()
            .contains("`MatMul`")
    );
    assert_eq!(found[1].weights, int16.format());
    assert_eq!(found[1].activations, int16.format());
    assert_eq!(found[1].activations_reason, None);
    assert!(found[1].force && !found[0].force);
}

#[test]
fn a_rule_that_names_nothing_is_an_error() {
    let e = choices(vec![rule("block_twoo")]).unwrap_err();
    assert!(e.contains("`block_twoo` names no node"), "{e}");
    assert!(e.contains("did you mean `block_two`"), "{e}");
    let origin = Some("plan.toml:12".to_owned());
    let e = choices(vec![LayerRule {
        origin,
        ..rule("[")
    }]);
    let e = e.unwrap_err();
    assert!(
        e.starts_with("plan.toml:12") && e.contains("not a valid pattern"),
        "{e}"
    );
}

#[test]
fn ranges_must_be_ranges_of_values_that_exist() {
    let e = choices(vec![LayerRule {
        input_range: Some((2.0, 1.0)),
        ..rule("block_one")
    }]);
    assert!(e.unwrap_err().contains("the range 2 to 1"));
    let settings = QuantSettings {
        ranges: BTreeMap::from([("nowhere".to_owned(), Pinned::Range(0.0, 1.0))]),
        ..QuantSettings::default()
    };
    let e = LayerChoices::new(&settings, &model()).unwrap_err();
    assert!(e.contains("`nowhere`"), "{e}");
}

#[test]
fn choices_are_read_as_they_are_written() {
    for text in ["none", "int8", "uint8:tensor"] {
        assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
    }
    assert_eq!("fp32".parse::<Choice>(), Ok(Choice::Float));
    assert!("int9000".parse::<Choice>().is_err());
}
