//! Number formats and how they are written: `BASE[:GRANULARITY]`, for example `int8` or `int8:channel`.
//!
//! [`BASES`] is the one table of formats; everything that depends on a format's width, sign or
//! ONNX type number reads it there.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A base number format: how one code is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Base {
    /// Two's complement, 8 bits.
    Int8,
    /// Unsigned, 8 bits.
    Uint8,
    /// Two's complement, 16 bits.
    Int16,
    /// Unsigned, 16 bits.
    Uint16,
    /// Two's complement, 4 bits, two codes in a byte.
    Int4,
    /// Unsigned, 4 bits, two codes in a byte.
    Uint4,
}

/// What is fixed about a [`Base`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseInfo {
    /// The format described.
    pub base: Base,
    /// The name it is written with.
    pub name: &'static str,
    /// Bits of one stored code.
    pub bits: u32,
    /// Whether codes below zero exist.
    pub signed: bool,
    /// Smallest code.
    pub qmin: i32,
    /// Largest code.
    pub qmax: i32,
    /// `TensorProto.DataType` of the ONNX standard.
    pub onnx_type: i32,
    /// First ai.onnx opset whose QuantizeLinear and DequantizeLinear have this type, with one scale for the tensor.
    pub min_opset: i64,
}

const fn integer(
    base: Base,
    name: &'static str,
    bits: u32,
    signed: bool,
    onnx_type: i32,
    min_opset: i64,
) -> BaseInfo {
    let (qmin, qmax) = if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    };
    BaseInfo {
        base,
        name,
        bits,
        signed,
        qmin,
        qmax,
        onnx_type,
        min_opset,
    }
}

/// Every base format, in the order in which they are listed to a user and of the variants of [`Base`].
pub const BASES: &[BaseInfo] = &[
    integer(Base::Int8, "int8", 8, true, 3, 10),
    integer(Base::Uint8, "uint8", 8, false, 2, 10),
    integer(Base::Int16, "int16", 16, true, 5, 21),
    integer(Base::Uint16, "uint16", 16, false, 4, 21),
    integer(Base::Int4, "int4", 4, true, 22, 21),
    integer(Base::Uint4, "uint4", 4, false, 21, 21),
];

impl Base {
    /// Every base format with its description.
    pub const fn all() -> &'static [BaseInfo] {
        BASES
    }

    /// The description of this format.
    pub const fn info(self) -> &'static BaseInfo {
        &BASES[self as usize]
    }

    /// The format with this `TensorProto.DataType` number, if there is one.
    pub fn from_onnx_type(data_type: i32) -> Option<Self> {
        BASES
            .iter()
            .find(|info| info.onnx_type == data_type)
            .map(|info| info.base)
    }

    /// Bytes that `count` codes occupy in `raw_data`; a last half byte is padded.
    pub const fn storage_bytes(self, count: usize) -> usize {
        match self.info().bits {
            4 => count.div_ceil(2),
            bits => count * (bits as usize / 8),
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.info().name)
    }
}

impl FromStr for Base {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let names = BASES.iter().map(|info| info.name);
        lookup("number format", text, names).map(|at| BASES[at].base)
    }
}

/// How many values share one scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Granularity {
    /// One for the whole tensor.
    Tensor,
    /// One for each index of the operator's output channel axis.
    Channel,
}

const GRANULARITIES: [(&str, Granularity); 2] = [
    ("tensor", Granularity::Tensor),
    ("channel", Granularity::Channel),
];

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(GRANULARITIES[*self as usize].0)
    }
}

impl FromStr for Granularity {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let names = GRANULARITIES.iter().map(|(name, _)| *name);
        lookup("granularity", text, names).map(|at| GRANULARITIES[at].1)
    }
}

/// A base format and, where it is given, its granularity; `None` leaves the choice to the caller's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Format {
    /// How one code is stored.
    pub base: Base,
    /// How many values share a scale.
    pub granularity: Option<Granularity>,
}

impl Format {
    /// First ai.onnx opset whose QuantizeLinear and DequantizeLinear express this format;
    /// a scale for each channel needs the `axis` attribute of opset 13.
    pub fn min_opset(&self) -> i64 {
        let base = self.base.info().min_opset;
        match self.granularity {
            Some(Granularity::Channel) => base.max(13),
            _ => base,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.granularity {
            Some(granularity) => write!(f, "{}:{granularity}", self.base),
            None => write!(f, "{}", self.base),
        }
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (base, granularity) = match text.split_once(':') {
            Some((base, granularity)) => (base, Some(granularity.parse()?)),
            None => (text, None),
        };
        Ok(Format {
            base: base.parse()?,
            granularity,
        })
    }
}

/// Where the zero point lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// The zero point is the middle of the code range: 0 for signed codes, 2^(n-1) for unsigned codes.
    Symmetric,
    /// The zero point is any code.
    Asymmetric,
}

const SCHEMES: [(&str, Scheme); 2] = [
    ("symmetric", Scheme::Symmetric),
    ("asymmetric", Scheme::Asymmetric),
];

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(SCHEMES[*self as usize].0)
    }
}

impl FromStr for Scheme {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        lookup("scheme", text, SCHEMES.iter().map(|(name, _)| *name)).map(|at| SCHEMES[at].1)
    }
}

/// A name that is not in the table it was looked up in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown {kind} `{given}`{}; valid: {}", did_you_mean(.suggestion), .valid.join(", "))]
pub struct FormatError {
    /// What was looked up: `number format`, `granularity`, …
    pub kind: &'static str,
    /// The text that was given.
    pub given: String,
    /// The valid name nearest to it, where one is near.
    pub suggestion: Option<&'static str>,
    /// Every valid name.
    pub valid: Vec<&'static str>,
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

/// The position of `given` among `names`, without regard to case.
pub(crate) fn lookup(
    kind: &'static str,
    given: &str,
    names: impl Iterator<Item = &'static str>,
) -> Result<usize, FormatError> {
    let valid: Vec<&'static str> = names.collect();
    let lower = given.trim().to_ascii_lowercase();
    if let Some(at) = valid.iter().position(|name| *name == lower) {
        return Ok(at);
    }
    let similarity = |name: &str| strsim::normalized_damerau_levenshtein(name, &lower);
    let suggestion = valid
        .iter()
        .copied()
        .filter(|name| similarity(name) >= 0.5)
        .reduce(|best, name| {
            if similarity(name) > similarity(best) {
                name
            } else {
                best
            }
        });
    Err(FormatError {
        kind,
        given: given.to_owned(),
        suggestion,
        valid,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_variants() {
        for info in Base::all() {
            assert_eq!(info.base.info(), info);
            assert_eq!(info.name.parse::<Base>().unwrap(), info.base);
            assert_eq!(Base::from_onnx_type(info.onnx_type), Some(info.base));
            assert_eq!(
                i64::from(info.qmax) - i64::from(info.qmin) + 1,
                1 << info.bits
            );
        }
        assert_eq!(
            (Base::Int8.info().qmin, Base::Int8.info().qmax),
            (-128, 127)
        );
        assert_eq!(
            (Base::Uint16.info().qmin, Base::Uint16.info().qmax),
            (0, 65535)
        );
    }

    #[test]
    fn every_format_reads_back_as_written() {
        for info in Base::all() {
            for granularity in [None, Some(Granularity::Tensor), Some(Granularity::Channel)] {
                let format = Format {
                    base: info.base,
                    granularity,
                };
                assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
            }
        }
        assert_eq!(
            "INT8:Channel".parse::<Format>().unwrap().to_string(),
            "int8:channel"
        );
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        }
    }

    #[test]
    fn unknown_names_are_answered_with_the_valid_ones() {
        let message = |text: &str| text.parse::<Format>().unwrap_err().to_string();
        assert_eq!(
            message("itn8"),
            "unknown number format `itn8` (did you mean `int8`?); valid: int8, uint8, int16, uint16, int4, uint4"
        );
        assert_eq!(
            message("int8:chanel"),
            "unknown granularity `chanel` (did you mean `channel`?); valid: tensor, channel"
        );
        assert_eq!(
            message("q"),
            "unknown number format `q`; valid: int8, uint8, int16, uint16, int4, uint4"
        );
        for bad in ["", ":", "int8:", ":tensor", "int8:tensor:channel"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
        assert_eq!(
            "symetric".parse::<Scheme>().unwrap_err().suggestion,
            Some("symmetric")
        );
    }

    #[test]
    fn opset_and_bytes() {
        assert_eq!("int8".parse::<Format>().unwrap().min_opset(), 10);
        assert_eq!("int8:channel".parse::<Format>().unwrap().min_opset(), 13);
        assert_eq!("int4:channel".parse::<Format>().unwrap().min_opset(), 21);
        assert_eq!(Base::Int4.storage_bytes(3), 2);
        assert_eq!(Base::Uint16.storage_bytes(3), 6);
        assert_eq!(Base::Int8.storage_bytes(3), 3);
    }
}
