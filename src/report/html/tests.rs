//! The page: its form, what it does with hostile names, and that it stays small.

use super::super::document::{Document, Fact, Table};
use super::super::figures::{
    Figures, Front, LayerLoss, Line, Picture, Point, Run, Sensitivities, TensorHistogram, Vertex,
};
use super::super::text;
use super::page;

/// Elements without an end.
const VOID: [&str; 2] = ["meta", "input"];
const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'&<!--]]>";

fn front() -> Front {
    let point = |i: u64| Point {
        bytes: 1000 + 100 * i,
        loss: if i == 4 { 0.0 } else { 0.1f64.powi(i as i32) },
        chosen: i == 2,
        run: i.is_multiple_of(2).then_some(Run {
            file_bytes: 3000 + 100 * i,
            metric: 0.9,
            drop: 0.02 / (i + 1) as f64,
            interval: (0.0, 0.03),
        }),
    };
    Front {
        loss: "KL".to_owned(),
        points: (0..5).map(point).collect(),
        metric: Some("top-1".to_owned()),
        max_drop: Some(0.01),
    }
}

fn layer(name: &str, loss: f64, chosen: &str) -> LayerLoss {
    LayerLoss {
        layer: name.to_owned(),
        op: "Conv".to_owned(),
        loss,
        chosen: Some(chosen.to_owned()),
        chosen_loss: Some(loss / 10.0),
        formats: vec![("int4:block32/uint8".to_owned(), loss)],
    }
}

fn histogram(name: &str, levels: u64) -> TensorHistogram {
    TensorHistogram {
        tensor: name.to_owned(),
        kind: "activation",
        format: "uint8".to_owned(),
        values: 70,
        edges: (-1.0, 3.0),
        counts: vec![10, 50, 9, 1],
        scales: 1,
        clip: Some((-1.0, 2.0)),
        levels: Some(levels),
        clipped: Some(0.01),
    }
}

fn vertex(op: &str, name: &str, format: &str) -> Vertex {
    Vertex {
        name: name.to_owned(),
        op: op.to_owned(),
        format: format.to_owned(),
        reason: String::new(),
    }
}

/// A report with everything, whose names are what is given.
fn full(name: &str) -> Document {
    let figures = Figures {
        front: Some(front()),
        sensitivity: Some(Sensitivities {
            loss: "KL".to_owned(),
            samples: 64,
            format: "int4:block32/uint8".to_owned(),
            layers: vec![
                layer(name, 0.3, "int8:channel/uint8"),
                layer("b", 0.0, "fp32/none"),
            ],
            unmeasured: vec![(name.to_owned(), name.to_owned())],
        }),
        network: vec![Line {
            name: name.to_owned(),
            samples: Some(64),
            values: vec![
                (name.to_owned(), Some(30.0)),
                ("b".to_owned(), None),
                ("c".to_owned(), Some(-3.0)),
            ],
        }],
        histograms: vec![histogram(name, 16), histogram("b", 256)],
        graph: Some(Picture {
            nodes: vec![
                vertex("input", name, ""),
                vertex(name, name, "int8:channel/uint8"),
                vertex("Relu", "r", "follows"),
                vertex("Add", "a", "float"),
                vertex("output", "y", ""),
            ],
            edges: vec![(0, 1), (1, 2), (1, 3), (2, 3), (3, 4)],
            left_out: vec![name.to_owned()],
        }),
    };
    Document {
        title: "Test".to_owned(),
        subject: name.to_owned(),
        tool: "onnx-quant".to_owned(),
        verdict: Some((false, name.to_owned())),
        facts: vec![Fact::new(name, name, name)],
        settings: vec![(name.to_owned(), name.to_owned())],
        outputs: Table {
            head: vec!["output", "dB"],
            rows: vec![vec![name.to_owned(), "3.5".to_owned()]],
        },
        neighbours: Table::default(),
        figures,
        float: Table {
            head: vec!["node", "reason"],
            rows: vec![vec![name.to_owned(), name.to_owned()]],
        },
        notes: vec![name.to_owned()],
    }
}

fn made(d: &Document) -> String {
    page(d).unwrap_or_else(|e| panic!("{e}"))
}

/// The elements of a page in order, indented by depth; fails where tags do not match, an attribute has no quotes, or a
/// bare `&` or `<` stands in text.
fn outline(page: &str) -> String {
    let mut open: Vec<&str> = Vec::new();
    let mut out = String::new();
    let mut rest = page.trim_start_matches("<!DOCTYPE html>");
    while let Some(at) = rest.find('<') {
        let raw = matches!(open.last(), Some(&("script" | "style")));
        let (before, tag) = rest.split_at(at);
        let end = tag.find('>').unwrap_or_else(|| panic!("no end: {tag:.60}"));
        let inner = &tag[1..end];
        if raw && !inner.starts_with('/') {
            rest = &tag[1..];
            continue;
        }
        assert!(raw || entities(before), "bare character in {before:.80}");
        rest = &tag[end + 1..];
        if let Some(name) = inner.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "after {before:.60}");
            continue;
        }
        let inner_tag = inner.trim_end_matches('/');
        let name = inner_tag.split_whitespace().next().unwrap_or("");
        assert_eq!(inner_tag.matches('"').count() % 2, 0, "{inner}");
        assert!(entities(inner_tag), "{inner}");
        let attribute = |key: &str| {
            let (_, value) = inner_tag.split_once(&format!(" {key}=\""))?;
            value.split('"').next()
        };
        let id = attribute("id").map_or(String::new(), |i| format!("#{i}"));
        let class =
            attribute("class").map_or(String::new(), |c| format!(".{}", c.replace(' ', ".")));
        // What a picture consists of is checked, but not told.
        if !open.contains(&"svg") {
            out.push_str(&format!("{}{name}{id}{class}\n", "  ".repeat(open.len())));
        }
        if !inner.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    out
}

/// Whether every `&` begins an entity.
fn entities(text: &str) -> bool {
    text.split('&').skip(1).all(|t| {
        ["amp;", "lt;", "gt;", "quot;", "apos;"]
            .iter()
            .any(|e| t.starts_with(e))
    })
}

#[test]
fn the_page_has_its_sections_in_order() {
    let outline = outline(&made(&full("conv_1")));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/report"));
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!("page", outline));
}

#[test]
fn names_are_text_wherever_they_stand() {
    let page = made(&full(HOSTILE));
    outline(&page);
    assert!(!page.contains("<img"), "a name became an element");
    assert_eq!(page.matches("<script").count(), 1);
    assert_eq!(page.matches("</script").count(), 1);
    assert!(!page.contains("<!--"));
    // In the title, the head, the graph, the tables, and the labels of charts.
    assert!(page.matches("&lt;img src=x").count() >= 10);
}

#[test]
fn control_characters_do_not_reach_the_page() {
    let page = made(&full("a\u{0}b\u{1b}[31mc\n\u{202e}d"));
    outline(&page);
    assert!(page.contains("<section"));
    assert!(!page.contains('\u{0}') && !page.contains('\u{1b}'));
}

#[test]
fn the_same_document_gives_the_same_bytes_and_asks_for_nothing() {
    let page = made(&full("conv"));
    assert_eq!(page, made(&full("conv")));
    for word in ["http:", "https:", "src=", "@import", "url("] {
        let others = page.matches(word).count()
            - page.matches("http://www.w3.org/2000/svg").count() * usize::from(word == "http:");
        assert_eq!(others, 0, "{word}");
    }
}

#[test]
fn a_document_of_nothing_is_a_page() {
    let page = made(&Document::default());
    assert!(outline(&page).contains("section#summary"));
}

#[test]
fn the_page_of_a_large_model_is_small_and_says_what_it_leaves_out() {
    let mut d = full("x");
    let f = &mut d.figures;
    f.histograms = (0..2000)
        .map(|i| histogram(&format!("tensor{i}"), 256))
        .collect();
    f.graph = Some(Picture {
        nodes: (0..9000)
            .map(|i| vertex("Conv", &format!("node{i}"), ["float", "follows"][i % 2]))
            .collect(),
        edges: (1..9000).map(|i| (i - 1, i)).collect(),
        left_out: Vec::new(),
    });
    if let Some(s) = &mut f.sensitivity {
        s.layers = (0..3000)
            .map(|i| layer(&format!("layer{i}"), 1.0 / (i + 1) as f64, "float"))
            .collect();
    }
    d.float.rows = (0..9000)
        .map(|i| vec![format!("node{i}"), "why".to_owned()])
        .collect();
    let page = made(&d);
    outline(&page);
    assert!(page.len() < 6_000_000, "{} bytes", page.len());
    for told in [
        "1700 more tensors",
        "8000 more rows",
        "the last 5000 boxes",
        "most sensitive of 3000",
    ] {
        assert!(page.contains(told), "{told}");
    }
}

#[test]
fn the_text_has_every_section_too() {
    let said = text::document(&full("conv_1"));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/report"));
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!("text", said));
}
