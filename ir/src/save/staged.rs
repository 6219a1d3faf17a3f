//! Files that are complete before they get their names.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use super::SaveError;

/// Longest chain of links that is followed.
const MAX_LINKS: usize = 40;

/// Held by whoever gives names to files that belong together.
static NAMING: Mutex<()> = Mutex::new(());

/// Keeps [`abandon`] from ending the program between two names.
pub(super) fn naming() -> MutexGuard<'static, ()> {
    NAMING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The temporary files that are open.
static OPEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn open_files() -> MutexGuard<'static, Vec<PathBuf>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every temporary file that is not complete: for a program that is interrupted. Files that are being given
/// their names get them first, and none is begun afterwards: the caller must end the program.
pub fn abandon() {
    let named = naming();
    let open = open_files();
    for path in open.iter() {
        let _ = fs::remove_file(path);
    }
    // The locks are kept to the end of the program.
    std::mem::forget((named, open));
}

/// A complete temporary file in the folder of its target; it vanishes unless it is committed.
pub(super) struct Staged {
    file: NamedTempFile,
    path: PathBuf,
    _listed: Listed,
}

/// A temporary file that stands in the list of open ones.
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        open_files().retain(|p| *p != self.0);
    }
}

impl Staged {
    /// Writes the temporary file.
    pub(super) fn write(
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Self, SaveError> {
        let fail = |source| failure(path, source);
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        if path.is_dir() {
            let e = io::Error::new(io::ErrorKind::IsADirectory, "is a directory");
            return Err(fail(e));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".onnx-quant-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let temp = {
            let mut open = open_files();
            let temp = builder.tempfile_in(folder).map_err(fail)?;
            open.push(temp.path().to_owned());
            temp
        };
        let listed = Listed(temp.path().to_owned());
        let mut out = BufWriter::new(temp);
        write(&mut out).map_err(fail)?;
        let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            _listed: listed,
        })
    }

    /// Gives the file its name, in place of what has it.
    pub(super) fn commit(self) -> Result<(), SaveError> {
        match self.file.persist(&self.path) {
            Ok(_) => Ok(()),
            Err(e) => Err(failure(&self.path, e.error)),
        }
    }
}

fn failure(path: &Path, source: io::Error) -> SaveError {
    SaveError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Where a chain of links ends, whether or not there is a file. Devices keep their names: what `/dev/stdout` links to
/// is none that can be opened.
pub(super) fn follow(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    if is_special(path) {
        return at;
    }
    for _ in 0..MAX_LINKS {
        let Ok(to) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("")).join(to);
    }
    at
}

/// Whether the path is a device or a pipe, which is written into and not replaced.
pub(super) fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Writes a file through a temporary one in the same folder and a rename. A link is followed; a device or a pipe is
/// written into.
///
/// # Errors
/// What the file system says, with the path.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), SaveError> {
    let path = follow(path);
    if !is_special(&path) {
        return Staged::write(&path, write)?.commit();
    }
    let mut file = File::options()
        .write(true)
        .open(&path)
        .map_err(|e| failure(&path, e))?;
    write(&mut file)
        .and_then(|()| file.flush())
        .map_err(|e| failure(&path, e))
}
