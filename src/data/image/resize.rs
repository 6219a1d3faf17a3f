//! Scaling with antialiasing, bit for bit as Pillow does it (`src/libImaging/Resample.c`): the filter grows with the
//! factor of reduction, rows and columns are scaled one after the other, weights have 22 fractional bits, and rows are rounded to bytes.

use crate::data::image_spec::Filter;

/// Fractional bits of the weights: a byte and two bits for the overshoot of the filter stay.
const PRECISION: u32 = 32 - 8 - 2;

/// Pixels of 1 or 3 bytes, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pixels {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) depth: usize,
    pub(super) bytes: Vec<u8>,
}

impl Pixels {
    /// The image scaled to a size.
    pub(super) fn resize(self, height: usize, width: usize, filter: Filter) -> Self {
        let lost = |from: usize, to: usize| from as i64 - to as i64;
        let (rows, columns) = (lost(self.height, height), lost(self.width, width));
        // Each pass rounds to bytes, so the order shows. Pillow does columns first where that shrinks the image more.
        if rows > 0 && rows > 2 * columns {
            self.with_height(height, filter).with_width(width, filter)
        } else {
            self.with_width(width, filter).with_height(height, filter)
        }
    }

    fn with_width(self, width: usize, filter: Filter) -> Self {
        if width == self.width {
            return self;
        }
        self.scale_rows(&Weights::new(self.width, width, filter), width)
    }

    fn with_height(self, height: usize, filter: Filter) -> Self {
        if height == self.height {
            return self;
        }
        self.scale_columns(&Weights::new(self.height, height, filter), height)
    }

    fn scale_rows(&self, weights: &Weights, width: usize) -> Self {
        let depth = self.depth;
        let mut bytes = Vec::with_capacity(self.height * width * depth);
        for row in self.bytes.chunks_exact((self.width * depth).max(1)) {
            for (first, weights) in weights.all() {
                let window = &row[first * depth..][..weights.len() * depth];
                for channel in 0..depth {
                    let pixels = window[channel..].iter().step_by(depth);
                    let sum = pixels.zip(weights).map(|(&p, &w)| i32::from(p) * w);
                    bytes.push(clip(sum.sum::<i32>()));
                }
            }
        }
        Self {
            width,
            bytes,
            ..*self
        }
    }

    fn scale_columns(&self, weights: &Weights, height: usize) -> Self {
        let stride = self.width * self.depth;
        let mut bytes = Vec::with_capacity(height * stride);
        let mut sums = vec![0_i32; stride];
        for (first, weights) in weights.all() {
            sums.fill(0);
            let rows = self.bytes[first * stride..].chunks_exact(stride.max(1));
            for (row, &weight) in rows.zip(weights) {
                for (sum, &pixel) in sums.iter_mut().zip(row) {
                    *sum += i32::from(pixel) * weight;
                }
            }
            bytes.extend(sums.iter().map(|&s| clip(s)));
        }
        Self {
            height,
            bytes,
            ..*self
        }
    }

    /// The part of the image from a corner on.
    pub(super) fn cut(&self, top: usize, left: usize, height: usize, width: usize) -> Self {
        let depth = self.depth;
        let rows = self.bytes.chunks_exact((self.width * depth).max(1));
        let bytes = rows
            .skip(top)
            .take(height)
            .flat_map(|row| &row[left * depth..(left + width) * depth])
            .copied()
            .collect();
        Self {
            width,
            height,
            depth,
            bytes,
        }
    }
}

fn clip(sum: i32) -> u8 {
    let rounded = (sum + (1 << (PRECISION - 1))) >> PRECISION;
    rounded.clamp(0, 255) as u8
}

/// For each pixel of the result: the first pixel that it is made of, and the weights from there on.
struct Weights {
    first: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl Weights {
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = radius(filter) * stretch;
        let mut all = Self {
            first: Vec::with_capacity(to),
            weights: Vec::new(),
        };
        for pixel in 0..to {
            let center = (pixel as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (start..end)
                .map(|x| weight(filter, (x as f64 - center + 0.5) * (1.0 / stretch)))
                .collect();
            let sum: f64 = weights.iter().sum();
            all.first.push((start, weights.len()));
            for w in weights {
                let w = if sum == 0.0 { w } else { w / sum };
                let fixed = w * f64::from(1 << PRECISION);
                all.weights
                    .push((fixed + if w < 0.0 { -0.5 } else { 0.5 }) as i32);
            }
        }
        all
    }

    fn all(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut at = 0;
        self.first.iter().map(move |&(first, count)| {
            at += count;
            (first, &self.weights[at - count..at])
        })
    }
}

fn radius(filter: Filter) -> f64 {
    match filter {
        Filter::Bilinear => 1.0,
        Filter::Bicubic => 2.0,
        Filter::Lanczos => 3.0,
    }
}

fn weight(filter: Filter, x: f64) -> f64 {
    let sinc = |x: f64| match x == 0.0 {
        true => 1.0,
        false => libm::sin(x * std::f64::consts::PI) / (x * std::f64::consts::PI),
    };
    let x = if filter == Filter::Lanczos {
        x
    } else {
        x.abs()
    };
    match filter {
        Filter::Bilinear if x < 1.0 => 1.0 - x,
        Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => ((x - 5.0) * x + 8.0) * x * -0.5 + 2.0,
        Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Pixels {
        Pixels {
            width,
            height,
            depth: 1,
            bytes: (0..width * height).map(|i| (i * 7 % 256) as u8).collect(),
        }
    }

    #[test]
    fn pillow_gives_the_same_bytes() {
        // Image.frombytes("L", (6, 4), …).resize((3, 2), BILINEAR) and so on, Pillow 13.
        let image = ramp(6, 4);
        let small = |f| image.clone().resize(2, 3, f).bytes;
        assert_eq!(small(Filter::Bilinear), [35, 48, 60, 101, 114, 126]);
        assert_eq!(small(Filter::Bicubic), [29, 43, 56, 105, 119, 132]);
        assert_eq!(small(Filter::Lanczos), [26, 41, 55, 106, 121, 135]);
        let large = |f| image.clone().resize(5, 9, f).bytes[..9].to_vec();
        let bilinear = [0, 4, 8, 13, 18, 22, 27, 32, 35];
        let sharper = [0, 1, 6, 11, 16, 20, 25, 30, 33];
        assert_eq!(large(Filter::Bilinear), bilinear);
        assert_eq!(large(Filter::Bicubic), sharper);
        assert_eq!(large(Filter::Lanczos), sharper);
    }

    #[test]
    fn the_same_size_is_the_same_image() {
        assert_eq!(ramp(5, 3).resize(3, 5, Filter::Lanczos), ramp(5, 3));
    }

    #[test]
    fn a_flat_image_stays_flat() {
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let flat = Pixels {
                width: 17,
                height: 9,
                depth: 3,
                bytes: vec![201; 17 * 9 * 3],
            };
            let scaled = flat.resize(23, 4, filter);
            assert!(scaled.bytes.iter().all(|&b| b == 201));
            assert_eq!(scaled.bytes.len(), 23 * 4 * 3);
        }
    }
}
