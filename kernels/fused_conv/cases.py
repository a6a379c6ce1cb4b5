"""The one table of fused_conv: what is tested; what is benchmarked is in bench_cases.py.

Tolerance, every float case: ref.bound, |err| <= gamma(K + 2) sum|x||w| + the roundings of what follows + half an ULP of
a bf16 output, the largest of a pool's window (derived there). It holds for every input, so one failing output in one
run is a bug. int8 has the bits of ref_int8.py, but of curved activations a step more or less.
Sizes: each path, and one either side of the vectors of 8, 16 and 32 channels and of the tiles' pixels; one pixel, no
image at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from deepseek_fast import _conv
from deepseek_fast.kernels.fused_conv.bench_cases import BENCH as BENCH

DTYPES = ("float32", "bfloat16")
LAYOUTS = ("NCHW", "NHWC")  # the order of memory; shapes are always (N, C, H, W)
PARAMS = {"leaky_relu": (0.2,), "clip": (-0.5, 1.5), "hardsigmoid": (0.25, 0.4)}


@dataclass(frozen=True)
class Case:
    """One call. x: (N, C, H, W), or (N, C, W) where H is None; N None: no batch. weight: (F, C / groups, R, S)."""

    x: tuple[int | None, int, int | None, int]
    F: int
    kernel: tuple[int | None, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    dtype: str = "float32"
    activation: str = "none"
    bias: bool = True
    residual: str = "none"  # "none", "before", "after"
    max_pool: Any = None
    x_layout: str = "NCHW"
    residual_layout: str = "NCHW"
    weight_layout: str = "NCHW"  # NHWC makes y so, too
    algorithm: str = "direct"

    @property
    def id(self) -> str:
        words = ["x".join(str(size) for size in self.x if size is not None), f"{self.F}"]
        words.append("x".join(str(size) for size in self.kernel if size is not None))
        named = {"s": (self.stride, 1), "p": (self.padding, 0), "d": (self.dilation, 1), "g": (self.groups, 1)}
        words += [f"{name}{text(value)}" for name, (value, usual) in named.items() if value != usual]
        words += [self.dtype, self.activation] + ["bias"] * self.bias
        words += [] if self.residual == "none" else [f"residual_{self.residual}_{self.residual_layout}"]
        words += [] if self.max_pool is None else [f"pool{text(self.max_pool)}"]
        words += ["unbatched"] * (self.x[0] is None) + [self.algorithm] * (self.algorithm != "direct")
        return "-".join([*words, self.x_layout] + ["weight_NHWC"] * (self.weight_layout == "NHWC"))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.F, self.x[1] // self.groups, *(size for size in self.kernel if size is not None))

    @property
    def conv_shape(self) -> tuple[int, ...]:
        """Of the convolution, before the pool: the residual's."""
        N, _, H, W = self.x
        rows, columns = 1 if H is None else H, W
        stride, padding, dilation = self.window
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, (self.kernel[0] or 1, self.kernel[1]), strict=True)]
        P = (rows + padding[0] + padding[2] - spans[0]) // stride[0] + 1
        Q = (columns + padding[1] + padding[3] - spans[1]) // stride[1] + 1
        return (*(() if N is None else (N,)), self.F, *(() if H is None else (P,)), Q)

    @property
    def window(self) -> tuple[list[int], list[int], list[int]]:
        """stride, padding and dilation in 2, 4 and 2 numbers."""
        return _conv.window("case", self.weight_shape[2:], self.stride, self.padding, self.dilation)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op; the sums have a deviation of about 2, so that an activation sees its curve."""
        dtype = getattr(torch, self.dtype)

        def normal(shape: tuple[int, ...], layout: str, deviation: float = 1.0) -> torch.Tensor:
            return laid_out((torch.randn(shape, generator=generator) * deviation).to(dtype), layout)

        taps = self.weight_shape[1] * (self.kernel[0] or 1) * self.kernel[1]
        x_shape = tuple(size for size in self.x if size is not None)
        spatial = len(self.weight_shape) - 2
        values = {
            "x": normal(x_shape, self.x_layout if len(x_shape) == spatial + 2 else f"{self.x_layout} unbatched"),
            "weight": normal(self.weight_shape, self.weight_layout, 2 / taps**0.5),
            "bias": normal((self.F,), "NCHW") if self.bias else None,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "activation": self.activation,
            "activation_params": PARAMS.get(self.activation, ()),
            "max_pool": self.max_pool,
        }
        if self.residual != "none":
            batched = len(self.conv_shape) == spatial + 2
            layout = self.residual_layout if batched else f"{self.residual_layout} unbatched"
            values |= {"residual": normal(self.conv_shape, layout), "residual_at": self.residual}
        return values | ({} if self.algorithm == "direct" else {"algorithm": self.algorithm})


def text(value: Any) -> str:
    return "_".join(text(part) for part in value) if isinstance(value, tuple) else str(value)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The tensor, its channels innermost in memory where layout is NHWC; "unbatched": they are its first dimension."""
    if not layout.startswith("NHWC"):
        return tensor
    channels = 0 if layout.endswith("unbatched") else 1
    return tensor.movedim(channels, -1).contiguous().movedim(-1, channels)


# One case a path and a corner of it, each in both dtypes and both orders of memory.
PATHS = (
    # pointwise, and channels one either side of the vectors
    Case((2, 16, 5, 7), 32, (1, 1)),
    *(Case((1, C, 3, 5), F, (1, 1)) for C, F in ((1, 1), (7, 9), (8, 8), (9, 7), (15, 17), (17, 15))),
    *(Case((1, C, 3, 5), F, (1, 1)) for C, F in ((31, 33), (32, 64), (33, 31), (64, 65), (65, 63), (130, 96))),
    Case((1, 24, 9, 9), 40, (1, 1), stride=2),
    Case((1, 256, 2, 3), 48, (1, 1)),
    # 3x3 and others
    Case((1, 32, 8, 9), 32, (3, 3), padding=1),
    Case((2, 17, 7, 15), 33, (3, 3), padding=1, bias=False),
    Case((1, 5, 6, 33), 31, (3, 3), padding=1),
    Case((1, 16, 9, 11), 40, (3, 3), stride=2, padding=1),
    Case((1, 8, 11, 12), 24, (3, 3), stride=(1, 2), padding=(2, 1), dilation=2),
    Case((1, 9, 13, 10), 16, (3, 3), padding=2, dilation=(2, 3)),
    Case((1, 6, 7, 9), 10, (3, 2), stride=(2, 1), padding=(0, 1, 2, 0)),
    Case((1, 6, 7, 9), 10, (2, 4), padding="same"),
    Case((1, 6, 7, 9), 10, (3, 5), padding="valid"),
    Case((1, 12, 17, 17), 20, (1, 7), padding=(0, 3)),
    Case((1, 12, 17, 17), 20, (7, 1), padding=(3, 0)),
    Case((1, 7, 3, 4), 5, (3, 3), padding=5, stride=2),  # windows that see nothing of x
    Case((3, 8, 1, 1), 6, (3, 3), padding=1),
    Case((1, 40, 1, 1), 70, (1, 1)),
    Case((1, 96, 14, 14), 64, (3, 3), padding=1),
    # stems
    *(Case((1, C, 19, 23), 17, (7, 7), stride=2, padding=3) for C in (1, 2, 3, 4)),
    *(Case((1, C, 9, 10), 33, (3, 3), padding=1) for C in (1, 2, 3, 4)),
    Case((2, 3, 12, 18), 64, (4, 4), stride=4),
    Case((1, 3, 11, 13), 16, (5, 5), padding=(1, 2, 3, 0), dilation=2),
    Case((1, 3, 5, 70), 32, (3, 3), stride=(1, 3), padding=1),
    # depthwise
    *(
        Case((1, C, 11, 13), C, (k, k), stride=s, padding=k // 2, groups=C)
        for k, s, C in ((3, 1, 16), (3, 1, 33), (3, 2, 24), (3, 2, 7), (5, 1, 17), (5, 2, 32))
    ),
    Case((2, 9, 8, 9), 9, (3, 3), padding=2, dilation=2, groups=9),
    Case((1, 18, 7, 1), 18, (3, 3), padding=1, groups=18),
    # columns that share sets of L1: channels take turns
    *(
        Case((1, C, 9, W), C, (3, 3), stride=stride, padding=1, groups=C)
        for C, W, stride in ((512, 13, 1), (1024, 13, 1), (512, 25, 2))
    ),
    Case((1, 40, 6, 9), 40, (1, 1), groups=40),
    Case((1, 6, 9, 8), 6, (2, 3), padding=(1, 0, 0, 2), groups=6),
    Case((1, 12, 10, 10), 24, (3, 3), padding=1, groups=12),  # two filters a channel
    # grouped: channels of x and filters a group
    *(
        Case((1, groups * C, 7, 9), groups * F, (3, 3), stride=s, padding=1, groups=groups)
        for groups, C, F, s in ((8, 2, 2, 1), (5, 3, 3, 2), (8, 4, 4, 1), (4, 8, 8, 1), (3, 20, 20, 2), (2, 80, 80, 1))
    ),
    Case((1, 12, 5, 6), 18, (1, 1), groups=6),
    Case((2, 12, 5, 6), 20, (3, 3), dilation=2, padding=2, groups=4),
    Case((1, 80, 4, 9), 20, (1, 1), groups=2),
    # one dimension
    Case((2, 12, None, 31), 20, (None, 3), padding=1),
    Case((2, 3, None, 40), 16, (None, 9), stride=4, padding=(3, 2)),
    Case((1, 16, None, 17), 16, (None, 5), padding="same", groups=16),
    Case((None, 8, None, 19), 12, (None, 3), dilation=3, groups=2),
    # no batch
    Case((None, 5, 8, 9), 33, (3, 3), padding=1),
)

ACTIVATED = Case((2, 12, 6, 9), 35, (3, 3), padding=1)  # tails in channels and in pixels
POOLED = Case((2, 10, 13, 15), 21, (3, 3), padding=1, activation="relu")
POOLS = (
    2,
    (3, 2),
    (3, 2, 1),
    (3, 2, 1, True),
    ((2, 3), (1, 2), (1, 0)),
    ((3, 3), (2, 2), (1, 0, 0, 1)),
    (3, 1, 1),
    (5, 3, 2, True),
    (4, 5, 0, True),  # rows that no window reaches
    (13, 1),
    (2, 13),
)


def _cases() -> Iterator[Case]:
    for i, (case, dtype) in enumerate(product(PATHS, DTYPES)):
        activation = _conv.ACTIVATIONS[i % len(_conv.ACTIVATIONS)]
        layout, other = (LAYOUTS[(i // step) % 2] for step in (1, 2))
        residual = ("none", "before", "after", "none")[i % 4]
        chosen = replace(case, dtype=dtype, activation=activation, residual=residual)
        yield replace(chosen, x_layout=layout, residual_layout=other)
        yield replace(case, dtype=dtype, x_layout=LAYOUTS[1 - i % 2])
    for dtype, activation, residual in product(DTYPES, _conv.ACTIVATIONS, ("none", "before", "after")):
        yield replace(ACTIVATED, dtype=dtype, activation=activation, residual=residual, bias=residual != "none")
    for i, (dtype, pool) in enumerate(product(DTYPES, POOLS)):
        residual = ("none", "before", "after")[i % 3]
        yield replace(POOLED, dtype=dtype, max_pool=pool, residual=residual, x_layout=LAYOUTS[i // 2 % 2])
    # every combination of the orders of x, the residual and, by way of the weight, y
    base = replace(ACTIVATED, residual="after", activation="silu")
    for dtype, x, residual, weight, pool in product(DTYPES, LAYOUTS, LAYOUTS, LAYOUTS, (None, (3, 2, 1))):
        yield replace(base, dtype=dtype, x_layout=x, residual_layout=residual, weight_layout=weight, max_pool=pool)
    for dtype, (stem, pool) in product(DTYPES, ((STEM, (3, 2, 1)), (STEM, (3, 2, 0, True)), (DEPTHWISE, 2))):
        yield replace(stem, dtype=dtype, activation="relu", max_pool=pool)
    for dtype in DTYPES:
        one_d = Case((2, 6, None, 30), 10, (None, 3), dtype=dtype, max_pool=(3, 2, 1), residual="before")
        yield one_d
        yield replace(one_d, x_layout="NHWC", padding=(2, 1), activation="gelu")
        yield replace(POOLED, x=(None, *POOLED.x[1:]), dtype=dtype, max_pool=3, residual="after", x_layout="NHWC")
        for empty in (ACTIVATED, DEPTHWISE, STEM, replace(POOLED, max_pool=2)):
            yield replace(empty, x=(0, *empty.x[1:]), dtype=dtype, residual="before")

    # winograd: tiles of 4x4 that the result does not fill, one and several panels of channels, more than fit at a time
    for i, (N, C, H, W, F, pads) in enumerate(WINOGRAD):
        case = Case((N, C, H, W), F, (3, 3), padding=pads, activation="relu", algorithm="winograd")
        yield replace(case, x_layout=LAYOUTS[i % 2], residual=("none", "before", "after")[i % 3])
        yield replace(case, x_layout=LAYOUTS[1 - i % 2], max_pool=POOLS[i % 4] if H > 4 else None)


WINOGRAD = (
    (1, 1, 4, 4, 1, 1),
    (1, 16, 3, 5, 32, 0),
    (2, 17, 9, 6, 33, 1),
    (1, 40, 14, 14, 65, 1),
    (1, 8, 7, 31, 20, (2, 0, 1, 3)),
    (1, 3, 40, 9, 9, 1),
    (0, 8, 8, 8, 8, 1),
    (2, 72, 76, 46, 8, 1),  # cut for two threads: blocks of 20 rows, 12 of which at a time, and of 16, all at a time
)
# local_response_norm: (N, C, H, W) or (N, C, W), size. Channels one either side of the vectors, windows of the two
# unrolled sizes, even ones, and such as reach beyond x on both sides; strips of pixels that do not fill.
LRN_CASES = (
    *(((2, C, 5, 7), size) for C, size in ((1, 5), (7, 3), (8, 5), (9, 4), (15, 5), (16, 2), (17, 5), (33, 3))),
    ((2, 64, 5, 7), 1),
    *(((1, 70, 3, 45), size) for size in (5, 8, 9, 64, 139, 140, 601)),
    ((1, 96, 27, 27), 5),
    ((1, 5000, 1, 3), 5),
    ((2, 12, 31), 5),
    ((3, 20, 1), 3),
    ((0, 20, 4, 4), 5),
)
LRN_BETAS = (0.75, 0.5, 1.0, 0.6, -0.4, 0.0)
STEM = Case((1, 3, 30, 34), 40, (7, 7), stride=2, padding=3)
DEPTHWISE = Case((1, 20, 9, 12), 20, (3, 3), padding=1, groups=20)
CASES = tuple({case.id: case for case in _cases()}.values())


@dataclass(frozen=True)
class Int8Case:
    """The numbers of a Case, as 8 bits; x and y of these dtypes."""

    case: Case
    x_dtype: str
    y_dtype: str
    one_scale: bool = False  # of the weight, not one a filter

    @property
    def id(self) -> str:
        return f"{self.case.id}-{self.x_dtype}-{self.y_dtype}" + "-one_scale" * self.one_scale

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Scales by which most results are in y's range."""
        case = self.case
        floats = case.inputs(generator)

        def codes(of: torch.Tensor, dtype: str) -> torch.Tensor:
            limits = torch.iinfo(getattr(torch, dtype))
            drawn = torch.randint(limits.min, limits.max + 1, of.shape, generator=generator)
            return torch.empty_like(of, dtype=getattr(torch, dtype)).copy_(drawn)

        def zero_point(dtype: str) -> int:
            return (130 if dtype == "uint8" else 3) - int(torch.randint(0, 9, (), generator=generator))

        taps = case.weight_shape[1] * (case.kernel[0] or 1) * case.kernel[1]
        count = 1 if self.one_scale else case.F
        values = {
            "x": codes(floats["x"], self.x_dtype),
            "weight": codes(floats["weight"], "int8"),
            "x_scale": 0.021,
            "x_zero_point": zero_point(self.x_dtype),
            "weight_scale": (torch.rand(count, generator=generator) + 0.5) * 0.01 / taps**0.5,
            "y_scale": 0.03,
            "y_zero_point": zero_point(self.y_dtype),
            "out_dtype": getattr(torch, self.y_dtype),
        }
        if case.bias:
            values["bias"] = torch.randint(-9999, 10000, (case.F,), generator=generator, dtype=torch.int32)
        if case.residual != "none":
            values |= {"residual": codes(floats["residual"], self.y_dtype), "residual_at": case.residual}
            values |= {"residual_scale": 0.017, "residual_zero_point": zero_point(self.y_dtype)}
        kept = ("stride", "padding", "dilation", "groups", "activation", "activation_params", "max_pool")
        return values | {name: floats[name] for name in kept}


def _int8_cases() -> Iterator[Int8Case]:
    dtypes = ("uint8", "int8")
    float_cases = [case for case in CASES if case.dtype == "float32" and case.algorithm == "direct"]
    for i, case in enumerate(float_cases):
        yield Int8Case(case, dtypes[i % 2], dtypes[i // 2 % 2], i % 7 == 0)


INT8_CASES = tuple(_int8_cases())
