"""Writes every model of the onnx package to a folder, for the Rust test `corpus` of the crate onnx-quant-ir.

    python3 tests/crosscheck/roundtrip_corpus.py DIR
    ONNX_CORPUS=DIR cargo test -p onnx-quant-ir --test corpus

The models: all node cases of the backend test (made on the spot), and the files of the light, simple and real models
that the package carries.
"""

import pathlib
import shutil
import sys

import onnx
from onnx.backend.test import loader
from onnx.backend.test.case.node import collect_testcases


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for case in collect_testcases(None):
        if case.model is None:
            continue
        (folder / f"{case.name}.onnx").write_bytes(case.model.SerializeToString())
        written += 1
    print(f"{written} node cases")
    data = pathlib.Path(loader.DATA_DIR)
    files = sorted(data.rglob("*.onnx"))
    for file in files:
        name = "-".join(file.relative_to(data).parts)
        shutil.copyfile(file, folder / f"file-{name}")
    light = sorted((pathlib.Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
    for file in light:
        shutil.copyfile(file, folder / f"light-{file.name}")
    print(f"{len(files)} files of the package, {len(light)} light models")
    print(f"{len(list(folder.glob('*.onnx')))} models in {folder}")


if __name__ == "__main__":
    main()
