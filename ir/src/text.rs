//! The text form of a model: ONNX's own text syntax, to be read by people, by tests and by `diff`.
//!
//! ```text
//! <ir_version: 10, opset_import: ["" : 21]>
//! main (float[N,3] X) => (float[N,8] Y)
//! <
//!   float[3,8] W = random(7),            # initializers have `=`, declared types of inner values have not
//!   float[8] B = {1, 2, 3, 4, 5, 6, 7, 8}
//! >
//! {
//!   [fc] T = Gemm <alpha = 0.5> (X, W, B)
//!   Y = Relu (T)
//! }
//! ```
//!
//! What goes beyond ONNX's syntax:
//! * every name may stand in quotes, and does where it is no identifier;
//! * a missing header means IR version 10 and opset 21;
//! * comments begin with `#` or `//`;
//! * tensors may be made up: `= zeros`, `= ones`, `= fill(v)`, `= iota`, `= random(seed)`, `= random(seed, low, high)`,
//!   or given as packed bytes: `= hex "00ff"`;
//! * a missing input or output is `""`, a missing last one is not written;
//! * what has no syntax of its own (denotations, documentation of single nodes, sparse tensors, training information)
//!   follows its owner as an encoded message, `$"0a03…"`, so that nothing is lost.
//!
//! In [`Print::Summary`], weights are a digest and their range, and quantized types stand beside the nodes in MLIR's
//! notation. That form is not meant to be parsed.

mod attribute;
mod digest;
mod generate;
mod lex;
mod literal;
mod names;
mod parse;
mod print;
mod quant;
mod types;

#[cfg(test)]
mod tests;

pub use digest::{short_digest, summarize};
pub use quant::{QuantType, quant_type};

use crate::codec::DecodeError;
use crate::model::Model;
use crate::order::CycleError;

/// How much of a model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Print {
    /// Everything, weights with all their values: what [`parse`] reads back.
    Full,
    /// Weights as digest and range, quantized types as comments: for reading and for snapshots.
    Summary,
}

/// Why a text is not a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The text does not follow the syntax.
    #[error("{line}:{column}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The text follows the syntax, but what it says is no model.
    #[error(transparent)]
    Model(#[from] DecodeError),
    /// The graph is cyclic.
    #[error(transparent)]
    Cycle(#[from] CycleError),
    /// A tensor given as bytes does not fit its type.
    #[error("tensor `{tensor}`: {source}")]
    Tensor {
        /// Name of the initializer.
        tensor: String,
        /// What is wrong.
        source: crate::TensorError,
    },
}

/// The text of a model. Data that was not loaded is written as the reference that the file has.
pub fn print(model: &Model, level: Print) -> String {
    let proto = crate::save::inlined(model).unwrap_or_else(|_| model.to_proto());
    print::model(&proto, level)
}

/// One node as a line of [`Print::Summary`], its subgraphs below it.
pub fn print_node(model: &Model, node: crate::NodeId) -> String {
    print::node(&model.encode_node(node), quant_type(model, node))
}

/// A type as the text form writes it: `float[N,3]`, `seq(int64)` …
pub fn print_type(ty: &onnx_quant_proto::TypeProto) -> String {
    types::print(ty)
}

/// Reads a model from its text.
///
/// # Errors
/// Where the text does not follow the syntax, or what makes it no valid model.
pub fn parse(source: &str) -> Result<Model, TextError> {
    let model = Model::from_proto(parse::model(source)?)?;
    for id in model.all_values() {
        let v = model.value(id);
        if let Some(Err(source)) = v.init.as_ref().map(crate::Tensor::validate) {
            let tensor = v.name.clone();
            return Err(TextError::Tensor { tensor, source });
        }
    }
    model.clone().sort()?;
    Ok(model)
}
