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
