//! Convolutions as matrix products: for an output position, the inputs that its sum runs over.
//!
//! Grouped, depthwise and transposed convolutions of any number of spatial dimensions. The columns of a group are
//! `[channels of the group, kernel…]`, as in the weight `[outputs, channels / group, kernel…]`.

/// Where a convolution reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels.
    pub channels: usize,
    /// Groups.
    pub groups: usize,
    /// Spatial input dimensions.
    pub input: Vec<usize>,
    /// Spatial output dimensions.
    pub output: Vec<usize>,
    /// Kernel dimensions.
    pub kernel: Vec<usize>,
    /// Strides.
    pub strides: Vec<usize>,
    /// Dilations.
    pub dilations: Vec<usize>,
    /// Padding before each dimension.
    pub pads: Vec<usize>,
    /// The convolution is transposed: strides spread the input.
    pub transposed: bool,
}

impl Geometry {
    /// Output positions of one sample.
    pub fn positions(&self) -> usize {
        self.output.iter().product()
    }

    /// Columns of one group.
    pub fn cols(&self) -> usize {
        self.channels / self.groups.max(1) * self.taps()
    }

    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// The place in a channel of the input that each tap of the kernel reads for an output position; `None` for padding.
    pub(super) fn places(&self, position: usize, out: &mut Vec<Option<usize>>) {
        out.clear();
        let dims = self.output.len();
        let (mut at, mut rest) = (vec![0; dims], position);
        for d in (0..dims).rev() {
            at[d] = rest % self.output[d];
            rest /= self.output[d];
        }
        for tap in 0..self.taps() {
            let mut rest = tap;
            let (mut place, mut stride, mut inside) = (0, 1, true);
            for d in (0..dims).rev() {
                let k = rest % self.kernel[d];
                rest /= self.kernel[d];
                match self.read(d, at[d], k) {
                    Some(i) => place += i * stride,
                    None => inside = false,
                }
                stride *= self.input[d];
            }
            out.push(inside.then_some(place));
        }
    }

    fn read(&self, d: usize, o: usize, k: usize) -> Option<usize> {
        let (stride, reach) = (self.strides[d], k * self.dilations[d]);
        let i = if self.transposed {
            let spread = (o + self.pads[d]).checked_sub(reach)?;
            if spread % stride != 0 {
                return None;
            }
            spread / stride
        } else {
            (o * stride + reach).checked_sub(self.pads[d])?
        };
        (i < self.input[d]).then_some(i)
    }

    /// Appends, for each group, the columns of some output positions of one sample `[channels, input…]`: `out[g]` gets
    /// `[positions, cols]`.
    pub fn gather(&self, sample: &[f32], positions: &[usize], out: &mut [Vec<f32>]) {
        let plane: usize = self.input.iter().product();
        let per_group = self.channels / self.groups.max(1);
        let mut places = Vec::with_capacity(self.taps());
        for &position in positions {
            self.places(position, &mut places);
            for (g, out) in out.iter_mut().enumerate() {
                for c in g * per_group..(g + 1) * per_group {
                    let channel = &sample[c * plane..(c + 1) * plane];
                    out.extend(places.iter().map(|p| p.map_or(0.0, |p| channel[p])));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(input: usize, output: usize, kernel: usize) -> Geometry {
        Geometry {
            channels: 2,
            groups: 1,
            input: vec![input],
            output: vec![output],
            kernel: vec![kernel],
            strides: vec![1],
            dilations: vec![1],
            pads: vec![0],
            transposed: false,
        }
    }

    #[test]
    fn strides_dilations_and_padding() {
        let g = Geometry {
            strides: vec![2],
            dilations: vec![2],
            pads: vec![1],
            ..plain(5, 2, 3)
        };
        let mut out = vec![vec![]];
        g.gather(
            &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0],
            &[0, 1],
            &mut out,
        );
        assert_eq!(out[0][..6], [0.0, 2.0, 4.0, 0.0, 20.0, 40.0]);
        assert_eq!(out[0][6..], [2.0, 4.0, 0.0, 20.0, 40.0, 0.0]);
        assert_eq!((g.cols(), g.positions()), (6, 2));
    }

    #[test]
    fn groups_have_columns_of_their_own() {
        let g = Geometry {
            groups: 2,
            ..plain(3, 2, 2)
        };
        let mut out = vec![vec![], vec![]];
        g.gather(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], &[1], &mut out);
        assert_eq!(out, [[2.0, 3.0], [20.0, 30.0]]);
    }

    #[test]
    fn transposed_positions_read_what_reaches_them() {
        // Stride 2, kernel 3: output 2 is reached by input 1 through tap 0 and by input 0 through tap 2.
        let g = Geometry {
            channels: 1,
            strides: vec![2],
            transposed: true,
            ..plain(2, 5, 3)
        };
        let mut out = vec![vec![]];
        g.gather(&[7.0, 9.0], &[2, 1], &mut out);
        assert_eq!(out[0], [9.0, 0.0, 7.0, 0.0, 7.0, 0.0]);
    }

    #[test]
    fn two_dimensions() {
        let g = Geometry {
            channels: 1,
            groups: 1,
            input: vec![2, 3],
            output: vec![2, 3],
            kernel: vec![3, 3],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads: vec![1, 1],
            transposed: false,
        };
        let mut out = vec![vec![]];
        g.gather(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[4], &mut out);
        assert_eq!(out[0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
    }
}
