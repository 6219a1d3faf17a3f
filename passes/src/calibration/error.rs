//! What can be wrong with statistics that come from files.

use thiserror::Error;

/// Why statistics cannot be read, merged or used.
#[derive(Debug, Error)]
pub enum CalibrationError {
    /// The text is no statistics.
    #[error("is not a calibration file: {0}")]
    Json(#[from] serde_json::Error),
    /// Another form of the file.
    #[error("is in the form `{0}`, and this version reads `onnx-quant calibration 1`")]
    Format(String),
    /// The sample counts contradict each other.
    #[error("is not a calibration file: its parts contradict each other")]
    Parts,
    /// Two models.
    #[error("belongs to another model ({}…, not {}…): calibrate this model, exactly this file", short(.0), short(.1))]
    Models(String, String),
    /// Two runtimes.
    #[error("was made with {0}, not with {1}: one runtime must see all samples")]
    Engines(String, String),
    /// Data of different length.
    #[error("is of other data: {0} samples, not {1}; only parts of the same data can be merged")]
    Data(usize, usize),
    /// Other data of the same length, or in another order.
    #[error(
        "is of other data, or of the same in another order; only parts of the same data can be merged"
    )]
    OtherData,
    /// The same samples twice.
    #[error("samples {0} to {1} are in more than one part: give every shard once")]
    Twice(usize, usize),
    /// Different values were observed.
    #[error(
        "`{0}` was observed in one part and not in the other: make all parts with the same version and options"
    )]
    Values(String),
}

fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}
