//! The statistics of a model's activations, gathered by running it on calibration data.
//!
//! They are a file that carries the digest of its model: sorted keys, one line for each value. Parts that were
//! gathered from different samples are merged in any order, with the same bytes as from one run over all.

use std::collections::BTreeMap;

use onnx_quant_numerics::stats::TensorStats;
use serde::{Deserialize, Serialize};

mod error;
#[cfg(test)]
mod tests;

pub use error::CalibrationError;

/// The version of the file's form.
const FORMAT: &str = "onnx-quant calibration 1";

/// What was seen of every observed value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// `onnx-quant calibration 1`.
    pub format: String,
    /// Digest of the model that was run, as it was read ([`onnx_quant_ir::save::digest`]); empty where the statistics
    /// do not leave the process.
    pub model: String,
    /// The runtime that ran it; empty where files do not say.
    #[serde(default)]
    pub engine: String,
    /// Samples that were run.
    pub samples: usize,
    /// Samples of the whole data, of which those may be a part.
    pub of: usize,
    /// A digest of the beginning of the data, by which parts of other data are told apart; may be empty.
    pub data: String,
    /// The indices of the samples that were run: `[first, end)`, ascending, with gaps between them.
    pub parts: Vec<(usize, usize)>,
    /// What the user should know of the data, sorted.
    pub notes: Vec<String>,
    /// Statistics by value key (graph path and name).
    pub values: BTreeMap<String, TensorStats>,
    /// Ranges that are given and not chosen from statistics, by value key: lowest and highest real value. Part of a
    /// process, not of the file.
    #[serde(skip)]
    pub ranges: BTreeMap<String, (f32, f32)>,
}

impl Calibration {
    /// Statistics of no sample of a model and of data.
    pub fn new(model: String, of: usize) -> Self {
        Self {
            format: FORMAT.to_owned(),
            model,
            of,
            ..Self::default()
        }
    }

    /// Counts samples that were run, from `first` to before `end`.
    pub fn count(&mut self, first: usize, end: usize) {
        self.parts.push((first, end));
        self.join_parts();
    }

    /// Takes in the statistics of other samples of the same model and data. Any order of merging gives the same, but
    /// for [`ranges`](Self::ranges): the last one stays.
    ///
    /// # Errors
    /// Another model, other data, or samples that both have.
    pub fn merge(&mut self, other: &Self) -> Result<(), CalibrationError> {
        if self.model != other.model {
            return Err(CalibrationError::Models(
                self.model.clone(),
                other.model.clone(),
            ));
        }
        self.check_engine(&other.engine)?;
        if self.of != other.of {
            return Err(CalibrationError::Data(self.of, other.of));
        }
        if self.data != other.data {
            return Err(CalibrationError::OtherData);
        }
        for &(first, end) in &other.parts {
            let both = |&&(f, e): &&(usize, usize)| first < e && f < end;
            if let Some(&(f, e)) = self.parts.iter().find(both) {
                return Err(CalibrationError::Twice(first.max(f), end.min(e) - 1));
            }
        }
        let observed = |c: &Self| !c.parts.is_empty();
        if observed(self) && observed(other) {
            self.same_values(other)?;
        }
        self.parts.extend(&other.parts);
        self.ranges
            .extend(other.ranges.iter().map(|(k, r)| (k.clone(), *r)));
        self.join_parts();
        self.notes.extend(other.notes.iter().cloned());
        self.notes.sort();
        self.notes.dedup();
        for (key, stats) in &other.values {
            match self.values.get_mut(key) {
                Some(mine) => mine.merge(stats),
                None => {
                    self.values.insert(key.clone(), stats.clone());
                }
            }
        }
        Ok(())
    }

    fn same_values(&self, other: &Self) -> Result<(), CalibrationError> {
        let lacks = |a: &Self, b: &Self| {
            a.values
                .keys()
                .find(|k| !b.values.contains_key(*k))
                .cloned()
        };
        match lacks(self, other).or_else(|| lacks(other, self)) {
            Some(value) => Err(CalibrationError::Values(value)),
            None => Ok(()),
        }
    }

    fn join_parts(&mut self) {
        self.parts.sort_unstable();
        let mut joined: Vec<(usize, usize)> = Vec::new();
        for &(first, end) in &self.parts {
            match joined.last_mut() {
                Some(last) if last.1 == first => last.1 = end,
                _ => joined.push((first, end)),
            }
        }
        self.parts = joined;
        self.samples = self.parts.iter().map(|(first, end)| end - first).sum();
    }

    /// The file: one line for each value. The same statistics give the same bytes.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let head = [
            ("format", serde_json::to_string(&self.format)?),
            ("model", serde_json::to_string(&self.model)?),
            ("engine", serde_json::to_string(&self.engine)?),
            ("samples", self.samples.to_string()),
            ("of", self.of.to_string()),
            ("data", serde_json::to_string(&self.data)?),
            ("parts", serde_json::to_string(&self.parts)?),
            ("notes", serde_json::to_string(&self.notes)?),
        ];
        writeln!(out, "{{")?;
        for (name, value) in head {
            writeln!(out, "\"{name}\":{value},")?;
        }
        write!(out, "\"values\":{{")?;
        for (i, (key, stats)) in self.values.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(out, "{comma}\n{}:", serde_json::to_string(key)?)?;
            serde_json::to_writer(&mut *out, stats)?;
        }
        writeln!(out, "\n}}}}")
    }

    /// Reads what [`Self::write`] writes.
    ///
    /// # Errors
    /// Text that is no statistics, or statistics that contradict themselves.
    pub fn read(text: &[u8]) -> Result<Self, CalibrationError> {
        let read: Self = serde_json::from_slice(text)?;
        if read.format != FORMAT {
            return Err(CalibrationError::Format(read.format));
        }
        let mut head = read.clone_head();
        head.join_parts();
        let proper = |&(first, end): &(usize, usize)| first < end && end <= read.of;
        if head.parts != read.parts
            || head.samples != read.samples
            || !read.parts.iter().all(proper)
            || read.parts.windows(2).any(|w| w[0].1 >= w[1].0)
        {
            return Err(CalibrationError::Parts);
        }
        Ok(read)
    }

    /// Refuses statistics of another model; statistics that never left the process fit.
    ///
    /// # Errors
    /// The two digests.
    pub fn check_model(&self, digest: &str) -> Result<(), CalibrationError> {
        if self.model == digest || self.model.is_empty() {
            return Ok(());
        }
        Err(CalibrationError::Models(
            self.model.clone(),
            digest.to_owned(),
        ))
    }

    /// Refuses statistics of another runtime, whose values differ in their last bits.
    ///
    /// # Errors
    /// The two runtimes.
    pub fn check_engine(&self, engine: &str) -> Result<(), CalibrationError> {
        if self.engine == engine || self.engine.is_empty() || engine.is_empty() {
            return Ok(());
        }
        Err(CalibrationError::Engines(
            self.engine.clone(),
            engine.to_owned(),
        ))
    }

    fn clone_head(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            ..Self::default()
        }
    }
}
