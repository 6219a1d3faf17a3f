//! Reports as files: a page, text or JSON, by the ending of the name.

use std::path::{Path, PathBuf};

use anyhow::bail;
use onnx_quant::ir::save;
use onnx_quant::report::document::Document;
use onnx_quant::report::text;
use serde::Serialize;

/// What a report is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Page,
    Text,
    Json,
}

impl Form {
    fn of(path: &Path) -> Self {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("html" | "htm") => Self::Page,
            Some("txt") => Self::Text,
            _ => Self::Json,
        }
    }
}

/// Refuses a form that this program cannot write, before the long work.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    if Form::of(path) == Form::Page && cfg!(not(feature = "html")) {
        bail!(
            "{}: this program was built without the feature `html`: give a name that ends in .json or .txt",
            path.display()
        );
    }
    Ok(())
}

/// The same for a report beside the file of a command, which is neither that nor what is read.
pub(crate) fn check_with(
    report: Option<&PathBuf>,
    output: &Path,
    inputs: &[&PathBuf],
) -> anyhow::Result<()> {
    let Some(path) = report else { return Ok(()) };
    super::check_output(path, inputs)?;
    if path == output {
        bail!("--report and --output are the same file");
    }
    check(path)
}

/// Writes a report.
pub(crate) fn write<T: Serialize>(
    path: &Path,
    document: &Document,
    json: &T,
) -> anyhow::Result<()> {
    let text = match Form::of(path) {
        #[cfg(feature = "html")]
        Form::Page => onnx_quant::report::html::page(document)?,
        #[cfg(not(feature = "html"))]
        Form::Page => return check(path),
        Form::Text => text::document(document),
        Form::Json => serde_json::to_string_pretty(json)?,
    };
    save::write_atomically(path, |f| f.write_all(text.as_bytes()))?;
    Ok(())
}
