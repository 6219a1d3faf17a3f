"""Quantizes every model of a zoo with default settings and judges the files with onnx and onnxruntime.

    python3 tests/crosscheck/zoo.py BINARY ZOO OUTPUT_FOLDER [ENTRY ...]

For each entry: `onnx-quant quantize` with one and with two threads gives the same bytes; the file passes onnx's checker,
holds no initializer that nothing uses and loads in onnxruntime; onnxruntime leaves no Conv, Gemm or MatMul with a
constant weight in float but those that the report lists with a reason; outputs of tract (`onnx-quant run`) and of
onnxruntime agree; the metric and the signal-to-noise ratio hold the limits below, and those that the best of other tools
reach with weights per channel, per tensor and dynamically; `auto` is near the best calibrator; onnxruntime fuses what it can; `init` and then `quantize` alone, in a folder with
the model and its data, write a model. The figures go into
OUTPUT_FOLDER/figures.json. The exit code is 1 where something does not hold.

onnxruntime runs with `session.x64quantprecision=1`: without it its kernels saturate on processors without VNNI, and
the judgement would be about the machine. Where the two engines are compared it also runs with
`session.qdq_matmulnbits_accuracy_level=1`: by default it quantizes the activations of weight-only MatMul itself.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort

# Limits on what zoo/eval.py measures: (figure, comparison, value). Size in kB of 1000 bytes.
LIMITS = {
    "resnet8-cifar": [("drop", "<=", 0.010), ("sqnr", ">=", 25.4), ("kB", "<=", 141)],
    "mobilenetv2-cifar": [("drop", "<=", 0.010), ("sqnr", ">=", 33.8), ("kB", "<=", 946)],
    "ultraface-rfb320": [("sqnr", ">=", 40.0), ("kB", "<=", 458)],
    "magika": [("metric", ">=", 0.9418 - 0.01)],
    "minilm": [("metric", ">", 0.90)],
    "chargpt-kv": [("metric", "<", 5.10)],
    "silero-vad": [],
}
# What the best of other tools reach on the same data, SQNR in dB by the zoo's README: all integer with weights per channel
# (of `minilm` and `chargpt-kv` with any operator in float), with weights per tensor, and with dynamic quantization.
PEERS = {
    "resnet8-cifar": {"channel": 25.4, "tensor": 19.1, "dynamic": 19.9},
    "mobilenetv2-cifar": {"channel": 33.8, "tensor": 30.4},
    "ultraface-rfb320": {"channel": 40.0, "tensor": 38.2},
    "magika": {"channel": 28.4},
    "minilm": {"channel": 23.1, "dynamic": 17.9},
    "chargpt-kv": {"channel": 32.0, "dynamic": 37.3},
    "silero-vad": {},
}
# The calibrators that are compared, on the models that take seconds, and how far `auto` may stay behind the best of them.
# Of the others the default calibrator and the extremes are.
COMPARED = ("resnet8-cifar", "mobilenetv2-cifar", "ultraface-rfb320", "magika", "chargpt-kv")
CALIBRATORS = ("mse", "minmax", "percentile:99.999", "percentile:99.99", "kl")
BEHIND = 0.2
# Operators that onnxruntime makes of the default model, at least.
FUSED = {
    "resnet8-cifar": {"QLinearConv": 9, "QGemm": 1, "QLinearAdd": 3},
    "mobilenetv2-cifar": {"QLinearConv": 52, "QGemm": 1, "QLinearAdd": 10},
}
# What the metric is, for the README's table.
METRICS = {
    "resnet8-cifar": "top-1",
    "mobilenetv2-cifar": "top-1",
    "magika": "top-1",
    "ultraface-rfb320": "F1 of the boxes against FP32",
    "minilm": "top-10 neighbours shared with FP32",
    "chargpt-kv": "perplexity",
    "silero-vad": "decisions equal to FP32",
}
# Share of rows in which tract and onnxruntime must have the largest value at the same place.
AGREEMENT = 0.995
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def run(arguments, **options):
    """The standard output of a program that must succeed."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[1]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def graphs(graph):
    """A graph and all graphs inside of it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = list(attribute.graphs)
            if attribute.HasField("g"):
                inner.append(attribute.g)
            for g in inner:
                yield from graphs(g)


def unused_initializers(model):
    used, stored = set(), []
    for g in graphs(model.graph):
        used.update(i for n in g.node for i in n.input)
        used.update(o.name for o in g.output)
        stored += [t.name for t in g.initializer]
    return [name for name in stored if name not in used]


def session(path, optimized=None, exact=False):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    if exact:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 3
    if optimized is not None:
        # The level above this one changes the layout of float convolutions, which hides their names.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_float(optimized):
    """Conv, Gemm and MatMul of onnxruntime's own graph that calculate in float with a constant weight."""
    found, integer = [], 0
    constants, dequantized = {}, set()
    for g in graphs(optimized.graph):
        constants.update((t.name, t.data_type) for t in g.initializer)
        for n in g.node:
            if n.op_type == "DequantizeLinear" and n.input[0] in constants:
                dequantized.add(n.output[0])
    for g in graphs(optimized.graph):
        for n in g.node:
            op = n.op_type.removeprefix("Fused")
            if n.op_type in ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger"):
                integer += 1
            if op in LINEAR and any(constants.get(i) in FLOATS or i in dequantized for i in n.input[:2]):
                found.append(n)
    return found, integer


def not_explained(found, quantized, report):
    """Those of the float operators that the report does not list as float or weight-only, with a reason."""
    float_forms = ("float", "weight-only")
    kept = [n for n in report["nodes"] if n["op"] in LINEAR and n["precision"] in float_forms and n.get("reason")]
    listed = {n["node"] for n in kept} | {n["node"].split("/")[-1] for n in kept}
    makers = {o: n.name for g in graphs(quantized.graph) for n in g.node for o in n.output}
    missing = []
    for n in found:
        names = {n.name, n.name.removeprefix("fused "), n.name.removesuffix("/MatMulAddFusion")} | {makers.get(o, "") for o in n.output}
        if not any(name in listed or name.split("/")[-1] in listed for name in names if name):
            missing.append(f"{n.op_type} {n.name or n.output[0]}")
    return missing


def feeds(arrays, s):
    """Feeds for a session as `onnx-quant` makes them: complete feeds where arrays have one axis more than inputs."""
    inputs = s.get_inputs()
    first = inputs[0]
    n = len(arrays[first.name])
    whole = arrays[first.name].ndim > len(first.shape)
    fixed = [i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], int)]
    step = 1 if whole else min(fixed + [16])
    for at in range(0, n, step):
        cut = (lambda a: np.asarray(a[at])) if whole else (lambda a: a[at : at + step])
        yield whole, {i.name: cut(arrays[i.name]) for i in inputs}


def onnxruntime_outputs(s, arrays):
    names, parts = [o.name for o in s.get_outputs()], {o.name: [] for o in s.get_outputs()}
    for whole, feed in feeds(arrays, s):
        for name, value in zip(names, s.run(names, feed)):
            parts[name].append(value[None] if whole else value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def sqnr(reference, other):
    r, o = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    noise = ((r - o) ** 2).sum()
    return 999.0 if noise == 0 else float(10 * np.log10((r**2).sum() / noise))


def agreement(a, b):
    """Share of rows with the largest value at the same place; of a single value, on the same side of one half."""
    if a.shape[-1] == 1:
        return float(((a > 0.5) == (b > 0.5)).mean())
    return float((a.argmax(-1) == b.argmax(-1)).mean())


def same_sentence(a, b, mask):
    """Share of sentences that are nearest to themselves among all sentences of the other engine.

    A sentence encoder has no classes. Single hidden values say little: a change of the last bit of one layer's weights
    moves the quantized model's hidden values by as much as one engine differs from the other.
    """

    def embed(hidden):
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    nearest = (embed(a) @ embed(b).T).argmax(1)
    return float((nearest == np.arange(len(a))).mean())


class Entry:
    """One model of the zoo, its figures and its faults."""

    def __init__(self, name, binary, zoo, out):
        self.name, self.binary, self.folder, self.zoo = name, binary, zoo / name, zoo
        self.file = out / f"{name}.int8.onnx"
        self.outputs = out / f"{name}.outputs.npz"
        self.optimized = out / f"{name}.onnxruntime.onnx"
        self.report_file = out / f"{name}.report.json"
        self.figures, self.faults = {"name": name}, []

    def fault(self, what):
        self.faults.append(f"{self.name}: {what}")

    def step(self, what, action):
        """Runs a step; what it raises is a fault and ends the entry."""
        start = time.time()
        try:
            action()
        except Exception as error:  # every failure of a model is told, none ends the others
            self.fault(f"{what}: {error}")
            return False
        self.figures[f"{what} s"] = round(time.time() - start, 1)
        return True

    def quantize(self):
        command = [self.binary, "quantize", self.folder / "model.onnx", "--calib", self.folder / "calib.npz"]
        run([*command, "-o", self.file, "--report", self.report_file, "--threads", "2"])
        single = self.file.with_suffix(".single")
        run([*command, "-o", single, "--threads", "1"])
        if single.read_bytes() != self.file.read_bytes():
            self.fault("one and two threads give different files")
        single.unlink()
        self.report = json.loads(self.report_file.read_text())
        counts = {}
        for node in self.report["nodes"]:
            counts[node["precision"]] = counts.get(node["precision"], 0) + 1
        self.figures["nodes"] = counts
        self.figures["before kB"] = round((self.folder / "model.onnx").stat().st_size / 1000, 1)
        self.figures["kB"] = round(self.file.stat().st_size / 1000, 1)

    def structure(self):
        onnx.checker.check_model(str(self.file), full_check=True)
        model = onnx.load(self.file)
        unused = unused_initializers(model)
        if unused:
            self.fault(f"{len(unused)} initializers are not used: {unused[:3]}")
        self.session = session(self.file, self.optimized)
        left, integer = in_float(onnx.load(self.optimized))
        self.figures["integer"], self.figures["float"] = integer, len(left)
        made = [n.op_type for g in graphs(onnx.load(self.optimized).graph) for n in g.node]
        for op, least in FUSED.get(self.name, {}).items():
            if made.count(op) < least:
                self.fault(f"onnxruntime makes {made.count(op)} {op}, must be {least}")
        missing = not_explained(left, model, self.report)
        if missing:
            self.fault(f"{len(missing)} operators are left in float without a reason: {missing[:5]}")

    def engines(self):
        data = self.folder / "eval.npz"
        run([self.binary, "run", self.file, "--data", data, "-o", self.outputs])
        ours, arrays = dict(np.load(self.outputs)), dict(np.load(data))
        theirs = onnxruntime_outputs(session(self.file, exact=True), arrays)
        if set(ours) != set(theirs):
            self.fault(f"outputs {sorted(ours)} against {sorted(theirs)}")
            return
        first = next(iter(theirs))
        if "attention_mask" in arrays and self.name == "minilm":
            same = same_sentence(ours[first], theirs[first], arrays["attention_mask"])
            self.hidden_values(ours[first], arrays)
        else:
            same = agreement(ours[first], theirs[first])
        self.figures["agreement"] = round(same, 5)
        self.figures["between dB"] = round(min(sqnr(theirs[k], ours[k]) for k in ours), 1)
        if same < AGREEMENT:
            self.fault(f"tract and onnxruntime agree on {same:.4f} of `{first}`")
        self.outputs.unlink()

    def hidden_values(self, ours, arrays):
        """The two engines differ no more than onnxruntime differs from itself.

        Codes of the quantized activations flip with the last bit of a float, and a transformer carries each flip on:
        onnxruntime with and without its optimizations disagrees on more than one of a hundred hidden values.
        """
        plain = ort.SessionOptions()
        plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain.log_severity_level = 3
        plain = ort.InferenceSession(str(self.file), plain, providers=["CPUExecutionProvider"])
        (plain, *_), (fused, *_) = (list(onnxruntime_outputs(s, arrays).values()) for s in (plain, session(self.file)))
        floor, between = agreement(plain, fused), agreement(plain, ours)
        self.figures["hidden argmax"] = {"onnxruntime with itself": round(floor, 4), "with tract": round(between, 4)}
        if between < min(AGREEMENT, floor):
            self.fault(f"tract and onnxruntime agree on {between:.4f} of the hidden values, onnxruntime with itself on {floor:.4f}")

    def quality(self):
        answer = json.loads(run([sys.executable, self.zoo / "eval.py", self.name, self.file]))
        by_output = answer.get("sqnr_db_by_output", {})
        metric, reference = answer["metric"], answer["fp32_metric"]
        self.figures["metric"], self.figures["FP32"] = metric, reference
        self.figures["sqnr"] = by_output.get("scores", answer["sqnr_db"])
        self.figures["drop"] = round(reference - metric, 5) if isinstance(reference, (int, float)) else None
        if answer["nonfinite"]:
            self.fault(f"{answer['nonfinite']} output values are not finite")
        for figure, sign, limit in LIMITS[self.name]:
            value = self.figures[figure]
            good = {"<=": value <= limit, ">=": value >= limit, "<": value < limit, ">": value > limit}[sign]
            # Sizes are limited to whole kB.
            good = good or (figure == "kB" and round(value) <= limit)
            if not good:
                self.fault(f"{figure} is {value}, must be {sign} {limit}")

    def ratio(self, *arguments):
        """The signal-to-noise ratio of the model that `quantize` writes with these arguments."""
        file = self.file.with_suffix(".other")
        run([self.binary, "quantize", self.folder / "model.onnx", *arguments, "-o", file])
        answer = json.loads(run([sys.executable, self.zoo / "eval.py", self.name, file]))
        file.unlink()
        return answer.get("sqnr_db_by_output", {}).get("scores", answer["sqnr_db"])

    def peers(self):
        """The best of our calibrators, weights per tensor and dynamic quantization against other tools."""
        peers = PEERS[self.name]
        if not peers:
            return
        if self.name in COMPARED:
            found = self.compared()
        else:
            widest = self.ratio("--calib", self.folder / "calib.npz", "--calibrator", "minmax")
            found = {"channel": max(self.figures["sqnr"], widest)}
        if "dynamic" in peers:
            found["dynamic"] = self.ratio("--dynamic")
        self.figures["peers"] = found
        for what, least in peers.items():
            if found[what] < least:
                self.fault(f"{what}: {found[what]:.2f} dB, another tool has {least}")

    def compared(self):
        """The best with weights per channel and per tensor, whatever the calibrator; `auto` beside the best."""
        data, stats = ["--calib", self.folder / "calib.npz"], self.file.with_suffix(".json")
        run([self.binary, "calibrate", self.folder / "model.onnx", *data, "-o", stats])
        ratios = {c: self.ratio("--stats", stats, "--calibrator", c) for c in CALIBRATORS}
        ratios["auto"] = self.ratio(*data, "--calibrator", "auto")
        self.figures["calibrators"], best = ratios, max(ratios.values())
        found = {"channel": best}
        if "tensor" in PEERS[self.name]:
            tensor = ["--stats", stats, "--weights", "int8:tensor", "--calibrator"]
            found["tensor"] = max(self.ratio(*tensor, c) for c in ("mse", "minmax"))
        stats.unlink()
        if ratios["auto"] < best - BEHIND:
            self.fault(f"auto has {ratios['auto']:.2f} dB, the best calibrator {best:.2f}")
        return found

    def check(self):
        """The program's own judgement on the same data; with labels it must be that of onnxruntime."""
        arguments = [self.folder / "model.onnx", self.file, "--eval", self.folder / "eval.npz"]
        labels = self.folder / "labels.npy"
        if labels.exists():
            arguments += ["--labels", labels]
        answer = json.loads(run([self.binary, "check", *arguments, "--json"]))
        own = answer["task"]["candidate"]
        self.figures["tract metric"] = round(own, 5)
        if labels.exists() and abs(own / self.figures["metric"] - 1) > 1 - AGREEMENT:
            self.fault(f"`check` measures {own:.4f} where onnxruntime has {self.figures['metric']}")

    def configured(self):
        """`init`, then `quantize` with no other argument, in a folder with the model and its data."""
        folder = self.file.parent / "configured"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in self.folder.iterdir():
            # The content alone: a zoo may be read-only.
            shutil.copyfile(path, folder / path.name)
        run([self.binary, "init", "model.onnx"], cwd=folder)
        run([self.binary, "quantize", "--quiet"], cwd=folder)
        written = sorted(set(folder.glob("*.onnx")) - {folder / p.name for p in self.folder.glob("*.onnx")})
        if len(written) != 1:
            self.fault(f"`init` and `quantize` wrote {[p.name for p in written]}, not one model")
        for path in written:
            onnx.checker.check_model(str(path), full_check=True)
            if path.stat().st_size > 0.5 * (folder / "model.onnx").stat().st_size:
                self.fault("the model that `init` and `quantize` wrote is more than half as large as before")
        shutil.rmtree(folder)

    def judge(self):
        for what, action in [
            ("quantize", self.quantize),
            ("structure", self.structure),
            ("engines", self.engines),
            ("quality", self.quality),
            ("peers", self.peers),
            ("check", self.check),
            ("init", self.configured),
        ]:
            if not self.step(what, action) and what == "quantize":
                break


def table(rows):
    columns = ["name", "metric", "FP32", "sqnr", "kB", "integer", "float", "agreement", "between dB", "tract metric"]
    columns += ["quantize s", "engines s"]
    cells = [columns] + [[str(r.get(c, "-")) for c in columns] for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells)


def markdown(rows):
    """The table of the README."""
    lines = ["| model | metric | FP32 | INT8 | SQNR dB | FP32 kB | INT8 kB |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = [r["name"], METRICS[r["name"]], f"{r['FP32']:.4g}", f"{r['metric']:.4g}", f"{r['sqnr']:.1f}"]
        cells += [f"{r['before kB']:.0f}", f"{r['kB']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    binary, zoo, out = (pathlib.Path(a).resolve() for a in sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TMPDIR", str(out))
    entries = []
    for name in sys.argv[4:] or LIMITS:
        entry = Entry(name, binary, zoo, out)
        entry.judge()
        entries.append(entry)
        print(json.dumps(entry.figures), flush=True)
        for fault in entry.faults:
            print(f"  FAILED {fault}", flush=True)
    figures = [e.figures for e in entries]
    faults = [f for e in entries for f in e.faults]
    (out / "figures.json").write_text(json.dumps({"figures": figures, "faults": faults}, indent=1))
    print(f"\n{table(figures)}\n")
    print(f"{markdown([f for f in figures if 'metric' in f])}\n")
    print("\n".join(f"FAILED {f}" for f in faults) or "all limits hold")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
