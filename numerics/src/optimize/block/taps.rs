//! Where a convolution of a block reads.

use super::Geometry;
use crate::simd::vectorized;

/// Neighbouring positions of the result for which a tap reads places of the input at a constant distance.
#[derive(Debug, Clone, Copy)]
struct Run {
    tap: usize,
    /// The first position.
    to: usize,
    /// What is read there.
    from: usize,
    /// Positions.
    len: usize,
    /// Between two places.
    step: usize,
}

/// Where each tap of a convolution reads. What no run holds reads the padding.
pub(super) struct Taps {
    runs: Vec<Run>,
    /// Taps.
    pub(super) count: usize,
    pub(super) positions: usize,
    plane: usize,
    /// One tap that reads every position in order.
    pub(super) plain: bool,
}

impl Taps {
    pub(super) fn of(g: &Geometry) -> Self {
        let positions = g.positions();
        let count = g.kernel.iter().product::<usize>();
        let mut places = vec![None; count * positions];
        let mut row = Vec::new();
        for p in 0..positions {
            g.places(p, &mut row);
            for (tap, place) in row.iter().enumerate() {
                places[tap * positions + p] = *place;
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        for (at, place) in places.into_iter().enumerate() {
            let Some(from) = place else { continue };
            let (tap, to) = (at / positions, at % positions);
            match runs.last_mut() {
                Some(run) if run.tap == tap && run.to + run.len == to && run.takes(from) => {
                    run.step = from - (run.from + (run.len - 1) * run.step);
                    run.len += 1;
                }
                _ => runs.push(Run {
                    tap,
                    to,
                    from,
                    len: 1,
                    step: 1,
                }),
            }
        }
        let plane = g.input.iter().product();
        let whole = |r: &Run| (r.from, r.len, r.step) == (0, plane, 1);
        let plain = count == 1 && positions == plane && runs.len() == 1 && runs.iter().all(whole);
        Self {
            runs,
            count,
            positions,
            plane,
            plain,
        }
    }

    /// `[channels · taps, positions]` of some channels.
    pub(super) fn columns(&self, x: &[f32]) -> Vec<f32> {
        let size = self.count * self.positions;
        let mut out = vec![0.0; x.len() / self.plane * size];
        vectorized(
            #[inline(always)]
            || {
                let channels = x.chunks_exact(self.plane);
                for (channel, out) in channels.zip(out.chunks_exact_mut(size)) {
                    for run in &self.runs {
                        let out = &mut out[run.tap * self.positions..];
                        run.each(
                            channel,
                            &mut out[run.to..run.to + run.len],
                            #[inline(always)]
                            |y, x| *y = x,
                        );
                    }
                }
            },
        );
        out
    }

    /// Adds the gradient of the columns to that of the input.
    pub(super) fn scatter(&self, columns: &[f32], x: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                let rows = columns.chunks_exact(self.count * self.positions);
                for (channel, columns) in x.chunks_exact_mut(self.plane).zip(rows) {
                    for run in &self.runs {
                        let own = &columns[run.tap * self.positions..];
                        run.back(channel, &own[run.to..run.to + run.len], 1.0);
                    }
                }
            },
        );
    }

    /// Adds what one row with a weight for each tap computes from one channel.
    pub(super) fn add_row(&self, y: &mut [f32], weights: &[f32], x: &[f32]) {
        vectorized(
            #[inline(always)]
            || {
                for run in &self.runs {
                    let w = weights[run.tap];
                    run.each(
                        x,
                        &mut y[run.to..run.to + run.len],
                        #[inline(always)]
                        |y, x| *y += w * x,
                    );
                }
            },
        );
    }

    /// Adds the gradients of the weights of such a row and, where it is wanted, of the channel.
    pub(super) fn row_back(
        &self,
        dy: &[f32],
        (weights, x): (&[f32], &[f32]),
        dw: &mut [f32],
        mut dx: Option<&mut [f32]>,
    ) {
        vectorized(
            #[inline(always)]
            || {
                for run in &self.runs {
                    let dy = &dy[run.to..run.to + run.len];
                    dw[run.tap] += run.product(x, dy);
                    if let Some(dx) = dx.as_deref_mut() {
                        run.back(dx, dy, weights[run.tap]);
                    }
                }
            },
        );
    }
}

impl Run {
    /// Whether a place goes on with it.
    fn takes(&self, from: usize) -> bool {
        let last = self.from + (self.len - 1) * self.step;
        from > last && (self.len == 1 || from - last == self.step)
    }

    #[inline(always)]
    fn each(&self, x: &[f32], y: &mut [f32], f: impl Fn(&mut f32, f32)) {
        let x = &x[self.from..];
        match self.step {
            1 => {
                for (y, &x) in y.iter_mut().zip(x) {
                    f(y, x);
                }
            }
            step => {
                for (y, &x) in y.iter_mut().zip(x.iter().step_by(step)) {
                    f(y, x);
                }
            }
        }
    }

    #[inline(always)]
    fn back(&self, x: &mut [f32], y: &[f32], w: f32) {
        let x = &mut x[self.from..];
        match self.step {
            1 => {
                for (x, y) in x.iter_mut().zip(y) {
                    *x += w * y;
                }
            }
            step => {
                for (x, y) in x.iter_mut().step_by(step).zip(y) {
                    *x += w * y;
                }
            }
        }
    }

    #[inline(always)]
    fn product(&self, x: &[f32], y: &[f32]) -> f32 {
        let x = &x[self.from..];
        match self.step {
            1 => dot(&x[..y.len()], y),
            step => x.iter().step_by(step).zip(y).map(|(x, y)| x * y).sum(),
        }
    }
}

/// A product in eight sums, which vector instructions take at once.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest: f32 = rest.map(|(x, y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_read_what_the_geometry_says() {
        let plain = Geometry {
            channels: 1,
            groups: 1,
            input: vec![5, 6],
            output: vec![5, 6],
            kernel: vec![3, 3],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads: vec![1, 1],
            transposed: false,
        };
        let strided = Geometry {
            output: vec![3, 3],
            strides: vec![2, 2],
            ..plain.clone()
        };
        let dilated = Geometry {
            dilations: vec![2, 1],
            pads: vec![2, 1],
            ..plain.clone()
        };
        let transposed = Geometry {
            output: vec![9, 11],
            strides: vec![2, 2],
            transposed: true,
            ..plain.clone()
        };
        for g in [plain, strided, dilated, transposed] {
            let taps = Taps::of(&g);
            let x: Vec<f32> = (1..=30).map(|i| i as f32).collect();
            let columns = taps.columns(&x);
            let mut row = Vec::new();
            for p in 0..g.positions() {
                g.places(p, &mut row);
                for (t, place) in row.iter().enumerate() {
                    let expected = place.map_or(0.0, |i| x[i]);
                    assert_eq!(columns[t * g.positions() + p], expected, "{g:?}");
                }
            }
            // One row of a depthwise convolution is the product with these columns, and so are its gradients.
            let w: Vec<f32> = (0..9).map(|t| t as f32 - 3.5).collect();
            let mut y = vec![0.0; g.positions()];
            taps.add_row(&mut y, &w, &x);
            let mut expected = vec![0.0; y.len()];
            for (w, column) in w.iter().zip(columns.chunks_exact(y.len())) {
                expected
                    .iter_mut()
                    .zip(column)
                    .for_each(|(y, x)| *y += w * x);
            }
            assert_eq!(y, expected);
            let dy: Vec<f32> = (0..y.len()).map(|i| (i % 7) as f32 - 3.0).collect();
            let (mut dw, mut dx) = (vec![0.0; 9], vec![0.0; 30]);
            taps.row_back(&dy, (&w, &x), &mut dw, Some(&mut dx));
            for (t, column) in columns.chunks_exact(y.len()).enumerate() {
                let exact: f32 = column.iter().zip(&dy).map(|(x, d)| x * d).sum();
                assert_eq!(dw[t], exact);
            }
            let back: Vec<f32> = w
                .iter()
                .flat_map(|w| dy.iter().map(move |d| w * d))
                .collect();
            let mut expected = vec![0.0; 30];
            taps.scatter(&back, &mut expected);
            assert_eq!(dx, expected);
        }
    }
}
