"""Comparing a result with its reference: bit for bit, or within a derived bound. A failure names the worst element."""

import math
import re

import torch
from torch import Tensor

# The grammar of every error.
SENTENCE = re.compile(r"^[a-z0-9_]+: [a-z_]+ must .+; got .+$")
# An integer type of the same size, to look at a float's bits.
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}


def assert_matches(got: Tensor, want: Tensor, bound: Tensor | None, what: str = "") -> None:
    """A float64 reference compares within `bound`, one of the result's dtype compares bit for bit."""
    if want.dtype == torch.float64 and got.dtype != torch.float64:
        assert bound is not None
        assert_within(got, want, bound, what)
    else:
        assert_equal(got, want, what)


def assert_equal(got: Tensor, want: Tensor, what: str = "") -> None:
    """Same dtype, shape, strides and bits. A NaN equals a NaN: its sign and payload are the machine's."""
    _assert_same_form(got, want, what)
    if torch.equal(_bits(got), _bits(want)):
        return
    differs = _canonical_bits(got) != _canonical_bits(want)
    if differs.any():
        distance = torch.where(differs, ulp_distance(got, want).double(), -1.0)
        _fail(got, want, distance, differs, "ULPs apart", what)


def assert_within(got: Tensor, want: Tensor, bound: Tensor, what: str = "") -> None:
    """|got - want| <= bound for each element; NaN where the reference has NaN.

    Where want plus its bound passes the largest finite value, an infinity of want's sign is right too.
    """
    if got.shape != want.shape:
        raise AssertionError(f"{what}: shape must be {tuple(want.shape)}; got {tuple(got.shape)}")
    if not got.is_contiguous():
        raise AssertionError(f"{what}: result must be contiguous; got strides {got.stride()}")
    value = got.double()
    error = (value - want).abs()
    largest = torch.finfo(got.dtype).max if got.is_floating_point() else math.inf
    may_overflow = want.abs() + bound >= largest
    right = (error <= bound) | (value == want) | ((bound == math.inf) & want.isfinite())
    right |= may_overflow & value.isinf() & (value.sign() == want.sign())
    right = torch.where(want.isnan(), value.isnan(), right)
    if not right.all():
        share = torch.where(right, -1.0, torch.nan_to_num(error / bound, nan=math.inf))
        _fail(got, want, share, ~right, "times its bound away", what)


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """How many representable values lie between a and b, int64; -0 and +0 are the same value."""
    if not a.is_floating_point() or a.itemsize == 1:
        a, b = (v.contiguous().view(torch.uint8) if v.is_floating_point() else v for v in (a, b))
        return (a.long() - b.long()).abs()

    def place(value: Tensor) -> Tensor:  # consecutive floats to consecutive integers, across zero
        bits = value.contiguous().view(BITS[value.dtype]).long()
        magnitude = bits & torch.iinfo(BITS[value.dtype]).max
        return torch.where(bits < 0, -magnitude, magnitude)

    return (place(a) - place(b)).abs()


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(BITS.get(value.dtype, torch.uint8)) if value.is_floating_point() else value


def _canonical_bits(value: Tensor) -> Tensor:
    if (
        not value.is_floating_point() or value.itemsize == 1
    ):  # float8: a NaN is as good as another only if it is the same
        return _bits(value)
    bits = _bits(value)
    return torch.where(value.isnan(), torch.iinfo(bits.dtype).max, bits)


def _assert_same_form(got: Tensor, want: Tensor, what: str) -> None:
    for name, g, w in (
        ("dtype", got.dtype, want.dtype),
        ("shape", tuple(got.shape), tuple(want.shape)),
        ("strides", got.stride(), want.contiguous().stride()),
    ):
        if g != w and not (name == "strides" and got.is_contiguous()):
            raise AssertionError(f"{what}: {name} must be {w}; got {g}")


def _fail(got: Tensor, want: Tensor, badness: Tensor, wrong: Tensor, unit: str, what: str) -> None:
    flat = int(badness.reshape(-1).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), badness.shape))
    g, w = got.reshape(-1)[flat].item(), want.reshape(-1)[flat].item()
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are wrong; worst at {index}: "
        f"got {g!r}, want {w!r}, {badness.reshape(-1)[flat].item():.4g} {unit}"
    )
