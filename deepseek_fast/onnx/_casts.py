"""Fp8Cast, Fp8Dequantize and Int8Cast in a model: what their bodies read, and how export writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

OP_TYPES = ("Fp8Cast", "Fp8Dequantize", "Int8Cast")
FLOAT, UINT8 = 1, 2  # TensorProto types
SCALE_INPUT, TENSOR_SCALE_INPUT = 1, 2
MIN_BLOCK = (1, 128)  # of a plain cast, which has none


def has_body(node: ir.Node) -> bool:
    """Whether ai.onnx can say what the node does; a node without a body runs with our library only."""
    from deepseek_fast.kernels.fp8_cast import body

    return body.problem(node.op_type, {name: attribute.value for name, attribute in node.attributes.items()}) is None


def complete_cast(node: ir.Node, rewriter: Rewriter) -> None:
    """The node gets all its inputs and attributes, and its outputs their types."""
    import onnx_ir as ir

    from deepseek_fast.kernels.fp8_cast.body import CAST, DEFAULTS, INPUTS, INT8_CAST

    for name, value in DEFAULTS[node.op_type].items():
        if name not in node.attributes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    names = INPUTS[node.op_type]
    if not 1 <= len(node.inputs) <= len(names) or node.inputs[0] is None:
        rule = f"optimize: model must give {node.op_type} from 1 to {len(names)} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if node.op_type == INT8_CAST:
        node.outputs[0].dtype, node.outputs[1].dtype = ir.DataType.INT8, ir.DataType.FLOAT
        return
    if len(node.inputs) < len(names):
        node.resize_inputs(len(names))
    _as_bytes(node, rewriter)
    dtype = node.attributes["dtype"].value
    node.outputs[0].dtype = ir.DataType(dtype)
    scale_type = FLOAT
    if node.op_type == CAST:
        scale_type = _type_of_scale(node)
        node.outputs[1].dtype = ir.DataType(scale_type)
        if dtype == UINT8:  # FP4 always saturates, and Cast to uint8 knows no other way
            node.attributes["saturate"] = ir.convenience.convert_attribute("saturate", 1)
            node.outputs[0].shape = _shape_of_pairs(node.inputs[0])
    for place, kind in ((SCALE_INPUT, scale_type), (TENSOR_SCALE_INPUT, FLOAT)):
        if node.inputs[place] is None:
            node.replace_input_with(place, rewriter.zeros(0, ir.DataType(kind).numpy()))


def _type_of_scale(node: ir.Node) -> int:
    from deepseek_fast.kernels.fp8_cast.body import SCALE_TYPES

    given = node.inputs[SCALE_INPUT]
    if node.attributes["plain"].value:
        return FLOAT
    if given is not None and given.dtype is not None:
        return int(given.dtype)
    return SCALE_TYPES.get(node.attributes["scale"].value, FLOAT)


def _shape_of_pairs(x: ir.Value) -> ir.Shape | None:
    """That of the FP4 codes of x, whatever torch's exporter says: it counts them one by one."""
    import onnx_ir as ir

    if x.shape is None:
        return None
    columns = x.shape[-1]
    return ir.Shape([*x.shape[:-1], columns // 2 if isinstance(columns, int) else None])


def _as_bytes(node: ir.Node, rewriter: Rewriter) -> None:
    """A scale of float8e8m0 becomes uint8, where it is constant or an input of the graph that only casts read.

    No custom operator of ONNX Runtime 1.31 takes the former.
    """
    import numpy as np
    import onnx_ir as ir

    scale = node.inputs[SCALE_INPUT]
    if scale is None or scale.dtype != ir.DataType.FLOAT8E8M0:
        return
    array, users = rewriter.constants.array(scale), scale.consumers()
    if scale.is_graph_input() and all(user.domain == DOMAIN and user.op_type in OP_TYPES for user in users):
        scale.dtype = ir.DataType.UINT8
    elif array is not None:
        node.replace_input_with(SCALE_INPUT, rewriter.initializer(f"{scale.name}_bytes", array.view(np.uint8)))


def translations(namespace: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How export writes torch.ops.deepseek_fast's casts."""
    return {
        namespace.fp8_cast.default: _fp8_cast,
        namespace.fp8_dequantize.default: _fp8_dequantize,
        namespace.int8_cast.default: _int8_cast,
    }


def _fp8_cast(
    x: Any,
    given: Any = None,
    tensor_scale: Any = None,
    block_rows: int = 1,
    block_cols: int = 128,
    plain: bool = False,
    dtype: Any = None,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> Any:
    if layout != "row":
        raise ValueError(f"fp8_cast: out_layout must be 'row' in ONNX; got {layout!r}")
    return _ours().Fp8Cast(
        x,
        given,
        tensor_scale,
        block=MIN_BLOCK if plain else (block_rows, block_cols),
        plain=int(plain),
        dtype=_code_type(dtype),
        scale=scale,
        mode=mode,
        saturate=int(saturate),
        rounding=rounding,
        seed=seed,
    )


def _fp8_dequantize(
    codes: Any,
    scale: Any = None,
    tensor_scale: Any = None,
    block_rows: int = 1,
    block_cols: int = 128,
    dtype: Any = None,
) -> Any:
    return _ours().Fp8Dequantize(
        codes, scale, tensor_scale, block=(block_rows, block_cols), dtype=FLOAT if dtype is None else int(dtype)
    )


def _int8_cast(x: Any) -> Any:
    return _ours().Int8Cast(x)


def _ours() -> Any:
    from onnxscript import values

    return values.Opset(DOMAIN, DOMAIN_VERSION)


def _code_type(dtype: Any) -> int:
    """uint8 for FP4, whose codes are two a byte."""
    from onnx import TensorProto

    return UINT8 if int(dtype) == TensorProto.FLOAT4E2M1 else int(dtype)
