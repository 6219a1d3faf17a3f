//! What a compression did, as data.

use serde::Serialize;

use crate::check::CheckReport;
use crate::report::Budget;

use super::container::Parts;
use super::targets::Left;

/// The report of one compression.
#[derive(Debug, Clone, Serialize)]
pub struct CompressReport {
    /// Program and version.
    pub tool: String,
    /// The model that was read.
    pub model: String,
    /// The file that was written; absent where none was.
    pub output: Option<String>,
    /// Why no file was written, where none was.
    pub not_written: Option<String>,
    /// Bytes of the model that was read.
    pub before_bytes: u64,
    /// Bytes of the file.
    pub after_bytes: u64,
    /// `before / after`.
    pub ratio: f64,
    /// What the parts of the file take.
    pub parts: Parts,
    /// Share of the compressed weights' values that are zero.
    pub sparsity: f64,
    /// What the compressed weights take after each stage.
    pub stages: Vec<StageReport>,
    /// Every compressed weight.
    pub weights: Vec<WeightReport>,
    /// Tensors of 1 kB and more that are stored as they are.
    pub left: Vec<Left>,
    /// What was measured on the way.
    pub trials: Vec<Trial>,
    /// Samples that statistics were gathered on.
    pub calibration_samples: usize,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The comparison with the float model, where evaluation data was given.
    pub check: Option<CheckReport>,
    /// The budget and whether it holds, where one was given.
    pub budget: Option<Budget>,
}

/// What the compressed weights take after a stage.
#[derive(Debug, Clone, Serialize)]
pub struct StageReport {
    /// `float`, `pruned`, `clustered`, `huffman`, `range` or `file`.
    pub stage: &'static str,
    /// Bits of all compressed weights.
    pub bits: u64,
    /// Bits for each value.
    pub bits_per_value: f64,
    /// Bits that it saves against the stage before it; `huffman` and `range` both follow `clustered`.
    pub saved_bits: i64,
}

/// A compressed weight.
#[derive(Debug, Clone, Serialize)]
pub struct WeightReport {
    /// Its key.
    pub weight: String,
    /// Values.
    pub values: u64,
    /// Bits of a code.
    pub bits: u32,
    /// Entries of the codebook that are used.
    pub entries: usize,
    /// Share of its values that are zero.
    pub sparsity: f64,
    /// Signal-to-noise ratio in dB, by the statistics where there are some; absent where nothing is lost.
    pub sqnr_db: Option<f64>,
    /// Shannon's bound for its codes and the codebook, in bits for each value.
    pub bits_per_value: f64,
}

/// A sparsity that was tried.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Trial {
    /// The share of zeros.
    pub sparsity: f64,
    /// The metric's drop.
    pub drop: f64,
}
