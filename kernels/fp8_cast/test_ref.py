"""The references themselves: formats against ml_dtypes and torch, Philox's vectors, and what follows from the meaning.

test_ref_modes.py holds the modes against the published formulas.
"""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast.ref import (
    fp8_amax_ref,
    fp8_cast_ref,
    fp8_cast_transposed_ref,
    fp8_dequantize_ref,
    int8_cast_ref,
    philox,
    round_once,
)
from deepseek_fast.kernels.fp8_cast.ref_formats import (
    E2M1,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FORMATS,
    decode,
    encode,
    numbers,
    unpack,
)
from deepseek_fast.kernels.fp8_cast.ref_modes import MODES
from deepseek_fast.kernels.fp8_matmul.ref import cast_rows, fp8_quantize_weight_ref
from tests.oracle import assert_equal

ML_DTYPES = {
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    E2M1: ml_dtypes.float4_e2m1fn,
}
EVERY_FORMAT = pytest.mark.parametrize("dtype", FORMATS, ids=str)
FP8_FORMATS = pytest.mark.parametrize("dtype", [dtype for dtype in FORMATS if dtype != E2M1], ids=str)
WORDS = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)  # digits of pi
ONES = (0xFFFFFFFF,) * 4


def stratified(count: int = 400) -> Tensor:
    """float32 of every exponent, both signs, and every float32 next to a power of two."""
    fields = torch.arange(255, dtype=torch.int32).repeat_interleave(count) << 23
    values = (fields | torch.randint(0, 2**23, fields.shape, dtype=torch.int32)).view(torch.float32)
    powers = (torch.arange(1, 255, dtype=torch.int32) << 23).view(torch.float32)
    near = [torch.nextafter(powers, torch.tensor(end)) for end in (0.0, math.inf)]
    values = torch.cat([values, powers, *near, torch.tensor([0.0, 2.0**-149, 2.0**-127])])
    return torch.cat([values, -values])


def midpoints(dtype: torch.dtype) -> Tensor:
    """Ties between neighbours and one float32 to either side, both signs; the one above the largest too."""
    known = numbers(dtype)
    step = known[-1] - known[-2]
    ties = torch.cat([(known[1:] + known[:-1]) / 2, known[-1:] + step / 2]).float()
    ties = torch.cat([ties, *(torch.nextafter(ties, torch.tensor(end)) for end in (0.0, math.inf))])
    return torch.cat([ties, -ties])


def raw(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)


@EVERY_FORMAT
def test_formats_round_as_ml_dtypes_rounds(dtype: torch.dtype) -> None:
    x = torch.cat([stratified(), midpoints(dtype), decode(torch.arange(FORMATS[dtype].sign_bit), dtype)])
    x = x[x.isfinite()]
    want = torch.from_numpy(x.numpy().astype(ML_DTYPES[dtype]).view(np.uint8))
    codes = encode(x, dtype, saturate=False)
    wrong = codes != want
    if dtype == E2M1:  # ml_dtypes saturates as we do
        assert not wrong.any()
    assert not (wrong & (x.abs() <= FORMATS[dtype].largest)).any()
    assert not wrong.any(), (x[wrong][:8], codes[wrong][:8], want[wrong][:8])
    saturated = encode(x, dtype)
    assert_equal(saturated, torch.where(decode(codes, dtype).isfinite(), codes, saturated), "in range")
    assert (decode(saturated, dtype).abs()[x.abs() > FORMATS[dtype].largest] == FORMATS[dtype].largest).all()


@FP8_FORMATS
def test_formats_round_as_torch_rounds_in_range(dtype: torch.dtype) -> None:
    x = torch.cat([stratified(), midpoints(dtype)])
    x = x[x.abs() <= FORMATS[dtype].largest]
    assert_equal(encode(x, dtype), raw(x.to(dtype)))


@FP8_FORMATS
def test_formats_are_those_of_finfo(dtype: torch.dtype) -> None:
    form, info = FORMATS[dtype], torch.finfo(dtype)
    assert (form.largest, form.smallest_normal) == (info.max, info.tiny)
    assert 2.0**-form.mantissa_bits == ml_dtypes.finfo(ML_DTYPES[dtype]).eps
    codes = torch.arange(256, dtype=torch.uint8)
    assert_equal(decode(codes, dtype), codes.view(dtype).float())


@EVERY_FORMAT
def test_every_number_encodes_to_its_code(dtype: torch.dtype) -> None:
    form = FORMATS[dtype]
    codes = torch.arange(2 * form.sign_bit, dtype=torch.uint8)
    values = decode(codes, dtype)
    known = np.arange(2 * form.sign_bit, dtype=np.uint8).view(ML_DTYPES[dtype]).astype(np.float32)
    assert np.array_equal(values.numpy(), known, equal_nan=True)
    again = encode(values, dtype, saturate=False)
    assert_equal(again[values.isfinite()], codes[values.isfinite()])
    assert decode(again, dtype)[values.isnan()].isnan().all()


def test_what_is_no_number_of_the_format() -> None:
    """(v, code that saturates, code that does not) of each format."""
    inf, nan = math.inf, math.nan
    for dtype, rows in {
        E4M3: [(464.0, 0x7E, 0x7E), (464.1, 0x7E, 0x7F), (-1e9, 0xFE, 0xFF), (-inf, 0xFE, 0xFF), (nan, 0x7F, 0x7F)],
        E5M2: [(61439.0, 0x7B, 0x7B), (61440.0, 0x7B, 0x7C), (-inf, 0xFB, 0xFC), (nan, 0x7F, 0x7F)],
        E4M3FNUZ: [(247.9, 0x7F, 0x7F), (248.0, 0x7F, 0x80), (-inf, 0xFF, 0x80), (nan, 0x80, 0x80), (-0.0, 0, 0)],
        E5M2FNUZ: [(61440.0, 0x7F, 0x80), (-inf, 0xFF, 0x80), (nan, 0x80, 0x80), (-1e-9, 0, 0)],
        E2M1: [(7.0, 7, 7), (-inf, 0xF, 0xF), (nan, 7, 7), (-0.1, 8, 8), (5.0, 6, 6)],
    }.items():
        v = torch.tensor([row[0] for row in rows])
        for saturate, column in ((True, 1), (False, 2)):
            want = torch.tensor([row[column] for row in rows], dtype=torch.uint8)
            assert_equal(encode(v, dtype, saturate=saturate), want, f"{dtype} {saturate}")
    negative = torch.tensor([0xFFC00001 - 2**32], dtype=torch.int32).view(torch.float32)
    assert [int(encode(negative, dtype)) for dtype in FORMATS] == [0xFF, 0xFF, 0x80, 0x80, 0xF]


def test_philox_s_published_vectors() -> None:
    """Random123's tests/kat_vectors, philox4x32 of 10 rounds."""
    for counter, key, want in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (ONES, ONES[:2], (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (WORDS, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        words = philox(tuple(torch.tensor([word]) for word in counter), key)
        assert tuple(int(word) for word in words) == want


def test_the_quantizers_of_the_rooms_are_this_one() -> None:
    x = torch.randn(150, 300).ldexp(torch.randint(-20, 20, (150, 1)))
    for dtype in (E4M3, E5M2):
        for block in ((128, 128), (1, 32), (-1, -1)):
            for got, want in zip(
                fp8_cast_ref(x, block=block, dtype=dtype),
                fp8_quantize_weight_ref(x, block=block, dtype=dtype),
                strict=True,
            ):
                assert_equal(got, want)
    for got, want in zip(fp8_cast_ref(x), cast_rows(x), strict=True):
        assert_equal(got, want)
    q, scale = int8_cast_ref(x)
    assert (q.dtype, scale.shape) == (torch.int8, (150, 1))
    assert ((q.float() * scale - x).abs() <= scale * 0.5001).all()


@pytest.mark.parametrize("mode", MODES)
def test_nan_and_inf(mode: str) -> None:
    x = torch.ones(4, 32)
    x[0, 3], x[1, 4], x[2] = math.nan, -math.inf, math.nan
    for kind in ("f32", "ue8m0"):
        if kind == "f32" and mode.startswith("torchao_"):
            continue
        y = fp8_dequantize_ref(*fp8_cast_ref(x, block=(1, 32), mode=mode, scale=kind), block=(1, 32))
        assert y[0, 3].isnan()
        assert y[2].isnan().all()
        assert (y[3] - 1).abs().max() < 0.07
        others = torch.cat([y[0, :3], y[0, 4:]])
        if mode == "deepgemm" or mode.startswith("torchao"):
            assert (kind, mode) == ("ue8m0", "deepgemm") or others.isnan().all()
        else:
            assert ((others - 1).abs() < 0.07).all()
        assert y[1, 0].isnan() or y[1, 0] in (0, 1), mode


@EVERY_FORMAT
def test_stochastic_rounding_takes_a_neighbour_and_has_no_bias(dtype: torch.dtype) -> None:
    known = numbers(dtype)
    picks = torch.linspace(0, known.numel() - 2, 7).long()
    for low, high in zip(known[picks].tolist(), known[picks + 1].tolist(), strict=True):
        for share in (0.0, 0.125, 0.5, 0.9375):
            v = low + share * (high - low)
            x = torch.full((400, 50), v)
            got = decode(
                unpack(fp8_cast_ref(x, block=None, dtype=dtype, mode="v3", rounding="stochastic", seed=7)[0]), dtype
            )
            assert ((got == low) | (got == high)).all()
            up = (got == high).double().mean().item()
            assert abs(up - share) <= 5 * math.sqrt(share * (1 - share) / x.numel()), (low, high, share, up)


def test_stochastic_rounding_depends_on_seed_and_place_alone() -> None:
    x = torch.rand(6, 40) * 400
    first, again, other = (fp8_cast_ref(x, rounding="stochastic", seed=seed)[0] for seed in (3, 3, 3 + 2**40))
    assert_equal(first, again)
    assert (raw(first) != raw(other)).any()
    assert_equal(fp8_cast_ref(x[:3], rounding="stochastic", seed=3)[0], first[:3].contiguous())


def test_nearest_rounding_has_no_bias() -> None:
    """Half of the codes are below x: TileKernels' measure, tile_kernels/testing/numeric.py."""
    x = torch.randn(256, 1024)
    for mode in MODES:
        y = fp8_dequantize_ref(*fp8_cast_ref(x, mode=mode, scale="ue8m0"))
        moved = y != x
        assert abs((y < x)[moved].double().mean().item() - 0.5) < 10 / moved.sum().item() ** 0.5, mode


def test_dequantize_rounds_once() -> None:
    """Products whose float32 is a tie of the half formats, and is not the product."""
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        value = torch.tensor([1 + 2.0**-bits + sign * 2.0**-27 for sign in (-1, 1)], dtype=torch.float64)
        assert_equal(round_once(value, dtype).double(), torch.tensor([1, 1 + 2.0 ** (1 - bits)], dtype=torch.float64))
    exact = torch.cat([stratified(), torch.tensor([math.inf, -math.inf, math.nan, -0.0])])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert_equal(round_once(exact.double(), dtype), exact.to(dtype))


def test_layouts() -> None:
    x = torch.randn(5, 300)
    f32, e8m0 = (fp8_cast_ref(x, scale=kind)[1] for kind in ("f32", "ue8m0"))
    for kind, row, step in (("f32", f32, 8), ("ue8m0", e8m0, 16)):
        for layout, strides in (("row", (3, 1)), ("column", (1, 5)), ("tma", (1, step))):
            scale = fp8_cast_ref(x, scale=kind, out_layout=layout)[1]
            assert scale.stride() == strides
            assert_equal(scale.contiguous(), row)
    packed = fp8_cast_ref(x, scale="ue8m0", out_layout="packed")[1]
    assert (packed.dtype, tuple(packed.shape), packed.stride()) == (torch.int32, (5, 1), (1, 8))
    for j in range(4):
        byte = packed[:, 0] >> 8 * j & 0xFF
        assert_equal(byte.to(torch.uint8), raw(e8m0)[:, j].contiguous() if j < 3 else torch.zeros(5, dtype=torch.uint8))


def test_the_transposed_pair_and_amax() -> None:
    x = torch.randn(70, 130)
    codes, scale, codes_t, scale_t = fp8_cast_transposed_ref(x, scale="ue8m0")
    for got, want in zip((codes, scale), fp8_cast_ref(x, scale="ue8m0"), strict=True):
        assert_equal(got, want)
    for got, want in zip((codes_t, scale_t), fp8_cast_ref(x.T.contiguous(), scale="ue8m0"), strict=True):
        assert_equal(got, want)
    x[4, 5] = math.nan
    amax = fp8_amax_ref(x, block=(3, 7))
    assert amax[1, 0].isnan() and amax.isnan().sum() == 1
    assert amax[0, 18] == x[:3, 126:].abs().max()


def test_subnormals_count_where_the_caller_flushes_them() -> None:
    x = torch.tensor([[2.0**-127, 3 * 2.0**-140, 0.0]])
    want = fp8_cast_ref(x, mode="te"), fp8_amax_ref(x), fp8_cast_ref(x, mode="torchao", scale="ue8m0")
    assert torch.set_flush_denormal(True)
    try:
        got = fp8_cast_ref(x, mode="te"), fp8_amax_ref(x), fp8_cast_ref(x, mode="torchao", scale="ue8m0")
        assert torch.tensor(2.0**-127).mul(1.0).item() == 0, "the caller flushes still"
    finally:
        torch.set_flush_denormal(False)
    assert_equal(got[1], want[1])
    for one, other in zip((*got[0], *got[2]), (*want[0], *want[2]), strict=True):
        assert_equal(one, other)
    assert want[2][1].dtype == E8M0
