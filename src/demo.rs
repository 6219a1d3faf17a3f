//! The demo: a small float classifier with its calibration data, evaluation data and labels, carried by the library.

use std::path::{Path, PathBuf};

use onnx_quant_ir::save;

use crate::error::Error;

/// The files, with the names under which they are written.
pub const FILES: [(&str, &[u8]); 4] = [
    ("model.onnx", include_bytes!("../assets/demo/model.onnx")),
    ("calib.npz", include_bytes!("../assets/demo/calib.npz")),
    ("eval.npz", include_bytes!("../assets/demo/eval.npz")),
    ("labels.npy", include_bytes!("../assets/demo/labels.npy")),
];

/// Where the files of the demo are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demo {
    /// The float model: ten kinds of images of 32 × 32 pixels.
    pub model: PathBuf,
    /// Calibration data.
    pub calibration: PathBuf,
    /// Evaluation data.
    pub evaluation: PathBuf,
    /// The classes of the evaluation data.
    pub labels: PathBuf,
}

/// Writes the files into a folder that exists.
///
/// # Errors
/// What the file system says.
pub fn write(folder: &Path) -> Result<Demo, Error> {
    for (name, bytes) in FILES {
        save::write_atomically(&folder.join(name), |f| f.write_all(bytes))?;
    }
    let [model, calibration, evaluation, labels] = FILES.map(|(name, _)| folder.join(name));
    Ok(Demo {
        model,
        calibration,
        evaluation,
        labels,
    })
}
