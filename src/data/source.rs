//! From a path to chunks of data: finds the files, and says which array is for which input.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::{self, Place};
use super::array::Array;
use super::error::{DataError, Names, Origin, nearest};
use super::safetensors;
use super::signature::Signature;

/// Arrays that are fed side by side: one for each input of the signature, `None` for an optional input without data.
pub(super) struct Found {
    /// The file or folder, for errors.
    pub(super) path: Arc<Path>,
    pub(super) arrays: Vec<Option<Array>>,
    /// The tensors are one complete feed as they are, with no sample axis.
    pub(super) whole: bool,
}

/// All chunks of a file or folder, in order, and remarks for the user.
pub(super) fn find(
    path: &Path,
    signature: &Signature,
) -> Result<(Vec<Found>, Vec<String>), DataError> {
    let meta = fs::metadata(path).map_err(|e| DataError::io(path, e))?;
    if meta.is_dir() {
        return folder(path, signature);
    }
    let path: Arc<Path> = path.into();
    let chunk = match extension(&path).as_deref() {
        Some("npz") => npz(&path, signature)?,
        Some("npy") => npy(&path, signature)?,
        Some("safetensors") => safetensors(&path, signature)?,
        _ => return Err(DataError::UnknownKind(path.to_path_buf())),
    };
    Ok((vec![chunk], Vec::new()))
}

fn folder(path: &Path, signature: &Signature) -> Result<(Vec<Found>, Vec<String>), DataError> {
    let (mut files, mut sets) = (Vec::new(), Vec::new());
    for entry in list(path)? {
        let name = file_name(&entry);
        if entry.is_dir() && name.starts_with("test_data_set") {
            sets.push(entry);
        } else if is_array(&entry) {
            files.push(Arc::<Path>::from(entry));
        } else if proto_index(&entry).is_some() && !sets.iter().any(|s| s == path) {
            sets.push(path.to_owned());
        }
    }
    if !sets.is_empty() {
        let found = sets.iter().map(|s| test_data_set(s, signature));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let ignored = (!files.is_empty()).then(|| {
            format!(
                "{}: only the ONNX test data (input_*.pb) is read, not the other files with arrays",
                path.display()
            )
        });
        return Ok((found, ignored.into_iter().collect()));
    }
    if files.is_empty() {
        return Err(DataError::EmptyFolder(path.to_owned()));
    }
    let stem_is_input = |f: &Arc<Path>| {
        extension(f).as_deref() == Some("npy") && signature.position(&stem(f)).is_some()
    };
    let several_npy = signature.single().is_none()
        && files.iter().all(|f| extension(f).as_deref() == Some("npy"));
    if several_npy || files.iter().all(stem_is_input) {
        return Ok((vec![npy_per_input(path, &files, signature)?], Vec::new()));
    }
    let chunks = files.iter().map(|f| match extension(f).as_deref() {
        Some("npz") => npz(f, signature),
        Some("safetensors") => safetensors(f, signature),
        _ => npy(f, signature),
    });
    Ok((chunks.collect::<Result<_, _>>()?, Vec::new()))
}

fn npz(path: &Arc<Path>, signature: &Signature) -> Result<Found, DataError> {
    let mut arrays = Vec::new();
    let entries = archive::entries(path)?;
    let names = Names::new(entries.iter().map(|(n, _)| n));
    for (name, place) in entries {
        let origin = Origin {
            path: Arc::clone(path),
            array: Some(name.clone()),
        };
        check_name(&name, &origin, &names, signature)?;
        arrays.push((name, Array::npy(origin, place)?));
    }
    by_name(path, arrays, signature)
}

fn safetensors(path: &Arc<Path>, signature: &Signature) -> Result<Found, DataError> {
    let arrays = safetensors::entries(path)?;
    let names = Names::new(arrays.iter().map(|(n, _)| n));
    for (name, array) in &arrays {
        check_name(name, &array.origin, &names, signature)?;
    }
    by_name(path, arrays, signature)
}

fn npy(path: &Arc<Path>, signature: &Signature) -> Result<Found, DataError> {
    let origin = Origin {
        path: Arc::clone(path),
        array: None,
    };
    let Some(input) = signature.single() else {
        let inputs = signature.names();
        return Err(DataError::Nameless { origin, inputs });
    };
    let mut arrays = vec![None; signature.inputs.len()];
    arrays[input] = Some(Array::npy(origin, Place::file(path)?)?);
    Ok(Found {
        path: Arc::clone(path),
        arrays,
        whole: false,
    })
}

fn npy_per_input(
    folder: &Path,
    files: &[Arc<Path>],
    signature: &Signature,
) -> Result<Found, DataError> {
    let names = Names::new(files.iter().map(|f| stem(f)));
    let mut arrays = Vec::new();
    for (path, name) in files.iter().zip(&names.0) {
        let origin = Origin {
            path: Arc::clone(path),
            array: None,
        };
        check_name(name, &origin, &names, signature)?;
        arrays.push((name.clone(), Array::npy(origin, Place::file(path)?)?));
    }
    by_name(&folder.into(), arrays, signature)
}

/// `input_0.pb`, `input_1.pb` …: by the name in the tensor where it is an input's, else by the number.
fn test_data_set(folder: &Path, signature: &Signature) -> Result<Found, DataError> {
    let files = list(folder)?;
    let files: Vec<(usize, Arc<Path>)> = files
        .into_iter()
        .filter_map(|f| Some((proto_index(&f)?, f.into())))
        .collect();
    if files.is_empty() {
        return Err(DataError::EmptyFolder(folder.to_owned()));
    }
    let required = signature.required().count();
    let highest = files.iter().map(|(i, _)| *i).max().unwrap_or(0);
    let places: Vec<usize> = (0..signature.inputs.len())
        .filter(|&i| highest >= required || !signature.inputs[i].optional)
        .collect();
    let mut found = vec![None; signature.inputs.len()];
    for (index, path) in files {
        let (array, name) = Array::proto(&path)?;
        let place = signature.position(&name);
        let Some(place) = place.or_else(|| places.get(index).copied()) else {
            return Err(DataError::UnknownArray {
                origin: array.origin,
                inputs: signature.names(),
                found: Names::new([&name]),
                hint: String::new(),
            });
        };
        put(&mut found, place, array, signature)?;
    }
    let names = Names::new(found.iter().flatten().map(|a| file_name(&a.origin.path)));
    complete(&folder.into(), found, true, names, signature)
}

fn by_name(
    path: &Arc<Path>,
    arrays: Vec<(String, Array)>,
    signature: &Signature,
) -> Result<Found, DataError> {
    let names = Names::new(arrays.iter().map(|(n, _)| n));
    let mut found = vec![None; signature.inputs.len()];
    for (name, array) in arrays {
        if let Some(place) = signature.position(&name) {
            put(&mut found, place, array, signature)?;
        }
    }
    complete(path, found, false, names, signature)
}

fn put(
    found: &mut [Option<Array>],
    place: usize,
    array: Array,
    signature: &Signature,
) -> Result<(), DataError> {
    if found[place].is_some() {
        return Err(DataError::Twice {
            origin: array.origin,
            input: signature.inputs[place].name.clone(),
        });
    }
    found[place] = Some(array);
    Ok(())
}

fn complete(
    path: &Arc<Path>,
    arrays: Vec<Option<Array>>,
    whole: bool,
    names: Names,
    signature: &Signature,
) -> Result<Found, DataError> {
    let missing = |(a, i): &(&Option<Array>, &super::Input)| a.is_none() && !i.optional;
    if let Some((_, input)) = arrays.iter().zip(&signature.inputs).find(missing) {
        return Err(DataError::MissingInput {
            path: path.to_path_buf(),
            input: input.name.clone(),
            found: names,
        });
    }
    Ok(Found {
        path: Arc::clone(path),
        arrays,
        whole,
    })
}

fn check_name(
    name: &str,
    origin: &Origin,
    names: &Names,
    signature: &Signature,
) -> Result<(), DataError> {
    if signature.position(name).is_some() {
        return Ok(());
    }
    let free = |n: &&String| !names.0.contains(n);
    let open = || signature.inputs.iter().map(|i| &i.name).filter(free);
    let hint = match (nearest(name, open().map(String::as_str)), open().min()) {
        (hint, _) if !hint.is_empty() => hint,
        (_, Some(n)) if names.0.len() == 1 && signature.inputs.len() == 1 => {
            format!("; save it under that name: np.savez(path, **{{\"{n}\": array}})")
        }
        _ => String::new(),
    };
    Err(DataError::UnknownArray {
        origin: origin.clone(),
        inputs: signature.names(),
        found: names.clone(),
        hint,
    })
}

/// The entries of a folder without hidden ones, `x2` before `x10`.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io = |e| DataError::io(folder, e);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if !file_name(&path).starts_with('.') {
            entries.push(path);
        }
    }
    entries.sort_by_cached_key(|p| natural_key(&file_name(p)));
    Ok(entries)
}

/// A key whose order is that of names with numbers: runs of digits compare by value, then the name decides.
pub(super) fn natural_key(name: &str) -> (Vec<(String, usize, String)>, String) {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit());
        let (text, tail) = rest.split_at(text_end.unwrap_or(rest.len()));
        let digits_end = tail.find(|c: char| !c.is_ascii_digit());
        let (digits, tail) = tail.split_at(digits_end.unwrap_or(tail.len()));
        let digits = digits.trim_start_matches('0');
        parts.push((text.to_owned(), digits.len(), digits.to_owned()));
        rest = tail;
    }
    (parts, name.to_owned())
}

/// Whether a file holds arrays, by its name.
pub(super) fn is_array(path: &Path) -> bool {
    matches!(
        extension(path).as_deref(),
        Some("npz" | "npy" | "safetensors")
    )
}

/// Whether a file or folder is ONNX test data, by its name.
pub(super) fn is_test_data(path: &Path) -> bool {
    proto_index(path).is_some() || path.is_dir() && file_name(path).starts_with("test_data_set")
}

fn proto_index(path: &Path) -> Option<usize> {
    let name = file_name(path);
    let number = name.strip_prefix("input_")?.strip_suffix(".pb")?;
    number.parse().ok()
}

pub(super) fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

pub(super) fn stem(path: &Path) -> String {
    path.file_stem()
        .map_or_else(String::new, |s| s.to_string_lossy().into_owned())
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |s| s.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::natural_key;

    #[test]
    fn numbers_sort_by_value() {
        let mut names = vec![
            "x10", "x2", "x02", "a", "x", "x2b", "x1y3", "x1y20", "10", "9",
        ];
        names.sort_by_cached_key(|n| natural_key(n));
        assert_eq!(
            names,
            [
                "9", "10", "a", "x", "x1y3", "x1y20", "x02", "x2", "x2b", "x10"
            ]
        );
    }
}
