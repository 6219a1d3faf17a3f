//! Batches of feature maps, trainable parameters, and the two inner loops that everything is made of.
//!
//! Each sum is taken in an order that the shapes fix, so that a result does not depend on the number of threads.

use crate::rng::Rng;

/// A batch of feature maps in row-major order; vectors are maps of one pixel.
#[derive(Clone, Debug, Default)]
pub struct Tensor {
    /// Samples, channels, height, width.
    pub shape: [usize; 4],
    /// The values, `shape` of them.
    pub data: Vec<f32>,
}

impl Tensor {
    /// All zeros.
    pub fn zeros(shape: [usize; 4]) -> Self {
        Self {
            shape,
            data: vec![0.0; shape.iter().product()],
        }
    }

    /// Pixels of one channel of one sample.
    pub fn plane(&self) -> usize {
        self.shape[2] * self.shape[3]
    }

    /// Values of one sample.
    pub fn sample(&self) -> usize {
        self.shape[1] * self.plane()
    }
}

/// A trainable tensor with its gradient and its momentum.
#[derive(Clone, Debug)]
pub struct Param {
    /// The last part of its name in the file, such as `weight`.
    pub name: &'static str,
    /// Its dimensions in the file.
    pub dims: Vec<usize>,
    /// Its values.
    pub value: Vec<f32>,
    /// The derivative of the loss with respect to each value, of the last backward pass.
    pub grad: Vec<f32>,
    /// Decaying sum of past gradients.
    pub velocity: Vec<f32>,
    /// Whether weight decay pulls it to zero.
    pub decays: bool,
}

impl Param {
    /// A vector of equal values, without weight decay.
    pub fn constant(name: &'static str, len: usize, value: f32) -> Self {
        Self {
            name,
            dims: vec![len],
            value: vec![value; len],
            grad: vec![0.0; len],
            velocity: vec![0.0; len],
            decays: false,
        }
    }

    /// A weight of random values of variance `2 / fan_in` (He et al. 2015), uniformly distributed; `fan_in` is the
    /// product of all dimensions but the first.
    pub fn random(name: &'static str, dims: &[usize], rng: &mut Rng) -> Self {
        let len = dims.iter().product();
        let fan_in: usize = dims.iter().skip(1).product();
        let bound = (6.0 / fan_in as f32).sqrt();
        let mut param = Self::constant(name, len, 0.0);
        param.value.fill_with(|| rng.uniform(-bound, bound));
        param.dims = dims.to_vec();
        param.decays = true;
        param
    }
}

/// `out[p] += Σₖ coefficients[k] · rows[k][p]`, where `rows` holds rows of the length of `out`, four rows at a time.
pub fn accumulate(out: &mut [f32], coefficients: &[f32], rows: &[f32]) {
    let n = out.len();
    let fours = coefficients.chunks_exact(4);
    let rest = fours.remainder();
    let split = (coefficients.len() - rest.len()) * n;
    for (c, r) in fours.zip(rows.chunks_exact(4 * n)) {
        let (r0, r1, r2, r3) = (&r[..n], &r[n..2 * n], &r[2 * n..3 * n], &r[3 * n..4 * n]);
        for p in 0..n {
            out[p] += (c[0] * r0[p] + c[1] * r1[p]) + (c[2] * r2[p] + c[3] * r3[p]);
        }
    }
    for (c, row) in rest.iter().zip(rows[split..].chunks_exact(n)) {
        for (o, r) in out.iter_mut().zip(row) {
            *o += c * r;
        }
    }
}

/// `Σ f(a, b)` over two slices of one length, in eight interleaved partial sums.
pub fn fold(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_blocks.remainder().iter().zip(b_blocks.remainder());
    let tail: f32 = rest.fold(0.0, |sum, (x, y)| sum + f(*x, *y));
    for (x, y) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += f(x[lane], y[lane]);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h)) + tail
}

/// The dot product of two slices of one length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold(a, b, |x, y| x * y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_loops_agree_with_plain_sums() {
        // Small whole numbers, so that any order of summation is exact.
        let number = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
        for (n, k) in [(1, 1), (5, 4), (9, 7), (16, 8), (23, 3)] {
            let rows: Vec<f32> = (0..n * k).map(number).collect();
            let coefficients: Vec<f32> = (0..k).map(|i| number(i + 2)).collect();
            let mut out = vec![1.0; n];
            accumulate(&mut out, &coefficients, &rows);
            for p in 0..n {
                let sum: f32 = (0..k).map(|r| coefficients[r] * rows[r * n + p]).sum();
                assert_eq!(out[p], 1.0 + sum);
            }
            let sum: f32 = (0..n).map(|p| out[p] * rows[p]).sum();
            assert_eq!(dot(&out, &rows[..n]), sum);
        }
    }
}
