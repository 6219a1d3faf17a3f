"""Generated models: architectures, operators and how they are connected."""

import numpy as np
from onnx import TensorProto as T

from netcase import case, variants
from netlib import Net


# Convolutional nets of every opset -----------------------------------------------------------------------------------


@variants("classic", [7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22, 23], expect={"QLinearConv": 3, "QGemm": 1})
def classic(opset):
    """Conv, BatchNormalization, Relu6, residual, Dropout, Squeeze, a dense layer; attributes as that opset had them."""
    n = Net(opset, seed=opset)
    x = n.input("x", ["N", 3, 8, 8])
    x = n.op("Relu", n.batchnorm(n.conv(x, 3, 8, bias=False), 8))
    y = n.batchnorm(n.conv(x, 8, 8, group=8), 8)
    y = n.op("Clip", y, min=0.0, max=6.0) if opset < 11 else n.op("Clip", y, n.const(np.float32(0)), n.const(np.float32(6)))
    y = n.batchnorm(n.conv(y, 8, 8, k=1), 8)
    x = n.op("Add", x, y)
    axes = [2, 3]
    x = n.op("ReduceMean", x, axes=axes, keepdims=1) if opset < 18 else n.op("ReduceMean", x, n.ints(*axes), keepdims=1)
    if opset < 12:
        x = n.op("Dropout", x, ratio=0.3)
    else:
        x = n.op("Dropout", x, n.const(np.float32(0.3)))
    x = n.op("Squeeze", x, axes=axes) if opset < 13 else n.op("Squeeze", x, n.ints(*axes))
    x = n.op("Gemm", x, n.weight(10, 8), n.bias(10), out="logits", transB=1)
    n.output("logits", ["N", 10])
    return n


@variants("upsample", [7, 9, 10, 11, 13, 18])
def upsample(opset):
    """A decoder that doubles its size, in the form of its time."""
    n = Net(opset, seed=opset + 40)
    x = n.conv(n.input("x", ["N", 3, 6, 6]), 3, 8, relu=True)
    scales = [1.0, 1.0, 2.0, 2.0]
    if opset < 9:
        x = n.op("Upsample", x, scales=scales, mode="nearest")
    elif opset == 9:
        x = n.op("Upsample", x, n.const(np.array(scales, np.float32)), mode="nearest")
    elif opset == 10:
        x = n.op("Resize", x, n.const(np.array(scales, np.float32)), mode="nearest")
    else:
        roi = n.const(np.zeros(0, np.float32))
        x = n.op("Resize", x, roi, n.const(np.array(scales, np.float32)), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    n.conv(x, 8, 4, out="y")
    n.output("y", ["N", 4, 12, 12])
    return n


@case("resize-linear", expect={"QLinearConv": 2})
def resize_linear():
    n = Net()
    x = n.conv(n.input("x", ["N", 3, 6, 6]), 3, 8, relu=True)
    x = n.op("Resize", x, "", n.const(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    n.conv(x, 8, 4, out="y")
    n.output("y", ["N", 4, 12, 12])
    return n


# Convolutions --------------------------------------------------------------------------------------------------------


@case("conv-forms", expect={"QLinearConv": 5})
def conv_forms():
    """Depthwise, grouped, dilated, strided, asymmetric padding, auto_pad."""
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 12, 12]), 4, 8, strides=[2, 2], pads=[0, 1, 1, 0])
    x = n.conv(x, 8, 8, group=8, relu=True)
    x = n.conv(x, 8, 12, group=4, dilations=[2, 2], pads=[2, 2, 2, 2], relu=True)
    w = n.weight(6, 12, 3, 3)
    x = n.op("Conv", x, w, auto_pad="SAME_UPPER", strides=[2, 2])
    n.conv(x, 6, 6, k=1, out="y")
    n.output("y", ["N", 6, "h", "w"])
    return n


@case("conv-1d", expect={"QLinearConv": 2})
def conv_1d():
    n = Net()
    x = n.input("x", ["N", 4, "length"], np.random.default_rng(1).normal(0, 1, (24, 4, 30)).astype(np.float32))
    x = n.op("Relu", n.op("Conv", x, n.weight(8, 4, 5), n.bias(8), pads=[2, 2]))
    n.op("Conv", x, n.weight(4, 8, 3), out="y")
    n.output("y", ["N", 4, "m"])
    return n


@case("conv-3d", expect={"QLinearConv": 2})
def conv_3d():
    n = Net(samples=10)
    x = n.op("Relu", n.op("Conv", n.input("x", ["N", 2, 5, 6, 6]), n.weight(6, 2, 3, 3, 3), n.bias(6), pads=[1] * 6))
    x = n.op("MaxPool", x, kernel_shape=[1, 2, 2], strides=[1, 2, 2])
    n.op("Conv", x, n.weight(3, 6, 1, 1, 1), out="y")
    n.output("y", ["N", 3, 5, 3, 3])
    return n


@case("conv-transpose", expect={"QLinearConv": 2})
def conv_transpose():
    n = Net()
    x = n.conv(n.input("x", ["N", 3, 6, 6]), 3, 8, relu=True)
    x = n.op("ConvTranspose", x, n.weight(8, 6, 2, 2, fan=8), n.bias(6), strides=[2, 2])
    x = n.op("Relu", x)
    x = n.op("ConvTranspose", x, n.weight(6, 2, 3, 3, fan=6), group=3, strides=[2, 2], output_padding=[1, 1])
    n.conv(x, 6, 2, out="y")
    n.output("y", ["N", 2, "h", "w"])
    return n


@case("bias-computed")
def bias_computed():
    """A bias that is the result of another layer."""
    n = Net(samples=6)
    x = n.input("x", [1, 3, 6, 6])
    b = n.op("Reshape", n.op("ReduceMean", x, n.ints(0, 2, 3), keepdims=0), n.ints(3))
    x = n.op("Conv", x, n.weight(3, 3, 3, 3), b)
    n.conv(x, 3, 4, out="y")
    n.output("y", [1, 4, 4, 4])
    return n


# Dense layers --------------------------------------------------------------------------------------------------------


@case("gemm-forms", expect={"QGemm": 6})
def gemm_forms():
    n = Net()
    x = n.input("x", ["N", 16])
    x = n.op("Relu", n.op("Gemm", x, n.weight(16, 24, fan=16), n.bias(24)))
    x = n.op("Relu", n.op("Gemm", x, n.weight(24, 24), n.bias(1, 24), transB=1))
    x = n.op("Relu", n.op("Gemm", x, n.weight(24, 24), n.const(np.float32(0.2)), transB=1))
    x = n.op("Relu", n.op("Gemm", x, n.weight(24, 24), n.const(np.array([0.2], np.float32)), transB=1))
    x = n.op("Relu", n.op("Gemm", x, n.weight(24, 24), transB=1))
    n.op("Gemm", x, n.weight(10, 24), n.bias(10), transB=1, out="y")
    n.output("y", ["N", 10])
    return n


@case("gemm-alpha-beta", expect={})
def gemm_alpha_beta():
    n = Net()
    x = n.op("Gemm", n.input("x", ["N", 16]), n.weight(16, 24, fan=16), n.bias(24), alpha=0.5, beta=2.0)
    x = n.op("Gemm", n.op("Relu", x), n.weight(24, 12, fan=24), n.bias(12), beta=0.0)
    n.op("Gemm", x, n.weight(12, 8, fan=12), alpha=2.0, out="y")
    n.output("y", ["N", 8])
    return n


@case("gemm-trans-a")
def gemm_trans_a():
    n = Net(samples=6)
    x = n.op("Gemm", n.input("x", [16, "k"], np.random.default_rng(2).normal(0, 1, (4, 16, 5)).astype(np.float32)), n.weight(16, 12, fan=16), n.bias(5, 12), transA=1)
    n.op("MatMul", x, n.weight(12, 8, fan=12), out="y")
    n.output("y", ["k", 8])
    return n


@case("matmul-forms")
def matmul_forms():
    """Two and three dimensions, a batched constant, a constant on the left, a vector."""
    n = Net(samples=10)
    x = n.input("x", ["N", 4, 6, 16])
    x = n.op("Add", n.op("MatMul", x, n.weight(16, 16, fan=16)), n.bias(16))
    x = n.op("Relu", x)
    x = n.op("MatMul", x, n.weight(4, 16, 12, fan=16))
    x = n.op("MatMul", n.weight(8, 6, fan=6), x)
    x = n.op("MatMul", x, n.weight(12, fan=12), out="y")
    n.output("y", ["N", 4, 8])
    return n


@case("matmul-2d")
def matmul_2d():
    n = Net()
    x = n.op("Relu", n.op("MatMul", n.input("x", ["N", 16]), n.weight(16, 32, fan=16)))
    x = n.op("Relu", n.op("Add", n.op("MatMul", x, n.weight(32, 32, fan=32)), n.bias(32)))
    n.op("MatMul", x, n.weight(32, 10, fan=32), out="y")
    n.output("y", ["N", 10])
    return n


@case("attention")
def attention():
    """A transformer block: both kinds of MatMul, Softmax, LayerNormalization, Gelu as exporters spell it."""
    n = Net(17, samples=12)
    d, h = 32, 4
    x = n.input("x", ["N", 10, d])

    def split(v):
        return n.op("Reshape", v, n.ints(0, 0, h, d // h))

    q, k, v = (split(n.op("Add", n.op("MatMul", x, n.weight(d, d, fan=d)), n.bias(d))) for _ in range(3))
    q, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    k = n.op("Transpose", k, perm=[0, 2, 3, 1])
    s = n.op("Softmax", n.op("Div", n.op("MatMul", q, k), n.const(np.float32(np.sqrt(d // h)))), axis=-1)
    o = n.op("Transpose", n.op("MatMul", s, v), perm=[0, 2, 1, 3])
    o = n.op("MatMul", n.op("Reshape", o, n.ints(0, 0, d)), n.weight(d, d, fan=d))
    x = n.op("LayerNormalization", n.op("Add", x, o), n.const(np.ones(d, np.float32)), n.bias(d))
    f = n.op("MatMul", x, n.weight(d, 2 * d, fan=d))
    g = n.op("Erf", n.op("Div", f, n.const(np.float32(np.sqrt(2)))))
    f = n.op("Mul", n.op("Mul", f, n.op("Add", g, n.const(np.float32(1)))), n.const(np.float32(0.5)))
    f = n.op("MatMul", f, n.weight(2 * d, d, fan=2 * d))
    n.op("Add", x, f, out="y")
    n.output("y", ["N", 10, d])
    return n


# Sharing -------------------------------------------------------------------------------------------------------------


@case("shared-conv-weight", expect={"QLinearConv": 3})
def shared_conv_weight():
    n = Net()
    w, b = n.weight(4, 4, 3, 3), n.bias(4)
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 4, relu=True)
    x = n.op("Relu", n.op("Conv", x, w, b, pads=[1] * 4))
    n.op("Conv", x, w, b, pads=[1] * 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("weight-used-in-float", expect={"QLinearConv": 1}, runs_in_tract=False)
def weight_used_in_float():
    """A weight of a Conv that is also multiplied, and is an output of the model."""
    n = Net()
    x = n.input("x", ["N", 4, 8, 8])
    w = n.weight(4, 4, 1, 1, name="w")
    n.op("Conv", x, w, out="y")
    n.op("Mul", w, n.const(np.float32(2)), out="twice")
    n.op("Mul", n.op("ReduceMean", x, keepdims=0), w, out="z")
    n.output("y", ["N", 4, 8, 8])
    n.output("twice", [4, 4, 1, 1])
    n.output("z", [4, 4, 1, 1])
    n.output("w", [4, 4, 1, 1])
    return n


@case("tied-embedding")
def tied_embedding():
    n = Net()
    ids = n.rng.integers(0, 50, (n.samples, 7))
    table = n.weight(50, 16, fan=2)
    x = n.op("Gather", table, n.input("ids", ["N", "T"], ids, T.INT64))
    x = n.op("Relu", n.op("MatMul", x, n.weight(16, 16, fan=16)))
    n.op("MatMul", x, n.op("Transpose", table, perm=[1, 0]), out="y")
    n.output("y", ["N", "T", 50])
    return n


@case("gemm-weight-in-both-orders")
def gemm_both_orders():
    n = Net()
    w = n.weight(16, 16)
    x = n.op("Relu", n.op("Gemm", n.input("x", ["N", 16]), w, transB=1))
    n.op("Gemm", x, w, out="y")
    n.output("y", ["N", 16])
    return n


# Connections ---------------------------------------------------------------------------------------------------------


@case("residual-two-convs", expect={"QLinearConv": 4, "QLinearAdd": 1})
def residual():
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, relu=True)
    x = n.op("Relu", n.op("Add", n.conv(x, 8, 8), n.conv(x, 8, 8, k=1)))
    n.conv(x, 8, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("add-to-itself", expect={"QLinearConv": 2, "QLinearAdd": 1, "QLinearMul": 1})
def add_to_itself():
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, relu=True)
    x = n.op("Add", x, x)
    x = n.op("Mul", x, x)
    n.conv(x, 8, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("concat-branches", expect={"QLinearConv": 4, "QLinearConcat": 1})
def concat_branches():
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, relu=True)
    pooled = n.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    x = n.op("Concat", n.conv(x, 8, 4, relu=True), n.conv(x, 8, 4, k=1), pooled, axis=1)
    n.conv(x, 16, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("activations")
def activations():
    """SiLU, HardSwish, LeakyRelu, PRelu, Sigmoid gates and Tanh between convolutions."""
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8)
    x = n.conv(n.op("Mul", x, n.op("Sigmoid", x)), 8, 8)
    x = n.conv(n.op("HardSwish", x), 8, 8)
    x = n.conv(n.op("LeakyRelu", x, alpha=0.1), 8, 8)
    x = n.conv(n.op("PRelu", x, n.const(np.full((8, 1, 1), 0.2, np.float32))), 8, 8)
    x = n.op("Tanh", x)
    gate = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", x), 8, 8, k=1))
    n.conv(n.op("Mul", x, gate), 8, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("pooling-softmax")
def pooling():
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 12, 12]), 4, 8, relu=True)
    x = n.op("AveragePool", n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), kernel_shape=[2, 2])
    a = n.op("Softmax", n.op("Reshape", n.conv(x, 8, 1, k=1), n.ints(0, 1, -1)), axis=2)
    x = n.op("Mul", n.op("Reshape", x, n.ints(0, 8, -1)), a)
    x = n.op("ReduceSum", x, n.ints(2), keepdims=0)
    n.op("Softmax", n.op("Gemm", x, n.weight(6, 8), n.bias(6), transB=1), out="y")
    n.output("y", ["N", 6])
    return n


@case("movers", expect={"QLinearConv": 4})
def movers():
    """Split, Slice, Transpose, Reshape, Squeeze, Unsqueeze, Gather, Tile, Expand, DepthToSpace between convolutions."""
    n = Net()
    x = n.conv(n.input("x", [1, 4, 8, 8]), 4, 8, relu=True)
    a, b = n.op("Split", x, outs=2, axis=1, num_outputs=2)
    a = n.op("Transpose", n.op("Slice", a, n.ints(0), n.ints(8), n.ints(2)), perm=[0, 1, 3, 2])
    b = n.op("Gather", b, n.ints(3, 0, 1, 2), axis=1)
    a = n.op("Squeeze", n.op("Unsqueeze", n.conv(a, 4, 4, relu=True), n.ints(0)), n.ints(0))
    b = n.op("Reshape", n.op("Reshape", n.conv(b, 4, 4), n.ints(1, 2, 2, 64)), n.ints(1, 4, 8, 8))
    x = n.op("Concat", n.op("Tile", a, n.ints(1, 1, 1, 1)), b, axis=1)
    x = n.op("DepthToSpace", x, blocksize=2)
    n.conv(x, 2, 3, out="y")
    n.output("y", [1, 3, 16, 16])
    return n


@case("split-uneven", expect={"QLinearConv": 3})
def split_uneven():
    n = Net(12)
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, relu=True)
    a, b = n.op("Split", x, outs=2, axis=1, split=[3, 5])
    n.conv(a, 3, 2, out="y")
    n.conv(b, 5, 2, out="z")
    n.output("y", ["N", 2, 8, 8])
    n.output("z", ["N", 2, 8, 8])
    return n


@case("pad", expect={"QLinearConv": 2})
def pad():
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, relu=True, pads=[0] * 4)
    x = n.op("Pad", x, n.ints(0, 0, 1, 1, 0, 0, 1, 1), n.const(np.float32(0)), mode="constant")
    n.conv(x, 8, 4, pads=[0] * 4, out="y")
    n.output("y", ["N", 4, 6, 6])
    return n


@case("output-consumed-further", expect={"QLinearConv": 3})
def output_consumed():
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, relu=True, out="features")
    n.conv(n.op("MaxPool", x, kernel_shape=[2, 2], out="pooled"), 8, 4, out="y")
    n.output("features", ["N", 8, 8, 8])
    n.conv(x, 8, 2, k=1, out="z")
    n.output("pooled", ["N", 8, 7, 7])
    n.output("y", ["N", 4, 7, 7])
    n.output("z", ["N", 2, 8, 8])
    return n


@case("conv-output-before-relu", expect={"QLinearConv": 2})
def conv_output_before_relu():
    """The value between a Conv and its Relu is an output itself."""
    n = Net()
    x = n.conv(n.input("x", ["N", 4, 8, 8]), 4, 8, out="raw")
    n.conv(n.op("Relu", x), 8, 4, out="y")
    n.output("raw", ["N", 8, 8, 8])
    n.output("y", ["N", 4, 8, 8])
    return n


@case("input-is-output", expect={"QLinearConv": 1})
def input_is_output():
    n = Net()
    x = n.input("x", ["N", 4, 8, 8])
    n.output("x", ["N", 4, 8, 8])
    n.conv(x, 4, 4, out="y")
    n.output("y", ["N", 4, 8, 8])
    return n


@case("odd-names", expect={"QLinearConv": 4})
def odd_names():
    """Nodes without names; slashes, spaces, other alphabets, and the names that insertions would take."""
    n = Net()
    x = n.input("in put/α:0", ["N", 4, 8, 8])
    x = n.op("Conv", x, n.weight(4, 4, 3, 3, name="w/weight α"), name="", pads=[1] * 4, out="/a/b/Conv_output_0")
    x = n.op("Relu", x, name="", out="x y")
    x = n.op("Conv", x, n.weight(4, 4, 3, 3, name="x y_scale"), name="first", out="x y_QuantizeLinear_Output")
    x = n.op("Conv", x, n.weight(4, 4, 1, 1, name="w_quantized"), name="日本/second", out="日本")
    x = n.op("Conv", x, n.weight(4, 4, 1, 1, name="w_zero_point"), name="third one", out="out put/ω:0")
    n.output("out put/ω:0", ["N", 4, 6, 6])
    return n


@case("node-names-twice", runs=False)
def node_names_twice():
    """Several nodes with one name, which onnxruntime refuses also in the float model."""
    n = Net()
    x = n.op("Conv", n.input("x", ["N", 4, 8, 8]), n.weight(4, 4, 3, 3), name="twin")
    x = n.op("Relu", x, name="twin")
    n.op("Conv", x, n.weight(4, 4, 1, 1), name="twin", out="y")
    n.output("y", ["N", 4, 6, 6])
    return n
