//! OpenVINO on CPUs: pairs on the inputs of the operators that its low-precision transformations know.
//!
//! Source: OpenVINO, *Low Precision Transformations*; the quantizer propagation of NNCF.

use onnx_quant_numerics::format::{Base, Scheme};

use super::{Bias, Clamps, Pairs, Role, Target, TargetName, op, rule};

/// The table.
pub const TARGET: Target = Target {
    name: TargetName::OpenVino,
    word: "openvino",
    title: "OpenVINO",
    pairs: Pairs::Inputs,
    activations: &[Base::UINT8, Base::INT8],
    weights: &[Base::INT8],
    activation_scheme: None,
    weight_scheme: Some(Scheme::Symmetric),
    ops: &[
        op("Conv", Role::Linear { codes: false }),
        op("ConvTranspose", Role::Linear { codes: false }),
        op("Gemm", Role::Linear { codes: false }),
        op("MatMul", Role::Linear { codes: false }),
        op("Add", Role::Supporting),
        op("Mul", Role::Supporting),
        op("Sub", Role::Supporting),
        op("AveragePool", Role::Supporting),
        op("GlobalAveragePool", Role::Supporting),
        op("BatchNormalization", Role::Supporting),
        op("HardSigmoid", Role::Supporting),
        op("Resize", Role::Supporting),
        op("Pow", Role::Supporting),
        op("Min", Role::Supporting),
        op("Max", Role::Supporting),
        op("Concat", Role::OneScale),
    ],
    moves: &[
        "MaxPool",
        "ReduceMax",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Split",
        "Tile",
        "Slice",
        "Pad",
        "Gather",
        "DepthToSpace",
        "Expand",
        "Flatten",
    ],
    activation_products: true,
    limits: &[],
    bias: Bias::Float,
    clamps: Clamps::Apart,
    weight_only: true,
    formats: &[],
    grouped_transpose_scales: true,
    half: true,
    integer_operators: false,
    contrib: false,
    rules: &[
        rule(
            "placement",
            "pairs stand on the inputs of Conv, ConvTranspose, Gemm, MatMul, and between those also of Add, Mul, Sub, AveragePool, GlobalAveragePool, BatchNormalization, HardSigmoid, Resize, Pow, Min and Max",
        ),
        rule("activations", "uint8 or int8, one scale a tensor"),
        rule(
            "weights",
            "int8, symmetric, −127..127, a scale for each output channel",
        ),
        rule("bias", "float"),
        rule("Relu, Clip", "not transparent: the pair stands behind them"),
        rule(
            "operators that move values",
            "transparent: they get no pair of their own",
        ),
        rule("Concat", "inputs and output share one scale"),
        rule("products of two activations", "both inputs are quantized"),
        rule(
            "qoperator, --dynamic",
            "refused: OpenVINO reads the Q/DQ form",
        ),
    ],
};
