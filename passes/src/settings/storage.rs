//! How codes and scales are stored.

use onnx_quant_numerics::format::{Base, Scheme};
use onnx_quant_numerics::scaling::{ScaleKind, WeightCalibrator};

/// The choices of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageSettings {
    /// How ranges of weights are chosen; `None` leaves it to the format.
    pub weight_calibrator: Option<WeightCalibrator>,
    /// Scales are powers of two.
    pub power_of_two: bool,
    /// The scales of weights are stored in FP16.
    pub half_scales: bool,
    /// Whether the lowest code stays unused; `None` leaves it to the format.
    pub narrow: Option<bool>,
    /// MatMul and Gemm become `com.microsoft.MatMulNBits`.
    pub matmul_nbits: bool,
    /// Weights are decoded by basic operators instead of DequantizeLinear.
    pub emulate: bool,
}

impl StorageSettings {
    /// How ranges of weights are chosen in a format.
    pub fn calibrator(&self, base: Base) -> WeightCalibrator {
        self.weight_calibrator
            .unwrap_or_else(|| WeightCalibrator::default_for(base))
    }

    /// Whether the lowest code stays unused. With 8 bits and more symmetric signed codes leave it out, as integer kernels
    /// want it; with fewer it is too good to be lost.
    pub fn narrow(&self, base: Base, scheme: Scheme) -> bool {
        let info = base.info();
        self.narrow
            .unwrap_or(scheme == Scheme::Symmetric && info.signed && info.bits >= 8)
    }

    /// What the scales of weights may be, in a model whose floats are FP16 or not.
    pub fn scale(&self, half_model: bool) -> ScaleKind {
        ScaleKind {
            power_of_two: self.power_of_two,
            half: self.half_scales || half_model,
        }
    }
}
