//! Sequences in which one symbol prevails, as runs and the other symbols.
//!
//! For each other symbol the number of prevailing symbols before it is written; a run of 255 and more is written as 255
//! for each whole 255, and the rest. The prevailing symbols behind the last other symbol are not written.
//!
//! Source: Han et al., *Deep compression*, 2016, section 2 (relative index with filler); here a filler is a run alone and
//! takes no place among the symbols.

use super::EntropyError;

/// The run that stands for 255 prevailing symbols with no other symbol behind them.
const FILLER: u8 = u8::MAX;

/// Splits a sequence into runs and other symbols.
pub fn split(symbols: &[u8], prevailing: u8) -> (Vec<u8>, Vec<u8>) {
    let (mut runs, mut others) = (Vec::new(), Vec::new());
    let mut run = 0usize;
    for &s in symbols {
        if s == prevailing {
            run += 1;
            continue;
        }
        runs.extend(std::iter::repeat_n(FILLER, run / 255));
        runs.push((run % 255) as u8);
        others.push(s);
        run = 0;
    }
    (runs, others)
}

/// The inverse of [`split`] for a sequence of `count` symbols.
///
/// # Errors
/// Runs that do not fit the symbols, or the count.
pub fn join(
    runs: &[u8],
    others: &[u8],
    prevailing: u8,
    count: usize,
) -> Result<Vec<u8>, EntropyError> {
    let mut out = Vec::new();
    let mut others = others.iter();
    for &run in runs {
        if out.len() + usize::from(run) + usize::from(run != FILLER) > count {
            return Err(EntropyError::Long);
        }
        out.resize(out.len() + usize::from(run), prevailing);
        if run != FILLER {
            out.push(*others.next().ok_or(EntropyError::Short)?);
        }
    }
    if others.next().is_some() || runs.last() == Some(&FILLER) {
        return Err(EntropyError::Symbols);
    }
    out.resize(count, prevailing);
    Ok(out)
}
