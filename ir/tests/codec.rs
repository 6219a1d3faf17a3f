//! Loading and saving real files gives back the same bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod zoo;

use onnx_quant_ir::load::load;
use onnx_quant_ir::save::to_bytes;

#[test]
fn zoo_models_round_trip_to_the_byte() {
    for path in zoo::models() {
        let model = load(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let back = to_bytes(&model).unwrap();
        assert_eq!(bytes.len(), back.len(), "{}", path.display());
        assert!(bytes == back, "{}", path.display());
        let mut sorted = model.clone();
        sorted.sort().unwrap();
        let again = to_bytes(&sorted).unwrap();
        assert!(bytes == again, "{} sorted", path.display());
        assert_eq!(model.unknown_fields, vec![], "{}", path.display());
    }
}
