//! Bytes of an array at rest: a whole `.npy` file, or an entry of an `.npz` archive, stored or deflated.
//!
//! A [`Place`] is found once; each pass over the data opens it again with its own file handle, so that the arrays of
//! an archive are read side by side.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use flate2::bufread::DeflateDecoder;
use zip::CompressionMethod;

use super::error::{DataError, Origin};

const BUFFER: usize = 128 * 1024;

/// Where the bytes of an array lie.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: Arc<Path>,
    start: u64,
    stored_size: u64,
    deflated: bool,
    crc32: Option<u32>,
    /// Bytes that a reader yields.
    pub(super) size: u64,
}

impl Place {
    /// A whole file.
    pub(super) fn file(path: &Arc<Path>) -> Result<Self, DataError> {
        let size = std::fs::metadata(path)
            .map_err(|e| DataError::io(path, e))?
            .len();
        Ok(Self {
            path: Arc::clone(path),
            start: 0,
            stored_size: size,
            deflated: false,
            crc32: None,
            size,
        })
    }

    /// A part of a file.
    pub(super) fn part(path: &Arc<Path>, start: u64, size: u64) -> Self {
        Self {
            path: Arc::clone(path),
            start,
            stored_size: size,
            deflated: false,
            crc32: None,
            size,
        }
    }

    /// File and offset of the byte number `skip`, where the bytes lie there as they are.
    pub(super) fn lies_open(&self, skip: u64) -> Option<(&Path, u64)> {
        (!self.deflated).then(|| (&*self.path, self.start + skip))
    }

    /// A reader of the bytes from their beginning, which fails at the end where the checksum is wrong.
    pub(super) fn open(&self) -> io::Result<Checked> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.start))?;
        let raw = BufReader::with_capacity(BUFFER, file).take(self.stored_size);
        let source: Box<dyn Read + Send> = if self.deflated {
            Box::new(DeflateDecoder::new(raw))
        } else {
            Box::new(raw)
        };
        Ok(Checked {
            source,
            left: self.size,
            expected: self.crc32,
            hasher: crc32fast::Hasher::new(),
        })
    }
}

/// A reader that counts and checks what it reads.
pub(super) struct Checked {
    source: Box<dyn Read + Send>,
    left: u64,
    expected: Option<u32>,
    hasher: crc32fast::Hasher,
}

impl Read for Checked {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = out
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.source.read(&mut out[..want])?;
        if got == 0 {
            let reason = format!("it ends {} bytes early", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        self.left -= got as u64;
        if let Some(expected) = self.expected {
            self.hasher.update(&out[..got]);
            if self.left == 0 && self.hasher.clone().finalize() != expected {
                let reason = "its checksum does not fit its bytes";
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
        }
        Ok(got)
    }
}

/// The arrays of an `.npz` archive, in file order: the entries whose names end in `.npy`, as numpy counts them.
pub(super) fn entries(path: &Arc<Path>) -> Result<Vec<(String, Place)>, DataError> {
    let origin = |array: Option<String>| Origin {
        path: Arc::clone(path),
        array,
    };
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|e| DataError::Damaged {
            origin: origin(None),
            reason: format!("it does not open as an .npz archive ({e})"),
        })?;
    let mut found = Vec::new();
    for index in 0..archive.len() {
        let damaged = |name: Option<&str>, reason: String| DataError::Damaged {
            origin: origin(name.map(str::to_owned)),
            reason,
        };
        let entry = archive
            .by_index_raw(index)
            .map_err(|e| damaged(None, e.to_string()))?;
        let file_name = entry.name().map_err(|e| damaged(None, e.to_string()))?;
        let Some(name) = npyz::npz::array_name_from_file_name(&file_name).map(str::to_owned) else {
            continue;
        };
        let deflated = match entry.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => {
                let reason = format!("its compression method {other} is none of numpy's");
                return Err(damaged(Some(&name), reason));
            }
        };
        if entry.encrypted() {
            return Err(damaged(Some(&name), "it is encrypted".to_owned()));
        }
        let Some(start) = entry.data_start() else {
            return Err(damaged(Some(&name), "its data is not found".to_owned()));
        };
        let place = Place {
            path: Arc::clone(path),
            start,
            stored_size: entry.compressed_size(),
            deflated,
            crc32: Some(entry.crc32()),
            size: entry.size(),
        };
        found.push((name, place));
    }
    Ok(found)
}
