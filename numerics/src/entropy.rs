//! Entropy coding of code sequences: canonical Huffman codes, and range coding.
//!
//! A sequence of bytes becomes a table of the symbols that occur, and a payload. [`Coder::Huffman`] is the code of *Deep
//! compression*; [`Coder::Range`] (the range coder of the crate `constriction`, with frequencies in 16 bits) does not
//! round the length of a symbol to whole bits and comes near to the entropy. Sequences in which one symbol prevails can
//! be split into the runs between its other symbols and these symbols: see [`sparse`].
//!
//! Decoding checks everything that it reads and allocates no more than the caller's `count`.

pub mod huffman;
pub mod range;
pub mod sparse;
#[cfg(test)]
mod tests;

use thiserror::Error;

/// An entropy coder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coder {
    /// Canonical Huffman code.
    Huffman,
    /// Range coder with fixed frequencies.
    Range,
}

/// Data that no encoder writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntropyError {
    /// The data ends before all symbols are read.
    #[error("the coded data is too short")]
    Short,
    /// There is more data than the symbols need.
    #[error("the coded data is too long")]
    Long,
    /// The table of symbols contradicts itself.
    #[error("the table of symbols is not valid")]
    Table,
    /// The payload is none that the coder writes.
    #[error("the coded symbols are not valid")]
    Symbols,
}

/// Encodes a sequence, table included.
pub fn encode(symbols: &[u8], coder: Coder) -> Vec<u8> {
    match coder {
        Coder::Huffman => huffman::encode(symbols),
        Coder::Range => range::encode(symbols),
    }
}

/// Decodes `count` symbols.
///
/// # Errors
/// Data that [`encode`] does not write for so many symbols.
pub fn decode(data: &[u8], count: usize, coder: Coder) -> Result<Vec<u8>, EntropyError> {
    match coder {
        Coder::Huffman => huffman::decode(data, count),
        Coder::Range => range::decode(data, count),
    }
}

/// How often each symbol occurs.
pub fn histogram(symbols: &[u8]) -> [u64; 256] {
    let mut counts = [0; 256];
    for &s in symbols {
        counts[usize::from(s)] += 1;
    }
    counts
}

/// Shannon's bound for a sequence of independent symbols, in bits: `Σ −c·log2(c / n)`.
pub fn entropy_bits(symbols: &[u8]) -> f64 {
    let n = symbols.len() as f64;
    let bits = |&c: &u64| match c {
        0 => 0.0,
        c => -(c as f64) * (c as f64 / n).log2(),
    };
    histogram(symbols).iter().map(bits).sum()
}

/// Takes the first `n` bytes of the rest of some data.
fn take<'a>(data: &mut &'a [u8], n: usize) -> Result<&'a [u8], EntropyError> {
    let (first, rest) = data.split_at_checked(n).ok_or(EntropyError::Short)?;
    *data = rest;
    Ok(first)
}
