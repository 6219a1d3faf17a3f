//! Reports as pages, as text and as JSON, written by the commands.

use onnx_quant::ir::{save, text};
use serde_json::Value;

use super::commands::{FRAGILE, fragile};
use super::sandbox::{NET, Sandbox};

const QUANTIZE: &str =
    "quantize net.onnx --calib calib.npz --eval eval.npz -o q.onnx --max-drop 50%";
const HOSTILE: &str = "</script><script>alert('a & b')</script>\u{1b}[2J";

fn page(dir: &Sandbox, name: &str) -> String {
    String::from_utf8(dir.read(name)).unwrap()
}

/// The text of a section of a page.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let begin = format!("<section id=\"{id}\">");
    let (_, rest) = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no section {id}"));
    rest.split_once("</section>").unwrap().0
}

#[test]
fn one_run_makes_the_same_report_in_three_forms() {
    let dir = Sandbox::with_net();
    for name in ["r.html", "r.txt", "r.json"] {
        dir.line(&format!("{QUANTIZE} --report {name}")).ends(0);
    }
    let (html, said) = (page(&dir, "r.html"), page(&dir, "r.txt"));
    let json: Value = serde_json::from_slice(&dir.read("r.json")).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>"));
    let drawn = json["histograms"].as_array().unwrap();
    let kind = |k: &str| drawn.iter().filter(|h| h["kind"] == k).count();
    assert_eq!(
        kind("activation"),
        json["activations"].as_array().unwrap().len()
    );
    assert_eq!(kind("weight"), json["weights"].as_array().unwrap().len());
    for h in drawn {
        let name = h["tensor"].as_str().unwrap();
        assert!(section(&html, "distributions").contains(name), "{name}");
        assert!(said.contains(name), "{name}");
        let counts = h["counts"].as_array().unwrap().iter();
        let sum: u64 = counts.map(|c| c.as_u64().unwrap()).sum();
        assert_eq!(sum, h["values"].as_u64().unwrap(), "{name}");
        let levels = h["levels"].as_u64().unwrap();
        assert_eq!(
            levels,
            if h["kind"] == "weight" { 255 } else { 256 },
            "{name}"
        );
    }
    let network = json["network"][0]["values"].as_array().unwrap();
    assert_eq!(
        network.len(),
        json["check"]["layers"].as_array().unwrap().len()
    );
    for value in network {
        let name = value[0].as_str().unwrap();
        assert!(
            section(&html, "network").contains(name) && said.contains(name),
            "{name}"
        );
    }
    // Input, seven operators, output; every operator with the form it runs in.
    let nodes = json["graph"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 9);
    let conv = nodes.iter().find(|n| n["name"] == "conv_1").unwrap();
    assert_eq!(conv["format"], "int8:channel/uint8");
    assert_eq!(section(&html, "picture").matches("<rect").count(), 9);
    assert_eq!(json["graph"]["edges"].as_array().unwrap().len(), 8);
    for n in json["nodes"].as_array().unwrap() {
        if n["precision"] != "integer" {
            let reason = n["reason"].as_str().unwrap();
            assert!(section(&html, "float").contains(n["node"].as_str().unwrap()));
            assert!(said.contains(reason), "{reason}");
        }
    }
    assert!(section(&html, "summary").contains("The budget holds"));
    assert!(said.contains("budget holds"));
}

#[test]
fn pages_are_the_same_bytes_for_any_number_of_threads() {
    let dir = Sandbox::with_net();
    for threads in ["1", "2"] {
        dir.line(&format!(
            "{QUANTIZE} --threads {threads} --report {threads}.html"
        ))
        .ends(0);
    }
    assert_eq!(page(&dir, "1.html"), page(&dir, "2.html"));
}

#[test]
fn hostile_names_stay_text() {
    let dir = Sandbox::with_net();
    let mut model = text::parse(NET).unwrap();
    let node = model.find_node("conv_1").unwrap();
    model.node_mut(node).proto.name = Some(HOSTILE.to_owned());
    let value = model.find_value("b").unwrap();
    model.value_mut(value).name = HOSTILE.to_owned();
    save::save(&model, &dir.path("net.onnx"), save::ExternalData::Auto).unwrap();
    for name in ["r.html", "r.txt"] {
        dir.line(&format!("{QUANTIZE} --report {name}")).ends(0);
    }
    let html = page(&dir, "r.html");
    assert_eq!(html.matches("<script").count(), 1);
    assert_eq!(html.matches("</script").count(), 1);
    assert!(html.contains("&lt;script&gt;alert('a &amp; b')"));
    assert!(!html.contains('\u{1b}'));
    assert!(!page(&dir, "r.txt").contains('\u{1b}'));
}

#[test]
fn a_report_needs_neither_data_nor_a_budget() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx -o q.onnx --report r.html")
        .ends(0);
    let html = page(&dir, "r.html");
    assert!(section(&html, "distributions").contains("255 levels"));
    assert!(section(&html, "float").contains("weight-only"));
    assert!(!html.contains("id=\"network\"") && !html.contains("The budget"));
}

#[test]
fn an_exceeded_budget_stands_in_the_report() {
    let dir = fragile();
    dir.line(&format!("{FRAGILE} --max-drop 1% --report r.html"))
        .ends(1);
    let html = page(&dir, "r.html");
    assert!(section(&html, "summary").contains("The budget is exceeded"));
    assert!(section(&html, "settings").contains("not written"));
}

#[test]
fn check_compares_in_all_three_forms() {
    let dir = Sandbox::with_net();
    dir.line(QUANTIZE).ends(0);
    let line = "check net.onnx q.onnx --eval eval.npz";
    let answer = dir
        .line(&format!("{line} --json --report c.json"))
        .ends(0)
        .json();
    let json: Value = serde_json::from_slice(&dir.read("c.json")).unwrap();
    assert_eq!(answer, json);
    for name in ["c.html", "c.txt"] {
        dir.line(&format!("{line} --report {name}")).ends(0);
    }
    let (html, said) = (page(&dir, "c.html"), page(&dir, "c.txt"));
    let layers = json["layers"].as_array().unwrap();
    assert!(layers.len() >= 3);
    for layer in layers {
        let name = layer["value"].as_str().unwrap();
        assert!(
            section(&html, "network").contains(name) && said.contains(name),
            "{name}"
        );
    }
    assert!(section(&html, "outputs").contains("<td>y</td>"));
    dir.line(&format!("{line} --report net.onnx"))
        .refuses(&["net.onnx", "is the input"]);
}
