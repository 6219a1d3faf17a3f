//! Two-dimensional convolution, grouped or not, as matrix products over unfolded patches.

use crate::rng::Rng;
use crate::tensor::{Param, Tensor, accumulate, dot};
use rayon::prelude::*;

/// Samples whose weight gradients are summed before the sums of the chunks are: fixes the order of summation.
const CHUNK: usize = 8;

/// A convolution without bias, with a square kernel of odd size and padding that keeps the size at stride 1.
#[derive(Clone, Debug)]
pub struct Conv {
    /// `[outputs, inputs / groups, kernel, kernel]`.
    pub weight: Param,
    /// Distance between the windows, in both directions.
    pub stride: usize,
    /// Into how many groups the channels fall that do not see each other.
    pub groups: usize,
    input: Tensor,
}

/// The sizes of one group of one sample.
#[derive(Clone, Copy)]
struct Geometry {
    channels: usize,
    size: [usize; 2],
    out_size: [usize; 2],
    kernel: usize,
    stride: usize,
}

impl Geometry {
    /// Values of a patch.
    fn patch(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Pixels of an output plane.
    fn plane(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// Calls `visit(column, pixel)` with the index into the unfolded patches, `[patch, plane]`, and the index into the
    /// group's input, for each pair that lies inside the image.
    #[inline]
    fn each_pair(&self, mut visit: impl FnMut(usize, usize)) {
        let [h, w] = self.size;
        let [out_h, out_w] = self.out_size;
        let pad = self.kernel / 2;
        let mut row = 0;
        for channel in 0..self.channels {
            for dy in 0..self.kernel {
                for dx in 0..self.kernel {
                    let first = pad.saturating_sub(dx).div_ceil(self.stride);
                    let last = ((w + pad - dx).div_ceil(self.stride)).min(out_w);
                    for oy in 0..out_h {
                        let y = oy * self.stride + dy;
                        if y < pad || y - pad >= h {
                            continue;
                        }
                        let line = (channel * h + y - pad) * w;
                        let column = row * out_h * out_w + oy * out_w;
                        for ox in first..last {
                            visit(column + ox, line + ox * self.stride + dx - pad);
                        }
                    }
                    row += 1;
                }
            }
        }
    }

    /// The patches under each output pixel, `[patch, plane]`, zero where they leave the image.
    fn unfold(&self, input: &[f32], columns: &mut [f32]) {
        if self.kernel == 1 && self.stride == 1 {
            columns.copy_from_slice(input);
            return;
        }
        columns.fill(0.0);
        self.each_pair(|column, pixel| columns[column] = input[pixel]);
    }

    /// The transpose of `unfold`, added to `input`.
    fn refold(&self, columns: &[f32], input: &mut [f32]) {
        self.each_pair(|column, pixel| input[pixel] += columns[column]);
    }
}

impl Conv {
    /// A convolution with random weights.
    pub fn new(
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        groups: usize,
        rng: &mut Rng,
    ) -> Self {
        let [inputs, outputs] = channels;
        let dims = [outputs, inputs / groups, kernel, kernel];
        Self {
            weight: Param::random("weight", &dims, rng),
            stride,
            groups,
            input: Tensor::default(),
        }
    }

    /// Width and height of the kernel.
    pub fn kernel(&self) -> usize {
        self.weight.dims[2]
    }

    fn geometry(&self, shape: [usize; 4]) -> Geometry {
        let size = [shape[2], shape[3]];
        Geometry {
            channels: self.weight.dims[1],
            size,
            out_size: size.map(|side| side.div_ceil(self.stride)),
            kernel: self.kernel(),
            stride: self.stride,
        }
    }

    /// The convolution of each sample.
    pub fn forward(&mut self, x: Tensor) -> Tensor {
        let g = self.geometry(x.shape);
        let outputs = self.weight.dims[0];
        let mut y = Tensor::zeros([x.shape[0], outputs, g.out_size[0], g.out_size[1]]);
        let (in_sample, out_sample) = (x.sample(), y.sample());
        let (in_group, out_group) = (in_sample / self.groups, out_sample / self.groups);
        let weights = self.weight.value.chunks(outputs / self.groups * g.patch());
        y.data
            .par_chunks_mut(out_sample)
            .zip(x.data.par_chunks(in_sample))
            .for_each_init(
                || vec![0.0; g.patch() * g.plane()],
                |columns, (y, x)| {
                    let groups = x.chunks(in_group).zip(y.chunks_mut(out_group));
                    for ((x, y), weights) in groups.zip(weights.clone()) {
                        g.unfold(x, columns);
                        for (out, w) in y.chunks_mut(g.plane()).zip(weights.chunks(g.patch())) {
                            accumulate(out, w, columns);
                        }
                    }
                },
            );
        self.input = x;
        y
    }

    /// The gradient of the input, from that of the output; keeps the gradient of the weight.
    pub fn backward(&mut self, dy: &Tensor) -> Tensor {
        let g = self.geometry(self.input.shape);
        let mut dx = Tensor::zeros(self.input.shape);
        let (in_sample, out_sample) = (dx.sample(), dy.sample());
        let this = &*self;
        let partial: Vec<Vec<f32>> = dx
            .data
            .par_chunks_mut(CHUNK * in_sample)
            .zip(this.input.data.par_chunks(CHUNK * in_sample))
            .zip(dy.data.par_chunks(CHUNK * out_sample))
            .map(|((dx, x), dy)| {
                let mut dw = vec![0.0; this.weight.value.len()];
                let mut columns = vec![0.0; g.patch() * g.plane()];
                let samples = dx.chunks_mut(in_sample).zip(x.chunks(in_sample));
                for ((dx, x), dy) in samples.zip(dy.chunks(out_sample)) {
                    this.backward_sample(g, dy, x, dx, &mut dw, &mut columns);
                }
                dw
            })
            .collect();
        self.weight.grad.fill(0.0);
        for dw in partial {
            for (sum, d) in self.weight.grad.iter_mut().zip(dw) {
                *sum += d;
            }
        }
        dx
    }

    fn backward_sample(
        &self,
        g: Geometry,
        dy: &[f32],
        x: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        columns: &mut [f32],
    ) {
        let outputs = self.weight.dims[0] / self.groups;
        let weight_group = outputs * g.patch();
        let mut taps = vec![0.0; outputs];
        for group in 0..self.groups {
            let inside = group * x.len() / self.groups..(group + 1) * x.len() / self.groups;
            let dy = &dy[group * outputs * g.plane()..][..outputs * g.plane()];
            let weights = &self.weight.value[group * weight_group..][..weight_group];
            let dw = &mut dw[group * weight_group..][..weight_group];
            g.unfold(&x[inside.clone()], columns);
            for (dy, dw) in dy.chunks(g.plane()).zip(dw.chunks_mut(g.patch())) {
                for (d, column) in dw.iter_mut().zip(columns.chunks(g.plane())) {
                    *d += dot(dy, column);
                }
            }
            columns.fill(0.0);
            for (k, column) in columns.chunks_mut(g.plane()).enumerate() {
                for (tap, row) in taps.iter_mut().zip(weights.chunks(g.patch())) {
                    *tap = row[k];
                }
                accumulate(column, &taps, dy);
            }
            g.refold(columns, &mut dx[inside]);
        }
    }
}
