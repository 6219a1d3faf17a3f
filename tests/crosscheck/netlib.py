"""Builds small networks with random weights, and their data: what `models.py` is written with."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# IR version that goes with an opset, as exporters write it.
IR = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


class Net:
    """A graph under construction. `samples` of data are made for every input."""

    def __init__(self, opset=21, samples=24, seed=0, dtype=np.float32):
        self.rng = np.random.default_rng(seed)
        self.opset, self.samples, self.dtype = opset, samples, dtype
        self.imports = [helper.make_opsetid("", opset)]
        self.functions = []
        self.nodes, self.tensors, self.inputs, self.outputs, self.infos = [], [], [], [], []
        self.data = {}
        self.count = 0

    def fresh(self, stem):
        self.count += 1
        return f"{stem}_{self.count}"

    def input(self, name, shape, data=None, elem=None):
        """An input; the first dimension is the batch. Without `data` it gets smooth random values of the net's type."""
        elem = elem or helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, elem, shape))
        if data is None:
            dims = [d if isinstance(d, int) else 8 for d in shape[1:]]
            data = self.rng.normal(0, 1, [self.samples, *dims]).astype(self.dtype)
        self.data[name] = data
        return name

    def output(self, name, shape=None, elem=None):
        elem = elem or helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.outputs.append(helper.make_tensor_value_info(name, elem, shape))
        return name

    def const(self, value, name=None, dtype=None):
        """An initializer."""
        name = name or self.fresh("c")
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def weight(self, *shape, name=None, fan=None, dtype=None):
        """A random weight that keeps the size of what it is applied to; `fan` is the number of summands."""
        fan = fan or int(np.prod(shape[1:]))
        value = self.rng.normal(0, 1 / np.sqrt(max(fan, 1)), shape)
        return self.const(value.astype(dtype or self.dtype), name or self.fresh("w"))

    def bias(self, *shape, size=0.3, dtype=None):
        return self.const(self.rng.normal(0, size, shape).astype(dtype or self.dtype), self.fresh("b"))

    def op(self, kind, *inputs, out=None, outs=1, name=None, **attributes):
        """A node; the name of its result, or a list of names where it has several."""
        results = [self.fresh(kind.lower()) for _ in range(outs)]
        if out is not None:
            results = [out] if isinstance(out, str) else list(out)
        label = self.fresh(kind) if name is None else name
        self.nodes.append(helper.make_node(kind, list(inputs), results, name=label, **attributes))
        return results[0] if len(results) == 1 else results

    def conv(self, x, cin, cout, k=3, group=1, bias=True, relu=False, out=None, **attributes):
        """A 2-D convolution that keeps height and width, unless the attributes say otherwise."""
        w = self.weight(cout, cin // group, k, k)
        attributes.setdefault("pads", [k // 2] * 4)
        inputs = [x, w] + ([self.bias(cout)] if bias else [])
        y = self.op("Conv", *inputs, out=None if relu else out, group=group, kernel_shape=[k, k], **attributes)
        return self.op("Relu", y, out=out) if relu else y

    def batchnorm(self, x, channels):
        rng, t = self.rng, self.dtype
        parts = [rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.2, channels), rng.normal(0, 0.2, channels), rng.uniform(0.5, 1.5, channels)]
        return self.op("BatchNormalization", x, *[self.const(p.astype(t)) for p in parts])

    def head(self, x, channels, classes=10, out="y"):
        """Global average pooling, Flatten and a dense layer."""
        x = self.op("GlobalAveragePool", x)
        x = self.op("Flatten", x)
        return self.op("Gemm", x, self.weight(classes, channels), self.bias(classes), out=out, transB=1)

    def model(self, ir=None):
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.tensors, value_info=self.infos)
        model = helper.make_model(graph, opset_imports=self.imports, functions=self.functions)
        model.ir_version = ir or IR[self.opset]
        if model.ir_version < 4:
            known = {i.name for i in model.graph.input}
            for t in self.tensors:
                if t.name not in known:
                    model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        return model


def subgraph(name, nodes, inputs, outputs, tensors=()):
    """A body of If or Loop; inputs and outputs are (name, type, shape)."""
    make = [helper.make_tensor_value_info(*v) for v in inputs]
    return helper.make_graph(nodes, name, make, [helper.make_tensor_value_info(*v) for v in outputs], list(tensors))
