//! A document as text for a terminal: every section of the page, with bars of characters for its charts.

use std::fmt::Write as _;

use super::document::Document;
use super::figures::{Front, Line, Picture, Sensitivities, TensorHistogram};
use super::words::named;
use super::words::{bytes, decibels, loss, number, percent, short, shortened, table};

/// Characters of the longest bar.
const BAR: usize = 24;
/// Heights of a column.
const STEPS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The sections that tell most, cut to a few lines each.
    Short,
    /// All of it.
    Full,
}

impl Detail {
    fn limit(self, few: usize) -> usize {
        match self {
            Self::Short => few,
            Self::Full => usize::MAX,
        }
    }

    /// What stands between sections.
    fn gap(self) -> &'static str {
        match self {
            Self::Short => "",
            Self::Full => "\n",
        }
    }
}

/// The whole document; control characters of names are left out.
pub fn document(d: &Document) -> String {
    let mut out = format!("{}: {}\n{}\n", d.title, d.subject, d.tool);
    section(&mut out, "Summary");
    let facts = d.facts.iter();
    let rows: Vec<Vec<String>> = facts
        .map(|f| vec![f.name.clone(), f.value.clone(), f.detail.clone()])
        .collect();
    out.push_str(&plain(&rows));
    if let Some((held, text)) = &d.verdict {
        let word = if *held { "holds" } else { "EXCEEDED" };
        let _ = writeln!(out, "  budget {word}: {text}");
    }
    for note in &d.notes {
        let _ = writeln!(out, "  note: {note}");
    }
    if !d.outputs.rows.is_empty() {
        section(&mut out, "Outputs");
        let mut rows = vec![d.outputs.head.iter().map(|h| (*h).to_owned()).collect()];
        rows.extend(d.outputs.rows.iter().cloned());
        out.push_str(&table(&rows));
    }
    out.push_str(&figures(d, Detail::Full));
    if !d.neighbours.rows.is_empty() {
        section(&mut out, "Neighbours quantized together");
        let mut rows = vec![d.neighbours.head.iter().map(|h| (*h).to_owned()).collect()];
        rows.extend(d.neighbours.rows.iter().cloned());
        out.push_str(&table(&rows));
    }
    if !d.float.rows.is_empty() {
        section(&mut out, "Left in float");
        let mut rows = vec![d.float.head.iter().map(|h| (*h).to_owned()).collect()];
        rows.extend(d.float.rows.iter().cloned());
        out.push_str(&table(&rows));
    }
    if !d.settings.is_empty() {
        section(&mut out, "Settings");
        let rows = d.settings.iter().map(|(k, v)| vec![k.clone(), v.clone()]);
        out.push_str(&plain(&rows.collect::<Vec<_>>()));
    }
    out.replace(|c: char| c.is_control() && c != '\n', "")
}

/// The charts of a document.
pub fn figures(d: &Document, detail: Detail) -> String {
    let mut out = String::new();
    let f = &d.figures;
    if let Some(front) = &f.front {
        front_text(&mut out, front, detail);
    }
    if let Some(s) = &f.sensitivity {
        sensitivity_text(&mut out, s, detail);
    }
    if detail == Detail::Short {
        return out;
    }
    for line in &f.network {
        network_text(&mut out, line);
    }
    histograms_text(&mut out, &f.histograms);
    if let Some(g) = &f.graph {
        graph_text(&mut out, g);
    }
    out
}

fn section(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}");
}

/// Rows without a head.
fn plain(rows: &[Vec<String>]) -> String {
    let mut with_head = vec![Vec::new()];
    with_head.extend(rows.iter().cloned());
    let text = table(&with_head);
    text.split_once('\n')
        .map_or("", |(_, rest)| rest)
        .to_owned()
}

/// A bar whose length goes with the logarithm of `x` between the ends.
fn log_bar(x: f64, (low, high): (f64, f64)) -> String {
    let at = |x: f64| x.max(low).ln();
    let share = (at(x) - at(low)) / (at(high) - at(low)).max(1e-12);
    let length = 1.0 + share.clamp(0.0, 1.0) * (BAR - 1) as f64;
    "█".repeat(length.round() as usize)
}

/// The ends of what is above zero; both 1 where nothing is.
pub(crate) fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let above = values.filter(|x| *x > 0.0 && x.is_finite());
    let (low, high) = above.fold((f64::INFINITY, 0.0), |(l, h): (f64, f64), x| {
        (l.min(x), h.max(x))
    });
    if low <= high { (low, high) } else { (1.0, 1.0) }
}

fn front_text(out: &mut String, front: &Front, detail: Detail) {
    let limit = detail.limit(9);
    out.push_str(detail.gap());
    // A stretch around the chosen point.
    let chosen = front.points.iter().position(|p| p.chosen);
    let shown = front.points.len().min(limit);
    let first = chosen.unwrap_or(0).saturating_sub(shown / 2);
    let first = first.min(front.points.len() - shown);
    let _ = writeln!(
        out,
        "size against loss ({shown} of {} points; {}):",
        front.points.len(),
        front.loss
    );
    let metric = front.metric.as_deref().unwrap_or("metric");
    let head = ["", "layers", "loss", "file", metric, "drop", "interval"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for p in &front.points[first..first + shown] {
        let mut row = vec![
            if p.chosen { "*" } else { "" }.to_owned(),
            bytes(p.bytes),
            loss(p.loss),
        ];
        if let Some(r) = &p.run {
            row.push(bytes(r.file_bytes));
            row.push(format!("{:.4}", r.metric));
            row.push(percent(r.drop));
            row.push(format!(
                "{} … {}",
                percent(r.interval.0),
                percent(r.interval.1)
            ));
        }
        rows.push(row);
    }
    out.push_str(&table(&rows));
}

fn sensitivity_text(out: &mut String, s: &Sensitivities, detail: Detail) {
    let shown = s.layers.len().min(detail.limit(8));
    out.push_str(detail.gap());
    let _ = writeln!(
        out,
        "sensitivity, worst first ({shown} of {} layers, {} samples; {}, in {}):",
        s.layers.len(),
        s.samples,
        s.loss,
        s.format
    );
    let range = ends(s.layers.iter().map(|l| l.loss));
    let head = ["layer", "loss", "", "chosen", "its loss"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(s.layers.iter().take(shown).map(|l| {
        vec![
            short(&l.layer),
            loss(l.loss),
            log_bar(l.loss, range),
            l.chosen.as_deref().map_or("", named).to_owned(),
            l.chosen_loss.map_or(String::new(), loss),
        ]
    }));
    out.push_str(&table(&rows));
    if detail == Detail::Full {
        for (layer, reason) in &s.unmeasured {
            let _ = writeln!(out, "  not measured: {layer}: {reason}");
        }
    }
}

fn network_text(out: &mut String, line: &Line) {
    let samples = line
        .samples
        .map_or(String::new(), |n| format!(", {n} samples"));
    let _ = writeln!(
        out,
        "\nSignal to noise along the network ({}{samples})",
        line.name
    );
    let most = line.values.iter().filter_map(|v| v.1).fold(1.0, f64::max);
    let mut rows = vec![["value", "SQNR dB", ""].map(str::to_owned).to_vec()];
    for (value, db) in &line.values {
        let share = db.map_or(1.0, |d| (d / most).clamp(0.0, 1.0));
        let bar = "█".repeat((share * BAR as f64).round() as usize);
        rows.push(vec![short(value), decibels(*db), bar]);
    }
    out.push_str(&table(&rows));
}

fn histograms_text(out: &mut String, histograms: &[TensorHistogram]) {
    if histograms.is_empty() {
        return;
    }
    section(out, "Distributions (counts on a logarithmic scale)");
    let head = [
        "tensor",
        "format",
        "from",
        "distribution",
        "to",
        "clipped to",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for h in histograms {
        let clip = h.clip.map_or(String::new(), |(a, b)| {
            let levels = h.levels.map_or(String::new(), |n| format!(", {n} levels"));
            format!("{} … {}{levels}", number(a), number(b))
        });
        rows.push(vec![
            shortened(&h.tensor, 40),
            h.format.clone(),
            number(h.edges.0),
            columns(&h.counts),
            number(h.edges.1),
            clip,
        ]);
    }
    out.push_str(&table(&rows));
}

/// Counts as a row of columns, several bins to a character.
fn columns(counts: &[u64]) -> String {
    let each = counts.len().div_ceil(BAR).max(1);
    let sums: Vec<u64> = counts.chunks(each).map(|c| c.iter().sum()).collect();
    let most = sums.iter().copied().max().unwrap_or(0) as f64;
    sums.into_iter()
        .map(|n| {
            let height = (n as f64).ln_1p() / most.ln_1p().max(1e-12) * 8.0;
            STEPS[(height.ceil() as usize).min(8)]
        })
        .collect()
}

fn graph_text(out: &mut String, graph: &Picture) {
    section(out, "Graph (operators in order, with what they read)");
    let mut reads: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for &(from, to) in &graph.edges {
        reads[to].push(from);
    }
    let mut rows = vec![
        ["", "operator", "name", "format", "reads"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (i, n) in graph.nodes.iter().enumerate() {
        let from: Vec<String> = reads[i].iter().map(|f| format!("{}", f + 1)).collect();
        rows.push(vec![
            (i + 1).to_string(),
            n.op.clone(),
            short(&n.name),
            n.format.clone(),
            from.join(" "),
        ]);
    }
    out.push_str(&table(&rows));
    for left in &graph.left_out {
        let _ = writeln!(out, "  {left}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_show_the_shape() {
        assert_eq!(columns(&[0, 1, 1000]), " ▁█");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn bars_have_at_least_one_character() {
        assert_eq!(log_bar(0.0, (1.0, 10.0)).chars().count(), 1);
        assert_eq!(log_bar(10.0, (1.0, 10.0)).chars().count(), BAR);
        assert_eq!(ends([0.0, f64::NAN].into_iter()), (1.0, 1.0));
    }
}
