//! The options of accuracy recovery.

use onnx_quant::optimize::{Methods, Options};

use super::size::parse_size;

/// How accuracy is recovered.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OptimizeArgs {
    /// Recover accuracy: none, fast, best, or methods by name: equalize, absorb-biases, split-channels, smooth, mse-scales, hqq, adaround, gptq, blocks, learned-steps, qdrop, bias-correction
    #[arg(long, value_name = "HOW", default_value = "none")]
    optimize: Methods,
    /// Memory for the activations that `--optimize` keeps; more go into a temporary file
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    memory: u64,
}

impl OptimizeArgs {
    /// The options of the library.
    pub(crate) fn options(&self, seed: u64) -> Options {
        Options {
            methods: self.optimize.clone(),
            seed,
            memory: usize::try_from(self.memory).unwrap_or(usize::MAX),
            ..Options::default()
        }
    }
}
