//! GPTQ against the formula that it implements, and coordinate descent.
#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::affine::QParams;
use crate::optimize::random::Random;

fn random_vec(n: usize, random: &mut Random) -> Vec<f32> {
    (0..n)
        .map(|_| random.unit() + random.unit() - 1.0)
        .collect()
}

fn int4(scale: f32, zero_point: i32) -> QParams {
    QParams {
        scale,
        zero_point,
        qmin: -8,
        qmax: 7,
    }
}

fn gram_of(samples: usize, cols: usize, random: &mut Random) -> Gram {
    let mix = random_vec(cols * cols, random);
    let raw = random_vec(samples * cols, random);
    let x = crate::optimize::matrix::abt(&raw, &mix, cols);
    let mut gram = Gram::new(cols, cols);
    gram.add(&x, &x);
    gram
}

/// The inverse by Gauss and Jordan.
fn inverse_of(a: &[f64], n: usize) -> Vec<Vec<f64>> {
    let mut rows: Vec<Vec<f64>> = a.chunks(n).map(<[f64]>::to_vec).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        row.extend((0..n).map(|j| f64::from(u8::from(i == j))));
    }
    for c in 0..n {
        let pivot = rows[c][c];
        rows[c].iter_mut().for_each(|x| *x /= pivot);
        let line = rows[c].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(r, _)| *r != c) {
            let factor = row[c];
            row.iter_mut()
                .zip(&line)
                .for_each(|(x, l)| *x -= factor * l);
        }
    }
    rows.into_iter().map(|r| r[n..].to_vec()).collect()
}

/// Optimal brain quantization in a fixed order: round a column, spread the error with the inverse Hessian of the
/// columns that are left, remove the column from the inverse by one step of Gaussian elimination. FP64, no blocks.
fn reference(
    weights: &[f32],
    hessian: &Gram,
    grid: &Grid,
    damping: f64,
    order: &[usize],
) -> Vec<f32> {
    let n = grid.cols;
    let plain = damped(hessian, damping);
    let mut out = vec![0.0; weights.len()];
    for (row, w) in weights.chunks_exact(n).enumerate() {
        let mut w: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
        let mut inverse = inverse_of(&plain, n);
        for (at, &c) in order.iter().enumerate() {
            let q = grid.cell(row, c).nearest(w[c] as f32);
            out[row * n + c] = q;
            let error = (w[c] - f64::from(q)) / inverse[c][c];
            for &j in &order[at..] {
                w[j] -= error * inverse[c][j];
            }
            let pivot = inverse[c][c];
            let line: Vec<f64> = (0..n).map(|j| inverse[c][j]).collect();
            for i in 0..n {
                for j in 0..n {
                    inverse[i][j] -= line[i] * line[j] / pivot;
                }
            }
        }
    }
    out
}

#[test]
fn equals_the_formula_on_random_matrices() {
    for (seed, act_order, samples, block) in [
        (1, false, 200, 40),
        (2, true, 200, 16),
        (3, false, 11, 7),
        (4, true, 11, 40),
    ] {
        let mut random = Random::new(seed);
        let (rows, cols) = (70, 40);
        let gram = gram_of(samples, cols, &mut random);
        let weights = random_vec(rows * cols, &mut random);
        let params: Vec<QParams> = (0..rows * cols.div_ceil(block))
            .map(|i| int4(0.1 + random.unit() * 0.1, i as i32 % 3 - 1))
            .collect();
        let grid = Grid::blocked(cols, block, &params);
        let options = Options {
            act_order,
            lazy: 9,
            ..Options::default()
        };
        let done = gptq(&weights, &gram, &grid, &options).unwrap();
        let expected = reference(
            &weights,
            &gram,
            &grid,
            options.damping,
            &order(&gram, act_order),
        );
        let different = done.iter().zip(&expected).filter(|(a, b)| a != b).count();
        // The product's FP32 may flip a weight that lies half way; it then differs in what follows in that row too.
        assert!(
            different <= 20,
            "seed {seed}: {different} of {}",
            done.len()
        );
        let plain = grid.nearest(&weights);
        assert!(error(&done, &weights, &gram) < error(&plain, &weights, &gram));
    }
}

fn error(q: &[f32], w: &[f32], gram: &Gram) -> f64 {
    let e: Vec<f32> = q.iter().zip(w).map(|(q, w)| q - w).collect();
    gram.quadratic(&e).iter().sum()
}

#[test]
fn an_identity_hessian_gives_nearest() {
    let mut random = Random::new(9);
    let (rows, cols) = (5, 30);
    let weights = random_vec(rows * cols, &mut random);
    let mut gram = Gram::new(cols, cols);
    (0..cols).for_each(|i| gram.sum[i * cols + i] = 1.0);
    let grid = Grid::blocked(cols, 8, &vec![int4(0.13, 2); rows * 4]);
    for act_order in [false, true] {
        let options = Options {
            act_order,
            ..Options::default()
        };
        assert_eq!(
            gptq(&weights, &gram, &grid, &options).unwrap(),
            grid.nearest(&weights)
        );
    }
}

#[test]
fn an_input_that_is_always_zero_and_one_sample_are_no_trouble() {
    let mut random = Random::new(4);
    let cols = 20;
    let mut x = random_vec(cols, &mut random);
    x[3] = 0.0;
    let mut gram = Gram::new(cols, cols);
    gram.add(&x, &x);
    let weights = random_vec(cols * 2, &mut random);
    let grid = Grid::per_row(cols, &[int4(0.1, 0), int4(0.1, 0)]);
    let done = gptq(&weights, &gram, &grid, &Options::default()).unwrap();
    assert_eq!(done[3], grid.cell(0, 3).nearest(weights[3]));
    assert!(error(&done, &weights, &gram) <= error(&grid.nearest(&weights), &weights, &gram));
    gram.sum[0] = f64::NAN;
    assert!(gptq(&weights, &gram, &grid, &Options::default()).is_err());
    assert!(
        gptq(
            &[],
            &Gram::new(0, 0),
            &Grid::per_row(0, &[]),
            &Options::default()
        )
        .unwrap()
        .is_empty()
    );
}

#[test]
fn descent_goes_on_from_gptq_and_stays_on_the_grid() {
    let mut random = Random::new(12);
    let (rows, cols) = (16, 48);
    let gram = gram_of(300, cols, &mut random);
    let weights = random_vec(rows * cols, &mut random);
    let grid = Grid::per_row(cols, &vec![int4(0.15, 0); rows]);
    let mut done = gptq(&weights, &gram, &grid, &Options::default()).unwrap();
    let before = error(&done, &weights, &gram);
    descend(&mut done, &weights, &gram, &grid, 20);
    let after = error(&done, &weights, &gram);
    assert!(after < before, "{before} → {after}");
    assert_eq!(done, grid.nearest(&done));
}

#[test]
fn new_targets_make_up_for_disturbed_inputs() {
    let mut random = Random::new(3);
    let (rows, cols, n) = (6, 10, 400);
    let x = random_vec(n * cols, &mut random);
    // The disturbed input is a fixed linear map of the true one: it can be undone wholly.
    let mut map = random_vec(cols * cols, &mut random);
    (0..cols).for_each(|i| map[i * cols + i] += 3.0);
    let seen = crate::optimize::matrix::abt(&x, &map, cols);
    let (mut gram, mut cross) = (Gram::new(cols, cols), Gram::new(cols, cols));
    gram.add(&seen, &seen);
    cross.add(&x, &seen);
    let weights = random_vec(rows * cols, &mut random);
    let moved = retarget(&weights, &gram, &cross, 1e-9).unwrap();
    let wanted = crate::optimize::matrix::abt(&x, &weights, cols);
    let got = crate::optimize::matrix::abt(&seen, &moved, cols);
    let worst = wanted
        .iter()
        .zip(&got)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-3, "{worst}");
    // Undisturbed inputs leave the weights as they are, with any damping.
    let mut gram = Gram::new(cols, cols);
    gram.add(&x, &x);
    let same = retarget(&weights, &gram, &gram, 0.1).unwrap();
    assert!(same.iter().zip(&weights).all(|(a, b)| (a - b).abs() < 1e-5));
}
