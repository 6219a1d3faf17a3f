//! Accuracy recovery: weights, scales and biases chosen by what layers compute on calibration data.
//!
//! The float model and the model as far as it is quantized run side by side, layer by layer along the graph. Each
//! method proposes weights or a bias for a layer; a proposal that makes the layer's output worse on held-out samples is
//! undone, and said. What is chosen goes to the passes that store weights and biases, as
//! [`WeightOverrides`](onnx_quant_passes::overrides::WeightOverrides) and
//! [`BiasCorrections`](onnx_quant_passes::overrides::BiasCorrections).

mod absorb;
mod blocks;
mod capture;
mod driver;
pub(crate) mod flow;
mod layer;
mod methods;
mod notes;
mod padding;
mod prepare;
mod smooth;
pub(crate) mod store;
mod submodel;
mod tables;
mod tasks;
pub(crate) mod trial;

pub use driver::{Known, Outcome, optimize};
pub use methods::{Method, Methods};
pub(crate) use prepare::Recovered;
pub use prepare::prepare;
pub(crate) use tables::widen_tables;

/// How the optimisation is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is done.
    pub methods: Methods,
    /// Seed of the sampling.
    pub seed: u64,
    /// Bytes of activations that are kept in memory; more go into a temporary file.
    pub memory: usize,
    /// Steps of learned rounding.
    pub iterations: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            methods: Methods::default(),
            seed: 0,
            memory: 1 << 30,
            iterations: 1000,
        }
    }
}
