//! TensorRT with explicit quantization: pairs on the inputs of the operators that tensor cores run, and nowhere else.
//!
//! Source: NVIDIA, *TensorRT Developer Guide*, "Working with quantized types"; the placement of NVIDIA's ModelOpt.

use onnx_quant_numerics::format::{Base, Scheme};

use super::{Bias, Clamps, FormatRule, Limit, Pairs, Role, Target, TargetName, Use, op, rule};

const PRODUCTS: &[&str] = &["Gemm", "MatMul"];

/// What is read of each number format.
const FORMATS: &[FormatRule] = &[
    FormatRule {
        base: Base::INT8,
        blocks: &[],
        used: Use::Both,
        ops: &["Conv", "ConvTranspose", "Gemm", "MatMul"],
    },
    FormatRule {
        base: Base::FP8_E4M3,
        blocks: &[],
        used: Use::Both,
        ops: &["Conv", "Gemm", "MatMul"],
    },
    FormatRule {
        base: Base::INT4,
        blocks: &[64, 128],
        used: Use::Weights,
        ops: PRODUCTS,
    },
    FormatRule {
        base: Base::Mxfp8,
        blocks: &[32],
        used: Use::Both,
        ops: PRODUCTS,
    },
    FormatRule {
        base: Base::Nvfp4,
        blocks: &[16],
        used: Use::Both,
        ops: PRODUCTS,
    },
];

/// The table.
pub const TARGET: Target = Target {
    name: TargetName::TensorRt,
    word: "tensorrt",
    title: "TensorRT",
    pairs: Pairs::Inputs,
    activations: &[Base::INT8],
    weights: &[Base::INT8],
    activation_scheme: Some(Scheme::Symmetric),
    weight_scheme: Some(Scheme::Symmetric),
    ops: &[
        op("Conv", Role::Linear { codes: false }),
        op("ConvTranspose", Role::Linear { codes: false }),
        op("Gemm", Role::Linear { codes: false }),
        op("MatMul", Role::Linear { codes: false }),
        op("Add", Role::SkipBranch),
        op("Concat", Role::OneScale),
        op("LayerNormalization", Role::BehindConv),
    ],
    moves: &[
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
        "Split",
        "MaxPool",
        "DepthToSpace",
        "SpaceToDepth",
    ],
    activation_products: true,
    limits: &[
        Limit::ConvChannels(16),
        Limit::MatMulSize(16),
        Limit::MatrixVector,
    ],
    bias: Bias::Float,
    clamps: Clamps::Fused,
    weight_only: false,
    formats: FORMATS,
    grouped_transpose_scales: false,
    half: true,
    integer_operators: false,
    contrib: false,
    rules: &[
        rule(
            "placement",
            "pairs stand on the inputs of Conv, ConvTranspose, Gemm and MatMul, not on outputs; TensorRT fuses BatchNormalization, Relu and Clip itself",
        ),
        rule(
            "activations",
            "int8, symmetric: zero point 0, one scale a tensor",
        ),
        rule(
            "weights",
            "int8, symmetric, a scale for each output channel: Conv axis 0, ConvTranspose axis 1 (with groups one scale for the tensor), MatMul the last axis, Gemm by transB",
        ),
        rule(
            "bias",
            "float: an INT32 bias behind a DequantizeLinear is rejected",
        ),
        rule(
            "residual Add",
            "the skip branch is quantized; the branch on the longest path from the common ancestor is not, so that the Add fuses with its convolution",
        ),
        rule("Concat", "inputs and output share one scale"),
        rule(
            "LayerNormalization",
            "gets a pair where a convolution makes its input",
        ),
        rule("products of two activations", "both inputs are quantized"),
        rule(
            "left out",
            "Conv with fewer than 16 input or output channels, matrix products with K or N below 16, products with a vector",
        ),
        rule(
            "without calibration",
            "int4 weights of Gemm and MatMul; INT8 weights alone have no kernel",
        ),
        rule(
            "int4",
            "weights alone, of Gemm and MatMul, symmetric, in blocks of 64 or 128: they are dequantized, and the activation stays in float",
        ),
        rule(
            "fp8e4m3",
            "activations and weights, both: one scale a tensor, for weights also a channel; opset 19; not ConvTranspose",
        ),
        rule(
            "mxfp8, nvfp4",
            "activations and weights of Gemm and MatMul, both: blocks of 32 with a power of two, blocks of 16 with an fp8e4m3 scale (opset 23)",
        ),
        rule(
            "qoperator, --dynamic",
            "refused: TensorRT has none of these operators",
        ),
    ],
};
