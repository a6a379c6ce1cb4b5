"""fused_conv and its family by the plain C ABI: what tests/native/convs.h answers, as the op returns it."""

import inspect
import struct
from typing import Any

import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast import _conv
from tests.emulated import AsItLies, Emulated, as_tensor

LRN = "local_response_norm"


def conv(process: Emulated, op: str, inputs: dict[str, Any]) -> Tensor:
    """The op; RuntimeError with the sentence where it refuses its arguments, what the doors refuse as they do."""
    signature = inspect.signature(getattr(deepseek_fast, op))
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    given = numbers(op, {name: value for name, value in (defaults | inputs).items() if value is not None})
    spatial = 2 if op == "pool2d" else given["x" if op == LRN else "weight"].dim() - 2
    words = {name: word(name, value, spatial) for name, value in given.items()}
    values, *form = process.run(op, words)
    sizes, strides = (struct.unpack(f"<{len(numbers) // 8}q", numbers) for numbers in form)
    y = as_tensor(values, given.get("out_dtype", given["x"].dtype))
    return y.as_strided(sizes, strides) if 0 not in sizes else y.new_empty_strided(sizes, strides)


def numbers(op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the compiled operators take them: windows in numbers."""
    if op == LRN:
        reals = ("alpha", "beta", "k")
        _conv.check_lrn(op, *(arguments.get(name) for name in ("size", *reals)))
        return arguments | {name: float(arguments[name]) for name in reals}
    if op == "pool2d":
        _conv.check_name(op, "kind", arguments.get("kind"))
        parts = [arguments.pop(name, None) for name in _conv.POOL_ARGS]
        return arguments | {"window": _conv.pool_window(op, _conv.POOL_ARGS, 2, *parts)}
    _conv.check_options(op, *(arguments.get(name) for name in ("activation", "residual_at", "groups")))
    if op == "fused_conv_int8":
        parts = [arguments[f"{arg}_{part}"] for arg in ("x", "y", "residual") for part in ("scale", "zero_point")]
        _conv.check_quantization(op, *parts)
    names = ("stride", "padding", "dilation")
    parts = [arguments.pop(name, None) for name in (*names, "max_pool")]
    window, pool = _conv.windows(op, arguments["weight"].shape, *parts)
    params = _conv.numbers(op, "activation_params", arguments["activation_params"])
    return arguments | dict(zip(names, window, strict=True)) | {"max_pool": pool, "activation_params": params}


def word(name: str, value: Any, spatial: int) -> Any:
    if isinstance(value, list):
        return torch.tensor(value, dtype=torch.float32 if name == "activation_params" else torch.int32)
    if name in ("x", "residual"):
        return AsItLies(value if has_layout(value, spatial) else value.contiguous())
    if name == "weight":
        return AsItLies(value)
    return str(value) if isinstance(value, float) else value


def has_layout(value: Tensor, spatial: int) -> bool:
    """Whether a door hands it on as it is: channels or columns side by side, or more than any memory, for the check."""
    strides = value.stride()
    return 1 in (*strides[-1:], *strides[-1 - spatial :][:1]) or value.numel() > 1 << 32


def pool_arguments(window: Any) -> dict[str, Any]:
    """Of pool2d, from a max_pool of fused_conv."""
    return dict(zip(_conv.POOL_ARGS, window if isinstance(window, tuple) else (window,), strict=False))
