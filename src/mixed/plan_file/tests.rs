//! Tests of the plan file: what is written is read as the same settings, and errors name their line.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn read(text: &str) -> Result<PlanFile, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    std::fs::write(&path, text).unwrap();
    PlanFile::read(&path).map_err(|e| e.to_string())
}

fn settings(body: &str) -> Result<QuantSettings, String> {
    let text = format!("version = 1\n[model]\ndigest = \"sha256:0\"\n{body}");
    read(&text)?.settings().map_err(|e| e.to_string())
}

#[test]
fn layers_become_rules_and_scales_are_pinned() {
    let s = settings(
        "[[layer]]\nname = \"fc\"\nweights = \"int8:channel\"\nactivations = \"uint8\"\n\
         [[activation]]\nvalue = \"x\"\nformat = \"uint8\"\nscale = 0.5\nzero_point = 3\n\
         [[activation]]\nvalue = \"y\"\nrange = [-1.0, 2]\n",
    );
    let s = s.unwrap();
    assert_eq!((s.weights, s.activations), (None, None));
    let rule = &s.layers[0];
    assert_eq!(rule.pattern, "fc");
    assert!(
        rule.force && rule.origin.as_ref().unwrap().ends_with("plan.toml:5"),
        "{rule:?}"
    );
    assert_eq!(s.ranges["y"], Pinned::Range(-1.0, 2.0));
    let Pinned::Params(p) = s.ranges["x"] else {
        unreachable!()
    };
    assert_eq!((p.scale, p.zero_point, p.qmin, p.qmax), (0.5, 3, 0, 255));
}

#[test]
fn errors_name_their_line() {
    for (body, line, part) in [
        ("[[layer]]\nname = \"a\"\nweights = \"int88\"\n", 6, "int88"),
        ("[[layer]]\nweights = \"int8\"\n", 4, "name"),
        ("[[layer]]\nname = \"a\"\nweight = \"int8\"\n", 6, "weight"),
        (
            "[[activation]]\nvalue = \"a\"\nrange = [1.0, -1.0]\n",
            6,
            "smaller first",
        ),
        ("[[activation]]\nvalue = \"a\"\nscale = 1.0\n", 6, "format"),
        (
            "[[activation]]\nvalue = \"a\"\nformat = \"uint8\"\nscale = -1.0\n",
            7,
            "above zero",
        ),
        (
            "[[activation]]\nvalue = \"a\"\nformat = \"uint8\"\nscale = 1.0\nzero_point = 256\n",
            5,
            "0 to 255",
        ),
        ("[settings]\nweight_scheme = \"symetric\"\n", 5, "symmetric"),
    ] {
        let e = settings(body).unwrap_err();
        assert!(
            e.contains(&format!("plan.toml:{line}: ")) && e.contains(part),
            "{body}: {e}"
        );
    }
    let e = read("version = 2\n[model]\ndigest = \"\"\n").unwrap_err();
    assert!(
        e.contains("plan.toml:1: ") && e.contains("version 2"),
        "{e}"
    );
}

#[test]
fn scales_survive_the_way_through_text() {
    for bits in [0x3c80_8081u32, 1, 0x7f7f_ffff, 0x0080_0001, 0x3eaa_aaab] {
        let x = f32::from_bits(bits);
        assert_eq!(number(x).parse::<f64>().unwrap() as f32, x);
    }
}
