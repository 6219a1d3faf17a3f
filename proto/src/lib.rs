//! The ONNX wire format: the prost types of `onnx.proto`, and no logic.
//!
//! Every `bytes` field is a [`bytes::Bytes`], so decoding from a memory-mapped file copies no weight.

#[allow(
    missing_docs,
    clippy::allow_attributes,
    clippy::doc_markdown,
    reason = "generated code; expect would fail where a lint does not fire"
)]
mod onnx {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

pub use onnx::*;
pub use prost::Message;

/// What the schema says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSchema {
    /// Name without the names around it.
    pub name: &'static str,
    /// The fields, in the order of the schema.
    pub fields: &'static [FieldSchema],
}

/// What the schema says of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldSchema {
    /// The field's number on the wire.
    pub number: u32,
    /// The field's name.
    pub name: &'static str,
    /// For a field that holds a message: its place in [`SCHEMA`].
    pub message: Option<usize>,
}

/// All messages of `onnx.proto`.
pub static SCHEMA: &[MessageSchema] = include!(concat!(env!("OUT_DIR"), "/schema.rs"));
