//! Quantization of tensors with one scale for each channel.
//!
//! A tensor of shape `[d0, …, dk, …]` with its channels on axis `k` is read as `[outer, channels, inner]`:
//! `outer` the product of the dimensions before the axis, `inner` of those after it. One scale for the tensor
//! is the layout `[1, 1, len]`.

use rayon::prelude::*;

use crate::affine::QParams;
use crate::format::Base;
use crate::minmax::{min_max, row_min_max};
use crate::quantize::{Code, Kernel, codes_to_bytes, quantize_wide};

mod layout;
#[cfg(test)]
mod tests;

pub use layout::{Layout, LayoutError};

/// Values that one task works on.
const TASK: usize = 1 << 16;
/// Channel runs shorter than this are worked on across channels.
const SHORT_RUN: usize = 16;

/// Smallest and largest value of each channel, in channel order; (0, 0) for channels without values.
///
/// A channel that holds NaN gives (NaN, NaN), which [`crate::affine::choose_qparams`] refuses.
///
/// # Errors
/// [`LayoutError::Length`] if `data` does not fill the layout.
pub fn channel_ranges(data: &[f32], layout: Layout) -> Result<Vec<(f32, f32)>, LayoutError> {
    layout.check(data.len())?;
    let Layout {
        channels, inner, ..
    } = layout;
    if data.is_empty() {
        return Ok(vec![(0.0, 0.0); channels]);
    }
    let row = channels * inner;
    let rows_per_task = (TASK / row).max(1);
    let empty = || vec![(f32::INFINITY, f32::NEG_INFINITY); channels];
    if layout.outer == 1 || row >= TASK {
        let mut ranges = empty();
        ranges
            .par_iter_mut()
            .with_min_len((TASK / (data.len() / channels)).max(1))
            .enumerate()
            .for_each(|(channel, range)| {
                for row in data.chunks_exact(row) {
                    let run = &row[channel * inner..(channel + 1) * inner];
                    *range = join(*range, min_max(run));
                }
            });
        return Ok(ranges);
    }
    let fold = |rows: &[f32]| {
        if inner == 1 {
            return row_min_max(rows, channels);
        }
        let mut ranges = empty();
        for (at, run) in rows.chunks_exact(inner).enumerate() {
            let range = &mut ranges[at % channels];
            *range = join(*range, min_max(run));
        }
        ranges
    };
    let join_all = |mut a: Vec<(f32, f32)>, b: Vec<(f32, f32)>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = join(*a, b));
        a
    };
    Ok(data
        .par_chunks(rows_per_task * row)
        .map(fold)
        .reduce(empty, join_all))
}

/// The range that holds both; NaN if either is.
fn join(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    if a.0.is_nan() || b.0.is_nan() {
        return (f32::NAN, f32::NAN);
    }
    (a.0.min(b.0), a.1.max(b.1))
}

/// Quantizes with one `params` entry for each channel into the `raw_data` layout of `base`
/// (little-endian; 4-bit codes packed, first in the low nibble).
///
/// Codes lie within each entry's `qmin..=qmax` and within `base`.
///
/// # Errors
/// [`LayoutError`] if `data` or `params` do not fit the layout.
pub fn quantize_per_channel(
    data: &[f32],
    layout: Layout,
    params: &[QParams],
    base: Base,
) -> Result<Vec<u8>, LayoutError> {
    match base {
        Base::INT8 | Base::UINT8 => {
            // The low byte of a code is its stored form for both signs.
            let mut out = vec![0u8; data.len()];
            quantize_into(data, layout, &within(params, base), &mut out, |code| {
                code as u8
            })?;
            Ok(out)
        }
        _ => Ok(codes_to_bytes(
            &quantize_codes(data, layout, params, base)?,
            base,
        )),
    }
}

/// Quantizes as [`quantize_per_channel`] does, to one i32 for each code.
///
/// # Errors
/// [`LayoutError`] if `data` or `params` do not fit the layout.
pub fn quantize_codes(
    data: &[f32],
    layout: Layout,
    params: &[QParams],
    base: Base,
) -> Result<Vec<i32>, LayoutError> {
    let mut out = vec![0i32; data.len()];
    quantize_into(data, layout, &within(params, base), &mut out, |code| code)?;
    Ok(out)
}

fn within(params: &[QParams], base: Base) -> Vec<QParams> {
    let info = base.info();
    let clip = |p: &QParams| QParams {
        qmin: p.qmin.max(info.qmin),
        qmax: p.qmax.min(info.qmax),
        ..*p
    };
    params.iter().map(clip).collect()
}

fn quantize_into<T: Send>(
    data: &[f32],
    layout: Layout,
    params: &[QParams],
    out: &mut [T],
    store: impl Fn(i32) -> T + Sync,
) -> Result<(), LayoutError> {
    layout.check(data.len())?;
    let Layout {
        outer,
        channels,
        inner,
    } = layout;
    if params.len() != channels {
        return Err(LayoutError::Params {
            found: params.len(),
            channels,
        });
    }
    if data.is_empty() {
        return Ok(());
    }
    let kernels: Option<Vec<Kernel>> = params.iter().map(Kernel::new).collect();
    let Some(kernels) = kernels else {
        for (at, (q, &x)) in out.iter_mut().zip(data).enumerate() {
            *q = store(quantize_wide(x, &params[at / inner % channels]));
        }
        return Ok(());
    };
    if inner < SHORT_RUN && outer > 1 {
        let columns = Columns::new(&kernels, inner);
        let row = channels * inner;
        let task = (TASK / row).max(1) * row;
        out.par_chunks_mut(task)
            .zip(data.par_chunks(task))
            .for_each(|(out, data)| {
                for (out, data) in out.chunks_mut(row).zip(data.chunks(row)) {
                    columns.quantize(data, out, &store);
                }
            });
        return Ok(());
    }
    quantize_runs(data, inner, &kernels, out, &store);
    Ok(())
}

/// Quantizes runs of `inner` values that belong to the channels in turn.
fn quantize_runs<T: Send>(
    data: &[f32],
    inner: usize,
    kernels: &[Kernel],
    out: &mut [T],
    store: &(impl Fn(i32) -> T + Sync),
) {
    let one = |kernel: &Kernel, data: &[f32], out: &mut [T]| {
        for (q, &x) in out.iter_mut().zip(data) {
            *q = store(kernel.code(x));
        }
    };
    if let [kernel] = kernels {
        out.par_chunks_mut(TASK)
            .zip(data.par_chunks(TASK))
            .for_each(|(out, data)| one(kernel, data, out));
        return;
    }
    let runs = (TASK / inner).max(1);
    out.par_chunks_mut(runs * inner)
        .zip(data.par_chunks(runs * inner))
        .enumerate()
        .for_each(|(task, (out, data))| {
            let pairs = out.chunks_mut(inner).zip(data.chunks(inner));
            for (run, (out, data)) in pairs.enumerate() {
                one(&kernels[(task * runs + run) % kernels.len()], data, out);
            }
        });
}

/// The parameters of one row, each field a column, so that a loop over a row vectorizes.
struct Columns {
    scale: Vec<f32>,
    low: Vec<f32>,
    high: Vec<f32>,
    zero_point: Vec<i32>,
}

impl Columns {
    /// Each kernel `inner` times.
    fn new(kernels: &[Kernel], inner: usize) -> Self {
        let row = || {
            kernels
                .iter()
                .flat_map(|kernel| std::iter::repeat_n(kernel, inner))
        };
        Columns {
            scale: row().map(|k| k.scale).collect(),
            low: row().map(|k| k.low).collect(),
            high: row().map(|k| k.high).collect(),
            zero_point: row().map(|k| k.zero_point).collect(),
        }
    }

    fn fake_quant(&self, data: &mut [f32]) {
        let bounds = self.low.iter().zip(&self.high);
        for ((x, &scale), (&low, &high)) in data.iter_mut().zip(&self.scale).zip(bounds) {
            *x = Kernel {
                scale,
                low,
                high,
                zero_point: 0,
            }
            .fake(*x);
        }
    }

    fn quantize<T>(&self, data: &[f32], out: &mut [T], store: &impl Fn(i32) -> T) {
        let bounds = self.low.iter().zip(&self.high);
        let columns = self.scale.iter().zip(&self.zero_point).zip(bounds);
        for ((q, &x), ((&scale, &zero_point), (&low, &high))) in
            out.iter_mut().zip(data).zip(columns)
        {
            *q = store(
                Kernel {
                    scale,
                    low,
                    high,
                    zero_point,
                }
                .code(x),
            );
        }
    }
}

/// Dequantizes codes with one `params` entry for each channel into `out`.
///
/// # Errors
/// [`LayoutError`] if `codes`, `params` or `out` do not fit the layout.
pub fn dequantize_per_channel<T: Code>(
    codes: &[T],
    layout: Layout,
    params: &[QParams],
    out: &mut [f32],
) -> Result<(), LayoutError> {
    layout.check(codes.len())?;
    layout.check(out.len())?;
    let Layout {
        channels, inner, ..
    } = layout;
    if params.len() != channels {
        return Err(LayoutError::Params {
            found: params.len(),
            channels,
        });
    }
    if codes.is_empty() {
        return Ok(());
    }
    for (at, (out, codes)) in out.chunks_mut(inner).zip(codes.chunks(inner)).enumerate() {
        let p = &params[at % channels];
        crate::quantize::dequantize(codes, p.scale, p.zero_point, out);
    }
    Ok(())
}

/// Quantizes with one `params` entry for each channel and dequantizes, in place: the weights as the quantized
/// model sees them.
///
/// # Errors
/// [`LayoutError`] if `data` or `params` do not fit the layout.
pub fn fake_quant_per_channel(
    data: &mut [f32],
    layout: Layout,
    params: &[QParams],
) -> Result<(), LayoutError> {
    layout.check(data.len())?;
    let Layout {
        channels, inner, ..
    } = layout;
    if params.len() != channels {
        return Err(LayoutError::Params {
            found: params.len(),
            channels,
        });
    }
    if data.is_empty() {
        return Ok(());
    }
    let kernels: Option<Vec<Kernel>> = params.iter().map(Kernel::new).collect();
    if let (Some(kernels), true) = (kernels, inner < SHORT_RUN && layout.outer > 1) {
        let columns = Columns::new(&kernels, inner);
        let row = channels * inner;
        data.par_chunks_mut((TASK / row).max(1) * row)
            .for_each(|rows| rows.chunks_mut(row).for_each(|row| columns.fake_quant(row)));
        return Ok(());
    }
    let runs = (TASK / inner).max(1);
    data.par_chunks_mut(runs * inner)
        .enumerate()
        .for_each(|(task, data)| {
            for (run, data) in data.chunks_mut(inner).enumerate() {
                crate::quantize::fake_quant(data, &params[(task * runs + run) % channels]);
            }
        });
    Ok(())
}
