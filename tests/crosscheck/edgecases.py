"""Generated models: control flow, types, batches, ranges, files and options."""

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from netcase import case
from netlib import Net, subgraph


# Control flow, functions, foreign operators --------------------------------------------------------------------------


@case("if-with-conv", expect={})
def if_with_conv():
    n = Net(samples=8)
    x = n.conv(n.input("x", ["N", 4, 6, 6], n.rng.normal(0, 1, (8, 1, 4, 6, 6)).astype(np.float32)), 4, 4, relu=True)
    cond = n.input("cond", [], np.arange(8) % 2 == 0, T.BOOL)

    def branch(name, k):
        w = numpy_helper.from_array(n.rng.normal(0, 0.2, (4, 4, k, k)).astype(np.float32), f"{name}_w")
        node = helper.make_node("Conv", [x, f"{name}_w"], [f"{name}_y"], name=f"{name}_conv", pads=[k // 2] * 4)
        return subgraph(name, [node], [], [(f"{name}_y", T.FLOAT, None)], [w])

    z = n.op("If", cond, then_branch=branch("then", 3), else_branch=branch("else", 1))
    n.conv(z, 4, 2, out="y")
    n.output("y", ["N", 2, 6, 6])
    return n


@case("loop-with-matmul", evaluated=False, calibrated=False)
def loop_with_matmul():
    n = Net(samples=6)
    x = n.input("x", ["N", 8])
    w = n.weight(8, 8, fan=8, name="loop_w")
    body = subgraph(
        "body",
        [
            helper.make_node("MatMul", ["state", w], ["m"], name="mm"),
            helper.make_node("Tanh", ["m"], ["next"], name="th"),
            helper.make_node("Identity", ["go"], ["go_on"], name="id"),
        ],
        [("i", T.INT64, []), ("go", T.BOOL, []), ("state", T.FLOAT, ["N", 8])],
        [("go_on", T.BOOL, []), ("next", T.FLOAT, ["N", 8])],
    )
    z = n.op("Loop", n.const(np.int64(3)), "", x, body=body)
    n.op("MatMul", z, n.weight(8, 4, fan=8), out="y")
    n.output("y", ["N", 4])
    return n


@case("local-function", expect={"QLinearConv": 2})
def local_function():
    n = Net(17)
    n.imports.append(helper.make_opsetid("my.functions", 1))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    n.functions.append(helper.make_function("my.functions", "ConvRelu", ["x", "w"], ["y"], nodes, [helper.make_opsetid("", 17)]))
    x = n.op("ConvRelu", n.input("x", ["N", 4, 8, 8]), n.weight(8, 4, 3, 3), domain="my.functions")
    n.op("ConvRelu", x, n.weight(4, 8, 3, 3), domain="my.functions", out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("ml-domain", evaluated=False, calibrated=False)
def ml_domain():
    n = Net(17)
    n.imports.append(helper.make_opsetid("ai.onnx.ml", 3))
    x = n.op("Scaler", n.input("x", ["N", 8]), domain="ai.onnx.ml", offset=[0.1] * 8, scale=[2.0] * 8)
    x = n.op("Gemm", x, n.weight(6, 8), n.bias(6), transB=1)
    n.op("Binarizer", x, domain="ai.onnx.ml", threshold=10.0, out="flags")
    n.op("Identity", x, out="y")
    n.output("y", ["N", 6])
    n.output("flags", ["N", 6])
    return n


@case("custom-domain", evaluated=False, calibrated=False, standard=False, runs=False)
def custom_domain():
    n = Net(17)
    n.imports.append(helper.make_opsetid("acme", 1))
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 4, relu=True)
    x = n.op("Secret", x, n.weight(4, 4, 1, 1), domain="acme")
    n.conv(x, 4, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("custom-domain-calibrated", code=2, says="Secret")
def custom_domain_calibrated():
    return custom_domain()


@case("already-quantized", code=2, says="already quantized")
def already_quantized():
    n = Net()
    x = n.input("x", ["N", 4])
    s, z = n.const(np.float32(0.1)), n.const(np.uint8(3))
    n.op("DequantizeLinear", n.op("QuantizeLinear", x, s, z), s, z, out="y")
    n.output("y", ["N", 4])
    return n


@case("nothing-to-quantize")
def nothing_to_quantize():
    n = Net()
    n.op("Tanh", n.op("Relu", n.input("x", ["N", 4])), out="y")
    n.output("y", ["N", 4])
    return n


@case("lstm")
def lstm():
    n = Net(samples=6)
    x = n.input("x", ["T", 2, 8], n.rng.normal(0, 1, (6, 5, 2, 8)).astype(np.float32))
    y = n.op("LSTM", x, n.weight(1, 64, 8, fan=8), n.weight(1, 64, 16, fan=16), n.bias(1, 128), outs=3, hidden_size=16)[0]
    y = n.op("Squeeze", y, n.ints(1))
    n.op("MatMul", y, n.weight(16, 4, fan=16), out="y")
    n.output("y", ["T", 2, 4])
    return n


# Types ---------------------------------------------------------------------------------------------------------------


def half_scales(small, report, folder):
    types = {t.name: t.data_type for t in small.graph.initializer}
    for node in small.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and types[node.input[1]] != T.FLOAT16:
            yield f"{node.name or node.output[0]} has no FP16 scale"
    if not any(n.op_type == "QuantizeLinear" for n in small.graph.node):
        yield "no activation is quantized"


@case("fp16", check=half_scales)
def fp16():
    n = Net(17, dtype=np.float16)
    x = n.conv(n.input("x", ["N", 3, 8, 8]), 3, 8, relu=True)
    x = n.op("Add", n.conv(x, 8, 8, relu=True), x)
    n.head(n.op("MaxPool", x, kernel_shape=[2, 2]), 8)
    n.output("y", ["N", 10])
    return n


@case("fp16-no-bias", check=half_scales)
def fp16_no_bias():
    n = Net(21, dtype=np.float16)
    x = n.conv(n.input("x", ["N", 3, 8, 8]), 3, 8, relu=True, bias=False)
    n.conv(x, 8, 8, out="y", bias=False)
    n.output("y", ["N", 8, 8, 8])
    return n


@case("fp16-small-weights", check=half_scales, expect={})
def fp16_small_weights():
    """Channels whose scale is below the smallest normal FP16 number."""
    n = Net(17, dtype=np.float16)
    w = n.rng.normal(0, 0.2, (8, 3, 3, 3)) * np.array([1, 1, 0.01, 1, 1e-4, 1, 0, 1]).reshape(8, 1, 1, 1)
    x = n.op("Relu", n.op("Conv", n.input("x", ["N", 3, 8, 8]), n.const(w.astype(np.float16)), n.bias(8)))
    n.conv(x, 8, 4, out="y")
    n.output("y", ["N", 4, 6, 6])
    return n


@case("mixed-fp16-fp32")
def mixed():
    n = Net(19)
    x = n.conv(n.input("x", ["N", 3, 8, 8]), 3, 8, relu=True)
    x = n.op("Cast", x, to=T.FLOAT16)
    x = n.op("Conv", x, n.weight(8, 8, 3, 3, dtype=np.float16), n.bias(8, dtype=np.float16), pads=[1] * 4)
    x = n.op("Relu", x)
    n.conv(n.op("Cast", x, to=T.FLOAT), 8, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("inputs-of-many-types")
def many_types():
    n = Net(samples=8)
    x = n.conv(n.input("x", ["N", 4, 6, 6], n.rng.normal(0, 1, (8, 2, 4, 6, 6)).astype(np.float32)), 4, 4, relu=True)
    i = n.input("i", ["N"], n.rng.integers(0, 5, (8, 2)).astype(np.int32), T.INT32)
    l = n.input("l", [], n.rng.integers(1, 4, 8), T.INT64)
    f = n.input("f", ["N", 1, 1, 1], n.rng.random((8, 2, 1, 1, 1)) > 0.5, T.BOOL)
    s = n.input("s", [], n.rng.random(8).astype(np.float32), T.FLOAT)
    x = n.op("Where", f, x, n.op("Mul", x, s))
    g = n.op("Reshape", n.op("Gather", n.weight(5, 4, fan=4), i), n.ints(-1, 4, 1, 1))
    x = n.op("Mul", n.op("Add", x, g), n.op("Cast", l, to=T.FLOAT))
    n.conv(x, 4, 2, out="y")
    n.op("Add", l, n.const(np.int64(1)), out="l1")
    n.output("y", ["N", 2, 6, 6])
    n.output("l1", [], T.INT64)
    return n


# Batches, shapes, ranges ---------------------------------------------------------------------------------------------


@case("fixed-batch", expect={"QLinearConv": 2})
def fixed_batch():
    n = Net(samples=10)
    x = n.conv(n.input("x", [4, 3, 8, 8]), 3, 8, relu=True)
    n.conv(x, 8, 2, out="y")
    n.output("y", [4, 2, 8, 8])
    return n


@case("zero-length")
def zero_length():
    """A cache that is empty at first, as decoders have it."""
    n = Net(samples=6)
    past = n.input("past", [1, "p", 8], np.zeros((6, 1, 0, 8), np.float32))
    x = n.input("x", [1, 3, 8], n.rng.normal(0, 1, (6, 1, 3, 8)).astype(np.float32))
    k = n.op("Concat", past, n.op("MatMul", x, n.weight(8, 8, fan=8)), axis=1, out="present")
    n.op("MatMul", k, n.weight(8, 4, fan=8), out="y")
    n.output("y", [1, "q", 4])
    n.output("present", [1, "q", 8])
    return n


def ranged(name, transform, **expected):
    @case(name, **expected)
    def make():
        n = Net()
        data = n.rng.normal(0, 1, (24, 4, 8, 8)).astype(np.float32)
        x = n.conv(n.input("x", ["N", 4, 8, 8], transform(data).astype(np.float32)), 4, 8, bias=False, relu=True)
        n.conv(x, 8, 4, bias=False, out="y")
        n.output("y", ["N", 4, 8, 8])
        return n


ranged("range-zero", lambda x: x * 0)
ranged("range-positive", lambda x: np.abs(x) + 3)
ranged("range-negative", lambda x: -np.abs(x) - 3)
ranged("range-tiny", lambda x: x * 1e-30)
ranged("range-denormal", lambda x: x * 1e-41, floor=-999.0)
ranged("range-huge", lambda x: x * 1e30)


@case("bias-overflow", floor=20.0)
def bias_overflow():
    """Weights so small that an INT32 bias would overflow with their own scale."""
    n = Net()
    x = n.input("x", ["N", 4, 8, 8])
    w = n.const((n.rng.normal(0, 1, (4, 4, 3, 3)) * np.array([1, 1e-3, 1e-9, 1e-12]).reshape(4, 1, 1, 1)).astype(np.float32))
    x = n.op("Relu", n.op("Conv", x, w, n.const(np.array([1, 2, 3, 40], np.float32))))
    n.conv(x, 4, 4, out="y")
    n.output("y", ["N", 4, 6, 6])
    return n


@case("dead-channel", expect={"QLinearConv": 1, "QGemm": 1})
def dead_channel():
    n = Net()
    w = n.rng.normal(0, 0.3, (8, 4, 3, 3)).astype(np.float32)
    w[2] = 0
    x = n.op("Relu", n.op("Conv", n.input("x", ["N", 4, 8, 8]), n.const(w), n.bias(8), pads=[1] * 4))
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    v = n.rng.normal(0, 0.3, (8, 6)).astype(np.float32)
    v[:, 3] = 0
    n.op("Gemm", x, n.const(v), n.bias(6), out="y")
    n.output("y", ["N", 6])
    return n


def weight_in_float(small, report, folder):
    first = next(n for n in report["nodes"] if n["op"] == "Conv")
    if first["precision"] != "float" or "finite" not in first.get("reason", ""):
        yield f"the report says of a Conv with an infinite weight: {first}"


@case("weight-infinite", floor=-999.0, evaluated=False, calibrated=False, runs=False, check=weight_in_float)
def weight_infinite():
    n = Net()
    w = n.rng.normal(0, 0.3, (8, 4, 3, 3)).astype(np.float32)
    w[0, 0, 0, 0] = np.inf
    x = n.op("Clip", n.op("Conv", n.input("x", ["N", 4, 8, 8]), n.const(w)), n.const(np.float32(-1)), n.const(np.float32(1)))
    n.conv(x, 8, 4, out="y")
    n.output("y", ["N", 4, 6, 6])
    return n


# Files ---------------------------------------------------------------------------------------------------------------


@case("old-ir", ir=3, expect={"QLinearConv": 2, "QGemm": 1})
def old_ir():
    n = Net(9)
    x = n.conv(n.input("x", ["N", 3, 8, 8]), 3, 8, relu=True)
    n.head(n.conv(x, 8, 8, relu=True), 8)
    n.output("y", ["N", 10])
    return n


def small_net(samples=24):
    n = Net(samples=samples, seed=5)
    x = n.conv(n.input("x", ["N", 3, 8, 8]), 3, 8, relu=True)
    x = n.op("Add", n.conv(x, 8, 8, relu=True), x)
    n.head(x, 8)
    n.output("y", ["N", 10])
    return n


def external_file(small, report, folder):
    side = [p.name for p in folder.glob("small*")]
    if "small.onnx.data" not in side:
        yield f"no data file beside the model: {side}"


case("external-in", external=True)(small_net)
case("external-in-and-out", external=True, options=("--external-data",), check=external_file)(small_net)

# Options -------------------------------------------------------------------------------------------------------------


def codes(small, type_, lowest, highest):
    """Weights that are not of the type, or leave the range."""
    used = {n.input[0] for n in small.graph.node if n.op_type == "DequantizeLinear"}
    for t in small.graph.initializer:
        if t.name in used and t.data_type != T.INT32:
            values = numpy_helper.to_array(t)
            if t.data_type != type_ or values.min() < lowest or values.max() > highest:
                yield f"codes {t.name}: type {t.data_type}, {values.min()} to {values.max()}"


def zero_points(small, allowed):
    made = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    for n in small.graph.node:
        if n.op_type == "QuantizeLinear" and int(made[n.input[2]]) not in allowed:
            yield f"{n.name or n.output[0]} has zero point {made[n.input[2]]}"


ALL = {"QLinearConv": 2, "QGemm": 1, "QLinearAdd": 1}
for label, options, extra in [
    ("act-int8", ("--activations", "int8"), {"expect": ALL, "int8_kernels": True}),
    ("act-int8-symmetric", ("--activations", "int8", "--activation-scheme", "symmetric"), {"int8_kernels": True, "check": lambda s, r, f: zero_points(s, [0])}),
    ("act-uint8-symmetric", ("--activation-scheme", "symmetric"), {"check": lambda s, r, f: zero_points(s, [127, 128])}),
    ("weights-uint8", ("--weights", "uint8"), {"check": lambda s, r, f: codes(s, T.UINT8, 0, 255)}),
    ("weights-uint8-asymmetric", ("--weights", "uint8", "--weight-scheme", "asymmetric"), {"expect": ALL}),
    ("weights-int8-asymmetric", ("--weight-scheme", "asymmetric"), {}),
    ("weights-tensor", ("--weights", "int8:tensor"), {"expect": ALL}),
    ("act-int8-weights-uint8", ("--activations", "int8", "--weights", "uint8"), {"int8_kernels": True}),
    ("reduce-range", ("--reduce-range",), {"expect": ALL, "check": lambda s, r, f: codes(s, T.INT8, -64, 64)}),
    ("minmax", ("--calibrator", "minmax"), {"expect": ALL}),
    ("percentile", ("--calibrator", "percentile:99.99"), {"expect": ALL}),
    ("kl", ("--calibrator", "kl"), {"expect": ALL, "floor": 15.0}),
    ("mse", ("--calibrator", "mse"), {"expect": ALL}),
    ("exclude-type", ("--exclude", "Gemm"), {"expect": {"QGemm": 0}}),
    ("exclude-glob", ("--exclude", "Conv_*", "--exclude", "Add_*"), {"expect": {"QLinearConv": 0, "QGemm": 1}}),
    ("include", ("--include", "Conv"), {"expect": {"QLinearConv": 2, "QGemm": 0}}),
    ("weights-only", ("--activations", "none"), {}),
    ("without-data", (), {"calibrated": False}),
]:
    case(f"option-{label}", **{"options": options, **extra})(small_net)
