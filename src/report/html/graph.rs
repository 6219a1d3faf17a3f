//! The picture of the graph: operators in layers, coloured by their formats.

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

use super::figures::{Picture, Vertex};
use super::layout::{Layout, Sizes, layout};
use super::palette::Palette;
use super::words::shortened;

/// Nodes that are drawn at most; stretches of equal format are drawn as one node before any is left out.
const MOST: usize = 4000;
/// Nodes from which stretches are drawn as one.
const MANY: usize = 1500;

const SIZES: Sizes = Sizes {
    height: 38.0,
    gap: 26.0,
    apart: 16.0,
    lane: 8.0,
};
/// Pixels around the picture.
const MARGIN: f64 = 12.0;

/// The picture, and what it leaves out.
pub(super) fn picture(graph: &Picture, palette: &Palette) -> (Markup, Vec<String>) {
    let mut left_out = graph.left_out.clone();
    let folded;
    let mut shown = graph;
    if graph.nodes.len() > MANY {
        folded = fold(graph);
        left_out.push(format!(
            "{} operators in {} boxes: neighbours in a row with the same format are one box",
            graph.nodes.len(),
            folded.nodes.len()
        ));
        shown = &folded;
    }
    let cut;
    if shown.nodes.len() > MOST {
        left_out.push(format!(
            "the last {} boxes are not drawn; the JSON report holds the whole graph",
            shown.nodes.len() - MOST
        ));
        cut = Picture {
            nodes: shown.nodes[..MOST].to_vec(),
            edges: shown
                .edges
                .iter()
                .copied()
                .filter(|&(a, b)| a < MOST && b < MOST)
                .collect(),
            left_out: Vec::new(),
        };
        shown = &cut;
    }
    let widths: Vec<f64> = shown.nodes.iter().map(width).collect();
    let made = layout(&widths, &shown.edges, SIZES);
    (svg(shown, &widths, &made, palette), left_out)
}

/// What stands in the two lines of a box.
fn lines(v: &Vertex) -> (String, String) {
    (shortened(&v.op, 20), end(&v.name, 24))
}

/// The end of a name, by which names of one network differ.
fn end(name: &str, limit: usize) -> String {
    let length = name.chars().count();
    if length <= limit {
        return name.to_owned();
    }
    let kept: String = name.chars().skip(length + 1 - limit).collect();
    format!("…{kept}")
}

fn width(v: &Vertex) -> f64 {
    let (op, name) = lines(v);
    let wide = (op.chars().count() as f64 * 7.6).max(name.chars().count() as f64 * 5.8);
    (wide + 24.0).clamp(64.0, 170.0)
}

/// A coordinate with one digit, without needless zeros.
fn coordinate(x: f64) -> String {
    let x = (x * 10.0).round() / 10.0;
    format!("{}", x + 0.0)
}

fn svg(graph: &Picture, widths: &[f64], made: &Layout, palette: &Palette) -> Markup {
    let c = |x: f64| coordinate(x + MARGIN);
    let curve = |long: bool| {
        let mut d = String::new();
        let edges = made.edges.iter().zip(&made.long);
        for (points, _) in edges.filter(|(_, l)| **l == long) {
            for (i, &(x, y)) in points.iter().enumerate() {
                let _ = match (i, i % 2) {
                    (0, _) => write!(d, "M{} {}", c(x), c(y)),
                    (_, 0) => write!(d, "L{} {}", c(x), c(y)),
                    _ => {
                        let (from, middle) = (points[i - 1], (points[i - 1].1 + y) / 2.0);
                        let (a, m) = (c(from.0), c(middle));
                        write!(d, "C{a} {m} {} {m} {} {}", c(x), c(x), c(y))
                    }
                };
            }
        }
        d
    };
    let (near, far) = (curve(false), curve(true));
    let (w, h) = (made.size.0 + 2.0 * MARGIN, made.size.1 + 2.0 * MARGIN);
    let view = format!("0 0 {} {}", coordinate(w), coordinate(h));
    html! {
        svg #graph xmlns="http://www.w3.org/2000/svg" role="img" viewBox=(view)
            width=(coordinate(w)) height=(coordinate(h))
            aria-label=(format!("graph of {} nodes, coloured by format", graph.nodes.len())) {
            @if !far.is_empty() { path .edges.long d=(PreEscaped(far)) {} }
            path .edges d=(PreEscaped(near)) {}
            @for ((v, &(x, y)), width) in graph.nodes.iter().zip(&made.nodes).zip(widths) {
                @let (op, name) = lines(v);
                @let (left, top) = (x - width / 2.0, y - SIZES.height / 2.0);
                g class=(format!("k{}", palette.number(&v.format))) {
                    title { (title(v)) }
                    rect x=(c(left)) y=(c(top)) width=(coordinate(*width)) height="38" rx="7" {}
                    text x=(c(x)) y=(c(y - 3.0)) { (op) }
                    @if !name.is_empty() {
                        text .s x=(c(x)) y=(c(y + 11.0)) { (name) }
                    }
                }
            }
        }
    }
}

fn title(v: &Vertex) -> String {
    let mut text = format!("{} {}", v.op, v.name);
    for part in [&v.format, &v.reason] {
        if !part.is_empty() {
            let _ = write!(text, "\n{part}");
        }
    }
    text
}

/// Draws as one box what follows each other without branches in the same format.
fn fold(graph: &Picture) -> Picture {
    let n = graph.nodes.len();
    let (mut reads, mut readers) = (vec![0usize; n], vec![0usize; n]);
    let mut before: Vec<Option<usize>> = vec![None; n];
    for &(from, to) in &graph.edges {
        reads[to] += 1;
        readers[from] += 1;
        before[to] = Some(from);
    }
    let ends = |v: &Vertex| v.op == "input" || v.op == "output";
    let mut boxes: Vec<usize> = Vec::with_capacity(n);
    let mut nodes: Vec<Vertex> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    for (i, v) in graph.nodes.iter().enumerate() {
        let joined = before[i].filter(|&b| {
            let w = &graph.nodes[b];
            b < i
                && reads[i] == 1
                && readers[b] == 1
                && w.format == v.format
                && !ends(v)
                && !ends(w)
        });
        match joined {
            Some(b) => {
                let own = boxes[b];
                boxes.push(own);
                counts[own] += 1;
                let _ = write!(nodes[own].reason, "\n{} {}", v.op, v.name);
                nodes[own].op = format!("{} operators", counts[own]);
            }
            None => {
                boxes.push(nodes.len());
                nodes.push(v.clone());
                counts.push(1);
            }
        }
    }
    let mut edges: Vec<(usize, usize)> = graph
        .edges
        .iter()
        .map(|&(a, b)| (boxes[a], boxes[b]))
        .filter(|(a, b)| a != b)
        .collect();
    edges.sort_unstable();
    edges.dedup();
    Picture {
        nodes,
        edges,
        left_out: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::*;

    fn chain(n: usize) -> Picture {
        let node = |i: usize| Vertex {
            name: format!("n{i}"),
            op: "Relu".to_owned(),
            format: if i.is_multiple_of(10) {
                "float"
            } else {
                "follows"
            }
            .to_owned(),
            reason: String::new(),
        };
        Picture {
            nodes: (0..n).map(node).collect(),
            edges: (1..n).map(|i| (i - 1, i)).collect(),
            left_out: Vec::new(),
        }
    }

    #[test]
    fn large_graphs_are_folded_and_the_fold_is_told() {
        let palette = Palette::of(&Figures::default());
        let (small, none) = picture(&chain(30), &palette);
        assert!(none.is_empty());
        assert_eq!(small.into_string().matches("<rect").count(), 30);
        let (large, told) = picture(&chain(5000), &palette);
        assert_eq!(large.into_string().matches("<rect").count(), 1000);
        assert!(told[0].contains("5000 operators in 1000 boxes"), "{told:?}");
    }

    #[test]
    fn graphs_beyond_all_bounds_are_cut_and_the_cut_is_told() {
        let mut graph = chain(6000);
        for (i, n) in graph.nodes.iter_mut().enumerate() {
            n.format = ["float", "follows"][i % 2].to_owned();
        }
        let (drawn, told) = picture(&graph, &Palette::of(&Figures::default()));
        assert_eq!(drawn.into_string().matches("<rect").count(), MOST);
        assert!(told[1].contains("the last 2000 boxes"), "{told:?}");
    }
}
