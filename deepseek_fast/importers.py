"""4-bit weights of other libraries in the layout that int4_matmul takes: the same numbers, moved, never rounded.

Every function takes NumPy arrays or torch tensors and returns an Int4Weight of the same kind. What has no exact form
here is refused in a sentence.

>>> weight = importers.int4_from_awq(qweight, qzeros, scales)
>>> layer = nn.Int4Linear(*weight[:3], bias, group_size=weight.group_size, in_features=weight.in_features)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Int4Weight", "int4_from_awq", "int4_from_gptq", "int4_from_matmul_nbits", "int4_from_tinygemm"]

GROUP_SIZES = (32, 64, 128)
LARGEST_GROUP = 128  # a larger group becomes several of this size with one scale
MAX_CODE, NO_ZERO_POINT = 15, 8
NIBBLES = 8  # 4-bit values in an int32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an int32 holds column AWQ_ORDER[i] of its eight
GPTQ_OFFSET = {"gptq": 1, "gptq_v2": 0}  # what checkpoint_format takes off a zero point before it is stored


class Int4Weight(NamedTuple):
    """What int4_matmul takes: (code - zero) * scale, a scale and a zero point per row and group of columns."""

    q: Any  # (N, ceil(K / 2)) uint8, the code of even k in the low nibble
    scale: Any  # (N, groups) float32
    zeros: Any  # (N, groups) uint8, or None: 8 everywhere
    group_size: int  # 32, 64, 128, or -1: one group a row
    in_features: int  # K


def int4_from_matmul_nbits(
    b: Any,
    scales: Any,
    zero_points: Any = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
    g_idx: Any = None,
) -> Int4Weight:
    """The weight of an ONNX MatMulNBits node (com.microsoft) of 4 bits: its inputs and attributes under their names.

    b: (N, blocks, block_size / 2) uint8, or the same bytes in two dimensions. scales: N * blocks values in any shape.
    zero_points: (N, ceil(blocks / 2)) uint8 in any shape, two a byte; or N * blocks integers of the scales' dtype.
    block_size: 32, 64, or a multiple of 128. g_idx: None, or what puts column k into group k / block_size.
    Raises ValueError for other shapes and values, TypeError for other dtypes.

    Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
    """
    op = "int4_from_matmul_nbits"
    given = (b, scales, zero_points)
    b, scales, zero_points = _array(op, "b", b), _array(op, "scales", scales), _array(op, "zero_points", zero_points)
    if bits != 4:
        _refuse(op, "bits", "be 4", bits)
    if block_size not in GROUP_SIZES and (block_size <= 0 or block_size % LARGEST_GROUP):
        _refuse(op, "block_size", "be 32, 64 or a multiple of 128", block_size)
    _check_g_idx(op, g_idx, K, block_size)
    blocks = -(-K // block_size)
    _check_dtype(op, "b", b, "uint8")
    _check_size(op, "b", b, N * blocks * block_size // 2)
    _check_size(op, "scales", scales, N * blocks)
    q = b.reshape(N, blocks * block_size // 2)[:, : (K + 1) // 2]
    zeros = None
    if zero_points is not None and zero_points.dtype == np.uint8:
        row_bytes = (blocks + 1) // 2
        _check_size(op, "zero_points", zero_points, N * row_bytes)
        zeros = _nibbles(zero_points.reshape(N, row_bytes), 2)[:, :blocks]
    elif zero_points is not None:
        _check_size(op, "zero_points", zero_points, N * blocks)
        zeros = _whole_zero_points(op, "zero_points", zero_points.reshape(N, blocks))
    return _weight(given, q, scales.reshape(N, blocks), zeros, block_size, K)


def int4_from_tinygemm(q: Any, scales_and_zeros: Any) -> Int4Weight:
    """The weight of torch's _weight_int4pack_mm before it is packed: w = (q - 8) * s + z.

    q: (N, K) of any integer dtype, 0 to 15, as _convert_weight_to_int4pack takes it. scales_and_zeros: (groups, N, 2),
    pairs (s, z), each group of K / groups columns: 32, 64, a multiple of 128, or all. It has a form here where every
    z is exactly (8 - zero) * s for an integer zero of 0 to 15; else ValueError.

    Source: torch aten/src/ATen/native/LinearAlgebra.cpp, _weight_int4pack_mm_cpu; torchao's tinygemm layout.
    """
    op = "int4_from_tinygemm"
    given = (q, scales_and_zeros)
    q, pairs = _array(op, "q", q), _array(op, "scales_and_zeros", scales_and_zeros)
    if q.ndim != 2 or q.dtype.kind not in "iu":
        _refuse(op, "q", "have 2 dimensions and an integer dtype", f"shape {q.shape}, dtype {q.dtype}")
    N, K = q.shape
    if pairs.ndim != 3 or pairs.shape[1:] != (N, 2):
        _refuse(op, "scales_and_zeros", f"have shape (groups, {N}, 2)", f"shape {pairs.shape}")
    if q.size and (q.min() < 0 or q.max() > MAX_CODE):
        _refuse(op, "q", "hold codes of 0 to 15", f"{q.min()} to {q.max()}")
    group_size = _group_size(op, "scales_and_zeros", K, pairs.shape[0])
    s, z = pairs[..., 0].T.astype(np.float64), pairs[..., 1].T.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = NO_ZERO_POINT - np.where(s == 0, 0, np.rint(z / s))
    exact = (zeros >= 0) & (zeros <= MAX_CODE) & ((NO_ZERO_POINT - zeros) * s == z)  # exact in float64
    if not exact.all():
        n, group = np.argwhere(~exact)[0]
        rule = "hold pairs (s, z) with z = (8 - zero) * s for an integer zero of 0 to 15"
        _refuse(op, "scales_and_zeros", rule, f"({s[n, group]:g}, {z[n, group]:g}) at ({group}, {n})")
    return _weight(given, _pack(q.astype(np.uint8)), s, zeros.astype(np.uint8), group_size, K)


def int4_from_awq(qweight: Any, qzeros: Any, scales: Any) -> Int4Weight:
    """The weight of an AWQ checkpoint (its "gemm" layout, 4 bits).

    qweight: (K, N / 8) int32, eight columns of the output in the order 0 2 4 6 1 3 5 7, low nibble first. qzeros:
    (groups, N / 8) int32 in the same order. scales: (groups, N) float16, bfloat16 or float32; each group of K / groups
    rows: 32, 64, a multiple of 128, or all.

    Source: AutoAWQ awq/modules/linear/gemm.py; awq/utils/packing_utils.py.
    """
    op = "int4_from_awq"
    given = (qweight, qzeros, scales)
    qweight, qzeros, scales = _packed_arrays(op, given)
    K, groups = qweight.shape[0], scales.shape[0]
    N = qweight.shape[1] * NIBBLES
    group_size = _group_size(op, "scales", K, groups)
    _check_shape(op, "scales", scales, (groups, N))
    _check_shape(op, "qzeros", qzeros, (groups, N // NIBBLES))
    to_columns = np.argsort(AWQ_ORDER)

    def columns(packed: NDArray[Any]) -> NDArray[Any]:
        return _nibbles(packed, NIBBLES).reshape(*packed.shape, NIBBLES)[..., to_columns].reshape(len(packed), N)

    return _weight(given, _pack(columns(qweight).T), scales.T, columns(qzeros).T, group_size, K)


def int4_from_gptq(
    qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None, *, checkpoint_format: str = "gptq"
) -> Int4Weight:
    """The weight of a GPTQ checkpoint of 4 bits whose columns are in order (desc_act=False).

    qweight: (K / 8, N) int32, eight rows of the input, low nibble first. qzeros: (groups, N / 8) int32, eight columns
    of the output; checkpoint_format "gptq" stores a zero point less 1, "gptq_v2" as it is. scales: (groups, N) float16,
    bfloat16 or float32; each group of K / groups rows: 32, 64, a multiple of 128, or all. g_idx: (K,) or None.
    A stored 15 of format "gptq" is refused: its readers disagree whether it means 16 or 0.

    Source: AutoGPTQ auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py and pull request 640 (gptq_v2).
    """
    op = "int4_from_gptq"
    if checkpoint_format not in GPTQ_OFFSET:
        _refuse(op, "checkpoint_format", f"be one of {', '.join(GPTQ_OFFSET)}", repr(checkpoint_format))
    given = (qweight, qzeros, scales)
    qweight, qzeros, scales = _packed_arrays(op, given)
    K, N = qweight.shape[0] * NIBBLES, qweight.shape[1]
    groups = scales.shape[0]
    group_size = _group_size(op, "scales", K, groups)
    _check_shape(op, "scales", scales, (groups, N))
    _check_shape(op, "qzeros", qzeros, (groups, -(-N // NIBBLES)))
    _check_g_idx(op, g_idx, K, K // groups if groups else 1)
    stored = _nibbles(qzeros, NIBBLES)[:, :N]
    offset = GPTQ_OFFSET[checkpoint_format]
    if (stored > MAX_CODE - offset).any():
        group, n = np.argwhere(stored > MAX_CODE - offset)[0]
        _refuse(op, "qzeros", "hold zero points of at most 15, each less 1", f"15 at ({group}, {n})")
    return _weight(given, _pack(_nibbles(qweight.T, NIBBLES)), scales.T, stored.T + np.uint8(offset), group_size, K)


def _weight(
    given: tuple[Any, ...], q: NDArray[Any], scale: NDArray[Any], zeros: NDArray[Any] | None, group_size: int, K: int
) -> Int4Weight:
    """In our groups, contiguous, of the kind of what was given."""
    if group_size > LARGEST_GROUP:
        parts = -(-K // LARGEST_GROUP)
        which = np.arange(parts) * LARGEST_GROUP // group_size
        scale, zeros = scale[:, which], None if zeros is None else zeros[:, which]
        group_size = LARGEST_GROUP
    if zeros is not None and (zeros == NO_ZERO_POINT).all():
        zeros = None
    q = np.ascontiguousarray(q)
    if K % 2 and q.size:  # what lies behind K
        q = q.copy()
        q[:, -1] &= MAX_CODE
    arrays = (q, np.ascontiguousarray(scale, np.float32), None if zeros is None else np.ascontiguousarray(zeros))
    if any(_is_tensor(value) for value in given):
        import torch

        arrays = tuple(None if array is None else torch.from_numpy(array.copy()) for array in arrays)  # type: ignore[assignment,misc]
    return Int4Weight(*arrays, group_size, K)


def _nibbles(packed: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """(rows, columns) -> (rows, columns * count), the low nibble of each element first."""
    shifts = 4 * np.arange(count, dtype=np.int64)
    codes = packed.astype(np.int64)[..., None] >> shifts & MAX_CODE
    return codes.astype(np.uint8).reshape(packed.shape[0], packed.shape[1] * count)


def _pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, K) codes -> (N, ceil(K / 2)) bytes."""
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: NDArray[np.uint8] = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed


def _group_size(op: str, arg: str, K: int, groups: int) -> int:
    size = K // groups if groups and K % groups == 0 else 0
    if size in GROUP_SIZES or (size and size % LARGEST_GROUP == 0):
        return size
    if groups == 1:
        return -1
    _refuse(op, arg, f"cut {K} values of k into groups of 32, 64 or a multiple of 128, or one", f"{groups} groups")


def _whole_zero_points(op: str, arg: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    whole = (values >= 0) & (values <= MAX_CODE) & (values == np.rint(values))
    if not whole.all():
        row, column = np.argwhere(~whole)[0]
        _refuse(op, arg, "hold integers of 0 to 15", f"{values[row, column]:g} at ({row}, {column})")
    return values.astype(np.uint8)


def _packed_arrays(op: str, given: tuple[Any, ...]) -> list[NDArray[Any]]:
    """qweight, qzeros and scales of a checkpoint."""
    arrays = []
    for arg, value in zip(("qweight", "qzeros", "scales"), given, strict=True):
        array = _array(op, arg, value)
        if array is None:
            raise TypeError(f"{op}: {arg} must be an array or a tensor; got NoneType")
        if arg != "scales":
            _check_dtype(op, arg, array, "int32")
        if array.ndim != 2:
            _refuse(op, arg, "have 2 dimensions", f"shape {array.shape}")
        arrays.append(array)
    return arrays


def _check_g_idx(op: str, g_idx: Any, K: int, group_size: int) -> None:
    g_idx = _array(op, "g_idx", g_idx)
    if g_idx is None or g_idx.size == 0:
        return
    wrong = np.flatnonzero(g_idx.reshape(-1) != np.arange(g_idx.size) // group_size)
    if g_idx.size != K:
        _refuse(op, "g_idx", f"have {K} values", g_idx.size)
    if wrong.size:
        k = int(wrong[0])
        _refuse(op, "g_idx", f"put column k into group k / {group_size}", f"group {g_idx.reshape(-1)[k]} at {k}")


def _check_dtype(op: str, arg: str, array: NDArray[Any], dtype: str) -> None:
    if array.dtype != dtype:
        raise TypeError(f"{op}: {arg} must be {dtype}; got dtype {array.dtype}")


def _check_shape(op: str, arg: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        _refuse(op, arg, f"have shape {shape}", f"shape {array.shape}")


def _check_size(op: str, arg: str, array: NDArray[Any], size: int) -> None:
    if array.size != size:
        _refuse(op, arg, f"have {size} values", f"shape {array.shape}")


def _refuse(op: str, arg: str, rule: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {arg} must {rule}; got {got}")


def _is_tensor(value: object) -> bool:
    """Without importing torch: a tensor can be given only where torch is imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _array(op: str, arg: str, value: Any) -> Any:
    if value is None or isinstance(value, np.ndarray):
        return value
    if _is_tensor(value):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    raise TypeError(f"{op}: {arg} must be an array or a tensor; got {type(value).__name__}")
