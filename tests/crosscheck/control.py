"""Bodies of If, Loop and Scan: calibrated, quantized, and judged in onnxruntime.

    python3 tests/crosscheck/control.py BINARY OUTPUT_FOLDER

A model in which data chooses a branch, a loop and a scan repeat linear layers, and one branch is never taken. The float
model runs on tract as it does in onnxruntime. The quantized one passes onnx's checker, runs in onnxruntime with integer
products inside the bodies, is near the float model there, and runs on tract with the same outputs; one and two threads
give the same file; the body that no sample runs is named, and no value that it computes is quantized. Values in
bodies have statistics. The exit code is 1 where something does not hold.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(3)
faults = []


def check(holds, what):
    if not holds:
        faults.append(what)


def weight(name, *shape):
    return numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name, op):
    """Two layers; the first weight is its own, the second is one of the graph around it."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["a", f"{name}_w"], [f"{name}_m"]),
        node(op, [f"{name}_m"], [f"{name}_r"]),
        node("MatMul", [f"{name}_r", "shared"], [f"{name}_o"]),
    ]
    return helper.make_graph(nodes, name, [], [info(f"{name}_o", ["N", 16])], [weight(f"{name}_w", 16, 16)])


def model():
    node = helper.make_node
    turn = helper.make_graph(
        [
            node("Unsqueeze", ["h", "axes"], ["image"]),
            node("Conv", ["image", "kernel"], ["c"], kernel_shape=[3], pads=[1, 1]),
            node("Relu", ["c"], ["r"]),
            node("Conv", ["r", "back"], ["o"], kernel_shape=[1]),
            node("Squeeze", ["o", "axes"], ["next"]),
            node("Identity", ["go"], ["again"]),
            node("ReduceMean", ["next"], ["mean_of_turn"], axes=[1], keepdims=0),
        ],
        "turn",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("h", ["N", 16])],
        [info("again", [], TensorProto.BOOL), info("next", ["N", 16]), info("mean_of_turn", ["N"])],
        [weight("kernel", 8, 1, 3), weight("back", 1, 8, 1)],
    )
    step = helper.make_graph(
        [
            node("MatMul", ["state", "recurrent"], ["p"]),
            node("Add", ["p", "element"], ["s"]),
            node("Tanh", ["s"], ["state_out"]),
            node("Gemm", ["state_out", "read", "read_bias"], ["scanned"], transB=1),
        ],
        "step",
        [info("state", ["N", 16]), info("element", ["N", 16])],
        [info("state_out", ["N", 16]), info("scanned", ["N", 8])],
        [weight("recurrent", 16, 16), weight("read", 8, 16), weight("read_bias", 8)],
    )
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], "first"),
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["positive"]),
        node("Greater", ["mean", "huge"], ["impossible"]),
        node("If", ["positive"], ["f"], "choice", then_branch=branch("t", "Relu"), else_branch=branch("e", "Tanh")),
        node("If", ["impossible"], ["g"], "rare", then_branch=branch("never", "Relu"), else_branch=branch("always", "Relu")),
        node("Loop", ["turns", "", "f"], ["l", "all_means"], "loop", body=turn),
        node("Transpose", ["all_means"], ["means"]),
        node("Unsqueeze", ["f", "first_axis"], ["f1"]),
        node("Unsqueeze", ["g", "first_axis"], ["g1"]),
        node("Unsqueeze", ["l", "first_axis"], ["l1"]),
        node("Concat", ["f1", "g1", "l1"], ["sequence"], axis=0),
        node("Scan", ["l", "sequence"], ["last", "rows"], "scan", body=step, num_scan_inputs=1, scan_input_directions=[1]),
        node("ReduceMean", ["rows"], ["pooled"], axes=[0], keepdims=0),
        node("Gemm", ["pooled", "head", "head_bias"], ["y"], "head"),
    ]
    constant = numpy_helper.from_array
    initializers = [
        weight("w", 16, 16), weight("b", 16), weight("shared", 16, 16), weight("head", 8, 4), weight("head_bias", 4),
        constant(np.float32(0), "zero"), constant(np.float32(1e9), "huge"), constant(np.int64(3), "turns"),
        constant(np.array([0]), "first_axis"), constant(np.array([1]), "axes"),
    ]
    graph = helper.make_graph(nodes, "control", [info("x", ["N", 16])], [info("y", ["N", 4]), info("means", ["N", 3])], initializers)
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(m, full_check=True)
    return m


def graphs(graph, path=""):
    """Every graph with its path."""
    yield path, graph
    for n in graph.node:
        for a in n.attribute:
            if a.HasField("g"):
                yield from graphs(a.g, f"{path}{n.name or n.output[0]}/{a.name}/")


def session(path, optimized=None):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    if optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(s, x, batch=4):
    parts = [s.run(None, {"x": x[at : at + batch]}) for at in range(0, len(x), batch)]
    return {name: np.concatenate([p[i] for p in parts]) for i, name in enumerate(("y", "means"))}


def sqnr(r, o):
    return 10 * np.log10((r.astype(float) ** 2).sum() / max(((r - o).astype(float) ** 2).sum(), 1e-30))


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[1]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    binary, out = (pathlib.Path(a).resolve() for a in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    source, data = out / "control.onnx", out / "calib.npz"
    onnx.save(model(), source)
    # Batches of 4 samples on either side of zero: both branches of `choice` are taken.
    side = np.repeat(random.choice([-0.8, 0.8], 16), 4)[:, None]
    x = (random.standard_normal((64, 16)) + side).astype(np.float32)
    np.savez(data, x=x)
    exact = outputs(session(source), x)

    target = out / "control.int8.onnx"
    command = [binary, "quantize", source, "--calib", data, "--min-activation-sqnr", "15"]
    run(*command, "--report", out / "report.json", "--threads", "2", "-o", target)
    run(*command, "--threads", "1", "-o", out / "one.onnx")
    check(target.read_bytes() == (out / "one.onnx").read_bytes(), "one and two threads give different files")
    onnx.checker.check_model(str(target), full_check=True)
    quantized = onnx.load(target)
    pairs = {path: sum(n.op_type == "QuantizeLinear" for n in g.node) for path, g in graphs(quantized.graph)}
    print("pairs:", pairs)
    for path in ("choice/then_branch/", "choice/else_branch/", "rare/else_branch/", "loop/body/", "scan/body/"):
        check(pairs[path] > 0, f"no activation is quantized in {path}")
    computed = [n.input[0] for _, g in graphs(quantized.graph) for n in g.node if n.op_type == "QuantizeLinear"]
    check(not any(v.startswith("never_") for v in computed), f"a value that no sample computes is quantized: {computed}")
    report = json.loads((out / "report.json").read_text())
    check(any("rare/then_branch" in n for n in report["notes"]), f"the body that no sample runs is not named: {report['notes']}")

    optimized = out / "optimized.onnx"
    s = session(target, optimized)
    fused = {}
    for path, g in graphs(onnx.load(optimized).graph):
        names = [n.op_type for n in g.node if n.op_type in ("QLinearMatMul", "QGemm", "QLinearConv", "MatMulIntegerToFloat")]
        fused[path.split("/")[-2] + ":" + path.split("/")[0] if path else ""] = len(names)
    print("integer operators in onnxruntime:", fused)
    check(sum(fused.values()) >= 9, f"onnxruntime fuses {fused}")
    found = outputs(s, x)
    for name in exact:
        ratio = sqnr(exact[name], found[name])
        print(f"{name}: {ratio:.1f} dB")
        check(ratio > 20, f"{name} keeps {ratio:.1f} dB in onnxruntime")

    # On tract, and the statistics, against onnxruntime in batches of the size that the program runs.
    for path, reference in ((source, session(source)), (target, s)):
        run(binary, "run", path, "--data", data, "-o", out / "tract.npz")
        ours = dict(np.load(out / "tract.npz"))
        theirs = outputs(reference, x, 8)
        ratio = sqnr(theirs["y"], ours["y"])
        print(f"{path.name} on tract and in onnxruntime: {ratio:.1f} dB")
        check(ratio > (90 if path == source else 30), f"{path.name}: tract and onnxruntime differ, {ratio:.1f} dB")

    run(binary, "calibrate", source, "--calib", data, "-o", out / "stats.json")
    stats = json.loads((out / "stats.json").read_text())["values"]
    for key in ("choice/then_branch/t_r", "loop/body/r", "scan/body/state_out"):
        check(key in stats, f"{key} has no statistics")
    if faults:
        sys.exit("\n".join(f"FAILED {f}" for f in faults))
    print("all holds")


if __name__ == "__main__":
    main()
