//! Tensors as codes: any integer or float format with one scale for each group of a [`Grouping`].
//!
//! Codes are in the `raw_data` layout of the format. Each function equals the loop over single values bit for bit, for
//! any number of threads.

mod blocks;

use rayon::prelude::*;

use crate::affine::QParams;
use crate::channel::LayoutError;
use crate::format::Base;
use crate::grouping::{Grouping, Place};
use crate::minifloat::{Encoder, MiniFloat};
use crate::pack::pack;
use crate::quantize::{Kernel, quantize_wide};
use crate::scaling::{
    ScaleKind, ScalingError, WeightCalibrator, WeightQuantizer, choose_params, choose_scales,
};
use crate::simd::vectorized;

/// Codes that one task packs: a multiple of 8, so that tasks begin at a byte.
const TASK: usize = 1 << 16;

/// Codes with what decodes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The codes, packed.
    pub codes: Vec<u8>,
    /// The scale of each group.
    pub scales: Vec<f32>,
    /// The zero point of each group.
    pub zero_points: Vec<i32>,
}

/// [`choose_params`], then [`quantize_groups`]: in one pass over the data where groups are blocks of neighbours.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn code_integers(
    data: &[f32],
    grouping: Grouping,
    how: &WeightQuantizer,
) -> Result<Quantized, ScalingError> {
    let plain = how.calibrator == WeightCalibrator::MinMax
        && how.base.info().storage_bits <= 8
        && !matches!(how.base, Base::Fixed { .. });
    if let Some(block) = grouping.neighbours().filter(|_| plain) {
        grouping.check(data.len(), grouping.count())?;
        return blocks::linear(data, block, how);
    }
    let params = choose_params(data, grouping, how)?;
    Ok(Quantized {
        codes: quantize_groups(data, grouping, &params, how.base)?,
        scales: params.iter().map(|p| p.scale).collect(),
        zero_points: params.iter().map(|p| p.zero_point).collect(),
    })
}

/// [`choose_scales`], then [`encode_groups`]: in one pass over the data where groups are blocks of neighbours.
///
/// # Errors
/// Data that does not fit, or is not finite.
pub fn code_floats(
    data: &[f32],
    grouping: Grouping,
    element: MiniFloat,
    calibrator: WeightCalibrator,
    kind: ScaleKind,
) -> Result<Quantized, ScalingError> {
    let plain = calibrator == WeightCalibrator::MinMax;
    if let Some(block) = grouping.neighbours().filter(|_| plain) {
        grouping.check(data.len(), grouping.count())?;
        return blocks::float(data, block, element, kind);
    }
    let scales = choose_scales(data, grouping, element, calibrator, kind)?;
    Ok(Quantized {
        codes: encode_groups(data, grouping, &scales, element)?,
        zero_points: vec![0; scales.len()],
        scales,
    })
}

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
    let within = |p: &QParams| QParams {
        qmin: p.qmin.max(info.qmin),
        qmax: p.qmax.min(info.qmax),
        ..*p
    };
    if info.storage_bits == 16 {
        let mut out = vec![[0u8; 2]; data.len()];
        let tasks = out.par_chunks_mut(TASK).enumerate();
        tasks.for_each_init(Columns::default, |columns, (task, out)| {
            let task = Task::new(data, grouping, task * TASK, out.len());
            vectorized(
                #[inline(always)]
                || {
                    task.linear(params, &within, columns, out, |code| {
                        (code as u16).to_le_bytes()
                    });
                },
            );
        });
        return Ok(out.into_flattened());
    }
    let bits = info.storage_bits;
    Ok(packed(
        data.len(),
        bits,
        Columns::default,
        |columns, start, out| {
            let task = Task::new(data, grouping, start, out.len());
            vectorized(
                #[inline(always)]
                || task.linear(params, &within, columns, out, |code| code as u8),
            );
        },
    ))
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
    let encoder = Encoder::new(element);
    Ok(packed(
        data.len(),
        element.bits(),
        || (),
        |(), start, out| {
            let task = Task::new(data, grouping, start, out.len());
            vectorized(
                #[inline(always)]
                || task.floats(scales, element, &encoder, out),
            );
        },
    ))
}

/// The values from `start` on that one task turns into codes.
struct Task<'a> {
    data: &'a [f32],
    grouping: Grouping,
    start: usize,
}

impl<'a> Task<'a> {
    fn new(data: &'a [f32], grouping: Grouping, start: usize, len: usize) -> Self {
        Task {
            data: &data[start..start + len],
            grouping,
            start,
        }
    }

    #[inline(always)]
    fn runs<T>(&self, out: &mut [T], mut f: impl FnMut(&[f32], &mut [T], Place)) {
        let start = self.start;
        self.grouping.runs(
            start..start + self.data.len(),
            #[inline(always)]
            |run, place| {
                let run = run.start - start..run.end - start;
                f(&self.data[run.clone()], &mut out[run], place);
            },
        );
    }

    #[inline(always)]
    fn floats(&self, scales: &[f32], element: MiniFloat, encoder: &Encoder, out: &mut [u8]) {
        self.runs(
            out,
            #[inline(always)]
            |data, out, place| match place {
                Place::One(p) => element.encode_with(encoder, data, scales[p], out),
                Place::Each(first) => {
                    let scales = &scales[first..first + data.len()];
                    for ((out, &x), &scale) in out.iter_mut().zip(data).zip(scales) {
                        *out = encoder.code(x / scale);
                    }
                }
            },
        );
    }

    #[inline(always)]
    fn linear<T>(
        &self,
        params: &[QParams],
        within: &impl Fn(&QParams) -> QParams,
        columns: &mut Columns,
        out: &mut [T],
        store: impl Fn(i32) -> T,
    ) {
        self.runs(
            out,
            #[inline(always)]
            |data, out, place| match place {
                Place::One(p) => {
                    let params = within(&params[p]);
                    let Some(kernel) = Kernel::new(&params) else {
                        for (out, &x) in out.iter_mut().zip(data) {
                            *out = store(quantize_wide(x, &params));
                        }
                        return;
                    };
                    for (out, &x) in out.iter_mut().zip(data) {
                        *out = store(kernel.code(x));
                    }
                }
                Place::Each(first) => {
                    let params = &params[first..first + data.len()];
                    if columns.hold(first, params, within) {
                        for ((out, &x), kernel) in out.iter_mut().zip(data).zip(columns.kernels()) {
                            *out = store(kernel.code(x));
                        }
                    } else {
                        for ((out, &x), params) in out.iter_mut().zip(data).zip(params) {
                            *out = store(quantize_wide(x, &within(params)));
                        }
                    }
                }
            },
        );
    }
}

/// The parameters of neighbouring groups, each field a column, so that loops over them vectorize.
#[derive(Default)]
struct Columns {
    first: usize,
    scale: Vec<f32>,
    low: Vec<f32>,
    high: Vec<f32>,
    zero_point: Vec<i32>,
}

impl Columns {
    /// Takes the parameters of the groups from `first` on; false where there is no kernel for one.
    fn hold(
        &mut self,
        first: usize,
        params: &[QParams],
        within: &impl Fn(&QParams) -> QParams,
    ) -> bool {
        if self.first == first && self.scale.len() == params.len() {
            return true;
        }
        self.first = first;
        self.scale.clear();
        self.low.clear();
        self.high.clear();
        self.zero_point.clear();
        for kernel in params.iter().map_while(|p| Kernel::new(&within(p))) {
            self.scale.push(kernel.scale);
            self.low.push(kernel.low);
            self.high.push(kernel.high);
            self.zero_point.push(kernel.zero_point);
        }
        self.scale.len() == params.len()
    }

    fn kernels(&self) -> impl Iterator<Item = Kernel> {
        let bounds = self.low.iter().zip(&self.high);
        let steps = self.scale.iter().zip(&self.zero_point);
        steps
            .zip(bounds)
            .map(|((&scale, &zero_point), (&low, &high))| Kernel {
                scale,
                low,
                high,
                zero_point,
            })
    }
}

/// The packed codes of `len` values: `fill` writes those from a position on, one byte each, for one task after another
/// with a state that tasks of a thread share.
fn packed<S>(
    len: usize,
    bits: u32,
    state: impl Fn() -> S + Sync + Send,
    fill: impl Fn(&mut S, usize, &mut [u8]) + Sync + Send,
) -> Vec<u8> {
    let mut out = vec![0u8; (len * bits as usize).div_ceil(8)];
    let tasks = out.par_chunks_mut(TASK / 8 * bits as usize).enumerate();
    let buffer = || (state(), vec![0u8; if bits < 8 { TASK } else { 0 }]);
    tasks.for_each_init(buffer, |(state, codes), (task, out)| {
        let start = task * TASK;
        if bits == 8 {
            fill(state, start, out);
        } else {
            let codes = &mut codes[..TASK.min(len - start)];
            fill(state, start, codes);
            pack_into(codes, bits, out);
        }
    });
    out
}

/// Packs codes of one byte each, in parallel.
pub fn pack_codes(codes: Vec<u8>, bits: u32) -> Vec<u8> {
    if bits >= 8 {
        return codes;
    }
    let mut out = vec![0u8; (codes.len() * bits as usize).div_ceil(8)];
    out.par_chunks_mut(TASK / 8 * bits as usize)
        .zip(codes.par_chunks(TASK))
        .for_each(|(out, codes)| pack_into(codes, bits, out));
    out
}

fn pack_into(codes: &[u8], bits: u32, out: &mut [u8]) {
    if bits != 4 {
        out.copy_from_slice(&pack(codes, bits));
        return;
    }
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
    use crate::affine::QOptions;
    use crate::format::Scheme;
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
        fn one_pass_equals_two(seed: u32, block in 2usize..40, rows in 1usize..4, many in 1usize..300, at in 0usize..6, asymmetric: bool) {
            let grouping = Grouping::blocks(&[rows, block * many], 1, block).unwrap();
            let data = values(grouping.len(), seed);
            let base = [Base::INT8, Base::UINT8, Base::INT4, Base::Int(2), Base::Int(3), Base::Uint(5)][at];
            let how = WeightQuantizer {
                base,
                scheme: if asymmetric { Scheme::Asymmetric } else { Scheme::Symmetric },
                options: QOptions { narrow: seed % 2 == 0, reduce_range: false },
                calibrator: WeightCalibrator::MinMax,
                scale: ScaleKind { power_of_two: seed % 3 == 0, half: seed % 5 == 0 },
            };
            let coded = code_integers(&data, grouping, &how).unwrap();
            let params = choose_params(&data, grouping, &how).unwrap();
            prop_assert!(coded.codes == quantize_groups(&data, grouping, &params, base).unwrap());
            prop_assert!(coded.scales.iter().zip(&params).all(|(&s, p)| s == p.scale));
            prop_assert!(coded.zero_points.iter().zip(&params).all(|(&z, p)| z == p.zero_point));
            let element = [MiniFloat::E4m3, MiniFloat::E5m2, MiniFloat::E2m1, MiniFloat::E3m2, MiniFloat::E4m3Fnuz, MiniFloat::E2m3][at];
            let coded = code_floats(&data, grouping, element, WeightCalibrator::MinMax, how.scale).unwrap();
            let scales = choose_scales(&data, grouping, element, WeightCalibrator::MinMax, how.scale).unwrap();
            prop_assert!(coded.codes == encode_groups(&data, grouping, &scales, element).unwrap());
            prop_assert!(coded.scales == scales);
            let mut broken = data.clone();
            broken[data.len() / 2] = f32::NAN;
            let group = data.len() / 2 / block;
            let error = code_integers(&broken, grouping, &how).unwrap_err();
            let ScalingError::Range { group: found, .. } = error else {
                panic!("{error}");
            };
            prop_assert_eq!(found, group);
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
