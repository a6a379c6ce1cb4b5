"""Models of one cast node, built from a call's arguments, and what ref.py says of it as NumPy arrays."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from deepseek_fast.kernels.fp8_cast import body

OP_TYPES = {"fp8_cast": body.CAST, "fp8_dequantize": body.DEQUANTIZE, "int8_cast": body.INT8_CAST}
ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float16: TensorProto.FLOAT16,
    torch.int8: TensorProto.INT8,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.float8_e4m3fnuz: TensorProto.FLOAT8E4M3FNUZ,
    torch.float8_e5m2: TensorProto.FLOAT8E5M2,
    torch.float8_e5m2fnuz: TensorProto.FLOAT8E5M2FNUZ,
    torch.float8_e8m0fnu: TensorProto.UINT8,
    torch.float4_e2m1fn_x2: TensorProto.UINT8,
}
SCALE_TYPES = {"f32": torch.float32, "ue8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}
ATTRIBUTES = ("mode", "rounding", "seed")


def array(value: Tensor) -> np.ndarray:
    """value as the file has it."""
    dtype = helper.tensor_dtype_to_np_dtype(ONNX_TYPES[value.dtype])
    raw = value.contiguous().view(torch.uint16 if value.dtype == torch.bfloat16 else value.dtype)
    if value.element_size() == 1 and value.dtype != torch.int8:
        raw = value.contiguous().view(torch.uint8)
    return raw.numpy().view(dtype).reshape(value.shape)


def node_model(
    op: str, inputs: dict[str, Any], *, opset: int = 23, with_body: bool = True, bare: bool = False, shape: Any = None
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The call as a model and what to feed it. bare: what is left out stays so, inputs and attributes."""
    x = inputs["codes" if op == "fp8_dequantize" else "x"]
    given = inputs.get("scale")
    given = given if isinstance(given, Tensor) else None
    attributes = {name: inputs[name] for name in ATTRIBUTES if name in inputs}
    attributes |= {"dtype": ONNX_TYPES[inputs["dtype"]]} if "dtype" in inputs else {}
    if "block" in inputs:
        plain = {"plain": 1} if op == "fp8_cast" else {}
        attributes |= plain if inputs["block"] is None else {"block": inputs["block"]}
    kind = "f32" if given is not None or inputs.get("block", ()) is None else inputs.get("scale", "f32")
    attributes |= {"scale": kind} if op == "fp8_cast" else {}
    if "saturate" in inputs:  # a body's Cast to uint8, which FP4 is, knows no other way
        attributes["saturate"] = int(inputs["saturate"] or attributes["dtype"] == TensorProto.UINT8)
    scale_type = given.dtype if given is not None else SCALE_TYPES[kind]
    arguments = {"S": given, "T": inputs.get("tensor_scale")}
    empty = {"S": torch.empty(0, dtype=scale_type), "T": torch.empty(0)}
    if not bare:
        arguments = {name: empty[name] if value is None else value for name, value in arguments.items()}
    names = ["x", *(name if value is not None else "" for name, value in arguments.items())]
    if op == "int8_cast":
        arguments, names = {}, ["x"]
    outputs = {"C": attributes.get("dtype", TensorProto.FLOAT8E4M3FN), "scale": ONNX_TYPES[scale_type]}
    if op == "fp8_dequantize":
        outputs = {"Y": attributes["dtype"]}
    if op == "int8_cast":
        outputs = {"Q": TensorProto.INT8, "scale": TensorProto.FLOAT}
    defaults = {} if bare else body.DEFAULTS[OP_TYPES[op]]
    node = helper.make_node(
        OP_TYPES[op], names, list(outputs), domain="ai.deepseek_fast", **({**defaults, **attributes})
    )
    shape = [None] * x.ndim if shape is None else shape
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info("x", ONNX_TYPES[x.dtype], shape)],
        [onnx.ValueInfoProto(name=name, type=_tensor_type(kind)) for name, kind in outputs.items()],
        [numpy_helper.from_array(array(value), name) for name, value in arguments.items() if value is not None],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [body.function_proto(opset, OP_TYPES[op])] if with_body else []
    ir_version = helper.find_min_ir_version_for(imports[:1])
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    return model, {"x": array(x)}


def _tensor_type(kind: int) -> onnx.TypeProto:
    return onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=kind))


def assert_bits(got: dict[str, np.ndarray], want: tuple[Tensor, ...], what: str, *, runtime: str = "library") -> None:
    """Bit for bit; float32 and Y: a NaN is a NaN. onnx's reference has another NaN of float8_e5m2."""
    for (name, found), tensor in zip(got.items(), want, strict=True):
        wanted = array(tensor)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), f"{what}, {runtime}: {name}"
        bits = f"uint{8 * found.itemsize}"
        differ = np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(wanted).view(bits)
        any_nan = found.itemsize > 1 or (runtime == "reference" and found.dtype == ml_dtypes.float8_e5m2)
        if any_nan:
            differ &= ~(np.isnan(found.astype(np.float32)) & np.isnan(wanted.astype(np.float32)))
        places = np.argwhere(differ)
        assert not len(places), (
            f"{what}, {runtime}: {name} differs at {len(places)} places, first at {tuple(places[0])}: "
            f"{found[tuple(places[0])]!r}, not {wanted[tuple(places[0])]!r}"
        )
