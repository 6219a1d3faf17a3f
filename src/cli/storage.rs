//! Options that say how codes and scales are stored, and the reading of formats.

use clap::ValueEnum;
use onnx_quant::numerics::format::{Base, Family, Format, Granularity};
use onnx_quant::numerics::scaling::WeightCalibrator;
use onnx_quant::passes::settings::{FloatSettings, StorageSettings};

/// What scales may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScaleWord {
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
    /// What scales may be: float or pow2 (powers of two); --scale pow2 says the same
    #[arg(
        long,
        value_name = "KIND",
        default_value = "float",
        hide_possible_values = true
    )]
    scale_kind: ScaleWord,
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
    /// Write MatMul and Gemm with weights of 2, 4 or 8 bits as com.microsoft.MatMulNBits, for onnxruntime
    #[arg(long)]
    matmul_nbits: bool,
    /// Write formats that the target does not run with basic operators
    #[arg(long)]
    emulate: bool,
}

impl StorageArgs {
    /// The settings; `scale` is the word of `--scale`.
    pub(crate) fn settings(&self, scale: Option<ScaleWord>) -> StorageSettings {
        StorageSettings {
            weight_calibrator: self.weight_calibrator,
            power_of_two: scale.unwrap_or(self.scale_kind) == ScaleWord::Pow2,
            half_scales: self.scale_type == ScaleType::Fp16,
            narrow: self.narrow_range,
            matmul_nbits: self.matmul_nbits,
            emulate: self.emulate,
        }
    }
}

/// The options of `quantize` that say in which type floats are.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Storage")]
pub(crate) struct FloatArgs {
    /// Type of the values that are not quantized: fp32, fp16 or bf16 [default: fp32, or what --activations fp16 says]
    #[arg(long, value_name = "TYPE", value_parser = parse_floats)]
    floats: Option<Base>,
    /// With --floats: operators that stay FP32, types or globs over names, or none [default: those that sum or grow fast]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    fp32_ops: Option<Vec<String>>,
    /// With --floats: inputs and outputs of the model change their type too
    #[arg(long)]
    cast_io: bool,
    /// How biases that are not quantized are stored: fp32 or fp16
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "fp32",
        hide_possible_values = true
    )]
    bias_type: ScaleType,
}

impl FloatArgs {
    /// The settings; `activations` is the type that `--activations` gave.
    ///
    /// # Errors
    /// Two types.
    pub(crate) fn settings(&self, activations: Option<Base>) -> anyhow::Result<FloatSettings> {
        if let (Some(a), Some(b)) = (self.floats, activations)
            && a != b
        {
            anyhow::bail!(
                "--activations {b} and --floats {a} contradict each other: leave one out"
            );
        }
        let base = self.floats.or(activations).filter(|b| *b != Base::Fp32);
        for (given, option) in [
            (self.fp32_ops.is_some(), "--fp32-ops"),
            (self.cast_io, "--cast-io"),
        ] {
            if given && base.is_none() {
                anyhow::bail!(
                    "{option} needs --floats fp16 or bf16: without it all floats stay FP32"
                );
            }
        }
        let keep = self.fp32_ops.clone();
        Ok(FloatSettings {
            base,
            keep: keep.map(|list| if list == ["none"] { Vec::new() } else { list }),
            cast_io: self.cast_io,
            half_biases: self.bias_type == ScaleType::Fp16,
        })
    }
}

fn parse_floats(text: &str) -> Result<Base, String> {
    let base: Base = text.parse().map_err(|e| format!("{e}"))?;
    match base {
        Base::Fp32 | Base::Fp16 | Base::Bf16 => Ok(base),
        _ => Err(format!(
            "`{text}` is no type that operators compute in: use fp32, fp16 or bf16"
        )),
    }
}

/// Reads the format of weights; `none` is float, as everywhere.
pub(crate) fn parse_weights(text: &str) -> Result<Format, String> {
    let text = if text == "none" { "fp32" } else { text };
    text.parse().map_err(|e| format!("{e}"))
}

/// What activations are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ActivationFormat {
    /// Float, of this type where one was given.
    Float(Option<Base>),
    /// Codes.
    Codes(Format),
}

impl ActivationFormat {
    /// The format of the codes.
    pub(crate) fn format(self) -> Option<Format> {
        match self {
            Self::Codes(format) => Some(format),
            Self::Float(_) => None,
        }
    }

    /// The float type that was asked for.
    pub(crate) fn float(self) -> Option<Base> {
        match self {
            Self::Float(base) => base,
            Self::Codes(_) => None,
        }
    }
}

/// Reads the format of activations.
pub(crate) fn parse_activations(text: &str) -> Result<ActivationFormat, String> {
    if text == "none" {
        return Ok(ActivationFormat::Float(None));
    }
    let format: Format = text.parse().map_err(|e| format!("{e}"))?;
    let refuse = |why: &str| Err(format!("`{format}` is no format of activations: {why}"));
    match format.base.info().family {
        Family::Integer | Family::FixedPoint | Family::Float => {}
        Family::Cast if format.granularity.is_some() => return refuse("a cast has no scales"),
        Family::Cast => return Ok(ActivationFormat::Float(Some(format.base))),
        Family::BlockFloat => {
            return refuse(
                "its scales depend on the values, which are not known before the model runs; use fp8e4m3 or fp4e2m1",
            );
        }
        Family::Codebook | Family::Sign => return refuse("it is for weights only; use int4"),
    }
    match format.granularity {
        None | Some(Granularity::Tensor) => Ok(ActivationFormat::Codes(format)),
        Some(_) => Err(
            "activations have one scale for the tensor: no runtime fuses activations with a scale for each channel"
                .to_owned(),
        ),
    }
}
