//! The methods by name, and the presets.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One method of accuracy recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Cross-layer equalization of the float model.
    Equalize,
    /// Biases that a Relu lets through in any case, moved behind it.
    AbsorbBiases,
    /// Channels that are far larger than the others, split into equal parts.
    SplitChannels,
    /// Factors between activations and the weights that read them: SmoothQuant, or AWQ where activations stay in float.
    Smooth,
    /// Scales of weights by the error of the layer's output.
    MseScales,
    /// Half-quadratic quantization: scales and zero points without data.
    Hqq,
    /// Learned rounding.
    Adaround,
    /// Rounding with error feedback through the Hessian.
    Gptq,
    /// Learned rounding of whole residual and transformer blocks.
    Blocks,
    /// Block reconstruction with steps of activations that are learned too.
    LearnedSteps,
    /// Block reconstruction with activations that are left unquantized at random while it learns.
    Qdrop,
    /// Biases that keep the mean of each output channel.
    BiasCorrection,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Method {
    /// Every method, in the order in which they work on a layer.
    pub const ALL: [Self; 12] = [
        Self::Equalize,
        Self::AbsorbBiases,
        Self::SplitChannels,
        Self::Smooth,
        Self::MseScales,
        Self::Hqq,
        Self::Adaround,
        Self::Gptq,
        Self::Blocks,
        Self::LearnedSteps,
        Self::Qdrop,
        Self::BiasCorrection,
    ];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equalize => "equalize",
            Self::AbsorbBiases => "absorb-biases",
            Self::SplitChannels => "split-channels",
            Self::Smooth => "smooth",
            Self::MseScales => "mse-scales",
            Self::Hqq => "hqq",
            Self::Adaround => "adaround",
            Self::Gptq => "gptq",
            Self::Blocks => "blocks",
            Self::LearnedSteps => "learned-steps",
            Self::Qdrop => "qdrop",
            Self::BiasCorrection => "bias-correction",
        }
    }

    /// Whether it needs calibration data. Bias correction does without where BatchNormalization says what channels hold.
    pub fn needs_data(self) -> bool {
        !matches!(
            self,
            Self::Equalize
                | Self::AbsorbBiases
                | Self::SplitChannels
                | Self::MseScales
                | Self::Hqq
                | Self::BiasCorrection
        )
    }
}

/// What `--optimize` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Methods {
    set: BTreeSet<Method>,
    preset: Option<&'static str>,
}

impl Methods {
    /// Whether a method is asked for.
    pub fn has(&self, method: Method) -> bool {
        self.set.contains(&method)
    }

    /// Whether blocks are learned as a whole.
    pub fn blocks(&self) -> bool {
        [Method::Blocks, Method::LearnedSteps, Method::Qdrop]
            .iter()
            .any(|m| self.has(*m))
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether they were chosen by a preset: the kind of each layer then decides between rounding methods.
    pub fn is_preset(&self) -> bool {
        self.preset.is_some()
    }

    /// Whether accuracy goes before size: the preset `best`.
    pub fn is_best(&self) -> bool {
        self.preset == Some("best")
    }

    /// The methods that were named one by one and need data.
    pub fn named_with_data(&self) -> Option<Method> {
        let needing = self.set.iter().find(|m| m.needs_data()).copied();
        needing.filter(|_| self.preset.is_none())
    }

    /// The methods that change the float model before it is calibrated.
    pub fn changing_the_model(&self) -> Vec<Method> {
        let changes = |m: &&Method| {
            use Method::{AbsorbBiases, Equalize, Smooth, SplitChannels};
            matches!(m, Equalize | AbsorbBiases | SplitChannels | Smooth)
        };
        self.set.iter().filter(changes).copied().collect()
    }

    /// Without some methods.
    pub fn without(mut self, others: &[Method]) -> Self {
        self.set.retain(|m| !others.contains(m));
        self
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.set.iter().map(|m| m.name()).collect();
        match (self.preset, names.is_empty()) {
            (Some(preset), _) => f.pad(preset),
            (None, true) => f.pad("none"),
            (None, false) => f.pad(&names.join(",")),
        }
    }
}

impl FromStr for Methods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use Method::{
            AbsorbBiases, Adaround, BiasCorrection, Blocks, Equalize, Gptq, LearnedSteps,
            MseScales, Qdrop, Smooth,
        };
        let preset = |name, methods: &[Method]| Self {
            set: methods.iter().copied().collect(),
            preset: Some(name),
        };
        match text {
            "none" => return Ok(Self::default()),
            "fast" => {
                return Ok(preset(
                    "fast",
                    &[Equalize, AbsorbBiases, MseScales, BiasCorrection],
                ));
            }
            "best" => {
                let all = [
                    Equalize,
                    AbsorbBiases,
                    Smooth,
                    MseScales,
                    Adaround,
                    Gptq,
                    Blocks,
                    LearnedSteps,
                    Qdrop,
                    BiasCorrection,
                ];
                return Ok(preset("best", &all));
            }
            _ => {}
        }
        let mut set = BTreeSet::new();
        for word in text.split(',').map(str::trim) {
            set.insert(method(word)?);
        }
        Ok(Self { set, preset: None })
    }
}

fn method(word: &str) -> Result<Method, String> {
    let names: Vec<&str> = Method::ALL.iter().map(|m| m.name()).collect();
    if let Some(found) = Method::ALL.iter().find(|m| m.name() == word) {
        return Ok(*found);
    }
    let all = names.iter().copied().chain(["none", "fast", "best"]);
    let near = all
        .map(|n| (strsim::jaro_winkler(n, word), n))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Err(match near {
        Some((_, name)) => format!("there is no method `{word}`; did you mean `{name}`?"),
        None => format!(
            "there is no method `{word}`: give none, fast, best, or a list of {}",
            names.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_and_presets() {
        let best: Methods = "best".parse().unwrap();
        assert!(best.has(Method::Gptq) && best.is_preset());
        assert_eq!(best.to_string(), "best");
        let chosen: Methods = "bias-correction, adaround".parse().unwrap();
        assert_eq!(chosen.to_string(), "adaround,bias-correction");
        assert_eq!(chosen.named_with_data(), Some(Method::Adaround));
        assert!("none".parse::<Methods>().unwrap().is_empty());
        let wrong = "adarond".parse::<Methods>().unwrap_err();
        assert!(wrong.contains("did you mean `adaround`?"), "{wrong}");
        for method in Method::ALL {
            assert!(method.name().parse::<Methods>().unwrap().has(method));
        }
        let changing = best.changing_the_model();
        assert_eq!(
            changing,
            [Method::Equalize, Method::AbsorbBiases, Method::Smooth]
        );
        assert!(best.without(&changing).changing_the_model().is_empty());
    }
}
