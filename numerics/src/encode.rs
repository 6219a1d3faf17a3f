//! Tensors as codes: any integer or float format with one scale for each group of a [`Grouping`].
//!
//! Codes are in the `raw_data` layout of the format. Each function equals the loop over single values bit for bit, for
//! any number of threads.

use rayon::prelude::*;

use crate::affine::QParams;
use crate::channel::LayoutError;
use crate::format::Base;
use crate::grouping::{Grouping, Place};
use crate::minifloat::{Encoder, MiniFloat};
use crate::pack::pack;
use crate::quantize::{Kernel, quantize_wide};

/// Codes that one task packs: a multiple of 8, so that tasks begin at a byte.
const TASK: usize = 1 << 16;

/// Quantizes with one `params` entry for each group.
///
/// # Errors
/// [`LayoutError`] if `data` or `params` do not fit the grouping.
pub fn quantize_groups(
    data: &[f32],
    grouping: Grouping,
    params: &[QParams],
    base: Base,
) -> Result<Vec<u8>, LayoutError> {
    grouping.check(data.len(), params.len())?;
    let info = base.info();
    let within: Vec<QParams> = params
        .iter()
        .map(|p| QParams {
            qmin: p.qmin.max(info.qmin),
            qmax: p.qmax.min(info.qmax),
            ..*p
        })
        .collect();
    if info.storage_bits == 16 {
        let mut out = vec![[0u8; 2]; data.len()];
        linear(data, grouping, &within, &mut out, |code| {
            (code as u16).to_le_bytes()
        });
        return Ok(out.into_flattened());
    }
    let mut out = vec![0u8; data.len()];
    linear(data, grouping, &within, &mut out, |code| code as u8);
    Ok(pack_codes(out, info.storage_bits))
}

/// The parameters of all groups, each field a column, so that loops over neighbouring groups vectorize.
struct Columns {
    scale: Vec<f32>,
    low: Vec<f32>,
    high: Vec<f32>,
    zero_point: Vec<i32>,
}

impl Columns {
    fn new(params: &[QParams]) -> Option<Self> {
        let kernels: Option<Vec<Kernel>> = params.iter().map(Kernel::new).collect();
        let kernels = kernels?;
        Some(Columns {
            scale: kernels.iter().map(|k| k.scale).collect(),
            low: kernels.iter().map(|k| k.low).collect(),
            high: kernels.iter().map(|k| k.high).collect(),
            zero_point: kernels.iter().map(|k| k.zero_point).collect(),
        })
    }

    fn kernel(&self, p: usize) -> Kernel {
        Kernel {
            scale: self.scale[p],
            low: self.low[p],
            high: self.high[p],
            zero_point: self.zero_point[p],
        }
    }
}

fn linear<T: Send>(
    data: &[f32],
    grouping: Grouping,
    params: &[QParams],
    out: &mut [T],
    store: impl Fn(i32) -> T + Sync,
) {
    let Some(columns) = Columns::new(params) else {
        for (at, (out, &x)) in out.iter_mut().zip(data).enumerate() {
            *out = store(quantize_wide(x, &params[grouping.group_of(at)]));
        }
        return;
    };
    grouping.par_runs(data, out, &|data, out, place| match place {
        Place::One(p) => {
            let kernel = columns.kernel(p);
            for (out, &x) in out.iter_mut().zip(data) {
                *out = store(kernel.code(x));
            }
        }
        Place::Each(first) => {
            let places = first..first + data.len();
            let scales = columns.scale[places.clone()]
                .iter()
                .zip(&columns.zero_point[places.clone()]);
            let bounds = columns.low[places.clone()]
                .iter()
                .zip(&columns.high[places]);
            for ((out, &x), ((&scale, &zero_point), (&low, &high))) in
                out.iter_mut().zip(data).zip(scales.zip(bounds))
            {
                let kernel = Kernel {
                    scale,
                    low,
                    high,
                    zero_point,
                };
                *out = store(kernel.code(x));
            }
        }
    });
}

/// Rounds to a float format with one scale for each group: the code nearest to `x / scale`, saturating.
///
/// # Errors
/// [`LayoutError`] if `data` or `scales` do not fit the grouping.
pub fn encode_groups(
    data: &[f32],
    grouping: Grouping,
    scales: &[f32],
    element: MiniFloat,
) -> Result<Vec<u8>, LayoutError> {
    grouping.check(data.len(), scales.len())?;
    let mut out = vec![0u8; data.len()];
    let encoder = Encoder::new(element);
    grouping.par_runs(data, &mut out, &|data, out, place| match place {
        Place::One(p) => element.encode_scaled(data, scales[p], out),
        Place::Each(first) => {
            let scales = &scales[first..first + data.len()];
            for ((out, &x), &scale) in out.iter_mut().zip(data).zip(scales) {
                *out = encoder.code(x / scale);
            }
        }
    });
    Ok(pack_codes(out, element.bits()))
}

/// Packs codes of one byte each, in parallel.
pub fn pack_codes(codes: Vec<u8>, bits: u32) -> Vec<u8> {
    if bits >= 8 {
        return codes;
    }
    let mut out = vec![0u8; (codes.len() * bits as usize).div_ceil(8)];
    let bytes = TASK / 8 * bits as usize;
    out.par_chunks_mut(bytes)
        .zip(codes.par_chunks(TASK))
        .for_each(|(out, codes)| {
            if bits == 4 {
                pack_nibbles(codes, out);
            } else {
                out.copy_from_slice(&pack(codes, bits));
            }
        });
    out
}

fn pack_nibbles(codes: &[u8], out: &mut [u8]) {
    let (eights, rest) = codes.as_chunks::<8>();
    let (whole, last) = out.split_at_mut(eights.len() * 4);
    for (word, eight) in whole.as_chunks_mut::<4>().0.iter_mut().zip(eights) {
        let x = u64::from_le_bytes(*eight) & 0x0f0f_0f0f_0f0f_0f0f;
        let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
        let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
        *word = ((x | x >> 16) as u32).to_le_bytes();
    }
    last.copy_from_slice(&pack(rest, 4));
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::pack::unpack;
    use crate::quantize::codes_from_bytes;
    use proptest::prelude::*;

    fn groupings() -> Vec<Grouping> {
        let blocks = |shape: &[usize], axis, block| Grouping::blocks(shape, axis, block).unwrap();
        vec![
            Grouping::tensor(70_001),
            Grouping::channels(&[5, 7, 3], 1).unwrap(),
            Grouping::channels(&[11, 33], 1).unwrap(),
            Grouping::channels(&[33, 11], 0).unwrap(),
            blocks(&[9, 70], 1, 32),
            blocks(&[70, 9], 0, 32),
            blocks(&[3, 65, 5], 1, 16),
        ]
    }

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() * 3.0 * next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn codes_equal_the_single_value_loop(seed: u32, at in 0usize..7, bits in 2u8..=16, zero: i8) {
            let grouping = groupings()[at];
            let data = values(grouping.len(), seed);
            for base in [Base::Int(bits), Base::Uint(bits)] {
                let info = base.info();
                let params: Vec<QParams> = (0..grouping.count())
                    .map(|g| {
                        let zero_point = i32::from(zero).clamp(info.qmin, info.qmax);
                        QParams::for_type(0.01 + g as f32 * 0.003, zero_point, base)
                    })
                    .collect();
                let raw = quantize_groups(&data, grouping, &params, base).unwrap();
                prop_assert_eq!(raw.len(), base.storage_bytes(data.len()));
                let codes = codes_from_bytes(&raw, data.len(), base).unwrap();
                for (at, (&code, &x)) in codes.iter().zip(&data).enumerate() {
                    prop_assert_eq!(code, params[grouping.group_of(at)].quantize(x));
                }
            }
            let scales: Vec<f32> = (0..grouping.count()).map(|g| 0.01 + g as f32 * 0.003).collect();
            for element in MiniFloat::ALL.into_iter().filter(|f| Base::from_onnx_type(f.onnx_type()).is_some()) {
                let raw = encode_groups(&data, grouping, &scales, element).unwrap();
                let codes = unpack(&raw, data.len(), element.bits(), false).unwrap();
                for (at, (&code, &x)) in codes.iter().zip(&data).enumerate() {
                    let scale = scales[grouping.group_of(at)];
                    prop_assert_eq!(code, i32::from(element.encode(x / scale, true)));
                }
            }
        }

        #[test]
        fn packing_in_parallel_equals_packing(len in 0usize..200_000, bits in 1u32..=8) {
            let codes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            prop_assert!(pack_codes(codes.clone(), bits) == pack(&codes, bits));
        }
    }

    #[test]
    fn misfits_are_errors() {
        let grouping = Grouping::tensor(3);
        assert!(quantize_groups(&[0.0; 3], grouping, &[], Base::INT4).is_err());
        assert!(encode_groups(&[0.0; 2], grouping, &[1.0], MiniFloat::E4m3).is_err());
    }
}
