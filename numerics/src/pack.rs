//! Codes of fewer than 8 bits in bytes: without gaps, the first code in the lowest bits, the last byte padded with zeros.
//!
//! Source: the ONNX standard's layout of its 2-, 4- and 6-bit types, which this continues to every width from 1 to 8.

use crate::quantize::Code;

/// Packs the low `bits` (1 to 8) of each code.
///
/// # Panics
/// If `bits` is not in 1..=8.
pub fn pack<T: Code>(codes: &[T], bits: u32) -> Vec<u8> {
    assert!((1..=8).contains(&bits), "{bits} bits do not fit a byte");
    let mask = (1u32 << bits) - 1;
    let low = |code: &T| (code.code() as u32) & mask;
    let mut out = Vec::with_capacity((codes.len() * bits as usize).div_ceil(8));
    match bits {
        8 => out.extend(codes.iter().map(|code| low(code) as u8)),
        4 => out.extend(codes.chunks(2).map(|pair| {
            let high = pair.get(1).map_or(0, &low);
            (low(&pair[0]) | high << 4) as u8
        })),
        _ => {
            // Eight codes fill `bits` bytes.
            for eight in codes.chunks(8) {
                let places = eight.iter().enumerate();
                let word = places.fold(0u64, |word, (i, code)| {
                    word | u64::from(low(code)) << (i as u32 * bits)
                });
                let bytes = (eight.len() * bits as usize).div_ceil(8);
                out.extend_from_slice(&word.to_le_bytes()[..bytes]);
            }
        }
    }
    out
}

/// The first `count` codes of [`pack`]'s layout, sign-extended where `signed`; `None` if `packed` is too short.
///
/// # Panics
/// If `bits` is not in 1..=8.
pub fn unpack(packed: &[u8], count: usize, bits: u32, signed: bool) -> Option<Vec<i32>> {
    assert!((1..=8).contains(&bits), "{bits} bits do not fit a byte");
    if packed.len() < (count * bits as usize).div_ceil(8) {
        return None;
    }
    let mask = (1u64 << bits) - 1;
    let extend = |code: u64| match signed {
        true => (code as i32) << (32 - bits) >> (32 - bits),
        false => code as i32,
    };
    let groups = packed.chunks(bits as usize).flat_map(|bytes| {
        let mut word = [0u8; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        (0..8).map(move |i| extend(word >> (i * bits) & mask))
    });
    Some(groups.take(count).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_layouts() {
        assert_eq!(pack(&[1i32, -1, -8], 4), [0xf1, 0x08]);
        assert_eq!(pack(&[3i32, 1, 2, 0, 1], 2), [0b00_10_01_11, 1]);
        assert_eq!(pack(&[1u8, 2, 3, 4], 6), [0x81, 0x30, 0x10]);
        assert_eq!(pack(&[1u8, 0, 1], 1), [0b101]);
        assert_eq!(unpack(&[0xf1, 0x08], 3, 4, true).unwrap(), [1, -1, -8]);
        assert_eq!(unpack(&[0xf1, 0x08], 3, 4, false).unwrap(), [1, 15, 8]);
        assert_eq!(unpack(&[0xf1], 3, 4, false), None);
        assert_eq!(unpack(&[], 0, 3, false).unwrap(), [0i32; 0]);
    }

    proptest! {
        #[test]
        fn every_width_survives_a_round_trip(codes: Vec<u8>, bits in 1u32..=8, signed: bool) {
            let all: Vec<i32> = codes
                .iter()
                .map(|&c| {
                    let shift = 32 - bits;
                    let code = i32::from(c) << shift;
                    if signed { code >> shift } else { (code as u32 >> shift) as i32 }
                })
                .collect();
            let packed = pack(&all, bits);
            prop_assert_eq!(packed.len(), (all.len() * bits as usize).div_ceil(8));
            prop_assert_eq!(unpack(&packed, all.len(), bits, signed).unwrap(), all);
        }
    }
}
