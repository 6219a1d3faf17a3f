//! Floats of 4 to 8 bits: FP8 E4M3FN and E5M2 (and their FNUZ kin, for reading), FP6 E2M3 and E3M2, FP4 E2M1, and the
//! scale type E8M0.
//!
//! Rounding is half to even, with subnormals. A conversion that saturates gives the largest finite number for what is
//! beyond it, infinities too; one that does not gives infinity, or NaN where there is no infinity. NaN stays NaN; in
//! formats without NaN it gives a zero of the opposite sign, as `ml_dtypes` does.
//!
//! Source: the ONNX standard, *Float stored in 8 bits* and Cast; OCP, *8-bit Floating Point Specification* 1.0, 2023;
//! OCP, *Microscaling Formats Specification* 1.0, 2023.

use std::fmt;

/// A float format of at most 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MiniFloat {
    /// FP8 E4M3FN: no infinities, one NaN for each sign, largest 448.
    E4m3,
    /// FP8 E5M2: as IEEE, with infinities, largest 57344.
    E5m2,
    /// FP8 E4M3FNUZ: no infinities, no −0, one NaN (0x80), largest 240.
    E4m3Fnuz,
    /// FP8 E5M2FNUZ: no infinities, no −0, one NaN (0x80), largest 57344.
    E5m2Fnuz,
    /// FP6 E2M3: finite numbers only, largest 7.5.
    E2m3,
    /// FP6 E3M2: finite numbers only, largest 28.
    E3m2,
    /// FP4 E2M1: finite numbers only, largest 6.
    E2m1,
}

/// What a code beyond the finite numbers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    /// Infinities and NaNs in the largest exponent, as IEEE.
    Ieee,
    /// One NaN, all ones, for each sign.
    AllOnes,
    /// One NaN in the place of −0.
    NegativeZero,
    /// Nothing.
    None,
}

/// The numbers that define a format.
#[derive(Debug, Clone, Copy)]
struct Layout {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    special: Special,
    /// The code of the largest finite number.
    largest: u8,
}

impl MiniFloat {
    /// Every format.
    pub const ALL: [MiniFloat; 7] = [
        MiniFloat::E4m3,
        MiniFloat::E5m2,
        MiniFloat::E4m3Fnuz,
        MiniFloat::E5m2Fnuz,
        MiniFloat::E2m3,
        MiniFloat::E3m2,
        MiniFloat::E2m1,
    ];

    const fn layout(self) -> Layout {
        let (exponent, mantissa, bias, special, largest) = match self {
            MiniFloat::E4m3 => (4, 3, 7, Special::AllOnes, 0x7e),
            MiniFloat::E5m2 => (5, 2, 15, Special::Ieee, 0x7b),
            MiniFloat::E4m3Fnuz => (4, 3, 8, Special::NegativeZero, 0x7f),
            MiniFloat::E5m2Fnuz => (5, 2, 16, Special::NegativeZero, 0x7f),
            MiniFloat::E2m3 => (2, 3, 1, Special::None, 0x1f),
            MiniFloat::E3m2 => (3, 2, 3, Special::None, 0x1f),
            MiniFloat::E2m1 => (2, 1, 1, Special::None, 0x07),
        };
        Layout {
            exponent,
            mantissa,
            bias,
            special,
            largest,
        }
    }

    /// Bits of a code.
    pub const fn bits(self) -> u32 {
        let l = self.layout();
        1 + l.exponent + l.mantissa
    }

    /// Bits of the mantissa.
    pub const fn mantissa_bits(self) -> u32 {
        self.layout().mantissa
    }

    /// `TensorProto.DataType` of the ONNX standard.
    pub const fn onnx_type(self) -> i32 {
        match self {
            MiniFloat::E4m3 => 17,
            MiniFloat::E4m3Fnuz => 18,
            MiniFloat::E5m2 => 19,
            MiniFloat::E5m2Fnuz => 20,
            MiniFloat::E2m1 => 23,
            MiniFloat::E2m3 => 27,
            MiniFloat::E3m2 => 28,
        }
    }

    /// The format with this `TensorProto.DataType` number.
    pub fn from_onnx_type(data_type: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.onnx_type() == data_type)
    }

    /// The largest finite number.
    pub fn largest(self) -> f32 {
        self.decode(self.layout().largest)
    }

    /// The smallest positive number.
    pub fn smallest(self) -> f32 {
        self.decode(1)
    }

    /// The exponent of the largest finite number: `⌊log2(largest)⌋`, the OCP specification's `emax`.
    pub fn largest_exponent(self) -> i32 {
        let l = self.layout();
        i32::from(l.largest >> l.mantissa) - l.bias
    }

    /// The number of a code; bits above the format's width are not looked at.
    pub fn decode(self, code: u8) -> f32 {
        let l = self.layout();
        let sign_bit = 1u8 << (l.exponent + l.mantissa);
        let negative = code & sign_bit != 0;
        let magnitude = code & (sign_bit - 1);
        let sign = if negative { -1.0f32 } else { 1.0 };
        let all_ones = (1u32 << l.exponent) - 1;
        let (e, m) = (
            u32::from(magnitude >> l.mantissa),
            u32::from(magnitude) & ((1 << l.mantissa) - 1),
        );
        match l.special {
            Special::Ieee if e == all_ones && m == 0 => return sign * f32::INFINITY,
            Special::Ieee if e == all_ones => return f32::NAN.copysign(sign),
            Special::AllOnes if magnitude == sign_bit - 1 => return f32::NAN.copysign(sign),
            Special::NegativeZero if negative && magnitude == 0 => return f32::NAN,
            _ => {}
        }
        let steps = if e == 0 { m } else { m | 1 << l.mantissa };
        let exponent = e.max(1) as i32 - l.bias - l.mantissa as i32;
        sign * steps as f32 * pow2(exponent)
    }

    /// The code nearest to `x`, half to even.
    pub fn encode(self, x: f32, saturate: bool) -> u8 {
        let l = self.layout();
        let sign_bit = 1u8 << (l.exponent + l.mantissa);
        let negative = x.is_sign_negative();
        let sign = if negative { sign_bit } else { 0 };
        if x.is_nan() {
            return match l.special {
                Special::Ieee => sign | self.quiet_nan(),
                Special::AllOnes => sign | (sign_bit - 1),
                Special::NegativeZero => sign_bit,
                Special::None => sign ^ sign_bit,
            };
        }
        let magnitude = x.abs();
        let code = if magnitude.is_infinite() {
            u32::from(l.largest) + 1
        } else {
            Encoder::new(self).magnitude(magnitude)
        };
        if code > u32::from(l.largest) {
            let keeps = saturate || l.special == Special::None;
            return match l.special {
                _ if keeps => sign | l.largest,
                Special::Ieee => sign | (((1u8 << l.exponent) - 1) << l.mantissa),
                Special::NegativeZero => sign_bit,
                _ => sign | (sign_bit - 1),
            };
        }
        let code = code as u8;
        if code == 0 && l.special == Special::NegativeZero {
            return 0;
        }
        sign | code
    }

    /// The mantissa bits of E5M2's NaN: the highest of them is set.
    const fn quiet_nan(self) -> u8 {
        let l = self.layout();
        (((1u8 << l.exponent) - 1) << l.mantissa) | 1 << (l.mantissa - 1)
    }

    /// The saturating codes of `x / scale`, up to the shorter of `x` and `out`: QuantizeLinear to this type.
    pub fn encode_scaled(self, x: &[f32], scale: f32, out: &mut [u8]) {
        self.encode_with(&Encoder::new(self), x, scale, out);
    }

    /// [`MiniFloat::encode_scaled`] with the encoder of this format.
    #[inline(always)]
    pub(crate) fn encode_with(self, encoder: &Encoder, x: &[f32], scale: f32, out: &mut [u8]) {
        // A copy, which no code that is written can change.
        let encoder = *encoder;
        if self.layout().special == Special::NegativeZero {
            for (code, &x) in out.iter_mut().zip(x) {
                *code = self.encode(x / scale, true);
            }
            return;
        }
        for (code, &x) in out.iter_mut().zip(x) {
            *code = encoder.code(x / scale);
        }
    }

    /// [`MiniFloat::encode_with`] of numbers whose quotients are not NaN: finite ones, and a scale above 0.
    #[inline(always)]
    pub(crate) fn encode_numbers(self, encoder: &Encoder, x: &[f32], scale: f32, out: &mut [u8]) {
        if self.layout().special == Special::NegativeZero {
            return self.encode_with(encoder, x, scale, out);
        }
        let encoder = *encoder;
        for (code, &x) in out.iter_mut().zip(x) {
            *code = encoder.number_code(x / scale);
        }
    }

    /// Numbers of all codes, `2^bits` of them.
    pub fn table(self) -> Vec<f32> {
        (0..1u16 << self.bits())
            .map(|code| self.decode(code as u8))
            .collect()
    }
}

impl fmt::Display for MiniFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MiniFloat::E4m3 => "fp8e4m3",
            MiniFloat::E5m2 => "fp8e5m2",
            MiniFloat::E4m3Fnuz => "fp8e4m3fnuz",
            MiniFloat::E5m2Fnuz => "fp8e5m2fnuz",
            MiniFloat::E2m3 => "fp6e2m3",
            MiniFloat::E3m2 => "fp6e3m2",
            MiniFloat::E2m1 => "fp4e2m1",
        })
    }
}

/// `2^exponent`, exact; for −149 to 127.
pub fn pow2(exponent: i32) -> f32 {
    if exponent >= -126 {
        f32::from_bits(((exponent + 127) as u32) << 23)
    } else {
        f32::from_bits(1 << (exponent + 149).max(0))
    }
}

/// The numbers that rounding needs, computed once for many values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    /// Mantissa bits of an f32 that are dropped.
    shift: u32,
    /// Added to the bits of a normal number after the shift.
    rebias: i32,
    /// The smallest normal number.
    normal: f32,
    /// A number in whose binade the step of f32 is the step of the subnormals.
    rounder: f32,
    /// Code of the largest finite number.
    largest: u32,
    /// That number.
    most: f32,
    /// The bit of the sign.
    sign_bit: u32,
    /// The bits of NaN beside its sign.
    nan: u32,
}

impl Encoder {
    pub(crate) fn new(format: MiniFloat) -> Self {
        let l = format.layout();
        let step = 1 - l.bias - l.mantissa as i32;
        Encoder {
            shift: 23 - l.mantissa,
            rebias: (l.bias - 127) << l.mantissa,
            normal: pow2(1 - l.bias),
            rounder: pow2(step + 23),
            largest: u32::from(l.largest),
            most: format.largest(),
            sign_bit: 1 << (l.exponent + l.mantissa),
            nan: match l.special {
                Special::None => 1 << (l.exponent + l.mantissa),
                _ => u32::from(format.encode(f32::NAN, true)),
            },
        }
    }

    /// The code of a number that is not negative; above the largest finite code on overflow.
    #[inline(always)]
    fn magnitude(&self, x: f32) -> u32 {
        let bits = x.to_bits();
        let odd = (bits >> self.shift) & 1;
        let half = (1u32 << (self.shift - 1)).wrapping_sub(1);
        let rounded = bits.wrapping_add(half).wrapping_add(odd) >> self.shift;
        let normal = (rounded as i32).wrapping_add(self.rebias) as u32;
        // Adding a power of two in whose binade the last bit is the subnormals' step rounds half to even.
        let subnormal = (x + self.rounder)
            .to_bits()
            .wrapping_sub(self.rounder.to_bits());
        if x < self.normal { subnormal } else { normal }
    }

    /// The number nearest to a finite one, saturating: what [`Self::code`] decodes to.
    #[inline(always)]
    pub(crate) fn round(&self, x: f32) -> f32 {
        let magnitude = x.abs();
        let bits = magnitude.to_bits();
        let odd = (bits >> self.shift) & 1;
        let half = (1u32 << (self.shift - 1)).wrapping_sub(1);
        let rounded = bits.wrapping_add(half).wrapping_add(odd) >> self.shift << self.shift;
        let normal = f32::from_bits(rounded);
        let subnormal = (magnitude + self.rounder) - self.rounder;
        let near = if magnitude < self.normal {
            subnormal
        } else {
            normal
        };
        let near = if near < self.most { near } else { self.most };
        f32::from_bits(near.to_bits() | (x.to_bits() & 0x8000_0000))
    }

    /// The saturating code, for formats that have a −0.
    #[inline(always)]
    pub(crate) fn code(&self, x: f32) -> u8 {
        match x.is_nan() {
            true => (self.nan ^ self.sign(x)) as u8,
            false => self.number_code(x),
        }
    }

    /// [`Self::code`] of what is not NaN.
    #[inline(always)]
    fn number_code(&self, x: f32) -> u8 {
        (self.magnitude(x.abs()).min(self.largest) | self.sign(x)) as u8
    }

    #[inline(always)]
    fn sign(&self, x: f32) -> u32 {
        (x.to_bits() >> 31).wrapping_mul(self.sign_bit)
    }
}

#[cfg(test)]
mod tests;
