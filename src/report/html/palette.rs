//! One colour for each format, the same in every chart.

use std::str::FromStr as _;

use onnx_quant_numerics::format::{Format, Granularity};

use crate::report::figures::Figures;
use crate::report::words::{FLOAT, FOLLOWS, named};

/// Colours for formats; further formats share the last.
const COLOURS: usize = 8;

/// The formats of a report, each with its number: 0 is float, 1 to 8 are formats, 9 follows its neighbours, 10 is an
/// input or an output.
pub(super) struct Palette {
    formats: Vec<String>,
}

/// A name with what it leaves open: `int8/uint8:tensor` and `int8:channel/uint8` are one format.
fn canonical(format: &str) -> String {
    let Some((weights, activations)) = named(format).split_once('/') else {
        return named(format).to_owned();
    };
    let open = Format::from_str(weights)
        .ok()
        .filter(|f| f.granularity(Granularity::Tensor) != f.granularity(Granularity::Channel));
    let channel = open.map_or(String::new(), |f| format!(":{}", f.weight_granularity()));
    let activations = activations.split(':').next().unwrap_or(activations);
    format!("{weights}{channel}/{activations}")
}

/// Bits of weights and activations; 32 for float.
fn bits(format: &str) -> (u32, u32) {
    let of = |text: &str| Format::from_str(text).map_or(32, |f| f.base.info().bits);
    let (weights, activations) = format.split_once('/').unwrap_or((format, "none"));
    (of(weights), of(activations))
}

impl Palette {
    /// The formats that stand in the figures, those of most bits first.
    pub(super) fn of(figures: &Figures) -> Self {
        let graph = figures.graph.iter().flat_map(|g| &g.nodes);
        let layers = figures.sensitivity.iter().flat_map(|s| &s.layers);
        let mut formats: Vec<String> = graph
            .map(|n| n.format.as_str())
            .chain(layers.filter_map(|l| l.chosen.as_deref()))
            .map(canonical)
            .filter(|f| !f.is_empty() && f != FLOAT && f != FOLLOWS)
            .collect();
        formats.sort_by(|a, b| bits(b).cmp(&bits(a)).then_with(|| a.cmp(b)));
        formats.dedup();
        Self { formats }
    }

    /// The number of a format's colour.
    pub(super) fn number(&self, format: &str) -> usize {
        match canonical(format).as_str() {
            FLOAT => 0,
            FOLLOWS => COLOURS + 1,
            "" => COLOURS + 2,
            f => {
                let found = self.formats.iter().position(|g| g == f);
                found.map_or(COLOURS, |i| i + 1).min(COLOURS)
            }
        }
    }

    /// Number and name of each colour among these formats, in order.
    pub(super) fn legend<'a>(&self, used: impl Iterator<Item = &'a str>) -> Vec<(usize, String)> {
        let mut found: Vec<(usize, String)> = Vec::new();
        for format in used.map(canonical) {
            let number = self.number(&format);
            match found.iter_mut().find(|(n, _)| *n == number) {
                Some((_, text)) if text.split(", ").any(|t| t == format) => {}
                Some((_, text)) => *text = format!("{text}, {format}"),
                None => found.push((number, format)),
            }
        }
        found.retain(|(n, _)| *n <= COLOURS + 1);
        // Float and what follows stand last.
        found.sort_by_key(|(n, _)| (*n == 0, *n));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::figures::{Picture, Vertex};

    #[test]
    fn what_a_name_leaves_open_is_filled_in() {
        let names = [
            "int8/uint8:tensor",
            "fp32/none",
            "fp16/none",
            "uint8",
            "int4:block32/uint8",
        ];
        let found = names.map(canonical);
        let want = [
            "int8:channel/uint8",
            "float",
            "fp16/none",
            "uint8",
            "int4:block32/uint8",
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn formats_of_many_bits_come_first_and_float_is_grey() {
        let node = |format: &str| Vertex {
            format: format.to_owned(),
            ..Vertex::default()
        };
        let formats = [
            "int4:block32/none",
            "float",
            "int8:channel/uint8",
            "follows",
        ];
        let figures = Figures {
            graph: Some(Picture {
                nodes: formats.map(node).to_vec(),
                ..Picture::default()
            }),
            ..Figures::default()
        };
        let palette = Palette::of(&figures);
        assert_eq!(formats.map(|f| palette.number(f)), [2, 0, 1, 9]);
        let legend = palette.legend(formats.into_iter());
        let names: Vec<&str> = legend.iter().map(|(_, n)| n.as_str()).collect();
        assert_eq!(
            names,
            [
                "int8:channel/uint8",
                "int4:block32/none",
                "follows",
                "float"
            ]
        );
    }
}
