//! Finds the real models that some tests use, where they are at hand.

use std::path::{Path, PathBuf};

/// Every `.onnx` file of the folder `shared/zoo` beside or above the repository; none, said loudly, where there is no
/// such folder.
pub fn models() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let zoo = here
        .ancestors()
        .map(|a| a.join("shared/zoo"))
        .find(|z| z.is_dir());
    let Some(zoo) = zoo else {
        eprintln!("SKIPPED: there is no shared/zoo above {}", here.display());
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(zoo)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .flat_map(|p| std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()))
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    files.sort();
    assert!(files.len() >= 9, "only {} models found", files.len());
    files
}
