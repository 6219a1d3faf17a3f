//! The options of codebook, binary and ternary weights.

use onnx_quant::numerics::binary::Rounding;
use onnx_quant::numerics::kmeans::Init;
use onnx_quant::numerics::ternary::Threshold;
use onnx_quant::passes::codebook_weights::{CodebookSettings, SignStorage};

/// How codebooks, signs and thresholds are chosen.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct CodebookArgs {
    /// Where k-means codebooks start: optimal, linear, density or random (by --seed)
    #[arg(long, value_name = "START", default_value = "optimal")]
    kmeans_init: Init,
    /// Signs of binary weights: deterministic, or stochastic by the hard sigmoid and --seed
    #[arg(long, value_name = "ROUNDING", default_value = "deterministic", value_parser = parse_rounding)]
    binary: Signs,
    /// Threshold of ternary weights: search finds the best, rule is 0.7 times the mean magnitude
    #[arg(long, value_name = "THRESHOLD", default_value = "search")]
    ternary: Threshold,
    /// How binary and ternary weights are stored: packed (1 and 2 bits), or int2 or int4 behind a DequantizeLinear
    #[arg(
        long,
        value_name = "FORM",
        default_value = "packed",
        hide_possible_values = true
    )]
    signs: StoredSigns,
}

#[derive(Debug, Clone, Copy, Default)]
enum Signs {
    #[default]
    Deterministic,
    Stochastic,
}

/// How signs are stored.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum StoredSigns {
    #[default]
    Packed,
    Int2,
    Int4,
}

fn parse_rounding(text: &str) -> Result<Signs, String> {
    match text {
        "deterministic" => Ok(Signs::Deterministic),
        "stochastic" => Ok(Signs::Stochastic),
        _ => Err("valid: deterministic, stochastic".to_owned()),
    }
}

impl CodebookArgs {
    /// The settings; `seed` is that of the program.
    pub(crate) fn settings(&self, seed: u64) -> CodebookSettings {
        CodebookSettings {
            init: self.kmeans_init,
            seed,
            rounding: match self.binary {
                Signs::Deterministic => Rounding::Deterministic,
                Signs::Stochastic => Rounding::Stochastic(seed),
            },
            threshold: self.ternary,
            signs: match self.signs {
                StoredSigns::Packed => SignStorage::Packed,
                StoredSigns::Int2 => SignStorage::Int2,
                StoredSigns::Int4 => SignStorage::Int4,
            },
        }
    }
}
