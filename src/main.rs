//! The command `onnx-quant`: see [`onnx_quant::cli`].

use std::process::ExitCode;

// Gives memory of tensors that other threads made back, so that the peak does not grow with the number of samples.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onnx_quant::cli::main()
}
