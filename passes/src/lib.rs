//! Every transformation and analysis of a graph: one file each, and the table that lists them.
//!
//! To add a pass: write `src/NAME.rs` (copy the head of `drop_unused.rs`), list it in [`registry`], and give it cases.

#![deny(missing_docs)]

pub mod absorb_biases;
pub mod assign_precision;
pub mod calibration;
pub mod cast_floats;
pub mod codebook;
pub mod codebook_weights;
pub mod correct_bias;
pub mod drop_unused;
pub mod emulate_formats;
pub mod equalize_layers;
pub mod eval;
pub mod expand_nbits;
pub mod expand_qoperator;
pub mod fold_batchnorm;
pub mod fold_constants;
pub mod freeze_initializers;
pub mod fuse_gemm;
pub mod importance;
pub mod infer;
pub mod inline_functions;
pub mod insert_qdq;
pub mod integer_product;
pub mod layer;
pub mod layers;
pub mod lift_constants;
pub mod lower_codebook;
pub mod lower_qdq;
pub mod lower_qoperator;
pub mod matmul_nbits;
pub mod merge_constants;
pub mod normals;
pub mod observation;
pub mod ops;
pub mod overrides;
pub mod plan;
pub mod qdq;
pub mod quantize_bias;
pub mod quantize_dynamic;
pub mod quantize_weights;
pub mod registry;
pub mod remove_identity;
pub mod remove_redundant_qdq;
pub mod settings;
pub mod share_qdq_parameters;
pub mod smooth_activations;
pub mod specialize;
pub mod split_channels;
pub mod split_shared_weights;
pub mod strip_debug_info;
pub mod target;
#[cfg(test)]
mod testing;
pub mod unique_names;
pub mod upgrade_opset;
