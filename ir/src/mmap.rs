//! Files as shared bytes, without copying them.

use std::fs::File;
use std::io;
use std::path::Path;

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
    // SAFETY: the map is read-only and private. Another process that truncates the file while it is mapped can end
    // this one with SIGBUS; no tool that maps files can prevent that.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
