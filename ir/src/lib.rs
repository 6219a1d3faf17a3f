//! The graph: a petgraph model of ONNX, its lossless codec, its text form, its verifier, and the frame that passes
//! and engines fit into.
//!
//! * [`Model`] holds one arena of vertices (values and nodes) for the main graph and every subgraph, and the header
//!   of the file. Edges are the only record of who uses what: `value → node` with the input slot, `node → value` with
//!   the output slot, and a capture edge `value → control-flow node` for a value that a subgraph takes from outside.
//! * [`Tensor`] is a weight: shared bytes with a type and a shape. Cloning a model copies no weight.
//! * [`load`](load::load) and [`save`](save::save) are the way in and out; a load and a save with no pass between
//!   give back the same bytes.
//! * [`pass`] is the frame of every transformation, [`engine`] of every runtime.
//!
//! **Architecture invariant:** this crate knows no number format beyond the storage types of the standard, and no
//! quantization algorithm.

#![deny(missing_docs)]

pub mod census;
pub mod codec;
pub mod diff;
pub mod dtype;
mod edit;
pub mod engine;
pub mod load;
mod mmap;
pub mod model;
pub mod node;
mod order;
pub mod pass;
mod remove;
pub mod save;
pub mod spill;
pub mod tensor;
pub mod text;
pub mod verify;

pub use dtype::DataType;
pub use edit::{Names, NodeSpec};
pub use model::{Edge, Graph, GraphId, Model, NodeId, Value, ValueId, Vertex};
pub use node::Node;
pub use onnx_quant_proto as proto;
pub use order::CycleError;
pub use tensor::{Tensor, TensorError};
