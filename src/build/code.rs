//! The Rust module that a build script writes for a model.

use std::fmt::Write as _;
use std::path::Path;

use onnx_quant_ir::Model;

use crate::inspect::{Port, inspect};

/// The text of the module: bytes, names, types and shapes.
pub(super) fn module(model: &Model, file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let found = inspect(model, &name, 0);
    let mut out = String::from("// Written by onnx-quant.\n\n");
    let _ = write!(
        out,
        "/// An input or output of the model.\n\
         #[derive(Debug, Clone, Copy, PartialEq, Eq)]\n\
         pub struct Port {{\n    \
         /// Its name.\n    pub name: &'static str,\n    \
         /// Its type: `f32`, `i64` …\n    pub dtype: &'static str,\n    \
         /// Its shape; a free axis is `None`.\n    pub shape: &'static [Option<usize>],\n}}\n\n\
         /// The quantized model.\n\
         pub static BYTES: &[u8] = include_bytes!(concat!(env!(\"OUT_DIR\"), {:?}));\n",
        format!("/{name}")
    );
    for (what, doc, ports) in [
        ("INPUTS", "The inputs", &found.inputs),
        ("OUTPUTS", "The outputs", &found.outputs),
    ] {
        let real: Vec<&Port> = ports.iter().filter(|p| !p.has_default).collect();
        let _ = writeln!(
            out,
            "\n/// {doc}, in the order of the model.\npub static {what}: [Port; {}] = [",
            real.len()
        );
        for p in real {
            let axes: Vec<String> = p.shape.iter().flatten().map(|d| axis(d)).collect();
            let _ = writeln!(
                out,
                "    Port {{ name: {:?}, dtype: {:?}, shape: &[{}] }},",
                p.name,
                p.dtype,
                axes.join(", ")
            );
        }
        out.push_str("];\n");
    }
    out
}

fn axis(size: &str) -> String {
    match size.parse::<usize>() {
        Ok(n) => format!("Some({n})"),
        Err(_) => "None".to_owned(),
    }
}
