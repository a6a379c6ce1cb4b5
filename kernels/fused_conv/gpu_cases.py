"""fused_conv on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast.gpu.cases import Bench, Call, Expect, Goal, Peer
from deepseek_fast.kernels.fused_conv import ref

BF16, F32, U8, S8 = torch.bfloat16, torch.float32, torch.uint8, torch.int8
POOL = [3, 3, 2, 2, 1, 1, 1, 1, 0]  # a first layer's: kernel, stride, padding, ceil_mode
HALVES = [2, 2, 2, 2, 0, 0, 0, 0, 0]


def _pixels(*sizes: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, memory_format=torch.channels_last)


def _call(
    x: tuple[int, int, int, int], filters: tuple[int, int], dtype: torch.dtype = BF16, *, stride: int = 1,
    groups: int = 1, after: Callable[[], tuple[Any, ...]] = tuple, pixels: bool = True,
) -> Callable[[], tuple[Any, ...]]:  # fmt: skip
    """Arguments of fused_conv: filters of (count, side), padded by half a side."""
    count, side = filters

    def arguments() -> tuple[Any, ...]:
        weight = _pixels(count, x[1] // groups, side, side, dtype=dtype)
        if not pixels:
            weight = weight.contiguous()
        of_x = _pixels(*x, dtype=dtype) if pixels else torch.empty(x, dtype=dtype)
        window = ([stride] * 2, [side // 2] * 4, [1, 1], groups)
        return of_x, weight, torch.empty(count, dtype=dtype), *window, *after()

    return arguments


def _int8_call(
    x: tuple[int, int, int, int], filters: tuple[int, int], dtype: torch.dtype, groups: int = 1,
    after: Callable[[], tuple[Any, ...]] = tuple,
) -> Callable[[], tuple[Any, ...]]:  # fmt: skip
    count, side = filters

    def arguments() -> tuple[Any, ...]:
        weight = _pixels(count, x[1] // groups, side, side, dtype=S8)
        scales = (0.02, 3, torch.empty(count), 0.05, 4)
        window = ([1, 1], [side // 2] * 4, [1, 1], groups)
        return (
            _pixels(*x, dtype=dtype),
            weight,
            *scales,
            torch.empty(count, dtype=torch.int32),
            *window,
            dtype,
            *after(),
        )

    return arguments


def _is_float_product(constants: dict[str, Any]) -> bool:
    """Of BLOCKS of a 2-byte dtype, whose steps of K are those."""
    return not constants["INT8"] and not constants["TAPS_C"] and constants["BLOCK_K"] == 64


# Bytes: lines' names are among them; a curve with a division, of each of 64 values a thread, is long; a pooled first
# layer holds its loop twice, once more for values that are no numbers.
EXPECTS = {
    "_conv": Expect(tensor_cores=True, warpgroups=_is_float_product, max_bytes=384 * 1024),
    "_stem": Expect(tensor_cores=True, async_copies=True, max_bytes=640 * 1024),
    "_lay_out": Expect(),
    "_depthwise": Expect(),
    "_pool": Expect(),
    "_norm": Expect(),
    "_prepare_int8": Expect(),
}
COMPILED = (
    Call("3x3-64-relu", "fused_conv", _call((64, 64, 56, 56), (64, 3), after=lambda: ("relu",))),
    Call(
        "3x3-128-residual", "fused_conv",
        _call((64, 128, 28, 28), (128, 3), after=lambda: ("relu", [], _pixels(64, 128, 28, 28))),
    ),
    Call("1x1-14x14", "fused_conv", _call((64, 256, 14, 14), (1024, 1), after=lambda: ("relu",))),
    Call("3x3-planes", "fused_conv", _call((64, 128, 56, 56), (128, 3), pixels=False, after=lambda: ("silu",))),
    Call(
        "3x3-halves", "fused_conv",
        _call((8, 64, 56, 56), (64, 3), after=lambda: ("gelu", [], None, "before", HALVES)),
    ),
    Call("3x3-float32", "fused_conv", _call((8, 64, 28, 28), (128, 3), F32, after=lambda: ("relu",))),
    Call(
        "3x3-uint8", "fused_conv_int8",
        _int8_call(
            (8, 64, 28, 28), (128, 3), U8, after=lambda: ("relu", [], _pixels(8, 128, 28, 28, dtype=U8), 0.1, 7)
        ),
    ),
    Call("3x3-int8-sigmoid", "fused_conv_int8", _int8_call((8, 64, 28, 28), (64, 3), S8, after=lambda: ("sigmoid",))),
    Call("few-channels", "fused_conv", _call((64, 3, 224, 224), (64, 7), stride=2, after=lambda: ("relu",))),
    Call("few-channels-groups-float32", "fused_conv", _call((8, 128, 28, 28), (128, 3), F32, groups=32)),
    Call("few-channels-uint8", "fused_conv_int8", _int8_call((8, 3, 224, 224), (64, 7), U8)),
    Call(
        "stem", "fused_conv",
        _call((256, 3, 224, 224), (64, 7), stride=2, after=lambda: ("relu", [], None, "before", POOL)),
    ),
    Call(
        "stem-96-relu6", "fused_conv",
        _call((64, 3, 224, 224), (96, 7), stride=2, after=lambda: ("relu6", [], None, "before", POOL)),
    ),
    Call("depthwise", "fused_conv", _call((64, 96, 56, 56), (96, 3), groups=96, after=lambda: ("relu6",))),
    Call("depthwise-planes", "fused_conv", _call((8, 32, 28, 28), (32, 5), F32, groups=32, pixels=False)),
    Call("depthwise-uint8", "fused_conv_int8", _int8_call((8, 96, 28, 28), (96, 3), U8, groups=96)),
    Call("max", "pool2d", lambda: (_pixels(64, 64, 112, 112), POOL)),
    Call("average-planes", "pool2d", lambda: (torch.empty(8, 64, 28, 28), HALVES, "average", False)),
    Call("norm", "local_response_norm", lambda: (_pixels(64, 96, 55, 55), 5)),
    Call("norm-any-planes", "local_response_norm", lambda: (torch.empty(8, 96, 27, 27), 5, 1e-4, 0.6, 2.0)),
)  # fmt: skip


def chip_bound(**inputs: Any) -> Tensor:
    """ref.bound, and what tensor cores add to it: they cut sums where a CPU rounds them, which doubles the error of
    one, and a product of float32 lacks 2^-21 of it (gpu/numbers.py). No activation is steeper than 1.5 or its slope.
    """
    x, weight = inputs["x"], inputs["weight"]
    window = tuple(
        inputs.get(name, usual) for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    )
    K = weight[0].numel()
    size = ref.conv(x.double().abs(), weight.double().abs(), *window)
    slope = max([1.5, *(abs(float(p)) for p in inputs.get("activation_params", ()))])
    added = slope * ((K + 2) * ref.U + (2.0**-21 if x.dtype == F32 else 0.0)) * size
    return ref.bound(**inputs) + ref.pooled(added, weight.dim() - 2, inputs.get("max_pool"), outside=0.0)


def _error(inputs: dict[str, Any], y: Tensor) -> float:
    """Of the first image."""
    one = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    one |= {name: one[name][:1] for name in ("x", "residual") if one.get(name) is not None}
    difference = (y[:1].cpu().double() - ref.fused_conv_ref(**one)).abs()
    return float((difference / chip_bound(**one)).max())


def _inputs(N: int, C: int, H: int, filters: int, side: int, stride: int, options: dict[str, Any]) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def normal(*sizes: int) -> Tensor:
        values = torch.randn(sizes, device=device, dtype=BF16)
        return values.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else values

    of_x, deviation = normal(N, C, H, H), 2 / (C * side * side) ** 0.5
    out = (H - 1) // stride + 1
    values = {"x": of_x, "weight": normal(filters, C, side, side) * deviation, "bias": normal(filters)}
    if options.get("residual"):
        values["residual"] = normal(N, filters, out, out)
    rest = {name: value for name, value in options.items() if name != "residual"}
    return values | {"stride": stride, "padding": side // 2} | rest


def _cudnn(inputs: dict[str, Any]) -> Callable[[], Tensor]:
    """torch's own fused operators, of cuDNN, then its pool."""
    x, weight, bias, residual = inputs["x"], inputs["weight"], inputs.get("bias"), inputs.get("residual")
    window = ([inputs["stride"]] * 2, [inputs["padding"]] * 2, [1, 1], 1)
    pool = inputs.get("max_pool")

    def call() -> Tensor:
        if residual is None:
            y = torch.cudnn_convolution_relu(x, weight, bias, *window)
        else:
            y = torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *window)
        return y if pool is None else F.max_pool2d(y, *pool)

    return call


def _compiled(inputs: dict[str, Any]) -> Callable[[], Tensor]:
    """torch.compile of the same steps: cuDNN's convolution, then one kernel of its own for the rest."""
    pool, residual = inputs.get("max_pool"), inputs.get("residual")

    def steps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias, inputs["stride"], inputs["padding"])
        y = F.relu(y if residual is None else y + residual)
        return y if pool is None else F.max_pool2d(y, *pool)

    compiled = torch.compile(steps)
    return lambda: compiled(inputs["x"], inputs["weight"], inputs["bias"])


def _bench(
    N: int, C: int, H: int, filters: int, side: int, stride: int = 1, goal: Goal | None = None, **options: Any
) -> Bench:
    out = (H - 1) // stride + 1
    in_y = out
    if options.get("max_pool"):
        size, step, around = options["max_pool"]
        in_y = (out + 2 * around - size) // step + 1
    values = N * C * H * H + N * filters * in_y * in_y + filters * C * side * side
    values += N * filters * out * out if options.get("residual") else 0
    words = (
        [f"{C}x{H}x{H}-{filters}x{side}x{side}"]
        + [f"stride{stride}"] * (stride > 1)
        + ["residual"] * ("residual" in options)
    )
    return Bench(
        "-".join([*words, "relu"] + ["pool"] * ("max_pool" in options)),
        lambda: _inputs(N, C, H, filters, side, stride, {"activation": "relu"} | options),
        deepseek_fast.fused_conv,
        _error,
        2 * values,
        2 * N * out * out * filters * C * side * side,
        (Peer("cudnn", _cudnn), Peer("torch.compile", _compiled)),
        goal,
    )


BENCH = (
    _bench(256, 3, 224, 64, 7, 2, Goal(1.5, "cudnn"), max_pool=(3, 2, 1)),
    # ResNet-50's, N = 64: each size of a 3x3, with stride where a stage begins; the 1x1 that a residual is added to.
    *(_bench(64, C, H, C, 3) for C, H in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(_bench(64, C, H, C, 3, 2) for C, H in ((128, 56), (256, 28), (512, 14))),
    *(_bench(64, C, H, 4 * C, 1, residual=True) for C, H in ((64, 56), (128, 28), (256, 14), (512, 7))),
    _bench(64, 64, 56, 64, 3, residual=True),
)
