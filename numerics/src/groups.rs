//! Which values of a tensor share a codebook or a scale.
//!
//! A tensor is read as `[outer, len, inner]`. Per tensor there is one group; per channel there is one for each index of
//! the middle axis; in blocks there is one for each run of `block` indices of the middle axis (the last one may be
//! short), for each outer and inner index: the layout of blocked scales of ONNX, `[outer, ceil(len / block), inner]`.

use rayon::prelude::*;

/// The groups of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Product of the dimensions before the axis.
    pub outer: usize,
    /// Length of the axis.
    pub len: usize,
    /// Product of the dimensions after the axis.
    pub inner: usize,
    /// What one group holds.
    pub kind: GroupKind,
}

/// What one group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// Everything.
    Tensor,
    /// One index of the axis.
    Channel,
    /// A run of this many indices of the axis, at one outer and inner index.
    Block(usize),
}

impl Groups {
    /// One group of `count` values.
    pub const fn tensor(count: usize) -> Self {
        Self {
            outer: 1,
            len: 1,
            inner: count,
            kind: GroupKind::Tensor,
        }
    }

    /// Values of the tensor; `None` where the number does not fit.
    pub fn values(&self) -> Option<usize> {
        self.outer.checked_mul(self.len)?.checked_mul(self.inner)
    }

    /// Blocks along the axis; 1 unless there are blocks.
    pub fn blocks(&self) -> usize {
        match self.kind {
            GroupKind::Block(size) => self.len.div_ceil(size.max(1)),
            _ => 1,
        }
    }

    /// Number of groups.
    pub fn count(&self) -> usize {
        match self.kind {
            GroupKind::Tensor => 1,
            GroupKind::Channel => self.len,
            GroupKind::Block(_) => self.outer * self.blocks() * self.inner,
        }
    }

    /// The group of the value at a flat index.
    pub fn group_of(&self, at: usize) -> usize {
        let (row, i) = (at / self.inner.max(1), at % self.inner.max(1));
        match self.kind {
            GroupKind::Tensor => 0,
            GroupKind::Channel => row % self.len,
            GroupKind::Block(size) => {
                let (o, r) = (row / self.len, row % self.len);
                (o * self.blocks() + r / size.max(1)) * self.inner + i
            }
        }
    }

    /// The flat indices of a group, in order.
    pub fn members(&self, group: usize) -> impl Iterator<Item = usize> + use<> {
        let Self {
            outer, len, inner, ..
        } = *self;
        // Runs of `run` values, `step` apart.
        let (start, run, step, runs) = match self.kind {
            GroupKind::Tensor => (0, outer * len * inner, 0, 1),
            GroupKind::Channel => (group * inner, inner, len * inner, outer),
            GroupKind::Block(size) => {
                let size = size.max(1);
                let (rest, i) = (group / inner.max(1), group % inner.max(1));
                let (o, b) = (rest / self.blocks().max(1), rest % self.blocks().max(1));
                let first = b * size;
                let rows = size.min(len - first.min(len));
                ((o * len + first) * inner + i, 1, inner, rows)
            }
        };
        (0..runs).flat_map(move |r| start + r * step..start + r * step + run)
    }

    /// The values of every group, gathered and given to `f` with the group's number; results in the order of the groups.
    pub fn map<T: Send>(&self, data: &[f32], f: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        if self.kind == GroupKind::Tensor {
            return vec![f(0, data)];
        }
        (0..self.count())
            .into_par_iter()
            .map_init(Vec::new, |buffer, group| {
                buffer.clear();
                buffer.extend(self.members(group).map(|at| data[at]));
                f(group, buffer)
            })
            .collect()
    }

    /// The inverse of [`Self::map`]: puts the items of every group where its values stand.
    pub fn scatter<T: Copy + Default + Send>(&self, groups: &[Vec<T>]) -> Vec<T> {
        let mut out = vec![T::default(); self.values().unwrap_or(0)];
        for (group, items) in groups.iter().enumerate() {
            for (at, &item) in self.members(group).zip(items) {
                out[at] = item;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Groups> {
        let mut found = vec![Groups::tensor(7)];
        for kind in [
            GroupKind::Channel,
            GroupKind::Block(1),
            GroupKind::Block(2),
            GroupKind::Block(5),
            GroupKind::Block(9),
        ] {
            for (outer, len, inner) in [(1, 5, 3), (3, 5, 1), (2, 5, 3), (2, 4, 2)] {
                found.push(Groups {
                    outer,
                    len,
                    inner,
                    kind,
                });
            }
        }
        found
    }

    #[test]
    fn members_and_group_of_agree_and_cover_every_value_once() {
        for groups in all() {
            let values = groups.outer * groups.len * groups.inner;
            let mut seen = vec![0; values];
            for group in 0..groups.count() {
                let mut last = None;
                for at in groups.members(group) {
                    assert_eq!(groups.group_of(at), group, "{groups:?} at {at}");
                    assert!(last < Some(at), "{groups:?}: members are in order");
                    last = Some(at);
                    seen[at] += 1;
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{groups:?}: {seen:?}");
        }
    }

    #[test]
    fn scatter_undoes_map() {
        for groups in all() {
            let data: Vec<f32> = (0..groups.values().unwrap_or(0))
                .map(|i| i as f32)
                .collect();
            let parts = groups.map(&data, |_, values| values.to_vec());
            assert_eq!(groups.scatter(&parts), data);
        }
    }

    #[test]
    fn blocks_are_those_of_the_standard() {
        // A matrix [5, 2] with blocks of 2 along axis 0: scales of shape [3, 2].
        let groups = Groups {
            outer: 1,
            len: 5,
            inner: 2,
            kind: GroupKind::Block(2),
        };
        assert_eq!(groups.count(), 6);
        let of: Vec<usize> = (0..10).map(|at| groups.group_of(at)).collect();
        assert_eq!(of, [0, 1, 0, 1, 2, 3, 2, 3, 4, 5]);
    }
}
