//! How many values share a scale, and where the zero point lies.

use std::fmt;
use std::str::FromStr;

use super::error::{FormatError, lookup, nearest};

/// How many values share one scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Granularity {
    /// One for the whole tensor.
    Tensor,
    /// One for each index of the operator's output channel axis.
    Channel,
    /// One for each block of this many values along the operator's reduction axis; the last block may be shorter.
    Block(u32),
    /// Two levels (VS-Quant): an unsigned 4-bit integer for each vector of this many values along the reduction axis,
    /// and one float for each output channel.
    Vsq(u32),
}

/// Lengths of blocks and vectors that are allowed.
const LENGTHS: std::ops::RangeInclusive<u32> = 2..=1 << 20;

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularity::Tensor => f.pad("tensor"),
            Granularity::Channel => f.pad("channel"),
            Granularity::Block(n) => f.pad(&format!("block{n}")),
            Granularity::Vsq(n) => f.pad(&format!("vsq{n}")),
        }
    }
}

impl FromStr for Granularity {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let lower = text.trim().to_ascii_lowercase();
        let length = |prefix: &str, what, example| {
            let rest = lower.strip_prefix(prefix)?.trim_start_matches(':');
            if !rest.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let length = rest.parse().ok().filter(|n| LENGTHS.contains(n));
            Some(length.ok_or(FormatError::Length {
                given: text.to_owned(),
                what,
                least: *LENGTHS.start(),
                most: *LENGTHS.end(),
                example,
            }))
        };
        if let Some(n) = length("block", "length of a block", "block32") {
            return n.map(Granularity::Block);
        }
        if let Some(n) = length("vsq", "length of a vector", "vsq16") {
            return n.map(Granularity::Vsq);
        }
        match lower.as_str() {
            "tensor" => Ok(Granularity::Tensor),
            "channel" => Ok(Granularity::Channel),
            _ => Err(FormatError::Unknown {
                kind: "granularity",
                given: text.to_owned(),
                suggestion: nearest(
                    &lower,
                    ["tensor", "channel", "block32", "vsq16"].into_iter(),
                ),
                valid: "tensor, channel, blockN, vsqN".to_owned(),
            }),
        }
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
