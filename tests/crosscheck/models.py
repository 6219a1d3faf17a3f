"""Quantizes small generated models of many kinds and judges the files with onnx and onnxruntime.

    python3 tests/crosscheck/models.py BINARY OUTPUT_FOLDER [CASE ...]

For each case: `onnx-quant quantize` ends with 0 (or with the code that the case expects); the file passes onnx's
checker; its signature is that of the float model; every zero point is written; no initializer is unused; onnxruntime
loads it, with and without its optimizations, and is as near to the float model as the case says; `onnx-quant run`
gives what onnxruntime gives; onnxruntime leaves no Conv, Gemm or MatMul with a constant weight in float but those that
the report lists with a reason, and its graph holds the kernels that the case names. The exit code is 1 where
something does not hold.

onnxruntime runs with `session.x64quantprecision=1`: see `zoo.py`.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort

import edgecases  # noqa: F401 (adds its cases)
import netcases  # noqa: F401 (adds its cases)
from netcase import CASES
from zoo import graphs, in_float, not_explained, unused_initializers


def session(path, level, optimized=None, int8=False):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # On x86 onnxruntime leaves int8 activations out by default, and exact kernels exist for uint8 only.
    options.add_session_config_entry("session.qdqisint8allowed" if int8 else "session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.graph_optimization_level = level
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


LEVELS = ort.GraphOptimizationLevel


def outputs(s, data):
    """Outputs for all samples; a fixed batch is fed in pieces, data of one axis more one sample at a time."""
    inputs = s.get_inputs()
    names = [o.name for o in s.get_outputs()]
    parts = [[] for _ in names]
    whole = any(data[i.name].ndim > len(i.shape) for i in inputs)
    total = min(len(data[i.name]) for i in inputs)
    fixed = [i.shape[0] for i in inputs if not whole and i.shape and isinstance(i.shape[0], int)]
    step = 1 if whole else min(fixed + [total])
    for at in range(0, total, step):
        part = {i.name: data[i.name][at : at + step] for i in inputs}
        real = len(part[inputs[0].name])
        if whole:
            part = {k: np.asarray(v[0]) for k, v in part.items()}
        elif real < step:
            part = {k: np.concatenate([v, np.repeat(v[-1:], step - real, 0)]) for k, v in part.items()}
        for values, value in zip(parts, s.run(names, part)):
            value = np.asarray(value)
            batched = not whole and value.ndim and len(value) == step
            values.append(value[None] if whole else value[:real] if batched else value)
    return {n: np.concatenate([v.reshape(1) if v.ndim == 0 else v for v in p]) for n, p in zip(names, parts)}


def sqnr(reference, other):
    r, o = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    if not np.isfinite(o).all() and np.isfinite(r).all():
        return -999.0
    # Relative to the largest value, so that squares of tiny or huge values stay finite.
    unit = np.abs(r).max(initial=0) or 1.0
    noise, signal = (((r - o) / unit) ** 2).sum(), ((r / unit) ** 2).sum()
    return 999.0 if noise == 0 else -999.0 if signal == 0 else float(10 * np.log10(signal / noise))


def signature(model):
    constants = {t.name for t in model.graph.initializer} - {o.name for o in model.graph.output}
    show = lambda v: (v.name, v.type.tensor_type.elem_type)
    return [show(v) for v in model.graph.input if v.name not in constants], [show(v) for v in model.graph.output]


def kernels(model):
    counts = {}
    for g in graphs(model.graph):
        for n in g.node:
            counts[n.op_type] = counts.get(n.op_type, 0) + 1
    return counts


class Judge:
    """One case, run in a folder of its own."""

    def __init__(self, case, binary, out):
        self.case, self.binary = case, binary
        self.out = out / case.name
        self.out.mkdir(parents=True, exist_ok=True)
        self.faults, self.figures = [], []

    def fault(self, what):
        self.faults.append(f"{self.case.name}: {what}")

    def judge(self):
        try:
            self.steps()
        except Exception as error:  # every failure of a case is told, none ends the others
            self.fault(f"{type(error).__name__}: {str(error)[-1500:]}")
        return self

    def steps(self):
        case, source, file = self.case, self.out / "model.onnx", self.out / "small.onnx"
        model, data = case.build()
        case.save(model, source)
        np.savez(self.out / "data.npz", **data)
        for old in self.out.glob("small*"):
            old.unlink()
        command = [self.binary, "quantize", source, "-o", file, "--verify-each", "--report", self.out / "report.json", "--threads", "1"]
        if case.calibrated:
            command += ["--calib", self.out / "data.npz"]
        if case.evaluated:
            command += ["--eval", self.out / "data.npz"]
        done = subprocess.run([str(a) for a in [*command, *case.options]], capture_output=True, text=True)
        if done.returncode != case.code or "panicked" in done.stderr:
            self.fault(f"exit code {done.returncode} where {case.code} was expected: {done.stderr.strip()[-600:]}")
            return
        if case.code != 0:
            if file.exists():
                self.fault("wrote a file although it failed")
            if case.says not in done.stderr:
                self.fault(f"does not say {case.says!r}: {done.stderr.strip()}")
            return
        small = onnx.load(file)
        self.structure(model, small, file)
        self.values(source, file, data)
        if case.check:
            report = json.loads((self.out / "report.json").read_text())
            for problem in case.check(small, report, self.out):
                self.fault(problem)

    def structure(self, model, small, file):
        if self.case.standard:
            onnx.checker.check_model(str(file), full_check=True)
        if signature(model) != signature(small):
            self.fault(f"signature {signature(model)} became {signature(small)}")
        if unused := unused_initializers(small):
            self.fault(f"initializers that nothing uses: {unused}")
        for g in graphs(small.graph):
            for n in g.node:
                if n.op_type in ("QuantizeLinear", "DequantizeLinear") and (len(n.input) < 3 or not n.input[2]):
                    self.fault(f"{n.op_type} {n.name} has no zero point")
        names = [n.name for g in graphs(small.graph) for n in g.node if n.name]
        before = [n.name for g in graphs(model.graph) for n in g.node if n.name]
        if len(set(names)) < len(names) and len(set(before)) == len(before):
            self.fault("node names are not unique")

    def values(self, source, file, data):
        case = self.case
        if not case.runs:
            return
        optimized = self.out / "onnxruntime.onnx"
        float_ = outputs(session(source, LEVELS.ORT_DISABLE_ALL), data)
        plain = outputs(session(file, LEVELS.ORT_DISABLE_ALL), data)
        fused = outputs(session(file, LEVELS.ORT_ENABLE_EXTENDED, optimized), data)
        full = outputs(session(file, LEVELS.ORT_ENABLE_ALL), data)
        worst = 999.0
        for way, found in [("plain", plain), ("fused", fused), ("full", full)]:
            for name, r in float_.items():
                if r.dtype != found[name].dtype or r.shape != found[name].shape:
                    self.fault(f"{way}: `{name}` is {found[name].dtype}{found[name].shape}, float {r.dtype}{r.shape}")
                    continue
                worst = min(worst, sqnr(r, found[name]))
                if sqnr(r, found[name]) < case.floor:
                    self.fault(f"{way}: `{name}` has {sqnr(r, found[name]):.1f} dB, less than {case.floor}")
        self.figures.append(f"{worst:.1f} dB")
        report = json.loads((self.out / "report.json").read_text())
        if case.int8_kernels:
            session(file, LEVELS.ORT_ENABLE_EXTENDED, optimized, int8=True)
        left, integer = in_float(onnx.load(optimized))
        if missing := not_explained(left, onnx.load(file), report):
            self.fault(f"left in float without a reason: {missing}")
        counts = kernels(onnx.load(optimized))
        for op, number in case.expect.items():
            if counts.get(op, 0) != number:
                self.fault(f"{counts.get(op, 0)} {op} where {number} were expected in {counts}")
        if case.evaluated and case.runs_in_tract:
            self.engines(file, plain, fused)

    def engines(self, file, plain, fused):
        target = self.out / "tract.npz"
        done = subprocess.run(
            [str(a) for a in [self.binary, "run", file, "--data", self.out / "data.npz", "-o", target, "--threads", "1"]],
            capture_output=True, text=True,
        )
        if done.returncode != 0:
            self.fault(f"run: {done.stderr.strip()}")
            return
        ours = dict(np.load(target))
        for name, p in plain.items():
            o = ours[name].reshape(p.shape) if ours[name].size == p.size else ours[name]
            if o.shape != p.shape:
                self.fault(f"tract: `{name}` has shape {o.shape}, onnxruntime {p.shape}")
                continue
            near = sqnr(p, o)
            self.figures.append(f"tract {near:.0f}")
            # One step at a tie of a quantizer moves a single value by up to 1/255 of the range.
            if near < max(self.case.floor, 30):
                self.fault(f"tract and onnxruntime are {near:.1f} dB apart in `{name}`")
            if p.ndim > 1 and p.shape[-1] > 1 and p.size:
                same = (o.argmax(-1) == p.argmax(-1)).mean()
                if same < self.case.agreement:
                    self.fault(f"tract and onnxruntime agree on {same:.3f} of `{name}`")


def main():
    binary, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    wanted = set(sys.argv[3:])
    cases = [c for c in CASES if not wanted or c.name in wanted]
    if unknown := wanted - {c.name for c in cases}:
        sys.exit(f"no such case: {sorted(unknown)}")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        judged = list(pool.map(lambda c: Judge(c, binary, out).judge(), cases))
    for j in judged:
        print(f"{'FAILED' if j.faults else 'ok':8}{j.case.name:36}{', '.join(j.figures)}")
    faults = [f for j in judged for f in j.faults]
    print("\n".join(faults))
    print(f"{len(judged)} models, {len(faults)} faults")
    sys.exit(1 if faults or not judged else 0)


if __name__ == "__main__":
    main()
