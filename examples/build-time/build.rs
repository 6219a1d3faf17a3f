//! The float model of the repository becomes an integer model of the program.

use onnx_quant::build::{BuildError, Quantize};

fn main() -> Result<(), BuildError> {
    println!("cargo::rerun-if-changed=build.rs");
    Quantize::new("models/net.onnx")
        .calibration("models/calib.npz")
        .config("onnx-quant.toml")
        .max_drop(0.02)
        .emit()?;
    Ok(())
}
