//! Data for calibration and evaluation: from files on disk to the tensors of each run, a few batches in memory at a
//! time, which a thread reads ahead.
//!
//! [`DataSpec`] describes data and opens it; what it takes:
//! * `.npz` and `.safetensors`: one array for each input, by name, with the samples on axis 0; stored or deflated;
//! * `.npy`: for a model with a single input;
//! * a folder of such files in natural order of their names, each a chunk of samples; or with one `NAME.npy` for each
//!   input;
//! * ONNX test data: a folder with `input_0.pb` …, or a folder of folders `test_data_set_N`, each one complete feed;
//! * a folder of images, or of `.wav` files cut into windows;
//! * a text with a `tokenizer.json`: a line is a sample, or windows of tokens;
//! * `random:N`.
//!
//! Inputs that the data does not give: values of the description, caches of decoders (length zero), and defaults of the
//! model.
//!
//! How samples become batches:
//! * the model leaves its first axis free: batches of the size that the caller asks for, the last one shorter;
//! * the model fixes its first axis to N: batches of N, the last one filled up by repeating its last sample
//!   ([`Batch::padded`]);
//! * the arrays have one axis more than their inputs: each index of the first axis is one complete feed, one batch of
//!   one sample. Then all arrays must have it.
//! * a scalar in the data of a scalar input goes into every batch.
//!
//! Arrays may hold bool, integers, and floats of 16 to 64 bits, in any byte order; the type must be the input's own.
//! Floats must be finite. Arrays in Fortran order are read into memory as a whole.

mod archive;
mod array;
#[cfg(feature = "audio")]
mod audio;
mod batches;
mod csv;
mod dataset;
mod error;
#[cfg(any(feature = "images", feature = "audio"))]
mod files;
mod fill;
#[cfg(feature = "images")]
mod image;
mod image_spec;
mod items;
mod labels;
mod layout;
mod npy;
mod plan;
mod random;
mod rows;
mod safetensors;
mod signature;
mod source;
mod spec;
#[cfg(test)]
mod tests;
#[cfg(feature = "text")]
mod text;

pub use batches::{Batch, Batches};
pub use dataset::DataSet;
pub use error::{DataError, Names, Origin, SymbolUse};
pub use fill::InputValue;
pub use image_spec::{
    Channels, Crop, Filter, ImageLayout, ImageSize, ImageSpec, Preset, Resize, parse_scale,
};
pub use labels::Labels;
pub use signature::{Input, Signature};
pub use spec::DataSpec;
