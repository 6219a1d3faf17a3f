//! Runtimes behind the [`Engine`](onnx_quant_ir::engine::Engine) trait, and a cache of prepared models.
//!
//! **Architecture invariant:** only [`mod@tract`] imports tract.

pub mod cache;
pub mod tract;

pub use cache::SessionCache;
pub use tract::TractEngine;
