"""A convolutional network in float64, operator by operator in torch, and the operations that it takes.

What every contestant's answer is held against: no runtime's own sums are the measure of another's.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

FILE = "reference.npz"  # in the network's folder, of the usual batch
Operator = Callable[[list[Any], dict[str, Any]], "Tensor"]


def store(path: Path, arrays: "Sequence[np.ndarray]") -> int:
    """Writes FILE beside a model; returns the operations of its convolutions and products."""
    import numpy as np
    import onnx

    outputs, flops = evaluate(onnx.load(path), arrays)
    np.savez(path.parent / FILE, *outputs)
    return flops


def load(folder: Path) -> "list[np.ndarray] | None":
    """What `store` wrote, None where there is nothing."""
    import numpy as np

    if not (folder / FILE).exists():
        return None
    with np.load(folder / FILE) as loaded:
        return [loaded[name] for name in loaded.files]


def error(values: "Sequence[np.ndarray]", wanted: "Sequence[np.ndarray]") -> float:
    """The largest |y - wanted| / |wanted| of the outputs, in 2-norms; NaN where an answer has NaN."""
    import numpy as np

    def one(value: "np.ndarray", want: "np.ndarray") -> float:
        if value.shape != want.shape:
            return math.inf
        return float(np.linalg.norm(value.astype(np.float64) - want) / np.linalg.norm(want))

    found = [one(value, want) for value, want in zip(values, wanted, strict=True)]
    return math.nan if any(map(math.isnan, found)) else max(found)


def evaluate(model: "onnx.ModelProto", arrays: "Sequence[np.ndarray]") -> "tuple[list[np.ndarray], int]":
    """(outputs in float64, multiplications and additions of Conv, taps inside x alone, and Gemm).

    raises: KeyError for an operator that these networks do not have.
    """
    import torch
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in weights]
    values: dict[str, Any] = {name: torch.from_numpy(array).double() for name, array in zip(names, arrays, strict=True)}
    left = {name: sum(name in node.input for node in graph.node) for node in graph.node for name in node.input}

    def value(name: str) -> Any:
        if name in weights:  # float64 for as long as it is needed: vgg19's weights are 575 MB in f32
            tensor = torch.from_numpy(numpy_helper.to_array(weights[name]).copy())
            return tensor.double() if tensor.is_floating_point() else tensor
        return values[name] if name else None

    flops = 0
    for node in graph.node:
        inputs = [value(name) for name in node.input]
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        result = OPERATORS[node.op_type](inputs, attributes)
        values[node.output[0]] = result
        flops += 2 * _products(node.op_type, inputs, attributes, result)
        for name in node.input:
            left[name] -= 1
            if left[name] == 0:
                values.pop(name, None)
    return [values[output.name].numpy() for output in graph.output], flops


def _products(op_type: str, inputs: list[Any], attributes: dict[str, Any], result: "Tensor") -> int:
    """Of Conv those with taps inside x, of Gemm all."""
    import torch

    if op_type == "Gemm":
        return result.numel() * int(inputs[1].shape[1])
    if op_type != "Conv":
        return 0
    x, weight = inputs[:2]
    inside = _conv([torch.ones_like(x[:1, :1]), torch.ones_like(weight[:1, :1])], attributes | {"group": 1}).sum()
    return x.shape[0] * weight.shape[0] * weight.shape[1] * int(inside)


def _conv(inputs: list[Any], attributes: dict[str, Any]) -> "Tensor":
    import torch.nn.functional as F

    weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
    x = _padded(inputs[0], attributes, 0.0)
    return F.conv2d(x, weight, bias, attributes["strides"], groups=attributes.get("group", 1))


def _max_pool(inputs: list[Any], attributes: dict[str, Any]) -> "Tensor":
    import torch.nn.functional as F

    x = _padded(inputs[0], attributes, -math.inf)
    return F.max_pool2d(x, attributes["kernel_shape"], attributes["strides"])


def _average_pool(inputs: list[Any], attributes: dict[str, Any]) -> "Tensor":
    """Over what lies inside x."""
    import torch
    import torch.nn.functional as F

    window = attributes["kernel_shape"], attributes["strides"]
    x = inputs[0]
    inside = F.avg_pool2d(_padded(torch.ones_like(x[:1, :1]), attributes, 0.0), *window)
    return F.avg_pool2d(_padded(x, attributes, 0.0), *window) / inside


def _padded(x: "Tensor", attributes: dict[str, Any], outside: float) -> "Tensor":
    import torch.nn.functional as F

    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return F.pad(x, (left, right, top, bottom), value=outside)


def _batch_normalization(inputs: list[Any], attributes: dict[str, Any]) -> "Tensor":
    import torch.nn.functional as F

    x, scale, bias, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _local_response(inputs: list[Any], attributes: dict[str, Any]) -> "Tensor":
    import torch.nn.functional as F

    size, alpha, beta, bias = (attributes[name] for name in ("size", "alpha", "beta", "bias"))
    return F.local_response_norm(inputs[0], size, alpha, beta, bias)


def _reshape(inputs: list[Any], _: dict[str, Any]) -> "Tensor":
    x = inputs[0]
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(inputs[1].tolist())])


def _shape(inputs: list[Any], _: dict[str, Any]) -> "Tensor":
    import torch

    return torch.tensor(inputs[0].shape)


def _concat(inputs: list[Any], attributes: dict[str, Any]) -> "Tensor":
    import torch

    return torch.cat(inputs, attributes["axis"])


OPERATORS: dict[str, Operator] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Concat": _concat,
    "Conv": _conv,
    "Dropout": lambda inputs, _: inputs[0],
    "Flatten": lambda inputs, attributes: inputs[0].flatten(attributes.get("axis", 1)),
    "Gemm": lambda inputs, _: inputs[0] @ inputs[1].T + inputs[2],  # all have transB
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean((2, 3), keepdim=True),
    "LRN": _local_response,
    "MaxPool": _max_pool,
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Relu": lambda inputs, _: inputs[0].relu(),
    "Reshape": _reshape,
    "Shape": _shape,
    "Softmax": lambda inputs, attributes: inputs[0].softmax(attributes.get("axis", -1)),
    "Sum": lambda inputs, _: functools.reduce(operator.add, inputs),
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
}
