//! What an analysis found, as a file: JSON with sorted keys, which carries the digests of its model and data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_quant_passes::settings::QuantSettings;
use serde::{Deserialize, Serialize};

use super::digest;
use super::loss::LossKind;
use super::settings_text::{Given, Wrong};
use crate::data::DataSpec;
use crate::error::Error;

/// The version of the file's layout.
pub const VERSION: u32 = 1;

/// The result of an analysis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// The version of the layout.
    pub version: u32,
    /// Program and version.
    pub tool: String,
    /// The model that was analysed.
    pub model: String,
    /// Its digest.
    pub model_digest: String,
    /// Digests of the calibration data, the evaluation data and the labels.
    pub data_digests: Vec<String>,
    /// What the losses are.
    pub loss: LossKind,
    /// Samples that were looked at.
    pub samples: usize,
    /// The formats as they were asked for.
    pub candidates: Vec<String>,
    /// The settings that it was made with.
    pub given: Given,
    /// The format of activations that operators between layers get, where layers are quantized on both sides.
    pub activations: Option<String>,
    /// Bytes of the float model after normalization.
    pub float_bytes: u64,
    /// Every layer, in program order.
    pub layers: Vec<Layer>,
    /// Layers that were not measured, with the reason.
    pub unmeasured: BTreeMap<String, String>,
    /// All layers quantized at once: the ratio of signal to noise at each layer's output, where the error has
    /// accumulated.
    pub accumulated: Vec<Accumulated>,
    /// Pairs of neighbours quantized together.
    pub interactions: Vec<Interaction>,
    /// Scale and zero point of each activation, by value and format.
    pub ranges: BTreeMap<String, BTreeMap<String, (f64, i32)>>,
    /// Operators between layers that can run in few bits, with the stream that they stand in.
    pub between: BTreeMap<String, String>,
    /// Operators between layers that stay in float also where all layers are quantized, with the reason, by format of
    /// the activations.
    pub floats: BTreeMap<String, BTreeMap<String, String>>,
    /// The evaluation data: `assign` runs complete models on it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evaluation: Option<DataSpec>,
    /// Its labels.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub labels: Option<PathBuf>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Graph path and name of the node.
    pub name: String,
    /// Operator type.
    pub op: String,
    /// The activation that it reads in few bits, where it does.
    pub input: Option<String>,
    /// The values that are quantized in one format with that activation (around a Concat, a residual addition, a
    /// reshape), by one of them: layers of one stream read it in one format, or in float.
    pub stream: Option<String>,
    /// The initializers that it reads: layers that share one must store it alike.
    pub tensors: Vec<String>,
    /// Number of weights.
    pub weights: u64,
    /// Multiplications for one sample.
    pub macs: u64,
    /// Bytes stored for it in float.
    pub float_bytes: u64,
    /// Time of one sample in float, in microseconds, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub float_micros: Option<f64>,
    /// Every format that was tried.
    pub formats: Vec<Measured>,
}

/// A layer in one format, with all others in float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Format of the weights; absent for float.
    pub weights: Option<String>,
    /// Format of the activation; absent for float.
    pub activations: Option<String>,
    /// The loss of the model's output; absent where the format is not possible.
    pub loss: Option<f64>,
    /// The ratio of signal to noise of the model's first output, in dB.
    pub sqnr_db: Option<f64>,
    /// The ratio of signal to noise of the layer's own output, in dB.
    pub local_sqnr_db: Option<f64>,
    /// What top-1 accuracy lost on the samples, where there are labels.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drop: Option<f64>,
    /// Where it moves the outputs: the direction of a vector whose squared length is the loss, as half precision numbers
    /// in hexadecimal digits. Layers whose directions are alike make more loss together than the sum.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub direction: Option<String>,
    /// Samples that were run: fewer where the format is hopeless, or its loss too small to matter.
    pub samples: usize,
    /// Bytes stored.
    pub bytes: u64,
    /// Bits of a multiplication: those of a weight times those of an activation.
    pub bits: u64,
    /// Time of one sample in microseconds, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub micros: Option<f64>,
    /// Why the format is not possible, or was given up.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remark: Option<String>,
}

impl Measured {
    /// How it is written: `int8:channel/uint8`.
    pub fn name(&self) -> String {
        name(self.weights.as_deref(), self.activations.as_deref())
    }
}

/// `WEIGHTS/ACTIVATIONS`, `fp32` and `none` for float.
pub fn name(weights: Option<&str>, activations: Option<&str>) -> String {
    format!(
        "{}/{}",
        weights.unwrap_or("fp32"),
        activations.unwrap_or("none")
    )
}

/// The error at one layer with all layers quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accumulated {
    /// The layer.
    pub layer: String,
    /// The formats of all layers.
    pub format: String,
    /// Signal to noise in dB; absent where there is no error.
    pub sqnr_db: Option<f64>,
}

/// Two layers quantized together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interaction {
    /// The layer before.
    pub first: String,
    /// The layer behind.
    pub second: String,
    /// The format of both.
    pub format: String,
    /// The loss of both together.
    pub loss: f64,
    /// That less the sum of both alone.
    pub excess: f64,
}

impl Sensitivity {
    /// Reads the file.
    ///
    /// # Errors
    /// A file that cannot be read or is of another kind.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::usage(format!(
                "the sensitivities {} cannot be read: {e}",
                path.display()
            ))
        })?;
        let read: Self = serde_json::from_str(&text)
            .map_err(|e| Error::usage(format!("{} holds no sensitivities: {e}", path.display())))?;
        if read.version != VERSION {
            return Err(Error::usage(format!(
                "{}: sensitivities of version {} are not known, only {VERSION}: run `analyze` again",
                path.display(),
                read.version
            )));
        }
        Ok(read)
    }

    /// The settings that it was made with, which are those of every plan that is made from it.
    ///
    /// # Errors
    /// A word that is none.
    pub fn settings(&self) -> Result<QuantSettings, Error> {
        let wrong = |w: Wrong| {
            let (key, message) = (w.key, w.message);
            Error::usage(format!("the sensitivities: the setting `{key}`: {message}"))
        };
        self.given.settings().map_err(wrong)
    }

    /// The evaluation data and the labels of the analysis.
    ///
    /// # Errors
    /// None were given, or they have changed.
    pub fn judged_on(&self) -> Result<(Option<DataSpec>, Option<PathBuf>), Error> {
        let Some(data) = &self.evaluation else {
            return Err(Error::usage(
                "the analysis was made without evaluation data, on which complete models could be run: give --eval",
            ));
        };
        for path in std::iter::once(&data.path).chain(&self.labels) {
            if !data.is_random() && !self.data_digests.contains(&digest::of_data(path)?) {
                return Err(Error::usage(format!(
                    "{} is not what was analysed any more: run `analyze` again, or give --eval",
                    path.display()
                )));
            }
        }
        Ok((self.evaluation.clone(), self.labels.clone()))
    }

    /// The text of the file.
    ///
    /// # Errors
    /// Never for what an analysis gives.
    pub fn to_text(&self) -> Result<String, Error> {
        serde_json::to_string_pretty(self).map_err(|e| Error::usage(e.to_string()))
    }
}
