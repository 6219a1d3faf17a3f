//! Which values of a tensor share a scale: the tensor, a channel, or a block along an axis.
//!
//! A tensor is read as `[outer, axis, inner]`, the axis being that of the channels or of the blocks. With channels,
//! group `a` is the index `a` of the axis; with blocks, group `(o·blocks + a / block)·inner + i`, which is the order of
//! the scales of a blocked DequantizeLinear (ONNX standard, from version 21).

use std::ops::Range;

use rayon::prelude::*;

use crate::channel::{Layout, LayoutError, channel_ranges};
use crate::minmax::{block_min_max, min_max, row_min_max};

/// Values that one task works on.
const TASK: usize = 1 << 16;

/// The groups of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grouping {
    layout: Layout,
    /// Length of a block; `None` for channels.
    block: Option<usize>,
}

/// The groups that a run of neighbouring values belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// All to this group.
    One(usize),
    /// Each to a group of its own, from this one on.
    Each(usize),
}

/// The groups of a row.
enum Row {
    Run(Place),
    /// Blocks one after the other, from this group on.
    Blocks(usize, usize),
}

impl Grouping {
    /// One group of `len` values.
    pub const fn tensor(len: usize) -> Self {
        Grouping {
            layout: Layout::tensor(len),
            block: None,
        }
    }

    /// One group for each index of `axis`.
    ///
    /// # Errors
    /// [`LayoutError::Axis`] if the shape has no such axis.
    pub fn channels(shape: &[usize], axis: usize) -> Result<Self, LayoutError> {
        Ok(Grouping {
            layout: Layout::of(shape, axis)?,
            block: None,
        })
    }

    /// Groups of `block` values along `axis`; the last of a row may be shorter.
    ///
    /// # Errors
    /// [`LayoutError::Axis`] if the shape has no such axis.
    pub fn blocks(shape: &[usize], axis: usize, block: usize) -> Result<Self, LayoutError> {
        Ok(Grouping {
            layout: Layout::of(shape, axis)?,
            block: Some(block.max(1)),
        })
    }

    /// Blocks along the axis.
    fn blocks_in_row(&self) -> usize {
        self.block.map_or(self.layout.channels, |block| {
            self.layout.channels.div_ceil(block)
        })
    }

    /// The length of blocks that lie one after the other, all of one length.
    pub(crate) fn neighbours(&self) -> Option<usize> {
        let whole =
            |block: &usize| self.layout.inner == 1 && self.layout.channels.is_multiple_of(*block);
        self.block.filter(whole)
    }

    /// Number of groups.
    pub fn count(&self) -> usize {
        match self.block {
            None => self.layout.channels,
            Some(_) => self.layout.outer * self.blocks_in_row() * self.layout.inner,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.layout.outer * self.layout.channels * self.layout.inner
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The group of the value at a position in row-major order.
    pub fn group_of(&self, at: usize) -> usize {
        let Layout {
            channels, inner, ..
        } = self.layout;
        let (row, i) = (at / inner, at % inner);
        let (o, a) = (row / channels, row % channels);
        match self.block {
            None => a,
            Some(block) => (o * self.blocks_in_row() + a / block) * inner + i,
        }
    }

    pub(crate) fn check(&self, values: usize, params: usize) -> Result<(), LayoutError> {
        self.layout.check(values)?;
        if params != self.count() {
            return Err(LayoutError::Params {
                found: params,
                channels: self.count(),
            });
        }
        Ok(())
    }

    fn row_length(&self) -> usize {
        match self.layout.inner {
            1 => self.layout.channels,
            inner => inner,
        }
    }

    fn row(&self, row: usize) -> Row {
        let Layout {
            channels, inner, ..
        } = self.layout;
        match self.block {
            None if inner == 1 => Row::Run(Place::Each(0)),
            None => Row::Run(Place::One(row % channels)),
            Some(block) if inner == 1 => Row::Blocks(row * self.blocks_in_row(), block),
            Some(block) => {
                let (o, a) = (row / channels, row % channels);
                Row::Run(Place::Each((o * self.blocks_in_row() + a / block) * inner))
            }
        }
    }

    /// Calls `f` for the runs of neighbouring values that `range` consists of, with the groups of each.
    #[inline(always)]
    pub(crate) fn runs(&self, range: Range<usize>, mut f: impl FnMut(Range<usize>, Place)) {
        let length = self.row_length();
        let mut at = range.start;
        while at < range.end {
            let (row, within) = (at / length, at % length);
            let end = (at + length - within).min(range.end);
            match self.row(row) {
                Row::Run(Place::One(group)) => f(at..end, Place::One(group)),
                Row::Run(Place::Each(first)) => f(at..end, Place::Each(first + within)),
                Row::Blocks(first, block) => {
                    let mut group = first + within / block;
                    let mut left = block - within % block;
                    while at < end {
                        let next = (at + left).min(end);
                        f(at..next, Place::One(group));
                        (at, group, left) = (next, group + 1, block);
                    }
                }
            }
            at = end;
        }
    }

    /// Smallest and largest value of each group; (NaN, NaN) where a group holds NaN, (0, 0) where it is empty.
    ///
    /// # Errors
    /// [`LayoutError::Length`] if `data` does not fill the grouping.
    pub fn ranges(&self, data: &[f32]) -> Result<Vec<(f32, f32)>, LayoutError> {
        self.map_ranges(data, |_, range| range)
    }

    /// `f` of the [`Grouping::ranges`] of each group, in order of the groups.
    pub(crate) fn map_ranges<R: Send>(
        &self,
        data: &[f32],
        f: impl Fn(usize, (f32, f32)) -> R + Sync,
    ) -> Result<Vec<R>, LayoutError> {
        self.layout.check(data.len())?;
        if let Some(block) = self.neighbours() {
            return Ok(ranges_of_blocks(data, block, f));
        }
        let ranges = match self.block {
            Some(block) => self.block_ranges(data, block),
            None => channel_ranges(data, self.layout)?,
        };
        let all = ranges.par_iter().with_min_len(TASK).enumerate();
        Ok(all.map(|(group, &range)| f(group, range)).collect())
    }

    fn block_ranges(&self, data: &[f32], block: usize) -> Vec<(f32, f32)> {
        let inner = self.layout.inner;
        let mut ranges = vec![(0.0, 0.0); self.count()];
        if data.is_empty() {
            return ranges;
        }
        let in_row = self.blocks_in_row();
        let least = (TASK / (block * inner)).max(1);
        ranges
            .par_chunks_mut(inner)
            .with_min_len(least)
            .enumerate()
            .for_each(|(at, ranges)| {
                let part = &data[self.block_range(at / in_row, at % in_row, block)];
                match ranges {
                    [range] => *range = min_max(part),
                    many => many.copy_from_slice(&row_min_max(part, inner)),
                }
            });
        ranges
    }

    /// The values of block `b` of row `o`, all inner indices of it.
    fn block_range(&self, o: usize, b: usize, block: usize) -> Range<usize> {
        let Layout {
            channels, inner, ..
        } = self.layout;
        let row = o * channels * inner;
        row + b * block * inner..row + ((b + 1) * block).min(channels) * inner
    }

    /// `f` of the values of each group, in order of the groups; the caller has checked the length of `data`.
    pub(crate) fn map_groups<R: Send>(
        &self,
        data: &[f32],
        f: impl Fn(usize, &[f32]) -> R + Sync,
    ) -> Vec<R> {
        let Layout {
            outer,
            channels,
            inner,
        } = self.layout;
        let in_row = self.blocks_in_row();
        let strided = |part: &[f32], i: usize, buffer: &mut Vec<f32>| {
            buffer.clear();
            buffer.extend(part.iter().skip(i).step_by(inner));
        };
        let map = |at: usize, buffer: &mut Vec<f32>| match self.block {
            Some(block) => {
                let (row, i) = (at / inner, at % inner);
                let part = &data[self.block_range(row / in_row, row % in_row, block)];
                if inner == 1 {
                    return f(at, part);
                }
                strided(part, i, buffer);
                f(at, buffer)
            }
            None if outer == 1 => f(at, &data[at * inner..(at + 1) * inner]),
            None => {
                buffer.clear();
                for o in 0..outer {
                    let start = (o * channels + at) * inner;
                    buffer.extend_from_slice(&data[start..start + inner]);
                }
                f(at, buffer)
            }
        };
        let values = self.len() / self.count().max(1);
        (0..self.count())
            .into_par_iter()
            .with_min_len((TASK / values.max(1)).max(1))
            .map_init(Vec::new, |buffer, at| map(at, buffer))
            .collect()
    }
}

/// Blocks whose ranges are found together.
const BLOCKS: usize = 64;

/// `f` of the range of each block of neighbouring values.
fn ranges_of_blocks<R: Send>(
    data: &[f32],
    block: usize,
    f: impl Fn(usize, (f32, f32)) -> R + Sync,
) -> Vec<R> {
    let parts = data.par_chunks_exact(block * BLOCKS);
    let rest = parts.remainder().chunks_exact(block);
    let first = data.len() / block - rest.len();
    let of = |(part, data): (usize, &[f32])| {
        let mut ranges = [(0.0, 0.0); BLOCKS];
        block_min_max(data, block, &mut ranges);
        std::array::from_fn::<R, BLOCKS, _>(|b| f(part * BLOCKS + b, ranges[b]))
    };
    let least = (TASK / (block * BLOCKS)).max(1);
    let parts: Vec<[R; BLOCKS]> = parts.with_min_len(least).enumerate().map(of).collect();
    let mut all = parts.into_flattened();
    all.extend(rest.enumerate().map(|(b, x)| f(first + b, min_max(x))));
    all
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn any() -> impl Strategy<Value = Grouping> {
        let shape = prop_oneof![
            (1usize..5, 1usize..40, 1usize..9),
            (1usize..40, 1usize..40, Just(1usize)),
            (Just(1usize), 1usize..3, 60_000usize..70_000),
            (Just(2usize), 66_000usize..70_000, Just(1usize)),
            (Just(1usize), 3usize..9, 66_000usize..67_000),
        ];
        (shape, proptest::option::of(2usize..40)).prop_map(|((o, a, i), block)| {
            let shape = [o, a, i];
            match block {
                None => Grouping::channels(&shape, 1).unwrap(),
                Some(block) => Grouping::blocks(&shape, 1, block).unwrap(),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn all_ways_name_the_same_groups(grouping in any(), task in 1usize..5000) {
            let data: Vec<f32> = (0..grouping.len()).map(|i| (i * 7919 % 10_007) as f32).collect();
            let mut members = vec![Vec::new(); grouping.count()];
            for (at, &x) in data.iter().enumerate() {
                members[grouping.group_of(at)].push(x);
            }
            let mut places = vec![usize::MAX; data.len()];
            for start in (0..data.len()).step_by(task) {
                grouping.runs(start..(start + task).min(data.len()), |run, place| match place {
                    Place::One(p) => places[run].fill(p),
                    Place::Each(p) => places[run].iter_mut().enumerate().for_each(|(i, o)| *o = p + i),
                });
            }
            for (at, &place) in places.iter().enumerate() {
                prop_assert_eq!(place, grouping.group_of(at));
            }
            let found = grouping.map_groups(&data, |_, values| values.to_vec());
            prop_assert!(found == members);
            let extremes: Vec<(f32, f32)> = members.iter().map(|m| min_max(m)).collect();
            prop_assert!(grouping.ranges(&data).unwrap() == extremes);
        }
    }

    #[test]
    fn known_places() {
        let groups = |g: Grouping| (0..g.len()).map(|at| g.group_of(at)).collect::<Vec<_>>();
        let blocks = |shape: &[usize], axis, block| Grouping::blocks(shape, axis, block).unwrap();
        assert_eq!(
            groups(blocks(&[2, 5], 1, 2)),
            [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
        );
        assert_eq!(groups(blocks(&[3, 2], 0, 2)), [0, 1, 0, 1, 2, 3]);
        assert_eq!(
            groups(Grouping::channels(&[2, 3], 0).unwrap()),
            [0, 0, 0, 1, 1, 1]
        );
        assert_eq!(groups(Grouping::tensor(3)), [0, 0, 0]);
        assert!(Grouping::blocks(&[2], 1, 4).is_err());
        assert!(Grouping::tensor(0).is_empty());
    }
}
