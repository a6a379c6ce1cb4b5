"""The formats of fp8_cast: which numbers there are, how a float32 rounds to one of them, and the random bits.

Nothing here uses torch's own conversions to float8, whose treatment of what is too large differs by version: a number
is found in the sorted list of the format's numbers, by its exact float64 distance to the midpoints between neighbours.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E4M3FNUZ, E5M2FNUZ = torch.float8_e4m3fnuz, torch.float8_e5m2fnuz
E2M1, E8M0 = torch.float4_e2m1fn_x2, torch.float8_e8m0fnu
MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Format:
    """How the bits of a code are read."""

    mantissa_bits: int
    bias: int
    largest: float
    sign_bit: int  # which bit of a code is its sign
    nan: int  # the code of a NaN, without sign; e2m1 has none and takes its largest number
    overflow: int  # the code, without sign, of what rounds above `largest` where it does not saturate
    fnuz: bool = False  # one zero and one NaN, both without sign

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def unit(self) -> float:
        """Distance between neighbours below smallest_normal."""
        return self.smallest_normal / 2**self.mantissa_bits


FORMATS = {
    E4M3: Format(3, 7, 448.0, 0x80, 0x7F, 0x7F),
    E5M2: Format(2, 15, 57344.0, 0x80, 0x7F, 0x7C),
    E4M3FNUZ: Format(3, 8, 240.0, 0x80, 0x80, 0x80, fnuz=True),
    E5M2FNUZ: Format(2, 16, 57344.0, 0x80, 0x80, 0x80, fnuz=True),
    E2M1: Format(1, 1, 6.0, 0x8, 0x7, 0x7),
}


def number(form: Format, code: int) -> float:
    """What a code without sign stands for if every code were a number."""
    exponent, mantissa = code >> form.mantissa_bits, code & (2**form.mantissa_bits - 1)
    if exponent == 0:
        return mantissa * form.unit
    return float(2 ** (exponent - form.bias) * (1 + mantissa / 2**form.mantissa_bits))


@functools.cache
def numbers(dtype: torch.dtype) -> Tensor:
    """The format's numbers from 0 to its largest, float64: numbers(dtype)[code] for codes without sign."""
    form = FORMATS[dtype]
    values = [number(form, code) for code in range(form.sign_bit)]
    return torch.tensor([value for value in values if value <= form.largest], dtype=torch.float64)


def encode(
    v: Tensor,
    dtype: torch.dtype,
    *,
    saturate: bool = True,
    sign: Tensor | None = None,
    ties: str = "even",
    bits: Tensor | None = None,
) -> Tensor:
    """Codes of float32 v, one a byte, uint8; e2m1 is not packed yet.

    Rounds half to even, or half towards zero (ties="down": DeepGEMM's e2m1, whose zero and NaN have no sign), or
    stochastically where `bits` has 32 random bits an element.
    Above the largest: with `saturate` the largest, without it `overflow`. v of NaN is NaN, never a number.
    sign: which codes are negative; v's sign bit where it is not given. A NaN that an operation made has no sign of its
    own, so that a caller who wants one bit pattern says whose sign it is.
    """
    form = FORMATS[dtype]
    known, size = numbers(dtype), v.abs().double().contiguous()
    if bits is not None:
        code = _stochastic(v, form, bits)
    else:
        steps = torch.cat([known, torch.tensor([number(form, known.numel())], dtype=torch.float64)])
        midpoints = (steps[1:] + steps[:-1]) / 2
        code = torch.searchsorted(midpoints, size)  # a tie keeps the lower neighbour
        if ties == "even":
            is_tie = size == midpoints[code.clamp_max(known.numel() - 1)]
            code = code + (is_tie & (code % 2 == 1))
    too_large = code >= known.numel()
    code = torch.where(too_large, known.numel() - 1 if saturate or dtype == E2M1 else form.overflow, code)
    code = torch.where(v.isnan(), form.nan, code)
    negative = v.signbit() if sign is None else sign
    if form.fnuz:
        negative = negative & (code != 0) & (code != form.nan)
    elif ties == "down":
        negative = negative & (code != 0) & ~v.isnan()
    return (code | torch.where(negative, form.sign_bit, 0)).to(torch.uint8)


def _stochastic(v: Tensor, form: Format, bits: Tensor) -> Tensor:
    """The neighbour above with the probability of v's place between them; both branches are exact integers."""
    size = torch.where(v.isnan(), 0.0, v.abs().clamp_max(form.largest))
    dropped = 23 - form.mantissa_bits
    raised = (size.view(torch.int32).long() + (bits >> (32 - dropped))) >> dropped
    normal = raised - ((127 - form.bias) << form.mantissa_bits)
    units = (size.double() / form.unit * 2.0**24).trunc().long()
    code = torch.where(size.double() >= form.smallest_normal, normal, (units + (bits >> 8)) >> 24)
    return code.clamp_max(numbers_of(form) - 1)


def numbers_of(form: Format) -> int:
    """How many numbers a format has from 0 to its largest."""
    return sum(number(form, code) <= form.largest for code in range(form.sign_bit))


@functools.cache
def _decoded(dtype: torch.dtype) -> Tensor:
    form, known = FORMATS[dtype], numbers(dtype)
    values = []
    for code in range(2 * form.sign_bit):
        unsigned = code % form.sign_bit
        value = float(known[unsigned]) if unsigned < known.numel() else torch.nan
        if dtype == E5M2 and unsigned == form.overflow:
            value = torch.inf
        if form.fnuz and code == form.nan:
            value = torch.nan
        values.append(-value if code >= form.sign_bit else value)
    return torch.tensor(values, dtype=torch.float32)


def decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 of codes of one byte each, exact."""
    return _decoded(dtype)[codes.long()]


def pack(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The codes as the op returns them: of `dtype`, two of e2m1 in a byte, the low nibble first."""
    if dtype != E2M1:
        return codes.contiguous().view(dtype)
    return (codes[..., ::2] | codes[..., 1::2] << 4).contiguous().view(E2M1)


def unpack(codes: Tensor) -> Tensor:
    """One code a byte, uint8."""
    raw = codes.contiguous().view(torch.uint8)
    return torch.stack((raw & 0xF, raw >> 4), -1).flatten(-2) if codes.dtype == E2M1 else raw


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011): four words a counter.

    counter: four int64 tensors and key: two integers, each of 32 bits; the words are int64 of 32 bits.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits: int64 wraps, which keeps both halves
        c0, c1, c2, c3 = (
            (second >> 32 & MASK32) ^ c1 ^ k0,
            second & MASK32,
            (first >> 32 & MASK32) ^ c3 ^ k1,
            first & MASK32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def random_bits(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) of 32 random bits, int64: word i % 4 of counter i / 4, where i is an element's place."""
    i = torch.arange(rows * columns)
    zero = torch.zeros_like(i)
    words = philox((i // 4 & MASK32, i // 4 >> 32, zero, zero), (seed & MASK32, seed >> 32 & MASK32))
    return torch.stack(words).gather(0, (i % 4).unsqueeze(0)).reshape(rows, columns)
