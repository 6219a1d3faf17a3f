//! Results of an analysis that was interrupted: one line for each finished task, so that it goes on where it ended.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The results of one task: of a layer on some of the samples.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    /// Stage and layer.
    task: (usize, usize),
    /// The sums, as the bits of their numbers: text would lose the last digits.
    sums: Vec<Vec<u64>>,
}

/// The first line: what the results belong to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    key: String,
}

/// Sums by task.
type Known = HashMap<(usize, usize), Vec<Vec<u64>>>;

/// Finished tasks, on disk where a path is given.
pub(super) struct Cache {
    path: Option<PathBuf>,
    file: Option<Mutex<File>>,
    known: Known,
}

impl Cache {
    /// Opens the results beside the file to be written; those of before are used where `resume` says so and the key is
    /// the same.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(super) fn open(output: Option<&Path>, key: &str, resume: bool) -> Result<Self, Error> {
        let Some(output) = output else {
            return Ok(Self {
                path: None,
                file: None,
                known: HashMap::new(),
            });
        };
        let mut name = output.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let fail = |e: std::io::Error| Error::usage(format!("{}: {e}", path.display()));
        let known = match resume && path.exists() {
            true => read(&path, key).map_err(fail)?,
            false => None,
        };
        let (known, mut file) = match known {
            Some(known) => (
                known,
                OpenOptions::new().append(true).open(&path).map_err(fail)?,
            ),
            None => (HashMap::new(), File::create(&path).map_err(fail)?),
        };
        if known.is_empty() {
            file.set_len(0).map_err(fail)?;
            let head = serde_json::to_string(&Head {
                key: key.to_owned(),
            });
            writeln!(file, "{}", head.map_err(|e| Error::usage(e.to_string()))?).map_err(fail)?;
        }
        Ok(Self {
            file: Some(Mutex::new(file)),
            known,
            path: Some(path),
        })
    }

    /// Tasks that are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The sums of a task that was finished before.
    pub(super) fn get(&self, task: (usize, usize)) -> Option<&Vec<Vec<u64>>> {
        self.known.get(&task)
    }

    /// Keeps the sums of a task.
    pub(super) fn put(&self, task: (usize, usize), sums: Vec<Vec<u64>>) {
        let Some(file) = &self.file else { return };
        if let Ok(text) = serde_json::to_string(&Line { task, sums }) {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A cache that cannot be written costs time later, not the result.
            let _ = writeln!(file, "{text}");
        }
    }

    /// Removes the file: the analysis is done.
    pub(super) fn finish(self) {
        if let Some(path) = self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The finished tasks; `None` where they belong to something else. A line that was not written to its end is left out.
fn read(path: &Path, key: &str) -> std::io::Result<Option<Known>> {
    let mut lines = BufReader::new(File::open(path)?).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let same = serde_json::from_str::<Head>(&head).is_ok_and(|h| h.key == key);
    if !same {
        return Ok(None);
    }
    let mut known = HashMap::new();
    for line in lines {
        if let Ok(line) = serde_json::from_str::<Line>(&line?) {
            known.insert(line.task, line.sums);
        }
    }
    Ok(Some(known))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn finished_tasks_come_back_and_torn_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("s.json");
        let cache = Cache::open(Some(&out), "key", false).unwrap();
        cache.put((0, 3), vec![vec![1, u64::MAX]]);
        drop(cache);
        let partial = folder.path().join("s.json.partial");
        let mut text = std::fs::read_to_string(&partial).unwrap();
        text.push_str("{\"task\":[1,");
        std::fs::write(&partial, text).unwrap();
        let cache = Cache::open(Some(&out), "key", true).unwrap();
        assert_eq!(cache.len(), 1);
        assert_eq!(cache.get((0, 3)), Some(&vec![vec![1, u64::MAX]]));
        drop(cache);
        assert_eq!(Cache::open(Some(&out), "other", true).unwrap().len(), 0);
        let cache = Cache::open(Some(&out), "other", true).unwrap();
        cache.finish();
        assert!(!partial.exists());
    }
}
