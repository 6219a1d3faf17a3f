"""The calibrators of `calibrate` and `quantize --stats` against numpy, on the activations of a real model.

usage: observers.py BINARY ZOO WORK

onnxruntime runs the float model and hands out its activations; numpy chooses the ranges from all their values, without
a histogram. Extremes, averages and percentiles have to agree; the squared error of `mse` has to be that of the best
range of a fine grid, the divergence of `kl` that of the best of all cuts.
"""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

MODEL = "resnet8-cifar"
SAMPLES = 64


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}\n{done.stderr}")


def activations(model, feed, names):
    """The values of these names, samples on axis 0; those that the original model has."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v for v in inferred.graph.value_info}
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(known[n] for n in names if n in known and n not in present)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = [n for n in names if n in known or n in present]
    found = dict(zip(wanted, session.run(wanted, feed)))
    found.update({n: v for n, v in feed.items() if n in names})
    return found


def parameters(path):
    """Scale and zero point of each quantized activation, by the name of the value."""
    model = onnx.load(path)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = constants[node.input[1]], constants[node.input[2]]
            found[node.input[0]] = (float(scale), int(zero))
    return found


def real_range(scale, zero):
    return -zero * scale, (255 - zero) * scale


def squared_error(x, low, high):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    return float(np.mean(((codes - zero) * scale - x) ** 2))


def moving_average(extremes, keep):
    m = extremes[0]
    for e in extremes[1:]:
        m = keep * m + (1 - keep) * e
    return m


def divergence(counts, below, reach, levels):
    """D(P || Q) of cutting the bins at this distance from zero, by its definition."""
    first, last = max(below - reach, 0), min(below + reach, len(counts))
    inside, total = counts[first:last], counts.sum()
    kept = inside.sum()
    if kept == 0:
        return np.inf
    groups = min(levels, len(inside))
    member = np.arange(len(inside)) * groups // len(inside)
    values = np.bincount(member, inside, groups)
    holding = np.bincount(member, inside > 0, groups)
    q = np.divide(values, holding, where=holding > 0, out=np.zeros(groups))[member] / kept
    p, floor = inside.copy(), np.zeros(len(inside))
    for edge, missing in ((0, counts[:first].sum()), (-1, counts[last:].sum())):
        p[edge] += missing
        floor[edge] = max(floor[edge], 0.1 / total if missing > 0 else 0.0)
    p, q = p / total, np.maximum(q, floor)
    some = p > 0
    dense = (holding > 0) & (values >= 5 * holding)
    return np.sum(p[some] * np.log(p[some] / q[some])) - np.sum(holding[dense] - 1) / (2 * total)


def best_cut(x):
    """The cut of least divergence among all that end between two bins, for 256 levels."""
    width = 2.0 ** (np.floor(np.log2(np.abs(x).max())) + 1 - 12)
    below = int(np.floor(-x.min() / width)) + 1 if x.min() < 0 else 0
    above = int(np.floor(x.max() / width)) + 1
    shortest = 128 if below and above else 256
    merge = 1
    while max(below, above) // (2 * merge) >= 8 * shortest:
        merge *= 2
    width *= merge
    magnitude = np.floor(np.abs(x) / width).astype(int)
    left = np.bincount(magnitude[x < 0]).astype(float)[::-1] if below else np.zeros(0)
    counts = np.concatenate([left, np.bincount(magnitude[x >= 0]).astype(float)])
    below = len(left)
    if len(counts) > below + 1:
        counts[below] = min(counts[below], counts[below + 1])
    widest = max(below, len(counts) - below)
    kept = lambda r: counts[max(below - r, 0):below + r].sum()
    while shortest < widest and kept(shortest) < counts.sum() * (1 - 4 / 256):
        shortest += 1
    reaches = range(shortest, widest + 1) if widest > shortest else [widest]
    found = {r: divergence(counts, below, r, 256) for r in reaches}
    return found, width


def main(binary, zoo, work):
    os.makedirs(work, exist_ok=True)
    folder = os.path.join(zoo, MODEL)
    model = onnx.load(os.path.join(folder, "model.onnx"))
    with np.load(os.path.join(folder, "calib.npz")) as arrays:
        feed = {k: arrays[k][:SAMPLES] for k in arrays}
    data, stats = os.path.join(work, "calib.npz"), os.path.join(work, "stats.json")
    np.savez(data, **feed)
    run(binary, "calibrate", os.path.join(folder, "model.onnx"), "--calib", data, "-o", stats)
    with open(stats) as file:
        names = list(json.load(file)["values"])
    seen = activations(model, feed, names)
    faults, compared = [], 0

    for method in ["minmax", "minmax-avg", "ema:0.9", "percentile:99.9", "mse", "kl"]:
        out = os.path.join(work, "model.onnx")
        run(binary, "quantize", os.path.join(folder, "model.onnx"), "--stats", stats,
            "--calibrator", method, "--min-activation-sqnr", "0", "-o", out)
        for name, (scale, zero) in parameters(out).items():
            x = seen.get(name)
            if x is None:
                continue
            low, high = real_range(scale, zero)
            x = x.astype(np.float64)
            rows = x.reshape(len(x), -1)
            extremes = np.stack([rows.min(1), rows.max(1)], 1)
            # A zero point is whole: each end moves by up to half a step.
            slack = 0.51 * scale + 1e-5 * np.abs(x).max()
            if method == "mse":
                ends = [(a * x.min(), b * x.max()) for a in np.linspace(0.4, 1, 9) for b in np.linspace(0.4, 1, 9)]
                best = min(squared_error(rows, *e) for e in ends)
                mine = squared_error(rows, low, high)
                good, told = mine <= 1.05 * best, f"error {mine:.3g}, of a grid {best:.3g}"
            elif method == "kl":
                found, width = best_cut(x.ravel())
                reach = max(-low, high)
                # onnxruntime and tract differ in the last bits, which moves single values between bins.
                near = [d for r, d in found.items() if abs(r * width - reach) <= slack + width]
                whole = reach >= np.abs(x).max() - slack
                best = min(found.values())
                good = bool(near and min(near) <= best + 2e-4) or (whole and found[max(found)] <= best + 2e-4)
                told = f"reach {reach:.4g}, divergence {min(near, default=np.nan):.6g}, best {best:.6g}"
            else:
                if method == "minmax":
                    expected = np.array([x.min(), x.max()])
                elif method == "minmax-avg":
                    expected = extremes.mean(0)
                elif method == "ema:0.9":
                    expected = moving_average(extremes, 0.9)
                else:
                    expected = np.quantile(x, [0.0005, 0.9995])
                    slack += 2.0 ** (np.floor(np.log2(np.abs(x).max())) - 11)
                expected = np.clip(expected, x.min(), x.max())
                expected = np.array([min(expected[0], 0), max(expected[1], 0)])
                good = np.all(np.abs(expected - [low, high]) <= slack)
                told = f"{low:.6g} to {high:.6g}, numpy {expected[0]:.6g} to {expected[1]:.6g}"
            compared += 1
            if not good:
                faults.append(f"{method} {name}: {told}")
    print(f"{compared} ranges compared with numpy, {len(faults)} differ")
    if faults or compared < 60:
        sys.exit("\n".join(faults) or "too few ranges were compared")


if __name__ == "__main__":
    main(*sys.argv[1:])
