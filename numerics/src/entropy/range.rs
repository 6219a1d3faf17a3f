//! Range coding with one fixed frequency for each symbol.
//!
//! The table holds the symbols that occur with their frequencies, which add up to 2^16. The payload is the words of the
//! range coder of the crate `constriction`, little-endian.
//!
//! Source: Martin, *Range encoding: an algorithm for removing redundancy from a digitised message*, 1979.

use constriction::stream::model::ContiguousCategoricalEntropyModel;
use constriction::stream::queue::{DefaultRangeDecoder, DefaultRangeEncoder};
use constriction::stream::{Decode, Encode};

use super::{EntropyError, histogram, take};

/// Bits of a frequency.
const PRECISION: usize = 16;
type Frequencies = ContiguousCategoricalEntropyModel<u32, Vec<u32>, PRECISION>;

/// Frequencies that add up to 2^16, at least 1 for each symbol that occurs, as near to the counts as can be.
fn frequencies(counts: &[u64]) -> Vec<u32> {
    let total: u64 = counts.iter().sum();
    let whole = 1u64 << PRECISION;
    let share =
        |&c: &u64| ((u128::from(c) * u128::from(whole) / u128::from(total.max(1))) as u32).max(1);
    let mut found: Vec<u32> = counts.iter().map(share).collect();
    // What is missing or too much goes to the most frequent symbols, which bear it best.
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(counts[i]), i));
    let mut sum: i64 = found.iter().map(|&f| i64::from(f)).sum();
    let whole = whole as i64;
    for &i in order.iter().cycle() {
        if sum == whole {
            break;
        }
        if sum < whole {
            found[i] += (whole - sum) as u32;
            sum = whole;
        } else if found[i] > 1 {
            let less = (sum - whole)
                .min(i64::from(found[i] - 1))
                .min(i64::from(found[i] / 2).max(1));
            found[i] -= less as u32;
            sum -= less;
        }
    }
    found
}

/// Encodes a sequence: number of symbols less one, symbols with frequencies less one, payload. Nothing for an empty
/// sequence; a symbol alone has no frequency.
pub fn encode(symbols: &[u8]) -> Vec<u8> {
    let counts = histogram(symbols);
    let present: Vec<u8> = (0..=255u8)
        .filter(|&s| counts[usize::from(s)] > 0)
        .collect();
    let Some(last) = present.len().checked_sub(1) else {
        return Vec::new();
    };
    let mut out = vec![last as u8];
    if last == 0 {
        out.push(present[0]);
        return out;
    }
    let occurring: Vec<u64> = present.iter().map(|&s| counts[usize::from(s)]).collect();
    let frequencies = frequencies(&occurring);
    let mut place = [0usize; 256];
    for (i, (&s, &f)) in present.iter().zip(&frequencies).enumerate() {
        place[usize::from(s)] = i;
        out.push(s);
        out.extend(((f - 1) as u16).to_le_bytes());
    }
    let Ok(model) = Frequencies::from_nonzero_fixed_point_probabilities(&frequencies, false) else {
        return out;
    };
    let mut encoder = DefaultRangeEncoder::new();
    for &s in symbols {
        // Writing to memory cannot fail, and every symbol has a frequency.
        let _ = encoder.encode_symbol(place[usize::from(s)], model.as_view());
    }
    let words = encoder.into_compressed().unwrap_or_default();
    out.extend(words.into_iter().flat_map(u32::to_le_bytes));
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
    let present = usize::from(take(&mut data, 1)?[0]) + 1;
    if present == 1 {
        let symbol = take(&mut data, 1)?[0];
        return match data.is_empty() {
            true => Ok(vec![symbol; count]),
            false => Err(EntropyError::Long),
        };
    }
    let mut symbols: Vec<u8> = Vec::with_capacity(present);
    let mut frequencies = Vec::with_capacity(present);
    for entry in take(&mut data, present * 3)?.chunks(3) {
        if symbols.last() >= Some(&entry[0]) {
            return Err(EntropyError::Table);
        }
        symbols.push(entry[0]);
        frequencies.push(u32::from(u16::from_le_bytes([entry[1], entry[2]])) + 1);
    }
    if frequencies.iter().sum::<u32>() != 1 << PRECISION {
        return Err(EntropyError::Table);
    }
    let model = Frequencies::from_nonzero_fixed_point_probabilities(&frequencies, false)
        .map_err(|()| EntropyError::Table)?;
    let (words, rest) = data.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(EntropyError::Symbols);
    }
    let words: Vec<u32> = words.iter().map(|&w| u32::from_le_bytes(w)).collect();
    let mut decoder =
        DefaultRangeDecoder::from_compressed(words).map_err(|_| EntropyError::Short)?;
    let mut out = Vec::new();
    for _ in 0..count {
        let at = decoder
            .decode_symbol(model.as_view())
            .map_err(|_| EntropyError::Symbols)?;
        out.push(*symbols.get(at).ok_or(EntropyError::Symbols)?);
    }
    match decoder.maybe_exhausted() {
        true => Ok(out),
        false => Err(EntropyError::Long),
    }
}
