//! A document as one HTML page: no network, no fonts, legible on a phone, on paper, in light and dark.

mod canvas;
mod charts;
mod graph;
mod layout;
mod palette;
#[cfg(test)]
mod tests;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Document, Table};
use super::figures::{Front, Line, Picture, Sensitivities, TensorHistogram};
use super::{figures, text, words};
use crate::error::Error;
use canvas::DrawError;
use palette::Palette;
use words::{bytes, decibels, is_number, loss, number, percent};

/// Bars that are drawn; the table holds more.
const BARS: usize = 40;
/// Rows of a table that are written.
const ROWS: usize = 1000;
/// Distributions that are seen at once, and those that are drawn at all.
const OPEN: usize = 6;
const DRAWN: usize = 300;
/// What to do about what is left out.
const ELSEWHERE: &str = "the JSON report holds all of it";

/// The page of a document. The same document gives the same bytes; control characters of names are left out.
///
/// # Errors
/// A chart that cannot be drawn.
pub fn page(d: &Document) -> Result<String, Error> {
    let made = body(d).map_err(|e| Error::usage(format!("the report could not be drawn: {e}")))?;
    let text = made.into_string();
    Ok(text.replace(|c: char| c.is_control() && c != '\n', ""))
}

/// A section of the page.
struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

fn body(d: &Document) -> Result<Markup, DrawError> {
    let sections = sections(d)?;
    let style = include_str!("html/style.css");
    let script = include_str!("html/script.js");
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(policy);
                title { (d.title) ": " (d.subject) }
                style { (PreEscaped(style)) }
            }
            body {
                header {
                    p.kind { (d.title) }
                    h1 { (d.subject) }
                    p.muted { (d.tool) }
                }
                @if sections.len() > 1 {
                    nav aria-label="sections" { div {
                        @for s in &sections { a href={"#" (s.id)} { (s.title) } }
                    } }
                }
                main {
                    @for s in &sections {
                        section id=(s.id) {
                            h2 { (s.title) }
                            (s.body)
                        }
                    }
                }
                footer { "Made by " (d.tool) ". This file needs no network." }
                @if d.figures.graph.is_some() { script { (PreEscaped(script)) } }
            }
        }
    })
}

fn sections(d: &Document) -> Result<Vec<Section>, DrawError> {
    let f = &d.figures;
    let palette = Palette::of(f);
    let mut all = vec![section("summary", "Summary", summary(d))];
    if let Some(front) = &f.front {
        all.push(section("front", "Size against loss", front_body(front)?));
    }
    if let Some(s) = &f.sensitivity {
        let body = sensitivity_body(s, &palette)?;
        all.push(section("sensitivity", "Sensitivity", body));
    }
    if !d.neighbours.rows.is_empty() {
        let body = html! {
            p.muted { "Two layers in a row quantized at once, those first that lose more together than by themselves." }
            (table(&d.neighbours))
        };
        all.push(section("neighbours", "Neighbours", body));
    }
    if f.network.iter().any(|l| !l.values.is_empty()) {
        let body = network_body(&f.network)?;
        all.push(section("network", "Signal to noise", body));
    }
    if !d.outputs.rows.is_empty() {
        all.push(section("outputs", "Outputs", table(&d.outputs)));
    }
    if !f.histograms.is_empty() {
        let body = histograms_body(&f.histograms)?;
        all.push(section("distributions", "Distributions", body));
    }
    if let Some(g) = &f.graph {
        all.push(section("picture", "Graph", graph_body(g, &palette)));
    }
    if !d.float.rows.is_empty() {
        let body = html! {
            p.muted { "Every operator that does not compute in integers by itself, with the reason." }
            (table(&d.float))
        };
        all.push(section("float", "Left in float", body));
    }
    if !d.settings.is_empty() {
        all.push(section("settings", "Settings", settings(d)));
    }
    Ok(all)
}

fn section(id: &'static str, title: &'static str, body: Markup) -> Section {
    Section { id, title, body }
}

fn summary(d: &Document) -> Markup {
    html! {
        @if let Some((held, text)) = &d.verdict {
            p class=(if *held { "verdict" } else { "verdict bad" }) role="status" {
                b { @if *held { "✓ The budget holds" } @else { "✗ The budget is exceeded" } }
                span { (text) }
            }
        }
        dl.facts {
            @for f in &d.facts {
                div {
                    dt { (f.name) }
                    dd.value { (f.value) }
                    @if !f.detail.is_empty() { dd.detail { (f.detail) } }
                }
            }
        }
        @if !d.notes.is_empty() {
            h3 { "Notes" }
            ul.muted { @for n in &d.notes { li { (n) } } }
        }
    }
}

fn settings(d: &Document) -> Markup {
    html! {
        div.scroll { table { tbody {
            @for (name, value) in &d.settings {
                tr { th scope="row" { (name) } td { (value) } }
            }
        } } }
    }
}

/// A table; numbers stand to the right.
fn table(t: &Table) -> Markup {
    let numeric: Vec<bool> = (0..t.head.len())
        .map(|c| t.rows.iter().filter_map(|r| r.get(c)).all(|x| is_number(x)))
        .collect();
    let right = |c: usize| numeric.get(c).copied().unwrap_or(false).then_some("n");
    html! {
        div.scroll { table {
            thead { tr { @for (c, h) in t.head.iter().enumerate() { th scope="col" class=[right(c)] { (h) } } } }
            tbody {
                @for row in t.rows.iter().take(ROWS) {
                    tr { @for (c, cell) in row.iter().enumerate() { td class=[right(c)] { (cell) } } }
                }
            }
        } }
        (rest(t.rows.len(), ROWS, "rows"))
    }
}

/// Says how many were left out.
fn rest(all: usize, shown: usize, what: &str) -> Markup {
    html! {
        @if all > shown { p.muted { (all - shown) " more " (what) " are left out here; " (ELSEWHERE) "." } }
    }
}

fn legend(entries: &[(usize, String)]) -> Markup {
    html! {
        ul.legend {
            @for (n, name) in entries {
                li { i class={"k" (n)} {} (name) }
            }
        }
    }
}

fn front_body(f: &Front) -> Result<Markup, DrawError> {
    let rows = f.points.iter().map(|p| {
        let run = p.run.as_ref();
        let or_empty = |x: Option<String>| x.unwrap_or_default();
        vec![
            bytes(p.bytes),
            loss(p.loss),
            or_empty(run.map(|r| bytes(r.file_bytes))),
            or_empty(run.map(|r| number(r.metric))),
            or_empty(run.map(|r| percent(r.drop))),
            or_empty(run.map(|r| format!("{} … {}", percent(r.interval.0), percent(r.interval.1)))),
        ]
    });
    let metric = f.metric.as_deref().unwrap_or("metric");
    let head = ["layers", "loss", "file", metric, "drop", "interval"];
    let measured = charts::runs(f)?;
    Ok(html! {
        p { "Each point is a choice of formats for all layers that no other choice beats in both size and loss. The large point is the one that was chosen." }
        figure {
            figcaption { "↑ sum of the losses of single layers: " (f.loss) }
            (charts::front(f)?)
            p.axis { "bytes stored for the layers →" }
        }
        @if let Some(chart) = measured {
            h3 { "Whole models that were run" }
            figure {
                figcaption { "↑ what " (metric) " loses, with the interval of the confidence" }
                (chart)
                p.axis { "bytes of the file →" }
            }
        }
        details {
            summary { "All " (f.points.len()) " points as a table" }
            div.scroll { table {
                thead { tr { @for h in head { th.n scope="col" { (h) } } } }
                tbody {
                    @for (p, row) in f.points.iter().zip(rows).take(ROWS) {
                        tr class=[p.chosen.then_some("chosen")] { @for cell in row { td.n { (cell) } } }
                    }
                }
            } }
            (rest(f.points.len(), ROWS, "points"))
        }
    })
}

fn sensitivity_body(s: &Sensitivities, palette: &Palette) -> Result<Markup, DrawError> {
    let shown = &s.layers[..s.layers.len().min(BARS)];
    let chosen = s.layers.iter().filter_map(|l| l.chosen.as_deref());
    let colours = palette.legend(chosen);
    let label = format!("losses of {} layers, the most sensitive first", shown.len());
    let table = Table {
        head: vec![
            "layer",
            "operator",
            "loss",
            "chosen",
            "loss in it",
            "all formats",
        ],
        rows: s
            .layers
            .iter()
            .map(|l| {
                let all = l
                    .formats
                    .iter()
                    .map(|(f, x)| format!("{} {}", words::named(f), loss(*x)));
                vec![
                    l.layer.clone(),
                    l.op.clone(),
                    loss(l.loss),
                    l.chosen.as_deref().map_or("", words::named).to_owned(),
                    l.chosen_loss.map_or(String::new(), loss),
                    all.collect::<Vec<_>>().join(" · "),
                ]
            })
            .collect(),
    };
    Ok(html! {
        p { "What the model's output loses when this layer alone is quantized to " code { (s.format) }
            ", on " (s.samples) " samples: " (s.loss) ". Logarithmic." }
        @if !colours.is_empty() {
            ul.legend {
                @for (n, name) in &colours { li { i class={"k" (n)} {} (name) } }
                li { i.mark {} "loss in the chosen format" }
            }
        }
        figure { (charts::bars(shown, palette, &label)?) }
        @if s.layers.len() > BARS {
            p.muted { "The " (BARS) " most sensitive of " (s.layers.len()) " layers are drawn; the table holds the others." }
        }
        details { summary { "All " (s.layers.len()) " layers as a table" } (self::table(&table)) }
        @if !s.unmeasured.is_empty() {
            details {
                summary { "Layers that were not measured: " (s.unmeasured.len()) }
                (self::table(&Table {
                    head: vec!["layer", "reason"],
                    rows: s.unmeasured.iter().map(|(l, r)| vec![l.clone(), r.clone()]).collect(),
                }))
            }
        }
    })
}

fn network_body(lines: &[Line]) -> Result<Markup, DrawError> {
    let names = |l: &Line| match l.samples {
        Some(n) => format!("{}, {n} samples", l.name),
        None => l.name.clone(),
    };
    let one = lines.len() == 1;
    let rows = lines.iter().flat_map(|l| {
        l.values.iter().enumerate().map(move |(i, (name, db))| {
            let mut row = vec![(i + 1).to_string(), name.clone(), decibels(*db)];
            if !one {
                row.push(l.name.clone());
            }
            row
        })
    });
    let mut head = vec!["place", "value", "dB"];
    if !one {
        head.push("formats");
    }
    let table = Table {
        head,
        rows: rows.collect(),
    };
    let mut worst: Vec<(&str, f64)> = lines[0]
        .values
        .iter()
        .filter_map(|(n, db)| db.map(|d| (n.as_str(), d)))
        .collect();
    worst.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(html! {
        p { "From the input to the output: the power of the float model's values against that of the error, which adds up on its way; at 20 dB the error is a tenth of the value." }
        @if one {
            p.muted { (names(&lines[0])) }
        } @else {
            (legend(&lines.iter().enumerate().map(|(i, l)| (i % 8 + 1, names(l))).collect::<Vec<_>>()))
        }
        figure {
            figcaption { "↑ dB" }
            (charts::network(lines)?)
            p.axis { "place in the network, from input to output →" }
        }
        @if !worst.is_empty() {
            p { "Lowest: "
                @for (i, (name, db)) in worst.iter().take(3).enumerate() {
                    @if i > 0 { ", " }
                    code { (name) } " " (decibels(Some(*db))) " dB"
                }
            }
        }
        details { summary { "All values as a table" } (self::table(&table)) }
    })
}

fn histograms_body(all: &[TensorHistogram]) -> Result<Markup, DrawError> {
    let grid = |some: &[TensorHistogram]| -> Result<Markup, DrawError> {
        let charts = some.iter().map(|h| charts::histogram(h).map(|c| (h, c)));
        let charts = charts.collect::<Result<Vec<_>, _>>()?;
        Ok(html! {
            div.tensors {
                @for (h, chart) in charts {
                    figure {
                        figcaption { b { (h.tensor) } (caption(h)) }
                        (chart)
                    }
                }
            }
        })
    };
    let drawn = &all[..all.len().min(DRAWN)];
    let (open, folded) = drawn.split_at(drawn.len().min(OPEN));
    Ok(html! {
        p { "How often each value occurs, counts on a logarithmic scale. Dashed lines are the range that the codes reach: what lies outside is clipped. Below, a mark for each level, or a band where levels lie too close to be drawn." }
        (grid(open)?)
        @if !folded.is_empty() {
            details { summary { (folded.len()) " more tensors" } (grid(folded)?) }
        }
        (rest(all.len(), DRAWN, "tensors"))
    })
}

/// What a distribution's picture does not say.
fn caption(h: &TensorHistogram) -> String {
    let mut parts = vec![format!("{} in {}", h.kind, h.format)];
    if let Some(n) = h.levels {
        parts.push(format!("{n} levels"));
    }
    if h.scales > 1 {
        parts.push(format!("{} scales, the widest is shown", h.scales));
    }
    if let Some(c) = h.clipped.filter(|c| *c > 0.0) {
        parts.push(match c {
            c if c < 5e-5 => "less than 0.01 % clipped".to_owned(),
            c => format!("{} clipped", percent(c)),
        });
    }
    parts.join(" · ")
}

fn graph_body(g: &Picture, palette: &Palette) -> Markup {
    let (picture, left_out) = graph::picture(g, palette);
    let colours = palette.legend(g.nodes.iter().map(|n| n.format.as_str()));
    html! {
        (legend(&colours))
        div #graph-tools hidden {
            button type="button" data-do="in" aria-label="zoom in" { "+" }
            button type="button" data-do="out" aria-label="zoom out" { "−" }
            button type="button" data-do="fit" { "All" }
            button type="button" data-do="full" { "1:1" }
            input type="search" placeholder="Find a node" aria-label="find a node";
        }
        div.frame tabindex="0" { (picture) }
        p.muted { "Weights are not drawn. Point at a node for its format and the reason; Ctrl and the wheel, or two fingers, zoom." }
        @for l in &left_out { p.muted { (l) "." } }
    }
}
