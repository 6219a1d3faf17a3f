//! Runtimes behind the [`Engine`](onnx_quant_ir::engine::Engine) trait, and a cache of prepared models.
//!
//! **Architecture invariant:** only [`mod@tract`] imports tract.

pub mod cache;
#[cfg(feature = "onnxruntime")]
pub mod onnxruntime;
mod steps;
pub mod tract;

pub use cache::SessionCache;
#[cfg(feature = "onnxruntime")]
pub use onnxruntime::OnnxRuntimeEngine;
pub use tract::TractEngine;
