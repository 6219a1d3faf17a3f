"""Integer operators against the Q/DQ form, in onnxruntime.

    python3 tests/crosscheck/qoperator.py BINARY OUTPUT_FOLDER

Models of every operator that has an integer form are quantized with `--format qdq` and with `--format qoperator`: the
second has no float operator between codes, and every value of codes that both share differs by at most one step. With
`--dynamic` the outputs are near the float model's and onnxruntime and tract agree. All of it with and without
`session.x64quantprecision`, where onnxruntime has kernels for both. The exit code is 1 where something does not hold.
"""

import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(5)


def weight(name, *shape):
    return numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)


def model(name, nodes, inputs, outputs, initializers):
    info = lambda names: [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in names]
    graph = helper.make_graph(nodes, name, info(inputs), info(outputs), initializers)
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(m, full_check=True)
    return m


def image_net():
    n = helper.make_node
    return model(
        "image_net",
        [
            n("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
            n("Relu", ["c1"], ["r1"], "relu1"),
            n("Conv", ["r1", "wd"], ["c2"], "depthwise", pads=[1] * 4, group=16),
            n("Conv", ["c2", "w2"], ["c3"], "conv3"),
            n("Add", ["r1", "c3"], ["s"], "add"),
            n("Mul", ["s", "r1"], ["m"], "mul"),
            n("LeakyRelu", ["m"], ["l"], "leaky", alpha=0.1),
            n("Concat", ["l", "c3"], ["j"], "join", axis=1),
            n("MaxPool", ["j"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
            n("AveragePool", ["p"], ["a"], "mean", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]),
            n("Conv", ["a", "w3", "b3"], ["c4"], "conv4"),
            n("Sigmoid", ["c4"], ["g"], "gate"),
            n("Conv", ["g", "w4"], ["c5"], "conv5", strides=[2, 2]),
            n("GlobalAveragePool", ["c5"], ["o"], "global"),
            n("Flatten", ["o"], ["f"], "flat"),
            n("Gemm", ["f", "w5", "b5"], ["y"], "head", transB=1),
        ],
        [("x", ["N", 3, 16, 16])],
        [("y", ["N", 10])],
        [
            weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("wd", 16, 1, 3, 3), weight("w2", 16, 16, 1, 1),
            weight("w3", 24, 32, 1, 1), weight("b3", 24), weight("w4", 20, 24, 1, 1), weight("w5", 10, 20), weight("b5", 10),
        ],
    ), {"x": random.standard_normal((48, 3, 16, 16)).astype(np.float32)}


def dense_net():
    n = helper.make_node
    return model(
        "dense_net",
        [
            n("MatMul", ["x", "w1"], ["h"], "first"),
            n("MatMul", ["h", "w2"], ["k"], "second"),
            n("Softmax", ["k"], ["t"], "soft", axis=-1),
            n("MatMul", ["t", "w3"], ["y"], "third"),
        ],
        [("x", ["N", 6, 32])],
        [("y", ["N", 6, 8])],
        [weight("w1", 32, 24), weight("w2", 24, 16), weight("w3", 16, 8)],
    ), {"x": random.standard_normal((48, 6, 32)).astype(np.float32)}


def recurrent_net():
    n = helper.make_node
    zeros = numpy_helper.from_array(np.zeros((1, 1, 16), np.float32), "zeros")
    return model(
        "recurrent_net",
        [
            n("LSTM", ["x", "w", "r", "b", "", "zeros", "zeros"], ["h"], "lstm", hidden_size=16),
            n("GRU", ["x", "v", "q"], ["g"], "gru", hidden_size=16),
            n("Add", ["h", "g"], ["s"], "add"),
            n("MatMul", ["s", "p"], ["y"], "product"),
        ],
        [("x", [12, 1, 8])],
        [("y", [12, 1, 1, 4])],
        [weight("w", 1, 64, 8), weight("r", 1, 64, 16), weight("b", 1, 128), weight("v", 1, 48, 8), weight("q", 1, 48, 16), weight("p", 16, 4), zeros],
    ), {"x": random.standard_normal((12, 12, 1, 8)).astype(np.float32)}


def session(path, exact, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, data, exact, **options):
    s = session(path, exact, **options)
    whole = len(s.get_inputs()[0].shape) < next(iter(data.values())).ndim
    if not whole:
        return s.run(None, data)
    rows = [s.run(None, {k: v[i] for k, v in data.items()}) for i in range(len(next(iter(data.values()))))]
    return [np.stack(r) for r in zip(*rows)]


def sqnr(reference, other):
    noise = ((reference - other).astype(np.float64) ** 2).sum()
    return 999.0 if noise == 0 else float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise))


def with_codes(path):
    """The model with all its values of codes as outputs, and their names."""
    m = onnx.load(path)
    made = {}
    for node in m.graph.node:
        zero = {"QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7, "QGemm": 8, "QLinearAdd": 7, "QLinearMul": 7,
                "QLinearConcat": 1}.get(node.op_type, 4 if node.op_type.startswith("QLinear") else None)
        if zero is not None and len(node.input) > zero:
            made[node.output[0]] = node.input[zero]
    types = {t.name: t.data_type for t in m.graph.initializer}
    del m.graph.output[:]
    for value, zero in made.items():
        m.graph.output.append(helper.make_tensor_value_info(value, types[zero], None))
    target = pathlib.Path(path).with_suffix(".codes.onnx")
    onnx.save(m, target)
    return target, list(made)


class Check:
    def __init__(self, binary, out):
        self.binary, self.out, self.faults = binary, out, []

    def fault(self, what):
        self.faults.append(what)

    def run(self, *arguments):
        done = subprocess.run([str(a) for a in (self.binary, *arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{arguments}: {done.stderr.strip()[-800:]}")

    def quantize(self, name, kind, *options):
        target = self.out / f"{name}.{kind}.onnx"
        self.run("quantize", self.out / f"{name}.onnx", "-o", target, "--verify-each", *options)
        return target

    def static(self, name, data, target, options, operators):
        common = ("--calib", self.out / f"{name}.npz", "--min-activation-sqnr", "5", "--target", target, *options)
        label = f"{name} for {target} {' '.join(options)}"
        pairs = self.quantize(name, f"{target}.qdq", *common)
        lowered = self.quantize(name, f"{target}.qoperator", *common, "--format", "qoperator")
        counts = {}
        for node in onnx.load(lowered).graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        for op, number in operators.items():
            if counts.get(op, 0) != number:
                self.fault(f"{label}: {counts.get(op, 0)} {op} where {number} were expected in {counts}")
        # Each operator for itself: with the input of all the others equal, a step is a step.
        a, names = with_codes(pairs)
        b, others = with_codes(lowered)
        shared = [n for n in names if n in others]
        if len(shared) < 3:
            self.fault(f"{label}: only {shared} are in both")
        fed = dict(zip(names, outputs(a, data, True, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)))
        got = dict(zip(others, outputs(b, data, True, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)))
        for value in shared:
            step = np.abs(fed[value].astype(int) - got[value].astype(int))
            # A step at a tie of one operator can be a few in those behind it.
            if (step > 1).mean() > 0.001 or (step > 0).mean() > 0.02:
                self.fault(f"{label}: `{value}` differs by {step.max()} steps, in {(step > 0).mean():.2%} of its values")
        # With that option onnxruntime makes int8 weights uint8, for which it has no kernel with int8 activations.
        for exact in (False,) if "arm" in options else (True, False):
            near = sqnr(outputs(pairs, data, exact)[0], outputs(lowered, data, exact)[0])
            # Both are the same kernels there.
            if near < 45:
                self.fault(f"{label}: the outputs of both forms are {near:.1f} dB from each other")
        self.tract(label, lowered, data)

    def tract(self, label, file, data):
        ours = self.out / "tract.npz"
        source = self.out / "feed.npz"
        np.savez(source, **data)
        self.run("run", file, "--data", source, "-o", ours)
        found = dict(np.load(ours))
        plain = outputs(file, data, True, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)[0]
        near = sqnr(plain, next(iter(found.values())).reshape(plain.shape))
        if near < 25:
            self.fault(f"{label}: tract is {near:.1f} dB from onnxruntime")

    def dynamic(self, name, data, operators, floor, *options):
        file = self.quantize(name, "dynamic", "--dynamic", *options)
        counts = {}
        for node in onnx.load(file).graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        for op, number in operators.items():
            if counts.get(op, 0) != number:
                self.fault(f"{name} dynamic: {counts.get(op, 0)} {op} where {number} were expected in {counts}")
        real = outputs(self.out / f"{name}.onnx", data, False)[0]
        for exact in (True, False):
            near = sqnr(real, outputs(file, data, exact)[0])
            if exact and near < floor:
                self.fault(f"{name} dynamic: {near:.1f} dB, less than {floor}")
        self.tract(f"{name} dynamic", file, data)


def main():
    binary, out = sys.argv[1], pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    check = Check(binary, out)
    nets = {}
    for build in (image_net, dense_net, recurrent_net):
        m, data = build()
        nets[m.graph.name] = data
        onnx.save(m, out / f"{m.graph.name}.onnx")
        np.savez(out / f"{m.graph.name}.npz", **data)
    ort_ops = {
        "QLinearConv": 5, "QGemm": 1, "QLinearAdd": 1, "QLinearMul": 1, "QLinearConcat": 1, "QLinearLeakyRelu": 1,
        "QLinearAveragePool": 1, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "MaxPool": 1,
        "Conv": 0, "Gemm": 0, "Add": 0, "Mul": 0, "Relu": 0,
    }
    image, dense, recurrent = (nets[n] for n in ("image_net", "dense_net", "recurrent_net"))
    for options in ((), ("--isa", "avx2"), ("--weights", "int8:tensor")):
        check.static("image_net", image, "ort", options, ort_ops)
    check.static("image_net", image, "ort", ("--isa", "arm"), ort_ops)
    check.static("image_net", image, "generic", (), {"QLinearConv": 5, "MatMulInteger": 1, "QGemm": 0})
    check.static("image_net", image, "tract", (), {"QLinearConv": 5, "MatMulInteger": 1, "QGemm": 0})
    check.static("dense_net", dense, "ort", (), {"QLinearMatMul": 1, "MatMulInteger": 2, "MatMul": 0})
    check.static("dense_net", dense, "tract", (), {"QLinearMatMul": 1, "MatMulInteger": 2, "MatMul": 0})
    check.dynamic("image_net", image, {"ConvInteger": 5, "MatMulInteger": 1, "Conv": 0}, 20)
    check.dynamic("dense_net", dense, {"MatMulInteger": 3, "MatMul": 0}, 25)
    check.dynamic("recurrent_net", recurrent, {"DynamicQuantizeLSTM": 1, "GRU": 1, "MatMulInteger": 1}, 25)
    check.dynamic("recurrent_net", recurrent, {"LSTM": 1, "GRU": 1, "MatMulInteger": 1}, 25, "--target", "generic")
    for f in check.faults:
        print("FAULT", f)
    print("qoperator and dynamic:", "faults" if check.faults else "all of it holds")
    return 1 if check.faults else 0


if __name__ == "__main__":
    sys.exit(main())
