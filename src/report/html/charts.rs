//! The charts of the page: front, bars, lines and distributions.

use maud::{Markup, html};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::canvas::{Axis, DrawError, Ink, canvas, decades, padded, power, text_style, ticks};
use super::figures::{Front, LayerLoss, Line, TensorHistogram};
use super::palette::Palette;
use super::text::ends;
use super::words::{bytes, decibels, loss, number, percent, shortened};

/// Widths of the two forms of a chart, for phones and for wider windows.
const NARROW: u32 = 340;
const WIDE: u32 = 760;
/// Pixels of a small text.
const SMALL: f64 = 12.0;

/// A chart in both forms; the style sheet shows one.
pub(super) fn both(
    draw: impl Fn(u32, &'static str) -> Result<Markup, DrawError>,
) -> Result<Markup, DrawError> {
    let (narrow, wide) = (draw(NARROW, "chart narrow")?, draw(WIDE, "chart wide")?);
    Ok(html! { (narrow) (wide) })
}

fn axis(ends: (f64, f64), marks: Vec<f64>) -> Axis {
    Axis { ends, marks }
}

/// A point of a scatter.
struct Dot {
    at: (f64, f64),
    spread: Option<(f64, f64)>,
    chosen: bool,
    title: String,
}

/// How a scatter is drawn.
struct Scatter<'a> {
    dots: Vec<Dot>,
    x: (f64, f64),
    y: (f64, f64),
    x_label: &'a dyn Fn(&f64) -> String,
    y_label: &'a dyn Fn(&f64) -> String,
    y_marks: &'a dyn Fn((f64, f64)) -> Vec<f64>,
    steps: bool,
    limit: Option<(f64, String)>,
    label: String,
}

fn scatter(s: &Scatter<'_>, width: u32, class: &str) -> Result<Markup, DrawError> {
    let titles: Vec<String> = s.dots.iter().map(|d| d.title.clone()).collect();
    let height = if width == WIDE { 320 } else { 260 };
    canvas((width, height), class, &s.label, &titles, |area| {
        let x_marks = ticks(s.x, if width == WIDE { 6 } else { 3 });
        let mut chart = ChartBuilder::on(area)
            .margin_top(14)
            .margin_right(18)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d(axis(s.x, x_marks), axis(s.y, (s.y_marks)(s.y)))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.rgb())
            .axis_style(Ink::Grid.rgb())
            .label_style(text_style(SMALL, Ink::Muted, HPos::Left, VPos::Top))
            .x_label_formatter(&|x| (s.x_label)(x))
            .y_label_formatter(&|y| (s.y_label)(y))
            .draw()?;
        if let Some((at, text)) = &s.limit {
            let dashes = DashedLineSeries::new(
                [(s.x.0, *at), (s.x.1, *at)],
                6,
                4,
                Ink::Bad.rgb().stroke_width(1),
            );
            chart.draw_series(dashes)?;
            let style = text_style(SMALL, Ink::Bad, HPos::Right, VPos::Bottom);
            chart.draw_series([Text::new(text.clone(), (s.x.1, *at), style)])?;
        }
        if s.steps {
            let line = s.dots.iter().map(|d| d.at);
            let style = Ink::Accent.rgb().mix(0.45).stroke_width(2);
            chart.draw_series([PathElement::new(line.collect::<Vec<_>>(), style)])?;
        }
        for d in s.dots.iter().filter(|d| d.spread.is_some()) {
            let (low, high) = d.spread.unwrap_or(s.y);
            let ends = vec![
                (d.at.0, low.clamp(s.y.0, s.y.1)),
                (d.at.0, high.clamp(s.y.0, s.y.1)),
            ];
            let ink = if d.chosen { Ink::Text } else { Ink::Muted };
            chart.draw_series([PathElement::new(ends, ink.rgb().stroke_width(1))])?;
        }
        for d in &s.dots {
            let (radius, ink) = match d.chosen {
                true => (7, Ink::Text),
                false => (4, Ink::Accent),
            };
            chart.draw_series([Circle::new(d.at, radius, ink.rgb().filled())])?;
        }
        if let Some(d) = s.dots.iter().find(|d| d.chosen) {
            // The text stands where there is more room.
            let right = d.at.0 > (s.x.0 + s.x.1) / 2.0;
            let (h, dx) = if right {
                (HPos::Right, -11)
            } else {
                (HPos::Left, 11)
            };
            let style = text_style(13.0, Ink::Text, h, VPos::Bottom);
            let text = format!("chosen: {}", (s.x_label)(&d.at.0));
            let label = EmptyElement::at(d.at) + Text::new(text, (dx, -8), style);
            chart.draw_series([label])?;
        }
        Ok(())
    })
}

/// Bytes of the layers against the sum of their losses.
pub(super) fn front(front: &Front) -> Result<Markup, DrawError> {
    let (least, most) = ends(front.points.iter().map(|p| p.loss));
    // A loss of zero has no logarithm: it is drawn a step below the least.
    let floor = (least / 3.0).log10();
    let y = padded((floor, most.log10()), 0.06);
    let x = span(front.points.iter().map(|p| p.bytes as f64));
    let dots = front.points.iter().map(|p| Dot {
        at: (
            p.bytes as f64,
            if p.loss > 0.0 {
                p.loss.log10().clamp(floor, y.1)
            } else {
                floor
            },
        ),
        spread: None,
        chosen: p.chosen,
        title: format!("{}, loss {}", bytes(p.bytes), loss(p.loss)),
    });
    let s = Scatter {
        dots: dots.collect(),
        x: padded(x, 0.05),
        y,
        x_label: &|x| size(*x),
        y_label: &|y| power(*y),
        y_marks: &|y| decades(y, 6),
        steps: true,
        limit: None,
        label: format!(
            "{} choices, from {} to {}",
            front.points.len(),
            size(x.0),
            size(x.1)
        ),
    };
    both(|width, class| scatter(&s, width, class))
}

/// Bytes of the files of the models that were run against what they lost, with the interval. `None` below two models.
pub(super) fn runs(front: &Front) -> Result<Option<Markup>, DrawError> {
    let dots: Vec<Dot> = front
        .points
        .iter()
        .filter_map(|p| p.run.as_ref().map(|r| (p, r)))
        .map(|(p, r)| Dot {
            at: (r.file_bytes as f64, r.drop * 100.0),
            spread: Some((r.interval.0 * 100.0, r.interval.1 * 100.0)),
            chosen: p.chosen,
            title: format!(
                "{}: {}, a drop of {} ({} to {})",
                bytes(r.file_bytes),
                number(r.metric),
                percent(r.drop),
                percent(r.interval.0),
                percent(r.interval.1)
            ),
        })
        .filter(|d| d.at.1.is_finite())
        .collect();
    if dots.len() < 2 {
        return Ok(None);
    }
    let x = span(dots.iter().map(|d| d.at.0));
    let limit = front.max_drop.map(|m| m * 100.0);
    // A model that lost everything must not press the others into one line.
    let near = |d: f64| d <= limit.map_or(f64::INFINITY, |m| (m * 12.0).max(1.0));
    let mut y = span(
        dots.iter()
            .flat_map(|d| [Some(d.at.1), d.spread.map(|s| s.0), d.spread.map(|s| s.1)])
            .flatten()
            .filter(|d| d.is_finite() && near(*d))
            .chain(limit)
            .chain([0.0]),
    );
    y = padded(y, 0.08);
    let beyond = dots.iter().filter(|d| d.at.1 > y.1).count();
    let dots = dots
        .into_iter()
        .map(|d| Dot {
            at: (d.at.0, d.at.1.clamp(y.0, y.1)),
            ..d
        })
        .collect();
    let s = Scatter {
        dots,
        x: padded(x, 0.05),
        y,
        x_label: &|x| size(*x),
        y_label: &|y| format!("{} %", number(*y)),
        y_marks: &|y| ticks(y, 5),
        steps: false,
        limit: limit.map(|m| (m, format!("allowed: {} %", number(m)))),
        label: "models that were run: size and drop".to_owned(),
    };
    let chart = both(|width, class| scatter(&s, width, class))?;
    Ok(Some(html! {
        (chart)
        @if beyond > 0 { p.muted { (beyond) " models lose more and stand at the upper edge." } }
    }))
}

/// The ends of some numbers.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| {
        (l.min(x), h.max(x))
    });
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// Bytes on an axis.
fn size(x: f64) -> String {
    match x {
        _ if x < 0.0 => String::new(),
        _ if x < 1e4 => format!("{} B", number(x)),
        _ if x < 1e6 => format!("{} kB", number(x / 1e3)),
        _ if x < 1e9 => format!("{} MB", number(x / 1e6)),
        _ => format!("{} GB", number(x / 1e9)),
    }
}

/// Losses of layers as bars in the colour of the chosen format; a mark shows the loss in that format.
pub(super) fn bars(
    layers: &[LayerLoss],
    palette: &Palette,
    label: &str,
) -> Result<Markup, DrawError> {
    let all = layers
        .iter()
        .flat_map(|l| [Some(l.loss), l.chosen_loss])
        .flatten();
    let (least, most) = ends(all);
    let range = padded((least.log10(), most.log10()), 0.04);
    let share = |x: f64| match x > 0.0 {
        true => ((x.log10() - range.0) / (range.1 - range.0)).clamp(0.0, 1.0),
        false => 0.0,
    };
    both(|width, class| {
        let wide = width == WIDE;
        let row = if wide { 24 } else { 38 };
        let left = if wide { 270 } else { 0 };
        let number_width = 62;
        let room = f64::from(width as i32 - left - number_width);
        let height = layers.len() as u32 * row as u32 + 4;
        canvas((width, height), class, label, &[], |area| {
            for (i, l) in layers.iter().enumerate() {
                let top = i as i32 * row + 2;
                // On a phone the name stands above its bar.
                let bar = if wide {
                    (top + 4, top + 18)
                } else {
                    (top + 19, top + 31)
                };
                let name = shortened(&l.layer, if wide { 38 } else { 46 });
                let style = if wide {
                    text_style(SMALL, Ink::Text, HPos::Right, VPos::Center)
                } else {
                    text_style(SMALL, Ink::Text, HPos::Left, VPos::Top)
                };
                let at = if wide {
                    (left - 10, top + 11)
                } else {
                    (0, top + 3)
                };
                area.draw(&Text::new(name, at, style))?;
                let end = left + (share(l.loss) * room).round().max(2.0) as i32;
                let ink = match l.chosen.as_deref() {
                    Some(format) => Ink::Format(palette.number(format)),
                    None => Ink::Accent,
                };
                area.draw(&Rectangle::new(
                    [(left, bar.0), (end, bar.1)],
                    ink.rgb().filled(),
                ))?;
                let mut text_at = end;
                if let Some(c) = l.chosen_loss.filter(|_| l.chosen.is_some()) {
                    let x = left + (share(c) * room).round() as i32;
                    text_at = text_at.max(x);
                    let mark = [(x - 1, bar.0 - 3), (x + 2, bar.1 + 3)];
                    area.draw(&Rectangle::new(mark, Ink::Text.rgb().filled()))?;
                }
                let middle = (bar.0 + bar.1) / 2;
                let style = text_style(SMALL, Ink::Muted, HPos::Left, VPos::Center);
                area.draw(&Text::new(loss(l.loss), (text_at + 7, middle), style))?;
            }
            Ok(())
        })
    })
}

/// Signal to noise in the order of the network.
pub(super) fn network(lines: &[Line]) -> Result<Markup, DrawError> {
    let known = |l: &Line| -> Vec<(f64, f64)> {
        let points = l.values.iter().enumerate();
        points
            .filter_map(|(i, (_, db))| db.map(|d| (i as f64, d)))
            .collect()
    };
    let longest = lines.iter().map(|l| l.values.len()).max().unwrap_or(1);
    let all: Vec<f64> = lines
        .iter()
        .flat_map(|l| known(l).into_iter().map(|p| p.1))
        .collect();
    let y = span(all.iter().copied().chain([0.0]));
    let y = (y.0, y.1.max(10.0) * 1.08);
    let x = (-0.5, longest.max(2) as f64 - 0.5);
    let titles: Vec<String> = lines
        .iter()
        .flat_map(|l| l.values.iter().filter(|v| v.1.is_some()))
        .map(|(name, db)| format!("{name}: {} dB", decibels(*db)))
        .collect();
    let label = "signal to noise in dB, from the input to the output";
    both(|width, class| {
        let height = if width == WIDE { 280 } else { 230 };
        canvas((width, height), class, label, &titles, |area| {
            let marks = ticks((1.0, longest as f64), if width == WIDE { 8 } else { 4 });
            let whole = marks.into_iter().filter(|m| m.fract() == 0.0);
            let marks: Vec<f64> = whole.map(|m| m - 1.0).collect();
            let mut chart = ChartBuilder::on(area)
                .margin_top(14)
                .margin_right(12)
                .x_label_area_size(28)
                .y_label_area_size(44)
                .build_cartesian_2d(axis(x, marks), axis(y, ticks(y, 5)))?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .disable_x_mesh()
                .bold_line_style(Ink::Grid.rgb())
                .axis_style(Ink::Grid.rgb())
                .label_style(text_style(SMALL, Ink::Muted, HPos::Left, VPos::Top))
                .x_label_formatter(&|x| format!("{}", x + 1.0))
                .y_label_formatter(&|y| number(*y))
                .draw()?;
            for (i, line) in lines.iter().enumerate() {
                let ink = series(i, lines.len());
                let points = known(line);
                let style = ink.rgb().stroke_width(2);
                chart.draw_series([PathElement::new(points, style)])?;
            }
            for (i, line) in lines.iter().enumerate() {
                let ink = series(i, lines.len());
                let radius = if longest > 120 { 2 } else { 3 };
                let dots = known(line);
                chart.draw_series(
                    dots.into_iter()
                        .map(|at| Circle::new(at, radius, ink.rgb().filled())),
                )?;
            }
            Ok(())
        })
    })
}

/// The ink of a line among several.
pub(super) fn series(i: usize, of: usize) -> Ink {
    if of == 1 {
        Ink::Accent
    } else {
        Ink::Format(i % 8 + 1)
    }
}

/// A distribution with its clip range and its levels.
pub(super) fn histogram(h: &TensorHistogram) -> Result<Markup, DrawError> {
    const SIZE: (u32, u32) = (320, 116);
    /// The base line, and the rows below it for the clip range.
    const BASE: i32 = 84;
    const TOP: i32 = 6;
    /// The least distance of two marks that an eye can tell apart.
    const APART: f64 = 3.0;
    // What is clipped to may reach beyond what was seen.
    let (low, high) = match h.clip {
        Some((a, b)) => (h.edges.0.min(a), h.edges.1.max(b)),
        None => h.edges,
    };
    let width = f64::from(SIZE.0) - 2.0;
    let at = |x: f64| 1 + ((x - low) / (high - low).max(f64::MIN_POSITIVE) * width).round() as i32;
    let most = h.counts.iter().copied().max().unwrap_or(0) as f64;
    let tall = |n: u64| {
        let share = (n as f64).ln_1p() / most.ln_1p().max(f64::MIN_POSITIVE);
        BASE - (share * f64::from(BASE - TOP)).round() as i32
    };
    let bin = (h.edges.1 - h.edges.0) / h.counts.len().max(1) as f64;
    let mut outline = vec![(at(h.edges.0), BASE)];
    for (i, &n) in h.counts.iter().enumerate() {
        let left = h.edges.0 + i as f64 * bin;
        outline.push((at(left), tall(n)));
        outline.push((at(left + bin), tall(n)));
    }
    outline.push((at(h.edges.1), BASE));
    let label = format!("distribution of {}", h.tensor);
    canvas(SIZE, "chart", &label, &[], |area| {
        let ink = if h.kind == "weight" {
            Ink::Format(5)
        } else {
            Ink::Accent
        };
        area.draw(&Polygon::new(outline, ink.rgb().mix(0.55).filled()))?;
        let line = |from, to, ink: Ink| PathElement::new(vec![from, to], ink.rgb().stroke_width(1));
        area.draw(&line((0, BASE), (SIZE.0 as i32, BASE), Ink::Muted))?;
        if let Some((a, b)) = h.clip {
            let (a, b) = (at(a), at(b));
            for x in [a, b] {
                let dashes = (0..(BASE - TOP) / 6).map(|i| TOP + i * 6);
                for y in dashes {
                    area.draw(&line((x, y), (x, y + 3), Ink::Text))?;
                }
            }
            let steps = h.levels.unwrap_or(0).saturating_sub(1).max(1);
            let step = f64::from(b - a) / steps as f64;
            if h.levels.is_some() && step >= APART {
                let comb = (0..=steps).flat_map(|i| {
                    let x = a + (i as f64 * step).round() as i32;
                    [(x, BASE + 1), (x, BASE + 7), (x, BASE + 1)]
                });
                area.draw(&PathElement::new(comb.collect::<Vec<_>>(), Ink::Text.rgb()))?;
            } else {
                let band = [(a, BASE + 2), (b, BASE + 6)];
                area.draw(&Rectangle::new(band, Ink::Text.rgb().filled()))?;
            }
        }
        let y = SIZE.1 as i32 - 3;
        let left = text_style(11.0, Ink::Muted, HPos::Left, VPos::Bottom);
        let right = text_style(11.0, Ink::Muted, HPos::Right, VPos::Bottom);
        area.draw(&Text::new(number(low), (1, y), left))?;
        area.draw(&Text::new(number(high), (SIZE.0 as i32 - 1, y), right))?;
        if low < 0.0 && high > 0.0 {
            let x = at(0.0);
            // Between the two ends, where there is room.
            if (50..SIZE.0 as i32 - 50).contains(&x) {
                let style = text_style(11.0, Ink::Muted, HPos::Center, VPos::Bottom);
                area.draw(&Text::new("0", (x, y), style))?;
            }
        }
        Ok(())
    })
}
