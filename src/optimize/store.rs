//! What is kept between two parts of a model: in memory while its budget lasts, then in a temporary file, which is mapped.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use onnx_quant_ir::{DataType, Tensor, spill};

use crate::error::Error;

/// Bytes of a file that are read until its pages are given back.
const PAGES: usize = 16 << 20;
/// Where arrays in a file begin: at multiples of this many bytes.
const ALIGNMENT: usize = 8;

/// Bytes that may still be kept in memory, for all that share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// So many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes a part; `None` if less is left.
    fn share(&self, bytes: usize) -> Option<Share> {
        let less = |left: usize| left.checked_sub(bytes);
        let order = (Ordering::AcqRel, Ordering::Acquire);
        self.0.fetch_update(order.0, order.1, less).ok()?;
        Some(Share {
            budget: self.clone(),
            bytes,
        })
    }
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
struct Share {
    budget: Budget,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// Data in memory with its part of the budget.
struct Held<T>(
    T,
    #[expect(dead_code, reason = "given back when the data goes")] Share,
);

impl AsRef<[u8]> for Held<Bytes> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Held<Vec<f32>> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Where an array was put.
#[derive(Debug)]
pub(super) enum Put {
    Here(Bytes),
    File(Range<usize>),
}

/// Takes arrays, one after the other.
#[derive(Debug)]
pub(super) struct Scratch {
    budget: Budget,
    file: Option<BufWriter<File>>,
    end: usize,
}

impl Scratch {
    /// An empty one; what is more than the budget goes into a file.
    pub(super) fn new(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            file: None,
            end: 0,
        }
    }

    /// Puts bytes away.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub(super) fn bytes(&mut self, bytes: Bytes) -> Result<Put, Error> {
        match self.budget.share(bytes.len()) {
            Some(share) => Ok(Put::Here(Bytes::from_owner(Held(bytes, share)))),
            None => self.write(std::iter::once(&bytes[..])).map_err(failed),
        }
    }

    /// Puts `count` numbers away, which come in parts.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub(super) fn floats<'a>(
        &mut self,
        count: usize,
        parts: impl Iterator<Item = &'a [f32]>,
    ) -> Result<Put, Error> {
        let Some(share) = self.budget.share(4 * count) else {
            return self.write(parts.map(bytemuck::cast_slice)).map_err(failed);
        };
        let mut all = Vec::with_capacity(count);
        parts.for_each(|p| all.extend_from_slice(p));
        Ok(Put::Here(Bytes::from_owner(Held(all, share))))
    }

    fn write<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> std::io::Result<Put> {
        let file = match &mut self.file {
            Some(f) => f,
            None => self.file.insert(BufWriter::new(tempfile::tempfile()?)),
        };
        let gap = self.end.next_multiple_of(ALIGNMENT) - self.end;
        file.write_all(&[0; ALIGNMENT][..gap])?;
        let start = self.end + gap;
        self.end = start;
        for part in parts {
            file.write_all(part)?;
            self.end += part.len();
        }
        Ok(Put::File(start..self.end))
    }

    /// What was put away can be read from now on.
    ///
    /// # Errors
    /// A temporary file that cannot be written or mapped.
    pub(super) fn seal(self) -> Result<Sealed, Error> {
        let Some(file) = self.file.filter(|_| self.end > 0) else {
            return Ok(Sealed(None));
        };
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        Ok(Sealed(Some(Mapped {
            bytes: spill::map(&file).map_err(failed)?,
            read: Arc::default(),
        })))
    }
}

/// The file of what was put away, if there is one.
#[derive(Debug, Default)]
pub(super) struct Sealed(Option<Mapped>);

/// A mapped file. Pages that were read would count as memory of the process until it goes: they are given back after every
/// [`PAGES`] bytes, and read again where they are used again.
#[derive(Debug, Clone)]
struct Mapped {
    bytes: Bytes,
    read: Arc<AtomicUsize>,
}

impl Mapped {
    fn count(&self, bytes: usize) {
        if self.read.fetch_add(bytes, Ordering::AcqRel) + bytes >= PAGES {
            self.read.store(0, Ordering::Release);
            spill::release();
        }
    }
}

impl Sealed {
    /// The bytes of an array, which are read soon.
    pub(super) fn bytes(&self, put: &Put) -> Bytes {
        if let (Some(file), Put::File(at)) = (&self.0, put) {
            file.count(at.len());
        }
        self.at(put)
    }

    fn at(&self, put: &Put) -> Bytes {
        match (put, &self.0) {
            (Put::Here(bytes), _) => bytes.clone(),
            (Put::File(at), Some(file)) => file.bytes.slice(at.clone()),
            (Put::File(_), None) => Bytes::new(),
        }
    }

    /// The numbers of an array that was put away as numbers.
    pub(super) fn floats(&self, put: &Put) -> Floats {
        Floats {
            data: self.at(put),
            file: self.0.clone().filter(|_| matches!(put, Put::File(_))),
        }
    }

    /// Gives the memory back that pages of the file take.
    pub(super) fn release(&self) {
        if self.0.is_some() {
            spill::release();
        }
    }
}

/// Numbers in memory or in a mapped file.
#[derive(Debug, Clone, Default)]
pub(super) struct Floats {
    data: Bytes,
    file: Option<Mapped>,
}

impl Floats {
    /// Some of the numbers.
    pub(super) fn part(&self, at: Range<usize>) -> &[f32] {
        if let Some(file) = &self.file {
            file.count(4 * at.len());
        }
        &self[at]
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.data)
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::usage(format!(
        "activations do not fit into --memory and their temporary file fails: {e}; set TMPDIR to a folder with room"
    ))
}

/// A tensor that was put away.
#[derive(Debug)]
struct Kept {
    dtype: DataType,
    dims: Vec<i64>,
    data: Put,
}

/// Takes the tensors of one batch after the other.
#[derive(Debug)]
pub(super) struct Filling {
    kept: Vec<Vec<Kept>>,
    scratch: Scratch,
}

impl Filling {
    /// An empty one.
    pub(super) fn new(budget: &Budget) -> Self {
        Self {
            kept: Vec::new(),
            scratch: Scratch::new(budget),
        }
    }

    /// Puts the tensors of the next batch away.
    ///
    /// # Errors
    /// A tensor without data, or a temporary file that cannot be written.
    pub(super) fn push(&mut self, tensors: &[Tensor]) -> Result<(), Error> {
        let put = |t: &Tensor| {
            let bytes = t.shared_bytes().map_err(|e| Error::usage(e.to_string()))?;
            Ok(Kept {
                dtype: t.dtype(),
                dims: t.dims().to_vec(),
                data: self.scratch.bytes(bytes)?,
            })
        };
        let row: Result<_, Error> = tensors.iter().map(put).collect();
        self.kept.push(row?);
        Ok(())
    }

    /// All batches were put away.
    ///
    /// # Errors
    /// A temporary file that cannot be written or mapped.
    pub(super) fn seal(self) -> Result<Store, Error> {
        Ok(Store {
            kept: self.kept,
            data: self.scratch.seal()?,
        })
    }
}

/// Tensors by the number of their batch.
#[derive(Debug, Default)]
pub(super) struct Store {
    kept: Vec<Vec<Kept>>,
    data: Sealed,
}

impl Store {
    /// Whether nothing was put away.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The tensors of a batch.
    pub(super) fn get(&self, batch: usize) -> Vec<Tensor> {
        let read = |k: &Kept| Tensor::from_raw(k.dtype, &k.dims, self.data.bytes(&k.data));
        self.kept[batch].iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn left(budget: &Budget) -> usize {
        budget.0.load(Ordering::Acquire)
    }

    #[test]
    fn what_does_not_fit_comes_back_from_the_file() {
        let tensor = |x: f32| Tensor::from_f32(&[2, 2], &[x, 1.0, 2.0, 3.0]);
        let budget = Budget::new(25);
        let mut filling = Filling::new(&budget);
        for i in 0..4 {
            let truth = Tensor::from_raw(DataType::Bool, &[1], vec![i as u8 % 2]);
            filling.push(&[truth, tensor(i as f32)]).unwrap();
        }
        let store = filling.seal().unwrap();
        assert!(store.data.0.is_some() && left(&budget) == 25 - 16 - 4);
        for i in 0..4 {
            let back = store.get(i);
            assert_eq!(back[1].to_f32().unwrap(), [i as f32, 1.0, 2.0, 3.0]);
            assert_eq!(back[1].dims(), [2, 2]);
            assert_eq!(back[0].bytes().unwrap()[..], [i as u8 % 2]);
        }
        drop(store);
        assert_eq!(left(&budget), 25);
    }

    #[test]
    fn numbers_are_the_same_in_memory_and_in_the_file() {
        let rows: [&[f32]; 3] = [&[1.0, 2.0], &[3.0], &[]];
        for bytes in [0, 100] {
            let budget = Budget::new(bytes);
            let mut scratch = Scratch::new(&budget);
            let odd = scratch.bytes(Bytes::from_static(b"abc")).unwrap();
            let put = scratch.floats(3, rows.into_iter()).unwrap();
            let empty = scratch.floats(0, std::iter::empty()).unwrap();
            let sealed = scratch.seal().unwrap();
            assert_eq!(sealed.0.is_some(), bytes == 0);
            assert_eq!(sealed.floats(&put)[..], [1.0, 2.0, 3.0]);
            assert_eq!(sealed.bytes(&odd)[..], *b"abc");
            assert!(sealed.floats(&empty).is_empty());
        }
    }
}
