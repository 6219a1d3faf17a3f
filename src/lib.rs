//! `onnx-quant`: a trained FP32 ONNX model in, a checked INT8 model out.
//!
//! The way of a model: [`onnx_quant_ir::load`] → [`pipeline::NORMALIZE`] → [`calibrate`] → the plan of
//! `assign_precision` → [`pipeline::REWRITE`] → [`check`] → [`report`] → [`onnx_quant_ir::save`].
//! [`quantize::quantize`] does all of it.
//!
//! **Architecture invariant:** only `engine::tract` knows tract.

pub mod calibrate;
pub mod check;
pub mod data;
pub mod engine;
pub mod error;
pub mod inspect;
pub mod pipeline;
mod prepared;
mod progress;
pub mod quantize;
pub mod report;
pub mod run;

pub use error::Error;
pub use onnx_quant_ir as ir;
pub use onnx_quant_numerics as numerics;
pub use onnx_quant_passes as passes;
