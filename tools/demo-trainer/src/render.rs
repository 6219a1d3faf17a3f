//! The images: digits drawn as strokes, each under its own transformation, contrast, background, scratch
//! and noise.
//!
//! An image is a function of the seed, its split and its index alone: any subset can be drawn in any order.

use crate::rng::Rng;
use rayon::prelude::*;

/// Width and height of an image in pixels; it has one channel.
pub const SIDE: usize = 24;
/// Number of pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Number of classes: the digits.
pub const CLASSES: usize = 10;
/// Pixels are multiples of 1/64 in [0, 1]: exact in binary, so few mantissa bits are set and files compress well.
const LEVELS: f32 = 64.0;
/// Straight pieces that a curve of a stroke is drawn with.
const PIECES: usize = 5;
/// The seed of every image.
const SEED: u64 = 0x6f6e_6e78_7175_616e;

/// The disjoint sets of images.
#[derive(Clone, Copy, Debug)]
pub enum Split {
    /// For learning the weights.
    Train,
    /// For choosing the ranges of activations.
    Calibration,
    /// For measuring accuracy.
    Eval,
}

/// Images with their labels.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Pixels, `[count, 1, SIDE, SIDE]`.
    pub images: Vec<f32>,
    /// The digit that each image shows.
    pub labels: Vec<usize>,
}

impl Dataset {
    /// Draws the images `start .. start + count` of a split; image `i` shows the digit `i mod 10`.
    pub fn render(split: Split, start: usize, count: usize) -> Self {
        let mut images = vec![0.0; count * PIXELS];
        images
            .par_chunks_mut(PIXELS)
            .enumerate()
            .for_each(|(i, image)| draw(split, start + i, image));
        let labels = (start..start + count).map(|i| i % CLASSES).collect();
        Self { images, labels }
    }
}

type Point = [f32; 2];

/// The strokes of a digit in a box of about ±0.6 by ±1, y downwards. A stroke is a chain of quadratic Bézier curves:
/// end point, control point, end point, control point, …, end point.
#[rustfmt::skip]
fn strokes(digit: usize) -> &'static [&'static [Point]] {
    match digit {
        0 => &[&[[0.0, -1.0], [0.6, -1.0], [0.6, 0.0], [0.6, 1.0], [0.0, 1.0], [-0.6, 1.0], [-0.6, 0.0], [-0.6, -1.0], [0.0, -1.0]]],
        1 => &[&[[-0.35, -0.55], [-0.1, -0.7], [0.05, -1.0], [0.05, 0.0], [0.05, 1.0]]],
        2 => &[&[[-0.55, -0.5], [-0.5, -1.0], [0.0, -1.0], [0.55, -1.0], [0.5, -0.45], [0.45, 0.0], [-0.55, 1.0], [0.0, 1.0], [0.6, 1.0]]],
        3 => &[&[[-0.5, -0.8], [-0.2, -1.0], [0.05, -1.0], [0.5, -1.0], [0.5, -0.5], [0.5, -0.05], [-0.1, -0.05], [0.6, -0.05], [0.6, 0.5], [0.6, 1.0], [0.0, 1.0], [-0.3, 1.0], [-0.6, 0.75]]],
        4 => &[&[[0.6, 0.4], [0.0, 0.4], [-0.6, 0.4], [-0.15, -0.3], [0.25, -1.0], [0.25, 0.0], [0.25, 1.0]]],
        5 => &[&[[0.5, -1.0], [0.05, -1.0], [-0.4, -1.0], [-0.45, -0.55], [-0.5, -0.1], [-0.2, -0.3], [0.05, -0.3], [0.6, -0.3], [0.6, 0.35], [0.6, 1.0], [0.0, 1.0], [-0.35, 1.0], [-0.6, 0.75]]],
        6 => &[&[[0.4, -1.0], [-0.55, -0.7], [-0.55, 0.35], [-0.55, 1.0], [0.0, 1.0], [0.58, 1.0], [0.58, 0.4], [0.58, -0.15], [0.05, -0.15], [-0.5, -0.15], [-0.55, 0.35]]],
        7 => &[&[[-0.55, -1.0], [0.0, -1.0], [0.55, -1.0], [0.1, -0.1], [-0.15, 1.0]]],
        8 => &[
            &[[0.0, -1.0], [0.5, -1.0], [0.5, -0.5], [0.5, -0.05], [0.0, -0.05], [-0.5, -0.05], [-0.5, -0.5], [-0.5, -1.0], [0.0, -1.0]],
            &[[0.0, -0.05], [0.6, -0.05], [0.6, 0.5], [0.6, 1.0], [0.0, 1.0], [-0.6, 1.0], [-0.6, 0.5], [-0.6, -0.05], [0.0, -0.05]],
        ],
        _ => &[&[[-0.4, 1.0], [0.55, 0.7], [0.55, -0.35], [0.55, -1.0], [0.0, -1.0], [-0.58, -1.0], [-0.58, -0.4], [-0.58, 0.15], [-0.05, 0.15], [0.5, 0.15], [0.55, -0.35]]],
    }
}

/// A random map from the box of the strokes to pixels: scale, shear, rotation, shift.
struct Placement {
    rows: [[f32; 3]; 2],
}

impl Placement {
    fn random(rng: &mut Rng) -> Self {
        let height = rng.uniform(7.0, 10.0);
        let width = height * rng.uniform(0.75, 1.25);
        let shear = rng.uniform(-0.3, 0.3);
        // Cosine and sine from the tangent of the half angle t: up to about 25 degrees either way.
        let t = rng.uniform(-0.22, 0.22);
        let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
        let centre = SIDE as f32 / 2.0;
        let (dx, dy) = (rng.uniform(-2.0, 2.0), rng.uniform(-2.0, 2.0));
        let (a, b) = (cos * width, cos * shear * width - sin * height);
        let (c, d) = (sin * width, sin * shear * width + cos * height);
        Self {
            rows: [[a, b, centre + dx], [c, d, centre + dy]],
        }
    }

    fn apply(&self, [x, y]: Point) -> Point {
        self.rows.map(|[a, b, shift]| a * x + b * y + shift)
    }
}

/// The strokes of a digit as straight segments in pixels, every point of a stroke moved a little on its own.
fn outline(digit: usize, rng: &mut Rng) -> Vec<[Point; 2]> {
    let placement = Placement::random(rng);
    let mut segments = Vec::new();
    for stroke in strokes(digit) {
        let points: Vec<Point> = stroke
            .iter()
            .map(|&[x, y]| {
                let moved = [x + 0.06 * rng.normal(), y + 0.06 * rng.normal()];
                placement.apply(moved)
            })
            .collect();
        for curve in points.windows(3).step_by(2) {
            let at = |piece: usize| {
                let t = piece as f32 / PIECES as f32;
                let weights = [(1.0 - t) * (1.0 - t), 2.0 * t * (1.0 - t), t * t];
                [0, 1].map(|axis| {
                    weights[0] * curve[0][axis]
                        + weights[1] * curve[1][axis]
                        + weights[2] * curve[2][axis]
                })
            };
            segments.extend((0..PIECES).map(|piece| [at(piece), at(piece + 1)]));
        }
    }
    segments
}

/// The squared distance from a point to a segment.
fn distance_squared(p: Point, [a, b]: [Point; 2]) -> f32 {
    let along = [b[0] - a[0], b[1] - a[1]];
    let to = [p[0] - a[0], p[1] - a[1]];
    let length = along[0] * along[0] + along[1] * along[1];
    let t = (along[0] * to[0] + along[1] * to[1]) / length.max(1e-12);
    let t = t.clamp(0.0, 1.0);
    let off = [to[0] - t * along[0], to[1] - t * along[1]];
    off[0] * off[0] + off[1] * off[1]
}

/// How much of the pixel around `p` is inked by a pen of the given radius whose edge is `soft` pixels wide, in [0, 1].
fn ink(p: Point, segments: &[[Point; 2]], radius: f32, soft: f32) -> f32 {
    let nearest = segments
        .iter()
        .map(|&segment| distance_squared(p, segment))
        .fold(f32::INFINITY, f32::min);
    (0.5 + (radius - nearest.sqrt()) / soft).clamp(0.0, 1.0)
}

/// Draws one image into `image`, `[SIDE, SIDE]`.
fn draw(split: Split, index: usize, image: &mut [f32]) {
    let mut rng = Rng::new(SEED ^ split as u64, index as u64);
    let segments = outline(index % CLASSES, &mut rng);
    let (radius, soft) = (rng.uniform(0.7, 1.7), rng.uniform(0.8, 2.0));
    let centre = SIDE as f32 / 2.0;
    let mut anywhere = || [0, 1].map(|_| rng.uniform(0.0, SIDE as f32));
    let scratch = [[anywhere(), anywhere()]];
    let contrast = rng.uniform(0.25, 0.8);
    let low = rng.uniform(0.0, 1.0 - contrast);
    let (paper, pen) = if rng.coin() {
        (low, low + contrast)
    } else {
        (low + contrast, low)
    };
    let slope = [0, 1].map(|_| rng.uniform(-0.2, 0.2));
    let noise = rng.uniform(0.02, 0.1);
    for (i, pixel) in image.iter_mut().enumerate() {
        let p = [(i % SIDE) as f32 + 0.5, (i / SIDE) as f32 + 0.5];
        let light = slope[0] * (p[0] - centre) / centre + slope[1] * (p[1] - centre) / centre;
        let shape = ink(p, &segments, radius, soft).max(ink(p, &scratch, 0.4, 1.0));
        let value = paper + (pen - paper) * shape + light + noise * rng.normal();
        *pixel = (value.clamp(0.0, 1.0) * LEVELS).round() / LEVELS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a over the bits of the pixels.
    fn digest(images: &[f32]) -> u64 {
        images
            .iter()
            .flat_map(|pixel| pixel.to_bits().to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    #[test]
    fn images_are_the_same_everywhere() {
        let digests = [Split::Train, Split::Calibration, Split::Eval]
            .map(|split| digest(&Dataset::render(split, 0, 10).images));
        let expected = [
            8_140_959_051_152_255_413,
            6_766_752_253_555_673_605,
            10_964_554_297_088_212_035,
        ];
        assert_eq!(digests, expected);
    }

    #[test]
    fn an_image_depends_on_its_index_alone() {
        let all = Dataset::render(Split::Eval, 0, 20);
        let tail = Dataset::render(Split::Eval, 13, 7);
        assert_eq!(all.images[13 * PIXELS..], tail.images);
        assert_eq!(all.labels[13..], tail.labels);
    }

    #[test]
    fn pixels_are_levels_between_zero_and_one() {
        let data = Dataset::render(Split::Train, 0, 50);
        for pixel in data.images {
            assert!((0.0..=1.0).contains(&pixel));
            assert_eq!((pixel * LEVELS).fract(), 0.0);
        }
    }

    #[test]
    fn distance_is_to_the_nearest_point_of_the_segment() {
        let segment = [[1.0, 1.0], [3.0, 1.0]];
        assert_eq!(distance_squared([2.0, 3.0], segment), 4.0);
        assert_eq!(distance_squared([0.0, 1.0], segment), 1.0);
        assert_eq!(distance_squared([6.0, 5.0], segment), 25.0);
        assert_eq!(distance_squared([6.0, 5.0], [[3.0, 1.0]; 2]), 25.0);
    }
}
