//! How the codes of a weight and the bytes of other tensors are coded, piece by piece.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use onnx_quant_numerics::entropy::{Coder, decode, encode, sparse};
use onnx_quant_numerics::pack::{pack, unpack};

/// Codes of one piece.
pub(super) const PIECE: usize = 1 << 16;

/// Which coders may be used for codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum CoderChoice {
    /// The shortest of all, for each piece.
    #[default]
    Auto,
    /// Canonical Huffman codes, as *Deep compression* has them.
    Huffman,
    /// Range coding.
    Range,
    /// Packed codes.
    None,
}

const CHOICES: [(&str, CoderChoice); 4] = [
    ("auto", CoderChoice::Auto),
    ("huffman", CoderChoice::Huffman),
    ("range", CoderChoice::Range),
    ("none", CoderChoice::None),
];

impl std::fmt::Display for CoderChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(CHOICES[*self as usize].0)
    }
}

impl std::str::FromStr for CoderChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = CHOICES.map(|(name, _)| name);
        let found = CHOICES.iter().find(|(name, _)| *name == text);
        found.map(|(_, c)| *c).ok_or_else(|| {
            let near = names.into_iter().max_by(|a, b| {
                strsim::jaro_winkler(a, text).total_cmp(&strsim::jaro_winkler(b, text))
            });
            format!(
                "unknown coder `{text}` (did you mean `{}`?); valid: {}",
                near.unwrap_or_default(),
                names.join(", ")
            )
        })
    }
}

/// How a piece is coded.
const PACKED: u8 = 0;
const HUFFMAN: u8 = 1;
const RANGE: u8 = 2;
const SPARSE_HUFFMAN: u8 = 3;

/// Codes one piece; `zero` is the code of pruned values, where there are any.
pub(super) fn encode_codes(
    codes: &[u8],
    bits: u32,
    zero: Option<u8>,
    choice: CoderChoice,
) -> (u8, Vec<u8>) {
    let mut all = vec![(PACKED, pack(codes, bits))];
    if matches!(choice, CoderChoice::Auto | CoderChoice::Huffman) {
        all.push((HUFFMAN, encode(codes, Coder::Huffman)));
        if let Some(zero) = zero {
            all.push((SPARSE_HUFFMAN, sparse_huffman(codes, zero)));
        }
    }
    if matches!(choice, CoderChoice::Auto | CoderChoice::Range) {
        all.push((RANGE, encode(codes, Coder::Range)));
    }
    all.into_iter()
        .min_by_key(|(method, data)| (data.len(), *method))
        .unwrap_or_default()
}

fn sparse_huffman(codes: &[u8], zero: u8) -> Vec<u8> {
    let (runs, others) = sparse::split(codes, zero);
    let (coded_runs, coded) = (
        encode(&runs, Coder::Huffman),
        encode(&others, Coder::Huffman),
    );
    let lengths = [runs.len(), coded_runs.len(), others.len()];
    let mut out: Vec<u8> = lengths
        .iter()
        .flat_map(|&n| (n as u32).to_le_bytes())
        .collect();
    out.extend(coded_runs);
    out.extend(coded);
    out
}

/// Decodes one piece of `count` codes, each below `entries`.
pub(super) fn decode_codes(
    method: u8,
    data: &[u8],
    bits: u32,
    zero: Option<u8>,
    count: usize,
    entries: usize,
) -> Result<Vec<u8>, String> {
    let coded = |coder, data: &[u8], count| decode(data, count, coder).map_err(|e| e.to_string());
    let codes = match (method, zero) {
        (PACKED, _) => {
            if data.len() != (count * bits as usize).div_ceil(8) {
                return Err("packed codes of another length".to_owned());
            }
            let wide = unpack(data, count, bits, false).ok_or("packed codes are too short")?;
            wide.into_iter().map(|c| c as u8).collect()
        }
        (HUFFMAN, _) => coded(Coder::Huffman, data, count)?,
        (RANGE, _) => coded(Coder::Range, data, count)?,
        (SPARSE_HUFFMAN, Some(zero)) => {
            let (head, rest) = data
                .split_at_checked(12)
                .ok_or("a sparse piece is too short")?;
            let number = |i: usize| {
                u32::from_le_bytes([
                    head[i * 4],
                    head[i * 4 + 1],
                    head[i * 4 + 2],
                    head[i * 4 + 3],
                ]) as usize
            };
            let (runs, coded_runs, others) = (number(0), number(1), number(2));
            if runs > count || others > count {
                return Err("a sparse piece has more symbols than values".to_owned());
            }
            let (first, second) = rest
                .split_at_checked(coded_runs)
                .ok_or("a sparse piece is too short")?;
            let runs = coded(Coder::Huffman, first, runs)?;
            let others = coded(Coder::Huffman, second, others)?;
            sparse::join(&runs, &others, zero, count).map_err(|e| e.to_string())?
        }
        _ => return Err(format!("coding method {method} is not known")),
    };
    match codes.iter().all(|&c| usize::from(c) < entries) {
        true => Ok(codes),
        false => Err("a code lies outside the codebook".to_owned()),
    }
}

const PLAIN: u8 = 0;
const DEFLATED: u8 = 1;

/// Codes bytes of elements of `size` bytes: the first bytes of all elements, then the second …, deflated.
pub(super) fn encode_bytes(data: &[u8], size: usize) -> (u8, Vec<u8>) {
    let planes: Vec<u8> = (0..size)
        .flat_map(|plane| data.iter().skip(plane).step_by(size).copied())
        .collect();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    let coded = encoder.write_all(&planes).and_then(|()| encoder.finish());
    match coded {
        Ok(coded) if coded.len() < data.len() => (DEFLATED, coded),
        _ => (PLAIN, data.to_vec()),
    }
}

/// Decodes `length` bytes of elements of `size` bytes.
pub(super) fn decode_bytes(
    method: u8,
    data: &[u8],
    length: usize,
    size: usize,
) -> Result<Vec<u8>, String> {
    let planes = match method {
        PLAIN if data.len() == length => return Ok(data.to_vec()),
        DEFLATED => {
            let mut out = Vec::new();
            let mut decoder = DeflateDecoder::new(data);
            let read = (&mut decoder).take(length as u64 + 1).read_to_end(&mut out);
            read.map_err(|e| format!("deflated data: {e}"))?;
            if out.len() != length || decoder.total_in() != data.len() as u64 {
                return Err("deflated data of another length".to_owned());
            }
            out
        }
        PLAIN => return Err("plain data of another length".to_owned()),
        _ => return Err(format!("coding method {method} is not known")),
    };
    let mut out = vec![0; length];
    let mut planes = planes.into_iter();
    for plane in 0..size {
        for at in (plane..length).step_by(size) {
            out[at] = planes.next().unwrap_or(0);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_method_reads_what_it_wrote_and_auto_is_the_shortest() {
        let codes: Vec<u8> = (0..5000u32)
            .map(|i| {
                if i % 9 == 0 {
                    (i / 9 % 15 + 1) as u8
                } else {
                    0
                }
            })
            .collect();
        let mut sizes = Vec::new();
        for choice in [
            CoderChoice::None,
            CoderChoice::Huffman,
            CoderChoice::Range,
            CoderChoice::Auto,
        ] {
            let (method, data) = encode_codes(&codes, 4, Some(0), choice);
            let back = decode_codes(method, &data, 4, Some(0), codes.len(), 16).unwrap();
            assert_eq!(back, codes, "{choice}");
            assert!(decode_codes(method, &data, 4, Some(0), codes.len(), 15).is_err());
            sizes.push(data.len());
        }
        assert_eq!(sizes[0], 2500);
        assert!(sizes[1] < sizes[0] && sizes[2] < sizes[0]);
        assert_eq!(sizes[3], sizes[1].min(sizes[2]));
    }

    #[test]
    fn bytes_survive() {
        for size in [1, 2, 4, 8] {
            for length in [0usize, 1, 7, 64, 1001] {
                let data: Vec<u8> = (0..length).map(|i| (i / 7 * 31) as u8).collect();
                let (method, coded) = encode_bytes(&data, size);
                assert_eq!(decode_bytes(method, &coded, length, size).unwrap(), data);
                assert!(decode_bytes(method, &coded, length + 1, size).is_err());
                assert!(decode_bytes(9, &coded, length, size).is_err());
            }
        }
    }
}
