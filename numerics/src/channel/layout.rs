//! How a tensor is read as seen from its channel axis.

use thiserror::Error;

/// The three dimensions that a tensor has as seen from its channel axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Product of the dimensions before the channel axis.
    pub outer: usize,
    /// Length of the channel axis.
    pub channels: usize,
    /// Product of the dimensions after the channel axis.
    pub inner: usize,
}

/// Data or parameters that do not fit a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The axis is not one of the shape's.
    #[error("axis {axis} is outside a tensor of rank {rank}")]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// Number of dimensions.
        rank: usize,
    },
    /// The number of values is not `outer · channels · inner`.
    #[error("{found} values do not fill {outer} x {channels} x {inner}")]
    Length {
        /// Number of values given.
        found: usize,
        /// Product of the dimensions before the axis.
        outer: usize,
        /// Length of the axis.
        channels: usize,
        /// Product of the dimensions after the axis.
        inner: usize,
    },
    /// The number of parameters is not the number of channels.
    #[error("{found} quantization parameters for {channels} channels")]
    Params {
        /// Number of parameters given.
        found: usize,
        /// Number of channels.
        channels: usize,
    },
}

impl Layout {
    /// One channel that holds `len` values.
    pub const fn tensor(len: usize) -> Self {
        Layout {
            outer: 1,
            channels: 1,
            inner: len,
        }
    }

    /// The layout of `shape` with its channels on `axis`.
    ///
    /// # Errors
    /// [`LayoutError::Axis`] if the shape has no such axis.
    pub fn of(shape: &[usize], axis: usize) -> Result<Self, LayoutError> {
        let channels = *shape.get(axis).ok_or(LayoutError::Axis {
            axis,
            rank: shape.len(),
        })?;
        let product = |dims: &[usize]| dims.iter().fold(1usize, |a, &b| a.saturating_mul(b));
        Ok(Layout {
            outer: product(&shape[..axis]),
            channels,
            inner: product(&shape[axis + 1..]),
        })
    }

    pub(crate) fn check(&self, found: usize) -> Result<(), LayoutError> {
        let Layout {
            outer,
            channels,
            inner,
        } = *self;
        let expected = outer
            .checked_mul(channels)
            .and_then(|n| n.checked_mul(inner));
        if expected == Some(found) {
            Ok(())
        } else {
            Err(LayoutError::Length {
                found,
                outer,
                channels,
                inner,
            })
        }
    }
}
