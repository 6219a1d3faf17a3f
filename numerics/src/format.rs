//! Number formats and how they are written: `BASE[:GRANULARITY]`, for example `int8`, `int4:block32`, `mxfp4`.
//!
//! [`Base`] is how one code is stored, [`Granularity`] how many values share a scale. [`Base::info`] is the one registry
//! of formats; everything that depends on a format's width, sign, ONNX type number or version reads it there.
//! [`Format::footprint`] counts what a format stores.

mod base;
mod error;
mod footprint;
mod granularity;
mod registry;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use base::Base;
pub use error::FormatError;
pub(crate) use error::lookup;
pub use footprint::{Footprint, Groups};
pub use granularity::{Granularity, Scheme};
pub use registry::{BaseInfo, Family};

/// A base format and, where it is given, its granularity; `None` leaves the choice to [`Format::granularity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Format {
    /// How one code is stored.
    pub base: Base,
    /// How many values share a scale, where it was said.
    pub granularity: Option<Granularity>,
}

impl Format {
    /// A format with its granularity.
    ///
    /// # Errors
    /// A granularity that the base format does not have.
    pub fn new(base: Base, granularity: Option<Granularity>) -> Result<Self, FormatError> {
        let format = Format { base, granularity };
        let refuse = |rule| {
            Err(FormatError::Granularity {
                given: format.to_string(),
                base: base.to_string(),
                rule,
            })
        };
        let Some(granularity) = granularity else {
            return Ok(format);
        };
        let info = base.info();
        match (info.family, granularity) {
            (Family::Cast, _) => refuse("has no scale, so it has no granularity"),
            (Family::BlockFloat, Granularity::Block(n)) if base.own_block() == Some(n) => {
                Ok(format)
            }
            (Family::BlockFloat, _) if base == Base::Nvfp4 => {
                refuse("has blocks of 16 by definition")
            }
            (Family::BlockFloat, _) => refuse("has blocks of 32 by definition"),
            (Family::FixedPoint, Granularity::Tensor) => Ok(format),
            (Family::FixedPoint, _) => refuse("has one scale, 2^-F, for every value: `:tensor`"),
            (Family::Integer, _) => Ok(format),
            (_, Granularity::Vsq(_)) => {
                refuse("has no integer scale for each vector: `vsqN` is for intN and uintN")
            }
            _ => Ok(format),
        }
    }

    /// The granularity: as given, else what belongs to the base format, else `default`.
    pub fn granularity(&self, default: Granularity) -> Granularity {
        let own = match self.base.info().family {
            Family::Cast | Family::FixedPoint => Some(Granularity::Tensor),
            _ => self.base.own_block().map(Granularity::Block),
        };
        self.granularity.or(own).unwrap_or(default)
    }

    /// The granularity of weights: as given, else what belongs to the base format, else one codebook for the tensor, whose
    /// entries would outweigh the codes of a small channel, and a scale for each channel.
    pub fn weight_granularity(&self) -> Granularity {
        self.granularity(match self.base.info().family {
            Family::Codebook => Granularity::Tensor,
            _ => Granularity::Channel,
        })
    }

    /// First ai.onnx opset whose operators express this format: a scale for each channel needs the `axis` attribute of
    /// opset 13, blocks `block_size` of opset 21.
    pub fn min_opset(&self) -> i64 {
        let base = self.base.info().min_opset;
        match self.weight_granularity() {
            Granularity::Tensor => base,
            Granularity::Channel => base.max(13),
            Granularity::Block(_) | Granularity::Vsq(_) => base.max(21),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.granularity {
            Some(granularity) => f.pad(&format!("{}:{granularity}", self.base)),
            None => f.pad(&self.base.to_string()),
        }
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (base, granularity) = match text.split_once(':') {
            Some((base, granularity)) => (base, Some(granularity)),
            None => (text, None),
        };
        let base = base.parse()?;
        Format::new(base, granularity.map(str::parse).transpose()?)
    }
}
