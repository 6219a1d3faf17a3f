//! The digest by which files made for a model (statistics, plans) know it again.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::{SaveError, inlined, stream};
use crate::model::Model;

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `sha256:` and the SHA-256 of the model as one file, external data taken in, in hexadecimal. Equal for two models
/// exactly where [`super::to_bytes`] is; the bytes are never held as a whole.
///
/// # Errors
/// A tensor whose data cannot be read.
pub fn digest(model: &Model) -> Result<String, SaveError> {
    let proto = inlined(model)?;
    let mut hashing = Hashing(Sha256::new());
    stream::write_message(&proto, &mut hashing).map_err(|source| SaveError::Io {
        path: model.path.clone().unwrap_or_default(),
        source,
    })?;
    let mut text = "sha256:".to_owned();
    for byte in hashing.0.finalize() {
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::save::to_bytes;

    #[test]
    fn is_that_of_the_bytes() {
        let text = "<ir_version: 10, opset_import: [\"\" : 21]>\nm (float[1] x) => (float[1] y) {\n  y = Identity (x)\n}\n";
        let mut model = crate::text::parse(text).unwrap();
        model.header.producer_name = Some("a".to_owned());
        let hash = Sha256::digest(to_bytes(&model).unwrap());
        let text: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest(&model).unwrap(), format!("sha256:{text}"));
        let before = digest(&model).unwrap();
        model.header.producer_name = Some("b".to_owned());
        assert_ne!(digest(&model).unwrap(), before);
    }
}
