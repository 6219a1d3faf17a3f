//! In which direction a format moves the model's outputs, beside how far.
//!
//! Errors of several layers add up as vectors: two that point the same way make four times the loss of one, two that
//! point against each other cancel. To second order the loss of a choice is the squared length of the sum of its
//! layers' vectors, so that the runs of single layers also say what any of them do together. Long vectors are kept as a
//! count sketch, which leaves inner products as they are but for a few percent (Charikar, Chen, Farach-Colton, *Finding
//! Frequent Items in Data Streams*, 2002).

use half::f16;
use onnx_quant_ir::Tensor;
use onnx_quant_numerics::metrics::{MetricError, kl_direction};

use super::loss::{LossKind, values};
use crate::data::Batch;
use crate::error::Error;

/// Numbers of a sketch.
const LENGTH: usize = 512;

/// The vector of one format of one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Errors {
    sums: Vec<f32>,
}

impl Errors {
    /// Adds one batch of a data set of `samples`.
    ///
    /// # Errors
    /// Outputs that cannot be read.
    pub(super) fn add(
        &mut self,
        kind: LossKind,
        (reference, candidate): (&[Tensor], &[Tensor]),
        batch: &Batch,
        samples: usize,
    ) -> Result<(), Error> {
        let first = match kind {
            LossKind::Local => return Ok(()),
            LossKind::Kl | LossKind::Task => 1,
            LossKind::Error | LossKind::Cosine => reference.len(),
        };
        self.sums.resize(LENGTH, 0.0);
        for (output, (r, c)) in reference.iter().zip(candidate).take(first).enumerate() {
            let (a, b) = (values(r, batch)?, values(c, batch)?);
            let width = r.dims().last().and_then(|&d| usize::try_from(d).ok());
            let moved = match kind {
                LossKind::Kl | LossKind::Task => kl_direction(&a, &b, width.unwrap_or(1).max(1)),
                _ => relative(&a, &b),
            };
            let moved =
                moved.map_err(|e| Error::usage(format!("an output cannot be compared: {e}")))?;
            let per = moved.len() / batch.samples.max(1);
            let short = first == 1 && per * samples <= LENGTH;
            for (at, x) in moved.iter().enumerate().filter(|(_, x)| x.is_finite()) {
                let place = batch.first_sample * per + at;
                if short {
                    // An output without an axis of samples may reach a little further.
                    self.sums[place % LENGTH] += x;
                } else {
                    let mixed = mix((output as u64) << 48 ^ place as u64);
                    let sign = if mixed >> 63 == 0 { 1.0 } else { -1.0 };
                    self.sums[mixed as usize % LENGTH] += sign * x;
                }
            }
        }
        Ok(())
    }

    /// Adds the vector of the samples that follow.
    pub(super) fn merge(&mut self, other: &Self) {
        self.sums.resize(self.sums.len().max(other.sums.len()), 0.0);
        for (a, b) in self.sums.iter_mut().zip(&other.sums) {
            *a += b;
        }
    }

    /// The vector of length one in this direction as text, half precision in hexadecimal digits; `None` for zero.
    pub(super) fn direction(&self) -> Option<String> {
        let square: f64 = self.sums.iter().map(|&x| f64::from(x).powi(2)).sum();
        let length = square.sqrt();
        let digits = |&x: &f32| {
            let part = f16::from_f64(f64::from(x) / length);
            format!("{:04x}", part.to_bits())
        };
        (length > 0.0 && length.is_finite()).then(|| self.sums.iter().map(digits).collect())
    }

    /// The sums as bits, for the cache.
    pub(super) fn to_bits(&self) -> Vec<u64> {
        let bits = self.sums.iter().map(|x| u64::from(x.to_bits()));
        bits.collect()
    }

    /// The sums from their bits.
    pub(super) fn from_bits(bits: &[u64]) -> Self {
        let sums = bits.iter().map(|&b| f32::from_bits(b as u32));
        Self {
            sums: sums.collect(),
        }
    }
}

/// A direction from its text; `None` where it is none.
pub(super) fn read(text: &str) -> Option<Vec<f32>> {
    let digits = text.as_bytes().as_chunks::<4>();
    let number = |d: &[u8; 4]| {
        let text = std::str::from_utf8(d).ok()?;
        let bits = u16::from_str_radix(text, 16).ok()?;
        Some(f16::from_bits(bits).to_f32())
    };
    let all: Option<Vec<f32>> = digits.0.iter().map(number).collect();
    all.filter(|_| digits.1.is_empty())
}

/// The difference over the length of the reference.
fn relative(reference: &[f32], candidate: &[f32]) -> Result<Vec<f32>, MetricError> {
    if reference.len() != candidate.len() {
        return Err(MetricError::Length {
            reference: reference.len(),
            candidate: candidate.len(),
        });
    }
    let finite = reference.iter().filter(|x| x.is_finite());
    let square: f64 = finite.map(|&x| f64::from(x).powi(2)).sum();
    let length = (square.sqrt() as f32).max(f32::MIN_POSITIVE);
    let pairs = reference.iter().zip(candidate);
    Ok(pairs.map(|(r, c)| (c - r) / length).collect())
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014): every bit of the result depends on every bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let at = |i: usize| mix(seed << 32 ^ i as u64) as u32 as f32 / u32::MAX as f32 - 0.5;
        (0..len).map(at).collect()
    }

    fn tensor(data: &[f32]) -> Tensor {
        Tensor::from_f32(&[1, data.len() as i64], data)
    }

    /// The directions of two changes of outputs of this length.
    fn directions(len: usize) -> ([Vec<f32>; 2], [Vec<f32>; 2]) {
        let batch = Batch {
            index: 0,
            first_sample: 0,
            samples: 1,
            padded: 0,
            tensors: Vec::new(),
        };
        let reference = vec![1.0; len];
        let moved = [noise(len, 1), noise(len, 2)].map(|n| {
            let common = noise(len, 3);
            n.iter()
                .zip(&common)
                .map(|(a, b)| a + b)
                .collect::<Vec<f32>>()
        });
        let found = [0, 1].map(|i| {
            let to: Vec<f32> = reference
                .iter()
                .zip(&moved[i])
                .map(|(r, m)| r + m)
                .collect();
            let mut errors = Errors::default();
            let both = (&[tensor(&reference)][..], &[tensor(&to)][..]);
            errors.add(LossKind::Error, both, &batch, 1).unwrap();
            let text = errors.direction().unwrap();
            assert_eq!(Errors::from_bits(&errors.to_bits()), errors);
            read(&text).unwrap()
        });
        (moved, found)
    }

    fn cosine([a, b]: &[Vec<f32>; 2]) -> f64 {
        let dot =
            |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum() };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn angles_survive() {
        for len in [3, 500, 40_000] {
            let (moved, found) = directions(len);
            let bound = if len <= LENGTH { 2e-3 } else { 0.15 };
            let (a, b) = (cosine(&moved), cosine(&found));
            assert!((a - b).abs() < bound, "{len}: {a} {b}");
        }
    }

    #[test]
    fn outputs_without_an_axis_of_samples_are_taken_in() {
        let batch = Batch {
            index: 0,
            first_sample: 0,
            samples: 8,
            padded: 0,
            tensors: Vec::new(),
        };
        let (from, to) = (vec![1.0; LENGTH + 7], vec![2.0; LENGTH + 7]);
        let both = (&[tensor(&from)][..], &[tensor(&to)][..]);
        let mut errors = Errors::default();
        errors.add(LossKind::Error, both, &batch, 8).unwrap();
        assert!(errors.direction().is_some());
    }

    #[test]
    fn what_is_no_direction_is_none() {
        assert_eq!(Errors::default().direction(), None);
        assert_eq!(read("3c0"), None);
        assert_eq!(read("3c00xyzw"), None);
        assert_eq!(read("3c00bc00"), Some(vec![1.0, -1.0]));
    }
}
