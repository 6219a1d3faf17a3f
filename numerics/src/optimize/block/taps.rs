//! Where a convolution of a block reads.

use super::Geometry;

/// Padding.
const OUTSIDE: u32 = u32::MAX;

/// Where each tap of a convolution reads: `[taps, positions]`, [`OUTSIDE`] for padding.
pub(super) struct Taps {
    places: Vec<u32>,
    pub(super) positions: usize,
    plane: usize,
    /// One tap that reads every position in order.
    pub(super) plain: bool,
}

impl Taps {
    pub(super) fn of(g: &Geometry) -> Self {
        let positions = g.positions();
        let taps = g.kernel.iter().product::<usize>();
        let mut places = vec![OUTSIDE; taps * positions];
        let mut row = Vec::new();
        for p in 0..positions {
            g.places(p, &mut row);
            for (t, place) in row.iter().enumerate() {
                if let Some(i) = place {
                    places[t * positions + p] = *i as u32;
                }
            }
        }
        let plane = g.input.iter().product();
        let plain = taps == 1
            && positions == plane
            && places.iter().enumerate().all(|(i, &p)| p == i as u32);
        Self {
            places,
            positions,
            plane,
            plain,
        }
    }

    /// `[channels · taps, positions]` of some channels.
    pub(super) fn columns(&self, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(x.len() / self.plane * self.places.len());
        for channel in x.chunks_exact(self.plane) {
            let read = |&p: &u32| {
                if p == OUTSIDE {
                    0.0
                } else {
                    channel[p as usize]
                }
            };
            out.extend(self.places.iter().map(read));
        }
        out
    }

    /// Adds the gradient of the columns to that of the input.
    pub(super) fn scatter(&self, columns: &[f32], x: &mut [f32]) {
        let rows = columns.chunks_exact(self.places.len());
        for (channel, columns) in x.chunks_exact_mut(self.plane).zip(rows) {
            for (&p, &g) in self.places.iter().zip(columns) {
                if p != OUTSIDE {
                    channel[p as usize] += g;
                }
            }
        }
    }
}
