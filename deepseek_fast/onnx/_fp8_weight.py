"""Weights that DequantizeLinear makes of float8, in the form that Fp8Matmul takes: codes (N, K) and scales by block.

    DequantizeLinear(codes, scale)                     -> block (-1, -1), scale (1, 1)
    DequantizeLinear(codes, scale, axis=of N)          -> block (1, -1),  scale (N, 1)
    DequantizeLinear(codes, scale, axis=of K, block_size=B)
                                                       -> block (1, B),   scale (N, ceil(K / B))

codes: an initializer, or a QuantizeLinear of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_fast.onnx._attach import DEFAULTS
from deepseek_fast.onnx._fp8_pairs import is_dequantize, is_quantize
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import WEIGHT_DTYPES, Weight, number, overridable_text

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}  # the formats of Fp8Matmul's weights
# Of the same names but other numbers: half the size, and the largest code of e4m3fnuz is NaN in e4m3fn.
OTHER_FORMATS = ("float8_e4m3fnuz", "float8_e5m2fnuz")
SCALE_DTYPES = (*WEIGHT_DTYPES, "float8_e8m0fnu")
SMALLEST_BLOCK_K = 32  # as in kernels/fp8_matmul/op.py


@dataclass(frozen=True)
class Fp8Weight:
    """What a node of Fp8Matmul needs: codes to be placed, the scale, its block, and the type of the product."""

    codes: Weight
    scale: np.ndarray
    scale_name: str
    block: tuple[int, int]

    @property
    def N(self) -> int:
        return self.codes.N

    @property
    def dtype(self) -> np.dtype:
        return self.codes.dtype


def find_fp8_weight(value: ir.Value | None, rewriter: Rewriter, *, transposed: bool) -> Fp8Weight | None:
    """`value` as (K, N), where transposed (N, K), in FP8; None where no DequantizeLinear makes it of float8.

    Raises Refusal where one does, and Fp8Matmul cannot take its place.
    """
    node, transposed = _dequantize_under_transpose(value, transposed)
    if node is None:
        return None
    codes, scale, zero_point = (*node.inputs, None, None)[:3]
    dtype = _dtype_name(codes, rewriter)
    if codes is None or dtype not in (*LARGEST, *OTHER_FORMATS):
        return None
    if dtype in OTHER_FORMATS:
        raise Refusal(f"weight must be float8_e4m3fn or float8_e5m2; got {dtype}, which has other numbers")
    codes, array = _codes(codes, rewriter)
    if array is None:
        raise Refusal(f"weight must be constant; got '{codes.name}'{overridable_text(codes)}")
    if array.ndim != 2 or 0 in array.shape:
        raise Refusal(f"weight must have 2 dimensions and values; got shape {array.shape}")
    zeros = rewriter.constants.array(zero_point)
    if zero_point is not None and (zeros is None or (zeros.astype("float32") != 0).any()):
        raise Refusal(f"zero point of '{codes.name}' must be constant and 0")
    scales = rewriter.constants.array(scale)
    if scale is None or scales is None:
        raise Refusal(f"scale of '{codes.name}' must be constant")
    product_dtype = _product_dtype(node, scales)
    _check_scale(scales, product_dtype, LARGEST[dtype])
    weight = Weight(codes, transposed, array.shape[0 if transposed else 1], product_dtype)
    rows, block = _rows_of_scale(node, scales, array.shape, transposed)
    return Fp8Weight(weight, rows, f"{scale.name}_nk", block)


def fuse_fp8_matmul(
    x: ir.Value, weight: Fp8Weight, bias: ir.Value | None, replaced: ir.Node, rewriter: Rewriter
) -> None:
    """Fp8Matmul in the place of a product; bias: checked, or None."""
    N, dtype = weight.N, weight.dtype
    inputs = [
        x,
        rewriter.weight(weight.codes),
        rewriter.initializer(weight.scale_name, weight.scale),
        rewriter.zeros(N, dtype) if bias is None else rewriter.bias(bias, N),
        rewriter.zeros(1, dtype),
    ]
    rewriter.fuse("Fp8Matmul", inputs, DEFAULTS["Fp8Matmul"] | {"block": weight.block}, [replaced])


def _dequantize_under_transpose(value: ir.Value | None, transposed: bool) -> tuple[ir.Node | None, bool]:
    node = value.producer() if value is not None else None
    while node is not None and not node.domain and node.op_type in ("Identity", "Transpose"):
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            if perm is not None and tuple(perm.as_ints()) != (1, 0):
                return None, transposed
            transposed = not transposed
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return (node if node is not None and is_dequantize(node) else None), transposed


def _codes(value: ir.Value, rewriter: Rewriter) -> tuple[ir.Value, np.ndarray | None]:
    """The codes and their array; a QuantizeLinear of a constant, as quantization-aware training leaves it, is run."""
    array, node = rewriter.constants.array(value), value.producer()
    if array is None and node is not None and is_quantize(node):
        array = rewriter.constants.run(node)
        value = value if array is None else rewriter.initializer(f"{value.name}_codes", array)
    return value, array


def _dtype_name(value: ir.Value | None, rewriter: Rewriter) -> str:
    array = rewriter.constants.array(value)
    if array is not None:
        return str(array.dtype)
    return "" if value is None or value.dtype is None else str(value.dtype.numpy())


def _product_dtype(node: ir.Node, scale: np.ndarray) -> np.dtype:
    """The type of the dequantized weight, and so of x."""
    import onnx_ir as ir

    stated = int(number(node, "output_dtype", 0))
    dtype = ir.DataType(stated).numpy() if stated else scale.dtype
    if str(scale.dtype) not in SCALE_DTYPES or str(dtype) not in WEIGHT_DTYPES:
        raise Refusal(f"scale must be float32, bfloat16 or float16, and the weight with it; got {scale.dtype}, {dtype}")
    return dtype


def _check_scale(scale: np.ndarray, dtype: np.dtype, largest_code: float) -> None:
    """As the kernel asks, and so that no code is infinite in the product's type: Fp8Matmul rounds no weight to it."""
    import ml_dtypes
    import numpy as np

    wide = scale.astype(np.float64)
    if not (np.isfinite(wide) & (wide > 0)).all():
        raise Refusal("scale must be finite and above zero")
    if wide.max() * largest_code > float(ml_dtypes.finfo(dtype).max):
        raise Refusal(f"scale must keep every code finite in {dtype}; got {wide.max():g}")


def _rows_of_scale(
    node: ir.Node, scale: np.ndarray, shape: tuple[int, ...], transposed: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """The scale as (blocks of N, blocks of K) in float32, and its block."""
    import numpy as np

    wide = scale.astype(np.float32)
    size, axis = int(number(node, "block_size", 0)), int(number(node, "axis", 1))
    axis_n = 0 if transposed else 1
    N, K = shape[axis_n], shape[1 - axis_n]
    along_n = axis % 2 == axis_n
    if not size:
        if scale.size == 1:
            return wide.reshape(1, 1), (-1, -1)
        if scale.shape != (shape[axis % 2],):
            raise Refusal(f"scale must have one value, or one for each of {shape[axis % 2]}; got shape {scale.shape}")
        if not along_n:
            raise Refusal("scale must run along the output channels, or in blocks along the input channels")
        return wide.reshape(N, 1), (1, -1)
    if along_n:
        raise Refusal("blocks must run along the input channels; got some along the output channels")
    rows = np.ascontiguousarray(wide if transposed else wide.T)
    if rows.shape != (N, -(-K // size)):
        raise Refusal(f"scale must have one value a block of {size}; got shape {scale.shape} for {shape}")
    if rows.shape[1] == 1:
        return rows, (1, -1)
    if size % SMALLEST_BLOCK_K:
        raise Refusal(f"block_size must be a multiple of {SMALLEST_BLOCK_K}; got {size}")
    return rows, (1, size)
