//! Large tensors that wait for the end of a run: in temporary files, which are mapped, so that they take no memory of
//! the process until they are read.

use std::fs::File;
use std::io::{self, Write};

use bytes::Bytes;

use crate::mmap;
use crate::tensor::Tensor;

/// Smaller tensors stay in memory: a file each is not worth it.
const LEAST: usize = 1 << 20;

/// Puts the data of a large tensor into a temporary file, which goes when nothing uses the tensor any more.
///
/// # Errors
/// What the file system says.
pub fn spill(tensor: &Tensor) -> io::Result<Tensor> {
    let bytes = tensor.shared_bytes().map_err(io::Error::other)?;
    if bytes.len() < LEAST {
        return Ok(tensor.clone());
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    let mapped = map(&file)?;
    Ok(Tensor::from_raw(tensor.dtype(), tensor.dims(), mapped))
}

/// Maps a temporary file that is open and not empty; it goes when nothing uses the map any more.
///
/// # Errors
/// What the system says.
pub fn map(file: &File) -> io::Result<Bytes> {
    mmap::map_open(file)
}

/// Gives the memory back that pages of mapped files take, those of models among them. Nothing that was read changes; what
/// is read again comes from the file again.
pub fn release() {
    mmap::release();
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_tensor_in_a_file_is_the_same_tensor() {
        let data: Vec<f32> = (0..300_000).map(|i| i as f32).collect();
        for len in [3, 300_000] {
            let tensor = Tensor::from_f32(&[len as i64], &data[..len]);
            let away = spill(&tensor).unwrap();
            release();
            assert_eq!(away.dims(), tensor.dims());
            assert_eq!(away.bytes().unwrap(), tensor.bytes().unwrap());
        }
    }
}
