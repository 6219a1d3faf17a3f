//! Smallest and largest value of a slice, exact and independent of the order of the values.

/// Lanes the loops keep apart, so that they vectorize.
const LANES: usize = 16;
/// Slices up to this length have a quarter of the lanes, which are soon joined.
const SHORT: usize = 128;

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

    fn finish(mut self) -> (f32, f32) {
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                let (min, max) = (self.min[lane + half], self.max[lane + half]);
                self.min[lane] = if min < self.min[lane] {
                    min
                } else {
                    self.min[lane]
                };
                self.max[lane] = if max > self.max[lane] {
                    max
                } else {
                    self.max[lane]
                };
                self.nan[lane] |= self.nan[lane + half];
            }
            half /= 2;
        }
        if self.nan[0] != 0 {
            return (f32::NAN, f32::NAN);
        }
        // Which zero wins depends on the order of the values; adding 0 leaves +0 of both.
        (self.min[0] + 0.0, self.max[0] + 0.0)
    }
}

/// Smallest and largest value; (NaN, NaN) if a value is NaN, (∞, −∞) if there are none.
///
/// A result of zero is +0.
pub fn min_max(x: &[f32]) -> (f32, f32) {
    match x.len() <= SHORT {
        true => by_lanes::<{ LANES / 4 }>(x),
        false => by_lanes::<LANES>(x),
    }
}

#[inline(always)]
fn by_lanes<const LANES: usize>(x: &[f32]) -> (f32, f32) {
    let mut extremes = Extremes::<LANES>::new();
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in chunk.iter().enumerate() {
            extremes.add(lane, x);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        extremes.add(lane, x);
    }
    extremes.finish()
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
        found.push(extremes.finish());
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
