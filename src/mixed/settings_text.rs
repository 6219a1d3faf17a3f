//! The settings of a quantization as they stand in a plan and in a file of sensitivities.

use std::fmt::Display;
use std::str::FromStr;

use onnx_quant_numerics::binary::Rounding;
use onnx_quant_numerics::format::Format;
use onnx_quant_passes::codebook_weights::{CodebookSettings, SignStorage};
use onnx_quant_passes::layers::{Choice, LayerRule};
use onnx_quant_passes::settings::{FloatSettings, QuantSettings, StorageSettings};
use serde::{Deserialize, Serialize};

/// Settings in words; what is absent is the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsText {
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibrator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_activation_sqnr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isa: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reduce_range: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    qoperator: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dynamic: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_calibrator: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    power_of_two: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    half_scales: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    narrow: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    matmul_nbits: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    emulate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    kmeans_init: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ternary: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stochastic_signs: bool,
    /// `int2` or `int4`; packed where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    signs: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    seed: u64,
    /// Type of the floats, `fp16` or `bf16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    floats: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fp32_ops: Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cast_io: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    half_biases: bool,
}

fn is_zero(x: &u64) -> bool {
    *x == 0
}

/// What is wrong with one of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Its name.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
}

impl SettingsText {
    /// The words for settings.
    pub fn of(s: &QuantSettings) -> Self {
        let text = |x: &dyn Display| Some(x.to_string());
        Self {
            weight_scheme: text(&s.weight_scheme),
            activation_scheme: text(&s.activation_scheme),
            calibrator: text(&s.calibrator),
            min_activation_sqnr: Some(s.min_activation_sqnr),
            target: text(&s.target),
            isa: s.isa.map(|i| i.to_string()),
            reduce_range: s.reduce_range,
            qoperator: s.qoperator,
            dynamic: s.dynamic,
            weight_calibrator: s.storage.weight_calibrator.map(|c| c.to_string()),
            power_of_two: s.storage.power_of_two,
            half_scales: s.storage.half_scales,
            narrow: s.storage.narrow,
            matmul_nbits: s.storage.matmul_nbits,
            emulate: s.storage.emulate,
            kmeans_init: text(&s.codebook.init),
            ternary: text(&s.codebook.threshold),
            stochastic_signs: matches!(s.codebook.rounding, Rounding::Stochastic(_)),
            signs: match s.codebook.signs {
                SignStorage::Packed => None,
                SignStorage::Int2 => Some("int2".to_owned()),
                SignStorage::Int4 => Some("int4".to_owned()),
            },
            seed: s.codebook.seed,
            floats: s.floats.base.map(|b| b.to_string()),
            fp32_ops: s.floats.keep.clone(),
            cast_io: s.floats.cast_io,
            half_biases: s.floats.half_biases,
        }
    }

    /// The settings, without formats, nodes and ranges.
    ///
    /// # Errors
    /// A word that is none.
    pub fn settings(&self) -> Result<QuantSettings, Wrong> {
        let d = QuantSettings::default();
        Ok(QuantSettings {
            weights: None,
            activations: None,
            weight_scheme: word("weight_scheme", &self.weight_scheme, d.weight_scheme)?,
            activation_scheme: word(
                "activation_scheme",
                &self.activation_scheme,
                d.activation_scheme,
            )?,
            calibrator: word("calibrator", &self.calibrator, d.calibrator)?,
            min_activation_sqnr: self.min_activation_sqnr.unwrap_or(d.min_activation_sqnr),
            target: word("target", &self.target, d.target)?,
            isa: maybe("isa", &self.isa)?,
            reduce_range: self.reduce_range,
            qoperator: self.qoperator,
            dynamic: self.dynamic,
            storage: StorageSettings {
                weight_calibrator: maybe("weight_calibrator", &self.weight_calibrator)?,
                power_of_two: self.power_of_two,
                half_scales: self.half_scales,
                narrow: self.narrow,
                matmul_nbits: self.matmul_nbits,
                emulate: self.emulate,
            },
            codebook: CodebookSettings {
                init: word("kmeans_init", &self.kmeans_init, d.codebook.init)?,
                threshold: word("ternary", &self.ternary, d.codebook.threshold)?,
                rounding: match self.stochastic_signs {
                    true => Rounding::Stochastic(self.seed),
                    false => Rounding::Deterministic,
                },
                seed: self.seed,
                signs: match self.signs.as_deref() {
                    None => SignStorage::Packed,
                    Some("int2") => SignStorage::Int2,
                    Some("int4") => SignStorage::Int4,
                    Some(_) => {
                        return Err(Wrong {
                            key: "signs",
                            message: "valid: int2, int4".to_owned(),
                        });
                    }
                },
            },
            floats: FloatSettings {
                base: maybe::<Format>("floats", &self.floats)?.map(|f| f.base),
                keep: self.fp32_ops.clone(),
                cast_io: self.cast_io,
                half_biases: self.half_biases,
            },
            ..d
        })
    }
}

fn maybe<T: FromStr>(key: &'static str, text: &Option<String>) -> Result<Option<T>, Wrong>
where
    T::Err: Display,
{
    let parsed = text.as_ref().map(|t| t.parse::<T>());
    parsed.transpose().map_err(|e| Wrong {
        key,
        message: e.to_string(),
    })
}

fn word<T: FromStr>(key: &'static str, text: &Option<String>, default: T) -> Result<T, Wrong>
where
    T::Err: Display,
{
    Ok(maybe(key, text)?.unwrap_or(default))
}

/// What an analysis was given beside the settings: formats of what is not a layer, nodes, and rules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// The settings.
    pub settings: SettingsText,
    /// Format of weights that are not chosen.
    pub weights: Option<String>,
    /// Nodes that stay in float.
    pub exclude: Vec<String>,
    /// Rules of the user.
    pub rules: Vec<RuleText>,
}

/// A rule for layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleText {
    pattern: String,
    weights: Option<String>,
    activations: Option<String>,
    input_range: Option<(f64, f64)>,
    force: bool,
    reason: Option<String>,
}

impl Given {
    /// The words for settings.
    pub fn of(s: &QuantSettings) -> Self {
        let rule = |r: &LayerRule| RuleText {
            pattern: r.pattern.clone(),
            weights: r.weights.map(|c| c.to_string()),
            activations: r.activations.map(|c| c.to_string()),
            input_range: r.input_range.map(|(a, b)| (a.into(), b.into())),
            force: r.force,
            reason: r.reason.clone(),
        };
        Self {
            settings: SettingsText::of(s),
            weights: s.weights.map(|f| f.to_string()),
            exclude: s.selection.exclude.clone(),
            rules: s.layers.iter().map(rule).collect(),
        }
    }

    /// The settings.
    ///
    /// # Errors
    /// A word that is none.
    pub fn settings(&self) -> Result<QuantSettings, Wrong> {
        let mut settings = self.settings.settings()?;
        settings.weights = maybe("weights", &self.weights)?;
        settings.selection.exclude.clone_from(&self.exclude);
        for r in &self.rules {
            settings.layers.push(LayerRule {
                pattern: r.pattern.clone(),
                weights: maybe::<Choice>("weights", &r.weights)?,
                activations: maybe::<Choice>("activations", &r.activations)?,
                input_range: r.input_range.map(|(a, b)| (a as f32, b as f32)),
                force: r.force,
                reason: r.reason.clone(),
                ..LayerRule::default()
            });
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use onnx_quant_numerics::format::Scheme;
    use onnx_quant_passes::settings::Selection;
    use onnx_quant_passes::target::TargetName;

    #[test]
    fn settings_survive_the_way_through_text() {
        let mut settings = QuantSettings {
            weight_scheme: Scheme::Asymmetric,
            target: TargetName::Tract,
            reduce_range: true,
            selection: Selection {
                exclude: vec!["head.*".to_owned()],
                ..Selection::default()
            },
            activations: None,
            ..QuantSettings::default()
        };
        settings.storage.half_scales = true;
        settings.storage.narrow = Some(false);
        settings.codebook.seed = 7;
        settings.codebook.signs = SignStorage::Int4;
        settings.floats.base = Some(onnx_quant_numerics::format::Base::Fp16);
        settings.codebook.rounding = Rounding::Stochastic(7);
        settings.layers.push(LayerRule {
            pattern: "fc".to_owned(),
            weights: Some(Choice::Float),
            ..LayerRule::default()
        });
        let text = serde_json::to_string(&Given::of(&settings)).unwrap();
        let read: Given = serde_json::from_str(&text).unwrap();
        assert_eq!(read.settings().unwrap(), settings);
        let wrong = SettingsText {
            target: Some("abacus".to_owned()),
            ..SettingsText::default()
        };
        assert_eq!(wrong.settings().unwrap_err().key, "target");
    }
}
