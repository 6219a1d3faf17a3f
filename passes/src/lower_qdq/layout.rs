//! Which scale belongs to which element of a tensor: one for all, one along an axis, one for a block along an axis.

use std::ops::Range;

/// The places of scales and zero points over a tensor in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamLayout {
    /// Product of the axes before the quantization axis.
    outer: usize,
    /// Length of the quantization axis.
    axis: usize,
    /// Product of the axes behind it.
    inner: usize,
    /// Elements along the axis that share parameters; 0 where one parameter serves the whole tensor.
    block: usize,
    /// Parameters differ along the inner axes too (blocked quantization).
    blocked: bool,
}

impl ParamLayout {
    /// The layout of a QuantizeLinear or DequantizeLinear (ONNX standard, both operators from version 21): `dims` is
    /// the shape of the tensor, `scale_dims` that of the scale, `axis` may be negative, `block_size` 0 means none.
    ///
    /// # Errors
    /// In words, why these do not fit each other.
    pub fn of(
        dims: &[usize],
        scale_dims: &[usize],
        axis: i64,
        block_size: i64,
    ) -> Result<Self, String> {
        let total: usize = dims.iter().product();
        let scales: usize = scale_dims.iter().product();
        if block_size == 0 && scales == 1 && scale_dims.len() <= 1 {
            return Ok(Self {
                outer: 1,
                axis: 1,
                inner: total,
                block: 0,
                blocked: false,
            });
        }
        let rank = dims.len() as i64;
        let at = if axis < 0 { axis + rank } else { axis };
        let at = usize::try_from(at)
            .ok()
            .filter(|&a| a < dims.len())
            .ok_or_else(|| format!("axis {axis} does not exist in shape {dims:?}"))?;
        let layout = |block, blocked| Self {
            outer: dims[..at].iter().product(),
            axis: dims[at],
            inner: dims[at + 1..].iter().product(),
            block,
            blocked,
        };
        if block_size == 0 {
            if scale_dims != [dims[at]] {
                return Err(format!(
                    "a scale of shape {scale_dims:?} does not fit axis {axis} of shape {dims:?}"
                ));
            }
            return Ok(layout(1, false));
        }
        let block = usize::try_from(block_size)
            .map_err(|_| format!("block size {block_size} is not positive"))?;
        let mut wanted = dims.to_vec();
        wanted[at] = dims[at].div_ceil(block);
        if scale_dims != wanted {
            return Err(format!(
                "a scale of shape {scale_dims:?} does not fit shape {dims:?} in blocks of {block} along axis {axis}"
            ));
        }
        Ok(layout(block, true))
    }

    /// Whether one scale serves the whole tensor.
    pub fn is_per_tensor(&self) -> bool {
        self.block == 0
    }

    /// Calls `f` for each run of neighbouring elements that share parameters, in order: the run and the index of its
    /// parameters.
    #[inline(always)]
    pub fn for_each_run(&self, mut f: impl FnMut(Range<usize>, usize)) {
        if self.block == 0 {
            f(0..self.inner, 0);
            return;
        }
        let mut at = 0;
        let blocks = self.axis.div_ceil(self.block);
        for outer in 0..self.outer {
            if !self.blocked {
                for a in 0..self.axis {
                    f(at..at + self.inner, a);
                    at += self.inner;
                }
            } else if self.inner == 1 {
                for b in 0..blocks {
                    let run = self.block.min(self.axis - b * self.block);
                    f(at..at + run, outer * blocks + b);
                    at += run;
                }
            } else {
                for a in 0..self.axis {
                    let first = (outer * blocks + a / self.block) * self.inner;
                    for i in 0..self.inner {
                        f(at..at + 1, first + i);
                        at += 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn indices(dims: &[usize], scale: &[usize], axis: i64, block: i64) -> Vec<usize> {
        let mut all = vec![usize::MAX; dims.iter().product()];
        ParamLayout::of(dims, scale, axis, block)
            .unwrap()
            .for_each_run(|run, p| all[run].fill(p));
        all
    }

    #[test]
    fn places() {
        assert_eq!(indices(&[2, 2], &[], 1, 0), [0, 0, 0, 0]);
        assert_eq!(indices(&[2, 2], &[1], 7, 0), [0, 0, 0, 0]);
        assert_eq!(indices(&[2, 3], &[3], 1, 0), [0, 1, 2, 0, 1, 2]);
        assert_eq!(indices(&[2, 3], &[2], -2, 0), [0, 0, 0, 1, 1, 1]);
        assert_eq!(
            indices(&[2, 5], &[2, 3], 1, 2),
            [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
        );
        assert_eq!(indices(&[3, 2], &[2, 2], 0, 2), [0, 1, 0, 1, 2, 3]);
        assert_eq!(indices(&[0, 3], &[3], 1, 0), [0usize; 0]);
        assert_eq!(indices(&[], &[], 1, 0), [0]);
    }

    #[test]
    fn contradictions() {
        let refuse = |dims: &[usize], scale: &[usize], axis, block| {
            ParamLayout::of(dims, scale, axis, block).unwrap_err()
        };
        assert!(refuse(&[2, 3], &[2], 1, 0).contains("does not fit axis 1"));
        assert!(refuse(&[2, 3], &[3], 2, 0).contains("axis 2 does not exist"));
        assert!(refuse(&[2, 3], &[3], -3, 0).contains("axis -3 does not exist"));
        assert!(refuse(&[2, 3], &[2, 1], 1, 2).contains("blocks of 2"));
        assert!(refuse(&[2, 3], &[2, 1], 1, -1).contains("not positive"));
    }
}
