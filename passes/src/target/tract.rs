//! tract: the standard's integer operators; Q/DQ around anything else is calculated in float.
//!
//! Source: measured with tract-onnx 0.23.

use onnx_quant_numerics::format::Base;

use super::{Bias, Clamps, Pairs, Role, Target, TargetName, op, rule};

/// The table.
pub const TARGET: Target = Target {
    name: TargetName::Tract,
    word: "tract",
    title: "tract",
    pairs: Pairs::Around,
    activations: &[Base::UINT8, Base::INT8],
    weights: &[Base::INT8, Base::UINT8],
    activation_scheme: None,
    weight_scheme: None,
    ops: &[
        op("Conv", Role::Linear { codes: true }),
        op("Gemm", Role::Linear { codes: false }),
        op("MatMul", Role::Linear { codes: false }),
        op(
            "ConvTranspose",
            Role::NoKernel("tract has no integer operator for ConvTranspose"),
        ),
    ],
    moves: &[
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "MaxPool",
    ],
    activation_products: false,
    limits: &[],
    bias: Bias::Int32,
    clamps: Clamps::Redundant,
    weight_only: true,
    formats: &[],
    grouped_transpose_scales: true,
    half: false,
    integer_operators: true,
    contrib: false,
    rules: &[
        rule(
            "placement",
            "pairs stand before and behind Conv, Gemm and MatMul",
        ),
        rule(
            "activations",
            "uint8 or int8, one scale a tensor, FP32 scales; the zero point is always written",
        ),
        rule(
            "weights",
            "int8 or uint8 a channel; tract folds a DequantizeLinear of a constant to FP32 when it loads the model",
        ),
        rule("bias", "INT32 with scale input × weight"),
        rule(
            "Add, Mul, Concat, pooling, activation functions",
            "float: tract has no integer operator for them",
        ),
        rule("FP16 models", "float: tract refuses FP16 scales"),
        rule(
            "qoperator",
            "QLinearConv, QLinearMatMul, MatMulInteger, ConvInteger, DynamicQuantizeLinear; a Gemm becomes MatMulInteger with an INT32 bias",
        ),
    ],
};
