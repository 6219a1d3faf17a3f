//! Blocks of neighbouring values, looked at once: the range, the scale and the codes of one after the other, while
//! they are in the cache.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{Quantized, TASK, pack_into};
use crate::affine::{Chooser, QParams, RangeError};
use crate::minifloat::{Encoder, MiniFloat};
use crate::minmax::block_min_max;
use crate::quantize::{Kernel, quantize_wide};
use crate::scaling::{ScaleKind, ScalingError, WeightQuantizer, params_of, scale_of};
use crate::simd::vectorized;

/// Blocks whose ranges are found together.
const BLOCKS: usize = 64;

/// How a block of a known range becomes codes.
trait Coder: Sync {
    /// What the codes of a block need.
    type Params: Copy + Default;

    /// From the range; with the scale and the zero point to be stored.
    fn params(&self, range: (f32, f32)) -> Result<(Self::Params, f32, i32), RangeError>;

    fn codes(&self, values: &[f32], params: &Self::Params, codes: &mut [u8]);
}

struct Linear<'a> {
    chooser: Chooser,
    how: &'a WeightQuantizer,
    bounds: (i32, i32),
}

/// [`QParams`] of a block.
#[derive(Clone, Copy)]
struct Block(QParams);

impl Default for Block {
    fn default() -> Self {
        Block(QParams {
            scale: 1.0,
            zero_point: 0,
            qmin: 0,
            qmax: 0,
        })
    }
}

impl Coder for Linear<'_> {
    type Params = Block;

    #[inline(always)]
    fn params(&self, (low, high): (f32, f32)) -> Result<(Block, f32, i32), RangeError> {
        let mut params = params_of(low, high, &self.chooser, self.how)?;
        params.qmin = params.qmin.max(self.bounds.0);
        params.qmax = params.qmax.min(self.bounds.1);
        Ok((Block(params), params.scale, params.zero_point))
    }

    #[inline(always)]
    fn codes(&self, values: &[f32], Block(params): &Block, codes: &mut [u8]) {
        match Kernel::new(params) {
            Some(kernel) => {
                for (code, &x) in codes.iter_mut().zip(values) {
                    *code = kernel.code(x) as u8;
                }
            }
            None => {
                for (code, &x) in codes.iter_mut().zip(values) {
                    *code = quantize_wide(x, params) as u8;
                }
            }
        }
    }
}

struct Float {
    element: MiniFloat,
    encoder: Encoder,
    largest: f32,
    kind: ScaleKind,
}

impl Coder for Float {
    type Params = f32;

    #[inline(always)]
    fn params(&self, range: (f32, f32)) -> Result<(f32, f32, i32), RangeError> {
        let scale = scale_of(range, self.largest, self.kind)?;
        Ok((scale, scale, 0))
    }

    #[inline(always)]
    fn codes(&self, values: &[f32], scale: &f32, codes: &mut [u8]) {
        self.element
            .encode_numbers(&self.encoder, values, *scale, codes);
    }
}

/// Codes of up to 8 bits of an integer format, with scales from the extremes.
pub(super) fn linear(
    data: &[f32],
    block: usize,
    how: &WeightQuantizer,
) -> Result<Quantized, ScalingError> {
    let info = how.base.info();
    let coder = Linear {
        chooser: Chooser::new(how.base, how.scheme, how.options),
        how,
        bounds: (info.qmin, info.qmax),
    };
    encode(data, block, info.storage_bits, &coder)
}

/// Codes of a float format, with scales from the extremes.
pub(super) fn float(
    data: &[f32],
    block: usize,
    element: MiniFloat,
    kind: ScaleKind,
) -> Result<Quantized, ScalingError> {
    let coder = Float {
        element,
        encoder: Encoder::new(element),
        largest: element.largest(),
        kind,
    };
    encode(data, block, element.bits(), &coder)
}

fn encode<C: Coder>(
    data: &[f32],
    block: usize,
    bits: u32,
    coder: &C,
) -> Result<Quantized, ScalingError> {
    let count = data.len() / block;
    let mut coded = Quantized {
        codes: vec![0; (data.len() * bits as usize).div_ceil(8)],
        scales: vec![0.0; count],
        zero_points: vec![0; count],
    };
    // Whole groups of blocks, so that each begins at a byte whatever the number of bits.
    let together = BLOCKS * (TASK / (BLOCKS * block)).max(1);
    let bytes = together * block / 8 * bits as usize;
    let failed: Mutex<Option<(usize, RangeError)>> = Mutex::new(None);
    let tasks = data
        .par_chunks(together * block)
        .zip(coded.codes.par_chunks_mut(bytes))
        .zip(coded.scales.par_chunks_mut(together))
        .zip(coded.zero_points.par_chunks_mut(together))
        .enumerate();
    tasks.for_each_init(
        Vec::new,
        |buffer, (task, (((data, out), scales), zeros))| {
            let codes = match bits {
                8 => &mut *out,
                _ => {
                    buffer.resize(data.len(), 0u8);
                    &mut buffer[..data.len()]
                }
            };
            let each = BLOCKS * block;
            let parts = data.chunks(each).zip(codes.chunks_mut(each));
            let levels = scales.chunks_mut(BLOCKS).zip(zeros.chunks_mut(BLOCKS));
            for (part, ((data, codes), (scales, zeros))) in parts.zip(levels).enumerate() {
                let mut ranges = [(0.0, 0.0); BLOCKS];
                let mut params = [C::Params::default(); BLOCKS];
                block_min_max(data, block, &mut ranges[..scales.len()]);
                for (b, &range) in ranges[..scales.len()].iter().enumerate() {
                    match coder.params(range) {
                        Ok((own, scale, zero)) => {
                            params[b] = own;
                            scales[b] = scale;
                            if zero != 0 {
                                zeros[b] = zero;
                            }
                        }
                        Err(source) => {
                            let group = task * together + part * BLOCKS + b;
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            if failed.is_none_or(|(first, _)| group < first) {
                                *failed = Some((group, source));
                            }
                            return;
                        }
                    }
                }
                vectorized(
                    #[inline(always)]
                    || {
                        let blocks = data.chunks_exact(block).zip(codes.chunks_exact_mut(block));
                        for ((values, codes), params) in blocks.zip(&params) {
                            coder.codes(values, params, codes);
                        }
                    },
                );
            }
            if bits < 8 {
                pack_into(&buffer[..data.len()], bits, out);
            }
        },
    );
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((group, source)) => Err(ScalingError::Range { group, source }),
        None => Ok(coded),
    }
}
