//! Round trips, lengths against the entropy, and data that no encoder wrote.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::random::{bits, uniform};

const CODERS: [Coder; 2] = [Coder::Huffman, Coder::Range];

/// Geometric symbols: `p` is the probability to go on to the next.
fn skewed(n: u64, p: f64) -> Vec<u8> {
    (0..n)
        .map(|i| {
            let depth = (1.0 - uniform(4, i)).ln() / p.ln();
            depth.min(15.0) as u8
        })
        .collect()
}

proptest! {
    #[test]
    fn sequences_survive(
        symbols in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec(0u8..3, 0..300),
            (any::<u8>(), 0usize..2000).prop_map(|(s, n)| vec![s; n]),
        ]
    ) {
        for coder in CODERS {
            let data = encode(&symbols, coder);
            prop_assert_eq!(&decode(&data, symbols.len(), coder).unwrap(), &symbols);
        }
        for prevailing in [0, 1, 77] {
            let (runs, others) = sparse::split(&symbols, prevailing);
            let joined = sparse::join(&runs, &others, prevailing, symbols.len());
            prop_assert_eq!(&joined.unwrap(), &symbols);
        }
    }

    #[test]
    fn any_data_is_decoded_or_refused(
        data in proptest::collection::vec(any::<u8>(), 0..200), count in 0usize..1000
    ) {
        for coder in CODERS {
            if let Ok(symbols) = decode(&data, count, coder) {
                prop_assert_eq!(symbols.len(), count);
            }
        }
        let _ = sparse::join(&data, &data, 3, count);
    }

    #[test]
    fn changed_data_is_decoded_or_refused(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let symbols = skewed(500, 0.7);
        for coder in CODERS {
            let mut data = encode(&symbols, coder);
            let len = data.len();
            data[at % len] = byte;
            let _ = decode(&data, symbols.len(), coder);
            data.truncate(cut);
            let _ = decode(&data, symbols.len(), coder);
        }
    }
}

#[test]
fn lengths_are_those_of_the_textbook() {
    let mut counts = [0u64; 256];
    for (symbol, count) in [(97, 45), (98, 13), (99, 12), (100, 16), (101, 9), (102, 5)] {
        counts[symbol] = count;
    }
    let lengths = huffman::lengths(&counts);
    assert_eq!(lengths[97..103], [1, 3, 3, 3, 4, 4]);
}

#[test]
fn codes_are_no_longer_than_sixteen_bits_and_fill_the_space() {
    let mut counts = [0u64; 256];
    let (mut a, mut b) = (1u64, 1u64);
    for count in counts.iter_mut().take(40) {
        *count = a;
        (a, b) = (b, a + b);
    }
    let lengths = huffman::lengths(&counts);
    assert_eq!(lengths.iter().max(), Some(&16));
    let used: f64 = lengths[..40]
        .iter()
        .map(|&l| 2f64.powi(-i32::from(l)))
        .sum();
    assert_eq!(used, 1.0);
}

#[test]
fn the_range_coder_comes_near_to_the_entropy_and_huffman_within_a_bit() {
    for p in [0.05, 0.3, 0.7, 0.9] {
        let symbols = skewed(65_536, p);
        let least = entropy_bits(&symbols) / 8.0;
        let [huffman, range] = CODERS.map(|c| encode(&symbols, c).len() as f64);
        assert!(
            range >= least && range <= least * 1.002 + 60.0,
            "{p}: {range} of {least}"
        );
        assert!(
            huffman >= least && huffman <= least + 65_536.0 / 8.0 + 40.0,
            "{p}"
        );
    }
}

#[test]
fn a_rare_symbol_among_many_has_a_frequency() {
    let mut symbols = vec![7u8; 1 << 18];
    symbols[99] = 8;
    for s in 9..=255u8 {
        symbols[usize::from(s) * 3] = s;
    }
    for coder in CODERS {
        let data = encode(&symbols, coder);
        assert_eq!(decode(&data, symbols.len(), coder).unwrap(), symbols);
    }
}

#[test]
fn wrong_tables_are_named() {
    let huffman = |data: &[u8]| decode(data, 3, Coder::Huffman);
    assert_eq!(huffman(&[]), Err(EntropyError::Short));
    assert_eq!(
        huffman(&[1, 5, 1, 5, 1, 0]),
        Err(EntropyError::Table),
        "not ascending"
    );
    assert_eq!(
        huffman(&[1, 5, 1, 6, 2, 0]),
        Err(EntropyError::Table),
        "space not filled"
    );
    assert_eq!(
        huffman(&[1, 5, 17, 6, 1, 0]),
        Err(EntropyError::Table),
        "too long"
    );
    assert_eq!(
        huffman(&[0, 5, 1]),
        Err(EntropyError::Table),
        "alone with a code"
    );
    assert_eq!(huffman(&[1, 5, 1, 6, 1]), Err(EntropyError::Short));
    assert_eq!(huffman(&[1, 5, 1, 6, 1, 0, 0]), Err(EntropyError::Long));
    assert_eq!(
        huffman(&[1, 5, 1, 6, 1, 1]),
        Err(EntropyError::Symbols),
        "padding"
    );
    let range = |data: &[u8]| decode(data, 3, Coder::Range);
    assert_eq!(
        range(&[1, 5, 0, 0, 6, 0, 0]),
        Err(EntropyError::Table),
        "sum"
    );
    assert_eq!(range(&[0, 5, 0]), Err(EntropyError::Long));
    assert_eq!(decode(&[0], 0, Coder::Range), Err(EntropyError::Long));
}

#[test]
fn sparse_sequences_with_long_runs() {
    let mut symbols = vec![4u8; 2000];
    for at in [0, 254, 255, 511, 1022] {
        symbols[at] = (bits(1, at as u64) % 4) as u8;
    }
    let (runs, others) = sparse::split(&symbols, 4);
    assert_eq!(runs, [0, 253, 0, 255, 0, 255, 255, 0]);
    assert_eq!(others.len(), 5);
    assert_eq!(sparse::join(&runs, &others, 4, 2000).unwrap(), symbols);
    assert_eq!(
        sparse::join(&[255], &[], 4, 2000),
        Err(EntropyError::Symbols)
    );
    assert_eq!(sparse::join(&[3], &[1], 4, 3), Err(EntropyError::Long));
    assert_eq!(sparse::join(&[0, 0], &[1], 4, 3), Err(EntropyError::Short));
    assert_eq!(
        sparse::join(&[0], &[1, 2], 4, 3),
        Err(EntropyError::Symbols)
    );
}
