//! Data that fits a model: its samples, its batches, and what the user should know of it.

use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::DataType;

use super::batches::{Batch, Batches, Plan, Step};
use super::error::DataError;
use super::layout::{Chunk, Layout};
use super::signature::{Input, Signature};
use super::source;

/// Samples for a model, on disk. Cloning is cheap; reading happens in [`DataSet::batches`] only.
#[derive(Debug, Clone)]
pub struct DataSet {
    inner: Arc<Inner>,
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    fed: Vec<Input>,
    runs: Vec<Run>,
    notes: Vec<String>,
}

/// Chunks that follow each other and have the same shape but for the number of samples.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) chunks: Vec<Chunk>,
    pub(super) samples: usize,
}

impl Run {
    pub(super) fn layout(&self) -> Layout {
        self.chunks[0].layout
    }
}

impl DataSet {
    /// Opens a file or folder and checks names, types, shapes and numbers of samples; values are checked when a batch
    /// is read. The forms of data are those of the [module](super).
    ///
    /// # Errors
    /// What does not fit, with the file and the array.
    pub fn open(path: &Path, signature: &Signature) -> Result<Self, DataError> {
        let (found, mut notes) = source::find(path, signature)?;
        let mask: Vec<bool> = match found.first() {
            Some(f) => f.arrays.iter().map(Option::is_some).collect(),
            None => return Err(DataError::EmptyFolder(path.to_owned())),
        };
        let fed: Vec<Input> = select(&signature.inputs, &mask).cloned().collect();
        let mut runs: Vec<Run> = Vec::new();
        for f in found {
            let differs = |(i, (a, m)): (usize, (&Option<_>, &bool))| {
                (a.is_some() != *m).then(|| signature.inputs[i].name.clone())
            };
            let mut presence = f.arrays.iter().zip(&mask).enumerate();
            if let Some(input) = presence.find_map(differs) {
                let path = f.path.to_path_buf();
                return Err(DataError::Uneven { path, input });
            }
            let chunk = Chunk::new(f, &fed.iter().collect::<Vec<_>>())?;
            let samples = chunk.samples;
            match runs.last_mut() {
                Some(run) if chunk.continues(&run.chunks[0]) => {
                    run.samples = run.samples.saturating_add(samples);
                    run.chunks.push(chunk);
                }
                _ => runs.push(Run {
                    chunks: vec![chunk],
                    samples,
                }),
            }
        }
        notes.extend(remarks(path, signature, &mask, &runs));
        let inner = Inner { fed, runs, notes };
        Ok(Self {
            limit: inner
                .runs
                .iter()
                .fold(0, |n, r| n.saturating_add(r.samples)),
            inner: Arc::new(inner),
        })
    }

    /// The same data without the samples after the first `samples`; at least one stays.
    pub fn limit(mut self, samples: usize) -> Self {
        self.limit = self.limit.min(samples.max(1));
        self
    }

    /// The number of samples. A complete feed counts as one.
    pub fn len(&self) -> usize {
        self.limit
    }

    /// Never true: data without samples does not open.
    pub fn is_empty(&self) -> bool {
        self.limit == 0
    }

    /// The arrays hold complete feeds: each sample is one run, and outputs have no axis of samples.
    pub fn holds_feeds(&self) -> bool {
        let feeds = |r: &Run| !matches!(r.layout(), Layout::Samples { .. });
        self.inner.runs.iter().any(feeds)
    }

    /// The inputs that the tensors of a batch are for, in order: the signature's, without optional inputs that the
    /// data leaves out.
    pub fn fed(&self) -> &[Input] {
        &self.inner.fed
    }

    /// Reads the data from the start, at most `max_batch` samples at a time. The iterator owns its files and keeps
    /// one batch in memory (and arrays in Fortran order as a whole); it ends after an error.
    pub fn batches(&self, max_batch: usize) -> Batches {
        Batches::new(self.clone(), self.plan(max_batch))
    }

    /// The number of batches that [`Self::batches`] yields.
    pub fn batch_count(&self, max_batch: usize) -> usize {
        self.plan(max_batch).count()
    }

    /// Name, type and shape of each fed input in the first batch, without reading it.
    pub fn peek_shapes(&self, max_batch: usize) -> Vec<(String, DataType, Vec<usize>)> {
        let first = self.plan(max_batch).next().map(|s| self.step_shapes(&s));
        let named = |(input, dims): (&Input, Vec<usize>)| (input.name.clone(), input.dtype, dims);
        let fed = self.inner.fed.iter();
        fed.zip(first.unwrap_or_default()).map(named).collect()
    }

    /// The different shapes that batches have, one entry a fed input, in order of appearance and without reading
    /// the data.
    pub fn all_shapes(&self, max_batch: usize) -> Vec<Vec<Vec<usize>>> {
        let mut all = Vec::new();
        for step in self.plan(max_batch) {
            let shapes = self.step_shapes(&step);
            if !all.contains(&shapes) {
                all.push(shapes);
            }
        }
        all
    }

    /// Name, type and shape of each tensor of a batch.
    pub fn shapes_of(&self, batch: &Batch) -> Vec<(String, DataType, Vec<usize>)> {
        let size = |&d: &i64| usize::try_from(d).unwrap_or(0);
        let named = |(input, tensor): (&Input, &onnx_quant_ir::Tensor)| {
            let dims = tensor.dims().iter().map(size).collect();
            (input.name.clone(), input.dtype, dims)
        };
        self.inner
            .fed
            .iter()
            .zip(&batch.tensors)
            .map(named)
            .collect()
    }

    /// What the user should know about how the data is used, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.inner.notes.clone();
        for step in self.plan(usize::MAX).filter(|s| s.padded > 0) {
            notes.push(format!(
                "the model takes {} samples at a time: the last batch repeats its last sample {} times to be full, and those outputs are dropped",
                step.samples + step.padded,
                step.padded
            ));
        }
        notes
    }

    fn step_shapes(&self, step: &Step) -> Vec<Vec<usize>> {
        let chunk = &self.inner.runs[step.run].chunks[0];
        let rows = step.samples + step.padded;
        let inputs = 0..self.inner.fed.len();
        inputs.map(|i| chunk.batch_dims(i, rows)).collect()
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.inner.runs
    }

    fn plan(&self, max_batch: usize) -> Plan {
        let runs = self.inner.runs.iter().map(|r| (r.layout(), r.samples));
        Plan::new(runs.collect(), max_batch, self.limit)
    }
}

fn select<'a, T>(items: &'a [T], mask: &'a [bool]) -> impl Iterator<Item = &'a T> {
    items.iter().zip(mask).filter(|(_, m)| **m).map(|(i, _)| i)
}

fn remarks(path: &Path, signature: &Signature, mask: &[bool], runs: &[Run]) -> Vec<String> {
    let mut notes = Vec::new();
    let pairs = || signature.inputs.iter().zip(mask);
    // Old exporters list every weight as an input: defaults are worth a word only where the data feeds others.
    if pairs().any(|(input, given)| input.optional && *given) {
        for (input, _) in pairs().filter(|(_, given)| !**given) {
            notes.push(format!(
                "the input `{}` is not in the data and keeps the model's default",
                input.name
            ));
        }
    }
    if runs.iter().any(|r| r.layout() == Layout::Feeds) {
        notes.push(format!(
            "{}: the arrays have one axis more than the inputs: each index of it is fed as one complete run of the model",
            path.display()
        ));
    }
    let arrays = runs.iter().flat_map(|r| &r.chunks).flat_map(|c| &c.arrays);
    for array in arrays.filter(|a| a.is_fortran()) {
        notes.push(format!(
            "{} is in Fortran order and is read into memory as a whole; np.ascontiguousarray before saving avoids that",
            array.origin
        ));
    }
    notes
}
