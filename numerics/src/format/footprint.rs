//! What a format stores, in bits: codes, scales, zero points and codebooks.

use super::base::Base;
use super::registry::Family;
use super::{Format, Granularity};

/// How many groups of each kind a tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Values.
    pub values: u64,
    /// Indices of the output channel axis.
    pub channels: u64,
    /// Blocks (or vectors) over the whole tensor, short ones counted whole.
    pub blocks: u64,
}

impl Groups {
    /// A matrix of `channels` rows whose `length` values are cut into blocks of `block`.
    pub fn rows(channels: u64, length: u64, block: u64) -> Self {
        Groups {
            values: channels * length,
            channels,
            blocks: channels * length.div_ceil(block.max(1)),
        }
    }
}

/// Stored bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Of the codes.
    pub codes: u64,
    /// Of the scales of all levels, and of α.
    pub scales: u64,
    /// Of the zero points.
    pub zero_points: u64,
    /// Of the codebooks.
    pub codebooks: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.codes + self.scales + self.zero_points + self.codebooks
    }

    /// Bits for each of `values` values.
    pub fn effective_bits(&self, values: u64) -> f64 {
        self.total() as f64 / values.max(1) as f64
    }
}

impl Format {
    /// What the format stores for a tensor: `scale_bits` are those of a float scale, α or codebook entry (32 or 16),
    /// `zero_points` says whether each scale has a zero point of the codes' type.
    pub fn footprint(&self, groups: Groups, scale_bits: u64, zero_points: bool) -> Footprint {
        let info = self.base.info();
        let storage = u64::from(info.storage_bits);
        // Packed types are padded to bytes, and so is each tensor.
        let bytes = |values: u64| (values * storage).div_ceil(8) * 8;
        let granularity = self.granularity(Granularity::Channel);
        let count = match granularity {
            Granularity::Tensor => 1,
            Granularity::Channel => groups.channels,
            Granularity::Block(_) | Granularity::Vsq(_) => groups.blocks,
        };
        let mut print = Footprint {
            codes: bytes(groups.values),
            ..Footprint::default()
        };
        match (info.family, granularity) {
            (Family::Cast, _) => {}
            (Family::Codebook, _) => print.codebooks = count * (1 << info.bits) * scale_bits,
            (Family::BlockFloat, _) if self.base == Base::Nvfp4 => print.scales = count * 8 + 32,
            (Family::BlockFloat, _) => print.scales = count * 8,
            (_, Granularity::Vsq(_)) => {
                print.scales = (count * 4).div_ceil(8) * 8 + groups.channels * scale_bits;
            }
            _ => print.scales = count * scale_bits,
        }
        if zero_points && info.family == Family::Integer {
            print.zero_points = bytes(count);
        }
        print
    }
}
