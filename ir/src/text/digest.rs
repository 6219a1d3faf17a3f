//! Weights in short: a digest of their bytes and their range.

use sha2::{Digest, Sha256};

use super::{literal, names};
use crate::tensor::Tensor;

/// Tensors of at most this many elements are written out.
const SMALL: usize = 8;

/// The first eight hexadecimal digits of the SHA-256 of a tensor's raw bytes (of the strings, for strings); `None` where
/// the data cannot be read.
pub fn short_digest(tensor: &Tensor) -> Option<String> {
    let mut hasher = Sha256::new();
    if tensor.proto().string_data.is_empty() {
        hasher.update(tensor.bytes().ok()?);
    } else {
        for s in &tensor.proto().string_data {
            hasher.update((s.len() as u64).to_le_bytes());
            hasher.update(s);
        }
    }
    Some(names::hex(&hasher.finalize()[..4]))
}

/// A tensor's data on one line: all values of a small one, else `<digest, min..max>`.
pub fn summarize(tensor: &Tensor) -> String {
    if tensor.element_count().is_ok_and(|n| n <= SMALL)
        && let Some(text) = literal::print(tensor)
    {
        return text;
    }
    let Some(digest) = short_digest(tensor) else {
        return "<data not loaded>".to_owned();
    };
    match range(tensor) {
        Some((low, high)) => format!("<{digest}, {low}..{high}>"),
        None => format!("<{digest}>"),
    }
}

fn range(tensor: &Tensor) -> Option<(String, String)> {
    if let Ok(data) = tensor.to_f32() {
        let low = data.iter().copied().fold(f32::INFINITY, f32::min);
        let high = data.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        return (low <= high).then(|| (short_number(low), short_number(high)));
    }
    let codes = literal::integers(tensor, &tensor.bytes().ok()?)?;
    Some((
        codes.iter().min()?.to_string(),
        codes.iter().max()?.to_string(),
    ))
}

/// A number in four significant digits.
pub(super) fn short_number(x: f32) -> String {
    format!("{x:.3e}")
        .parse::<f32>()
        .map_or_else(|_| x.to_string(), |x| x.to_string())
}
