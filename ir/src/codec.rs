//! Between the wire format and the graph, without loss: what is decoded and encoded again is the same message.

mod decode;
mod encode;

pub use decode::DecodeError;
