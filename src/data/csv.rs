//! Labels by file name: a CSV with a file and its class on each line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::dataset::DataSet;
use super::error::{DataError, nearest};

/// Words of a first line that is a head and no label.
const HEADS: [&str; 5] = ["class", "label", "target", "class_id", "id"];

/// One line.
struct Row {
    line: usize,
    file: String,
    class: String,
}

/// The class of each sample in use. Classes that are no numbers are numbered in the order of their names.
pub(super) fn classes(path: &Path, data: &DataSet) -> Result<Vec<i64>, DataError> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
    let rows = rows(path, &text)?;
    let ids = ids(path, &rows)?;
    let files = Files::of(path, data)?;
    let mut by_file: BTreeMap<usize, (i64, usize)> = BTreeMap::new();
    for (row, id) in rows.iter().zip(ids) {
        let file = files.find(path, row)?;
        if let Some((_, before)) = by_file.insert(file, (id, row.line)) {
            return Err(bad(
                path,
                row.line,
                &format!("`{}` has a class on line {before} already", row.file),
            ));
        }
    }
    (0..data.len())
        .map(|place| {
            let index = files.of_sample[data.source_index(place)];
            let class = by_file.get(&index).map(|(id, _)| *id);
            class.ok_or_else(|| {
                DataError::Spec(format!(
                    "{}: no class for {}",
                    path.display(),
                    files.paths[index].display()
                ))
            })
        })
        .collect()
}

fn bad(path: &Path, line: usize, reason: &str) -> DataError {
    DataError::Spec(format!("{}, line {line}: {reason}", path.display()))
}

fn rows(path: &Path, text: &str) -> Result<Vec<Row>, DataError> {
    let mut rows = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let unquoted = |s: &str| s.trim().trim_matches('"').trim().to_owned();
        let Some((file, class)) = line.rsplit_once(',') else {
            return Err(bad(
                path,
                i + 1,
                "give a file and its class with a comma between",
            ));
        };
        let (file, class) = (unquoted(file), unquoted(class));
        if rows.is_empty() && HEADS.contains(&class.to_ascii_lowercase().as_str()) {
            continue;
        }
        if file.is_empty() || class.is_empty() {
            return Err(bad(path, i + 1, "the file or the class is empty"));
        }
        rows.push(Row {
            line: i + 1,
            file,
            class,
        });
    }
    if rows.is_empty() {
        return Err(DataError::Spec(format!(
            "{} holds no labels",
            path.display()
        )));
    }
    Ok(rows)
}

fn ids(path: &Path, rows: &[Row]) -> Result<Vec<i64>, DataError> {
    let numbers: Vec<Option<i64>> = rows.iter().map(|r| r.class.parse().ok()).collect();
    if numbers.iter().all(Option::is_none) {
        let names: BTreeSet<&str> = rows.iter().map(|r| r.class.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let place = |r: &Row| names.binary_search(&r.class.as_str()).unwrap_or(0) as i64;
        return Ok(rows.iter().map(place).collect());
    }
    let each = rows.iter().zip(numbers);
    each.map(|(row, number)| match number {
        Some(n) if n >= 0 => Ok(n),
        _ => Err(bad(
            path,
            row.line,
            &format!(
                "`{}` is no class, though other lines have numbers from 0 on",
                row.class
            ),
        )),
    })
    .collect()
}

/// The files that the samples come from.
struct Files {
    root: PathBuf,
    paths: Vec<PathBuf>,
    /// By resolved path.
    known: BTreeMap<PathBuf, usize>,
    /// By file name; `None` where two files have it.
    names: BTreeMap<String, Option<usize>>,
    /// The file of each sample of the whole data.
    of_sample: Vec<usize>,
}

impl Files {
    fn of(csv: &Path, data: &DataSet) -> Result<Self, DataError> {
        let mut files = Self {
            root: data.root().to_owned(),
            paths: Vec::new(),
            known: BTreeMap::new(),
            names: BTreeMap::new(),
            of_sample: Vec::new(),
        };
        for index in 0..data.source_len() {
            let Some(path) = data.source_file(index) else {
                return Err(DataError::Spec(format!(
                    "{}: a CSV of labels is for folders of images or recordings, and {} is none; give an .npy with the classes",
                    csv.display(),
                    data.root().display()
                )));
            };
            if files.paths.last().is_none_or(|last| last != path) {
                let number = files.paths.len();
                files.known.insert(resolved(path), number);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let entry = files.names.entry(name.into_owned());
                entry.and_modify(|e| *e = None).or_insert(Some(number));
                files.paths.push(path.to_owned());
            }
            files.of_sample.push(files.paths.len() - 1);
        }
        Ok(files)
    }

    fn find(&self, csv: &Path, row: &Row) -> Result<usize, DataError> {
        let folders = [Some(self.root.as_path()), csv.parent()];
        let mut places = folders.into_iter().flatten().map(|f| f.join(&row.file));
        let by_path = places.find_map(|p| self.known.get(&resolved(&p)));
        let by_name = || self.names.get(&row.file).copied().flatten();
        by_path.copied().or_else(by_name).ok_or_else(|| {
            let hint = nearest(&row.file, self.names.keys().map(String::as_str));
            let reason = format!(
                "`{}` is none of the files of {}{hint}",
                row.file,
                self.root.display()
            );
            bad(csv, row.line, &reason)
        })
    }
}

fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
