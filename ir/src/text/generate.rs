//! Made-up weights for test cases: `zeros`, `ones`, `fill`, `iota` and `random`, the same on every machine.

use half::{bf16, f16};
use onnx_quant_proto::TensorProto;

use super::literal;
use crate::dtype::{DataType, DataTypeExt};

/// More elements than this are refused: a test case is small.
const MAX_ELEMENTS: usize = 1 << 26;

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0.0..1.0`, 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A tensor of the named generator.
///
/// # Errors
/// An unknown generator, wrong arguments, a type without numbers, or too large a shape.
pub(super) fn tensor(
    generator: &str,
    args: &[f64],
    dtype: DataType,
    dims: &[i64],
) -> Result<TensorProto, String> {
    let count = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
        .filter(|&n| n <= MAX_ELEMENTS)
        .ok_or_else(|| format!("shape {dims:?} is not valid or too large to be made up"))?;
    let range = literal::integer_range(dtype);
    let values: Vec<f64> = match (generator, args) {
        ("zeros", []) => vec![0.0; count],
        ("ones", []) => vec![1.0; count],
        ("fill", [v]) => vec![*v; count],
        ("iota", []) => (0..count).map(|i| i as f64).collect(),
        ("random", [seed, rest @ ..]) => {
            let (low, high) = match (rest, range) {
                ([low, high], _) => (*low, *high),
                ([], None) => (-1.0, 1.0),
                ([], Some((low, high))) => (low.max(-100) as f64, high.min(100) as f64),
                _ => return Err("random takes a seed, or a seed, a low and a high end".to_owned()),
            };
            let mut rng = SplitMix(*seed as u64);
            let value = |u: f64| match range {
                None => low + (high - low) * u,
                Some(_) => (low + (high - low + 1.0) * u).floor().min(high),
            };
            (0..count).map(|_| value(rng.unit())).collect()
        }
        ("zeros" | "ones" | "fill" | "iota" | "random", _) => {
            return Err(format!("wrong number of arguments for `{generator}`"));
        }
        _ => return Err(format!("there is no generator `{generator}`")),
    };
    let bytes = match (dtype, range) {
        (DataType::Float, _) => values
            .iter()
            .flat_map(|&x| (x as f32).to_le_bytes())
            .collect(),
        (DataType::Double, _) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        (DataType::Float16, _) => values
            .iter()
            .flat_map(|&x| f16::from_f64(x).to_le_bytes())
            .collect(),
        (DataType::Bfloat16, _) => values
            .iter()
            .flat_map(|&x| bf16::from_f64(x).to_le_bytes())
            .collect(),
        (_, Some((low, high))) => {
            let codes: Vec<i128> = values.iter().map(|&x| x as i128).collect();
            if let Some(v) = codes.iter().find(|&&v| v < low || v > high) {
                return Err(format!("{v} is outside {low}..{high}"));
            }
            literal::pack(dtype, &codes)
        }
        _ => return Err(format!("{} tensors are given as hex", dtype.short_name())),
    };
    Ok(literal::raw(dtype, dims, bytes))
}
