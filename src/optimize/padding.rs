//! Tokens that only fill a batch: the model is told by an attention mask not to look at them, and nothing is learned from
//! what it computes there.

use std::ops::Range;

use onnx_quant_ir::Tensor;

use super::blocks::numbers;
use crate::calibrate::batch_size;
use crate::data::DataSet;
use crate::error::Error;

/// Names of inputs that mark tokens with 1 and padding with 0.
const MASKS: [&str; 2] = ["attention_mask", "input_mask"];
/// The input whose second axis is that of the tokens: a mask that is longer begins with those of the cache.
const TOKENS: &str = "input_ids";

/// Which tokens of each sample count.
#[derive(Debug, Default)]
pub(super) struct Padding {
    /// By sample; empty where the data has no mask.
    shown: Vec<Vec<bool>>,
}

impl Padding {
    /// Reads the masks of all samples.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub(super) fn of(data: &DataSet) -> Result<Self, Error> {
        let named = |names: &[&str]| {
            let mut fed = data.fed().iter();
            fed.position(|input| names.contains(&input.name.as_str()))
        };
        let Some(mask) = named(&MASKS) else {
            return Ok(Self::default());
        };
        let tokens = named(&[TOKENS]);
        let mut shown = Vec::new();
        for batch in data.batches(batch_size(data.len())) {
            let batch = batch?;
            let count = tokens.and_then(|t| batch.tensors[t].dims().get(1).copied());
            let rows = rows(&batch.tensors[mask], count);
            shown.extend((0..batch.samples).map(|i| rows.get(i).cloned().unwrap_or_default()));
        }
        Ok(Self { shown })
    }

    /// How much is padding, if any is.
    pub(super) fn note(&self) -> Option<String> {
        let all: usize = self.shown.iter().map(Vec::len).sum();
        let counts = |row: &Vec<bool>| row.iter().filter(|&&shown| shown).count();
        let shown: usize = self.shown.iter().map(counts).sum();
        (shown > 0 && shown < all).then(|| {
            format!(
                "optimize: {} of {all} tokens are padding by the attention mask: nothing is learned from them",
                all - shown
            )
        })
    }

    /// Whether each of so many positions of a sample counts; `None` if they all do, or are not those of the tokens.
    fn of_sample(&self, sample: usize, positions: usize) -> Option<&[bool]> {
        let own = self.shown.get(sample)?;
        let some = own.len() == positions && own.contains(&true) && own.contains(&false);
        some.then_some(own)
    }

    /// The positions of a sample that count.
    pub(super) fn positions(&self, sample: usize, positions: usize) -> Vec<usize> {
        match self.of_sample(sample, positions) {
            Some(shown) => (0..positions).filter(|&p| shown[p]).collect(),
            None => (0..positions).collect(),
        }
    }

    /// The elements of a sample that do not count, of so many at each of its positions.
    pub(super) fn hidden(
        &self,
        sample: usize,
        positions: usize,
        width: usize,
    ) -> Vec<Range<usize>> {
        let shown = self.of_sample(sample, positions).unwrap_or_default();
        let hidden = shown.iter().enumerate().filter(|(_, shown)| !**shown);
        hidden.map(|(p, _)| p * width..(p + 1) * width).collect()
    }
}

/// The last `count` marks of each row of a mask; nothing if it holds anything but marks.
fn rows(mask: &Tensor, count: Option<i64>) -> Vec<Vec<bool>> {
    let (&[_, width], Some(values)) = (mask.dims(), numbers(mask)) else {
        return Vec::new();
    };
    let count = count.unwrap_or(width);
    if width == 0 || count > width || values.iter().any(|&v| v != 0.0 && v != 1.0) {
        return Vec::new();
    }
    let rows = values.chunks_exact(width as usize);
    rows.map(|r| {
        r[(width - count) as usize..]
            .iter()
            .map(|&v| v == 1.0)
            .collect()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_those_of_the_new_tokens() {
        let mask = Tensor::from_i64(&[2, 4], &[1, 0, 1, 0, 1, 1, 1, 1]);
        assert_eq!(rows(&mask, Some(2)), [[true, false], [true, true]]);
        assert_eq!(rows(&mask, None)[0], [true, false, true, false]);
        assert!(rows(&mask, Some(5)).is_empty());
        // An additive mask, and one of another form.
        assert!(rows(&Tensor::from_f32(&[1, 2], &[0.0, -1e4]), None).is_empty());
        assert!(rows(&Tensor::from_i64(&[2], &[1, 0]), None).is_empty());
    }

    #[test]
    fn padding_hides_positions_of_the_tokens_alone() {
        let shown = vec![vec![true, false, false], vec![false; 3], Vec::new()];
        let padding = Padding { shown };
        assert!(padding.note().is_some_and(|n| n.contains("5 of 6 tokens")));
        assert_eq!(Padding::default().note(), None);
        assert_eq!(padding.positions(0, 3), [0]);
        assert_eq!(padding.hidden(0, 3, 4), [4..8, 8..12]);
        // Other positions, a sample that is all padding, and samples without a mask.
        for (sample, positions) in [(0, 2), (1, 3), (2, 3), (9, 3)] {
            let all: Vec<usize> = (0..positions).collect();
            assert_eq!(padding.positions(sample, positions), all);
            assert!(padding.hidden(sample, positions, 4).is_empty());
        }
    }
}
