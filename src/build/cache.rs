//! The digest cache of build scripts: what was made from the same inputs is not made again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use onnx_quant_ir::save;
use serde::{Deserialize, Serialize};

use super::Emitted;
use crate::error::Error;
use crate::metadata::{digest, file_digest};

/// The digest of settings, of this program's version, and of the contents of all inputs.
///
/// A file of the size and time that it had for the last seal is not read again.
pub(super) fn key(settings: &str, inputs: &[PathBuf], emitted: &Emitted) -> Result<String, Error> {
    let mut text = format!("onnx-quant {}\n{settings}\n", env!("CARGO_PKG_VERSION"));
    let known = read(emitted).map(|s| s.inputs).unwrap_or_default();
    for input in inputs {
        for file in files(input)? {
            let same = known
                .get(&file.display().to_string())
                .filter(|(was, _)| stamp(&file).as_ref() == Some(was));
            let digest = match same {
                Some((_, digest)) => digest.clone(),
                None => content(&file)?,
            };
            text.push_str(&format!("{} {digest}\n", file.display()));
        }
    }
    Ok(digest(text.as_bytes()))
}

fn content(file: &Path) -> Result<String, Error> {
    file_digest(file).map_err(|e| Error::usage(format!("cannot read {}: {e}", file.display())))
}

/// A file, or all files below a folder, sorted.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let fail = |e: std::io::Error| Error::usage(format!("cannot read {}: {e}", path.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        found.extend(files(&entry.map_err(fail)?.path())?);
    }
    found.sort();
    Ok(found)
}

/// What stands beside the files that were made.
#[derive(Serialize, Deserialize)]
struct Seal {
    key: String,
    /// Size and time of each file when it was made; another one is not trusted.
    files: BTreeMap<String, Stamp>,
    /// The same of each input, with the digest of its content.
    inputs: BTreeMap<String, (Stamp, String)>,
}

/// Size and time of a file, in bytes and nanoseconds.
type Stamp = (u64, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((meta.len(), u64::try_from(time.as_nanos()).ok()?))
}

fn read(emitted: &Emitted) -> Option<Seal> {
    let text = fs::read(seal_path(emitted)).ok()?;
    serde_json::from_slice(&text).ok()
}

fn seal_path(emitted: &Emitted) -> PathBuf {
    emitted.model.with_extension("digest")
}

fn made(emitted: &Emitted) -> [&PathBuf; 3] {
    [&emitted.model, &emitted.report, &emitted.module]
}

fn state(emitted: &Emitted) -> Option<BTreeMap<String, Stamp>> {
    let one = |path: &PathBuf| Some((path.display().to_string(), stamp(path)?));
    made(emitted).into_iter().map(one).collect()
}

/// Whether the files are there and were made from the same inputs.
pub(super) fn holds(emitted: &Emitted, key: &str) -> bool {
    read(emitted).is_some_and(|s| s.key == key && Some(s.files) == state(emitted))
}

/// The files are about to change.
pub(super) fn unseal(emitted: &Emitted) {
    let _ = fs::remove_file(seal_path(emitted));
}

/// Notes from what the files were made.
pub(super) fn seal(emitted: &Emitted, key: &str, inputs: &[PathBuf]) -> Result<(), Error> {
    let mut known = BTreeMap::new();
    for input in inputs {
        for file in files(input)? {
            if let Some(stamp) = stamp(&file) {
                known.insert(file.display().to_string(), (stamp, content(&file)?));
            }
        }
    }
    let seal = Seal {
        key: key.to_owned(),
        files: state(emitted).unwrap_or_default(),
        inputs: known,
    };
    let text = serde_json::to_vec(&seal)
        .map_err(|e| Error::usage(format!("the digest cannot be written: {e}")))?;
    save::write_atomically(&seal_path(emitted), |f| f.write_all(&text))?;
    Ok(())
}

fn kept(folder: &Path, key: &str, file: &Path) -> PathBuf {
    let ending = file.extension().unwrap_or_default().to_string_lossy();
    folder.join(format!("{key}.{ending}"))
}

/// Copies the files into a folder that outlives the build folder.
pub(super) fn keep(emitted: &Emitted, folder: &Path, key: &str) -> Result<(), Error> {
    let fail = |e: std::io::Error| {
        Error::usage(format!("cannot write the cache {}: {e}", folder.display()))
    };
    fs::create_dir_all(folder).map_err(fail)?;
    for file in made(emitted) {
        let bytes = fs::read(file).map_err(fail)?;
        save::write_atomically(&kept(folder, key, file), |f| f.write_all(&bytes))?;
    }
    Ok(())
}

/// Takes the files from such a folder, where they are there.
pub(super) fn restore(
    emitted: &Emitted,
    folder: &Path,
    key: &str,
    inputs: &[PathBuf],
) -> Result<bool, Error> {
    let mut all = Vec::new();
    for file in made(emitted) {
        match fs::read(kept(folder, key, file)) {
            Ok(bytes) => all.push((file, bytes)),
            Err(_) => return Ok(false),
        }
    }
    unseal(emitted);
    for (file, bytes) in all {
        save::write_atomically(file, |f| f.write_all(&bytes))?;
    }
    seal(emitted, key, inputs)?;
    Ok(true)
}
