//! Compiles `onnx.proto` with protox, so that no protoc is needed on the machine, and writes the schema as a table.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// A message: its full name, and number, name and message type (empty for scalars) of each field.
type Message = (String, Vec<(i32, String, String)>);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=onnx.proto");
    let descriptors = protox::compile(["onnx.proto"], ["."])?;
    let mut messages: Vec<Message> = Vec::new();
    for file in &descriptors.file {
        let top = file.message_type.iter();
        let mut open: VecDeque<_> = top.map(|m| (format!(".{}", file.package()), m)).collect();
        while let Some((outer, m)) = open.pop_front() {
            let name = format!("{outer}.{}", m.name());
            let fields = m.field.iter();
            let fields = fields.map(|f| {
                let message = if f.type_name().is_empty() || is_enum(&f.r#type()) {
                    String::new()
                } else {
                    f.type_name().to_owned()
                };
                (f.number(), f.name().to_owned(), message)
            });
            messages.push((name.clone(), fields.collect()));
            open.extend(m.nested_type.iter().map(|n| (name.clone(), n)));
        }
    }
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(format!("{out}/schema.rs"), table(&messages)?)?;
    prost_build::Config::new()
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}

fn is_enum(kind: &impl std::fmt::Debug) -> bool {
    format!("{kind:?}") == "Enum"
}

/// The table as Rust source: fields refer to messages by their place in it.
fn table(messages: &[Message]) -> Result<String, std::fmt::Error> {
    let mut out = String::from("&[\n");
    for (name, fields) in messages {
        let name = name.rsplit('.').next().unwrap_or(name);
        writeln!(out, "MessageSchema {{ name: {name:?}, fields: &[")?;
        for (number, name, message) in fields {
            let at = messages.iter().position(|(n, _)| n == message);
            writeln!(
                out,
                "FieldSchema {{ number: {number}, name: {name:?}, message: {at:?} }},"
            )?;
        }
        writeln!(out, "] }},")?;
    }
    out.push_str("]\n");
    Ok(out)
}
