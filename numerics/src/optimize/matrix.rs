//! Products of row-major matrices, the Gram matrices of layer inputs, and their Cholesky factors.
//!
//! One product runs on one thread ([`ndarray`]'s kernels); parallel callers split by rows, in pieces of a fixed size, so
//! that sums are added in the same order for any number of threads.

use faer::{Mat, Side};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, LinalgScalar, s};
use rayon::prelude::*;
use thiserror::Error;

/// Rows that one task of a parallel product works on.
const ROWS: usize = 64;

/// A matrix that is not positive definite even with damping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the Hessian is not positive definite (its values are not finite)")]
pub struct NotPositive;

fn view<T>(data: &[T], rows: usize, cols: usize) -> ArrayView2<'_, T> {
    ArrayView2::from_shape((rows, cols), data)
        .unwrap_or_else(|e| panic!("{} values for {rows} x {cols}: {e}", data.len()))
}

fn view_mut<T>(data: &mut [T], rows: usize, cols: usize) -> ArrayViewMut2<'_, T> {
    let len = data.len();
    ArrayViewMut2::from_shape((rows, cols), data)
        .unwrap_or_else(|e| panic!("{len} values for {rows} x {cols}: {e}"))
}

/// `c [m, n] += alpha · a [m, k] · bᵀ`, `b [n, k]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn add_abt<T: LinalgScalar>(c: &mut [T], a: &[T], b: &[T], k: usize, alpha: T) {
    if k == 0 || a.is_empty() || b.is_empty() {
        return;
    }
    let (m, n) = (a.len() / k, b.len() / k);
    let (a, b) = (view(a, m, k), view(b, n, k));
    general_mat_mul(alpha, &a, &b.t(), T::one(), &mut view_mut(c, m, n));
}

/// `c [m, n] += alpha · a [m, k] · b [k, n]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn add_ab<T: LinalgScalar>(c: &mut [T], a: &[T], b: &[T], k: usize, alpha: T) {
    if k == 0 || a.is_empty() || b.is_empty() {
        return;
    }
    let (m, n) = (a.len() / k, b.len() / k);
    let (a, b) = (view(a, m, k), view(b, k, n));
    general_mat_mul(alpha, &a, &b, T::one(), &mut view_mut(c, m, n));
}

/// `c [m, n] += alpha · aᵀ · b`, `a [k, m]`, `b [k, n]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn add_atb<T: LinalgScalar>(c: &mut [T], a: &[T], b: &[T], k: usize, alpha: T) {
    if k == 0 || a.is_empty() || b.is_empty() {
        return;
    }
    let (m, n) = (a.len() / k, b.len() / k);
    let (a, b) = (view(a, k, m), view(b, k, n));
    general_mat_mul(alpha, &a.t(), &b, T::one(), &mut view_mut(c, m, n));
}

/// `c [m, n] -= a [m, k] · b`, where `b` are the rows from `from.0` and the columns from `from.1` of a matrix with
/// `stride` columns, and `c` the columns from `from.1` on of one with as many.
pub(crate) fn subtract_piece(
    c: &mut [f32],
    a: &[f32],
    k: usize,
    b: &[f32],
    stride: usize,
    from: (usize, usize),
) {
    let m = a.len() / k;
    let b = view(&b[from.0 * stride..(from.0 + k) * stride], k, stride);
    let b = b.slice(s![.., from.1..]);
    let mut c = view_mut(c, m, stride);
    let mut c = c.slice_mut(s![.., from.1..]);
    general_mat_mul(-1.0, &view(a, m, k), &b, 1.0, &mut c);
}

/// `a [m, k] · bᵀ`, `b [n, k]`, in parallel over the rows of `a`.
pub fn abt(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    if k == 0 || a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let n = b.len() / k;
    let mut c = vec![0.0; a.len() / k * n];
    c.par_chunks_mut(ROWS * 4 * n)
        .zip(a.par_chunks(ROWS * 4 * k))
        .for_each(|(c, a)| add_abt(c, a, b, k, 1.0));
    c
}

/// A sum of outer products, `Σ x yᵀ` over rows.
#[derive(Debug, Clone)]
pub struct Gram {
    /// Rows and columns.
    pub size: (usize, usize),
    /// `[size.0, size.1]`.
    pub sum: Vec<f64>,
    /// Rows that were added.
    pub count: usize,
}

impl Gram {
    /// An empty sum.
    pub fn new(m: usize, n: usize) -> Self {
        Self {
            size: (m, n),
            sum: vec![0.0; m * n],
            count: 0,
        }
    }

    /// Adds the rows of `x [count, size.0]` and `y [count, size.1]`.
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        let (m, n) = self.size;
        if m == 0 || n == 0 {
            return;
        }
        let count = x.len() / m;
        // 4096 rows are summed in f32, the sums of such pieces in f64.
        for (x, y) in x.chunks(m << 12).zip(y.chunks(n << 12)) {
            let rows = x.len() / m;
            let piece = |(at, sum): (usize, &mut [f64])| {
                let columns = sum.len() / n;
                let mut part = vec![0.0f32; sum.len()];
                let from = at * ROWS;
                let own: Vec<f32> = x
                    .chunks_exact(m)
                    .flat_map(|r| &r[from..from + columns])
                    .copied()
                    .collect();
                add_atb(&mut part, &own, y, rows, 1.0);
                sum.iter_mut()
                    .zip(part)
                    .for_each(|(s, p)| *s += f64::from(p));
            };
            self.sum
                .par_chunks_mut(ROWS * n)
                .enumerate()
                .for_each(piece);
        }
        self.count += count;
    }

    /// Takes in another sum.
    pub fn merge(&mut self, other: &Self) {
        self.sum
            .iter_mut()
            .zip(&other.sum)
            .for_each(|(a, b)| *a += b);
        self.count += other.count;
    }

    /// The diagonal.
    pub fn diagonal(&self) -> Vec<f64> {
        let n = self.size.1;
        (0..self.size.0.min(n))
            .map(|i| self.sum[i * n + i])
            .collect()
    }

    /// `Σ_rows e G eᵀ` for each row `e` of a matrix `[rows, size.0]`.
    pub fn quadratic(&self, rows: &[f32]) -> Vec<f64> {
        let n = self.size.0;
        if n == 0 {
            return Vec::new();
        }
        rows.par_chunks(n)
            .map(|e| {
                let row = |(i, &x): (usize, &f32)| {
                    let g = &self.sum[i * n..(i + 1) * n];
                    f64::from(x) * dot(g, e)
                };
                e.iter().enumerate().map(row).sum()
            })
            .collect()
    }
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

/// A symmetric matrix of a Gram sum, row-major, with `damping` times the mean of its diagonal added to the diagonal. An
/// input that was always 0 gets a diagonal of 1: it then neither gives nor takes error.
pub fn damped(gram: &Gram, damping: f64) -> Vec<f64> {
    let n = gram.size.0;
    let diagonal = gram.diagonal();
    let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            out[i * n + j] = (gram.sum[i * n + j] + gram.sum[j * n + i]) / 2.0;
        }
        let own = if diagonal[i] == 0.0 { 1.0 } else { diagonal[i] };
        out[i * n + i] = own + damping * mean;
    }
    out
}

/// The lower factor `L` of `a = L Lᵀ`, `a [n, n]` symmetric and row-major; of `a` only the lower half is read.
///
/// # Errors
/// [`NotPositive`].
pub fn cholesky(a: &[f64], n: usize) -> Result<Vec<f64>, NotPositive> {
    let matrix = Mat::from_fn(n, n, |i, j| a[i * n + j]);
    let factor = matrix.llt(Side::Lower).map_err(|_| NotPositive)?;
    let lower = factor.L();
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            out[i * n + j] = lower[(i, j)];
        }
    }
    let valid = out.iter().all(|x| x.is_finite());
    if valid { Ok(out) } else { Err(NotPositive) }
}

/// The transposed inverse of a lower factor, row-major: row `c` holds column `c` of `L⁻¹`.
pub fn inverse_factor(l: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    out.par_chunks_mut(ROWS * n)
        .enumerate()
        .for_each(|(at, columns)| {
            let first = at * ROWS;
            let m = columns.len() / n;
            let mut start = first;
            while start < n {
                let end = (start + ROWS).min(n);
                let width = end - start;
                let mut right = vec![0.0; m * width];
                if start > first {
                    let known = view(columns, m, n);
                    let known = known.slice(s![.., first..start]);
                    let lines = view(&l[start * n..end * n], width, n);
                    let lines = lines.slice(s![.., first..start]);
                    general_mat_mul(
                        -1.0,
                        &known,
                        &lines.t(),
                        0.0,
                        &mut view_mut(&mut right, m, width),
                    );
                }
                for c in 0..m {
                    let right = &mut right[c * width..(c + 1) * width];
                    if (start..end).contains(&(first + c)) {
                        right[first + c - start] += 1.0;
                    }
                    for i in 0..width {
                        let line = &l[(start + i) * n + start..(start + i) * n + start + i];
                        let sum: f64 = right[..i].iter().zip(line).map(|(x, y)| x * y).sum();
                        right[i] = (right[i] - sum) / l[(start + i) * n + start + i];
                    }
                    columns[c * n + start..c * n + end].copy_from_slice(right);
                }
                start = end;
            }
        });
    out
}

/// `a [m, k] · bᵀ`, `b [n, k]`, in parallel over the rows of `a`, in FP64.
pub fn abt_f64(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    if k == 0 || a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let n = b.len() / k;
    let mut c = vec![0.0; a.len() / k * n];
    c.par_chunks_mut(ROWS * n)
        .zip(a.par_chunks(ROWS * k))
        .for_each(|(c, a)| add_abt(c, a, b, k, 1.0));
    c
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::optimize::random::Random;

    #[test]
    fn gram_sums_do_not_depend_on_pieces() {
        let mut random = Random::new(1);
        let (m, n, rows) = (70, 3, 5000);
        let x: Vec<f32> = (0..m * rows).map(|_| random.unit() - 0.5).collect();
        let y: Vec<f32> = (0..n * rows).map(|_| random.unit() - 0.5).collect();
        let mut gram = Gram::new(m, n);
        gram.add(&x, &y);
        for (i, j) in [(0, 0), (69, 2), (64, 1)] {
            let exact: f64 = (0..rows)
                .map(|r| f64::from(x[r * m + i]) * f64::from(y[r * n + j]))
                .sum();
            assert!((gram.sum[i * n + j] - exact).abs() < 1e-2, "{i} {j}");
        }
        assert_eq!(gram.count, rows);
    }

    #[test]
    fn factors_and_their_inverses() {
        let mut random = Random::new(6);
        for n in [1, 5, 64, 65, 150] {
            let x: Vec<f64> = (0..n * n).map(|_| f64::from(random.unit()) - 0.5).collect();
            let mut a = abt_f64(&x, &x, n);
            (0..n).for_each(|i| a[i * n + i] += 0.1);
            let l = cholesky(&a, n).unwrap();
            let back = abt_f64(&l, &l, n);
            assert!(
                back.iter().zip(&a).all(|(x, y)| (x - y).abs() < 1e-9),
                "{n}"
            );
            let one = abt_f64(&l, &inverse_factor(&l, n), n);
            for (i, x) in one.iter().enumerate() {
                let expected = f64::from(u8::from(i / n == i % n));
                assert!((x - expected).abs() < 1e-6, "{n}: {x} at {i}");
            }
        }
        assert_eq!(cholesky(&[1.0, 2.0, 2.0, 1.0], 2), Err(NotPositive));
        assert_eq!(cholesky(&[f64::NAN], 1), Err(NotPositive));
    }

    #[test]
    fn products() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        assert_eq!(abt(&a, &b, 3), [4.0, 2.0, 10.0, 5.0]);
        let mut c = [0.0; 9];
        add_atb(&mut c, &a, &b, 2, 2.0);
        assert_eq!(c, [2.0, 8.0, 2.0, 4.0, 10.0, 4.0, 6.0, 12.0, 6.0]);
    }
}
