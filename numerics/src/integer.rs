//! The reference of the integer operators: what QLinearMatMul, QLinearConv, MatMulInteger and ConvInteger give.
//!
//! ```text
//! MatMul  q_Y = S_W S_X / S_Y · (q_W q_X − Z_W q_X − Z_X q_W + Z_W Z_X + q_b) + Z_Y
//! Conv    the same with Conv(·, ·) for the product
//! ```
//! Sums are INT32; padding holds the code of zero, so that it adds nothing. Slow, and meant to be compared with.
//!
//! Source: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
//! Inference*, 2018, section 2.2; ONNX, QLinearConv and QLinearMatMul.

use thiserror::Error;

use crate::affine::QParams;

/// Operands that do not belong together, or a sum that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IntegerError {
    /// A list has another length than its shape says.
    #[error("{what} holds {found} values where {needed} are needed")]
    Length {
        /// Which list.
        what: &'static str,
        /// Values that it holds.
        found: usize,
        /// Values that it needs.
        needed: usize,
    },
    /// A sum of products is not an INT32.
    #[error("the sum of output {index} does not fit INT32")]
    Overflow {
        /// Index of the output value.
        index: usize,
    },
}

/// Codes of an activation with one scale and zero point.
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    /// The codes.
    pub codes: &'a [i32],
    /// Scale.
    pub scale: f32,
    /// Zero point.
    pub zero_point: i32,
}

/// Codes of a weight with parameters for the tensor or for each output channel.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// The codes.
    pub codes: &'a [i32],
    /// One scale, or one for each output channel.
    pub scales: &'a [f32],
    /// One zero point, or one for each output channel.
    pub zero_points: &'a [i32],
}

impl Weight<'_> {
    fn scale(&self, channel: usize) -> f32 {
        self.scales[channel % self.scales.len()]
    }

    fn zero_point(&self, channel: usize) -> i32 {
        self.zero_points[channel % self.zero_points.len()]
    }
}

fn length(what: &'static str, found: usize, needed: usize) -> Result<(), IntegerError> {
    if found == needed {
        return Ok(());
    }
    Err(IntegerError::Length {
        what,
        found,
        needed,
    })
}

fn channels(w: &Weight<'_>, n: usize) -> Result<(), IntegerError> {
    for (what, found) in [
        ("the list of scales", w.scales.len()),
        ("the list of zero points", w.zero_points.len()),
    ] {
        if found != 1 {
            length(what, found, n)?;
        }
    }
    Ok(())
}

/// `MatMulInteger`: the sums `[m, n]` of `x: [m, k]` and `w: [k, n]`, without the scales.
///
/// # Errors
/// Lists of other lengths than the shape says, a sum that does not fit INT32.
pub fn matmul_integer(
    x: Activation<'_>,
    w: Weight<'_>,
    (m, k, n): (usize, usize, usize),
) -> Result<Vec<i32>, IntegerError> {
    length("the left side", x.codes.len(), m * k)?;
    length("the right side", w.codes.len(), k * n)?;
    channels(&w, n)?;
    let mut sums = Vec::with_capacity(m * n);
    for i in 0..m * n {
        let (row, column) = (i / n, i % n);
        let pairs = (0..k).map(|j| (x.codes[row * k + j], w.codes[j * n + column]));
        sums.push(sum(pairs, x.zero_point, w.zero_point(column), i)?);
    }
    Ok(sums)
}

/// `Σ q_W q_X − Z_W q_X − Z_X q_W + Z_W Z_X`, term by term as the formula has it.
fn sum(
    pairs: impl Iterator<Item = (i32, i32)>,
    zx: i32,
    zw: i32,
    index: usize,
) -> Result<i32, IntegerError> {
    let total: i64 = pairs
        .map(|(x, w)| {
            let (x, w, zx, zw) = (i64::from(x), i64::from(w), i64::from(zx), i64::from(zw));
            w * x - zw * x - zx * w + zw * zx
        })
        .sum();
    i32::try_from(total).map_err(|_| IntegerError::Overflow { index })
}

/// The code of a sum: `⌊S_X S_W / S_Y · sum⌉ + Z_Y`, half to even, clamped. The factor is rounded to FP32 once.
pub fn requantize(sum: i32, x_scale: f32, w_scale: f32, y: &QParams) -> i32 {
    let factor = (f64::from(x_scale) * f64::from(w_scale) / f64::from(y.scale)) as f32;
    let real = f64::from(sum) * f64::from(factor);
    let code = real.round_ties_even() + f64::from(y.zero_point);
    code.clamp(f64::from(y.qmin), f64::from(y.qmax)) as i32
}

/// Adds the INT32 bias, one code for each channel; the channel of an output is given.
fn biased(
    sums: Vec<i32>,
    bias: Option<&[i32]>,
    count: usize,
    channel: impl Fn(usize) -> usize,
) -> Result<Vec<i32>, IntegerError> {
    let Some(bias) = bias else { return Ok(sums) };
    length("the bias", bias.len(), count)?;
    let add = |(index, s): (usize, i32)| {
        let total = s.checked_add(bias[channel(index)]);
        total.ok_or(IntegerError::Overflow { index })
    };
    sums.into_iter().enumerate().map(add).collect()
}

/// `QLinearMatMul` (and QGemm, with a bias): codes `[m, n]`.
///
/// # Errors
/// As [`matmul_integer`].
pub fn qlinear_matmul(
    x: Activation<'_>,
    w: Weight<'_>,
    bias: Option<&[i32]>,
    (m, k, n): (usize, usize, usize),
    y: &QParams,
) -> Result<Vec<i32>, IntegerError> {
    let sums = biased(matmul_integer(x, w, (m, k, n))?, bias, n, |i| i % n)?;
    let code = |(i, s): (usize, i32)| requantize(s, x.scale, w.scale(i % n), y);
    Ok(sums.into_iter().enumerate().map(code).collect())
}

/// The geometry of a convolution over images: `x: [batch, inputs, rows, columns]`,
/// `w: [outputs, inputs / groups, kernel[0], kernel[1]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Rows and columns of the input.
    pub size: [usize; 2],
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Steps.
    pub strides: [usize; 2],
    /// Distances of the kernel's elements.
    pub dilations: [usize; 2],
    /// Padding before and behind rows, before and behind columns.
    pub pads: [[usize; 2]; 2],
    /// Groups.
    pub groups: usize,
}

impl ConvShape {
    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|a| {
            let reach = self.dilations[a] * (self.kernel[a] - 1) + 1;
            (self.size[a] + self.pads[a][0] + self.pads[a][1] - reach) / self.strides[a] + 1
        })
    }

    /// The pairs of indices into input and weight that make one output value.
    fn pairs(&self, index: usize) -> Vec<(usize, usize)> {
        let [rows, columns] = self.output();
        let (at, rest) = (index / (rows * columns), index % (rows * columns));
        let (image, channel) = (at / self.outputs, at % self.outputs);
        let place = [rest / columns, rest % columns];
        let (ins, outs) = (self.inputs / self.groups, self.outputs / self.groups);
        let first = channel / outs * ins;
        let mut pairs = Vec::new();
        for i in 0..ins * self.kernel[0] * self.kernel[1] {
            let (input, k) = (
                i / (self.kernel[0] * self.kernel[1]),
                i % (self.kernel[0] * self.kernel[1]),
            );
            let step = [k / self.kernel[1], k % self.kernel[1]];
            let source = [0, 1].map(|a| {
                let p = place[a] * self.strides[a] + step[a] * self.dilations[a];
                p.checked_sub(self.pads[a][0]).filter(|&p| p < self.size[a])
            });
            // Padding is the code of zero, whose difference to the zero point is 0.
            if let [Some(r), Some(c)] = source {
                let x =
                    ((image * self.inputs + first + input) * self.size[0] + r) * self.size[1] + c;
                pairs.push((x, channel * ins * self.kernel[0] * self.kernel[1] + i));
            }
        }
        pairs
    }
}

/// `ConvInteger`: the sums `[batch, outputs, rows, columns]`, without the scales.
///
/// # Errors
/// As [`matmul_integer`].
pub fn conv_integer(
    x: Activation<'_>,
    w: Weight<'_>,
    shape: &ConvShape,
) -> Result<Vec<i32>, IntegerError> {
    length(
        "the input",
        x.codes.len(),
        shape.batch * shape.inputs * shape.size[0] * shape.size[1],
    )?;
    let per_output = shape.inputs / shape.groups * shape.kernel[0] * shape.kernel[1];
    length("the weight", w.codes.len(), shape.outputs * per_output)?;
    channels(&w, shape.outputs)?;
    let [rows, columns] = shape.output();
    let count = shape.batch * shape.outputs * rows * columns;
    (0..count)
        .map(|i| {
            let channel = i / (rows * columns) % shape.outputs;
            let pairs = shape.pairs(i).into_iter();
            let codes = pairs.map(|(a, b)| (x.codes[a], w.codes[b]));
            sum(codes, x.zero_point, w.zero_point(channel), i)
        })
        .collect()
}

/// `QLinearConv`: codes `[batch, outputs, rows, columns]`.
///
/// # Errors
/// As [`matmul_integer`].
pub fn qlinear_conv(
    x: Activation<'_>,
    w: Weight<'_>,
    bias: Option<&[i32]>,
    shape: &ConvShape,
    y: &QParams,
) -> Result<Vec<i32>, IntegerError> {
    let [rows, columns] = shape.output();
    let channel = |i: usize| i / (rows * columns) % shape.outputs;
    let sums = biased(conv_integer(x, w, shape)?, bias, shape.outputs, channel)?;
    let code = |(i, s): (usize, i32)| requantize(s, x.scale, w.scale(channel(i)), y);
    Ok(sums.into_iter().enumerate().map(code).collect())
}

/// `DynamicQuantizeLinear`: uint8 codes with the range of the values themselves, which always holds 0.
///
/// `S = (max − min) / 255`, `Z = ⌊−min / S⌉`, in FP32 as the standard computes it. Values that are all zero give a
/// scale of 0 there; the codes are then the zero point 0, and the scale is given as it is.
pub fn dynamic_quantize(values: &[f32]) -> (Vec<i32>, f32, i32) {
    let low = values.iter().copied().fold(0.0f32, f32::min);
    let high = values.iter().copied().fold(0.0f32, f32::max);
    let scale = (high - low) / 255.0;
    if scale == 0.0 {
        return (vec![0; values.len()], scale, 0);
    }
    let zero = (0.0 - low / scale).round_ties_even().clamp(0.0, 255.0);
    let code = |x: &f32| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) as i32;
    (values.iter().map(code).collect(), scale, zero as i32)
}

#[cfg(test)]
mod tests;
