"""How export writes fused_conv, pool2d and local_response_norm of torch, on 4 dimensions, whatever torch's have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION

BATCH, ROWS = 0, 2  # axes that torch's users may leave out


def translations(namespace: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    return {
        namespace.fused_conv.default: _fused_conv,
        namespace.pool2d.default: _pool2d,
        namespace.local_response_norm.default: _local_response_norm,
    }


def _fused_conv(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Any = None,
    residual_at: str = "before",
    max_pool: Sequence[int] = (),
    algorithm: str = "direct",
) -> Any:
    from onnxscript import values

    spatial = len(weight.shape) - 2
    axes = [ROWS] * (spatial == 1)
    image_axes = [BATCH] * (len(x.shape) == spatial + 1) + axes
    attributes: dict[str, Any] = {} if algorithm == "direct" else {"algorithm": algorithm}
    if activation_params:
        attributes["activation_params"] = list(activation_params)
    if max_pool:
        attributes |= _window("pool_", max_pool)
    y = values.Opset(DOMAIN, DOMAIN_VERSION).FusedConv(
        _wider(x, image_axes),
        _wider(weight, axes),
        bias,
        None if residual is None else _wider(residual, image_axes),
        stride=list(stride),
        padding=list(padding),
        dilation=list(dilation),
        groups=groups,
        activation=activation,
        residual_at=residual_at,
        **attributes,
    )
    return _narrower(y, image_axes)


def _pool2d(x: Any, window: Sequence[int], kind: str = "max", count_include_pad: bool = True) -> Any:
    from onnxscript import values

    axes = [BATCH] * (len(x.shape) == 3)
    y = values.Opset(DOMAIN, DOMAIN_VERSION).Pool2d(
        _wider(x, axes), kind=kind, count_include_pad=int(count_include_pad), **_window("", window)
    )
    return _narrower(y, axes)


def _local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    from onnxscript import values

    if size % 2 == 0:  # one more channel before than after, in ONNX one more after than before
        raise ValueError(f"export: size of local_response_norm must be odd, as ONNX has another window; got {size}")
    axes = [ROWS] * (len(x.shape) == 3)
    y = values.Opset(DOMAIN, DOMAIN_VERSION).LocalResponseNorm(
        _wider(x, axes), size=size, alpha=float(alpha), beta=float(beta), k=float(k)
    )
    return _narrower(y, axes)


def _window(prefix: str, numbers: Sequence[int]) -> dict[str, Any]:
    """kernel, stride, padding and ceil_mode out of nine numbers."""
    parts = {"kernel": numbers[:2], "stride": numbers[2:4], "padding": numbers[4:8]}
    named: dict[str, Any] = {f"{prefix}{name}": list(part) for name, part in parts.items()}
    return named | {f"{prefix}ceil_mode": int(numbers[8])}


def _wider(value: Any, axes: list[int]) -> Any:
    from onnxscript import opset18

    constant: Any = opset18.Constant(value_ints=axes) if axes else None
    return opset18.Unsqueeze(value, constant) if axes else value


def _narrower(value: Any, axes: list[int]) -> Any:
    from onnxscript import opset18

    constant: Any = opset18.Constant(value_ints=axes) if axes else None
    return opset18.Squeeze(value, constant) if axes else value
