//! What a quantized model says of itself: four entries of its `metadata_props`, which other tools keep and ignore.

use std::io::Read;
use std::path::Path;

use onnx_quant_ir::Model;
use onnx_quant_ir::proto::StringStringEntryProto;
use onnx_quant_passes::plan::{Precision, PrecisionPlan};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What stands before the names of the entries.
const PREFIX: &str = "onnx-quant.";

/// What a model says of how it was quantized.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// The version of this program.
    pub version: String,
    /// SHA-256 of the float model's file (of the file itself, external data not counted).
    pub source: String,
    /// Nodes in each form, and a digest of what was decided for every node.
    pub plan: String,
    /// The options that were given and change the result; paths are left out, so that the bytes do not depend on them.
    pub command: String,
}

impl Metadata {
    fn entries(&self) -> [(&'static str, &str); 4] {
        [
            ("version", &self.version),
            ("source", &self.source),
            ("plan", &self.plan),
            ("command", &self.command),
        ]
    }

    /// What is written in a model; `None` where nothing is.
    pub fn of(model: &Model) -> Option<Self> {
        let mut found = Self::default();
        for p in &model.header.metadata_props {
            let value = p.value().to_owned();
            match p.key().strip_prefix(PREFIX) {
                Some("version") => found.version = value,
                Some("source") => found.source = value,
                Some("plan") => found.plan = value,
                Some("command") => found.command = value,
                _ => {}
            }
        }
        (found != Self::default()).then_some(found)
    }

    /// Writes the entries that are not empty, in place of those that are there.
    pub fn write(&self, model: &mut Model) {
        let props = &mut model.header.metadata_props;
        for (name, value) in self.entries() {
            let key = format!("{PREFIX}{name}");
            props.retain(|p| p.key() != key || value.is_empty());
            if !value.is_empty() {
                props.push(StringStringEntryProto {
                    key: Some(key),
                    value: Some(value.to_owned()),
                });
            }
        }
    }
}

/// SHA-256 of a file, as `sha256sum` prints it.
///
/// # Errors
/// What the file system says.
pub fn file_digest(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// SHA-256 of bytes.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A plan in one line.
pub fn summary(plan: &PrecisionPlan) -> String {
    let mut rows = String::new();
    for n in &plan.nodes {
        rows.push_str(&format!("{}\t{}\n", n.key, n.precision.name()));
    }
    let count = |p: Precision| format!("{} {}", plan.count(p), p.name());
    let counts = [
        Precision::Integer,
        Precision::WeightOnly,
        Precision::Follows,
        Precision::Float,
    ]
    .map(count);
    format!("{}; {}", counts.join(", "), &digest(rows.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn entries_are_written_once_and_read_back() {
        let mut model =
            onnx_quant_ir::text::parse("main (float[1] x) => (float[1] y) { y = Relu (x) }")
                .unwrap();
        assert_eq!(Metadata::of(&model), None);
        let mut m = Metadata {
            version: "1".to_owned(),
            source: digest(b""),
            ..Metadata::default()
        };
        assert!(m.source.starts_with("e3b0c44298fc1c14"));
        m.write(&mut model);
        m.version = "2".to_owned();
        m.write(&mut model);
        assert_eq!(Metadata::of(&model), Some(m));
        assert_eq!(model.header.metadata_props.len(), 2);
    }
}
