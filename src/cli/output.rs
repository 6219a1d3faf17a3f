//! Tables for people and JSON for machines, on standard output.

use std::fmt::Write as _;
use std::io::{self, Write};

use onnx_quant::check::CheckReport;
use onnx_quant::check::engines::EngineReport;
use onnx_quant::report::{Report, quantize_skips};
use serde::Serialize;

pub(crate) use crate::report::words::{bytes, decibels, short, table};

/// Prints text.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// Prints one JSON document.
pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// A drop from which the check speaks up even where no budget was given.
const LOUD: f64 = 0.01;

/// Each model on both runtimes.
pub(crate) fn engines_text(engines: &[EngineReport]) -> String {
    let mut out = String::new();
    for e in engines {
        let _ = writeln!(
            out,
            "{}: {} against {} on {} samples",
            e.model, e.candidate, e.reference, e.samples
        );
        let mut rows = vec![
            ["output", "agreement", "SQNR dB", "max diff"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(e.outputs.iter().map(|o| {
            vec![
                short(&o.name),
                o.agreement.map_or("-".to_owned(), |v| format!("{v:.4}")),
                decibels(o.sqnr_db),
                format!("{:.2e}", o.max_abs_error),
            ]
        }));
        out.push_str(&table(&rows));
    }
    out
}

/// The result of a comparison as text; `layers` says how many of the worst layers are shown.
pub(crate) fn check_text(check: &CheckReport, layers: usize) -> String {
    let mut out = String::new();
    let t = &check.task;
    let samples = match check.samples {
        0 => String::new(),
        n => format!(" on {n} samples"),
    };
    let _ = writeln!(
        out,
        "{}{samples}: {:.4} → {:.4} ({})",
        t.metric,
        t.reference,
        t.candidate,
        drop_text(&t.metric, t.drop)
    );
    if let Some((a, b)) = t.top5 {
        let _ = writeln!(out, "top-5: {a:.4} → {b:.4}");
    }
    let mut rows = vec![
        ["output", "agreement", "cosine", "SQNR dB", "KL", "max diff"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for o in &check.outputs {
        let share =
            |x: Option<f64>, digits: usize| x.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        rows.push(vec![
            short(&o.name),
            share(o.agreement, 4),
            format!("{:.6}", o.cosine),
            decibels(o.sqnr_db),
            o.kl.map_or("-".to_owned(), |v| format!("{v:.2e}")),
            format!("{:.4}", o.max_abs_error),
        ]);
        if o.non_finite_mismatches > 0 {
            rows.push(vec![format!(
                "  {} values are NaN or infinite in one model only",
                o.non_finite_mismatches
            )]);
        }
    }
    if !check.outputs.is_empty() {
        out.push_str(&table(&rows));
    }
    if !check.layers.is_empty() && layers > 0 {
        let shown = check.layers.len().min(layers);
        let _ = writeln!(
            out,
            "layers, worst first ({shown} of {}, on {} samples):",
            check.layers.len(),
            check.layer_samples
        );
        let mut rows = vec![["value", "SQNR dB", "cosine"].map(str::to_owned).to_vec()];
        rows.extend(check.layers.iter().take(layers).map(|l| {
            vec![
                short(&l.value),
                decibels(l.sqnr_db),
                format!("{:.6}", l.cosine),
            ]
        }));
        out.push_str(&table(&rows));
    }
    // A drop that is no number is a loss too.
    if t.drop.is_nan() || t.drop > LOUD {
        let worst: Vec<String> = check
            .layers
            .iter()
            .take(5)
            .map(|l| short(&l.value))
            .collect();
        let _ = writeln!(
            out,
            "WARNING: the quantized model does worse than its float model ({}).\n  The values that lose most: {}\n  \
             Try another --calibrator (mse, minmax, percentile:99.99, kl), a higher --min-activation-sqnr, or\n  \
             --exclude the nodes around those values.",
            drop_text(&t.metric, t.drop),
            if worst.is_empty() {
                "none is known by name".to_owned()
            } else {
                worst.join(", ")
            }
        );
    }
    out
}

/// What is lost, in words.
pub(crate) fn drop_text(metric: &str, drop: f64) -> String {
    let percent = drop * 100.0;
    match metric {
        "perplexity" => format!("{percent:+.2} % perplexity"),
        "cosine" => format!("{:+.4}", -drop),
        _ if percent.abs() < 0.005 => "no change".to_owned(),
        _ => format!("{:+.2} points", -percent),
    }
}

/// The report of a quantization as text.
pub(crate) fn report_text(report: &Report, reasons: &[(String, Vec<String>)]) -> String {
    let mut out = String::new();
    let s = &report.size;
    let _ = writeln!(
        out,
        "size        {} → {} ({:.1} %){}",
        bytes(s.before_bytes),
        bytes(s.after_bytes),
        100.0 * s.after_bytes as f64 / s.before_bytes.max(1) as f64,
        s.effective_bits.map_or(String::new(), |b| format!(
            ", {b:.2} bits a quantized weight"
        ))
    );
    if !reasons.is_empty() {
        let _ = writeln!(out, "not in integers, and why:");
        for (reason, nodes) in reasons {
            let shown: Vec<String> = nodes.iter().take(3).map(|n| short(n)).collect();
            let shown = shown.join(", ");
            let more = nodes.len().saturating_sub(3);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let _ = writeln!(out, "  {reason}: {shown}{more}");
        }
    }
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for line in quantize_skips(report) {
        let _ = writeln!(out, "left: {line}");
    }
    if let Some(check) = &report.check {
        out.push_str(&check_text(check, 5));
    }
    out
}
