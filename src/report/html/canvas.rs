//! Charts as SVG whose colours are those of the page's theme.
//!
//! plotters writes colours as numbers. Each [`Ink`] is drawn in a number that nothing else has, which then becomes the
//! CSS variable of that ink: one picture serves light, dark and print.

use std::ops::Range;

use maud::{Markup, PreEscaped, html};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// What can go wrong in drawing; nothing does where the target is a text.
pub(super) type DrawError = Box<dyn std::error::Error>;

/// Where charts are drawn.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A colour of the theme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Text.
    Text,
    /// Text that may be overlooked.
    Muted,
    /// Lines of a grid.
    Grid,
    /// What a chart is about.
    Accent,
    /// What is wrong.
    Bad,
    /// A format, by its number in the palette.
    Format(usize),
}

/// The first number that stands for a format.
const FORMATS: u8 = 16;

impl Ink {
    /// The number that stands for the ink while a chart is drawn.
    pub(super) fn rgb(self) -> RGBColor {
        let number = match self {
            Ink::Text => 1,
            Ink::Muted => 2,
            Ink::Grid => 3,
            Ink::Accent => 4,
            Ink::Bad => 5,
            Ink::Format(n) => FORMATS + n.min(10) as u8,
        };
        RGBColor(0, 0, number)
    }

    /// The CSS variable of a number.
    fn variable(number: u8) -> String {
        match number {
            1 => "--ink".to_owned(),
            2 => "--muted".to_owned(),
            3 => "--line".to_owned(),
            4 => "--accent".to_owned(),
            5 => "--bad".to_owned(),
            n => format!("--f{}", n.saturating_sub(FORMATS)),
        }
    }
}

/// Text of a size in pixels.
pub(super) fn text_style(size: f64, ink: Ink, h: HPos, v: VPos) -> TextStyle<'static> {
    // The SVG backend divides by 1.24.
    ("sans-serif", size * 1.24)
        .into_font()
        .color(&ink.rgb())
        .pos(Pos::new(h, v))
}

/// A chart of a size in pixels: `draw` fills it, `label` says what it shows to those who cannot see it, and each circle
/// gets one of the `titles`, which shows under the pointer.
pub(super) fn canvas(
    (width, height): (u32, u32),
    class: &str,
    label: &str,
    titles: &[String],
    draw: impl FnOnce(&Area<'_>) -> Result<(), DrawError>,
) -> Result<Markup, DrawError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    // The tag of plotters has no label: the page has its own.
    let inner = svg.split_once('\n').map_or("", |(_, rest)| rest);
    let inner = inner.trim_end().trim_end_matches("</svg>");
    let inner = titled(&themed(inner), titles);
    let view = format!("0 0 {width} {height}");
    Ok(html! {
        svg xmlns="http://www.w3.org/2000/svg" class=(class) role="img" aria-label=(label)
            viewBox=(view) width=(width) height=(height) { (PreEscaped(inner)) }
    })
}

/// Numbers of inks become variables, fonts those of the page, and each line of text one line.
fn themed(svg: &str) -> String {
    let mut themed = String::with_capacity(svg.len());
    for (i, part) in svg.split("\"#0000").enumerate() {
        if i == 0 {
            themed.push_str(part);
            continue;
        }
        let (number, rest) = part.split_at(part.len().min(2));
        let number = u8::from_str_radix(number, 16).unwrap_or(1);
        themed.push_str("\"var(");
        themed.push_str(&Ink::variable(number));
        themed.push(')');
        themed.push_str(rest);
    }
    themed
        .replace(" font-family=\"sans-serif\"", "")
        .replace(" opacity=\"1\"", "")
        .replace(">\n", ">")
        .replace("\n</text>", "</text>")
}

/// Gives each circle its title.
fn titled(svg: &str, titles: &[String]) -> String {
    let mut out = String::with_capacity(svg.len());
    let mut titles = titles.iter();
    for (i, part) in svg.split("<circle").enumerate() {
        if i == 0 {
            out.push_str(part);
            continue;
        }
        out.push_str("<circle");
        match (titles.next(), part.split_once("/>")) {
            (Some(title), Some((tag, rest))) => {
                out.push_str(tag);
                out.push('>');
                out.push_str(&html! { title { (title) } }.into_string());
                out.push_str("</circle>");
                out.push_str(rest);
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// An axis with its marks.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// The numbers at its ends.
    pub(super) ends: (f64, f64),
    /// The numbers that have a mark.
    pub(super) marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (low, high) = self.ends;
        let share = (value - low) / (high - low).max(f64::MIN_POSITIVE);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ends.0..self.ends.1
    }
}

/// Where an axis has its marks: about `count` round numbers between the ends.
pub(super) fn ticks((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let step = (high - low) / count.max(1) as f64;
    if !(step > 0.0 && step.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf(step.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= step * 0.999)
        .unwrap_or(step);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Where a logarithmic axis has its marks: powers of ten, at most `count` of them. The ends are logarithms.
pub(super) fn decades((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let (first, last) = (low.ceil() as i64, high.floor() as i64);
    let each = ((last - first + 1).max(1) as usize).div_ceil(count.max(1)) as i64;
    let found: Vec<f64> = (first..=last)
        .filter(|i| i.rem_euclid(each) == 0)
        .map(|i| i as f64)
        .collect();
    if found.len() >= 2 {
        return found;
    }
    // Less than two decades: marks at round parts of them.
    let parts = [1.0, 2.0, 5.0].map(f64::log10);
    let all = ((low.floor() as i64)..=last.max(low.floor() as i64))
        .flat_map(|i| parts.map(|p| i as f64 + p));
    let inner: Vec<f64> = all.filter(|x| *x >= low && *x <= high).collect();
    if inner.is_empty() { vec![low] } else { inner }
}

/// `1e-3` of its logarithm, or a plain number where that is short.
pub(super) fn power(log: f64) -> String {
    let x = 10f64.powf(log);
    if (0.01..1000.0).contains(&x) {
        return super::words::number(x);
    }
    let exponent = (log + 1e-9).floor();
    let mantissa = (10f64.powf(log - exponent)).round();
    format!("{mantissa}e{exponent}")
}

/// A range with room at both ends.
pub(super) fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let room = if high > low {
        (high - low) * share
    } else {
        low.abs().max(1.0) * share
    };
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inks_become_variables_and_hostile_text_stays_text() {
        let titles = ["<b>\"&".to_owned()];
        let made = canvas((100, 50), "c", "\"><script>", &titles, |area| {
            let style = text_style(12.0, Ink::Text, HPos::Left, VPos::Top);
            area.draw(&Text::new("<script> #000001 \"#000002", (5, 5), style))?;
            area.draw(&Circle::new((20, 20), 4, Ink::Format(3).rgb().filled()))?;
            Ok(())
        });
        let svg = made.map(Markup::into_string).unwrap_or_default();
        assert!(svg.contains("fill=\"var(--f3)\""), "{svg}");
        assert!(svg.contains("fill=\"var(--ink)\""), "{svg}");
        assert!(svg.contains("<title>&lt;b&gt;"), "{svg}");
        assert!(!svg.contains("<script"), "{svg}");
        assert!(!svg.contains("font-family"), "{svg}");
        assert!(
            svg.contains("&lt;script&gt; #000001 &quot;#000002"),
            "{svg}"
        );
    }

    #[test]
    fn marks_are_round_numbers_inside() {
        assert_eq!(ticks((0.0, 100.0), 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks((3.0, 3.0), 5), [3.0]);
        assert_eq!(decades((-6.0, 0.0), 4), [-6.0, -4.0, -2.0, 0.0]);
        assert_eq!(decades((0.1, 0.9), 4).len(), 2);
        assert_eq!([-6.0, -1.0, 2.0].map(power), ["1e-6", "0.1", "100"]);
    }
}
