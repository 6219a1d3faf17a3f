"""Preprocessing of images, texts and recordings against Pillow, numpy and tokenizers.

    python3 tests/crosscheck/feeds.py BINARY FOLDER

Each case runs `onnx-quant run` on a model that gives back what it is fed with, and compares the tensors with those of
the usual Python recipe. Images are generated with structure of all sizes, and stored without loss, so that the bytes
must be equal; of JPEG files a few values may differ where the decoders round differently. The exit code is 1 where
something does not hold.
"""

import json
import pathlib
import subprocess
import sys
import wave

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}


class Checks:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.count, self.faults = binary, folder, 0, []

    def model(self, name, inputs):
        """A model that gives back each of its inputs: name, type, shape."""
        ins = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
        outs = [helper.make_tensor_value_info(f"{n}_out", t, s) for n, t, s in inputs]
        nodes = [helper.make_node("Identity", [n], [f"{n}_out"]) for n, _, _ in inputs]
        graph = helper.make_graph(nodes, "g", ins, outs)
        path = self.folder / name
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, path)
        return path

    def feed(self, model, data, *options):
        out = self.folder / "out.npz"
        command = [self.binary, "run", model, "--data", data, "-o", out, *options]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            self.faults.append(f"{' '.join(map(str, options))}: {done.stderr.strip()}")
            return {}
        return {k.removesuffix("_out"): v for k, v in np.load(out).items()}

    def same(self, what, ours, theirs, tolerance=0.0, share=0.0):
        self.count += 1
        if ours is None or ours.shape != theirs.shape:
            shape = None if ours is None else ours.shape
            self.faults.append(f"{what}: shape {shape}, expected {theirs.shape}")
            return
        far = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) > tolerance
        if far.mean() > share:
            self.faults.append(f"{what}: {far.mean():.4%} of the values differ, by up to {np.abs(ours - theirs).max()}")


def picture(height, width, seed):
    """Waves, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [np.sin(x / (2 + c) + y / (9 - c)) * 60 + (x // 7 + y // 5) % 2 * 80 + 60 for c in range(3)]
    return (np.stack(planes, -1) + rng.integers(0, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)


def images(checks):
    folder = checks.folder / "images"
    folder.mkdir(exist_ok=True)
    files = []
    for i, (h, w) in enumerate([(300, 400), (333, 257), (64, 500), (224, 224), (97, 101)]):
        path = folder / f"{i}.{['png', 'webp', 'bmp'][i % 3]}"
        Image.fromarray(picture(h, w, i)).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
        files.append(path)
    nchw = checks.model("nchw.onnx", [("x", TensorProto.FLOAT, ["N", 3, 224, 224])])
    nhwc = checks.model("nhwc.onnx", [("x", TensorProto.FLOAT, ["N", "H", "W", 3])])
    grey = checks.model("grey.onnx", [("x", TensorProto.FLOAT, ["N", 1, 32, 48])])
    opened = [Image.open(f).convert("RGB") for f in files]

    def imagenet(image):
        w, h = image.size
        size = (256, 256 * h // w) if w <= h else (256 * w // h, 256)
        image = np.asarray(image.resize(size, Image.BILINEAR))
        top, left = (round((s - 224) / 2) for s in image.shape[:2])
        return image[top : top + 224, left : left + 224]

    cut = np.stack([imagenet(i) for i in opened])
    scaled = ((cut.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    ours = checks.feed(nchw, folder, "--preset", "imagenet").get("x")
    checks.same("--preset imagenet", ours, scaled, 1e-6)
    spelled = ["--resize", "shortest:256", "--crop", "center", "--mean", "0.485,0.456,0.406"]
    spelled += ["--std", "0.229,0.224,0.225", "--scale", "1/255", "--layout", "nchw", "--channels", "rgb"]
    checks.same("the same spelled out", checks.feed(nchw, folder, *spelled).get("x"), scaled, 1e-6)
    caffe = cut[..., ::-1].astype(np.float32) - np.float32([103.939, 116.779, 123.68])
    ours = checks.feed(nchw, folder, "--preset", "imagenet-caffe").get("x")
    checks.same("--preset imagenet-caffe", ours, caffe.transpose(0, 3, 1, 2), 1e-4)
    for name, filter in FILTERS.items():
        for size in [(224, 224), (50, 31), (400, 640)]:
            raw = np.stack([np.asarray(i.resize(size[::-1], filter)) for i in opened]).astype(np.float32)
            options = ["--preset", "raw", "--filter", name, "--image-size", f"{size[0]}x{size[1]}"]
            checks.same(f"{name} to {size}", checks.feed(nhwc, folder, *options).get("x"), raw)
    raw = np.stack([np.asarray(Image.open(f).convert("L").resize((48, 32), Image.BILINEAR)) for f in files])
    ours = checks.feed(grey, folder, "--preset", "unit").get("x")
    checks.same("grey", ours, raw[:, None].astype(np.float32) / 255, 1e-7)

    jpeg = checks.folder / "jpeg"
    jpeg.mkdir(exist_ok=True)
    Image.fromarray(picture(480, 640, 9)).save(jpeg / "a.jpg", quality=92)
    raw = np.asarray(Image.open(jpeg / "a.jpg").convert("RGB").resize((224, 224), Image.BILINEAR))
    ours = checks.feed(nchw, jpeg, "--preset", "raw").get("x")
    checks.same("jpeg", ours, raw.transpose(2, 0, 1)[None].astype(np.float32), 4.0, 0.02)


def tokenizer(path, lines):
    words = sorted({w for line in lines for w in line.lower().split()})
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(path))
    return made


def texts(checks):
    rng = np.random.default_rng(5)
    words = [f"word{i}" for i in range(200)]
    lines = [" ".join(rng.choice(words, rng.integers(3, 30))) for _ in range(40)]
    corpus, file = checks.folder / "corpus.txt", checks.folder / "tokenizer.json"
    corpus.write_text("\n".join(lines) + "\n\n")
    made = tokenizer(file, lines)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    fixed = checks.model("ids16.onnx", [(n, TensorProto.INT64, ["N", 16]) for n in names])
    free = checks.model("ids.onnx", [("input_ids", TensorProto.INT64, ["N", "T"])])
    ours = checks.feed(fixed, corpus, "--tokenizer", file)
    ids = [made.encode(line).ids[:16] for line in lines]
    mask = [[1] * len(i) + [0] * (16 - len(i)) for i in ids]
    checks.same("input_ids", ours.get("input_ids"), np.array([i + [0] * (16 - len(i)) for i in ids]))
    checks.same("attention_mask", ours.get("attention_mask"), np.array(mask))
    checks.same("token_type_ids", ours.get("token_type_ids"), np.zeros((40, 16)))
    ours = checks.feed(free, corpus, "--tokenizer", file, "--window", "10")
    whole = made.encode(corpus.read_text(), add_special_tokens=False).ids
    count = (len(whole) - 1) // 10
    checks.same("windows", ours.get("input_ids"), np.array(whole[: count * 10]).reshape(count, 10))


def recordings(checks):
    path = checks.folder / "sound.wav"
    values = np.random.default_rng(7).integers(-32768, 32767, 1000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(values.tobytes())
    model = checks.model("audio.onnx", [("x", TensorProto.FLOAT, ["N", "T"])])
    ours = checks.feed(model, path, "--window", "128", "--rate", "16000").get("x")
    checks.same("wav", ours, (values[: 7 * 128].astype(np.float32) / 32768).reshape(7, 128))


def main():
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    checks = Checks(pathlib.Path(sys.argv[1]).resolve(), folder)
    images(checks)
    texts(checks)
    recordings(checks)
    print(json.dumps({"checked": checks.count, "faults": checks.faults}, indent=1))
    sys.exit(bool(checks.faults))


if __name__ == "__main__":
    main()
