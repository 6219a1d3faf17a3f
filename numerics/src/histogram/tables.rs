//! Short-lived counts of long slices, kept small and apart so that a processor counts a value in about a cycle.

use std::cell::RefCell;

use super::{CHUNK, Histogram, SIDE, floor_bits};
use crate::simd::vectorized;

/// Counters of a bin that consecutive values alternate over, so that equal values do not wait for each other's store.
/// They lie side by side: counters a page apart would be taken for the same address.
const WAYS: usize = 4;
/// Values whose bins are computed together.
pub(super) const BLOCK: usize = 64;
/// Chunks of which no more than `u16::MAX` values fall into one counter.
const FULL: usize = u16::MAX as usize / (CHUNK / WAYS + BLOCK);
/// Bins of three kinds, a power of two with those in between that none has.
const CELLS: usize = 4 * SIDE;
/// The bit of a bin that lies beyond the positive side.
const FAR: u32 = 2 * SIDE as u32;

thread_local! {
    pub(super) static TABLES: RefCell<Tables> = RefCell::new(Tables::new());
}

/// Counts of positive bin `m` at `m`, of negative bin `m` at `CELLS − 1 − m`, of bin `m` beyond the positive ones at
/// `FAR + m`.
pub(super) struct Tables {
    /// Of 16 bits, so that the tables stay in the nearest caches.
    cells: Vec<[u16; WAYS]>,
    /// Chunks counted since the last drain.
    pending: usize,
}

impl Tables {
    fn new() -> Self {
        Tables {
            cells: vec![[0; WAYS]; CELLS],
            pending: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending >= FULL
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Counts up to [`CHUNK`] finite values, all in reach.
    pub(super) fn count(&mut self, chunk: &[f32], reciprocal: f32) {
        self.count_by(
            chunk,
            #[inline(always)]
            |x| floor_bits(x.abs() * reciprocal) ^ side(x),
        );
    }

    /// Counts up to [`CHUNK`] finite values, positive ones in bins of their own width as far as those reach; what lies
    /// beyond counts in far bins of the common width, if there may be such values.
    pub(super) fn count_sides<const BEYOND: bool>(
        &mut self,
        chunk: &[f32],
        above: f32,
        reciprocal: f32,
    ) {
        self.count_by(
            chunk,
            #[inline(always)]
            |x| {
                let (own, common) = (x * above, x.abs() * reciprocal);
                // What is negative is less than its distance from zero.
                let near = if own > common { own } else { common };
                let far = BEYOND && own >= SIDE as f32;
                let kind = if far { FAR } else { 0 };
                floor_bits(if far { common } else { near }) ^ side(x) | kind
            },
        );
    }

    /// Counts values in their bins; the last block is filled with zeros.
    fn count_by(&mut self, chunk: &[f32], bin: impl Fn(f32) -> u32) {
        let Ok(cells) = <&mut [[u16; WAYS]; CELLS]>::try_from(self.cells.as_mut_slice()) else {
            return;
        };
        vectorized(
            #[inline(always)]
            || {
                let mut bins = [0; BLOCK];
                let (blocks, rest) = chunk.as_chunks::<BLOCK>();
                for block in blocks {
                    find(block, &mut bins, &bin);
                    add(cells, &bins);
                }
                if !rest.is_empty() {
                    let mut block = [0.0; BLOCK];
                    block[..rest.len()].copy_from_slice(rest);
                    find(&block, &mut bins, &bin);
                    add(cells, &bins[..rest.len()]);
                }
            },
        );
        self.pending += 1;
    }

    /// Moves the counts to a histogram that has room for them.
    pub(super) fn drain_into(&mut self, histogram: &mut Histogram) {
        if self.is_empty() {
            return;
        }
        let (positive, negative) = (&mut histogram.positive, &mut histogram.negative);
        let [above, below, _] = self.kinds();
        take_into(positive, above);
        let far = below.len() - negative.len();
        take_back_into(negative, &mut below[far..]);
    }

    /// The positive, the negative and the far cells, which are to be taken all; the negative ones end at zero.
    pub(super) fn kinds(&mut self) -> [&mut [[u16; WAYS]]; 3] {
        self.pending = 0;
        let (positive, rest) = self.cells.split_at_mut(FAR as usize);
        let (far, negative) = rest.split_at_mut(SIDE);
        [&mut positive[..SIDE], negative, far]
    }
}

#[inline(always)]
fn find(block: &[f32; BLOCK], bins: &mut [u32; BLOCK], bin: impl Fn(f32) -> u32) {
    for (found, &x) in bins.iter_mut().zip(block) {
        *found = bin(x);
    }
}

#[inline(always)]
fn add(cells: &mut [[u16; WAYS]; CELLS], bins: &[u32]) {
    for group in bins.chunks(WAYS) {
        for (way, &bin) in group.iter().enumerate() {
            // The remainder keeps the compiler from checking bounds that it has lost sight of.
            cells[bin as usize % CELLS][way] += 1;
        }
    }
}

/// What the counters of a cell hold together.
#[inline(always)]
fn sum(cell: &[u16; WAYS]) -> u64 {
    const HALVES: u64 = 0x0000_ffff_0000_ffff;
    let cell: u64 = bytemuck::cast(*cell);
    let pairs = (cell & HALVES) + (cell >> 16 & HALVES);
    (pairs & u64::from(u32::MAX)) + (pairs >> 32)
}

/// Empties a cell.
#[inline(always)]
pub(super) fn take(cell: &mut [u16; WAYS]) -> u64 {
    sum(&std::mem::take(cell))
}

/// What some cells hold together.
pub(super) fn total(cells: &[[u16; WAYS]]) -> u64 {
    vectorized(
        #[inline(always)]
        || cells.iter().map(sum).fold(0, u64::wrapping_add),
    )
}

/// Adds cells to totals.
pub(super) fn add_to(totals: &mut [u64], cells: &[[u16; WAYS]]) {
    vectorized(
        #[inline(always)]
        || {
            for (total, cell) in totals.iter_mut().zip(cells) {
                *total = total.saturating_add(sum(cell));
            }
        },
    );
}

/// Adds cells to totals, and empties them.
pub(super) fn take_into(totals: &mut [u64], cells: &mut [[u16; WAYS]]) {
    vectorized(
        #[inline(always)]
        || {
            for (total, cell) in totals.iter_mut().zip(cells) {
                *total = total.saturating_add(take(cell));
            }
        },
    );
}

/// Adds as many cells to totals, which are in the opposite order, and empties them.
pub(super) fn take_back_into(totals: &mut [u64], cells: &mut [[u16; WAYS]]) {
    vectorized(
        #[inline(always)]
        || {
            for (total, cell) in totals.iter_mut().rev().zip(cells) {
                *total = total.saturating_add(take(cell));
            }
        },
    );
}

/// All ones for values below zero, whose bins lie on the other side.
#[inline(always)]
fn side(x: f32) -> u32 {
    if x < 0.0 { u32::MAX } else { 0 }
}
