//! The options of accuracy recovery.

use onnx_quant::optimize::{Methods, Options};

/// How accuracy is recovered.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OptimizeArgs {
    /// Recover accuracy: none, fast, best, or methods by name (mse-scales, hqq, adaround, gptq, bias-correction)
    #[arg(long, value_name = "HOW", default_value = "none")]
    optimize: Methods,
    /// Memory for the activations that `--optimize` keeps; more go into a temporary file
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    memory: usize,
}

impl OptimizeArgs {
    /// The options of the library.
    pub(crate) fn options(&self, seed: u64) -> Options {
        Options {
            methods: self.optimize.clone(),
            seed,
            memory: self.memory,
            ..Options::default()
        }
    }
}

/// Reads `512M`, `1G`, `2.5G` or a number of bytes.
fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let (number, unit) = match text
        .to_ascii_uppercase()
        .trim_end_matches('B')
        .chars()
        .last()
    {
        Some('K') => (text, 1e3),
        Some('M') => (text, 1e6),
        Some('G') => (text, 1e9),
        _ => (text, 1.0),
    };
    let digits = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    match digits.trim().parse::<f64>() {
        Ok(n) if n.is_finite() && n >= 0.0 && n * unit < 1e15 => Ok((n * unit) as usize),
        _ => Err("give a size like 512M or 2G".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sizes() {
        let sizes = ["512M", "1G", "2.5GB", "100"].map(|s| parse_size(s).unwrap());
        assert_eq!(sizes, [512_000_000, 1_000_000_000, 2_500_000_000, 100]);
        assert!(parse_size("much").is_err());
        assert!(parse_size("-1G").is_err());
    }
}
