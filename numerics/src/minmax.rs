//! Smallest and largest value of a slice, exact and independent of the order of the values.

use pulp::{Arch, Simd, WithSimd};

/// Lanes the loops keep apart, so that they vectorize.
const LANES: usize = 16;

/// Running extremes of `LANES` interleaved sequences.
struct Extremes<const LANES: usize> {
    min: [f32; LANES],
    max: [f32; LANES],
    /// All ones where the lane met NaN.
    nan: [u32; LANES],
}

impl<const LANES: usize> Extremes<LANES> {
    fn new() -> Self {
        Extremes {
            min: [f32::INFINITY; LANES],
            max: [f32::NEG_INFINITY; LANES],
            nan: [0; LANES],
        }
    }

    #[inline(always)]
    fn add(&mut self, lane: usize, x: f32) {
        self.min[lane] = if x < self.min[lane] {
            x
        } else {
            self.min[lane]
        };
        self.max[lane] = if x > self.max[lane] {
            x
        } else {
            self.max[lane]
        };
        self.nan[lane] |= if x.is_nan() { u32::MAX } else { 0 };
    }

    fn lanes(self) -> impl Iterator<Item = (f32, f32)> {
        let range = |((min, max), nan)| match nan {
            0 => (min + 0.0, max + 0.0),
            _ => (f32::NAN, f32::NAN),
        };
        self.min.into_iter().zip(self.max).zip(self.nan).map(range)
    }
}

/// Smallest and largest value; (NaN, NaN) if a value is NaN, (∞, −∞) if there are none.
///
/// A result of zero is +0.
pub fn min_max(x: &[f32]) -> (f32, f32) {
    struct Op<'a>(&'a [f32]);
    impl WithSimd for Op<'_> {
        type Output = (f32, f32);
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
            by_vectors(simd, self.0)
        }
    }
    Arch::new().dispatch(Op(x))
}

/// [`min_max`] of one block of values after the other, the last of which may be shorter.
pub(crate) fn block_min_max(x: &[f32], block: usize, ranges: &mut [(f32, f32)]) {
    struct Op<'a>(&'a [f32], usize, &'a mut [(f32, f32)]);
    impl WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for (range, x) in self.2.iter_mut().zip(self.0.chunks(self.1)) {
                *range = by_vectors(simd, x);
            }
        }
    }
    Arch::new().dispatch(Op(x, block, ranges));
}

#[inline(always)]
fn by_vectors<S: Simd>(simd: S, x: &[f32]) -> (f32, f32) {
    let zero = simd.splat_f32s(0.0);
    let mut min = [simd.splat_f32s(f32::INFINITY); 2];
    let mut max = [simd.splat_f32s(f32::NEG_INFINITY); 2];
    // 0 · x, and a sum with it, is NaN for NaN and infinite values and 0 for all others.
    let mut odd = [zero; 2];
    let (vectors, rest) = S::as_simd_f32s(x);
    let (pairs, last) = vectors.as_chunks::<2>();
    for pair in pairs {
        for lane in 0..2 {
            min[lane] = simd.min_f32s(min[lane], pair[lane]);
            max[lane] = simd.max_f32s(max[lane], pair[lane]);
            odd[lane] = simd.mul_add_e_f32s(pair[lane], zero, odd[lane]);
        }
    }
    for &v in last {
        min[0] = simd.min_f32s(min[0], v);
        max[0] = simd.max_f32s(max[0], v);
        odd[0] = simd.mul_add_e_f32s(v, zero, odd[0]);
    }
    let mut least = simd.reduce_min_f32s(simd.min_f32s(min[0], min[1]));
    let mut most = simd.reduce_max_f32s(simd.max_f32s(max[0], max[1]));
    let mut odd = simd.reduce_sum_f32s(simd.add_f32s(odd[0], odd[1]));
    for &x in rest {
        least = if x < least { x } else { least };
        most = if x > most { x } else { most };
        odd += x * 0.0;
    }
    if odd.is_nan() && x.iter().any(|x| x.is_nan()) {
        return (f32::NAN, f32::NAN);
    }
    // Which zero wins depends on the order of the values; adding 0 leaves +0 of both.
    (least + 0.0, most + 0.0)
}

/// [`min_max`] of each column of rows of `width` values; values after the last whole row are not looked at.
pub(crate) fn row_min_max(rows: &[f32], width: usize) -> Vec<(f32, f32)> {
    let mut found = Vec::with_capacity(width);
    let whole = width - width % LANES;
    for first in (0..whole).step_by(LANES) {
        let mut extremes = Extremes::<LANES>::new();
        for row in rows.chunks_exact(width) {
            for (lane, &x) in row[first..first + LANES].iter().enumerate() {
                extremes.add(lane, x);
            }
        }
        found.extend(extremes.lanes());
    }
    for column in whole..width {
        let mut extremes = Extremes::<1>::new();
        for row in rows.chunks_exact(width) {
            extremes.add(0, row[column]);
        }
        found.extend(extremes.lanes());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes() {
        let x: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        assert_eq!(min_max(&x), (-50.0, 50.0));
        assert_eq!(min_max(&[]), (f32::INFINITY, f32::NEG_INFINITY));
        assert_eq!(min_max(&[f32::NEG_INFINITY, 1.0]), (f32::NEG_INFINITY, 1.0));
        for at in [0, 17, 99] {
            let mut x = x.clone();
            x[at] = f32::NAN;
            assert!(min_max(&x).0.is_nan() && min_max(&x).1.is_nan());
        }
        for zeros in [[0.0, -0.0], [-0.0, 0.0]] {
            let (min, max) = min_max(&zeros);
            assert!(min.is_sign_positive() && max.is_sign_positive());
        }
    }

    #[test]
    fn columns() {
        let rows = [1.0, f32::NAN, -0.0, 3.0, 5.0, -2.0];
        let found = row_min_max(&rows, 3);
        assert_eq!((found[0], found[2]), ((1.0, 3.0), (-2.0, 0.0)));
        assert!(found[1].0.is_nan());
    }
}
