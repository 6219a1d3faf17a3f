"""Stores onnxruntime's outputs for the first samples of every model of a zoo.

usage: zoo_reference.py ZOO_FOLDER OUTPUT_FOLDER [SAMPLES]

Then: ZOO_CASES=OUTPUT_FOLDER cargo test -p onnx-quant --test engine
"""

import pathlib
import sys

import numpy as np
import onnxruntime as ort

from caselib import Cases

FEEDS = [
    ("resnet8-cifar", "model.onnx", "eval.npz"),
    ("mobilenetv2-cifar", "model.onnx", "eval.npz"),
    ("magika", "model.onnx", "eval.npz"),
    ("ultraface-rfb320", "model.onnx", "eval.npz"),
    ("minilm", "model.onnx", "eval.npz"),
    ("chargpt-kv", "model.onnx", "calib.npz"),
    ("chargpt-kv", "model.onnx", "calib_prefill.npz"),
    ("chargpt-kv", "model_nocache.onnx", "calib_nocache.npz"),
    ("silero-vad", "model.onnx", "calib.npz"),
    ("silero-vad", "model_op18_ifless.onnx", "calib.npz"),
]


def main():
    zoo, count = pathlib.Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 4
    cases = Cases(sys.argv[2])
    for entry, file, data in FEEDS:
        path = zoo / entry / file
        if not path.exists() or not (zoo / entry / data).exists():
            print(f"skipped: {path} with {data}")
            continue
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        arrays = np.load(zoo / entry / data)
        samples = []
        for i in range(count):
            feed = {}
            for x in session.get_inputs():
                a = arrays[x.name]
                feed[x.name] = np.asarray(a[i] if a.ndim == len(x.shape) + 1 else a[i : i + 1])
            names = [y.name for y in session.get_outputs()]
            samples.append((feed, dict(zip(names, session.run(names, feed)))))
        cases.add(f"{entry}/{file}/{data}".replace("/", " "), path, samples, bits=False)
    cases.write()


if __name__ == "__main__":
    main()
