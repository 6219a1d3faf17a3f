//! What can go wrong on the way from a model to a checked, quantized model.

use onnx_quant_ir::engine::EngineError;
use onnx_quant_ir::load::LoadError;
use onnx_quant_ir::pass::RunError;
use onnx_quant_ir::save::SaveError;

use crate::data::DataError;

/// An error of the pipeline. Each names the file, the node or the argument at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A pass refuses the model.
    #[error(transparent)]
    Pass(#[from] RunError),
    /// The model cannot be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The data does not fit.
    #[error(transparent)]
    Data(#[from] DataError),
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// An error in what was asked for.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }
}
