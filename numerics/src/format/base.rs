//! The base formats: how one number is stored. [`Base::info`] is the registry; see [`super::registry`].

use std::fmt;
use std::str::FromStr;

use super::error::{FormatError, nearest};
use super::registry::{self, BaseInfo};
use crate::minifloat::MiniFloat;

/// A base number format: how one code is stored and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Base {
    /// Two's complement integers of 2 to 16 bits with a scale.
    Int(u8),
    /// Unsigned integers of 2 to 16 bits with a scale and a zero point.
    Uint(u8),
    /// Fixed point `Qm.f`: `m` bits before the binary point, the sign among them, and `f` behind it. Two's complement of
    /// `m + f` bits (2 to 16) with the scale `2^-f`.
    Fixed {
        /// Bits before the binary point, with the sign.
        whole: u8,
        /// Bits behind it.
        fraction: u8,
    },
    /// IEEE binary32: nothing is quantized.
    Fp32,
    /// IEEE binary16.
    Fp16,
    /// bfloat16.
    Bf16,
    /// A float of 4 to 8 bits with a scale: one of `FP8_E4M3`, `FP8_E5M2`, `FP6_E2M3`, `FP6_E3M2`, `FP4_E2M1`.
    Mini(MiniFloat),
    /// OCP MX with FP8 elements (E4M3): blocks of 32 with an E8M0 scale.
    Mxfp8,
    /// OCP MX with FP6 elements (E2M3).
    Mxfp6,
    /// OCP MX with FP4 elements (E2M1).
    Mxfp4,
    /// FP4 elements (E2M1) in blocks of 16 with an E4M3 scale, and one FP32 scale for the tensor.
    Nvfp4,
    /// A codebook of `2^n` values and indices of `n` bits, 1 to 8.
    Kmeans(u8),
    /// `−α` and `+α`: one bit.
    Binary,
    /// `−α`, `0` and `+α`: two bits.
    Ternary,
}

impl Base {
    /// `int2`.
    pub const INT2: Base = Base::Int(2);
    /// `int4`.
    pub const INT4: Base = Base::Int(4);
    /// `int8`.
    pub const INT8: Base = Base::Int(8);
    /// `int16`.
    pub const INT16: Base = Base::Int(16);
    /// `uint2`.
    pub const UINT2: Base = Base::Uint(2);
    /// `uint4`.
    pub const UINT4: Base = Base::Uint(4);
    /// `uint8`.
    pub const UINT8: Base = Base::Uint(8);
    /// `uint16`.
    pub const UINT16: Base = Base::Uint(16);
    /// `fp8e4m3`.
    pub const FP8_E4M3: Base = Base::Mini(MiniFloat::E4m3);
    /// `fp8e5m2`.
    pub const FP8_E5M2: Base = Base::Mini(MiniFloat::E5m2);
    /// `fp6e2m3`.
    pub const FP6_E2M3: Base = Base::Mini(MiniFloat::E2m3);
    /// `fp6e3m2`.
    pub const FP6_E3M2: Base = Base::Mini(MiniFloat::E3m2);
    /// `fp4e2m1`.
    pub const FP4_E2M1: Base = Base::Mini(MiniFloat::E2m1);

    /// The registry's entry.
    pub fn info(self) -> BaseInfo {
        registry::info(self)
    }

    /// Every base format but the fixed-point ones, which are any `qM.F`, in the order in which they are listed.
    pub fn all() -> Vec<Base> {
        let widths = || 2..=16u8;
        let mut all: Vec<Base> = widths().map(Base::Int).collect();
        all.extend(widths().map(Base::Uint));
        all.extend([Base::Fp32, Base::Fp16, Base::Bf16]);
        all.extend([
            Base::FP8_E4M3,
            Base::FP8_E5M2,
            Base::FP6_E2M3,
            Base::FP6_E3M2,
            Base::FP4_E2M1,
        ]);
        all.extend([Base::Mxfp8, Base::Mxfp6, Base::Mxfp4, Base::Nvfp4]);
        all.extend((1..=8).map(Base::Kmeans));
        all.extend([Base::Binary, Base::Ternary]);
        all
    }

    /// Whether codes are integers with a scale and a zero point: `intN`, `uintN`, `qM.F`.
    pub const fn is_integer(self) -> bool {
        matches!(self, Base::Int(_) | Base::Uint(_) | Base::Fixed { .. })
    }

    /// The element of a float or block format of 4 to 8 bits.
    pub const fn element(self) -> Option<MiniFloat> {
        match self {
            Base::Mini(element) => Some(element),
            Base::Mxfp8 => Some(MiniFloat::E4m3),
            Base::Mxfp6 => Some(MiniFloat::E2m3),
            Base::Mxfp4 | Base::Nvfp4 => Some(MiniFloat::E2m1),
            _ => None,
        }
    }

    /// The block length that belongs to the format.
    pub const fn own_block(self) -> Option<u32> {
        match self {
            Base::Mxfp8 | Base::Mxfp6 | Base::Mxfp4 => Some(32),
            Base::Nvfp4 => Some(16),
            _ => None,
        }
    }

    /// The format that the standard stores with this `TensorProto.DataType` number, if there is one.
    pub fn from_onnx_type(data_type: i32) -> Option<Self> {
        Some(match data_type {
            1 => Base::Fp32,
            2 => Base::UINT8,
            3 => Base::INT8,
            4 => Base::UINT16,
            5 => Base::INT16,
            10 => Base::Fp16,
            16 => Base::Bf16,
            17 => Base::FP8_E4M3,
            19 => Base::FP8_E5M2,
            21 => Base::UINT4,
            22 => Base::INT4,
            23 => Base::FP4_E2M1,
            25 => Base::UINT2,
            26 => Base::INT2,
            27 => Base::FP6_E2M3,
            28 => Base::FP6_E3M2,
            _ => return None,
        })
    }

    /// Bytes that `count` codes occupy in `raw_data`; a last part of a byte is padded.
    pub fn storage_bytes(self, count: usize) -> usize {
        (count * self.info().storage_bits as usize).div_ceil(8)
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Base::Int(n) => format!("int{n}"),
            Base::Uint(n) => format!("uint{n}"),
            Base::Fixed { whole, fraction } => format!("q{whole}.{fraction}"),
            Base::Kmeans(n) => format!("kmeans{n}"),
            Base::Fp32 => "fp32".to_owned(),
            Base::Fp16 => "fp16".to_owned(),
            Base::Bf16 => "bf16".to_owned(),
            Base::Mini(element) => element.to_string(),
            Base::Mxfp8 => "mxfp8".to_owned(),
            Base::Mxfp6 => "mxfp6".to_owned(),
            Base::Mxfp4 => "mxfp4".to_owned(),
            Base::Nvfp4 => "nvfp4".to_owned(),
            Base::Binary => "binary".to_owned(),
            Base::Ternary => "ternary".to_owned(),
        };
        f.pad(&name)
    }
}

impl FromStr for Base {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let lower = text.trim().to_ascii_lowercase();
        if let Some(fixed) = fixed_point(&lower) {
            return fixed.ok_or_else(|| FormatError::FixedPoint {
                given: text.to_owned(),
            });
        }
        let found = Base::all()
            .into_iter()
            .find(|base| base.to_string() == lower);
        found.ok_or_else(|| {
            let names: Vec<String> = Base::all().iter().map(ToString::to_string).collect();
            FormatError::Unknown {
                kind: "number format",
                given: text.to_owned(),
                suggestion: nearest(&lower, names.iter().map(String::as_str)),
                valid: "int2…int16, uint2…uint16, qM.F, fp32, fp16, bf16, fp8e4m3, fp8e5m2, fp6e2m3, fp6e3m2, \
                        fp4e2m1, mxfp8, mxfp6, mxfp4, nvfp4, kmeans1…kmeans8, binary, ternary"
                    .to_owned(),
            }
        })
    }
}

/// `None` where the text is not of the form `qM.F`; `Some(None)` where its numbers do not make a format.
fn fixed_point(text: &str) -> Option<Option<Base>> {
    let (whole, fraction) = text.strip_prefix('q')?.split_once('.')?;
    let digits = |t: &str| (!t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())).then_some(());
    digits(whole).and(digits(fraction))?;
    let (Ok(whole), Ok(fraction)) = (whole.parse::<u8>(), fraction.parse::<u8>()) else {
        return Some(None);
    };
    let bits = u32::from(whole) + u32::from(fraction);
    Some(
        (2..=16)
            .contains(&bits)
            .then_some(Base::Fixed { whole, fraction }),
    )
}
