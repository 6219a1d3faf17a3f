//! Bias correction: what quantization adds to the mean of each output channel is taken from the bias.
//!
//! Source: Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019, section 4.2,
//! equation 17; Finkelstein et al., *Fighting Quantization Bias With Bias*, 2019, for the empirical form.

/// `E[W x] − E[Ŵ x̂]` for each row, from the means of the inputs: what is to be added to the bias. Matrices `[rows,
/// cols]`.
pub fn correction(
    weights: &[f32],
    quantized: &[f32],
    mean_input: &[f64],
    mean_quantized_input: &[f64],
) -> Vec<f64> {
    let cols = mean_input.len().max(1);
    let product =
        |row: &[f32], x: &[f64]| -> f64 { row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum() };
    weights
        .chunks_exact(cols)
        .zip(quantized.chunks_exact(cols))
        .map(|(w, q)| product(w, mean_input) - product(q, mean_quantized_input))
        .collect()
}

/// The mean of each column of `[count, cols]`.
pub fn column_means(x: &[f32], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0f64; cols];
    if cols == 0 {
        return sums;
    }
    for row in x.chunks_exact(cols) {
        sums.iter_mut()
            .zip(row)
            .for_each(|(s, &x)| *s += f64::from(x));
    }
    let count = (x.len() / cols).max(1) as f64;
    sums.iter_mut().for_each(|s| *s /= count);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrects_the_mean() {
        let (w, q) = ([1.0f32, 2.0, 3.0, 4.0], [1.5f32, 2.0, 2.0, 4.0]);
        let x = column_means(&[1.0, 2.0, 3.0, 4.0], 2);
        assert_eq!(x, [2.0, 3.0]);
        assert_eq!(correction(&w, &q, &x, &x), [-1.0, 2.0]);
        assert_eq!(correction(&w, &w, &x, &[2.5, 3.0]), [-0.5, -1.5]);
        assert!(column_means(&[], 0).is_empty());
    }
}
