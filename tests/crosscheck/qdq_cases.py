"""Small Q/DQ models with inputs, and the outputs of the onnx reference evaluator.

usage: qdq_cases.py OUTPUT_FOLDER

Then: QDQ_CASES=OUTPUT_FOLDER cargo test -p onnx-quant --test engine

In two places the reference evaluator leaves the standard, because it casts to int32 before it saturates: a quotient
outside int32 (so also an infinity) and NaN. There the standard's saturation is expected; for NaN, which the standard
leaves open, the lowest code, which is what the evaluator gives when the zero point does not wrap around.
"""

import sys

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from caselib import Cases

T = TensorProto
TYPES = {
    T.INT8: (np.int8, -128, 127),
    T.UINT8: (np.uint8, 0, 255),
    T.INT16: (np.int16, -32768, 32767),
    T.UINT16: (np.uint16, 0, 65535),
    T.INT4: (ml_dtypes.int4, -8, 7),
    T.UINT4: (ml_dtypes.uint4, 0, 15),
}
FLOATS = {T.FLOAT: np.float32, T.FLOAT16: np.float16}
rng = np.random.default_rng(20)


def values(shape, scale, float_type, qmin, qmax):
    """Ties, random values, values that saturate, tiny and huge ones, signed zeros, infinities and NaN."""
    n = int(np.prod(shape))
    ties = rng.integers(2 * qmin, 2 * qmax, n).astype(np.float32) * 0.5
    x = np.where(rng.random(n) < 0.5, ties, rng.normal(0, qmax / 2, n))
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 3e38, -3e38, 1e-45, -1e-45, 2.0 * qmax, -2.0 * qmax, 0.5, -0.5, 1.5]
    with np.errstate(over="ignore"):
        x = (x * np.resize(np.float32(scale), n)).astype(float_type)
        for i, s in enumerate(special[: max(0, n - 4)]):
            x[(i * 7) % n] = s
    return x.reshape(shape)


def expected_codes(x, scale, zero_point, code, reference, axis, block):
    """The reference evaluator's codes, with the standard's saturation where it casts out of range."""
    np_type, qmin, qmax = TYPES[code]
    s = np.asarray(scale)
    if block:
        s = np.take(np.repeat(s, block, axis), np.arange(x.shape[axis]), axis)
    elif s.ndim == 1 and s.size == x.shape[axis]:
        s = s.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    with np.errstate(all="ignore"):
        quotient = (x / s).astype(np.float64)
    codes = np.array(reference).astype(np.int64)
    codes = np.where(quotient >= 2.0**31 - 70000, qmax, codes)
    codes = np.where(quotient <= -(2.0**31) + 70000, qmin, codes)
    codes = np.where(np.isnan(quotient), qmin, codes)
    return codes.astype(np_type)


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs, outputs, initializers, opset=23):
    info = lambda n, t, s: helper.make_tensor_value_info(n, t, s)
    graph = helper.make_graph(nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def one(cases, code, float_type, shape, axis, mode, zero, block=0, dynamic=False):
    """X → Q → DQ → Y with the codes as a second output, and the same fused (codes not an output)."""
    np_float = FLOATS[float_type]
    np_type, qmin, qmax = TYPES[code]
    if mode == "tensor":
        scale_shape = ()
    elif block:
        scale_shape = list(shape)
        scale_shape[axis] = -(-shape[axis] // block)
    else:
        scale_shape = (shape[axis],)
    scale = np.exp2(rng.integers(-6, 3, scale_shape)) * rng.choice([1.0, 0.3, 0.1, 1.7], scale_shape)
    scale = np.asarray(scale, np_float)
    points = rng.integers(qmin, qmax + 1, scale_shape)
    zero_point = None if zero == "none" else np.asarray(points if zero == "any" else np.zeros(scale_shape)).astype(np_type)
    x = values(shape, np.ravel(scale)[0], np_float, qmin, qmax)
    attributes = {"axis": axis}
    if block:
        attributes["block_size"] = block
    names = ["x", "s"] + ([] if zero_point is None else ["z"])
    q_attributes = dict(attributes, **({"output_dtype": code} if zero_point is None and code != T.UINT8 else {}))
    q = helper.make_node("QuantizeLinear", names, ["q"], **q_attributes)
    dq = helper.make_node("DequantizeLinear", ["q", *names[1:]], ["y"], **attributes)
    parameters = [("s", scale)] + ([] if zero_point is None else [("z", zero_point)])
    inputs = [("x", float_type, shape)]
    feed = {"x": x}
    initializers = []
    for n, p in parameters:
        if dynamic:
            inputs.append((n, float_type if n == "s" else code, list(p.shape)))
            feed[n] = p
        else:
            initializers.append(tensor(n, p))
    only_q = model([q], inputs, [("q", code, shape)], initializers)
    with np.errstate(all="ignore"):
        reference = ReferenceEvaluator(only_q).run(None, feed)[0]
    codes = expected_codes(x, scale, zero_point, code, reference, axis, block)
    dq_inputs = [("q", code, shape)] + inputs[1:]
    only_dq = model([dq], dq_inputs, [("y", float_type, shape)], initializers)
    with np.errstate(all="ignore"):
        real = ReferenceEvaluator(only_dq).run(None, dict(feed, q=codes))[0]
    label = f"{np_type.__name__} {np_float.__name__} {mode} axis{axis} zero-{zero} block{block}" + " dynamic" * dynamic
    label = f"{len(cases.cases):04} {label}"
    both = model([q, dq], inputs, [("q", code, shape), ("y", float_type, shape)], initializers)
    cases.add(label, both, [(feed, {"q": codes, "y": real})], bits=True)
    fused = model([q, dq], inputs, [("y", float_type, shape)], initializers)
    cases.add(label + " fused", fused, [(feed, {"y": real})], bits=True)
    alone = model([dq], dq_inputs, [("y", float_type, shape)], initializers)
    cases.add(label + " dq", alone, [(dict({k: v for k, v in feed.items() if k != "x"}, q=codes), {"y": real})], bits=True)
    constant = model(
        [dq, helper.make_node("Mul", ["y", "one"], ["out"])],
        [("one", float_type, [])],
        [("out", float_type, shape)],
        [tensor("q", codes), *[tensor(n, p) for n, p in parameters]],
    )
    cases.add(label + " constant", constant, [({"one": np_float(1)}, {"out": real})], bits=True)


def main():
    cases = Cases(sys.argv[1])
    for code in TYPES:
        for float_type in FLOATS:
            for zero in ["none", "zero", "any"]:
                one(cases, code, float_type, (2, 3, 4, 5), 1, "tensor", zero)
                one(cases, code, float_type, (2, 3, 4, 5), 1, "channel", zero)
                one(cases, code, float_type, (64, 3), -2, "channel", zero)
                one(cases, code, float_type, (4, 32), -1, "channel", zero)
                one(cases, code, float_type, (4, 10), 1, "block", zero, block=4)
                one(cases, code, float_type, (6, 3), 0, "block", zero, block=2)
            for mode in ["tensor", "channel"]:
                one(cases, code, float_type, (2, 3, 4, 5), 1, mode, "any", dynamic=True)
    for code in [T.INT8, T.UINT8]:
        for _ in range(20):
            one(cases, code, T.FLOAT, (8, 16, 32), int(rng.integers(-3, 3)), "channel", "any")
            one(cases, code, T.FLOAT, (4096,), 0, "tensor", "any")
    bias = rng.integers(-(2**31), 2**31, 64).astype(np.int32)
    scale = np.float32(rng.random(64))
    m = model(
        [helper.make_node("DequantizeLinear", ["b", "s"], ["y"], axis=0), helper.make_node("Add", ["y", "x"], ["out"])],
        [("x", T.FLOAT, [64])],
        [("out", T.FLOAT, [64])],
        [tensor("b", bias), tensor("s", scale)],
    )
    x = np.zeros(64, np.float32)
    cases.add("int32 bias", m, [({"x": x}, {"out": ReferenceEvaluator(m).run(None, {"x": x})[0]})], bits=True)
    cases.write()


if __name__ == "__main__":
    main()
