"""What is measured of fused_conv; cases.py hands it on as BENCH.

Whole layers of networks that people run, one image: ResNet-50's distinct convolutions in every dtype, the depthwise
ones of MobileNet, the grouped ones of ShuffleNet and ResNeXt, and 3x3 ones of ResNet-50 and VGG-19 by Winograd: its
operations are counted as those of direct sums, so that its rate may pass their ceiling. x and y have their channels
side by side ("pixels", as channels_last), which is how neighbours hand them on; rows "planes" read and write NCHW, rows
"entry" read NCHW and write channels_last, as a network's first layer does.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deepseek_fast import _conv

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "uint8"
RATES = {FLOAT32: "fma_f32", BFLOAT16: "bf16_dot", INT8: "int8_dot"}
POOL = (3, 2, 1)  # window, stride, padding: ResNet's, after its first layer
# Of int8: x as ReLU leaves it, three deviations are 255; weights of ten bits' deviation; y's deviation in codes.
X_DEVIATION, WEIGHT_DEVIATION, Y_DEVIATION = 80.0, 32.0, 60.0


@dataclass(frozen=True)
class Bench:
    """One layer: C channels of H x H pixels to F channels through R x R taps, padded by R // 2."""

    C: int
    H: int
    F: int
    R: int
    stride: int = 1
    groups: int = 1
    dtype: str = FLOAT32  # of x; uint8: fused_conv_int8
    activation: str = "relu"
    residual: bool = False
    pool: bool = False
    layout: str = "pixels"
    group: str = ""  # of which a benchmark gives geometric means
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    sweep: bool = False  # also at the lower levels and on all threads
    algorithm: str = "direct"

    @property
    def id(self) -> str:
        words = [f"{self.C}x{self.H}x{self.H}", f"{self.F}x{self.R}x{self.R}"]
        words += [f"stride{self.stride}"] * (self.stride > 1)
        if self.groups > 1:
            words.append("depthwise" if self.groups == self.C else f"{self.groups}groups")
        words += [self.dtype, self.activation, *["residual"] * self.residual, *["pool"] * self.pool]
        words += [self.layout] * (self.layout != "pixels") + [self.algorithm] * (self.algorithm != "direct")
        return "-".join(words)

    @property
    def id_means(self) -> str:
        return "x, filters, dtype, activation"

    @property
    def op(self) -> str:
        return "fused_conv_int8" if self.dtype == INT8 else "fused_conv"

    @property
    def reference(self) -> str:
        """The room's file that has the meaning of op."""
        return "ref_int8" if self.dtype == INT8 else "ref"

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        return RATES[self.dtype]

    @property
    def taps(self) -> int:
        """Products in a sum."""
        return self.C // self.groups * self.R * self.R

    @property
    def P(self) -> int:
        """Rows, and columns, of the convolution."""
        return (self.H + 2 * (self.R // 2) - self.R) // self.stride + 1

    @property
    def out(self) -> int:
        """Rows, and columns, of y."""
        kernel, stride, padding = POOL
        return (self.P + 2 * padding - kernel) // stride + 1 if self.pool else self.P

    @property
    def flops(self) -> int:
        """A multiplication and an addition per product of a tap inside x."""
        inside = sum(0 <= p * self.stride - self.R // 2 + r < self.H for p in range(self.P) for r in range(self.R))
        return 2 * self.F * self.C // self.groups * inside * inside

    @property
    def bytes(self) -> int:
        """x, weight, bias and residual read once, y written once."""
        item_bytes = getattr(torch, self.dtype).itemsize
        residual = self.F * self.P * self.P if self.residual else 0
        values = self.C * self.H * self.H + self.F * self.taps + residual + self.F * self.out * self.out
        per_filter = 8 if self.dtype == INT8 else item_bytes  # a bias, and the scale of an int8 weight
        return item_bytes * values + per_filter * self.F

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. Sums are of size 1, so that an activation meets its whole curve."""
        x, residual = (self.C, self.H, self.H), (self.F, self.P, self.P)
        window = {"stride": self.stride, "padding": self.R // 2, "groups": self.groups, "activation": self.activation}
        if self.pool:
            window["max_pool"] = POOL
        if self.algorithm != "direct":
            window["algorithm"] = self.algorithm
        if self.dtype == INT8:
            return self._int8(generator, x, residual) | window
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int, deviation: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=generator) * deviation).to(dtype)

        inputs = {
            "x": self._laid(normal(1, *x)),
            "weight": normal(self.F, self.C // self.groups, self.R, self.R, deviation=1 / self.taps**0.5),
            "bias": normal(self.F),
        }
        return inputs | ({"residual": self._laid(normal(1, *residual))} if self.residual else {}) | window

    def _int8(
        self, generator: torch.Generator, x: tuple[int, int, int], residual: tuple[int, int, int]
    ) -> dict[str, Any]:
        """As a calibrated model has them: u8 with zero point 0 behind a ReLU, s8 weights with a scale per filter."""

        def normal(*shape: int, deviation: float) -> torch.Tensor:
            return torch.randn(shape, generator=generator) * deviation

        def after_relu(*shape: int) -> torch.Tensor:
            return self._laid(normal(1, *shape, deviation=X_DEVIATION).round().clamp(0, 255).to(torch.uint8))

        weight = normal(self.F, self.C // self.groups, self.R, self.R, deviation=WEIGHT_DEVIATION)
        # Half of x's codes are 0: the root of their mean square is a deviation / sqrt(2).
        sums = X_DEVIATION * math.sqrt(self.taps / 2) * WEIGHT_DEVIATION
        inputs = {
            "x": after_relu(*x),
            "weight": weight.round().clamp(-127, 127).to(torch.int8),
            "x_scale": 0.02,
            "x_zero_point": 0,
            "weight_scale": 0.005 * (0.5 + torch.rand(self.F, generator=generator)),
            "y_scale": 0.02 * 0.005 * sums / Y_DEVIATION,
            "y_zero_point": 0,
            "bias": normal(self.F, deviation=sums / 4).round().to(torch.int32),
        }
        if self.residual:
            more = {"residual": after_relu(*residual), "residual_scale": inputs["y_scale"], "residual_zero_point": 0}
            inputs |= more
        return inputs

    def _laid(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(memory_format=torch.channels_last) if self.layout == "pixels" else x

    def call(self, inputs: dict[str, Any]) -> Callable[[], torch.Tensor]:
        """The op as a compiled model calls it, its weight packed and its window in numbers, as peers have theirs."""
        from deepseek_fast.kernels.fused_conv import op

        x, weight, residual = inputs["x"], inputs["weight"], inputs.get("residual")
        windows, pool = _conv.windows(
            self.op, weight.shape, inputs["stride"], inputs["padding"], 1, inputs.get("max_pool")
        )
        shape = (list(weight.shape), *windows, self.groups)
        of_y: tuple[str, list[float]] = (self.activation, [])
        packed, ops = op.PACK_OP(weight, self.groups, self.algorithm), torch.ops.deepseek_fast
        if self.dtype != INT8:
            of_x = (x, packed, inputs["bias"])
            call = partial(ops.fused_conv_packed.default, *of_x, *shape, *of_y, residual, "before", pool)
            return partial(call, channels_last=self.layout == "entry")
        scales = [inputs[f"{name}_{part}"] for name in ("x", "y") for part in ("scale", "zero_point")]
        of_x = (x, packed, *scales[:2], inputs["weight_scale"], *scales[2:], inputs["bias"])
        of_residual = (residual, inputs.get("residual_scale", 1.0), inputs.get("residual_zero_point", 0), "before")
        call = partial(ops.fused_conv_int8_packed.default, *of_x, *shape, x.dtype, *of_y, *of_residual, pool)
        return partial(call, channels_last=self.layout == "entry")


# (C, H, F, R, stride, residual, how often): the convolutions of the onnx package's ResNet-50, but for the first. A
# block's shortcut is a convolution of its own whose sum with the block takes the ReLU.
RESNET50 = (
    (64, 56, 64, 1, 1, False, 1),
    (64, 56, 64, 3, 1, False, 3),
    (64, 56, 256, 1, 1, True, 4),
    (256, 56, 64, 1, 1, False, 2),
    (256, 56, 128, 1, 1, False, 1),
    (128, 56, 128, 3, 2, False, 1),
    (128, 28, 512, 1, 1, True, 4),
    (256, 56, 512, 1, 2, True, 1),
    (512, 28, 128, 1, 1, False, 3),
    (128, 28, 128, 3, 1, False, 3),
    (512, 28, 256, 1, 1, False, 1),
    (256, 28, 256, 3, 2, False, 1),
    (256, 14, 1024, 1, 1, True, 6),
    (512, 28, 1024, 1, 2, True, 1),
    (1024, 14, 256, 1, 1, False, 5),
    (256, 14, 256, 3, 1, False, 5),
    (1024, 14, 512, 1, 1, False, 1),
    (512, 14, 512, 3, 2, False, 1),
    (512, 7, 2048, 1, 1, True, 3),
    (1024, 14, 2048, 1, 2, True, 1),
    (2048, 7, 512, 1, 1, False, 2),
    (512, 7, 512, 3, 1, False, 2),
)
# (channels, H, network) of 3x3, as many filters as channels: those that ConvWinograd of `optimize` takes
WINOGRAD = (
    (64, 56, "ResNet-50"),
    (128, 28, "ResNet-50"),
    (256, 14, "ResNet-50"),
    (256, 56, "VGG-19"),
    (512, 14, "VGG-19"),
)
GATED = (128, 28, 128, 3, 1)  # the middle of the list
# (channels, H, stride) of the depthwise 3x3
MOBILENET_V1 = (
    (32, 112, 1),
    (64, 112, 2),
    (128, 56, 1),
    (128, 56, 2),
    (256, 28, 1),
    (256, 28, 2),
    (512, 14, 1),
    (512, 14, 2),
    (1024, 7, 1),
)
MOBILENET_V2 = (
    (32, 112, 1),
    (96, 112, 2),
    (144, 56, 1),
    (144, 56, 2),
    (192, 28, 1),
    (192, 28, 2),
    (384, 14, 1),
    (576, 14, 1),
    (576, 14, 2),
    (960, 7, 1),
)
GATED_DEPTHWISE = (144, 56, 1)
# (C, H, F) of the 1x1 in 4 groups, and (C, H, stride) of the depthwise 3x3: of the onnx package's ShuffleNet
SHUFFLENET = ((24, 56, 112), (112, 28, 112), (136, 28, 136), (272, 14, 272), (544, 7, 544))
SHUFFLENET_DEPTHWISE = ((112, 56, 2), (136, 28, 1), (272, 14, 1), (544, 7, 1))
# (channels, H, stride) of the 3x3 in 32 groups of ResNeXt-50 32x4d
RESNEXT = ((128, 56, 1), (256, 56, 2), (256, 28, 1), (512, 28, 2), (512, 14, 1), (1024, 14, 2), (1024, 7, 1))


SHORT = {FLOAT32: "f32", BFLOAT16: "bf16", INT8: "int8"}


def _stem() -> Iterator[Bench]:
    for dtype, layout in itertools.product(RATES, ("entry", "pixels", "planes")):
        first = dtype == FLOAT32 and layout == "entry"
        group, why = f"first layer, {SHORT[dtype]}", "ResNet-50's first layer, with its pool"
        yield Bench(3, 224, 64, 7, 2, 1, dtype, "relu", False, True, layout, group, why, quick=first, sweep=first)


def _resnet50() -> Iterator[Bench]:
    for dtype, (C, H, F, R, stride, residual, count) in itertools.product(RATES, RESNET50):
        gated = (C, H, F, R, stride) == GATED
        quick = gated and dtype == FLOAT32
        group, why = f"ResNet-50, {SHORT[dtype]}", f"ResNet-50, {count} of its 53"
        yield Bench(C, H, F, R, stride, 1, dtype, "relu", residual, False, "pixels", group, why, quick, gated)
    for C, H, F, R, stride, residual, _ in RESNET50[1:4]:
        group, why = "NCHW in and out, f32", "of ResNet-50, NCHW in and out"
        yield Bench(C, H, F, R, stride, residual=residual, layout="planes", group=group, why=why)


def _depthwise() -> Iterator[Bench]:
    for C, H, stride in MOBILENET_V1:
        yield Bench(C, H, C, 3, stride, C, group="depthwise, f32", why="MobileNet V1")
    for dtype, (C, H, stride) in itertools.product((FLOAT32, BFLOAT16), MOBILENET_V2):
        gated = (C, H, stride) == GATED_DEPTHWISE
        quick, group = gated and dtype == FLOAT32, f"depthwise, {SHORT[dtype]}"
        yield Bench(C, H, C, 3, stride, C, dtype, "relu6", group=group, why="MobileNet V2", quick=quick, sweep=gated)
    for C, H, stride in SHUFFLENET_DEPTHWISE:
        yield Bench(C, H, C, 3, stride, C, activation="none", group="depthwise, f32", why="ShuffleNet")


def _grouped() -> Iterator[Bench]:
    for C, H, F in SHUFFLENET:
        yield Bench(C, H, F, 1, groups=4, group="grouped, f32", why="ShuffleNet", sweep=C == 136)
    for dtype, (C, H, stride) in itertools.product((FLOAT32, BFLOAT16), RESNEXT):
        sweep, group = H == 28 and stride == 1, f"grouped, {SHORT[dtype]}"
        yield Bench(C, H, C, 3, stride, 32, dtype, group=group, why="ResNeXt-50 32x4d", sweep=sweep)


def _winograd() -> Iterator[Bench]:
    for C, H, network in WINOGRAD:
        yield Bench(C, H, C, 3, algorithm="winograd", group="Winograd, f32", why=network)


BENCH = (*_stem(), *_resnet50(), *_winograd(), *_depthwise(), *_grouped())
