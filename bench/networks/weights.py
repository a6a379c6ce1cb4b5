"""Seeded weights for the nine architectures that the onnx package ships without any.

He-normal weights, then every layer's mean and variance over a few seeded images are taken out (calibrate.py).
"""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.networks.calibrate import SHIFT, Arrays, calibrate, store

if TYPE_CHECKING:
    import numpy as np
    import onnx

NAMES = (
    *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"),
    *("shufflenet", "squeezenet", "vgg19", "zfnet512"),
)
OPSET = 18
IMAGE = (3, 224, 224)  # channels, height, width: of all nine
PATCH = 32  # pixels of one color
CALIBRATION_IMAGES = 8
JITTER = 0.1  # standard deviation of a normalization's bias
BATCH = "batch"  # the name of the first axis


def light_model(name: str) -> "onnx.ModelProto":
    """One of NAMES with weights and a symbolic batch, at OPSET; the same in every call on the same machine."""
    import numpy as np
    import onnx
    from onnx import numpy_helper, version_converter

    shipped = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
    model = version_converter.convert_version(onnx.load(shipped), OPSET)
    model.ir_version = 8  # up to 3, weights were inputs too
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:], graph.initializer[:], graph.value_info[:]
    graph.input.extend(inputs)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    weights = _fill(graph, constants, generator)
    _free_batch(graph, constants)
    used = {value for node in graph.node for value in node.input}
    constants = {key: value for key, value in constants.items() if key in used and key not in weights}
    calibrate(model, weights, constants, images(generator, CALIBRATION_IMAGES))
    store(graph, weights | constants)
    return model


def images(generator: "np.random.Generator", count: int) -> "np.ndarray":
    """(count, 3, 224, 224) float32: patches under noise; white noise alone is the same everywhere once it is pooled."""
    import numpy as np

    channels, height, width = IMAGE
    patches = generator.standard_normal((count, channels, height // PATCH, width // PATCH), np.float32)
    noise = generator.standard_normal((count, *IMAGE), np.float32)
    mixed: np.ndarray = patches.repeat(PATCH, 2).repeat(PATCH, 3) + 0.5 * noise
    return mixed


def _fill(graph: "onnx.GraphProto", constants: Arrays, generator: "np.random.Generator") -> Arrays:
    """Takes the nodes that make constant weights out of the graph; returns values for all weights, by name."""
    from onnx import numpy_helper

    # Those of up to 64 values are shipped trained; beside random ones they would overflow.
    shapes = {name: value.shape for name, value in constants.items() if value.dtype.kind == "f"}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(int(size) for size in constants[node.input[0]])
        elif node.op_type == "Unsqueeze" and node.input[0] in shapes:  # a factor of each channel
            shapes[node.output[0]] = (*shapes[node.input[0]], *(1 for _ in constants[node.input[1]]))
        elif node.op_type == "Reshape" and node.input[0] in shapes:
            shapes[node.output[0]] = tuple(int(size) for size in constants[node.input[1]])
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    weights: Arrays = {}
    for node in kept:
        for position, name in enumerate(node.input):
            if name in shapes and name not in weights:
                weights[name] = _values((node.op_type, position), shapes[name], generator)
    return weights


def _values(role: tuple[str, int], shape: tuple[int, ...], generator: "np.random.Generator") -> "np.ndarray":
    """What the weight at an input of an operator starts from; role: operator and position."""
    import numpy as np

    if role in (("Conv", 1), ("Gemm", 1)):  # Gemm: all have transB
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))  # He et al., 2015
        return generator.standard_normal(shape, np.float32) * deviation
    if role in (("BatchNormalization", 1), ("Mul", 1)):
        return generator.uniform(0.8, 1.2, shape).astype(np.float32)
    if role in (("BatchNormalization", 2), ("Add", 1)):
        shift = SHIFT if role[0] == "BatchNormalization" else 0.0
        return (shift + JITTER * generator.standard_normal(shape)).astype(np.float32)
    return np.full(shape, float(role == ("BatchNormalization", 4)), np.float32)  # variance 1, all else 0


def _free_batch(graph: "onnx.GraphProto", constants: Arrays) -> None:
    """Makes the first axis symbolic: 0 in a Reshape's shape takes that axis over from its input."""
    import numpy as np

    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            constants[node.input[1]] = np.concatenate([[0], constants[node.input[1]][1:]]).astype(np.int64)
