"""fused_conv and pool2d: every case on every level through every door; what does not change a result; its layout."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast._conv import ACTIVATIONS
from deepseek_fast._load import native
from deepseek_fast.kernels.fused_conv.cases import (
    ACTIVATED,
    CASES,
    DEPTHWISE,
    INT8_CASES,
    LAYOUTS,
    POOLED,
    POOLS,
    STEM,
    Case,
    laid_out,
)
from deepseek_fast.kernels.fused_conv.ref import _A_T, _B_T, _G, U, bound, fused_conv_ref, pool2d_bound, pool2d_ref
from tests.conv_doors import CONV_DOORS, assert_close, assert_same, call, prepared, prepared_int8
from tests.oracle import assert_equal

HAS_INT8 = any("u8" in name for _, name in native().variants("fused_conv"))
GROUPED = Case((2, 16, 9, 11), 24, (3, 3), padding=1, groups=4)
ONE_A_PATH = (ACTIVATED, STEM, DEPTHWISE, GROUPED, POOLED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_within_the_bound_on_every_level(case: Case, isa: str) -> None:
    inputs, want, bound = prepared(case)
    got = call("fused_conv", "torch", inputs)
    assert got.dtype == inputs["x"].dtype
    assert_close(got, want, bound, isa)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_door_gives_the_same_bits(case: Case) -> None:
    inputs = prepared(case)[0]
    want = call("fused_conv", "torch", inputs)
    for door in CONV_DOORS[1:]:
        got = call("fused_conv", door, inputs)
        assert_same(got, want, door)
        if door == "packed" or (case.weight_layout == "NCHW" and want.numel()):
            assert got.stride() == want.stride()


@pytest.mark.skipif(not HAS_INT8, reason="this build has no int8 kernels of fused_conv")
def test_every_door_gives_the_same_bytes() -> None:
    for case in INT8_CASES:
        inputs = prepared_int8(case)[0]
        want = call("fused_conv_int8", "torch", inputs)
        for door in CONV_DOORS[1:]:
            got = call("fused_conv_int8", door, inputs)
            assert_same(got, want, f"{case.id}: {door}")
            if door == "packed" or (case.case.weight_layout == "NCHW" and want.numel()):
                assert got.stride() == want.stride(), f"{case.id}: {door}"


@pytest.mark.parametrize("case", INT8_CASES if HAS_INT8 else (), ids=lambda case: case.id)
def test_int8_has_the_bits_of_the_reference(case: Any, isa: str) -> None:
    inputs, want, bound = prepared_int8(case)
    got = call("fused_conv_int8", "torch", inputs)
    assert got.dtype == want.dtype
    assert_close(got, want.double(), bound, isa)


@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.id)
def test_the_result_lies_as_torch_lays_it(case: Case) -> None:
    inputs = prepared(case)[0]
    x, weight = inputs["x"], inputs["weight"]
    if x.dim() != 4 or x.numel() == 0 or case.padding == "same":  # of one dimension torch's is always contiguous
        return
    window = [inputs[name] for name in ("stride", "padding", "dilation", "groups")]
    if isinstance(case.padding, tuple) and len(case.padding) != 2:
        window[1] = 0  # torch has no such padding, but it is of no consequence here
    plain = F.conv2d(x, weight, None, *window)
    got = deepseek_fast.fused_conv(x, weight, None, *window)
    assert got.stride() == plain.stride()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ONE_A_PATH, ids=lambda case: case.id)
def test_neither_layout_nor_threads_nor_the_batch_change_a_bit(case: Case, dtype: str, num_threads: Any) -> None:
    inputs = Case(**{**vars(case), "dtype": dtype, "x": (3, *case.x[1:]), "activation": "gelu"}).inputs(
        torch.Generator().manual_seed(3)
    )
    num_threads(1)
    want = deepseek_fast.fused_conv(**inputs)
    for threads in (2, 5):
        num_threads(threads)
        assert_equal(deepseek_fast.fused_conv(**inputs), want, f"{threads} threads")
    for layout in LAYOUTS:
        x = laid_out(inputs["x"], layout)
        assert_same(deepseek_fast.fused_conv(**inputs | {"x": x}), want, layout)
        single = torch.cat([deepseek_fast.fused_conv(**inputs | {"x": image[None]}) for image in x])
        assert_same(single, want, f"{layout}, image by image")
        assert_same(deepseek_fast.fused_conv(**inputs | {"x": x[1]}), want[1], f"{layout}, unbatched")


def odd_views(x: Tensor) -> dict[str, Tensor]:
    """The same values in memory that is none of the two orders, or one with gaps."""
    N, C, H, W = x.shape
    planes, pixels = torch.full((N, C + 2, H + 3, W + 1), 7.0), torch.full((N, H + 1, W + 2, C + 3), 7.0)
    planes, pixels = planes.to(x.dtype), pixels.to(x.dtype)
    planes[:, 1:-1, 2:-1, :-1] = x
    pixels[:, 1:, 1:-1, 3:] = x.permute(0, 2, 3, 1)
    return {
        "a part of planes": planes[:, 1:-1, 2:-1, :-1],
        "a part of pixels": pixels[:, 1:, 1:-1, 3:].permute(0, 3, 1, 2),
        "columns before rows": x.transpose(2, 3).contiguous().transpose(2, 3),
        "images last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "channels before images": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other value": torch.stack([x, x], -1).flatten(-2)[..., ::2],
    }


@pytest.mark.parametrize("door", CONV_DOORS)
@pytest.mark.parametrize("case", ONE_A_PATH, ids=lambda case: case.id)
def test_strides_of_x_the_weight_and_the_residual(case: Case, door: str) -> None:
    inputs = Case(**{**vars(case), "residual": "before", "x": (2, *case.x[1:])}).inputs(
        torch.Generator().manual_seed(5)
    )
    want = deepseek_fast.fused_conv(**inputs)
    for name in ("x", "residual", "weight"):
        for what, view in odd_views(inputs[name]).items():
            assert torch.equal(view, inputs[name])
            assert_same(call("fused_conv", door, inputs | {name: view}), want, f"{name}: {what}")


def test_images_repeated_by_a_stride_of_zero() -> None:
    inputs = ACTIVATED.inputs(torch.Generator().manual_seed(5))
    repeated = inputs["x"][:1].expand(3, -1, -1, -1)
    assert_same(
        deepseek_fast.fused_conv(**inputs | {"x": repeated}),
        deepseek_fast.fused_conv(**inputs | {"x": repeated.contiguous()}),
        "expanded",
    )


def drawn(choose: random.Random) -> Case | None:
    """Any call of two dimensions with sizes around the vectors and tiles; None where nothing comes out."""
    groups = choose.choice([1, 1, 1, 2, 3, 4, 5, 8, 16, 33])
    C, F = (
        groups * choose.choice([1, 2, 3, 4, 5, 8, 9, 16, 20, 33]),
        groups * choose.choice([1, 2, 4, 7, 9, 16, 17, 40]),
    )
    if choose.random() < 0.25:
        C = F = groups = choose.choice([2, 7, 16, 17, 31, 33, 48, 64, 70])
    kernel, stride, dilation = (
        tuple(choose.choices(sizes, k=2)) for sizes in ((1, 2, 3, 5, 7), (1, 1, 2, 3), (1, 1, 2))
    )
    winograd = groups == 1 and choose.random() < 0.3
    if winograd:
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    padding = tuple(choose.choices((0, 1, 2, 3, 5), k=4))
    H, W = choose.choice([1, 2, 3, 5, 8, 13, 17]), choose.choice([1, 2, 3, 7, 8, 9, 15, 16, 17, 23, 33, 40])
    names = (choose.choice(ACTIVATIONS), choose.random() < 0.5, choose.choice(["none", "before", "after"]))
    layouts = choose.choices(LAYOUTS, k=3)
    dtype = "float32" if winograd else choose.choice(["float32", "bfloat16"])
    x = (choose.choice([1, 2, 3]), C, H, W)
    algorithm = "winograd" if winograd else "direct"
    case = Case(x, F, kernel, stride, padding, dilation, groups, dtype, *names, None, *layouts, algorithm)
    P, Q = case.conv_shape[-2:]
    if P < 1 or Q < 1:
        return None
    size, step = tuple(choose.choices((1, 2, 3, 5), k=2)), tuple(choose.choices((1, 2, 3, 4), k=2))
    sides = tuple(choose.randint(0, size[i % 2] // 2) for i in range(4))
    if choose.random() < 0.6 or P + sides[0] + sides[2] < size[0] or Q + sides[1] + sides[3] < size[1]:
        return case
    return replace(case, max_pool=(size, step, sides, choose.random() < 0.5))


@pytest.mark.slow
def test_any_call_is_within_the_bound(isa: str, num_threads: Any, seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(500):
        case = drawn(choose)
        if case is None:
            continue
        num_threads(choose.choice([1, 2, 4]))
        inputs = case.inputs(torch.Generator().manual_seed(choose.getrandbits(30)))
        assert_close(deepseek_fast.fused_conv(**inputs), fused_conv_ref(**inputs), bound(**inputs), f"{case}")


# --- pool2d -----------------------------------------------------------------------------------------------------------

POOL_OPTIONS = [{"kind": "max"}, {"kind": "average"}, {"kind": "average", "count_include_pad": False}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", POOL_OPTIONS, ids=str)
@pytest.mark.parametrize("window", POOLS, ids=str)
def test_pool2d(window: Any, options: dict[str, Any], dtype: torch.dtype, isa: str) -> None:
    kernel, stride, padding, ceil_mode = (
        (*window, *(None, 0, False)[len(window) - 1 :]) if isinstance(window, tuple) else (window, None, 0, False)
    )
    for shape in ((2, 21, 13, 15), (1, 1, 13, 15), (2, 70, 13, 14), (5, 13, 13), (0, 3, 13, 13)):
        x = torch.randn(shape).to(dtype)
        arguments = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode} | options
        want, bound = pool2d_ref(x, **arguments).double(), pool2d_bound(x, **arguments)
        for layout in LAYOUTS:
            given = {"x": laid_out(x, layout if len(shape) == 4 else f"{layout} unbatched")} | arguments
            for door in ("torch", "numpy"):
                got = call("pool2d", door, given)
                assert got.dtype == dtype
                assert_close(got, want, bound, f"{shape} {layout} {door}")


def test_pool2d_takes_torch_s_place(isa: str) -> None:
    x = torch.randn(2, 19, 12, 17)
    for layout in LAYOUTS:
        given = laid_out(x, layout)
        want = F.max_pool2d(given, 3, 2, 1)
        assert_equal(deepseek_fast.pool2d(given, 3, 2, 1).contiguous(), want.contiguous(), layout)
        assert deepseek_fast.pool2d(given, 3, 2, 1).stride() == want.stride()
        torch.testing.assert_close(
            deepseek_fast.pool2d(given, 2, kind="average"), F.avg_pool2d(given, 2), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pool2d_of_odd_strides(layout: str) -> None:
    x = torch.randn(2, 9, 8, 7)
    want = deepseek_fast.pool2d(x, 3, 2, 1)
    for what, view in odd_views(x).items():
        for door in ("torch", "numpy"):
            assert_same(call("pool2d", door, {"x": view, "kernel": 3, "stride": 2, "padding": 1}), want, what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pool_keeps_nan_and_infinity(dtype: torch.dtype, isa: str) -> None:
    """A NaN in a window is its result; what lies outside x is less than everything."""
    x = torch.full((1, 20, 7, 9), -torch.inf).to(dtype)
    x[0, 3, 2, 2] = torch.nan
    x[0, 4, 0, 0] = torch.inf
    x[0, 5] = torch.nan
    x[0, 6, 6, 8] = -torch.nan
    want = F.max_pool2d(x, 3, 2, 1)
    assert_equal(deepseek_fast.pool2d(x, 3, 2, 1), want, isa)
    identity = torch.eye(20).reshape(20, 20, 1, 1).to(dtype)
    clean = torch.nan_to_num(x, nan=3.0, posinf=9.0, neginf=-9.0)
    fused = deepseek_fast.fused_conv(clean, identity, max_pool=(3, 2, 1))
    assert_equal(fused, F.max_pool2d(clean, 3, 2, 1), isa)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ONE_A_PATH, ids=lambda case: case.id)
def test_integers_are_exact(case: Case, isa: str) -> None:
    """Sums below 2^24 of small integers have no rounding on any path."""
    for dtype in ("float32", "bfloat16"):
        inputs = Case(**{**vars(case), "dtype": dtype, "activation": "none", "max_pool": None}).inputs(
            torch.Generator().manual_seed(9)
        )
        for name in ("x", "weight", "bias"):
            inputs[name] = torch.randint(-8, 9, inputs[name].shape).to(inputs["x"].dtype)
        want = fused_conv_ref(**inputs).to(inputs["x"].dtype)
        assert_same(deepseek_fast.fused_conv(**inputs), want, f"{dtype} on {isa}")


def test_the_typical_error_grows_as_the_root_of_the_taps(isa: str) -> None:
    """The bound allows K u; independent roundings give sqrt(K) u. A kernel that loses bits somewhere shows here."""
    for C in (16, 128, 512):
        x, weight = torch.randn(1, C, 9, 9), torch.randn(48, C, 3, 3)
        error = deepseek_fast.fused_conv(x, weight).double() - fused_conv_ref(x, weight)
        share = error / fused_conv_ref(x.abs(), weight.abs()) / (U * (9 * C) ** 0.5)
        assert share.square().mean().sqrt() < 0.5, C


@pytest.mark.parametrize("case", ONE_A_PATH, ids=lambda case: case.id)
def test_nan_and_infinity_reach_the_windows_that_hold_them(case: Case, isa: str) -> None:
    for dtype in ("float32", "bfloat16"):
        inputs = Case(**{**vars(case), "dtype": dtype, "activation": "relu", "bias": False}).inputs(
            torch.Generator().manual_seed(2)
        )
        inputs["x"][0, 1, 2, 3] = torch.nan
        inputs["x"][0, 2, 4, 5] = torch.inf
        want = fused_conv_ref(**inputs)
        got = deepseek_fast.fused_conv(**inputs)
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got == torch.inf, want == torch.inf)


@pytest.mark.parametrize("activation", ["relu", "relu6", "clip", "leaky_relu", "hardsigmoid", "none"])
def test_an_activation_keeps_nan(activation: str, isa: str) -> None:
    params = {"clip": (0.0, 1.0), "leaky_relu": (0.1,)}.get(activation, ())
    x = torch.full((1, 3, 2, 2), torch.nan)
    y = deepseek_fast.fused_conv(x, torch.ones(5, 3, 1, 1), activation=activation, activation_params=params)
    assert y.isnan().all()


def test_a_subnormal_bias_stays(isa: str) -> None:
    """Two vectors of bf16 side by side, and one alone: the CPU's conversion flushes what no product has been."""
    for filters in (64, 48, 6):  # none of them zero
        bias = torch.linspace(-3e-38, 3e-38, filters).bfloat16()
        x, weight = torch.zeros(1, 8, 3, 15, dtype=torch.bfloat16), torch.zeros(filters, 8, 1, 1, dtype=torch.bfloat16)
        got = deepseek_fast.fused_conv(x.to(memory_format=torch.channels_last), weight, bias)
        assert_equal(got.contiguous(), bias[None, :, None, None].expand_as(got).contiguous())


def test_the_matrices_of_winograd_s_bound_are_those_of_the_algorithm() -> None:
    x, weight = torch.randn(6, 6).double(), torch.randn(3, 3).double()
    b_t, g, a_t = (torch.tensor(m).double() for m in (_B_T, _G, _A_T))
    got = a_t @ ((b_t @ x @ b_t.T) * (g @ weight @ g.T / 24**2)) @ a_t.T
    torch.testing.assert_close(got, F.conv2d(x[None, None], weight[None, None])[0, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("C", [16, 64, 512])
@pytest.mark.parametrize("after_relu", [False, True])
def test_winograd_s_typical_error_is_at_most_six_times_that_of_direct_sums(C: int, after_relu: bool, isa: str) -> None:
    """Which onnx/_compare.py counts as 36 times the roundings; it is the most where zeros are many and channels few."""
    x, weight = torch.randn(2, C, 28, 28), torch.randn(128, C, 3, 3) * (2 / (9 * C)) ** 0.5
    x = x.relu() if after_relu else x
    want = fused_conv_ref(x, weight, padding=1)
    direct, winograd = (
        deepseek_fast.fused_conv(x, weight, padding=1, algorithm=name).double() - want
        for name in ("direct", "winograd")
    )
    assert winograd.square().mean().sqrt() <= 6 * direct.square().mean().sqrt()
    assert winograd.abs().max() <= 3e-5 * want.abs().max()


def test_winograd_s_bits_depend_neither_on_threads_nor_on_the_layout(num_threads: Any) -> None:
    for pool in (None, (3, 2, 1), (2, 3, 0, True)):
        case = Case((2, 20, 30, 22), 40, (3, 3), padding=1, max_pool=pool, algorithm="winograd", residual="after")
        inputs = case.inputs(torch.Generator().manual_seed(3))
        num_threads(1)
        want = deepseek_fast.fused_conv(**inputs)
        for threads in (1, 2, 3, 7):
            num_threads(threads)
            for layout in LAYOUTS:
                got = deepseek_fast.fused_conv(**inputs | {"x": laid_out(inputs["x"], layout)})
                assert_same(got, want, f"{threads} threads, {layout}")


def test_it_takes_the_place_of_a_network_s_layers() -> None:
    conv = torch.nn.Conv2d(3, 20, 7, 2, 3)
    norm: Any = torch.nn.BatchNorm2d(20).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 33, 31)
    layer = deepseek_fast.nn.FusedConv2d.from_torch(conv, norm, activation="relu", max_pool=(3, 2, 1))
    with torch.no_grad():
        want = F.max_pool2d(F.relu(norm(conv(x))), 3, 2, 1)
        torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)
