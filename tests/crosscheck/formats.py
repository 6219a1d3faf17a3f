"""Every number format on every operator that carries it: the files against onnx, ml_dtypes and onnxruntime.

    python3 tests/crosscheck/formats.py BINARY OUTPUT_FOLDER [FORMAT ...]

For each format: a model with Conv, depthwise Conv, ConvTranspose, Gemm, MatMul and an embedding is quantized, weights
only. The file passes onnx's checker; the real weights are decoded here by numpy and ml_dtypes alone; `onnx-quant run`
gives what the float model gives with those weights, and so does onnxruntime where it has the operators; stored bytes
are what the report claims. The exit code is 1 where something does not hold.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

FORMATS = """int8:tensor int8:channel int8:block32 uint8:channel uint8:block16 int16:channel int16:block32 uint16:tensor
int2:channel int2:block32 int3:block16 int4:tensor int4:channel int4:block32 int4:block20 uint4:block32 int5:channel
int7:block32 int12:channel int4:vsq16 int8:vsq16 uint4:vsq16 q4.4 q2.6 q1.3 fp16 bf16 fp8e4m3:tensor fp8e4m3:channel
fp8e4m3:block32 fp8e5m2:channel fp6e2m3:channel fp6e3m2:block32 fp4e2m1:channel fp4e2m1:block16 mxfp8 mxfp6 mxfp4
nvfp4""".split()
# onnxruntime 1.32 has no operators for FP4 on CPUs and does not load opset 28.
NOT_IN_ORT = ("fp4", "fp6", "mxfp4", "mxfp6", "nvfp4")


def build(path):
    rng = np.random.default_rng(7)
    weights = {
        "conv.w": (8, 6, 3, 3), "depth.w": (8, 1, 3, 3), "point.w": (40, 8, 1, 1), "up.w": (40, 4, 2, 2),
        "gemm.w": (24, 70), "matmul.w": (24, 50), "table": (30, 70),
    }
    init = [numpy_helper.from_array((rng.standard_normal(s) * 0.3).astype(np.float32), n) for n, s in weights.items()]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.w"], ["c"], "conv", pads=[1] * 4),
        node("Conv", ["c", "depth.w"], ["d"], "depth", pads=[1] * 4, group=8),
        node("Conv", ["d", "point.w"], ["p"], "point"),
        node("ConvTranspose", ["p", "up.w"], ["u"], "up", strides=[2, 2]),
        node("Gather", ["table", "i"], ["e"], "lookup"),
        node("Gemm", ["e", "gemm.w"], ["g"], "gemm", transB=1),
        node("MatMul", ["g", "matmul.w"], ["m"], "matmul"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", T.FLOAT, [1, 6, 5, 5]), value("i", T.INT64, [4])],
        [value("u", T.FLOAT, None), value("m", T.FLOAT, None)], init,
    )
    for o, shape in zip(graph.output, ([1, 4, 10, 10], [4, 50])):
        o.CopyFrom(value(o.name, T.FLOAT, shape))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    data = {"x": rng.standard_normal((1, 6, 5, 5)).astype(np.float32), "i": rng.integers(0, 30, 4)}
    return set(weights), data


def spread(scale, shape, axis, block):
    """Scales or zero points over all elements, as DequantizeLinear places them."""
    if scale.size == 1 and not block:
        return scale.reshape(())
    axis = axis % len(shape)
    if not block:
        return scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.repeat(scale, block, axis).take(range(shape[axis]), axis)


def evaluate(graph):
    """The constants that follow from constants: DequantizeLinear, Cast and Reshape, by numpy and ml_dtypes."""
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for n in graph.node:
        if not n.input or any(i not in values for i in n.input) or n.op_type not in ("DequantizeLinear", "Cast", "Reshape"):
            continue
        a = {x.name: helper.get_attribute_value(x) for x in n.attribute}
        x = values[n.input[0]]
        if n.op_type == "Reshape":
            values[n.output[0]] = x.reshape(values[n.input[1]])
        elif n.op_type == "Cast":
            values[n.output[0]] = x.astype(np.float32).astype(helper.tensor_dtype_to_np_dtype(a["to"]))
        else:
            scale = values[n.input[1]].astype(np.float32)
            place = lambda v: spread(v, x.shape, a.get("axis", 1), a.get("block_size", 0))
            x = x.astype(np.float32)
            if len(n.input) > 2:
                x = x - place(values[n.input[2]].astype(np.float32))
            values[n.output[0]] = x * place(scale)
    return values


def session(model, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.graph_optimization_level = 4, 1, level
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def decoded_model(small):
    """The quantized file with every decoded weight as a float constant."""
    values = evaluate(small.graph)
    keep = [n for n in small.graph.node if n.output[0] not in values]
    out = onnx.ModelProto()
    out.CopyFrom(small)
    del out.graph.node[:], out.graph.initializer[:]
    out.graph.node.extend(keep)
    used = {i for n in keep for i in n.input}
    # Codes that rows are looked up in are decoded first: the result is the same.
    for n in list(out.graph.node):
        if n.op_type != "Gather" or n.input[0] not in values or values[n.input[0]].dtype == np.float32:
            continue
        (behind,) = [k for k in keep if n.output[0] in k.input]
        table = values[n.input[0]].astype(np.float32)
        if behind.op_type == "DequantizeLinear":
            scale, zero = (values[i].astype(np.float32) for i in behind.input[1:3])
            table = (table - zero) * scale
        values[n.input[0] + ".real"] = table.astype(np.float32)
        n.input[0], n.output[0] = n.input[0] + ".real", behind.output[0]
        out.graph.node.remove(next(k for k in out.graph.node if k.op_type == behind.op_type and k.output == behind.output))
        used.add(n.input[0])
    out.graph.initializer.extend(numpy_helper.from_array(values[u], u) for u in sorted(used) if u in values)
    del out.opset_import[:]
    out.opset_import.append(helper.make_opsetid("", 21))
    out.ir_version = 10
    return out


def stored_bits(small):
    """Bits of codes, scales and zero points: every initializer but shapes."""
    total = 0
    for t in small.graph.initializer:
        if t.data_type != T.INT64:
            total += 8 * len(t.raw_data)
    return total


def judge(fmt, binary, folder):
    folder = folder / fmt.replace(":", "_")
    folder.mkdir(parents=True, exist_ok=True)
    source, file, report = folder / "m.onnx", folder / "q.onnx", folder / "r.json"
    file.unlink(missing_ok=True)
    names, data = build(source)
    np.savez(folder / "d.npz", x=data["x"], i=data["i"])
    np.savez(folder / "whole.npz", x=data["x"][None], i=data["i"][None])
    done = subprocess.run(
        [binary, "quantize", source, "-o", file, "--weights", fmt, "--report", report, "--verify-each", "--threads", "1"],
        capture_output=True, text=True,
    )
    if done.returncode != 0:
        return [f"{fmt}: exit code {done.returncode}: {done.stderr.strip()[-400:]}"]
    faults = []
    small = onnx.load(file)
    onnx.checker.check_model(str(file), full_check=True)
    left = names & {t.name for t in small.graph.initializer}
    if left:
        faults.append(f"{fmt}: {sorted(left)} stayed in float")
    reference = decoded_model(small)
    s = session(reference.SerializeToString())
    outputs = [o.name for o in s.get_outputs()]
    expected = dict(zip(outputs, s.run(outputs, data)))
    claimed = json.loads(report.read_text())["size"]
    values = sum(np.prod(t.dims) for t in onnx.load(source).graph.initializer)
    if not fmt.startswith(("fp16", "bf16")):
        real = stored_bits(small) / values
        if abs(real - claimed["effective_bits"]) > 1e-9:
            faults.append(f"{fmt}: {real:.4f} bits are stored, the report claims {claimed['effective_bits']:.4f}")
    if not fmt.startswith(NOT_IN_ORT):
        found = dict(zip(outputs, session(str(file)).run(outputs, data)))
        for name in outputs:
            if not np.array_equal(found[name], expected[name]):
                faults.append(f"{fmt}: onnxruntime differs in {name} by {np.abs(found[name] - expected[name]).max()}")
        session(str(file), ort.GraphOptimizationLevel.ORT_ENABLE_ALL).run(outputs, data)
    done = subprocess.run(
        [binary, "run", file, "--data", folder / "whole.npz", "-o", folder / "t.npz", "--threads", "1"], capture_output=True, text=True
    )
    again = folder / "f.onnx"
    onnx.save(reference, again)
    plain = subprocess.run(
        [binary, "run", again, "--data", folder / "whole.npz", "-o", folder / "u.npz", "--threads", "1"], capture_output=True, text=True
    )
    if done.returncode or plain.returncode:
        return [*faults, f"{fmt}: run: {(done.stderr + plain.stderr).strip()[-400:]}"]
    ours, decoded = np.load(folder / "t.npz"), np.load(folder / "u.npz")
    for name in outputs:
        # The same engine on the same weights: the same bits.
        if not np.array_equal(ours[name], decoded[name]):
            faults.append(f"{fmt}: tract differs in {name} by {np.abs(ours[name] - decoded[name]).max()}")
    return faults


def main():
    binary, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    formats = sys.argv[3:] or FORMATS
    assert ml_dtypes
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda f: judge(f, binary, out), formats))
    faults = [f for r in results for f in r]
    print("\n".join(faults))
    print(f"{len(formats)} formats, {len(faults)} faults")
    sys.exit(1 if faults or not formats else 0)


if __name__ == "__main__":
    main()
