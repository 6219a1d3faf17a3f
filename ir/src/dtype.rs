//! The storage types of the standard (`TensorProto.DataType`): names, widths, versions.

pub use onnx_quant_proto::tensor_proto::DataType;

/// What the standard says of a storage type.
pub trait DataTypeExt: Copy {
    /// The type with this number, or `None` where the standard has none.
    fn from_number(number: i32) -> Option<Self>;
    /// Bits of one element as stored; `None` for strings and for the undefined type.
    fn bits(self) -> Option<usize>;
    /// The name that the text form and the reports use (`f32`, `i8`, `u4`, `f8e4m3fn` …).
    fn short_name(self) -> &'static str;
    /// Whether the type is one of the floating-point types.
    fn is_float(self) -> bool;
    /// Whether the type is a signed or unsigned integer.
    fn is_integer(self) -> bool;
    /// The smallest IR version whose files may hold the type.
    fn min_ir_version(self) -> i64;
}

impl DataTypeExt for DataType {
    fn from_number(number: i32) -> Option<Self> {
        Self::try_from(number)
            .ok()
            .filter(|&t| t != Self::Undefined)
    }

    fn bits(self) -> Option<usize> {
        Some(match self {
            Self::Undefined | Self::String => return None,
            Self::Uint2 | Self::Int2 => 2,
            Self::Uint4 | Self::Int4 | Self::Float4e2m1 => 4,
            Self::Float6e2m3 | Self::Float6e3m2 => 6,
            Self::Uint8
            | Self::Int8
            | Self::Bool
            | Self::Float8e4m3fn
            | Self::Float8e4m3fnuz
            | Self::Float8e5m2
            | Self::Float8e5m2fnuz
            | Self::Float8e8m0 => 8,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 16,
            Self::Float | Self::Int32 | Self::Uint32 => 32,
            Self::Int64 | Self::Uint64 | Self::Double | Self::Complex64 => 64,
            Self::Complex128 => 128,
        })
    }

    fn short_name(self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Float => "f32",
            Self::Uint8 => "u8",
            Self::Int8 => "i8",
            Self::Uint16 => "u16",
            Self::Int16 => "i16",
            Self::Int32 => "i32",
            Self::Int64 => "i64",
            Self::String => "string",
            Self::Bool => "bool",
            Self::Float16 => "f16",
            Self::Double => "f64",
            Self::Uint32 => "u32",
            Self::Uint64 => "u64",
            Self::Complex64 => "c64",
            Self::Complex128 => "c128",
            Self::Bfloat16 => "bf16",
            Self::Float8e4m3fn => "f8e4m3fn",
            Self::Float8e4m3fnuz => "f8e4m3fnuz",
            Self::Float8e5m2 => "f8e5m2",
            Self::Float8e5m2fnuz => "f8e5m2fnuz",
            Self::Uint4 => "u4",
            Self::Int4 => "i4",
            Self::Float4e2m1 => "f4e2m1",
            Self::Float8e8m0 => "f8e8m0",
            Self::Uint2 => "u2",
            Self::Int2 => "i2",
            Self::Float6e2m3 => "f6e2m3",
            Self::Float6e3m2 => "f6e3m2",
        }
    }

    fn is_float(self) -> bool {
        matches!(
            self,
            Self::Float
                | Self::Float16
                | Self::Double
                | Self::Bfloat16
                | Self::Float8e4m3fn
                | Self::Float8e4m3fnuz
                | Self::Float8e5m2
                | Self::Float8e5m2fnuz
                | Self::Float4e2m1
                | Self::Float8e8m0
                | Self::Float6e2m3
                | Self::Float6e3m2
        )
    }

    fn is_integer(self) -> bool {
        matches!(
            self,
            Self::Uint2
                | Self::Int2
                | Self::Uint4
                | Self::Int4
                | Self::Uint8
                | Self::Int8
                | Self::Uint16
                | Self::Int16
                | Self::Uint32
                | Self::Int32
                | Self::Uint64
                | Self::Int64
        )
    }

    fn min_ir_version(self) -> i64 {
        match self {
            Self::Float8e4m3fn | Self::Float8e4m3fnuz | Self::Float8e5m2 | Self::Float8e5m2fnuz => {
                9
            }
            Self::Uint4 | Self::Int4 => 10,
            Self::Float4e2m1 => 11,
            Self::Float8e8m0 => 12,
            Self::Uint2 | Self::Int2 => 13,
            Self::Float6e2m3 | Self::Float6e3m2 => 14,
            Self::Bfloat16 => 4,
            _ => 1,
        }
    }
}
