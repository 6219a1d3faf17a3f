//! Canonical Huffman codes of at most 16 bits.
//!
//! The table holds the symbols in ascending order with the lengths of their codes; codes are given out by length, then by
//! symbol. Codes are written from their most significant bit on.
//!
//! Source: Huffman, *A method for the construction of minimum-redundancy codes*, 1952; Schwartz and Kallick, *Generating
//! a canonical prefix encoding*, 1964; Larmore and Hirschberg, *A fast algorithm for optimal length-limited Huffman codes*,
//! 1990 (package-merge).

use super::{EntropyError, histogram, take};

/// Longest code.
const MAX_LENGTH: usize = 16;

/// The lengths of an optimal code of at most 16 bits; 0 for symbols that do not occur, and for a symbol alone.
pub fn lengths(counts: &[u64; 256]) -> [u8; 256] {
    let mut found = [0u8; 256];
    let mut leaves: Vec<(u64, Vec<u8>)> = (0..=255u8)
        .filter(|&s| counts[usize::from(s)] > 0)
        .map(|s| (counts[usize::from(s)], vec![s]))
        .collect();
    if leaves.len() < 2 {
        return found;
    }
    leaves.sort_by_key(|(c, s)| (*c, s[0]));
    let mut packages: Vec<(u64, Vec<u8>)> = Vec::new();
    for _ in 0..MAX_LENGTH {
        let mut merged = leaves.clone();
        merged.extend(packages.as_chunks::<2>().0.iter().map(|[a, b]| {
            let symbols = a.1.iter().chain(&b.1).copied().collect();
            (a.0 + b.0, symbols)
        }));
        merged.sort_by_key(|(c, _)| *c);
        packages = merged;
    }
    for (_, symbols) in &packages[..2 * leaves.len() - 2] {
        for &s in symbols {
            found[usize::from(s)] += 1;
        }
    }
    found
}

/// The codes that belong to lengths: by length, then by symbol.
fn codes(lengths: &[u8; 256]) -> [u32; 256] {
    let mut codes = [0u32; 256];
    let mut next = 0u32;
    for length in 1..=MAX_LENGTH {
        next <<= 1;
        for (symbol, _) in lengths
            .iter()
            .enumerate()
            .filter(|(_, l)| usize::from(**l) == length)
        {
            codes[symbol] = next;
            next += 1;
        }
    }
    codes
}

/// Encodes a sequence: number of symbols less one, symbols with lengths, payload. Nothing for an empty sequence.
pub fn encode(symbols: &[u8]) -> Vec<u8> {
    let counts = histogram(symbols);
    let present: Vec<u8> = (0..=255u8)
        .filter(|&s| counts[usize::from(s)] > 0)
        .collect();
    let Some(last) = present.len().checked_sub(1) else {
        return Vec::new();
    };
    let lengths = lengths(&counts);
    let codes = codes(&lengths);
    let mut out = vec![last as u8];
    for &s in &present {
        out.extend([s, lengths[usize::from(s)]]);
    }
    let (mut word, mut held) = (0u64, 0u32);
    for &s in symbols {
        let length = u32::from(lengths[usize::from(s)]);
        word = word << length | u64::from(codes[usize::from(s)]);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((word >> held) as u8);
        }
    }
    if held > 0 {
        out.push((word << (8 - held)) as u8);
    }
    out
}

/// Decodes `count` symbols.
///
/// # Errors
/// Data that [`encode`] does not write for so many symbols.
pub fn decode(mut data: &[u8], count: usize) -> Result<Vec<u8>, EntropyError> {
    if count == 0 {
        return match data.is_empty() {
            true => Ok(Vec::new()),
            false => Err(EntropyError::Long),
        };
    }
    let lengths = table(&mut data)?;
    let present: Vec<usize> = (0..256).filter(|&s| lengths[s] > 0).collect();
    let decoder = match lengths.iter().position(|&l| l == ALONE) {
        Some(symbol) => {
            return match data.is_empty() {
                true => Ok(vec![symbol as u8; count]),
                false => Err(EntropyError::Long),
            };
        }
        None => Decoder::new(&lengths, &present)?,
    };
    let mut out = Vec::with_capacity(count.min(data.len().saturating_mul(8)));
    let (mut word, mut held, mut bytes) = (0u64, 0u32, data.iter());
    for _ in 0..count {
        while held <= 48 {
            let Some(&b) = bytes.next() else { break };
            word |= u64::from(b) << (56 - held);
            held += 8;
        }
        let (symbol, length) = decoder.symbol((word >> 48) as u32)?;
        if length > held {
            return Err(EntropyError::Short);
        }
        word <<= length;
        held -= length;
        out.push(symbol);
    }
    match bytes.next() {
        None if held < 8 && word == 0 => Ok(out),
        None if held < 8 => Err(EntropyError::Symbols),
        _ => Err(EntropyError::Long),
    }
}

/// The length that marks a symbol that stands alone and needs no bits.
const ALONE: u8 = u8::MAX;

/// Reads the table: ascending symbols; a single one has length 0.
fn table(data: &mut &[u8]) -> Result<[u8; 256], EntropyError> {
    let count = usize::from(take(data, 1)?[0]) + 1;
    let mut lengths = [0u8; 256];
    let mut before = None;
    for entry in take(data, count * 2)?.chunks(2) {
        let (symbol, length) = (entry[0], entry[1]);
        let valid = match count {
            1 => length == 0,
            _ => (1..=MAX_LENGTH).contains(&usize::from(length)),
        };
        if before >= Some(symbol) || !valid {
            return Err(EntropyError::Table);
        }
        before = Some(symbol);
        lengths[usize::from(symbol)] = if count == 1 { ALONE } else { length };
    }
    Ok(lengths)
}

/// First code and first symbol of each length.
struct Decoder {
    symbols: Vec<u8>,
    /// For each length: codes below this bound (left-aligned to 16 bits) have at most that length.
    bounds: [u32; MAX_LENGTH + 1],
    /// For each length: its first code, left-aligned, and the place of its first symbol.
    firsts: [(u32, usize); MAX_LENGTH + 1],
}

impl Decoder {
    fn new(lengths: &[u8; 256], present: &[usize]) -> Result<Self, EntropyError> {
        let mut symbols = Vec::with_capacity(present.len());
        let mut bounds = [0; MAX_LENGTH + 1];
        let mut firsts = [(0, 0); MAX_LENGTH + 1];
        let mut code = 0u32;
        for length in 1..=MAX_LENGTH {
            firsts[length] = (code, symbols.len());
            for &s in present
                .iter()
                .filter(|&&s| usize::from(lengths[s]) == length)
            {
                symbols.push(s as u8);
                code += 1 << (MAX_LENGTH - length);
            }
            bounds[length] = code;
        }
        // The lengths of a complete code fill the code space.
        match code == 1 << MAX_LENGTH {
            true => Ok(Self {
                symbols,
                bounds,
                firsts,
            }),
            false => Err(EntropyError::Table),
        }
    }

    /// The symbol whose code the 16 bits start with, and its length.
    #[inline]
    fn symbol(&self, bits: u32) -> Result<(u8, u32), EntropyError> {
        for length in 1..=MAX_LENGTH {
            if bits < self.bounds[length] {
                let (first, place) = self.firsts[length];
                let at = place + ((bits - first) >> (MAX_LENGTH - length)) as usize;
                let symbol = self.symbols.get(at).ok_or(EntropyError::Symbols)?;
                return Ok((*symbol, length as u32));
            }
        }
        Err(EntropyError::Symbols)
    }
}
