//! The command `onnx-quant`: see [`onnx_quant::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    onnx_quant::cli::main()
}
