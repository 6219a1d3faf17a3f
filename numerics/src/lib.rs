//! The arithmetic of onnx-quant, over slices: number formats, quantizers, statistics and metrics.
//!
//! This room knows nothing of graphs. Each formula has one reference implementation with its source, and fast
//! paths that equal it bit for bit. No result depends on the number of threads.
//!
//! * [`format`](mod@format): the names and tables of number formats
//! * [`affine`]: scale and zero point from a range; the reference quantizer
//! * [`mod@quantize`]: the same over slices, and the layouts codes are stored in
//! * [`channel`]: tensors with one scale for each channel
//! * [`bias`]: the INT32 bias
//! * [`float`]: 16-bit floats
//! * [`histogram`]: streaming histograms
//! * [`stats`]: all that is kept of a tensor while a model runs
//! * [`exact`]: sums that do not depend on the order
//! * [`observer`]: a range from a histogram
//! * [`search`]: the ranges of least divergence and of least error
//! * [`mod@grouping`]: which values share a scale; [`scaling`]: their scales; [`mod@encode`]: their codes
//! * [`blockfloat`], [`vsq`]: scales of two levels, and of powers of two
//! * [`quality`]: what formats do to Gaussian values
//! * [`minifloat`]: floats of 4 to 8 bits
//! * [`mod@pack`]: codes of fewer than 8 bits in bytes
//! * [`interval`]: what is certain of a loss on samples
//! * [`knapsack`]: the best choice of formats under a budget
//! * [`metrics`]: outputs compared
//! * [`minmax`]: extremes of a slice
//! * [`optimize`]: weight optimisation, rounding chosen by a layer's output
//! * [`kmeans`](mod@kmeans): codebooks; [`binary`] and [`ternary`](mod@ternary): weights of one and two bits
//! * [`entropy`]: Huffman and range coding of codes
//! * [`groups`]: which values share a codebook or a scale
//! * [`random`]: random numbers that threads do not change

#![deny(missing_docs)]

pub mod affine;
pub mod bias;
pub mod binary;
pub mod blockfloat;
pub mod channel;
pub mod encode;
pub mod entropy;
pub mod exact;
pub mod float;
pub mod format;
pub mod grouping;
pub mod groups;
pub mod histogram;
pub mod integer;
pub mod interval;
pub mod kmeans;
pub mod knapsack;
pub mod metrics;
pub mod minifloat;
pub mod minmax;
pub mod observer;
pub mod optimize;
pub mod pack;
pub mod quality;
pub mod quantize;
pub mod random;
pub mod scaling;
pub mod search;
mod simd;
pub mod stats;
pub mod ternary;
pub mod vsq;
