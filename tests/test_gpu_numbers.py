"""What kernels for GPUs share: codes, roundings, products and exp, exhaustively, in the interpreter or on a GPU."""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu import codes as gpu_codes
from deepseek_fast.gpu import launch
from deepseek_fast.gpu.activation import exp_negative
from deepseek_fast.gpu.codes import decode, decode_e4m3, decode_e4m3_f16, decode_e8m0, encode, encode_fp8
from deepseek_fast.gpu.numbers import dot, power_of_two, round_to, widen
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.fp8_cast import ref_formats
from deepseek_fast.kernels.fp8_cast.triton_values import philox
from tests import gpu
from tests.oracle import assert_equal

pytestmark = gpu.gpu
DTYPES = {str(dtype).split("_", 1)[1].removesuffix("_x2"): dtype for dtype in ref_formats.FORMATS}
FORMATS = {name.removesuffix("fn") if name.startswith("e2m1") else name: dtype for name, dtype in DTYPES.items()}
EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
BLOCK = 16384


@triton.jit
def _encode_all(v, x, random, out, n, FORMAT: tl.constexpr, SATURATE: tl.constexpr, DOWN: tl.constexpr,
                HARDWARE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = None if random is None else tl.load(random + i, i < n, 0).to(tl.uint32, bitcast=True)
    code = encode(
        tl.load(v + i, i < n, 0.0), tl.load(x + i, i < n, 0.0), bits, FORMAT, SATURATE, DOWN, HARDWARE
    )  # fmt: skip
    tl.store(out + i, code, i < n)


@triton.jit
def _one(x, out, n, FUNCTION: tl.constexpr, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n, 0)
    if FUNCTION == "decode":
        result = decode(value, FORMAT)
    elif FUNCTION == "decode_e4m3":
        result = decode_e4m3(value)
    elif FUNCTION == "decode_e4m3_f16":
        result = decode_e4m3_f16(value)
    elif FUNCTION == "decode_e8m0":
        result = decode_e8m0(value)
    elif FUNCTION == "encode_fp8":
        if FORMAT == "e5m2":  # noqa: SIM108 - a conditional expression would compile both
            result = encode_fp8(value, 2, 15, 57344.0)
        else:
            result = encode_fp8(value)
    elif FUNCTION == "power_of_two":
        result = power_of_two(value)
    elif FUNCTION == "widen":
        result = widen(value)
    elif FUNCTION == "exp_negative":
        result = exp_negative(value)
    else:
        result = round_to(value, out.dtype.element_ty)
    tl.store(out + i, result, i < n)


@triton.jit
def _dot(a, b, c, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    product = dot(
        tl.load(a + m[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :]),
        tl.load(c + m[:, None] * N + n[None, :]),
    )  # fmt: skip
    tl.store(out + m[:, None] * N + n[None, :], product)


@triton.jit
def _philox(block, out, n, key0, key1, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    words = philox(tl.load(block + i, i < n, 0), key0, key1)
    for w in tl.static_range(4):
        tl.store(out + w * n + i, words[w].to(tl.int64), i < n)


def run(kernel, *args, size: int, **constants) -> None:
    with gpu.on_gpu(), np.errstate(all="ignore"):
        launch.launch(kernel, (triton.cdiv(size, BLOCK),), *args, size, **constants, BLOCK=BLOCK)


def encoded(v: Tensor, x: Tensor | None = None, random: Tensor | None = None, **constants) -> Tensor:
    v, x = v.to(gpu.device()), (v if x is None else x).to(gpu.device())
    out = torch.empty(v.numel(), dtype=torch.uint8, device=gpu.device())
    bits = None if random is None else random.to(torch.int32).to(gpu.device())
    for name, value in (("SATURATE", True), ("DOWN", False), ("HARDWARE", False)):
        constants.setdefault(name, value)
    with gpu.on_gpu(), np.errstate(all="ignore"):
        grid = (triton.cdiv(v.numel(), BLOCK),)
        launch.launch(_encode_all, grid, v, x, bits, out, v.numel(), **constants, BLOCK=BLOCK, enable_fp_fusion=False)
    return out.cpu()


def one(function: str, x: Tensor, dtype: torch.dtype, format: str = "e4m3fn") -> Tensor:
    x = x.to(gpu.device())
    out = torch.empty(x.numel(), dtype=dtype, device=gpu.device())
    run(_one, x, out, size=x.numel(), FUNCTION=function, FORMAT=format)
    return out.cpu()


def from_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def specials() -> Tensor:
    """float32 of every exponent with random mantissas, subnormal numbers, zeros, infinity, NaN; both signs."""
    fields = torch.arange(256, dtype=torch.int64).repeat_interleave(64) << 23
    bits = fields | torch.randint(0, 2**23, fields.shape)
    known = [0, 1, 2, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
    values = from_bits(torch.cat([bits, torch.tensor(known)]))
    return torch.cat([values, -values])


def ties(dtype: torch.dtype) -> Tensor:
    """The format's numbers and midpoints with the float32 to either side, and those beyond the largest; both signs."""
    known = ref_formats.numbers(dtype)
    step = known[-1] - known[-2]
    values = torch.cat([known, (known[1:] + known[:-1]) / 2, known[-1:] + step / 2, known[-1:] + step]).float()
    near = [torch.nextafter(values, torch.tensor(end)) for end in (-math.inf, math.inf)]
    values = torch.cat([values, *near])
    return torch.cat([values, -values])


@EVERY_FORMAT
@pytest.mark.parametrize("saturate", [True, False])
def test_encode_ties_and_every_exponent(format, saturate):
    dtype = FORMATS[format]
    v = torch.cat([ties(dtype), specials()])
    want = ref_formats.encode(v, dtype, saturate=saturate)
    assert_equal(encoded(v, FORMAT=format, SATURATE=saturate), want, format)


@EVERY_FORMAT
def test_encode_takes_the_sign_of_x(format):
    v = torch.tensor([0.0, 1.0, math.nan, math.inf, 1e-30]).repeat(2)
    x = torch.where(torch.arange(10) < 5, v.nan_to_num(2.0, 3.0), -v.nan_to_num(2.0, 3.0))
    v = torch.where(v.isnan(), v, torch.copysign(v, x))
    want = ref_formats.encode(v, FORMATS[format], sign=x.signbit())
    assert_equal(encoded(v, x, FORMAT=format), want, format)


def test_e2m1_with_midpoints_down():
    v = torch.cat([ties(ref_formats.E2M1), specials()])
    want = ref_formats.encode(v, ref_formats.E2M1, ties="down")
    assert_equal(encoded(v, FORMAT="e2m1", DOWN=True), want)


@EVERY_FORMAT
def test_stochastic_encode(format):
    dtype = FORMATS[format]
    v = torch.cat([ties(dtype), specials()])
    bits = torch.randint(0, 2**32, v.shape)
    bits[: v.numel() // 8] = torch.tensor([0, 2**32 - 1, 2**31, 1])[torch.randint(0, 4, (v.numel() // 8,))]
    want = ref_formats.encode(v, dtype, bits=bits)
    assert_equal(encoded(v, random=bits, FORMAT=format), want, format)


@pytest.mark.skipif(interpreted(), reason="the interpreter has no inline assembly")
def test_the_chips_conversion_gives_the_same_codes():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no conversion to e4m3 before 8.9")
    every = torch.arange(-(2**31), 2**31, 4099)
    v = torch.cat([ties(ref_formats.E4M3), specials(), from_bits(every)])
    x = torch.where(torch.rand(v.shape) < 0.5, v, -v)
    x = torch.where(v.isnan(), x, v)  # a number has x's sign; a NaN may have any
    assert_equal(encoded(v, x, FORMAT="e4m3fn", HARDWARE=True), encoded(v, x, FORMAT="e4m3fn"))


@pytest.mark.parametrize("format", ["e4m3fn", "e5m2"])
def test_encode_fp8(format):
    v = torch.cat([ties(FORMATS[format]), specials()])
    assert_equal(one("encode_fp8", v, torch.uint8, format), ref_formats.encode(v, FORMATS[format]), format)


@EVERY_FORMAT
def test_decode_every_code(format):
    codes = torch.arange(16 if format == "e2m1" else 256, dtype=torch.uint8)
    assert_equal(one("decode", codes, torch.float32, format), ref_formats.decode(codes, FORMATS[format]), format)


def test_decode_e4m3_and_e8m0():
    codes = torch.arange(256, dtype=torch.uint8)
    want = ref_formats.decode(codes, ref_formats.E4M3)
    assert_equal(one("decode_e4m3", codes, torch.float32), want)
    largest = torch.where(want.isnan(), torch.copysign(torch.tensor(480.0), 127.5 - codes.float()), want)
    assert_equal(one("decode_e4m3_f16", codes, torch.float16), largest.half())
    powers = torch.tensor([2.0 ** (code - 127) for code in range(255)] + [math.nan])
    assert_equal(one("decode_e8m0", codes, torch.float32), powers)


def test_power_of_two():
    exponents = torch.arange(-126, 128, dtype=torch.int32)
    assert_equal(one("power_of_two", exponents, torch.float32), torch.tensor([2.0**n for n in range(-126, 128)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_round_to(dtype):
    """Every number of 16 bits, the midpoints between them, a float32 to either side."""
    values = specials()
    if dtype != torch.float32:
        known = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        known = known[known.isfinite()].double().sort().values.unique()
        middle = ((known[1:] + known[:-1]) / 2).float()
        near = [torch.nextafter(middle, torch.tensor(end)) for end in (-math.inf, math.inf)]
        values = torch.cat([known.float(), middle, *near, values])
    assert_equal(one("round_to", values, dtype), values.to(dtype), str(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_widen_every_number(dtype):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    got = one("widen", values, torch.float32)
    assert_equal(got, values.float())
    assert torch.equal(got.signbit(), values.view(torch.int16) < 0)  # of NaN too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dot(dtype):
    """Integers up to 64: products and sums exact, of TF32 parts too; then numbers, within the bound of dot."""
    M, N, K = 32, 32, 64
    a, b = (torch.randint(-64, 65, shape).to(dtype) for shape in ((M, K), (K, N)))
    c = torch.randint(-64, 65, (M, N)).float()
    assert_equal(product(a, b, c), a.float() @ b.float() + c)
    a, b = (torch.randn(shape).to(dtype) for shape in ((M, K), (K, N)))
    error = (product(a, b, c).double() - (a.double() @ b.double() + c.double())).abs()
    # K + 1 sums, each rounded (2^-23: a tensor core may cut), and 2^-21 of a product's size for three TF32 products.
    bound = ((K + 1) * 2.0**-23 + 2.0**-21) * (a.double().abs() @ b.double().abs() + c.double().abs())
    assert (error <= bound).all()


def product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    a, b, c = (value.to(gpu.device()) for value in (a, b, c))
    out = torch.empty_like(c)
    with gpu.on_gpu():
        launch.launch(_dot, (1,), a, b, c, out, M=c.shape[0], N=c.shape[1], K=a.shape[1])
    return out.cpu()


def test_exp_negative():
    """Within 2 ULP of exp, 0 below -87 to within its value there; every exponent, and next to multiples of ln 2."""
    multiples = -torch.arange(1, 126).double() * math.log(2) / 2
    near = torch.cat([multiples.float(), torch.nextafter(multiples.float(), torch.tensor(0.0))])
    x = torch.cat([-torch.rand(40_000) * 87, -torch.rand(2000) * 2.0 ** -torch.arange(2000).remainder(126), near])
    x = torch.cat([x, torch.tensor([0.0, -0.0, -87.0])])
    want = x.double().exp()
    ulp = 2.0 ** (torch.frexp(want)[1].double() - 24)
    error = ((one("exp_negative", x, torch.float32).double() - want).abs() / ulp).max()
    assert error <= 2, float(error)
    below = torch.tensor([-87.5, -1000.0, -math.inf])
    assert (one("exp_negative", below, torch.float32) <= math.exp(-87) * 1.001).all()


def test_philox_has_the_references_words():
    blocks = torch.cat([torch.arange(100), torch.randint(0, 2**62, (100,)), torch.tensor([0, 2**32 - 1, 2**32])])
    key = (0x9ABC5678, 0x1234)
    got = torch.empty(4, blocks.numel(), dtype=torch.int64, device=gpu.device())
    with gpu.on_gpu(), np.errstate(all="ignore"):
        signed = [value - ((value & 0x80000000) << 1) for value in key]
        launch.launch(_philox, (1,), blocks.to(gpu.device()), got, blocks.numel(), *signed, BLOCK=256)
    zero = torch.zeros_like(blocks)
    want = ref_formats.philox((blocks & 0xFFFFFFFF, blocks >> 32, zero, zero), key)
    assert_equal(got.cpu(), torch.stack(want))


def test_the_formats_constants():
    for format, dtype in FORMATS.items():
        form = ref_formats.FORMATS[dtype]
        mantissa, bias, largest, _ = gpu_codes.FORMATS[format]
        assert (mantissa, bias, largest) == (form.mantissa_bits, form.bias, form.largest)
