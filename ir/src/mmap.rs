//! Files as shared bytes, without copying them.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// Maps a file. An empty file gives empty bytes.
pub(crate) fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "is a directory",
        ));
    }
    if !meta.is_file() || meta.len() == 0 {
        return std::fs::read(path).map(Bytes::from);
    }
    map_open(&file)
}

/// Maps a file that is open and not empty.
#[expect(
    unsafe_code,
    reason = "mapping a file is unsafe by its nature; this is the only place that does it"
)]
pub(crate) fn map_open(file: &File) -> io::Result<Bytes> {
    // SAFETY: the map is read-only. Another process that truncates the file while it is mapped can end this one with
    // SIGBUS; no tool that maps files can prevent that.
    let map = Arc::new(unsafe { memmap2::Mmap::map(file)? });
    let mut known = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|m| m.strong_count() > 0);
    known.push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Mapped(map)))
}

/// Every map that is in use.
static MAPS: Mutex<Vec<Weak<memmap2::Mmap>>> = Mutex::new(Vec::new());

struct Mapped(Arc<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Gives the memory back that pages of mapped files take: what is read again comes from the file again.
pub(crate) fn release() {
    let known = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    for map in known.iter().filter_map(Weak::upgrade) {
        forget(&map);
    }
}

#[cfg(unix)]
#[expect(
    unsafe_code,
    reason = "advice that drops pages is unsafe for maps in general"
)]
fn forget(map: &memmap2::Mmap) {
    // SAFETY: the map is read-only and of a file, so that a dropped page holds the same bytes when it is read again.
    let done = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    // It is advice: where the system does not take it the pages stay.
    drop(done);
}

#[cfg(not(unix))]
fn forget(_map: &memmap2::Mmap) {}
