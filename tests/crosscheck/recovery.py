"""`--optimize` on models of the zoo, judged by onnxruntime: what it has to bring back.

usage: recovery.py BINARY ZOO WORK

Weights of 4 and 3 bits on a residual net, channels of very different size with one scale for a tensor, SmoothQuant and
weights of 4 bits in blocks on transformers; and the memory it takes. The bounds are those that the methods are promised to
hold, not what was measured.
"""

import os
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

FAILED = []


def quantize(binary, model, calib, out, *args):
    done = subprocess.run(
        [binary, "quantize", model, "--calib", calib, "-o", out, "-q", *args],
        capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(args)}\n{done.stderr}")
    return out


def session(path):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = 2
    return ort.InferenceSession(path, options, ["CPUExecutionProvider"])


def run(path, data):
    """The first output for all samples."""
    model = session(path)
    name = model.get_outputs()[0].name
    count = len(next(iter(data.values())))
    parts = [model.run([name], {k: v[i:i + 50] for k, v in data.items()})[0]
             for i in range(0, count, 50)]
    return np.concatenate(parts)


def sqnr(exact, found):
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    return 10 * np.log10((exact ** 2).sum() / ((exact - found) ** 2).sum())


def holds(what, found, bound, at_least=True):
    good = found >= bound if at_least else found <= bound
    sign = ">=" if at_least else "<="
    print(f"{'ok  ' if good else 'FAIL'} {what}: {found:.4f} {sign} {bound:.4f}")
    if not good:
        FAILED.append(what)


def images(zoo, name):
    folder = os.path.join(zoo, name)
    data = dict(np.load(os.path.join(folder, "eval.npz")))
    labels = np.load(os.path.join(folder, "labels.npy"))
    return os.path.join(folder, "model.onnx"), os.path.join(folder, "calib.npz"), data, labels


def top1(logits, labels):
    return float((logits.reshape(len(labels), -1).argmax(1) == labels).mean())


def residual_net(binary, zoo, work):
    model, calib, data, labels = images(zoo, "resnet8-cifar")
    exact = top1(run(model, data), labels)
    for bits, drop in [("int4", 0.01), ("int3", 0.03)]:
        out = os.path.join(work, f"resnet8-{bits}.onnx")
        quantize(binary, model, calib, out, "--weights", bits, "--optimize", "best")
        holds(f"resnet8-cifar {bits} top-1", top1(run(out, data), labels), exact - drop)


def rescaled(path, out, seed):
    """Every channel between two convolutions with nothing but a Relu between is scaled by 10^±1.5."""
    model = onnx.load(path)
    graph, random = model.graph, np.random.default_rng(seed)
    weights = {t.name: t for t in graph.initializer}
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    done = 0
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        value = node.output[0]
        while len(readers.get(value, [])) == 1 and readers[value][0].op_type == "Relu":
            value = readers[value][0].output[0]
        behind = readers.get(value, [])
        if value == node.output[0] or len(behind) != 1 or behind[0].op_type != "Conv":
            continue
        names = [*node.input[1:3], behind[0].input[1]]
        if any(len(readers[n]) != 1 for n in names):
            continue
        w = numpy_helper.to_array(weights[names[0]])
        s = (10.0 ** random.uniform(-1.5, 1.5, w.shape[0])).astype(np.float32)
        for name in names[:-1]:
            t = numpy_helper.to_array(weights[name])
            t = t * s.reshape(-1, *[1] * (t.ndim - 1))
            weights[name].CopyFrom(numpy_helper.from_array(t, name))
        t = numpy_helper.to_array(weights[names[-1]])
        depthwise = t.shape[1] == 1 and t.shape[0] == len(s)
        shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
        weights[names[-1]].CopyFrom(numpy_helper.from_array(t / s.reshape(shape), names[-1]))
        done += 1
    onnx.save(model, out)
    return done


def one_scale(binary, zoo, work):
    model, calib, data, _ = images(zoo, "resnet8-cifar")
    data = {k: v[:500] for k, v in data.items()}
    scaled = os.path.join(work, "resnet8-rescaled.onnx")
    if rescaled(model, scaled, 3) < 3:
        sys.exit("the channels of resnet8-cifar could not be scaled")
    exact = run(model, data)
    form = ("--weights", "int8:tensor")
    found = {}
    for name, path, more in [
        ("plain", model, ()),
        ("nearest", scaled, ()),
        ("equalized", scaled, ("--optimize", "equalize")),
    ]:
        out = os.path.join(work, f"resnet8-{name}.onnx")
        quantize(binary, path, calib, out, *form, *more)
        found[name] = sqnr(exact, run(out, data))
    holds("rescaled channels collapse with nearest, dB", found["nearest"], found["plain"] - 6, False)
    holds("rescaled channels, equalized, dB", found["equalized"], found["plain"] - 1)


def decoder(binary, zoo, work):
    folder = os.path.join(zoo, "chargpt-kv")
    model = os.path.join(folder, "model_nocache.onnx")
    calib = os.path.join(folder, "calib_nocache.npz")
    ids = np.load(os.path.join(folder, "eval.npz"))["input_ids"][:128]
    labels = np.load(os.path.join(folder, "labels.npy"))[:128]
    names = [i.name for i in session(model).get_inputs()]
    feed = {"input_ids": ids}
    if "attention_mask" in names:
        feed["attention_mask"] = np.ones_like(ids)
    if "position_ids" in names:
        feed["position_ids"] = np.tile(np.arange(ids.shape[1], dtype=np.int64), (len(ids), 1))
    feed = {k: v for k, v in feed.items() if k in names}

    def perplexity(path):
        logits = run(path, feed).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        at = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
        return float(np.exp((np.log(np.exp(logits).sum(-1)) - at).mean()))

    exact = perplexity(model)
    for bits, rise in [("int4", 0.01), ("int3", 0.04)]:
        out = os.path.join(work, f"chargpt-{bits}.onnx")
        quantize(binary, model, calib, out, "--weights", f"{bits}:block32",
                 "--activations", "none", "--optimize", "best")
        holds(f"chargpt {bits} perplexity", perplexity(out), exact * (1 + rise), False)


def anonymous(command):
    """The most memory in MB of a command, pages of mapped files left out."""
    most, process = 0, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
            most = max([most, *(int(line.split()[1]) for line in status if line.startswith("RssAnon"))])
        time.sleep(0.01)
    if process.returncode != 0:
        sys.exit(f"{command} ended with {process.returncode}")
    return most / 1024


def memory(binary, zoo, work):
    """What recovery keeps stays within `--memory`; the bytes are the same."""
    model, calib, _, _ = images(zoo, "resnet8-cifar")
    found = {}
    for limit in ["4MB", "1GB"]:
        out = os.path.join(work, f"resnet8-{limit}.onnx")
        command = [binary, "quantize", model, "--calib", calib, "-o", out, "-q", "--weights", "int4"]
        found[limit] = anonymous([*command, "--optimize", "fast", "--memory", limit]), out
    (small, one), (large, other) = found.values()
    holds("resnet8-cifar int4 within 4 MB, MB of memory", small, large - 80, False)
    with open(one, "rb") as one, open(other, "rb") as other:
        holds("the same bytes with 4 MB", float(one.read() == other.read()), 1.0)


def main():
    binary, zoo, work = sys.argv[1:4]
    os.makedirs(work, exist_ok=True)
    residual_net(binary, zoo, work)
    one_scale(binary, zoo, work)
    decoder(binary, zoo, work)
    memory(binary, zoo, work)
    if FAILED:
        sys.exit("does not hold: " + ", ".join(FAILED))


if __name__ == "__main__":
    main()
