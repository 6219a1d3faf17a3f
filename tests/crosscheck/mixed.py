"""Mixed precision on real models: figures that `quantize --auto` and the front of `assign` have to reach.

usage: mixed.py BINARY ZOO WORK

onnxruntime judges the models with the zoo's own script. `magika` is quantized without any hint; the front of
`mobilenetv2-cifar` is compared with the models that other tools made from the same data.
"""

import json
import os
import subprocess
import sys
import tomllib

# The best of other tools: top-1 and kilobytes.
PEERS = [(0.7425, 946), (0.7425, 1087), (0.7375, 950), (0.7005, 462), (0.7055, 582)]
BITS = [5.0, 5.5, 6.0, 7.0, 7.9, 9.2]


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def files(zoo, name):
    folder = os.path.join(zoo, name)
    return [os.path.join(folder, f) for f in ("model.onnx", "calib.npz", "eval.npz", "labels.npy")]


def judge(zoo, name, path):
    said = run(sys.executable, os.path.join(zoo, "eval.py"), name, path)
    return json.loads(said.splitlines()[-1])


def magika(binary, zoo, work):
    model, calib, evaluation, labels = files(zoo, "magika")
    out, plan = os.path.join(work, "magika.onnx"), os.path.join(work, "magika.toml")
    run(binary, "quantize", model, "--auto", "--max-drop", "1%", "--calib", calib, "--eval", evaluation,
        "--labels", labels, "-o", out, "--save-plan", plan)
    found = judge(zoo, "magika", out)
    share = os.path.getsize(out) / os.path.getsize(model)
    with open(plan, "rb") as f:
        layers = [l for l in tomllib.load(f)["layer"] if l["op"] in ("Conv", "MatMul")]
    both = [l for l in layers if "8" in l.get("weights", "") and "8" in l["activations"]]
    print(f"magika: top-1 {found['metric']} of {found['fp32_metric']}, {share:.1%} of the size, "
          f"{len(both)} of {len(layers)} layers in 8 bits on both sides")
    assert found["fp32_metric"] - found["metric"] <= 0.01
    assert share <= 0.30
    assert 2 * len(both) > len(layers) > 0


def mobilenet(binary, zoo, work):
    model, calib, evaluation, labels = files(zoo, "mobilenetv2-cifar")
    found = os.path.join(work, "sensitivity.json")
    run(binary, "analyze", model, "--calib", calib, "--eval", evaluation, "--labels", labels,
        "--candidates", "int8/uint8,int4/uint8", "-o", found)
    points = []
    for bits in BITS:
        plan, out = os.path.join(work, f"{bits}.toml"), os.path.join(work, f"{bits}.onnx")
        run(binary, "assign", "--sensitivity", found, "--avg-bits", bits, "-o", plan)
        run(binary, "quantize", model, "--plan", plan, "-o", out)
        seen = judge(zoo, "mobilenetv2-cifar", out)
        points.append((seen["metric"], seen["model_bytes"] / 1000, seen["sqnr_db"]))
        print(f"mobilenetv2-cifar: {bits} bits: top-1 {seen['metric']}, {seen['model_bytes']} bytes, "
              f"{seen['sqnr_db']} dB")
    for metric, size in PEERS:
        beaten = [p for p in points if metric > p[0] and size < p[1]]
        assert not beaten, f"{metric} with {size} kB is smaller and better than {beaten}"
    # The front is one: signal to noise rises with the size.
    assert all(a[1] < b[1] and a[2] < b[2] for a, b in zip(points, points[1:])), points


def main():
    binary, zoo, work = sys.argv[1:]
    os.makedirs(work, exist_ok=True)
    mobilenet(binary, zoo, work)
    magika(binary, zoo, work)


main()
