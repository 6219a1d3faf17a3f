"""The optional runtime: `--engine onnxruntime` against onnxruntime itself, and against tract.

    python3 tests/crosscheck/engines.py BINARY FOLDER [ZOO]

The library is found in the Python environment that runs this script, as a user's would be. Outputs must be those of
onnxruntime's own Python package, bit for bit; calibration on either engine gives models of the same quality; a model
with an operator that tract lacks is quantized. The exit code is 1 where something does not hold.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


class Checks:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.faults, self.figures = binary, folder, [], {}

    def run(self, *arguments, code=0, **variables):
        environment = {k: v for k, v in os.environ.items() if k != "ORT_DYLIB_PATH"}
        environment |= {"VIRTUAL_ENV": sys.prefix} | variables
        command = [str(a) for a in (self.binary, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != code:
            self.faults.append(f"{' '.join(command[1:4])}: code {done.returncode}, expected {code}: {done.stderr.strip()[-800:]}")
        return done

    def fault(self, condition, what):
        if not condition:
            self.faults.append(what)


def session(path):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def same_outputs(checks, name, model, arrays, samples):
    """Samples one at a time, so that the shapes of the runs are the same in both."""
    arrays = {k: v[:samples] for k, v in arrays.items()}
    data, out = checks.folder / "data.npz", checks.folder / "out.npz"
    s = session(model)
    whole = arrays[s.get_inputs()[0].name].ndim > len(s.get_inputs()[0].shape)
    rows = [{k: np.asarray(v[i]) if whole else v[i : i + 1] for k, v in arrays.items()} for i in range(samples)]
    for i, row in enumerate(rows):
        np.savez(data, **{k: v[i : i + 1] for k, v in arrays.items()})
        checks.run("run", model, "--data", data, "-o", out, "--engine", "onnxruntime")
        ours = np.load(out)
        for key, theirs in zip([o.name for o in s.get_outputs()], s.run(None, row)):
            mine = ours[key].reshape(theirs.shape)
            checks.fault(np.array_equal(mine, theirs), f"{name}, sample {i}, `{key}`: {np.abs(mine - theirs).max()} off")


def zoo(checks, folder):
    for name in ["resnet8-cifar", "minilm", "chargpt-kv", "silero-vad"]:
        entry, small = folder / name, checks.folder / f"{name}.onnx"
        arrays = dict(np.load(entry / "eval.npz"))
        if name != "silero-vad":
            checks.run("quantize", entry / "model.onnx", "--calib", entry / "calib.npz", "--samples", 32, "-o", small)
            same_outputs(checks, f"{name} int8", small, arrays, 2)
        same_outputs(checks, name, entry / "model.onnx", arrays, 2)
    name = "resnet8-cifar"
    entry = folder / name
    for engine in ["tract", "onnxruntime"]:
        small = checks.folder / f"{engine}.onnx"
        checks.run("quantize", entry / "model.onnx", "--calib", entry / "calib.npz", "-o", small, "--engine", engine)
        data = ["--eval", entry / "eval.npz", "--samples", 256, "--engine", "both", "--json"]
        answer = json.loads(checks.run("check", entry / "model.onnx", small, *data).stdout)
        checks.figures[f"{name}, calibrated by {engine}, dB"] = answer["outputs"][0]["sqnr_db"]
        float_engines, int8_engines = (e["outputs"][0] for e in answer["engines"])
        checks.fault(float_engines["agreement"] == 1.0, f"float: {float_engines}")
        checks.fault((float_engines["sqnr_db"] or 999) > 90, f"float: {float_engines}")
        checks.fault(int8_engines["agreement"] >= 0.995, f"int8: {int8_engines}")
    a, b = checks.figures.values()
    checks.fault(abs(a - b) < 0.5, f"calibration by tract gives {a} dB, by onnxruntime {b}")
    same_bodies(checks, folder / "silero-vad")


def same_bodies(checks, entry):
    """Both engines see the values in bodies of If, and as many of them."""
    seen = []
    for engine in ["tract", "onnxruntime"]:
        stats = checks.folder / f"{engine}.json"
        data = ["--calib", entry / "calib.npz", "--samples", 32]
        checks.run("calibrate", entry / "model.onnx", *data, "-o", stats, "--engine", engine)
        values = json.loads(stats.read_text())["values"]
        seen.append({key: value["histogram"] for key, value in values.items()})
    count = lambda histogram: sum(histogram["positive"]) + sum(histogram["negative"])
    taken = [key for key, histogram in seen[0].items() if count(histogram) > 0]
    checks.fault(any("/then_branch/" in key for key in taken), f"no body was calibrated: {list(seen[0])}")
    checks.fault(seen[0].keys() == seen[1].keys(), f"other values: {seen[0].keys() ^ seen[1].keys()}")
    for key in taken:
        ours, theirs = seen[0][key], seen[1][key]
        checks.fault(count(ours) == count(theirs), f"{key}: {count(ours)} values, {count(theirs)} in onnxruntime")
        near = np.allclose(ours["range"], theirs["range"], rtol=1e-4, atol=1e-5)
        checks.fault(near, f"{key}: {ours['range']}, {theirs['range']} in onnxruntime")


def own_operator(checks):
    """Det is none of tract's operators."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Det", ["b"], ["y"]),
    ]
    ins = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])]
    outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "g", ins, outs, [numpy_helper.from_array(w, "w")])
    model, data, small = (checks.folder / n for n in ("det.onnx", "det.npz", "det.int8.onnx"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), model)
    np.savez(data, x=rng.normal(size=(16, 3, 4, 4)).astype(np.float32))
    command = ["quantize", model, "--calib", data, "-o", small]
    refused = checks.run(*command, code=2)
    checks.fault("Det" in refused.stderr, f"tract: {refused.stderr}")
    checks.run(*command, "--engine", "onnxruntime")
    answer = checks.run("check", model, small, "--eval", data, "--engine", "onnxruntime", "--json")
    layers = json.loads(answer.stdout)["layers"]
    checks.fault(len(layers) > 0 and layers[0]["sqnr_db"] > 20, f"layers {layers}")


def absent(checks):
    model, data = checks.folder / "det.onnx", checks.folder / "det.npz"
    command = ["run", model, "--data", data, "-o", checks.folder / "no.npz", "--engine", "onnxruntime"]
    text = checks.folder / "libonnxruntime.so"
    text.write_text("no library")
    for path in ["/nowhere/libonnxruntime.so", text]:
        refused = checks.run(*command, code=2, ORT_DYLIB_PATH=str(path))
        error = refused.stderr.strip().splitlines()
        checks.fault(len(error) == 1 and str(path) in error[0], f"{path}: {refused.stderr}")
    library = next(pathlib.Path(ort.__file__).parent.glob("capi/libonnxruntime.so*"))
    checks.run(*command, ORT_DYLIB_PATH=str(library))


def main():
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    checks = Checks(pathlib.Path(sys.argv[1]).resolve(), folder)
    own_operator(checks)
    absent(checks)
    if len(sys.argv) > 3:
        zoo(checks, pathlib.Path(sys.argv[3]))
    print(json.dumps({"figures": checks.figures, "faults": checks.faults}, indent=1))
    sys.exit(bool(checks.faults))


if __name__ == "__main__":
    main()
