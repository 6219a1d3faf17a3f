//! Digests by which files know the data that they belong to.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Error;

/// The digest of data: of the file, or of all files of a folder with their names, in the order of the names.
///
/// # Errors
/// A file that cannot be read.
pub fn of_data(path: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut files = Vec::new();
    collect(path, &mut files)?;
    files.sort();
    for f in files {
        let name = f.strip_prefix(path).unwrap_or(&f).display().to_string();
        hash.update(name.as_bytes());
        file(&mut hash, &f)?;
    }
    Ok(text(hash))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(|e| unreadable(path, &e))? {
        collect(&entry.map_err(|e| unreadable(path, &e))?.path(), files)?;
    }
    Ok(())
}

fn file(hash: &mut Sha256, path: &Path) -> Result<(), Error> {
    let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(path, &e)),
        }
    }
}

fn unreadable(path: &Path, e: &io::Error) -> Error {
    Error::usage(format!("{} cannot be read: {e}", path.display()))
}

fn text(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_digest_is_of_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        std::fs::write(&path, "abc").unwrap();
        let one = of_data(&path).unwrap();
        assert_eq!(one, of_data(&path).unwrap());
        std::fs::write(&path, "abd").unwrap();
        assert_ne!(one, of_data(&path).unwrap());
        assert!(of_data(folder.path()).unwrap().starts_with("sha256:"));
        assert!(of_data(&folder.path().join("none")).is_err());
    }
}
