//! Tensors that are kept from one part of a model to the next: in memory up to a limit, then in a temporary file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use onnx_quant_ir::{DataType, Tensor};

use crate::error::Error;

/// A tensor that was put away.
#[derive(Debug)]
enum Kept {
    Here(Tensor),
    File {
        offset: u64,
        bytes: usize,
        dtype: DataType,
        dims: Vec<i64>,
    },
}

/// Tensors by number.
#[derive(Debug, Default)]
pub(super) struct Store {
    kept: Vec<Vec<Kept>>,
    in_memory: usize,
    limit: usize,
    file: Option<Mutex<File>>,
    end: u64,
}

impl Store {
    /// An empty store that keeps up to `limit` bytes in memory.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Whether nothing was put away.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Puts the tensors of the next batch away.
    pub(super) fn push(&mut self, tensors: Vec<Tensor>) -> Result<(), Error> {
        let mut row = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let bytes = tensor.bytes().map_err(|e| Error::usage(e.to_string()))?;
            if self.in_memory + bytes.len() <= self.limit {
                self.in_memory += bytes.len();
                drop(bytes);
                row.push(Kept::Here(tensor));
                continue;
            }
            let file = match &mut self.file {
                Some(f) => f,
                None => self
                    .file
                    .insert(Mutex::new(tempfile::tempfile().map_err(failed)?)),
            };
            let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(self.end)).map_err(failed)?;
            file.write_all(&bytes).map_err(failed)?;
            row.push(Kept::File {
                offset: self.end,
                bytes: bytes.len(),
                dtype: tensor.dtype(),
                dims: tensor.dims().to_vec(),
            });
            self.end += bytes.len() as u64;
        }
        self.kept.push(row);
        Ok(())
    }

    /// The tensors of a batch.
    pub(super) fn get(&self, batch: usize) -> Result<Vec<Tensor>, Error> {
        self.kept[batch].iter().map(|k| self.read(k)).collect()
    }

    fn read(&self, kept: &Kept) -> Result<Tensor, Error> {
        match (kept, &self.file) {
            (Kept::Here(t), _) => Ok(t.clone()),
            (
                Kept::File {
                    offset,
                    bytes,
                    dtype,
                    dims,
                },
                Some(file),
            ) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let mut buffer = vec![0; *bytes];
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                file.read_exact(&mut buffer).map_err(failed)?;
                Ok(Tensor::from_raw(*dtype, dims, buffer))
            }
            (Kept::File { .. }, None) => Err(Error::usage("the temporary file is gone")),
        }
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::usage(format!(
        "activations do not fit into memory and their temporary file fails: {e}; set TMPDIR to a folder with room"
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_does_not_fit_comes_back_from_the_file() {
        let tensor = |x: f32| Tensor::from_f32(&[2, 2], &[x, 1.0, 2.0, 3.0]);
        let mut store = Store::new(20);
        for i in 0..4 {
            let ints = Tensor::from_i64(&[1], &[i]);
            store.push(vec![tensor(i as f32), ints]).unwrap();
        }
        assert!(store.file.is_some() && store.in_memory <= 20);
        for i in 0..4 {
            let back = store.get(i).unwrap();
            assert_eq!(back[0].to_f32().unwrap(), [i as f32, 1.0, 2.0, 3.0]);
            assert_eq!(back[0].dims(), [2, 2]);
            assert_eq!(back[1].to_i64().unwrap(), [i as i64]);
        }
    }
}
