"""fused_conv's kernels for CUDA: within the bounds of ref.py; int8 with the bits of ref_int8.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast._conv import ACTIVATIONS
from deepseek_fast.gpu import tiles
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.fused_conv import op, ref
from deepseek_fast.kernels.fused_conv.cases import (
    ACTIVATED,
    CASES,
    DEPTHWISE,
    INT8_CASES,
    LAYOUTS,
    LRN_BETAS,
    LRN_CASES,
    POOLED,
    STEM,
    Case,
    laid_out,
)
from deepseek_fast.kernels.fused_conv.gpu_cases import POOL, chip_bound
from tests import gpu
from tests.conv_doors import assert_close, assert_same, prepared, prepared_int8
from tests.oracle import assert_equal

pytestmark = gpu.gpu
LARGE = 20_000  # values of y that take the interpreter seconds
STEM_TILE = {"BLOCK_M": 16, "BLOCK_F": 32, "num_warps": 4, "num_stages": 2}


def is_small(case: Case) -> bool:
    return torch.Size(case.conv_shape).numel() * max(1, (case.x[1] // case.groups) // 16) < LARGE


SOME = [case for case in CASES if is_small(case)][::23]
SOME_INT8 = [case for case in INT8_CASES if is_small(case.case)][::13]
GROUPED = Case((2, 40, 9, 11), 48, (3, 3), padding=1, groups=2)
BLOCKS = Case((2, 40, 9, 11), 70, (3, 3), padding=1)
FORMS = (BLOCKS, STEM, DEPTHWISE, GROUPED, replace(POOLED, max_pool=2), replace(POOLED, max_pool=(3, 2, 1)))


def bound_of(inputs: dict[str, Any], bound: Tensor) -> Tensor:
    return bound if interpreted() else chip_bound(**inputs)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_within_the_bound_and_laid_out_as_the_cpu_op_does(case: Case) -> None:
    inputs, want, bound = prepared(case)
    got = gpu.call(deepseek_fast.fused_conv, **inputs)
    assert got.dtype == inputs["x"].dtype
    assert got.stride() == deepseek_fast.fused_conv(**inputs).stride()
    assert_close(got, want, bound_of(inputs, bound), case.id)


@pytest.mark.parametrize("i", range(len(FORMS)), ids=lambda i: FORMS[i].id)
def test_other_chips(i: int) -> None:
    case, (dtype, arch) = FORMS[i], (("bfloat16", 80), ("float32", 100))[i % 2]
    inputs, want, bound = prepared(replace(case, dtype=dtype, activation="silu", x_layout="NHWC"))
    assert_close(gpu.call(deepseek_fast.fused_conv, **inputs, arch=arch), want, bound_of(inputs, bound), case.id)


@pytest.mark.parametrize("case", SOME_INT8, ids=lambda case: case.id)
def test_int8_has_the_bits_of_the_reference(case: Any) -> None:
    inputs, want, bound = prepared_int8(case)
    got = gpu.call(deepseek_fast.fused_conv_int8, **inputs)
    assert got.dtype == want.dtype
    assert_close(got, want.double(), bound, case.id)


# --- a first layer with its pool --------------------------------------------------------------------------------------


def stem_inputs(x: tuple[int, ...], filters: int, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(sum(x) + filters)
    side, padding = options.pop("side", 7), options.pop("padding", 3)
    weight = torch.randn(filters, x[1], side, side, generator=generator) * 2 / (x[1] * side * side) ** 0.5
    of_x = torch.randn(x, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    bias = torch.randn(filters, generator=generator).bfloat16()
    rest = {"activation": "relu", "max_pool": (3, 2, 1)} | options
    return {"x": of_x, "weight": weight.bfloat16(), "bias": bias, "stride": 2, "padding": padding} | rest


STEMS: dict[str, dict[str, Any]] = {
    "ResNet's": stem_inputs((2, 3, 22, 32), 40),
    "odd rows": stem_inputs((2, 3, 21, 32), 33, activation="none"),
    "ceil_mode": stem_inputs((1, 3, 23, 48), 8, max_pool=(3, 2, 1, True), activation="relu6"),
    "padding a side": stem_inputs(
        (1, 3, 24, 32), 32, padding=(3, 2, 2, 3), max_pool=(3, 2, 1, True), activation="relu6"
    ),
    "3x3": stem_inputs(
        (1, 4, 24, 32), 32, side=3, padding=(2, 1, 1, 3), activation="clip", activation_params=(-0.5, 1.0)
    ),
    "one row": stem_inputs((3, 2, 1, 16), 5),
}  # fmt: skip


def stem_call(inputs: dict[str, Any]) -> Tensor:
    """With a tile that many of are needed; asserts that the kernel of a first layer serves it."""
    with tiles.forced("fused_conv_stem", STEM_TILE), tiles.asked() as asked:
        y = gpu.call(deepseek_fast.fused_conv, **inputs)
    assert any(key.startswith("fused_conv_stem ") for key in asked)
    return y


@pytest.mark.parametrize("name", STEMS)
def test_a_pooled_first_layer(name: str) -> None:
    inputs = STEMS[name]
    bound = bound_of(inputs, ref.bound(**inputs))
    assert_close(stem_call(inputs), ref.fused_conv_ref(**inputs), bound, name)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize(
    "activation, value", [("relu", float("nan")), ("relu6", float("inf")), ("none", float("-inf"))]
)
def test_what_is_no_number_reaches_its_own_windows_alone(activation: str, value: float) -> None:
    inputs = stem_inputs((2, 3, 22, 32), 12, activation=activation)
    inputs["x"][1, 2, 9, 13] = value
    got, want = stem_call(inputs).double(), ref.fused_conv_ref(**inputs)
    assert torch.equal(got.isnan(), want.isnan())
    numbers = want.isfinite()
    assert_equal(got[~numbers & ~want.isnan()], want[~numbers & ~want.isnan()])
    bound = bound_of(inputs, ref.bound(**inputs))[numbers]
    assert_close(got[numbers], want[numbers], bound, activation)


def test_a_first_layer_in_tiles_of_every_chip() -> None:
    inputs = stem_inputs((1, 3, 22, 32), 20)
    want, bound = ref.fused_conv_ref(**inputs), bound_of(inputs, ref.bound(**inputs))
    for arch in gpu.ARCHS:
        assert_close(gpu.call(deepseek_fast.fused_conv, **inputs, arch=arch), want, bound, f"{arch}")


# --- what does not change a result ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FORMS, ids=lambda case: case.id)
def test_neither_layout_nor_the_batch_change_a_bit(case: Case) -> None:
    inputs = replace(case, x=(3, *case.x[1:]), activation="gelu", dtype="bfloat16").inputs(
        torch.Generator().manual_seed(3)
    )
    want = gpu.call(deepseek_fast.fused_conv, **inputs)
    for layout in LAYOUTS:
        x = laid_out(inputs["x"], layout)
        assert_same(gpu.call(deepseek_fast.fused_conv, **inputs | {"x": x}), want, layout)
        assert_same(gpu.call(deepseek_fast.fused_conv, **inputs | {"x": x[1]}), want[1], f"{layout}, unbatched")


def test_x_and_residual_lie_anywhere() -> None:
    inputs, want, bound = prepared(replace(BLOCKS, residual="before", activation="tanh"))
    wide = torch.full((2, 11, 14, 43), 7.0)
    wide[:, 1:-1, 2:-1, 3:] = inputs["x"].permute(0, 2, 3, 1)
    views = {
        "a part of pixels": wide[:, 1:-1, 2:-1, 3:].permute(0, 3, 1, 2),
        "columns before rows": inputs["x"].transpose(2, 3).contiguous().transpose(2, 3),
        "images last": inputs["x"].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    bound = bound_of(inputs, bound)
    for name, x in views.items():
        residual = inputs["residual"].transpose(0, 3).contiguous().transpose(0, 3)
        got = gpu.call(deepseek_fast.fused_conv, **inputs | {"x": x, "residual": residual, "bias": inputs["bias"]})
        assert_close(got, want, bound, name)


# --- pools and norms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernel, stride, padding, ceil_mode, layout",
    [
        (3, 2, 1, False, "NHWC"),
        (2, None, 0, False, "NCHW"),
        ((3, 4), (2, 3), (1, 2), True, "NHWC"),
        pytest.param(7, 1, 3, False, "NCHW", marks=pytest.mark.slow),
    ],
)
def test_pools(kernel: Any, stride: Any, padding: Any, ceil_mode: bool, layout: str) -> None:
    x = laid_out(torch.randn(2, 5, 13, 15), layout)
    options: dict[str, Any] = {"ceil_mode": ceil_mode}
    for dtype in (torch.float32, torch.bfloat16):
        for kind, counts in (("max", True), ("average", True), ("average", False)):
            named = options | {"kind": kind, "count_include_pad": counts}
            got = gpu.call(deepseek_fast.pool2d, x.to(dtype), kernel, stride, padding, **named)
            want = ref.pool2d_ref(x.to(dtype), kernel, stride, padding, **named)
            bound = ref.pool2d_bound(x.to(dtype), kernel, stride, padding, **named)
            assert_close(got, want.double(), bound, f"{kind} {dtype}")
            assert got.stride() == deepseek_fast.pool2d(x.to(dtype), kernel, stride, padding, **named).stride()
    for dtype in (torch.uint8, torch.int8):
        codes = laid_out(torch.randint(-128, 128, x.shape).to(dtype), layout)
        got = gpu.call(deepseek_fast.pool2d, codes, kernel, stride, padding, **options)
        assert_same(got, deepseek_fast.pool2d(codes, kernel, stride, padding, **options), f"{dtype}")


def test_a_pool_has_nan_where_its_window_has() -> None:
    x = torch.randn(1, 3, 8, 9)
    x[0, 1, 3, 4], x[0, 2, 2, 2], x[0, 0] = float("nan"), float("inf"), float("-inf")
    for max_pool in (2, (3, 2, 1)):
        want = F.max_pool2d(x, *(max_pool if isinstance(max_pool, tuple) else (max_pool,)))
        arguments = max_pool if isinstance(max_pool, tuple) else (max_pool,)
        assert_same(gpu.call(deepseek_fast.pool2d, x, *arguments), want, f"{max_pool}")
        identity = torch.eye(3).reshape(3, 3, 1, 1)
        y = gpu.call(deepseek_fast.fused_conv, x[:, 1:2], identity[:1, :1], max_pool=max_pool)
        assert_same(y, want[:, 1:2], f"after a convolution, {max_pool}")


NORMS = [case for case in LRN_CASES if case[1] < 100 and case[0][1] < 1000][::3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "sizes", [pytest.param(case, marks=[pytest.mark.slow] * (case[1] > 20), id=str(case)) for case in NORMS]
)
def test_norms(sizes: Any, layout: str) -> None:
    shape, size = sizes
    x = torch.randn(shape)
    x = laid_out(x, layout) if x.dim() == 4 else x
    for i, (beta, dtype) in enumerate(zip(LRN_BETAS, (torch.float32, torch.bfloat16) * 3, strict=True)):
        options = {"alpha": (1e-4, 0.02, 30.0)[i % 3], "beta": beta, "k": (1.0, 2.0)[i % 2]}
        got = gpu.call(deepseek_fast.local_response_norm, x.to(dtype), size, **options)
        want, bound = ref.lrn_ref(x.to(dtype), size, **options), ref.lrn_bound(x.to(dtype), size, **options)
        assert_close(got, want, bound, f"{options}")
        assert got.stride() == deepseek_fast.local_response_norm(x.to(dtype), size, **options).stride()


# --- gradients and refusals -------------------------------------------------------------------------------------------


def gradients(inputs: dict[str, Any]) -> list[Tensor]:
    given = inputs | {name: inputs[name].detach().requires_grad_() for name in ("x", "weight", "bias")}
    y = deepseek_fast.fused_conv(**given)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return [given[name].grad for name in ("x", "weight", "bias")]


@pytest.mark.skipif(not interpreted(), reason="tensors of the interpreter are on the CPU")
@pytest.mark.parametrize("case", FORMS, ids=lambda case: case.id)
def test_gradients_are_the_cpu_ops(case: Case) -> None:
    inputs = replace(case, activation="silu").inputs(torch.Generator().manual_seed(5))
    want = gradients(inputs)
    with gpu.on_gpu():
        got = gradients(inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


WINDOW = ([2, 2], [1] * 4, [1, 1], 1)
X, WEIGHT = torch.randn(1, 6, 9, 9), torch.randn(8, 6, 3, 3)


@pytest.mark.parametrize(
    "error, sentence, call",
    [
        (
            TypeError, "x must be float32 or bfloat16; got dtype float16",
            lambda: deepseek_fast.fused_conv(X.half(), WEIGHT.half()),
        ),
        (
            ValueError, "x must have channels that groups = 4 divides; got shape (1, 6, 9, 9)",
            lambda: deepseek_fast.fused_conv(X, WEIGHT, groups=4),
        ),
        (
            ValueError, "residual must have shape (1, 8, 7, 7); got shape (1, 8, 9, 9)",
            lambda: deepseek_fast.fused_conv(X, WEIGHT, residual=torch.zeros(1, 8, 9, 9)),
        ),
        (
            ValueError, "y_scale must be finite and above zero; got 0",
            lambda: deepseek_fast.fused_conv_int8(X.byte(), WEIGHT.char(), 0.1, 0, torch.ones(8), 0.0, 0),
        ),
        (ValueError, "size must be from 1 to 2^24; got 0", lambda: deepseek_fast.local_response_norm(X, 0)),
        (ValueError, "padding must be at most half the kernel (3, 3)", lambda: deepseek_fast.pool2d(X, 3, 1, 2)),
    ],
)  # fmt: skip
def test_refusals_are_the_cpu_ops(error: Any, sentence: str, call: Any) -> None:
    def said() -> str:
        with pytest.raises(error) as found:
            call()
        return str(found.value)

    want = said()
    assert sentence in want
    with gpu.on_gpu():
        assert said() == want


def test_packed_weights_are_refused_and_packing_is_not() -> None:
    packed = gpu.call(deepseek_fast.fused_conv_pack, WEIGHT)
    assert_equal(packed, deepseek_fast.fused_conv_pack(WEIGHT))
    with pytest.raises(ValueError, match="use fused_conv with the plain weight"):
        gpu.call(deepseek_fast.fused_conv_packed, X, packed, weight_shape=WEIGHT.shape)


@pytest.mark.parametrize("name", ["planes", "pixels"])
def test_fakes_say_what_the_kernels_give(name: str) -> None:
    x = laid_out(X, "NHWC" if name == "pixels" else "NCHW")
    for call in (
        lambda t: op._OP(t, WEIGHT.to(t.device), None, *WINDOW, "relu", [], None, "before", POOL),
        lambda t: op._POOL_OP(t, [2, 2, 2, 2, 0, 0, 0, 0, 1]),
        lambda t: op._LRN_OP(t, 5),
    ):  # fmt: skip
        fake, real = call(x.to("meta")), gpu.call(call, x)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_every_activation() -> None:
    for activation in ACTIVATIONS:
        case = replace(ACTIVATED, activation=activation, x_layout="NHWC")
        inputs, want, bound = prepared(case)
        assert_close(gpu.call(deepseek_fast.fused_conv, **inputs), want, bound_of(inputs, bound), activation)
