//! `onnx-quant`: a trained FP32 ONNX model in, a checked INT8 model out.
//!
//! The way of a model: [`onnx_quant_ir::load`] → [`pipeline::NORMALIZE`] → [`calibrate`] → the plan of
//! `assign_precision` → [`pipeline::REWRITE`] → [`check`] → [`report`] → [`onnx_quant_ir::save`].
//! [`quantize::quantize`] does all of it; [`stages`] has every step as a type. Passes, observers and metrics of the
//! caller go in by [`extend`] and [`metric`].
//!
//! **Architecture invariant:** only `engine::tract` knows tract.

#![deny(missing_docs)]

// The command line names the library as other crates do.
extern crate self as onnx_quant;

pub mod build;
pub mod calibrate;
pub mod check;
#[cfg(feature = "config")]
pub mod cli;
pub mod compress;
#[cfg(feature = "config")]
pub mod config;
pub mod data;
pub mod demo;
pub mod encodings;
pub mod engine;
pub mod error;
pub mod extend;
pub mod inspect;
pub mod metadata;
pub mod metric;
pub mod mixed;
pub mod observe;
pub mod optimize;
pub mod pipeline;
mod prepared;
pub mod progress;
pub mod quantize;
pub mod record;
pub mod report;
pub mod run;
pub mod stages;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::Error;
pub use onnx_quant_ir as ir;
pub use onnx_quant_numerics as numerics;
pub use onnx_quant_passes as passes;
