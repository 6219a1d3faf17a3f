"""Codebook, binary and ternary weights and compressed files against numpy, onnx and onnxruntime.

    python3 tests/crosscheck/codebooks.py BINARY OUTPUT_FOLDER

One model holds Conv, depthwise Conv, ConvTranspose, Gemm, MatMul and an embedding, in FP32 and in FP16. For each format
and granularity: the file passes onnx's checker; the weights, as onnxruntime computes them from the file, are those
that numpy computes from the definition (binary, ternary) or a codebook that is assigned to the nearest entry and no
worse than linear rounding and than Lloyd's iteration here (k-means); the packed indices take exactly their bits, and
`inspect` counts what the file holds; `onnx-quant run` gives what onnxruntime gives. `decompress` gives back the
clustered model byte for byte, and onnxruntime runs it. The exit code is 1 where something does not hold.
"""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Name, shape, axis of the output channels, and the shape as [outer, length, inner] along which blocks are cut.
WEIGHTS = {
    "conv": ((8, 3, 3, 3), 0, (8, 27, 1)),
    "depthwise": ((6, 1, 3, 3), 0, (6, 9, 1)),
    "transposed": ((4, 5, 2, 2), 1, (1, 4, 20)),
    "gemm": ((7, 33), 0, (7, 33, 1)),
    "matmul": ((33, 9), 1, (1, 33, 9)),
    "embedding": ((40, 11), 1, (40, 11, 1)),
}
FORMATS = [f"kmeans{n}" for n in range(1, 9)] + ["binary", "ternary"]
GRANULARITIES = ["tensor", "channel", "block4", "block32"]


def model(dtype):
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    rng = np.random.default_rng(7)
    weights = {n: rng.normal(size=s).astype(dtype) for n, (s, _, _) in WEIGHTS.items()}
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["y_conv"]),
        helper.make_node("Conv", ["maps", "depthwise"], ["y_depthwise"], group=6),
        helper.make_node("ConvTranspose", ["small", "transposed"], ["y_transposed"]),
        helper.make_node("Gemm", ["row", "gemm"], ["y_gemm"], transB=1),
        helper.make_node("MatMul", ["row", "matmul"], ["y_matmul"]),
        helper.make_node("Gather", ["embedding", "ids"], ["y_embedding"]),
    ]
    inputs = {"image": (2, 3, 6, 6), "maps": (2, 6, 5, 5), "small": (2, 4, 3, 3), "row": (2, 33)}
    feed = {n: rng.normal(size=s).astype(dtype) for n, s in inputs.items()}
    feed["ids"] = rng.integers(0, 40, (2, 3))
    shapes = {"conv": (2, 8, 4, 4), "depthwise": (2, 6, 3, 3), "transposed": (2, 5, 4, 4), "gemm": (2, 7),
              "matmul": (2, 9), "embedding": (2, 3, 11)}
    graph = helper.make_graph(
        nodes,
        "all",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()]
        + [helper.make_tensor_value_info("ids", TensorProto.INT64, (2, 3))],
        [helper.make_tensor_value_info(f"y_{n}", kind, s) for n, s in shapes.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return m, weights, feed


def groups(name, granularity):
    """For each value its group, in the shape of the weight."""
    shape, channel, (outer, length, inner) = WEIGHTS[name]
    if granularity == "tensor":
        return np.zeros(shape, int)
    if granularity == "channel":
        index = np.arange(shape[channel]).reshape([-1 if i == channel else 1 for i in range(len(shape))])
        return np.broadcast_to(index, shape)
    size = int(granularity[5:])
    o, r, i = np.indices((outer, length, inner))
    return ((o * math.ceil(length / size) + r // size) * inner + i).reshape(shape)


def lloyd(x, k):
    """Lloyd's iteration from an even grid: the least squared error it reaches."""
    book = np.linspace(x.min(), x.max(), k)
    for _ in range(50):
        nearest = np.abs(x[:, None] - book).argmin(1)
        book = np.array([x[nearest == j].mean() if (nearest == j).any() else book[j] for j in range(k)])
    return ((x - book[np.abs(x[:, None] - book).argmin(1)]) ** 2).sum()


def linear(x, bits):
    """Squared error of symmetric rounding over the extremes."""
    steps = 2 ** (bits - 1) - 1
    scale = np.abs(x).max() / steps
    return ((x - np.clip(np.rint(x / scale), -steps, steps) * scale) ** 2).sum()


def expected(w, group, fmt, dtype):
    """Binary and ternary weights by their definitions."""
    out = np.zeros(w.shape, dtype)
    for g in np.unique(group):
        at = group == g
        r = w[at].astype(np.float64)
        if fmt == "binary":
            out[at] = np.where(r >= 0, 1, -1).astype(dtype) * np.abs(r).mean().astype(np.float32).astype(dtype)
            continue
        size = np.sort(np.abs(r))[::-1]
        gain = np.cumsum(size) ** 2 / np.arange(1, len(size) + 1)
        kept = np.abs(r) >= size[gain.argmax()]
        alpha = np.abs(r[kept]).mean().astype(np.float32).astype(dtype)
        out[at] = np.where(kept, np.sign(r), 0).astype(dtype) * alpha
    return out


def check_kmeans(w, got, group, bits, fail):
    for g in np.unique(group):
        at = group == g
        x, y = w[at].astype(np.float64), got[at].astype(np.float64)
        book = np.unique(y)
        if len(book) > 2**bits:
            fail(f"{len(book)} entries in a codebook of {bits} bits")
        if not np.array_equal(np.abs(x - y), np.abs(x[:, None] - book).min(1)):
            fail("a value is not assigned to its nearest entry")
        error = ((x - y) ** 2).sum()
        # Entries are rounded to the weight's type.
        slack = 1 + (2e-3 if w.dtype == np.float16 else 1e-6)
        most = lloyd(x, 2**bits) * slack + len(x) * (1e-7 if w.dtype == np.float16 else 1e-14)
        if error > most:
            fail(f"error {error} where Lloyd's iteration reaches {most}")
        if bits >= 2 and error > linear(x, bits) * slack + len(x) * 1e-7:
            fail("worse than linear rounding")


def session(m):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stored_bits(m):
    """Bits of packed indices, codebooks and scales in the file."""
    table = {i.name: numpy_helper.to_array(i) for i in m.graph.initializer}
    roles = ("_packed", "_codebook", "_alpha")
    return sum(v.nbytes * 8 for n, v in table.items() if n.endswith(roles)), table


def run(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{args}: {done.stderr}")
    return done.stdout


def main():
    binary, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    faults, checked = [], 0
    for dtype in (np.float32, np.float16):
        float_model, weights, feed = model(dtype)
        name = np.dtype(dtype).name
        source, data = folder / f"{name}.onnx", folder / f"{name}.npz"
        onnx.save(float_model, source)
        np.savez(data, **feed)
        for fmt in FORMATS:
            for granularity in GRANULARITIES:
                # Blocks of few values make k-means of many bits trivial: one is enough.
                if granularity.startswith("block") and fmt in ("kmeans6", "kmeans7"):
                    continue
                what = f"{name} {fmt}:{granularity}"

                def fail(text):
                    faults.append(f"{what}: {text}")

                path = folder / f"{name}-{fmt}-{granularity}.onnx"
                run(binary, "quantize", source, "--weights", f"{fmt}:{granularity}", "--activations", "none", "-o", path)
                m = onnx.load(path)
                onnx.checker.check_model(m, full_check=True)
                bits = {"binary": 1, "ternary": 2}.get(fmt) or int(fmt[6:])
                shown = onnx.load(path)
                readers = {o.name[2:]: n for n in m.graph.node for o in m.graph.output if o.name in n.output}
                values = {w: readers[w].input[0 if w == "embedding" else 1] for w in WEIGHTS}
                kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
                shown.graph.output.extend(helper.make_tensor_value_info(v, kind, None) for v in values.values())
                s = session(shown)
                outputs = dict(zip([o.name for o in s.get_outputs()], s.run(None, feed)))
                for w, value in values.items():
                    group, got = groups(w, granularity), outputs[value]
                    if got.shape != weights[w].shape:
                        fail(f"{w}: shape {got.shape}")
                    elif bits and fmt.startswith("kmeans"):
                        check_kmeans(weights[w], got, group, bits, lambda t, w=w: fail(f"{w}: {t}"))
                    elif not np.array_equal(got, expected(weights[w], group, fmt, dtype)):
                        fail(f"{w}: the values are not those of the definition")
                    checked += 1
                total, table = stored_bits(m)
                for w in WEIGHTS:
                    packed, count = table[f"{w}_packed"], weights[w].size
                    least = math.ceil(count * bits / 8)
                    if not least <= packed.nbytes <= least + (bits - 1 if 8 % bits else 0):
                        fail(f"{w}: {packed.nbytes} bytes for {count} indices of {bits} bits")
                seen = json.loads(run(binary, "inspect", path, "--json"))["quantization"]
                values_count = sum(w.size for w in weights.values())
                if abs(seen["effective_bits"] - total / values_count) > 1e-9:
                    fail(f"inspect says {seen['effective_bits']} bits, the file holds {total / values_count}")
                if {w["indexed"] for w in seen["weights"]} != {fmt}:
                    fail(f"inspect says {[w['indexed'] for w in seen['weights']]}")
                ran = folder / "ran.npz"
                run(binary, "run", path, "--data", data, "-o", ran)
                own = np.load(ran)
                for o in float_model.graph.output:
                    near = 2e-2 if dtype == np.float16 else 1e-5
                    if not np.allclose(own[o.name], outputs[o.name], rtol=near, atol=near):
                        fail(f"{o.name}: `run` differs by {np.abs(own[o.name] - outputs[o.name]).max()}")
        for options in ([], ["--coder", "huffman"], ["--prune", "global", "--weights", "kmeans3"]):
            packed, clustered, back = (folder / n for n in (f"{name}.oqz", "clustered.onnx", "back.onnx"))
            run(binary, "compress", source, "--sparsity", "0.7", *options, "--clustered", clustered, "-o", packed)
            run(binary, "decompress", packed, "-o", back)
            if clustered.read_bytes() != back.read_bytes():
                faults.append(f"{name} {options}: decompress does not give the clustered model")
            m = onnx.load(back)
            onnx.checker.check_model(m, full_check=True)
            session(m).run(None, feed)
            table = {i.name: numpy_helper.to_array(i) for i in m.graph.initializer}
            # A codebook does not pay for fewer than 64 values.
            large = [n for n, w in weights.items() if w.size >= 64]
            zeros = sum((table[n] == 0).sum() for n in large)
            count = sum(weights[n].size for n in large)
            if abs(zeros / count - 0.7) > 0.01:
                faults.append(f"{name} {options}: {zeros / count} of the weights are zero")
            checked += 1
    print(f"{checked} weights and files checked, {len(faults)} faults")
    for f in faults[:40]:
        print(f)
    sys.exit(bool(faults))


main()
