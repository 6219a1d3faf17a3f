//! Linear quantization of slices, and the layouts that codes are stored in.
//!
//! The fast paths equal [`crate::affine::quantize_reference`] and [`crate::affine::dequantize_reference`] bit for
//! bit. They rest on two identities: clamping before rounding equals clamping after it when the bounds are integers,
//! and adding 1.5·2^23 rounds an f32 of magnitude up to 2^22 half to even.

use crate::affine::{QParams, quantize_reference};
use crate::format::Base;
use crate::pack::{pack, unpack};

/// 1.5 · 2^23: in this binade the f32 numbers are the integers.
const ROUNDER: f32 = 12_582_912.0;
/// Bounds up to this magnitude go through [`ROUNDER`].
const ROUNDER_LIMIT: i64 = 1 << 22;

/// An integer type that holds codes.
pub trait Code: Copy + Default + Send + Sync + 'static {
    /// Smallest and largest value.
    const BOUNDS: (i32, i32);
    /// Takes the low bits of a code that is known to be within [`Code::BOUNDS`].
    fn from_code(code: i32) -> Self;
    /// The code as i32.
    fn code(self) -> i32;
}

macro_rules! codes {
    ($($t:ty),*) => {$(
        impl Code for $t {
            const BOUNDS: (i32, i32) = (<$t>::MIN as i32, <$t>::MAX as i32);
            #[inline(always)]
            fn from_code(code: i32) -> Self { code as $t }
            #[inline(always)]
            fn code(self) -> i32 { self as i32 }
        }
    )*};
}
codes!(i8, u8, i16, u16, i32);

/// [`QParams`] in the form the inner loops use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) scale: f32,
    /// `qmin − Z` and `qmax − Z`.
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) zero_point: i32,
}

impl Kernel {
    /// `None` when a bound is too large for the rounding trick.
    #[inline(always)]
    pub(crate) fn new(p: &QParams) -> Option<Self> {
        let low = i64::from(p.qmin) - i64::from(p.zero_point);
        let high = i64::from(p.qmax) - i64::from(p.zero_point);
        let fits = low <= high && low.abs() <= ROUNDER_LIMIT && high.abs() <= ROUNDER_LIMIT;
        fits.then_some(Kernel {
            scale: p.scale,
            low: low as f32,
            high: high as f32,
            zero_point: p.zero_point,
        })
    }

    /// `q − Z` as an f32 in the binade of [`ROUNDER`].
    #[inline(always)]
    fn shifted(&self, x: f32) -> f32 {
        clamp_nan_low(x / self.scale, self.low, self.high) + ROUNDER
    }

    #[inline(always)]
    pub(crate) fn code(&self, x: f32) -> i32 {
        (self.shifted(x).to_bits() as i32)
            .wrapping_sub(ROUNDER.to_bits() as i32)
            .wrapping_add(self.zero_point)
    }

    #[inline(always)]
    pub(crate) fn fake(&self, x: f32) -> f32 {
        (self.shifted(x) - ROUNDER) * self.scale
    }
}

/// Clamps; NaN becomes `low`. Written so that it compiles to one `max` and one `min` instruction.
#[inline(always)]
fn clamp_nan_low(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Quantizes `x` into `out`, up to the shorter of the two.
///
/// Codes are clamped to `p.qmin..=p.qmax` and to what `T` holds.
pub fn quantize<T: Code>(x: &[f32], p: &QParams, out: &mut [T]) {
    let p = QParams {
        qmin: p.qmin.max(T::BOUNDS.0),
        qmax: p.qmax.min(T::BOUNDS.1),
        ..*p
    };
    match Kernel::new(&p) {
        Some(kernel) => {
            for (q, &x) in out.iter_mut().zip(x) {
                *q = T::from_code(kernel.code(x));
            }
        }
        None => {
            for (q, &x) in out.iter_mut().zip(x) {
                *q = T::from_code(quantize_wide(x, &p));
            }
        }
    }
}

/// [`quantize_reference`] that answers `qmin` where the code range is empty.
pub(crate) fn quantize_wide(x: f32, p: &QParams) -> i32 {
    quantize_reference(x, p.scale, p.zero_point, p.qmin, p.qmax.max(p.qmin))
}

/// QuantizeLinear to int8 with one scale: saturates at −128 and 127.
pub fn quantize_i8(x: &[f32], scale: f32, zero_point: i8, out: &mut [i8]) {
    quantize(
        x,
        &QParams::for_type(scale, i32::from(zero_point), Base::INT8),
        out,
    );
}

/// QuantizeLinear to uint8 with one scale: saturates at 0 and 255.
pub fn quantize_u8(x: &[f32], scale: f32, zero_point: u8, out: &mut [u8]) {
    quantize(
        x,
        &QParams::for_type(scale, i32::from(zero_point), Base::UINT8),
        out,
    );
}

/// DequantizeLinear with one scale, `out = (q − zero_point) · scale`, up to the shorter of the two.
pub fn dequantize<T: Code>(q: &[T], scale: f32, zero_point: i32, out: &mut [f32]) {
    let narrow = T::BOUNDS.0 >= -(1 << 16) && T::BOUNDS.1 <= 1 << 16;
    if narrow && zero_point.unsigned_abs() <= 1 << 16 {
        for (r, q) in out.iter_mut().zip(q) {
            *r = (q.code() - zero_point) as f32 * scale;
        }
    } else {
        for (r, q) in out.iter_mut().zip(q) {
            *r = crate::affine::dequantize_reference(q.code(), scale, zero_point);
        }
    }
}

/// Quantizes and dequantizes in place: QuantizeLinear and DequantizeLinear with the same parameters.
pub fn fake_quant(x: &mut [f32], p: &QParams) {
    match Kernel::new(p) {
        Some(kernel) => x.iter_mut().for_each(|x| *x = kernel.fake(*x)),
        None => x
            .iter_mut()
            .for_each(|x| *x = p.dequantize(quantize_wide(*x, p))),
    }
}

/// Codes in the `raw_data` layout of `base`: little-endian, codes of fewer than 8 bits packed.
pub fn codes_to_bytes(codes: &[i32], base: Base) -> Vec<u8> {
    match base.info().storage_bits {
        8 => codes.iter().map(|&q| q as u8).collect(),
        16 => codes
            .iter()
            .flat_map(|&q| (q as u16).to_le_bytes())
            .collect(),
        bits => pack(codes, bits),
    }
}

/// The first `count` codes of `bytes` in the `raw_data` layout of `base`; `None` if `bytes` is too short.
pub fn codes_from_bytes(bytes: &[u8], count: usize, base: Base) -> Option<Vec<i32>> {
    if bytes.len() < base.storage_bytes(count) {
        return None;
    }
    let info = base.info();
    let signed = info.signed && base.is_integer();
    let pairs = || bytes.chunks_exact(2).take(count).map(|b| [b[0], b[1]]);
    match (info.storage_bits, signed) {
        (8, true) => Some(bytes[..count].iter().map(|&b| i32::from(b as i8)).collect()),
        (8, false) => Some(bytes[..count].iter().map(|&b| i32::from(b)).collect()),
        (16, true) => Some(pairs().map(|b| i32::from(i16::from_le_bytes(b))).collect()),
        (16, false) => Some(pairs().map(|b| i32::from(u16::from_le_bytes(b))).collect()),
        (bits, signed) => unpack(bytes, count, bits, signed),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn any_params() -> impl Strategy<Value = (Base, QParams)> {
        let bases: Vec<Base> = Base::all().into_iter().filter(|b| b.is_integer()).collect();
        let base = (0..bases.len()).prop_map(move |at| bases[at]);
        // Scales over all magnitudes, and powers of two, whose quotients hit ties.
        let scale = prop_oneof![
            1e-38f32..1e38,
            (-126i32..127).prop_map(|e| 2f32.powi(e)),
            0.001f32..10.0,
        ];
        (base, scale, any::<u16>()).prop_map(|(base, scale, at)| {
            let info = base.info();
            let zero_point = info.qmin + i32::from(at) % (info.qmax - info.qmin + 1);
            (base, QParams::for_type(scale, zero_point, base))
        })
    }

    fn any_values(scale: f32) -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            any::<u32>().prop_map(f32::from_bits),
            (-600i32..600).prop_map(move |half_steps| half_steps as f32 * 0.5 * scale),
            (-1e5f32..1e5).prop_map(move |steps| steps * scale),
        ];
        proptest::collection::vec(value, 1..70)
    }

    proptest! {
        #[test]
        fn fast_paths_equal_the_reference(
            ((base, p), x) in any_params().prop_flat_map(|bp| (Just(bp), any_values(bp.1.scale)))
        ) {
            let expected: Vec<i32> = x.iter().map(|&x| p.quantize(x)).collect();
            let mut codes = vec![0i32; x.len()];
            quantize(&x, &p, &mut codes);
            prop_assert_eq!(&codes, &expected);

            let real: Vec<u32> = codes.iter().map(|&q| p.dequantize(q).to_bits()).collect();
            let mut faked = x.clone();
            fake_quant(&mut faked, &p);
            prop_assert_eq!(faked.iter().map(|r| r.to_bits()).collect::<Vec<_>>(), real.clone());

            let mut back = vec![0f32; x.len()];
            let narrow: Vec<u16> = codes.iter().map(|&q| q as u16).collect();
            if !base.info().signed {
                dequantize(&narrow, p.scale, p.zero_point, &mut back);
                prop_assert_eq!(back.iter().map(|r| r.to_bits()).collect::<Vec<_>>(), real.clone());
            }
            dequantize(&codes, p.scale, p.zero_point, &mut back);
            prop_assert_eq!(back.iter().map(|r| r.to_bits()).collect::<Vec<_>>(), real);

            let bytes = codes_to_bytes(&codes, base);
            prop_assert_eq!(bytes.len(), base.storage_bytes(codes.len()));
            prop_assert_eq!(codes_from_bytes(&bytes, codes.len(), base).unwrap(), codes);
        }
    }

    #[test]
    fn wide_and_contradictory_parameters_do_not_panic() {
        let p = QParams {
            scale: 1.0,
            zero_point: i32::MIN,
            qmin: i32::MIN,
            qmax: i32::MAX,
        };
        let mut out = [0i32; 3];
        quantize(&[f32::MAX, 1.0, f32::NAN], &p, &mut out);
        assert_eq!(out, [-1, i32::MIN + 1, i32::MIN]);
        let p = QParams {
            scale: 1.0,
            zero_point: 0,
            qmin: 5,
            qmax: -5,
        };
        quantize(&[0.0], &p, &mut out);
        assert_eq!(out[0], 5);
        let mut bytes = [0u8; 1];
        quantize(
            &[300.0],
            &QParams {
                scale: 1.0,
                zero_point: 0,
                qmin: -9,
                qmax: 999,
            },
            &mut bytes,
        );
        assert_eq!(bytes[0], 255);
    }

    #[test]
    fn typed_entry_points() {
        let x = [-1e9f32, -0.5, 0.5, 1.5, 1e9];
        let (mut s, mut u) = ([0i8; 5], [0u8; 5]);
        quantize_i8(&x, 1.0, -1, &mut s);
        quantize_u8(&x, 1.0, 3, &mut u);
        assert_eq!(s, [-128, -1, -1, 1, 127]);
        assert_eq!(u, [0, 3, 3, 5, 255]);
    }
}
