//! Folders of files, one sample or more in each: which files, and the classes that their sub-folders stand for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::Model;

use super::dataset::Classes;
use super::error::DataError;
use super::source::{self, extension};

/// The files of a kind below a folder.
#[derive(Debug)]
pub(super) struct Files {
    /// Folder by folder, in natural order of the names.
    pub(super) paths: Vec<PathBuf>,
    /// Files of another kind.
    pub(super) others: usize,
}

/// All files below a folder, or the one file, whose names end in one of these.
pub(super) fn find(path: &Path, endings: &[&str]) -> Result<Files, DataError> {
    let mut files = Files {
        paths: Vec::new(),
        others: 0,
    };
    if !path.is_dir() {
        files.paths.push(path.to_owned());
        return Ok(files);
    }
    walk(path, endings, &mut files)?;
    Ok(files)
}

fn walk(folder: &Path, endings: &[&str], files: &mut Files) -> Result<(), DataError> {
    for entry in source::list(folder)? {
        if entry.is_dir() {
            walk(&entry, endings, files)?;
        } else if extension(&entry).is_some_and(|e| endings.contains(&e.as_str())) {
            files.paths.push(entry);
        } else {
            files.others += 1;
        }
    }
    Ok(())
}

impl Files {
    /// Files that are left out, for the user.
    pub(super) fn note(&self, folder: &Path, kind: &str) -> Option<String> {
        (self.others > 0).then(|| {
            format!(
                "{}: {} files are no {kind} and are not used",
                folder.display(),
                self.others
            )
        })
    }

    /// The class of each file by its sub-folder, and a note. Names that are all numbers are the classes themselves;
    /// others are numbered in the order of their names. No classes where files lie in no sub-folder, or where the
    /// model has another number of classes than there are names.
    pub(super) fn classes(
        &self,
        folder: &Path,
        model: &Model,
    ) -> (Option<Classes>, Option<String>) {
        let of = |file: &PathBuf| -> Option<String> {
            let inner = file.strip_prefix(folder).ok()?;
            let mut parts = inner.components();
            let first = parts.next()?;
            parts.next()?;
            Some(first.as_os_str().to_string_lossy().into_owned())
        };
        let Some(names) = self.paths.iter().map(of).collect::<Option<Vec<String>>>() else {
            return (None, None);
        };
        let sorted: Vec<&String> = names.iter().collect::<BTreeSet<_>>().into_iter().collect();
        if sorted.len() < 2 {
            return (None, None);
        }
        let numbers: Option<Vec<i64>> = sorted.iter().map(|n| number(n)).collect();
        let outputs = outputs(model);
        let highest = numbers.as_ref().and_then(|n| n.iter().max().copied());
        let fits = outputs.is_none_or(|n| match highest {
            Some(highest) => highest < n,
            None => n == sorted.len() as i64,
        });
        if !fits {
            let note = format!(
                "{}: its {} sub-folders are not taken as classes, because the model has {} of them; give --labels with a CSV of file,class",
                folder.display(),
                sorted.len(),
                outputs.unwrap_or(0)
            );
            return (None, Some(note));
        }
        let class = |name: &String| {
            let place = sorted.binary_search(&name).unwrap_or(0);
            numbers.as_ref().map_or(place as i64, |n| n[place])
        };
        let classes = Classes {
            path: Arc::from(folder),
            ids: names.iter().map(class).collect(),
        };
        let note = format!(
            "{}: the classes are those of its {} sub-folders, from {} = {} to {} = {}",
            folder.display(),
            sorted.len(),
            sorted[0],
            class(sorted[0]),
            sorted[sorted.len() - 1],
            class(sorted[sorted.len() - 1])
        );
        (Some(classes), Some(note))
    }
}

fn number(name: &str) -> Option<i64> {
    name.parse().ok().filter(|&n: &i64| n >= 0)
}

/// The number of classes of a model whose first output is `[N, classes]`.
fn outputs(model: &Model) -> Option<i64> {
    let first = *model.main().outputs.first()?;
    match model.value(first).shape()?[..] {
        [_, classes] => classes,
        _ => None,
    }
}
