//! A trial, what is summed up of it over the samples, and how that is kept in the cache.

use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::Format;

use super::errors::Errors;
use super::loss::{Loss, LossKind};
use super::variant::Input;

/// A format of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    /// Of the weights.
    pub(super) weights: Option<Format>,
    /// Of the activation, with its scale.
    pub(super) input: Option<(Format, QParams)>,
}

impl Trial {
    /// The activation's format and scale.
    pub(super) fn input(&self) -> Option<Input> {
        self.input.map(|(format, params)| Input { format, params })
    }

    /// Both formats as text.
    pub(super) fn texts(&self) -> (Option<String>, Option<String>) {
        (
            self.weights.map(|f| f.to_string()),
            self.input.map(|(f, _)| f.to_string()),
        )
    }

    /// Bits of a weight times bits of an activation.
    pub(super) fn bits(&self) -> u64 {
        let of = |f: Option<Format>| f.map_or(32, |f| u64::from(f.base.info().bits));
        of(self.weights) * of(self.input.map(|(f, _)| f))
    }
}

/// The sums of one trial.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    pub(super) loss: Loss,
    pub(super) local: Loss,
    /// Where the outputs move to.
    pub(super) errors: Errors,
    /// Why it is not possible.
    pub(super) refused: Option<String>,
    pub(super) bytes: u64,
}

impl Sums {
    /// The loss of the trial.
    pub(super) fn value(&self, kind: LossKind) -> f64 {
        match kind {
            LossKind::Local => self.local.value(kind),
            _ => self.loss.value(kind),
        }
    }
}

/// The sums as bits, for the cache.
pub(super) fn to_bits(s: &Sums) -> [Vec<u64>; 4] {
    [
        s.loss.to_bits(),
        s.local.to_bits(),
        vec![s.bytes],
        s.errors.to_bits(),
    ]
}

/// The sums of all trials of a layer from their bits.
pub(super) fn from_bits(bits: &[Vec<u64>], trials: usize) -> Option<Vec<Sums>> {
    if bits.len() != 4 * trials {
        return None;
    }
    bits.chunks_exact(4)
        .map(|b| {
            Some(Sums {
                loss: Loss::from_bits(&b[0])?,
                local: Loss::from_bits(&b[1])?,
                refused: None,
                bytes: *b[2].first()?,
                errors: Errors::from_bits(&b[3]),
            })
        })
        .collect()
}
