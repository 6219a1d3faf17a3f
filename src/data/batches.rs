//! The pass over the data: which samples make a batch, and reading them.

use std::sync::Arc;

use onnx_quant_ir::Tensor;

use super::array::{Array, Stream};
use super::dataset::DataSet;
use super::error::DataError;
use super::layout::{Chunk, Layout};

/// What one run of the model is fed with.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Its number, counted from 0.
    pub index: usize,
    /// The number of its first sample in the data.
    pub first_sample: usize,
    /// Valid samples: the first this many indices of axis 0, or 1 for a complete feed.
    pub samples: usize,
    /// Indices of axis 0 after the valid ones, which repeat the last of them to fill a batch of fixed size.
    pub padded: usize,
    /// One for each input that the data feeds ([`DataSet::fed`]).
    pub tensors: Vec<Tensor>,
}

/// A batch before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) run: usize,
    pub(super) first_sample: usize,
    pub(super) samples: usize,
    pub(super) padded: usize,
}

/// The batches of a pass, known without reading.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    runs: Vec<(Layout, usize)>,
    max_batch: usize,
    limit: usize,
    run: usize,
    /// Samples of the current run that are planned.
    used: usize,
    first_sample: usize,
}

impl Plan {
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

impl Iterator for Plan {
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

/// An iterator over the batches of a pass; see [`DataSet::batches`].
pub struct Batches {
    data: DataSet,
    plan: Plan,
    index: usize,
    open: Option<Open>,
    failed: bool,
}

/// A chunk while it is read.
struct Open {
    run: usize,
    chunk: usize,
    /// Samples read.
    at: usize,
    streams: Vec<Stream>,
    /// The bytes of the shared arrays; empty for the others.
    shared: Vec<Vec<u8>>,
}

impl Batches {
    pub(super) fn new(data: DataSet, plan: Plan) -> Self {
        Self {
            data,
            plan,
            index: 0,
            open: None,
            failed: false,
        }
    }

    fn read(&mut self, step: Step) -> Result<Batch, DataError> {
        let data = self.data.clone();
        let run = &data.runs()[step.run];
        let rows = step.samples + step.padded;
        let mut buffers: Vec<Vec<u8>> = Vec::new();
        for i in 0..data.fed().len() {
            buffers.push(reserve(&run.chunks[0], i, rows)?);
        }
        let mut missing = step.samples;
        while missing > 0 {
            let open = self.open_chunk(step.run)?;
            let chunk = &run.chunks[open.chunk];
            let take = missing.min(chunk.samples - open.at);
            open.read(chunk, take, &mut buffers)?;
            missing -= take;
        }
        let mut tensors = Vec::with_capacity(buffers.len());
        for (i, mut bytes) in buffers.into_iter().enumerate() {
            let chunk = &run.chunks[0];
            if step.padded > 0 && !chunk.shared[i] {
                let last = bytes.len() - chunk.arrays[i].sample_size();
                for _ in 0..step.padded {
                    bytes.extend_from_within(last..last + chunk.arrays[i].sample_size());
                }
            }
            let dims = chunk.batch_dims(i, rows);
            let dims: Vec<i64> = dims.into_iter().map(|d| d as i64).collect();
            tensors.push(Tensor::from_raw(chunk.arrays[i].dtype, &dims, bytes));
        }
        let index = self.index;
        self.index += 1;
        Ok(Batch {
            index,
            first_sample: step.first_sample,
            samples: step.samples,
            padded: step.padded,
            tensors,
        })
    }

    /// The chunk of a run that has samples left.
    fn open_chunk(&mut self, run: usize) -> Result<&mut Open, DataError> {
        let chunks = &self.data.runs()[run].chunks;
        let (open, chunk) = match self.open.take() {
            Some(o) if o.run == run && o.at < chunks[o.chunk].samples => (Some(o), 0),
            Some(o) if o.run == run => (None, o.chunk + 1),
            _ => (None, 0),
        };
        let open = match open {
            Some(open) => open,
            None => Open::new(run, chunk, &chunks[chunk])?,
        };
        Ok(self.open.insert(open))
    }
}

impl Open {
    fn new(run: usize, index: usize, chunk: &Chunk) -> Result<Self, DataError> {
        let (mut streams, mut shared) = (Vec::new(), Vec::new());
        for (array, &is_shared) in chunk.arrays.iter().zip(&chunk.shared) {
            let mut stream = array.open()?;
            let mut bytes = Vec::new();
            if is_shared {
                array.read(&mut stream, array.size(), 0, &mut bytes)?;
            }
            streams.push(stream);
            shared.push(bytes);
        }
        Ok(Self {
            run,
            chunk: index,
            at: 0,
            streams,
            shared,
        })
    }

    /// Appends the next `samples` samples to the buffers.
    fn read(
        &mut self,
        chunk: &Chunk,
        samples: usize,
        buffers: &mut [Vec<u8>],
    ) -> Result<(), DataError> {
        for (i, (array, buffer)) in chunk.arrays.iter().zip(buffers).enumerate() {
            if chunk.shared[i] {
                buffer.clone_from(&self.shared[i]);
                continue;
            }
            let bytes = match chunk.layout {
                Layout::Whole => array.size(),
                _ => samples * array.sample_size(),
            };
            array.read(&mut self.streams[i], bytes, self.at, buffer)?;
        }
        self.at += samples;
        Ok(())
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.plan.next()?;
        let batch = self.read(step);
        self.failed = batch.is_err();
        Some(batch)
    }
}

impl std::iter::FusedIterator for Batches {}

/// A buffer for one input of a batch.
fn reserve(chunk: &Chunk, input: usize, rows: usize) -> Result<Vec<u8>, DataError> {
    let array: &Array = &chunk.arrays[input];
    let bytes = match chunk.layout {
        Layout::Samples { .. } if !chunk.shared[input] => rows.saturating_mul(array.sample_size()),
        Layout::Feeds if !chunk.shared[input] => array.sample_size(),
        _ => array.size(),
    };
    let mut buffer = Vec::new();
    match buffer.try_reserve_exact(bytes) {
        Ok(()) => Ok(buffer),
        Err(_) => Err(DataError::TooLarge {
            origin: array.origin.clone(),
            bytes,
        }),
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Batches>();
    is_send::<Arc<DataSet>>();
};
