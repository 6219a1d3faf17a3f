//! The registry: one entry for each base format. Everything that depends on a format's width, sign, storage type or
//! version reads it here.
//!
//! Source of types, versions and packing: the ONNX standard (`onnx.proto`, QuantizeLinear, DequantizeLinear).

use super::base::Base;

/// The families of formats, by how a code becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `S · (q − Z)`.
    Integer,
    /// `2^-f · q`.
    FixedPoint,
    /// The value is cast; there is no scale.
    Cast,
    /// `S · float(q)`.
    Float,
    /// `S · float(q)` with blocks and scale types that belong to the format.
    BlockFloat,
    /// `codebook[q]`.
    Codebook,
    /// `±α`, or `0`.
    Sign,
}

impl Family {
    /// The word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Family::Integer => "integer",
            Family::FixedPoint => "fixed point",
            Family::Cast | Family::Float => "float",
            Family::BlockFloat => "block float",
            Family::Codebook => "codebook",
            Family::Sign => "sign",
        }
    }
}

/// What is fixed about a [`Base`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BaseInfo {
    /// The format described.
    pub base: Base,
    /// Its family.
    pub family: Family,
    /// Bits of one code.
    pub bits: u32,
    /// Whether values below zero have codes of their own sign.
    pub signed: bool,
    /// Smallest code; of formats whose codes are no integers with a scale, 0.
    pub qmin: i32,
    /// Largest code.
    pub qmax: i32,
    /// Smallest and largest number that a code stands for, with scale (or α) 1; infinite bounds do not occur.
    pub range: (f32, f32),
    /// `TensorProto.DataType` of the ONNX standard of what is stored.
    pub onnx_type: i32,
    /// Bits that one code occupies in a file.
    pub storage_bits: u32,
    /// First ai.onnx opset that stores and decodes this type, with one scale for the tensor.
    pub min_opset: i64,
    /// First IR version whose files may hold the type.
    pub min_ir: i64,
    /// What stands beside the codes.
    pub scales: &'static str,
    /// How codes are packed.
    pub packing: &'static str,
    /// The operators that decode it.
    pub decoded_by: &'static str,
}

const LINEAR: &str = "DequantizeLinear";
const PACK2: &str = "four in a byte, the first in the low bits";
const PACK4: &str = "two in a byte, the first in the low bits";
const PACK6: &str = "four in three bytes, the first in the low bits";
const PACK8: &str = "one byte each";
const PACK16: &str = "two bytes each, little-endian";

/// The entry of a format.
pub(super) fn info(base: Base) -> BaseInfo {
    match base {
        Base::Int(n) => integer(base, n.clamp(2, 16), true),
        Base::Uint(n) => integer(base, n.clamp(2, 16), false),
        Base::Fixed { whole, fraction } => {
            let of_int = integer(base, (whole + fraction).clamp(2, 16), true);
            let step = (-f32::from(fraction)).exp2();
            BaseInfo {
                family: Family::FixedPoint,
                range: (of_int.qmin as f32 * step, of_int.qmax as f32 * step),
                scales: "2^-F, the same for every tensor",
                ..of_int
            }
        }
        Base::Fp32 => cast(base, 32, 1, f32::MAX),
        Base::Fp16 => cast(base, 16, 10, 65504.0),
        Base::Bf16 => cast(base, 16, 16, f32::from_bits(0x7f7f_0000)),
        Base::Mini(_) | Base::Mxfp8 | Base::Mxfp6 | Base::Mxfp4 | Base::Nvfp4 => mini(base),
        Base::Kmeans(n) => codes(base, u32::from(n.clamp(1, 8)), Family::Codebook),
        Base::Binary => codes(base, 1, Family::Sign),
        Base::Ternary => codes(base, 2, Family::Sign),
    }
}

/// Integers: the storage type is the next one of the standard that holds them.
fn integer(base: Base, bits: u8, signed: bool) -> BaseInfo {
    let bits = u32::from(bits);
    let (qmin, qmax) = if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    };
    let (storage_bits, of_signed, of_unsigned, min_opset, min_ir, packing) = match bits {
        2 => (2, 26, 25, 25, 13, PACK2),
        3..=4 => (4, 22, 21, 21, 10, PACK4),
        5..=8 => (8, 3, 2, 10, 3, PACK8),
        _ => (16, 5, 4, 21, 3, PACK16),
    };
    BaseInfo {
        base,
        family: Family::Integer,
        bits,
        signed,
        qmin,
        qmax,
        range: (qmin as f32, qmax as f32),
        onnx_type: if signed { of_signed } else { of_unsigned },
        storage_bits,
        min_opset,
        min_ir,
        scales: "FP32 or FP16, and a zero point",
        packing,
        decoded_by: LINEAR,
    }
}

fn cast(base: Base, bits: u32, onnx_type: i32, largest: f32) -> BaseInfo {
    BaseInfo {
        base,
        family: Family::Cast,
        bits,
        signed: true,
        qmin: 0,
        qmax: 0,
        range: (-largest, largest),
        onnx_type,
        storage_bits: bits,
        min_opset: if onnx_type == 16 { 13 } else { 1 },
        min_ir: if onnx_type == 16 { 4 } else { 3 },
        scales: "none",
        packing: if bits == 16 {
            PACK16
        } else {
            "four bytes each, little-endian"
        },
        decoded_by: "Cast",
    }
}

/// Floats of 4 to 8 bits, alone and as elements of a block format.
fn mini(base: Base) -> BaseInfo {
    let element = base.element().unwrap_or(crate::minifloat::MiniFloat::E4m3);
    let bits = element.bits();
    let (min_opset, min_ir, packing) = match bits {
        4 => (23, 11, PACK4),
        6 => (28, 14, PACK6),
        _ => (19, 9, PACK8),
    };
    let (family, min_opset, min_ir, scales) = match base {
        Base::Nvfp4 => (
            Family::BlockFloat,
            23,
            11,
            "FP8 E4M3 for 16 values, and one FP32 for the tensor",
        ),
        Base::Mxfp8 | Base::Mxfp6 | Base::Mxfp4 => (
            Family::BlockFloat,
            min_opset.max(24),
            min_ir.max(12),
            "E8M0 (a power of two) for 32 values",
        ),
        _ => (Family::Float, min_opset, min_ir, "FP32 or FP16"),
    };
    let largest = element.largest();
    BaseInfo {
        base,
        family,
        bits,
        signed: true,
        qmin: -(largest as i32),
        qmax: largest as i32,
        range: (-largest, largest),
        onnx_type: element.onnx_type(),
        storage_bits: bits,
        min_opset,
        min_ir,
        scales,
        packing,
        decoded_by: LINEAR,
    }
}

/// Codes that are indices or signs, packed into bytes.
fn codes(base: Base, bits: u32, family: Family) -> BaseInfo {
    BaseInfo {
        base,
        family,
        bits,
        signed: true,
        qmin: 0,
        qmax: (1 << bits) - 1,
        range: (-1.0, 1.0),
        onnx_type: 2,
        storage_bits: bits,
        min_opset: 18,
        min_ir: 8,
        scales: match family {
            Family::Codebook => "a codebook of FP32 or FP16",
            _ => "α, FP32 or FP16",
        },
        packing: "in the bits of bytes, the first in the low bits",
        decoded_by: match family {
            Family::Codebook => "bit operations and Gather from the codebook",
            _ => "bit operations and Mul by α",
        },
    }
}
