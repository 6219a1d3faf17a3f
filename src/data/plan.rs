//! Which samples make a batch: known without reading them.

use super::dataset::{DataSet, Store};
use super::items::ItemLayout;
use super::layout::Layout;

/// A batch before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) run: usize,
    pub(super) first_sample: usize,
    pub(super) samples: usize,
    pub(super) padded: usize,
}

/// The batches of arrays that are read from their beginning.
#[derive(Debug, Clone)]
pub(super) struct RunPlan {
    runs: Vec<(Layout, usize)>,
    max_batch: usize,
    limit: usize,
    run: usize,
    /// Samples of the current run that are planned.
    used: usize,
    first_sample: usize,
}

impl RunPlan {
    pub(super) fn new(runs: Vec<(Layout, usize)>, max_batch: usize, limit: usize) -> Self {
        Self {
            runs,
            max_batch: max_batch.max(1),
            limit,
            run: 0,
            used: 0,
            first_sample: 0,
        }
    }
}

impl Iterator for RunPlan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let (layout, total) = *self.runs.get(self.run)?;
        if self.used == total {
            self.run += 1;
            self.used = 0;
            return self.next();
        }
        let left = (total - self.used).min(self.limit - self.first_sample);
        if left == 0 {
            return None;
        }
        let (samples, padded) = match layout {
            Layout::Samples { piece: Some(n) } => (n.min(left), n - n.min(left)),
            Layout::Samples { piece: None } => (self.max_batch.min(left), 0),
            Layout::Feeds | Layout::Whole => (1, 0),
        };
        let step = Step {
            run: self.run,
            first_sample: self.first_sample,
            samples,
            padded,
        };
        self.used += samples;
        self.first_sample += samples;
        Some(step)
    }
}

/// The batches of samples that are made one by one: neighbours of the same shape share a batch.
#[derive(Debug, Clone)]
pub(super) struct ItemPlan {
    data: DataSet,
    max_batch: usize,
    at: usize,
}

impl ItemPlan {
    pub(super) fn new(data: DataSet, max_batch: usize) -> Self {
        Self {
            data,
            max_batch: max_batch.max(1),
            at: 0,
        }
    }
}

impl Iterator for ItemPlan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let Store::Items(items, layout) = self.data.store() else {
            return None;
        };
        let left = self.data.len() - self.at;
        if left == 0 {
            return None;
        }
        let (most, piece) = match *layout {
            ItemLayout::Samples { piece } => (piece.unwrap_or(self.max_batch), piece),
            ItemLayout::Feeds => (1, None),
        };
        let kind = |place: usize| {
            let index = self.data.source_index(place);
            (items.group(index), items.dims(index))
        };
        let mut samples = 1;
        if most.min(left) > 1 {
            let first = kind(self.at);
            while samples < most.min(left) && kind(self.at + samples) == first {
                samples += 1;
            }
        }
        let step = Step {
            run: 0,
            first_sample: self.at,
            samples,
            padded: piece.map_or(0, |p| p - samples),
        };
        self.at += samples;
        Some(step)
    }
}

/// The batches of a pass.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// Of arrays.
    Runs(RunPlan),
    /// Of samples that are made one by one.
    Items(ItemPlan),
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        match self {
            Self::Runs(plan) => plan.next(),
            Self::Items(plan) => plan.next(),
        }
    }
}
