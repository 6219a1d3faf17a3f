"""What a generated model is judged by, and the list of all of them."""

import dataclasses
import typing

import onnx

CASES = []


@dataclasses.dataclass
class Case:
    """A model and what must become of it."""

    name: str
    make: typing.Callable
    options: tuple = ()
    floor: float = 24.0
    agreement: float = 0.97
    expect: dict = dataclasses.field(default_factory=dict)
    code: int = 0
    says: str = ""
    calibrated: bool = True
    evaluated: bool = True
    standard: bool = True
    runs: bool = True
    runs_in_tract: bool = True
    int8_kernels: bool = False
    ir: typing.Optional[int] = None
    external: bool = False
    check: typing.Optional[typing.Callable] = None

    def build(self):
        net = self.make()
        return net.model(self.ir), net.data

    def save(self, model, path):
        if self.external:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
        else:
            onnx.save(model, path)


def case(name, **expected):
    """Registers a builder; may stand several times over one builder."""

    def register(make):
        CASES.append(Case(name, make, **expected))
        return make

    return register


def variants(name, values, **expected):
    """Registers a builder once for each value."""

    def register(make):
        for value in values:
            CASES.append(Case(f"{name}-{value}", lambda value=value: make(value), **expected))
        return make

    return register
