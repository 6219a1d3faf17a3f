//! The shared library of onnxruntime: where it is, and loading it once.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

const VARIABLE: &str = "ORT_DYLIB_PATH";
const ADVICE: &str =
    "install it (pip install onnxruntime) or give the path of the library in ORT_DYLIB_PATH";

/// The library, loaded; an error says what can be done.
pub(super) fn load() -> Result<PathBuf, String> {
    static LOADED: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*loaded {
        return Ok(path.clone());
    }
    let path = find()?;
    let shown = path.display().to_string();
    // The crate panics where the library does not load or is too old.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(|| {
        ort::init_from(&shown).with_telemetry(false).commit()
    }));
    std::panic::set_hook(hook);
    let reason = match result {
        Ok(Ok(_)) => {
            *loaded = Some(path.clone());
            return Ok(path);
        }
        Ok(Err(e)) => e.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.unwrap_or_else(|| "it does not load".to_owned())
        }
    };
    Err(format!(
        "the library {shown} cannot be used ({reason}); it must be onnxruntime 1.{} or newer: {ADVICE}",
        ort::MINOR_VERSION
    ))
}

fn find() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!(
                "{VARIABLE} is {}, where there is no file",
                path.display()
            )),
        };
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(std::env::var_os);
    let mut places: Vec<PathBuf> = environments.map(PathBuf::from).collect();
    places.push(PathBuf::from(".venv"));
    let packages = places.iter().flat_map(|place| packages_of(place));
    let found = packages
        .chain(python_path())
        .find_map(|folder| library_in(&folder.join("onnxruntime").join("capi")))
        .or_else(|| system_folders().iter().find_map(|f| library_in(f)));
    found.ok_or_else(|| {
        format!(
            "the library was not found, neither as a Python package (VIRTUAL_ENV, CONDA_PREFIX, .venv, python3) nor in the system's folders: {ADVICE}"
        )
    })
}

/// The folders of installed packages of a Python environment.
fn packages_of(environment: &Path) -> Vec<PathBuf> {
    let mut found = vec![environment.join("Lib").join("site-packages")];
    let versions = std::fs::read_dir(environment.join("lib"));
    let mut versions: Vec<PathBuf> = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    versions.sort();
    found.extend(versions.into_iter().map(|v| v.join("site-packages")));
    found
}

/// Where `python3` looks for packages.
fn python_path() -> Vec<PathBuf> {
    let script = "import sys\nprint('\\n'.join(sys.path))";
    for name in ["python3", "python"] {
        let Ok(output) = Command::new(name).args(["-c", script]).output() else {
            continue;
        };
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            let lines = text.lines().filter(|l| !l.is_empty());
            return lines.map(PathBuf::from).collect();
        }
    }
    Vec::new()
}

fn system_folders() -> Vec<PathBuf> {
    let variable = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
        .into_iter()
        .filter_map(std::env::var_os);
    let mut folders: Vec<PathBuf> = variable
        .flat_map(|v| std::env::split_paths(&v).collect::<Vec<_>>())
        .collect();
    let fixed = [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/homebrew/lib",
    ];
    folders.extend(fixed.map(PathBuf::from));
    folders
}

/// The library in a folder: of several versions the last by name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let files = entries.flatten().map(|e| e.path());
    files
        .filter(|p| p.file_name().is_some_and(is_library) && p.is_file())
        .max()
}

fn is_library(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let unix = name.starts_with("libonnxruntime.so")
        || name.starts_with("libonnxruntime.") && name.ends_with(".dylib");
    unix || name == "onnxruntime.dll"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_known_by_their_names() {
        for name in [
            "libonnxruntime.so",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime.1.32.0.dylib",
            "onnxruntime.dll",
        ] {
            assert!(is_library(OsStr::new(name)), "{name}");
        }
        for name in [
            "libonnxruntime_providers_shared.so",
            "onnxruntime.py",
            "libonnx.so",
        ] {
            assert!(!is_library(OsStr::new(name)), "{name}");
        }
    }
}
