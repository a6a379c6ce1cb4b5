"""Models of one node of ours, built from a call's arguments, and runs of them in ONNX Runtime."""

import ctypes
from collections.abc import Collection, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from deepseek_fast import ort
from tests.doors import NUMPY_DTYPES, from_numpy, to_numpy

DOMAIN = "ai.deepseek_fast"
# room -> (op type, its tensor arguments in the order of the node's inputs)
NODES = {
    "fp8_matmul": ("Fp8Matmul", ("x", "weight", "scale", "bias", "residual")),
    "fused_matmul": ("FusedMatmul", ("x", "weight", "bias", "residual")),
    "int4_matmul": ("Int4Matmul", ("x", "q", "scale", "zeros", "bias", "residual")),
    "int8_matmul": ("Int8Matmul", ("x", "q", "scale", "bias", "residual")),
}
WEIGHTS = ("weight", "q", "scale", "zeros", "bias")  # what a model usually holds as initializers
ATTRIBUTES = ("activation", "activations", "block", "compute", "gated", "group_size", "in_features")
OPSET, IR_VERSION = 17, 8
ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float16: TensorProto.FLOAT16,
    torch.float64: TensorProto.DOUBLE,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.float8_e5m2: TensorProto.FLOAT8E5M2,
}


def node_model(
    room: str, inputs: dict[str, Any], *, constant: Collection[str] = WEIGHTS, shapes: dict[str, Any] | None = None
) -> onnx.ModelProto:
    """The call as a model; arguments named in `constant` are initializers, the others inputs.

    shapes: what to declare for an input in place of a name for every dimension.
    """
    op_type, arguments = NODES[room]
    inputs = {name: of_a_file(value) for name, value in inputs.items()}
    given = [name for name in arguments if inputs.get(name) is not None]
    last = max(arguments.index(name) for name in given) + 1
    attributes = {name: inputs[name] for name in ATTRIBUTES if name in inputs}
    node = helper.make_node(
        op_type, [name if name in given else "" for name in arguments[:last]], ["y"], domain=DOMAIN, **attributes
    )
    values = [
        helper.make_tensor_value_info(name, ONNX_TYPES[inputs[name].dtype], _declared(name, inputs[name], shapes or {}))
        for name in given
        if name not in constant
    ]
    tensors = [tensor(name, inputs[name]) for name in given if name in constant]
    y = helper.make_tensor_value_info("y", ONNX_TYPES[inputs["x"].dtype], None)
    return model(helper.make_graph([node], room, values, [y], tensors))


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def session(room: str, inputs: dict[str, Any], *, threads: int = 1, **how: Any) -> onnxruntime.InferenceSession:
    return ort.session(node_model(room, inputs, **how).SerializeToString(), threads=threads)


def run(made: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> Tensor:
    """The session's one output for the inputs that the model does not hold itself."""
    return from_ort(made.run_with_ort_values(None, feeds(made, inputs))[0])


def feeds(made: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> dict[str, onnxruntime.OrtValue]:
    return {value.name: _to_ort(of_a_file(inputs[value.name])) for value in made.get_inputs()}


def call(room: str, inputs: dict[str, Any], **how: Any) -> Tensor:
    return run(session(room, inputs, **how), inputs)


def call_each(room: str, inputs: dict[str, Any], constants: Sequence[Collection[str]]) -> list[Tensor]:
    """call() for each of constants, by nodes of one session: making a session takes longer than all of its nodes."""
    whole = model(onnx.GraphProto(name=room))
    for i, constant in enumerate(constants):
        graph = node_model(room, inputs, constant=constant).graph
        (node,) = graph.node
        node.input[:] = [f"{name}_constant" if name in constant and name else name for name in node.input]
        node.output[:] = [f"y{i}"]
        graph.output[0].name = f"y{i}"
        for one in graph.initializer:
            one.name += "_constant"
        whole.graph.node.append(node)
        whole.graph.output.append(graph.output[0])
        for field in ("input", "initializer"):
            have = {one.name for one in getattr(whole.graph, field)}
            getattr(whole.graph, field).extend(one for one in getattr(graph, field) if one.name not in have)
    made = ort.session(whole.SerializeToString(), threads=1)
    return [from_ort(y) for y in made.run_with_ort_values(None, feeds(made, inputs))]


def of_a_file(value: Any) -> Any:
    """Scales of float8_e8m0fnu become float32: ONNX Runtime 1.31 takes no tensor of the former at a custom operator."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float8_e8m0fnu else value


def _declared(name: str, value: Tensor, shapes: dict[str, Any]) -> Any:
    return shapes[name] if name in shapes else [f"{name}_{d}" for d in range(value.ndim)]


def tensor(name: str, value: Tensor) -> onnx.TensorProto:
    return onnx.TensorProto(
        name=name,
        data_type=ONNX_TYPES[value.dtype],
        dims=value.shape,
        raw_data=np.ascontiguousarray(to_numpy(value)).tobytes(),
    )


def _to_ort(value: Tensor) -> onnxruntime.OrtValue:
    array = np.ascontiguousarray(to_numpy(value)).reshape(value.shape)
    if value.dtype in NUMPY_DTYPES:
        bits = array.view(f"uint{8 * array.itemsize}")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_TYPES[value.dtype])
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def from_ort(value: onnxruntime.OrtValue) -> Tensor:
    if value.data_type() != "tensor(bfloat16)":
        return from_numpy(value.numpy())
    shape, count = value.shape(), int(np.prod(value.shape()))
    if not count:
        return torch.zeros(shape, dtype=torch.bfloat16)
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return from_numpy(bits.copy().view(ml_dtypes.bfloat16).reshape(shape))
