//! Options that say how codes and scales are stored, and the reading of formats.

use clap::ValueEnum;
use onnx_quant::numerics::format::{Family, Format, Granularity};
use onnx_quant::numerics::scaling::WeightCalibrator;
use onnx_quant::passes::settings::StorageSettings;

/// What scales may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scales {
    /// Any number.
    Float,
    /// Powers of two.
    Pow2,
}

/// The type of scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScaleType {
    /// FP32, in an FP16 model FP16.
    Fp32,
    /// FP16.
    Fp16,
}

/// The options of `quantize` that belong to storage.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Storage")]
pub(crate) struct StorageArgs {
    /// How ranges of weights are chosen: minmax or mse [default: mse with fewer than 8 bits]
    #[arg(long, value_name = "METHOD")]
    weight_calibrator: Option<WeightCalibrator>,
    /// What scales may be: float or pow2 (powers of two)
    #[arg(
        long,
        value_name = "KIND",
        default_value = "float",
        hide_possible_values = true
    )]
    scale_kind: Scales,
    /// How scales of weights are stored: fp32 or fp16
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "fp32",
        hide_possible_values = true
    )]
    scale_type: ScaleType,
    /// Whether weights leave out the lowest code: true or false [default: symmetric weights of 8 bits and more do]
    #[arg(long, value_name = "BOOL")]
    narrow_range: Option<bool>,
}

impl StorageArgs {
    /// The settings.
    pub(crate) fn settings(&self) -> StorageSettings {
        StorageSettings {
            weight_calibrator: self.weight_calibrator,
            power_of_two: self.scale_kind == Scales::Pow2,
            half_scales: self.scale_type == ScaleType::Fp16,
            narrow: self.narrow_range,
            ..StorageSettings::default()
        }
    }
}

/// Reads the format of weights.
pub(crate) fn parse_weights(text: &str) -> Result<Format, String> {
    text.parse().map_err(|e| format!("{e}"))
}

/// A format of activations; `None` where they stay in float.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivationFormat(pub(crate) Option<Format>);

/// Reads the format of activations.
pub(crate) fn parse_activations(text: &str) -> Result<ActivationFormat, String> {
    if text == "none" {
        return Ok(ActivationFormat(None));
    }
    let format: Format = text.parse().map_err(|e| format!("{e}"))?;
    let refuse = |why: &str| Err(format!("`{format}` is no format of activations: {why}"));
    match format.base.info().family {
        Family::Integer | Family::FixedPoint | Family::Float => {}
        Family::Cast => {
            return refuse("a cast has no range to calibrate; use int16, or none for float");
        }
        Family::BlockFloat => {
            return refuse(
                "its scales depend on the values, which are not known before the model runs; use fp8e4m3 or fp4e2m1",
            );
        }
        Family::Codebook | Family::Sign => return refuse("it is for weights only; use int4"),
    }
    match format.granularity {
        None | Some(Granularity::Tensor) => Ok(ActivationFormat(Some(format))),
        Some(_) => Err(
            "activations have one scale for the tensor: no runtime fuses activations with a scale for each channel"
                .to_owned(),
        ),
    }
}
