//! The head of an `.npy` array: element type, byte order, axis order and shape.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::io::{self, Cursor, Read};

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use onnx_quant_ir::DataType;
use onnx_quant_ir::dtype::DataTypeExt;

/// numpy's own writers stay below 64 KiB except for structured types.
const MAX_HEAD: usize = 1 << 20;
const MAX_NESTING: usize = 16;

/// What the head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) dtype: DataType,
    pub(super) big_endian: bool,
    pub(super) fortran: bool,
    pub(super) dims: Vec<usize>,
    /// Bytes of the head itself.
    pub(super) head_size: usize,
    /// Bytes of the elements.
    pub(super) data_size: usize,
}

/// Why a head cannot be used.
#[derive(Debug)]
pub(super) enum HeadError {
    /// It does not read or does not parse.
    Damaged(String),
    /// The element type is none that a model takes.
    Unsupported(String),
}

impl From<io::Error> for HeadError {
    fn from(e: io::Error) -> Self {
        Self::Damaged(match e.kind() {
            io::ErrorKind::UnexpectedEof => "it ends within its header".to_owned(),
            _ => e.to_string(),
        })
    }
}

/// Reads the head; the reader then stands at the first element.
pub(super) fn read_head(reader: &mut dyn Read) -> Result<Head, HeadError> {
    let mut head = vec![0; 10];
    reader.read_exact(&mut head)?;
    if &head[..6] != b"\x93NUMPY" {
        let reason = "it does not begin as numpy's .npy arrays do";
        return Err(HeadError::Damaged(reason.to_owned()));
    }
    let mut text_size = usize::from(u16::from_le_bytes([head[8], head[9]]));
    if head[6] >= 2 {
        head.resize(12, 0);
        reader.read_exact(&mut head[10..])?;
        text_size |= usize::from(u16::from_le_bytes([head[10], head[11]])) << 16;
    }
    if text_size > MAX_HEAD {
        let reason = format!("its header claims {text_size} bytes");
        return Err(HeadError::Damaged(reason));
    }
    let text_start = head.len();
    head.resize(text_start + text_size, 0);
    reader.read_exact(&mut head[text_start..])?;
    check_text(&head[text_start..]).map_err(|s| HeadError::Damaged(s.to_owned()))?;
    let header = NpyHeader::from_reader(Cursor::new(&head)).map_err(|e| {
        // A syntax error comes with a drawing of several lines.
        let text = e.to_string();
        let cause = text.split(": ").next().unwrap_or_default();
        HeadError::Damaged(format!("its header does not parse ({cause})"))
    })?;
    interpret(&header, head.len())
}

/// Bounds what the parser will do: its recursion by the nesting of brackets, its arithmetic by the product of all
/// plain numbers. numpy writes no escapes and no other notation for numbers.
fn check_text(text: &[u8]) -> Result<(), &'static str> {
    let (mut depth, mut product, mut number) = (0usize, 1u64, None::<u64>);
    let mut before = b' ';
    for &c in text.iter().chain(b" ") {
        match c {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'\\' => return Err("its header has an escape sequence"),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err("its header is nested too deeply");
        }
        let digit = (c as char).to_digit(10);
        if before.is_ascii_digit() && (c == b'_' || c.is_ascii_alphabetic()) && c != b'L' {
            return Err("its header has a number in an unusual notation");
        }
        number = match (digit, number) {
            (Some(d), n) => Some(
                n.unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|n| n.checked_add(u64::from(d)))
                    .ok_or("its shape is too large")?,
            ),
            (None, Some(n)) => {
                product = product
                    .checked_mul(n.max(1))
                    .ok_or("its shape is too large")?;
                None
            }
            (None, None) => None,
        };
        before = c;
    }
    Ok(())
}

fn interpret(header: &NpyHeader, head_size: usize) -> Result<Head, HeadError> {
    let DType::Plain(ty) = header.dtype() else {
        return Err(HeadError::Unsupported(format!(
            "the structured type {}",
            header.dtype().descr()
        )));
    };
    let dtype = match (ty.type_char(), ty.size_field()) {
        (TypeChar::Bool, 1) => DataType::Bool,
        (TypeChar::Int, 1) => DataType::Int8,
        (TypeChar::Int, 2) => DataType::Int16,
        (TypeChar::Int, 4) => DataType::Int32,
        (TypeChar::Int, 8) => DataType::Int64,
        (TypeChar::Uint, 1) => DataType::Uint8,
        (TypeChar::Uint, 2) => DataType::Uint16,
        (TypeChar::Uint, 4) => DataType::Uint32,
        (TypeChar::Uint, 8) => DataType::Uint64,
        (TypeChar::Float, 2) => DataType::Float16,
        (TypeChar::Float, 4) => DataType::Float,
        (TypeChar::Float, 8) => DataType::Double,
        // numpy saves the `bfloat16` of ml_dtypes, the only other type of two bytes, as raw bytes.
        (TypeChar::RawData, 2) => DataType::Bfloat16,
        (kind, _) => {
            return Err(HeadError::Unsupported(match kind {
                TypeChar::Object => "Python objects (|O)".to_owned(),
                TypeChar::UnicodeStr | TypeChar::ByteStr => format!("strings ({ty})"),
                TypeChar::Complex => format!("complex numbers ({ty})"),
                _ => format!("type {ty}"),
            }));
        }
    };
    let too_large = || HeadError::Damaged("its shape is too large".to_owned());
    let dims = header
        .shape()
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(too_large)?;
    let data_size = dims
        .iter()
        .try_fold(item_size(dtype), |n, &d| n.checked_mul(d))
        .ok_or_else(too_large)?;
    Ok(Head {
        dtype,
        big_endian: ty.endianness() == Endianness::Big,
        fortran: header.order() == Order::Fortran && dims.len() > 1,
        dims,
        head_size,
        data_size,
    })
}

/// Bytes of an element; 1 for types that pack several into a byte.
pub(super) fn item_size(dtype: DataType) -> usize {
    dtype.bits().map_or(1, |bits| bits.div_ceil(8))
}

/// The argument of numpy's `astype` for a type, where there is one.
pub(super) fn numpy_type(dtype: DataType) -> Option<&'static str> {
    Some(match dtype {
        DataType::Bfloat16 => "ml_dtypes.bfloat16",
        DataType::Bool => "\"bool\"",
        DataType::Int8 => "\"int8\"",
        DataType::Int16 => "\"int16\"",
        DataType::Int32 => "\"int32\"",
        DataType::Int64 => "\"int64\"",
        DataType::Uint8 => "\"uint8\"",
        DataType::Uint16 => "\"uint16\"",
        DataType::Uint32 => "\"uint32\"",
        DataType::Uint64 => "\"uint64\"",
        DataType::Float16 => "\"float16\"",
        DataType::Float => "\"float32\"",
        DataType::Double => "\"float64\"",
        _ => return None,
    })
}
