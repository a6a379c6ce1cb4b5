"""The arguments of fused_conv and its neighbors as the compiled operators take them, for every door; needs no torch.

A convolution of one dimension is one of two with a row of its own: its numbers get a 1 (of a padding two 0) in front.
"""

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

from deepseek_fast._activations import ACTIVATIONS as LINEAR_ACTIVATIONS

ACTIVATIONS = (*LINEAR_ACTIVATIONS, "leaky_relu", "clip", "hardsigmoid")
ONE_OR_PAIR = {1: "be an integer, or one in a tuple", 2: "be an integer or two of them"}
SIDES = {1: "an integer or (left, right)", 2: "an integer, (rows, columns) or (top, left, bottom, right)"}
OR_NAMED = "be 'same', 'valid', "
POOL_ARGS = ("kernel", "stride", "padding", "ceil_mode")
POOL = "be (kernel, stride, padding, ceil_mode) or the first of them"


def window(
    op: str, kernel: Sequence[Any], stride: Any, padding: Any, dilation: Any
) -> tuple[list[Any], list[Any], list[Any]]:
    """stride: 2 numbers, padding: 4, dilation: 2. kernel: the weight's last one or two sizes."""
    spatial = 1 if len(kernel) == 1 else 2
    steps, spread = pair(op, "stride", stride, spatial), pair(op, "dilation", dilation, spatial)
    if not isinstance(padding, str):
        return steps, sides(op, "padding", padding, spatial, OR_NAMED), spread
    if padding == "valid":
        return steps, [0, 0, 0, 0], spread
    if padding != "same":
        _refuse(op, "padding", OR_NAMED + SIDES[spatial], padding)
    if any(step != 1 for step in steps):
        _refuse(op, "padding", "be in numbers where stride is not 1", padding)
    total = [d * (k - 1) for k, d in zip(([1] * (2 - spatial) + list(kernel)), spread, strict=True)]
    before = [t // 2 for t in total]
    return steps, [*before, *(t - b for t, b in zip(total, before, strict=True))], spread


def windows(
    op: str, weight_shape: Sequence[Any], stride: Any, padding: Any, dilation: Any, max_pool: Any
) -> tuple[tuple[list[Any], list[Any], list[Any]], list[Any]]:
    """window() and pool(). A weight of neither 3 nor 4 dimensions is the compiled check's to refuse."""
    kernel = weight_shape[2:] if len(weight_shape) in (3, 4) else (1, 1)
    return window(op, kernel, stride, padding, dilation), pool(op, len(kernel), max_pool)


def pool(op: str, spatial: int, max_pool: Any) -> list[Any]:
    """[] where nothing is pooled, else [kernel, stride, padding, ceil_mode] in nine numbers."""
    if max_pool is None:
        return []
    if isinstance(max_pool, int):
        max_pool = (max_pool,)
    if not isinstance(max_pool, (tuple, list)) or not 1 <= len(max_pool) <= 4:
        _refuse(op, "max_pool", POOL, max_pool)
    kernel, stride, padding, ceil_mode = list(max_pool) + [None, 0, False][len(max_pool) - 1 :]
    return pool_window(op, ("max_pool",) * 4, spatial, kernel, stride, padding, ceil_mode)


def pool_window(
    op: str, args: Sequence[str], spatial: int, kernel: Any, stride: Any, padding: Any, ceil_mode: Any
) -> list[Any]:
    """Kernel and stride, two numbers each, padding, four, and ceil_mode as 0 or 1; args: their names in sentences."""
    if not isinstance(ceil_mode, bool):
        _refuse(op, args[3], "be True or False" if args[3] != "max_pool" else POOL, ceil_mode)
    sizes = pair(op, args[0], kernel, spatial)
    steps = sizes if stride is None else pair(op, args[1], stride, spatial)
    return [*sizes, *steps, *sides(op, args[2], padding, spatial), int(ceil_mode)]


def numbers(op: str, arg: str, values: Any) -> list[float]:
    """activation_params: floats."""
    if not isinstance(values, (tuple, list)):
        values = (values,)
    for value in values:
        check_number(op, arg, value)
    return [float(value) for value in values]


def pair(op: str, arg: str, value: Any, spatial: int) -> list[Any]:
    """Two numbers, the first a 1 where spatial is 1."""
    found = _integers(value)
    if found is None or len(found) not in (1, spatial):
        _refuse(op, arg, ONE_OR_PAIR[spatial], value)
    return [*[1] * (2 - spatial), *(found * spatial if len(found) == 1 else found)]


def sides(op: str, arg: str, value: Any, spatial: int, rule: str = "be ") -> list[Any]:
    """(top, left, bottom, right), from one number, one a dimension, or one a side."""
    found = _integers(value)
    if found is None or len(found) not in (1, spatial, 2 * spatial):
        _refuse(op, arg, rule + SIDES[spatial], value)
    if len(found) == 1:
        found = found * spatial
    if len(found) == spatial:
        found = found * 2
    return [0, found[0], 0, found[1]] if spatial == 1 else found


def check_options(op: str, activation: Any, residual_at: Any, groups: Any) -> None:
    check_name(op, "activation", activation)
    check_name(op, "residual_at", residual_at)
    check_integer(op, "groups", groups)


def check_quantization(op: str, *scales_and_zero_points: Any) -> None:
    """Numbers where numbers belong, of x, y and the residual in turn; their ranges are the compiled check's."""
    for i, arg in enumerate(("x", "y", "residual")):
        check_number(op, f"{arg}_scale", scales_and_zero_points[2 * i])
        check_integer(op, f"{arg}_zero_point", scales_and_zero_points[2 * i + 1])


def check_lrn(op: str, size: Any, alpha: Any, beta: Any, k: Any) -> None:
    check_integer(op, "size", size)
    for arg, value in (("alpha", alpha), ("beta", beta), ("k", k)):
        check_number(op, arg, value)


def check_name(op: str, arg: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {arg} must be a name; got {value!r}")


def check_integer(op: str, arg: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{op}: {arg} must be an integer; got {value!r}")


def check_number(op: str, arg: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{op}: {arg} must be a number; got {value!r}")


def _integers(value: Any) -> list[Any] | None:
    """One integer, or each of a tuple or list; None where that is something else."""
    found = list(value) if isinstance(value, (tuple, list)) else [value]
    for i, number in enumerate(found):
        if isinstance(number, bool):
            return None
        if not isinstance(number, int):
            if not hasattr(number, "__index__"):
                return None
            found[i] = operator.index(number)
    return found


def _refuse(op: str, arg: str, rule: str, got: Any) -> NoReturn:
    raise ValueError(f"{op}: {arg} must {rule}; got {got!r}")
