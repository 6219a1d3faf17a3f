//! Names, strings and the names of element types.

use std::fmt::Write as _;

use crate::dtype::{DataType, DataTypeExt};

/// ONNX's own names of the element types; the number is the standard's.
const ELEMENT_TYPES: [&str; 29] = [
    "undefined",
    "float",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "string",
    "bool",
    "float16",
    "double",
    "uint32",
    "uint64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8e4m3fn",
    "float8e4m3fnuz",
    "float8e5m2",
    "float8e5m2fnuz",
    "uint4",
    "int4",
    "float4e2m1",
    "float8e8m0",
    "uint2",
    "int2",
    "float6e2m3",
    "float6e3m2",
];

/// Words that begin a type that is no tensor.
const TYPE_WORDS: [&str; 6] = [
    "seq",
    "map",
    "optional",
    "sparse_tensor",
    "opaque",
    "unknown",
];

/// The name of an element type; `elem99` for a number that the standard does not have.
pub(super) fn element_name(number: i32) -> String {
    usize::try_from(number)
        .ok()
        .and_then(|n| ELEMENT_TYPES.get(n))
        .map_or_else(|| format!("elem{}", number as u32), |&n| n.to_owned())
}

/// The number of an element type.
pub(super) fn element_number(name: &str) -> Option<i32> {
    if let Some(n) = ELEMENT_TYPES.iter().position(|&t| t == name) {
        return i32::try_from(n).ok();
    }
    let number = name.strip_prefix("elem")?;
    number.parse::<u32>().ok().map(|n| n as i32)
}

/// The element type of this name, where the standard has it.
pub(super) fn element_type(name: &str) -> Option<DataType> {
    DataType::from_number(element_number(name)?)
}

/// Whether a word begins a type.
pub(super) fn is_type_word(word: &str) -> bool {
    element_number(word).is_some() || TYPE_WORDS.contains(&word)
}

/// Whether a name can stand without quotes.
pub(super) fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A name as it stands in the text: quoted unless it is an identifier that means nothing else.
pub(super) fn name(name: &str) -> String {
    if is_identifier(name) && !is_type_word(name) && name != "inf" && name != "nan" {
        name.to_owned()
    } else {
        quoted(name.as_bytes())
    }
}

/// A string literal.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if c.is_ascii_control() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out.push('"');
    out
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
    out
}

/// Hexadecimal digits as bytes.
pub(super) fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| {
            pairs
                .iter()
                .map(|&[a, b]| Some((digit(a)? * 16 + digit(b)?) as u8))
                .collect()
        })
        .flatten()
}

/// Text for a comment: one line, at most 80 characters.
pub(super) fn comment(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
