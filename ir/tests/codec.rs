//! Loading and saving real files gives back the same bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use onnx_quant_ir::load::load;
use onnx_quant_ir::save::to_bytes;

#[test]
fn zoo_models_round_trip_to_the_byte() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/zoo");
    if !zoo.is_dir() {
        eprintln!("SKIPPED: {} is not here", zoo.display());
        return;
    }
    let mut seen = 0;
    for entry in std::fs::read_dir(zoo).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") {
                let model = load(&path).unwrap();
                let bytes = std::fs::read(&path).unwrap();
                let back = to_bytes(&model).unwrap();
                assert_eq!(bytes.len(), back.len(), "{}", path.display());
                assert!(bytes == back, "{}", path.display());
                let mut sorted = model.clone();
                sorted.sort().unwrap();
                assert!(
                    bytes == to_bytes(&sorted).unwrap(),
                    "{} sorted",
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen >= 9, "only {seen} models found");
}
