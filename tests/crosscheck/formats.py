"""Every number format on every operator that carries it: the files against onnx, ml_dtypes and onnxruntime.

    python3 tests/crosscheck/formats.py BINARY OUTPUT_FOLDER [FORMAT ...]

For each format: a model with Conv, depthwise Conv, ConvTranspose, Gemm, MatMul and an embedding is quantized, weights
only. The file passes onnx's checker; the real weights are decoded here by numpy and ml_dtypes alone; `onnx-quant run`
gives what the float model gives with those weights, and so does onnxruntime where it has the operators; stored bytes
are what the report claims. `--emulate` and `--matmul-nbits` give the same values in onnxruntime, `--floats fp16` nearly
the same. Activations in each format are rounded here by numpy and ml_dtypes, and both runtimes give the same bits for
the operator between. All codes of each type are decoded, and random numbers, halves between neighbours and edges are
encoded, as ml_dtypes does it. Codebooks and signs are the matter of codebooks.py. The exit code is 1 where something
does not hold.
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
        if behind.input[0] != n.output[0]:
            continue
        table = values[n.input[0]].astype(np.float32)
        if behind.op_type == "DequantizeLinear":
            # Scales and zero points of blocks are rows that are looked up too.
            rows = {k.output[0]: k.input[0] for k in keep if k.op_type == "Gather"}
            block = next((a.i for a in behind.attribute if a.name == "block_size"), 0)
            place = lambda i: spread(values[rows.get(i, i)].astype(np.float32), table.shape, -1, block)
            if len(behind.input) > 2:
                table = table - place(behind.input[2])
            table = table * place(behind.input[1])
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


def quantize(binary, source, file, *options):
    """The error of the program, or None."""
    done = subprocess.run([binary, "quantize", source, "-o", file, "--threads", "1", *options], capture_output=True, text=True)
    return done.stderr.strip()[-400:] if done.returncode else None


def run_both(binary, folder, file, data):
    """The outputs of a model in this program's engine and in onnxruntime, where that reads it."""
    np.savez(folder / "feed.npz", **{k: v[None] for k, v in data.items()})
    line = [binary, "run", file, "--data", folder / "feed.npz", "-o", folder / "out.npz", "--threads", "1"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        return None, None, done.stderr.strip()[-300:]
    ours = {k: v[0] if v.shape[0] == 1 else v for k, v in np.load(folder / "out.npz").items()}
    try:
        s = session(str(file))
    except Exception as e:
        return ours, None, str(e)[:200]
    names = [o.name for o in s.get_outputs()]
    return ours, dict(zip(names, s.run(names, data))), None


EQUIVALENT = [
    *((f, ["--emulate"], 0) for f in ("fp4e2m1:block16", "fp4e2m1:channel", "nvfp4", "mxfp4", "mxfp6", "fp6e2m3:channel", "fp6e3m2:block32")),
    *(
        (f, ["--emulate", "--target", "tract"], 0)
        for f in ("int4:block20", "int2:channel", "int16:channel", "uint16:tensor", "fp8e4m3:channel", "mxfp8", "mxfp4", "nvfp4", "int4:vsq16", "uint4:block32")
    ),
    *((f, ["--matmul-nbits"], 1e-5) for f in ("int2:block16", "int4:block32", "int4:tensor", "int8:channel", "uint4:block32", "int3:block16")),
    *((f, ["--floats", "fp16"], 0.02) for f in ("fp16", "int8:channel", "int4:vsq16", "fp8e4m3:channel", "mxfp8")),
    ("int4:block32", ["--bias-type", "fp16"], 1e-3),
]


def equivalent(case, binary, folder):
    """A file that is written in another way: onnxruntime computes the same with it."""
    fmt, options, tolerance = case
    name = f"{fmt} {' '.join(options)}"
    folder = folder / name.replace(":", "_").replace(" ", "")
    folder.mkdir(parents=True, exist_ok=True)
    source, plain, file = folder / "m.onnx", folder / "p.onnx", folder / "q.onnx"
    _, data = build(source)
    halves = ["--scale-type", "fp16"] if "--floats" in options else []
    scheme = ["--weight-scheme", "asymmetric"] if fmt.startswith("uint") else []
    common = ["--weights", fmt, "--activations", "none", *scheme]
    error = quantize(binary, source, plain, *common, *halves, "--target", "generic") or quantize(binary, source, file, *common, *options)
    if error:
        return [f"{name}: {error}"]
    small = onnx.load(file)
    if "--matmul-nbits" in options:
        if [n.op_type for n in small.graph.node].count("MatMulNBits") != 2:
            return [f"{name}: Gemm and MatMul are no MatMulNBits"]
    else:
        onnx.checker.check_model(str(file), full_check=True)
    s = session(decoded_model(onnx.load(plain)).SerializeToString())
    outputs = [o.name for o in s.get_outputs()]
    expected = dict(zip(outputs, s.run(outputs, data)))
    ours, found, error = run_both(binary, folder, file, data)
    if error:
        return [f"{name}: {error}"]
    plain_ours, _, _ = run_both(binary, folder, plain, data)
    faults = []
    for o in outputs:
        for who, got, want in (("onnxruntime", found[o], expected[o]), ("tract", ours[o], plain_ours[o])):
            want = want.reshape(got.shape)
            if not np.all(np.abs(got - want) <= tolerance * np.abs(want).max()):
                faults.append(f"{name}: {who} differs in {o} by {np.abs(got - want).max()}")
    return faults


ACTIVATIONS = "int4 uint4 int8 uint8 int16 uint16 int6 int12 q4.4 q6.8 fp8e4m3 fp8e5m2 fp6e2m3 fp6e3m2 fp4e2m1".split()
ELEMENTS = {
    T.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, 448), T.FLOAT8E5M2: (ml_dtypes.float8_e5m2, 57344),
    T.FLOAT6E2M3: (ml_dtypes.float6_e2m3fn, 7.5), T.FLOAT6E3M2: (ml_dtypes.float6_e3m2fn, 28), T.FLOAT4E2M1: (ml_dtypes.float4_e2m1fn, 6),
}
INTEGERS = {
    T.INT8: (-128, 127), T.UINT8: (0, 255), T.INT16: (-32768, 32767), T.UINT16: (0, 65535), T.INT4: (-8, 7), T.UINT4: (0, 15),
    T.INT2: (-2, 1), T.UINT2: (0, 3),
}


def fake_quantize(x, scale, zero):
    """QuantizeLinear and DequantizeLinear of the standard, by numpy and ml_dtypes."""
    kind = zero.data_type
    scale = numpy_helper.to_array(scale).astype(np.float32)
    units = x / scale
    if kind in ELEMENTS:
        dtype, largest = ELEMENTS[kind]
        return np.clip(units, -largest, largest).astype(dtype).astype(np.float32) * scale
    low, high = INTEGERS[kind]
    z = np.float32(numpy_helper.to_array(zero).astype(np.int32))
    return (np.clip(np.rint(units) + z, low, high) - z).astype(np.float32) * scale


def activation(fmt, binary, folder, options=()):
    """Each operator alone, its input in the format: the same bits as with an input that is rounded here."""
    faults = []
    rng = np.random.default_rng(3)
    # Weights, input shape, attributes, output shape.
    cases = {
        "Conv": ((8, 6, 3, 3), (1, 6, 5, 5), {}, (1, 8, 3, 3)),
        "Depthwise": ((8, 1, 3, 3), (1, 8, 5, 5), {"group": 8}, (1, 8, 3, 3)),
        "ConvTranspose": ((6, 4, 2, 2), (1, 6, 5, 5), {"strides": [2, 2]}, (1, 4, 10, 10)),
        "Gemm": ((24, 70), (4, 70), {"transB": 1}, (4, 24)),
        "MatMul": ((70, 24), (4, 70), {}, (4, 24)),
    }
    for op, (shape, inputs, attributes, outputs) in cases.items():
        where = folder / (fmt.replace(":", "_") + op + "".join(options))
        where.mkdir(parents=True, exist_ok=True)
        node = helper.make_node("Conv" if op == "Depthwise" else op, ["x", "w"], ["y"], "op", **attributes)
        value = helper.make_tensor_value_info
        weight = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        graph = helper.make_graph(
            [node], "g", [value("x", T.FLOAT, inputs)], [value("y", T.FLOAT, outputs)], [numpy_helper.from_array(weight, "w")]
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), where / "m.onnx")
        x = rng.standard_normal(inputs).astype(np.float32)
        np.savez(where / "c.npz", x=x[None])
        error = quantize(
            binary, where / "m.onnx", where / "q.onnx", "--weights", "int8", "--activations", fmt, "--calib", where / "c.npz",
            "--min-activation-sqnr", "0", "--calibrator", "minmax", *options,
        )
        if error:
            faults.append(f"{fmt} {op}: {error}")
            continue
        small = onnx.load(where / "q.onnx")
        onnx.checker.check_model(str(where / "q.onnx"), full_check=True)
        pairs = [n for n in small.graph.node if n.op_type == "QuantizeLinear"]
        if not options and not any(n.input[0] == "x" for n in pairs):
            if op != "ConvTranspose":
                faults.append(f"{fmt} {op}: its activation stayed in float")
            continue
        if options:
            # The pairs are gone: the file gives the bits of the one that has them.
            ours, theirs, error = run_both(binary, where, where / "q.onnx", {"x": x})
            plain = folder / (fmt.replace(":", "_") + op) / "q.onnx"
            want, _, _ = run_both(binary, where, plain, {"x": x})
            if pairs or error:
                faults.append(f"{fmt} {op} {options}: pairs are left, or {error}")
            else:
                close = np.abs(theirs["y"].reshape(want["y"].shape) - want["y"]).max() <= 1e-5 * np.abs(want["y"]).max()
                same = np.array_equal(ours["y"], want["y"])
                if not same or not close:
                    faults.append(f"{fmt} {op} {options}: the emulation differs")
            continue
        init = {t.name: t for t in small.graph.initializer}
        by_input = {n.input[0]: (init[n.input[1]], init[n.input[2]]) for n in pairs}
        rounded = fake_quantize(x, *by_input["x"])
        weights = evaluate(small.graph)
        (linear,) = [n for n in small.graph.node if n.name == "op"]
        middle = helper.make_graph(
            [helper.make_node(node.op_type, ["x", "w"], ["y"], **attributes)], "g", graph.input, graph.output,
            [numpy_helper.from_array(weights[linear.input[1]], "w")],
        )
        onnx.save(helper.make_model(middle, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), where / "f.onnx")
        got = run_both(binary, where, where / "q.onnx", {"x": x})
        want = run_both(binary, where, where / "f.onnx", {"x": rounded})
        behind = by_input.get(linear.output[0])
        for who, g, w in zip(("tract", "onnxruntime"), got, want):
            if g is None:
                if not fmt.startswith(NOT_IN_ORT):
                    faults.append(f"{fmt} {op}: {who}: {got[2]}")
                continue
            w = fake_quantize(w["y"], *behind) if behind else w["y"]
            if not np.array_equal(g["y"].reshape(w.shape), w):
                faults.append(f"{fmt} {op}: {who} differs by {np.abs(g['y'].reshape(w.shape) - w).max()}")
    return faults


def all_codes(binary, folder):
    """Decoding of all codes of every type, and encoding of random numbers, ties and edges."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(9)
    value = helper.make_tensor_value_info
    faults = []
    for kind in [*ELEMENTS, *INTEGERS]:
        name = T.DataType.Name(kind)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if kind in ELEMENTS:
            bits = {"FLOAT8": 8, "FLOAT6": 6, "FLOAT4": 4}[name[:6]]
            codes = np.arange(1 << bits, dtype=np.uint8).view(ELEMENTS[kind][0])
        else:
            low, high = INTEGERS[kind]
            codes = np.arange(low, high + 1).astype(dtype)
        real = codes.astype(np.float32)
        finite = np.unique(real[np.isfinite(real)])
        middles = (finite[1:] + finite[:-1]) / 2
        x = np.concatenate([
            finite, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf)),
            rng.standard_normal(4096) * np.abs(finite).max() / 3, rng.standard_normal(256) * np.abs(finite)[finite != 0].min(),
            [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38],
        ]).astype(np.float32)
        scale = numpy_helper.from_array(np.float32(1), "s")
        zero = helper.make_tensor("z", kind, [], np.zeros(1, dtype).tobytes(), raw=True)
        nodes = [
            helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["real"]), helper.make_node("Add", ["real", "o"], ["decoded"]),
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["rounded"]),
        ]
        graph = helper.make_graph(
            nodes, "g", [value("x", T.FLOAT, x.shape), value("o", T.FLOAT, [])],
            [value("decoded", T.FLOAT, codes.shape), value("rounded", T.FLOAT, x.shape)],
            [numpy_helper.from_array(codes, "codes"), scale, zero],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)], ir_version=14), folder / f"{name}.onnx")
        np.savez(folder / "x.npz", x=x[None], o=np.zeros(1, np.float32))
        line = [binary, "run", folder / f"{name}.onnx", "--data", folder / "x.npz", "-o", folder / "y.npz"]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            faults.append(f"{name}: {done.stderr.strip()[-300:]}")
            continue
        got = np.load(folder / "y.npz")
        if not np.array_equal(got["decoded"].reshape(real.shape), real + np.float32(0), equal_nan=True):
            faults.append(f"{name}: codes are decoded to other numbers than ml_dtypes says")
        with np.errstate(over="ignore"):
            want = fake_quantize(x, scale, zero)
        if not np.array_equal(got["rounded"].reshape(x.shape), want):
            at = np.flatnonzero(got["rounded"].reshape(x.shape) != want)[:3]
            faults.append(f"{name}: {x[at]} become {got['rounded'].reshape(x.shape)[at]}, not {want[at]}")
    return faults


def main():
    binary, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    formats = sys.argv[3:] or FORMATS
    assert ml_dtypes
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda f: judge(f, binary, out), formats))
        if not sys.argv[3:]:
            results += pool.map(lambda c: equivalent(c, binary, out / "equivalent"), EQUIVALENT)
            results += pool.map(lambda f: activation(f, binary, out / "activations"), ACTIVATIONS)
            results += pool.map(lambda f: activation(f, binary, out / "activations", ("--emulate",)), ["fp4e2m1", "fp6e2m3", "fp6e3m2"])
            results.append(all_codes(binary, out / "codes"))
    faults = [f for r in results for f in r]
    print("\n".join(faults))
    print(f"{len(formats)} formats, {len(faults)} faults")
    sys.exit(1 if faults or not formats else 0)


if __name__ == "__main__":
    main()
