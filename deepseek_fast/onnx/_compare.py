"""Measures how far two arrays are apart, and what may be asked of a candidate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN
from deepseek_fast.onnx.report import Difference, Tolerances

if TYPE_CHECKING:
    import numpy as np
    import onnx

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-11}
LARGEST_OF_MANY = 8.0  # standard deviations: 4 for the largest of 10^4 to 10^6 values, twice, as both sides err
# (op type, activations) -> least cosine. MiniLM on random tokens, worst token: w8a8 0.983, w8a16 0.9995; of 4096 tokens
# with float8_e4m3fn in blocks of 128 x 128 0.990, with activations in FP8 too 0.987 (float8_e5m2: 0.964, 0.957).
MIN_COSINE = {
    ("Int8Matmul", "int8"): 0.97,
    ("Int8Matmul", "float"): 0.995,
    ("Int4Matmul", "int8"): 0.9,
    ("Int4Matmul", "float"): 0.9,
    ("Fp8Matmul", "float"): 0.95,
    ("Fp8Matmul", "fp8"): 0.95,
}
# Float32 computed in bfloat16: MiniLM 0.9999; nine convolutional networks with random weights, which amplify roundings,
# and a softmax of them: 0.970 to 0.9999. The answer to another image is below 0.6.
MIN_COSINE_BF16 = 0.95
MODES = ("activations", "compute")  # attributes that say what x becomes
# op type -> input that holds the weight; of ours it is always the second
PRODUCTS = {"MatMul": 1, "Gemm": 1, "Conv": 1}
CONVOLUTIONS = ("Conv", "FusedConv")  # weight (outputs, inputs of a group, rows, columns)


# A convolution by Winograd's F(4x4, 3x3) errs at most 6 times as much as direct sums, rms, which is what 6^2 times the
# roundings do; kernels/fused_conv/test_fused_conv.py asserts it.
WINOGRAD_ROUNDINGS = 36


def compare(got: np.ndarray, want: np.ndarray, tolerances: Tolerances) -> Difference:
    """Numbers are compared in float64; integers, booleans and strings must be equal."""
    import numpy as np

    if got.shape != want.shape or got.dtype != want.dtype:
        return Difference(math.inf, math.inf, 0.0, ok=False)
    if not _is_float(got):
        same = bool(np.array_equal(got, want))
        return Difference(0.0 if same else math.inf, 0.0 if same else math.inf, 1.0 if same else 0.0, ok=same)
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(math.inf, math.inf, 0.0, ok=False)
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    max_abs = float(np.max(np.abs(a - b), initial=0.0))
    largest = float(np.max(np.abs(b), initial=0.0))
    relative = max_abs / largest if largest else (0.0 if max_abs == 0 else math.inf)
    cosine = _min_cosine(a, b)
    limits = [(max_abs, tolerances.atol), (relative, tolerances.rtol)]
    asked = [value <= limit for value, limit in limits if limit is not None]
    ok = (not asked or any(asked)) and (tolerances.min_cosine is None or cosine >= tolerances.min_cosine)
    return Difference(max_abs, relative, cosine, ok)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or str(array.dtype) == "bfloat16"


def _min_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the worst row; rows of one value, which have no direction, count as one row together."""
    import numpy as np

    if a.size == 0:
        return 1.0
    columns = a.shape[-1] if a.ndim > 1 and a.shape[-1] > 1 else a.size
    a, b = a.reshape(-1, columns), b.reshape(-1, columns)
    scale = np.maximum(np.abs(a).max(1), np.abs(b).max(1))  # so that squares neither overflow nor vanish
    scale = np.where(scale == 0, 1.0, scale)[:, None]
    a, b = a / scale, b / scale
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(1) & ~b.any(1)
    cosine = (a * b).sum(1) / np.where(norms == 0, 1.0, norms)
    return float(np.min(np.where(both_zero, 1.0, cosine)))


def tolerances_for(
    candidate: onnx.ModelProto,
    atol: float | None,
    rtol: float | None,
    min_cosine: float | None,
    *,
    reference_has_bf16: bool = True,
) -> Tolerances:
    """What was asked for; where nothing was, a bound that follows from the candidate's operators.

    A quantized candidate is held to a cosine, and one that has constants in bfloat16 where the reference has none. A
    float one to rtol = 8 u sqrt(sum of K over all products + number of other nodes): every multiply-add and every other
    node rounds once, by at most u = 2^-24 relative to what it adds to, independently of the others; 8 standard
    deviations cover the largest value of both runs. In bfloat16 and float16 a product rounds once, u = 2^-9 and 2^-11.
    """
    if any(value is not None for value in (atol, rtol, min_cosine)):
        return Tolerances(atol, rtol, min_cosine, "as asked for")
    ours = [node for node in candidate.graph.node if node.domain == DOMAIN]
    kinds = {(node.op_type, a.s.decode()) for node in ours for a in node.attribute if a.name in MODES}
    quantized = sorted(kind for kind in kinds if kind in MIN_COSINE)
    least = {f"{op_type} with {mode} activations": MIN_COSINE[op_type, mode] for op_type, mode in quantized}
    if has_bf16(candidate) and not reference_has_bf16:
        least["float32 nodes in bfloat16"] = MIN_COSINE_BF16
    if least:
        reason = min(least, key=lambda reason: least[reason])
        return Tolerances(None, None, least[reason], reason)
    dtype = _float_type(candidate)
    roundings = sum(_roundings(node, candidate, dtype) for node in candidate.graph.node)
    rtol = LARGEST_OF_MANY * UNIT_ROUNDOFF[dtype] * math.sqrt(max(roundings, 1))
    return Tolerances(None, rtol, None, f"{roundings} roundings in {dtype}")


def has_bf16(model: onnx.ModelProto) -> bool:
    """Whether a constant of it is bfloat16."""
    import onnx

    return any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in model.graph.initializer)


def _float_type(model: onnx.ModelProto) -> str:
    import onnx

    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    narrow = (name for name in ("bfloat16", "float16") if getattr(onnx.TensorProto, name.upper()) in types)
    return next(narrow, "float32")


def _is_winograd(node: onnx.NodeProto) -> bool:
    return any(a.name == "algorithm" and a.s == b"winograd" for a in node.attribute)


def _roundings(node: onnx.NodeProto, model: onnx.ModelProto, dtype: str) -> int:
    place = 1 if node.domain == DOMAIN else PRODUCTS.get(node.op_type)
    if place is None or place >= len(node.input) or dtype != "float32":
        return 1
    weight = node.input[place]
    for tensor in model.graph.initializer:
        if tensor.name == weight and node.op_type in CONVOLUTIONS:
            return math.prod(tensor.dims[1:]) * (WINOGRAD_ROUNDINGS if _is_winograd(node) else 1)
        if tensor.name == weight and len(tensor.dims) == 2:
            has_rows = node.domain == DOMAIN or any(a.name == "transB" and a.i for a in node.attribute)
            return int(tensor.dims[1 if has_rows else 0])
    return 1
