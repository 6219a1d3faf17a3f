//! The pass over the data: a thread reads the batches of the plan ahead of those who use them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use onnx_quant_ir::Tensor;

use super::array::{Array, Stream};
use super::dataset::{DataSet, Run, Store};
use super::error::DataError;
use super::items::{ItemLayout, Items, read_all};
use super::layout::{Chunk, Layout};
use super::plan::{Plan, Step};

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

/// An iterator over the batches of a pass; see [`DataSet::batches`].
///
/// A thread reads ahead. It ends when the iterator is dropped.
pub struct Batches {
    read: Receiver<Result<Batch, DataError>>,
    thread: Option<JoinHandle<()>>,
    failed: bool,
}

impl Batches {
    pub(super) fn new(data: DataSet, plan: Plan) -> Self {
        let ahead = rayon::current_num_threads().max(2);
        let (send, read) = sync_channel(ahead);
        let reader = Reader::new(data, plan);
        let report = send.clone();
        let builder = std::thread::Builder::new().name("data".to_owned());
        let work = move || {
            for batch in reader {
                let failed = batch.is_err();
                if send.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let thread = match builder.spawn(work) {
            Ok(thread) => Some(thread),
            Err(e) => {
                let reason = format!("the thread that reads the data cannot be started: {e}");
                // The channel has room, and its other end is still here.
                let _ = report.send(Err(DataError::Spec(reason)));
                None
            }
        };
        Self {
            read,
            thread,
            failed: false,
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.read.recv().ok();
        self.failed = !matches!(batch, Some(Ok(_)));
        if batch.is_none()
            && let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
        {
            std::panic::resume_unwind(panic);
        }
        batch
    }
}

impl std::iter::FusedIterator for Batches {}

/// Reads one batch after the other.
struct Reader {
    data: DataSet,
    plan: Plan,
    index: usize,
    open: Option<Open>,
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

impl Reader {
    fn new(data: DataSet, plan: Plan) -> Self {
        Self {
            data,
            plan,
            index: 0,
            open: None,
        }
    }

    fn read(&mut self, step: Step) -> Result<Batch, DataError> {
        let data = self.data.clone();
        let (given, dims, rows) = match data.store() {
            Store::Arrays(runs) => self.read_run(&runs[step.run], &step)?,
            Store::Items(items, layout) => read_items(&data, &**items, *layout, &step)?,
        };
        let shapes = data.fed_shapes(dims, rows)?;
        let mut given = given.into_iter();
        let mut tensors = Vec::with_capacity(shapes.len());
        for ((input, fill), dims) in data.fed().iter().zip(data.fills()).zip(&shapes) {
            tensors.push(match fill {
                Some(fill) => fill.tensor(input, dims)?,
                None => {
                    let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
                    Tensor::from_raw(input.dtype, &dims, given.next().unwrap_or_default())
                }
            });
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

    fn read_run(&mut self, run: &Run, step: &Step) -> Result<Given, DataError> {
        let chunk = &run.chunks[0];
        let rows = step.samples + step.padded;
        let inputs = 0..chunk.arrays.len();
        let buffers = inputs.clone().map(|i| reserve(chunk, i, rows));
        let mut buffers: Vec<Vec<u8>> = buffers.collect::<Result<_, _>>()?;
        let mut missing = step.samples;
        while missing > 0 {
            let open = self.open_chunk(step.run, &run.chunks)?;
            let chunk = &run.chunks[open.chunk];
            let take = missing.min(chunk.samples - open.at);
            open.read(chunk, take, &mut buffers)?;
            missing -= take;
        }
        for (i, bytes) in buffers.iter_mut().enumerate() {
            if step.padded > 0 && !chunk.shared[i] {
                repeat_last(bytes, chunk.arrays[i].sample_size(), step.padded);
            }
        }
        let dims = inputs.map(|i| chunk.batch_dims(i, rows)).collect();
        let counted = matches!(chunk.layout, Layout::Samples { .. });
        Ok((buffers, dims, counted.then_some(rows)))
    }

    /// The chunk of a run that has samples left.
    fn open_chunk(&mut self, run: usize, chunks: &[Chunk]) -> Result<&mut Open, DataError> {
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

impl Iterator for Reader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.plan.next()?;
        Some(self.read(step))
    }
}

/// Bytes and shape of each given input, and the size of the sample axis where there is one.
type Given = (Vec<Vec<u8>>, Vec<Vec<usize>>, Option<usize>);

fn read_items(
    data: &DataSet,
    items: &dyn Items,
    layout: ItemLayout,
    step: &Step,
) -> Result<Given, DataError> {
    let places = step.first_sample..step.first_sample + step.samples;
    let chosen: Vec<usize> = places.map(|p| data.source_index(p)).collect();
    let first = chosen[0];
    let mut dims = items.dims(first);
    let shared = items.shared(first);
    let counted = matches!(layout, ItemLayout::Samples { .. });
    let rows = step.samples + step.padded;
    let mut buffers = vec![Vec::new(); dims.len()];
    for sample in read_all(items, &chosen, dims.len())? {
        for (i, (buffer, bytes)) in buffers.iter_mut().zip(sample).enumerate() {
            if buffer.is_empty() || !shared.get(i).copied().unwrap_or(false) {
                buffer.extend(bytes);
            }
        }
    }
    for (i, (buffer, dims)) in buffers.iter_mut().zip(&mut dims).enumerate() {
        if counted && !shared.get(i).copied().unwrap_or(false) {
            let sample = buffer.len() / step.samples;
            repeat_last(buffer, sample, step.padded);
            dims.insert(0, rows);
        }
    }
    Ok((buffers, dims, counted.then_some(rows)))
}

fn repeat_last(bytes: &mut Vec<u8>, sample: usize, times: usize) {
    let last = bytes.len() - sample;
    for _ in 0..times {
        bytes.extend_from_within(last..last + sample);
    }
}

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
