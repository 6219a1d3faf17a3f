//! Weight optimisation: choosing codes, scales and biases so that a layer's *output* stays, not its weights.
//!
//! Every method sees a weight as a matrix of `rows` output channels by `cols` inputs of the reduction, and the values
//! it may take as a [`grid::Grid`]; it knows nothing of operators. Rows are independent of each other, so that methods
//! run in parallel over rows, in pieces whose size does not depend on the number of threads.
//!
//! * [`grid`]: the values that weights may take
//! * [`matrix`]: products and Gram matrices
//! * [`patches`]: convolutions as matrix products
//! * [`adaround`]: learned rounding
//! * [`block`]: learned rounding of several layers together, with the steps of the activations between them
//! * [`gptq`]: rounding with error feedback through the Hessian, and coordinate descent
//! * [`hqq`]: half-quadratic quantization, without data
//! * [`scales`]: scale search by output error, AWQ's scales and SmoothQuant's
//! * [`equalize`]: cross-layer equalization, high biases
//! * [`bias`]: bias correction
//! * [`adam`]: the optimizer

pub mod adam;
pub mod adaround;
pub mod bias;
pub mod block;
pub mod equalize;
mod fast;
pub mod gptq;
pub mod grid;
pub mod hqq;
pub mod matrix;
pub mod patches;
pub mod random;
pub mod scales;
