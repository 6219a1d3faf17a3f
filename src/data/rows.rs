//! Arrays that are read in another order than the one they are stored in.
//!
//! What is stored row by row is read where it lies; anything else (compressed, in Fortran order, inside a protobuf) is
//! first unpacked into a temporary file, so that memory does not grow with the data.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use super::array::Array;
use super::dataset::Run;
use super::error::DataError;
use super::items::{ItemLayout, Items};
use super::layout::{Chunk, Layout};

const PIECE: usize = 1 << 20;

/// All arrays of a data set, sample by sample.
#[derive(Debug)]
pub(super) struct ArrayItems {
    chunks: Vec<OpenChunk>,
    samples: usize,
}

#[derive(Debug)]
struct OpenChunk {
    chunk: Chunk,
    /// The number of the first sample.
    first: usize,
    /// Chunks whose samples may share a batch have the same number.
    group: usize,
    rows: Vec<Rows>,
}

/// Random access to one array.
#[derive(Debug)]
struct Rows {
    file: Mutex<File>,
    start: u64,
    /// The bytes are in the array's own byte order.
    raw: bool,
}

impl ArrayItems {
    /// Opens every array; also says what a sample is.
    pub(super) fn open(runs: &[Run]) -> Result<(Self, ItemLayout), DataError> {
        let mut chunks = Vec::new();
        let mut first = 0;
        let mut layout = None;
        for (group, run) in runs.iter().enumerate() {
            for chunk in &run.chunks {
                let this = match chunk.layout {
                    Layout::Samples { piece } => ItemLayout::Samples { piece },
                    Layout::Feeds | Layout::Whole => ItemLayout::Feeds,
                };
                if *layout.get_or_insert(this) != this {
                    return Err(DataError::Spec(
                        "files with complete feeds and files with samples cannot be put into another order together"
                            .to_owned(),
                    ));
                }
                let rows = chunk
                    .arrays
                    .iter()
                    .map(Rows::open)
                    .collect::<Result<_, _>>()?;
                chunks.push(OpenChunk {
                    chunk: chunk.clone(),
                    first,
                    group,
                    rows,
                });
                first += chunk.samples;
            }
        }
        let layout = layout.unwrap_or(ItemLayout::Feeds);
        let samples = first;
        Ok((Self { chunks, samples }, layout))
    }

    fn at(&self, index: usize) -> &OpenChunk {
        let after = self.chunks.partition_point(|c| c.first <= index);
        &self.chunks[after.saturating_sub(1)]
    }
}

impl Items for ArrayItems {
    fn len(&self) -> usize {
        self.samples
    }

    fn dims(&self, index: usize) -> Vec<Vec<usize>> {
        let chunk = &self.at(index).chunk;
        let inner = |(array, &shared): (&Array, &bool)| match chunk.layout {
            Layout::Whole => array.dims.clone(),
            _ if shared => array.dims.clone(),
            _ => array.dims[1..].to_vec(),
        };
        chunk.arrays.iter().zip(&chunk.shared).map(inner).collect()
    }

    fn read(&self, index: usize, out: &mut [Vec<u8>]) -> Result<(), DataError> {
        let open = self.at(index);
        let row = index - open.first;
        for (i, (array, out)) in open.chunk.arrays.iter().zip(out).enumerate() {
            let (row, bytes) = match open.chunk.layout {
                Layout::Whole => (0, array.size()),
                _ if open.chunk.shared[i] => (0, array.size()),
                _ => (row, array.sample_size()),
            };
            open.rows[i].read(array, row, bytes, out)?;
        }
        Ok(())
    }

    fn group(&self, index: usize) -> usize {
        self.at(index).group
    }

    fn shared(&self, index: usize) -> &[bool] {
        &self.at(index).chunk.shared
    }
}

impl Rows {
    fn open(array: &Array) -> Result<Self, DataError> {
        let io = |e| DataError::io(&array.origin.path, e);
        if let Some((path, start)) = array.lies_open() {
            let file = Mutex::new(File::open(path).map_err(io)?);
            return Ok(Self {
                file,
                start,
                raw: true,
            });
        }
        let mut file = tempfile::tempfile().map_err(io)?;
        let mut stream = array.open()?;
        let row = array.sample_size().max(1);
        let rows_at_once = (PIECE / row).max(1);
        let (mut left, mut sample) = (array.size(), 0);
        let mut piece = Vec::new();
        while left > 0 {
            piece.clear();
            let bytes = left.min(rows_at_once * row);
            array.read(&mut stream, bytes, sample, &mut piece)?;
            file.write_all(&piece).map_err(io)?;
            left -= bytes;
            sample += rows_at_once;
        }
        Ok(Self {
            file: Mutex::new(file),
            start: 0,
            raw: false,
        })
    }

    fn read(
        &self,
        array: &Array,
        row: usize,
        bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let at = self.start + row as u64 * array.sample_size() as u64;
        let from = out.len();
        let mut read = || -> io::Result<usize> {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(at))?;
            (&mut *file).take(bytes as u64).read_to_end(out)
        };
        let got = read().map_err(|e| DataError::io(&array.origin.path, e))?;
        if got != bytes {
            return Err(array.damaged("it became shorter while it was used"));
        }
        if self.raw {
            array.finish(&mut out[from..], row)?;
        }
        Ok(())
    }
}
