//! The values that the weights of a matrix may take: one scale and zero point for each block of a row.

use std::sync::Arc;

use crate::affine::QParams;

/// The codes of a grid, as multiples of the scale.
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// The integers `qmin − Z ..= qmax − Z`.
    Integer {
        /// Smallest code.
        qmin: i32,
        /// Largest code.
        qmax: i32,
    },
    /// These numbers, ascending and without repetition: floating-point formats, ternary.
    Table(Vec<f32>),
    /// Numbers like those, of several books: codebooks. [`Grid::zeros`] says which book an entry of the grid reads.
    Books(Arc<[Vec<f32>]>),
}

/// The values that a matrix `[rows, cols]` may take, with a scale for each block of `block` columns of each row.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Columns of the matrix.
    pub cols: usize,
    /// Columns that share a scale; the last block of a row may be shorter.
    pub block: usize,
    /// Scales `[rows, blocks]`, positive.
    pub scales: Vec<f32>,
    /// Zero points `[rows, blocks]`; 0 for [`Levels::Table`], the number of the book for [`Levels::Books`].
    pub zeros: Vec<i32>,
    /// The codes.
    pub levels: Levels,
}

/// The grid of one block.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    scale: f32,
    kind: CellKind<'a>,
}

#[derive(Debug, Clone, Copy)]
enum CellKind<'a> {
    Integer { low: f32, high: f32 },
    Table(&'a [f32]),
}

impl Cell<'_> {
    /// The scale.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The nearest value of the grid; of two, the one with the even code. NaN becomes the lowest.
    #[inline]
    pub fn nearest(&self, x: f32) -> f32 {
        match self.kind {
            CellKind::Integer { low, high } => {
                let q = (x / self.scale).round_ties_even();
                let q = if q > low { q } else { low };
                q.min(high) * self.scale
            }
            CellKind::Table(levels) => {
                let (low, high) = between(levels, x / self.scale);
                let q = x / self.scale;
                (if high - q < q - low { high } else { low }) * self.scale
            }
        }
    }

    /// The neighbours below and above; the same twice where the grid ends.
    #[inline]
    pub fn neighbours(&self, x: f32) -> (f32, f32) {
        match self.kind {
            CellKind::Integer { low, high } => {
                let q = (x / self.scale).floor();
                let q = if q > low { q } else { low };
                let q = q.min(high);
                // Below the grid's end both neighbours are the end itself.
                let up = if x < low * self.scale {
                    q
                } else {
                    (q + 1.0).min(high)
                };
                (q * self.scale, up * self.scale)
            }
            CellKind::Table(levels) => {
                let (low, high) = between(levels, x / self.scale);
                (low * self.scale, high * self.scale)
            }
        }
    }

    /// The grid values one step below and above a value of the grid.
    #[inline]
    pub fn steps(&self, value: f32) -> (f32, f32) {
        match self.kind {
            CellKind::Integer { low, high } => {
                let q = (value / self.scale).round_ties_even();
                (
                    (q - 1.0).max(low) * self.scale,
                    (q + 1.0).min(high) * self.scale,
                )
            }
            CellKind::Table(levels) => {
                let q = value / self.scale;
                let at = levels.partition_point(|&l| l < q - q.abs() * 1e-6);
                let at = at.min(levels.len() - 1);
                let below = levels[at.saturating_sub(1)];
                let above = levels[(at + 1).min(levels.len() - 1)];
                (below * self.scale, above * self.scale)
            }
        }
    }

    /// Lowest and highest value.
    pub fn ends(&self) -> (f32, f32) {
        match self.kind {
            CellKind::Integer { low, high } => (low * self.scale, high * self.scale),
            CellKind::Table(l) => (l[0] * self.scale, l[l.len() - 1] * self.scale),
        }
    }
}

fn between(levels: &[f32], q: f32) -> (f32, f32) {
    let at = levels.partition_point(|&l| l <= q);
    let last = levels.len() - 1;
    (levels[at.saturating_sub(1)], levels[at.min(last)])
}

impl Grid {
    /// One entry for each row.
    pub fn per_row(cols: usize, params: &[QParams]) -> Self {
        Self::blocked(cols, cols.max(1), params)
    }

    /// One entry for `rows` rows.
    pub fn per_tensor(rows: usize, cols: usize, params: &QParams) -> Self {
        Self::per_row(cols, &vec![*params; rows])
    }

    /// One entry for each block of each row, `[rows, blocks]`. The code range is that of the first entry.
    pub fn blocked(cols: usize, block: usize, params: &[QParams]) -> Self {
        let (qmin, qmax) = params.first().map_or((0, 0), |p| (p.qmin, p.qmax));
        Self {
            cols,
            block,
            scales: params.iter().map(|p| p.scale).collect(),
            zeros: params.iter().map(|p| p.zero_point).collect(),
            levels: Levels::Integer { qmin, qmax },
        }
    }

    /// Blocks in a row.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(self.block).max(1)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.scales.len() / self.blocks()
    }

    /// The grid of a block, by row and column.
    pub fn cell(&self, row: usize, col: usize) -> Cell<'_> {
        self.cell_of(row * self.blocks() + col / self.block)
    }

    /// The grid of a block, by its place in [`Grid::scales`].
    pub fn cell_of(&self, at: usize) -> Cell<'_> {
        let kind = match &self.levels {
            Levels::Integer { qmin, qmax } => CellKind::Integer {
                low: (qmin - self.zeros[at]) as f32,
                high: (qmax - self.zeros[at]) as f32,
            },
            Levels::Table(levels) => CellKind::Table(levels),
            Levels::Books(books) => CellKind::Table(&books[self.zeros[at] as usize]),
        };
        Cell {
            scale: self.scales[at],
            kind,
        }
    }

    /// The columns of block `b`.
    pub fn span(&self, b: usize) -> std::ops::Range<usize> {
        b * self.block..((b + 1) * self.block).min(self.cols)
    }

    /// Rounds one row to the nearest values.
    pub fn round_row(&self, row: usize, weights: &[f32], out: &mut [f32]) {
        for b in 0..self.blocks() {
            let cell = self.cell_of(row * self.blocks() + b);
            let span = self.span(b);
            for (o, &w) in out[span.clone()].iter_mut().zip(&weights[span]) {
                *o = cell.nearest(w);
            }
        }
    }

    /// Rounds the matrix to the nearest values.
    pub fn nearest(&self, weights: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; weights.len()];
        if self.cols > 0 {
            let pairs = out.chunks_mut(self.cols).zip(weights.chunks(self.cols));
            for (row, (out, weights)) in pairs.enumerate() {
                self.round_row(row, weights, out);
            }
        }
        out
    }

    /// The same grid for some rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let blocks = self.blocks();
        let span = rows.start * blocks..rows.end * blocks;
        Self {
            scales: self.scales[span.clone()].to_vec(),
            zeros: self.zeros[span].to_vec(),
            levels: self.levels.clone(),
            ..*self
        }
    }

    /// The same grid with its columns in another order; every column becomes a block of its own.
    pub(crate) fn permuted(&self, order: &[usize]) -> Self {
        let blocks = self.blocks();
        let spread = |row: usize| order.iter().map(move |&c| row * blocks + c / self.block);
        let places: Vec<usize> = (0..self.rows()).flat_map(spread).collect();
        Self {
            cols: self.cols,
            block: 1,
            scales: places.iter().map(|&p| self.scales[p]).collect(),
            zeros: places.iter().map(|&p| self.zeros[p]).collect(),
            levels: self.levels.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn int4(scale: f32, zero_point: i32) -> QParams {
        QParams {
            scale,
            zero_point,
            qmin: -8,
            qmax: 7,
        }
    }

    proptest! {
        #[test]
        fn nearest_is_the_quantizer(x in -3.0f32..3.0, scale in 0.01f32..1.0, zero in -8i32..8) {
            let p = int4(scale, zero);
            let grid = Grid::per_row(1, &[p]);
            prop_assert_eq!(grid.nearest(&[x])[0], p.dequantize(p.quantize(x)));
            let (low, high) = grid.cell(0, 0).neighbours(x);
            let q = grid.cell(0, 0).nearest(x);
            prop_assert!(q == low || q == high, "{} is neither {} nor {}", q, low, high);
        }

        #[test]
        fn a_table_of_integers_is_the_integer_grid(x in -3.0f32..3.0, scale in 0.01f32..1.0) {
            let integer = Grid::per_row(1, &[int4(scale, 0)]);
            let table = Grid { levels: Levels::Table((-8..8).map(|q| q as f32).collect()), ..integer.clone() };
            let (a, b) = (integer.cell(0, 0), table.cell(0, 0));
            prop_assert_eq!(a.neighbours(x), b.neighbours(x));
            prop_assert!((a.nearest(x) - x).abs() >= (b.nearest(x) - x).abs() - 1e-6);
            prop_assert_eq!(a.steps(a.nearest(x)), b.steps(a.nearest(x)));
            prop_assert_eq!(a.ends(), b.ends());
        }
    }

    #[test]
    fn rows_may_have_books_of_their_own() {
        let grid = Grid {
            cols: 2,
            block: 2,
            scales: vec![1.0; 3],
            zeros: vec![0, 1, 0],
            levels: Levels::Books(vec![vec![-1.0, 0.5], vec![0.0, 3.0]].into()),
        };
        let x = [0.2, -0.9, 2.0, 1.0, 9.0, -9.0];
        assert_eq!(grid.nearest(&x), [0.5, -1.0, 3.0, 0.0, 0.5, -1.0]);
        assert_eq!(grid.slice(1..2).nearest(&x[2..4]), [3.0, 0.0]);
        assert_eq!(grid.permuted(&[1, 0]).cell(1, 0).ends(), (0.0, 3.0));
    }

    #[test]
    fn blocks_may_end_short() {
        let grid = Grid::blocked(5, 2, &[int4(1.0, 0), int4(2.0, 0), int4(4.0, 0)]);
        assert_eq!((grid.blocks(), grid.rows(), grid.span(2)), (3, 1, 4..5));
        assert_eq!(
            grid.nearest(&[1.2, 1.2, 1.2, 3.2, 3.0]),
            [1.0, 1.0, 2.0, 4.0, 4.0]
        );
        let turned = grid.permuted(&[4, 0, 2, 1, 3]);
        assert_eq!(
            turned.nearest(&[3.0, 1.2, 1.2, 1.2, 3.2]),
            [4.0, 1.0, 2.0, 1.0, 4.0]
        );
    }
}
