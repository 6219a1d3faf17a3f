//! onnxruntime's CPU provider: DQ → operator → Q becomes one kernel where every edge is quantized.
//!
//! Source: the QDQ selectors and actions of onnxruntime 1.32, measured with its optimized models.

use onnx_quant_numerics::format::Base;

use super::{Bias, Clamps, Pairs, Role, Target, TargetName, op, rule};

/// The table.
pub const TARGET: Target = Target {
    name: TargetName::Ort,
    word: "ort",
    title: "onnxruntime",
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
            Role::NoKernel("the runtime has no integer kernel for ConvTranspose"),
        ),
        op("Add", Role::Supporting),
        op("Mul", Role::Supporting),
        op("Concat", Role::Supporting),
        op("Where", Role::Supporting),
        op("AveragePool", Role::Supporting),
        op("GlobalAveragePool", Role::Supporting),
        op("LeakyRelu", Role::Supporting),
        op("Sigmoid", Role::Supporting),
        op("Softmax", Role::Supporting),
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
        "ReduceMax",
        "ReduceMin",
        "Resize",
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
    contrib: true,
    rules: &[
        rule(
            "placement",
            "pairs stand before and behind Conv, Gemm and MatMul; a Conv without a Q behind it is not fused",
        ),
        rule(
            "activations",
            "uint8, or int8 with int8 weights; one scale a tensor; the zero point is always written",
        ),
        rule(
            "weights",
            "int8 a channel: Conv axis 0, MatMul the last axis, Gemm by transB; ConvTranspose has no integer kernel, its weights alone are stored as int8",
        ),
        rule("bias", "INT32 with scale input × weight"),
        rule(
            "Add, Mul, Concat, Where, pooling, LeakyRelu, Sigmoid, Softmax",
            "quantized only between integer operators",
        ),
        rule(
            "Relu, Clip",
            "taken into the operator before them where the zero point is the lowest code",
        ),
        rule(
            "operators that move values",
            "the same scale and zero point before and behind them",
        ),
        rule(
            "--isa avx2",
            "weights get 7 bits (−64..64): the kernels add products in 16 bits, which saturate",
        ),
        rule(
            "--isa vnni",
            "uint8 activations and int8 weights, all 8 bits",
        ),
        rule("--isa arm", "int8 activations and int8 weights"),
        rule(
            "qoperator",
            "QLinearConv, QLinearMatMul, MatMulInteger, ConvInteger, DynamicQuantizeLinear, and of com.microsoft QGemm, QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool, QLinearGlobalAveragePool, QLinearLeakyRelu, QLinearSigmoid, QLinearSoftmax, QLinearWhere, DynamicQuantizeLSTM",
        ),
    ],
};
