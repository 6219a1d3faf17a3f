"""The folder that tests/engine.rs reads: cases.json and raw little-endian files for inputs and expected outputs."""

import json
import pathlib

import numpy as np
import onnx


class Cases:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cases = []
        self.files = 0

    def tensor(self, name, array):
        """Writes an array (4-bit ml_dtypes are written packed) and returns its description."""
        array = np.asarray(array)
        proto = onnx.numpy_helper.from_array(array, name)
        file = f"{self.files:05}.bin"
        self.files += 1
        (self.folder / file).write_bytes(proto.raw_data)
        return {"name": name, "dtype": proto.data_type, "dims": list(array.shape), "file": file}

    def add(self, name, model, samples, bits):
        """`model` is a path or a ModelProto; `samples` holds pairs of dicts, inputs and expected outputs."""
        if not isinstance(model, (str, pathlib.Path)):
            path = self.folder / f"{name}.onnx"
            onnx.save(model, path)
            model = path
        self.cases.append(
            {
                "name": name,
                "model": str(pathlib.Path(model).resolve()),
                "bits": bits,
                "samples": [
                    {
                        "inputs": [self.tensor(k, v) for k, v in i.items()],
                        "outputs": [self.tensor(k, v) for k, v in o.items()],
                    }
                    for i, o in samples
                ],
            }
        )

    def write(self):
        (self.folder / "cases.json").write_text(json.dumps(self.cases, indent=1))
        print(f"{len(self.cases)} cases, {self.files} tensors in {self.folder}")
