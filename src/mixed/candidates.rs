//! The formats that an assignment chooses from, as they are written: `int8,int4:block32/uint8,fp16/none`.

use std::fmt;
use std::str::FromStr;

use onnx_quant_numerics::format::{Base, Format, Granularity};
use onnx_quant_passes::layers::Choice;

/// A format of weights, and where it is given one of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Of the weights; `None` is float.
    pub weights: Option<Format>,
    /// Of the activations: not said, float, or a format.
    pub activations: Option<Choice>,
}

impl FromStr for Candidate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (weights, activations) = match text.split_once('/') {
            Some((w, a)) => (w, Some(a.parse::<Choice>()?)),
            None => (text, None),
        };
        let weights = weights.parse::<Choice>()?.format();
        Ok(Self {
            weights,
            activations,
        })
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weights {
            Some(w) => w.fmt(f)?,
            None => f.write_str("fp32")?,
        }
        match self.activations {
            Some(a) => write!(f, "/{a}"),
            None => Ok(()),
        }
    }
}

/// What is chosen from where nothing is said: INT8 with a scale for each channel.
pub fn usual() -> Vec<Candidate> {
    vec![weights(Base::INT8, Granularity::Channel)]
}

/// What is chosen from where a budget may be for less: [`usual`], and INT4 in blocks, the longer the smaller.
pub fn small() -> Vec<Candidate> {
    let blocks = [32, 64, 128].map(|n| weights(Base::INT4, Granularity::Block(n)));
    usual().into_iter().chain(blocks).collect()
}

fn weights(base: Base, granularity: Granularity) -> Candidate {
    Candidate {
        weights: Some(Format {
            base,
            granularity: Some(granularity),
        }),
        activations: None,
    }
}

/// The formats of weights and of activations in a list, each once, in the order of the list.
pub fn formats(candidates: &[Candidate]) -> (Vec<Format>, Vec<Format>) {
    let (mut weights, mut activations) = (Vec::new(), Vec::new());
    for c in candidates {
        if let Some(w) = c.weights.filter(|w| !weights.contains(w)) {
            weights.push(w);
        }
        let a = c.activations.and_then(Choice::format);
        if let Some(a) = a.filter(|a| !activations.contains(a)) {
            activations.push(a);
        }
    }
    (weights, activations)
}

/// A layer whose format the user fixes: `PATTERN=CANDIDATE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Glob over node names, or an operator type.
    pub pattern: String,
    /// Its format.
    pub candidate: Candidate,
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, candidate) = text
            .rsplit_once('=')
            .ok_or("write PATTERN=FORMAT, as in `head.*=int8/uint8`")?;
        Ok(Self {
            pattern: pattern.to_owned(),
            candidate: candidate.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn candidates_are_read_as_they_are_written() {
        for text in [
            "int8:channel",
            "int4:block32/uint8",
            "fp32/none",
            "int8/none",
        ] {
            assert_eq!(text.parse::<Candidate>().unwrap().to_string(), text);
        }
        assert!("int7x".parse::<Candidate>().is_err());
        let pin: Pin = "a=b=int8/none".parse().unwrap();
        assert_eq!(pin.pattern, "a=b");
        assert!("int8".parse::<Pin>().is_err());
        let list: Vec<Candidate> = ["int8/uint8", "int4/uint8", "int8"]
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
        let (w, a) = formats(&list);
        assert_eq!((w.len(), a.len()), (2, 1));
    }
}
