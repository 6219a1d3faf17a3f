//! What a block does element by element: quantization, activations, dropped quantization; and their gradients.

use crate::optimize::adaround::Activation;
use crate::optimize::random::Random;
use crate::simd::vectorized;

/// Sums that run side by side, one for each lane of the widest vectors: always as many, so that results are the same on
/// every processor.
const LANES: usize = 16;

/// A quantizer of activations: the step and the ends of the codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub(super) scale: f32,
    pub(super) low: f32,
    pub(super) high: f32,
}

/// The values of the nearest codes.
pub(super) fn quantized(x: &[f32], Codes { scale, low, high }: Codes) -> Vec<f32> {
    let mut y = x.to_vec();
    vectorized(
        #[inline(always)]
        || {
            for y in &mut y {
                *y = (*y / scale).round_ties_even().max(low).min(high) * scale;
            }
        },
    );
    y
}

/// Adds the gradient of `x`, of which `y` was made, and gives that of the scale.
pub(super) fn quantized_back(
    (x, y): (&[f32], &[f32]),
    dy: &[f32],
    Codes { scale, low, high }: Codes,
    dx: &mut [f32],
) -> f32 {
    let mut sums = [0.0f32; LANES];
    vectorized(
        #[inline(always)]
        || {
            let parts = x.chunks(LANES).zip(y.chunks(LANES)).zip(dy.chunks(LANES));
            for (dx, ((x, y), dy)) in dx.chunks_mut(LANES).zip(parts) {
                for (((s, g), (&x, &y)), &d) in sums.iter_mut().zip(dx).zip(x.iter().zip(y)).zip(dy)
                {
                    let u = x / scale;
                    let r = u.round_ties_even();
                    // On the grid, or dropped.
                    let same = y == x;
                    let error = if r < low {
                        low
                    } else if r > high {
                        high
                    } else {
                        r - u
                    };
                    *s += if same { 0.0 } else { d * error };
                    let passes = same || (r >= low && r <= high);
                    *g += if passes { d } else { 0.0 };
                }
            }
        },
    );
    sums.iter().sum::<f32>() * scale
}

/// The sum.
pub(super) fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    vectorized(
        #[inline(always)]
        || {
            for x in x.chunks(LANES) {
                for (s, x) in sums.iter_mut().zip(x) {
                    *s += x;
                }
            }
        },
    );
    sums.iter().sum()
}

/// Applies an activation.
pub(super) fn activate(y: &mut [f32], f: Activation) {
    vectorized(
        #[inline(always)]
        || {
            y.iter_mut().for_each(
                #[inline(always)]
                |y| *y = f.apply(*y).0,
            )
        },
    );
}

/// Adds the gradient of what an activation was applied to.
pub(super) fn activate_back(dx: &mut [f32], (x, dy): (&[f32], &[f32]), f: Activation) {
    vectorized(
        #[inline(always)]
        || {
            for (g, (&x, d)) in dx.iter_mut().zip(x.iter().zip(dy)) {
                *g += d * f.apply(x).1;
            }
        },
    );
}

/// Replaces about every second element.
pub(super) fn mix(x: &mut [f32], other: &[f32], random: &mut Random) {
    vectorized(
        #[inline(always)]
        || {
            for (x, other) in x.chunks_mut(64).zip(other.chunks(64)) {
                let bits = random.next_u64();
                let halves = [bits as u32, (bits >> 32) as u32];
                let parts = x.chunks_mut(32).zip(other.chunks(32)).zip(halves);
                for ((x, other), bits) in parts {
                    for (i, (x, &other)) in x.iter_mut().zip(other).enumerate() {
                        *x = if bits & (1 << i) != 0 { other } else { *x };
                    }
                }
            }
        },
    );
}
