//! Numbers and names as people read them, and tables of them.

use std::fmt::Write as _;

/// What runs in float.
pub(crate) const FLOAT: &str = "float";
/// What moves quantized values, or is merged into the operator before it.
pub(crate) const FOLLOWS: &str = "follows";

/// `WEIGHTS/ACTIVATIONS` for reports, of an operator without weights `ACTIVATIONS`; float where nothing is quantized.
pub(crate) fn label(weights: Option<&str>, activations: Option<&str>) -> String {
    match (weights, activations) {
        (None, None) => FLOAT.to_owned(),
        (None, Some(a)) => a.to_owned(),
        (Some(w), a) => format!("{w}/{}", a.unwrap_or("none")),
    }
}

/// The name of a format as reports give it.
pub(crate) fn named(format: &str) -> &str {
    if format == "fp32/none" { FLOAT } else { format }
}

/// A table with aligned columns; the first row is the head. Columns of numbers are aligned to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|r| r.get(c))
                .map(|s| s.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let numeric: Vec<bool> = (0..columns)
        .map(|c| {
            rows.len() > 1
                && rows[1..]
                    .iter()
                    .filter_map(|r| r.get(c))
                    .all(|s| is_number(s))
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (c, cell) in row.iter().enumerate() {
            let pad = " ".repeat(width[c] - cell.chars().count());
            if numeric[c] {
                line.push_str(&pad);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&pad);
            }
            line.push_str("  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// Whether a cell is a number, or empty.
pub(crate) fn is_number(cell: &str) -> bool {
    cell.chars()
        .next()
        .is_none_or(|x| x.is_ascii_digit() || "-+∞".contains(x))
}

/// Bytes in the unit that people read.
pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A ratio in decibels; `equal` without noise.
pub(crate) fn decibels(x: Option<f64>) -> String {
    x.map_or("equal".to_owned(), |v| format!("{v:.1}"))
}

/// A share in percent.
pub(crate) fn percent(x: f64) -> String {
    format!("{:.2} %", x * 100.0)
}

/// A share in percent, with its sign.
pub(crate) fn signed_percent(x: f64) -> String {
    format!("{:+.2} %", x * 100.0)
}

/// A number of things: exact below a million.
pub(crate) fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        _ => format!("{:.1} million", n as f64 / 1e6),
    }
}

/// A loss: small numbers with an exponent.
pub(crate) fn loss(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        _ if x.abs() < 1e-3 || x.abs() >= 1e4 => format!("{x:.2e}"),
        _ => format!("{x:.4}"),
    }
}

/// A number with up to four significant digits.
pub(crate) fn number(x: f64) -> String {
    let text = format!("{x:.3e}");
    let short = text.parse::<f64>().unwrap_or(x);
    match short.abs() {
        m if m != 0.0 && !(1e-4..1e6).contains(&m) => format!("{short:e}"),
        _ => short.to_string(),
    }
}

/// A name that fits a table: long ones lose their middle.
pub(crate) fn short(name: &str) -> String {
    shortened(name, 56)
}

/// A name of at most `limit` characters: long ones lose their middle.
pub(crate) fn shortened(name: &str, limit: usize) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= limit {
        return name.to_owned();
    }
    let tail = limit.saturating_sub(1) / 2;
    let head = limit.saturating_sub(1) - tail;
    let (head, tail) = (&chars[..head], &chars[chars.len() - tail..]);
    format!(
        "{}…{}",
        head.iter().collect::<String>(),
        tail.iter().collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_in_the_middle() {
        assert_eq!(shortened("abcdefgh", 8), "abcdefgh");
        assert_eq!(shortened("abcdefghi", 6), "abc…hi");
        assert_eq!(shortened("äöüßäöüß", 4), "äö…ß");
    }

    #[test]
    fn numbers_have_few_digits() {
        let found = [0.0, 1.0, -0.123_456, 98_765.4, 3.2e-7].map(number);
        assert_eq!(found, ["0", "1", "-0.1235", "98770", "3.2e-7"]);
        assert_eq!([0.0, 0.25, 2.5e-5].map(loss), ["0", "0.2500", "2.50e-5"]);
    }
}
