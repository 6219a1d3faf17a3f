//! No runtime in particular: what the ONNX standard alone says.

use onnx_quant_numerics::format::Base;

use super::{Bias, Clamps, Pairs, Role, Target, TargetName, op, rule};

/// The table.
pub const TARGET: Target = Target {
    name: TargetName::Generic,
    word: "generic",
    title: "a runtime of the standard",
    pairs: Pairs::Around,
    activations: &[Base::UINT8, Base::INT8],
    weights: &[Base::INT8, Base::UINT8],
    activation_scheme: None,
    weight_scheme: None,
    ops: &[
        op("Conv", Role::Linear { codes: true }),
        op("ConvTranspose", Role::Linear { codes: true }),
        op("Gemm", Role::Linear { codes: false }),
        op("MatMul", Role::Linear { codes: false }),
    ],
    moves: &[
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "GatherElements",
        "Expand",
        "Tile",
        "Split",
        "MaxPool",
        "DepthToSpace",
        "SpaceToDepth",
    ],
    activation_products: false,
    limits: &[],
    bias: Bias::Int32,
    clamps: Clamps::Redundant,
    weight_only: true,
    formats: &[],
    grouped_transpose_scales: true,
    half: true,
    integer_operators: true,
    contrib: false,
    rules: &[
        rule(
            "placement",
            "pairs stand before and behind Conv, ConvTranspose, Gemm and MatMul, and nowhere else",
        ),
        rule("activations", "uint8 or int8, one scale a tensor"),
        rule(
            "weights",
            "int8 or uint8, a scale for each output channel (ConvTranspose with groups: for each input channel)",
        ),
        rule("bias", "INT32 with scale input × weight"),
        rule(
            "qoperator",
            "only operators of the standard: QLinearConv, QLinearMatMul, MatMulInteger, ConvInteger, DynamicQuantizeLinear",
        ),
    ],
};
