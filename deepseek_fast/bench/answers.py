"""How far an answer is from its reference: sums within a derived bound, casts bit for bit.

A linear room's reference is one tensor with one bound. A cast's is a tuple with a bound, or None, for each tensor:
where it is None every bit must agree, NaN codes and signed zeros included.
"""

import itertools
import math
from typing import Any

# The magnitudes of float4_e2m1, by its lower three bits; the fourth is the sign. The low half of a byte comes first.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def error_over_bound(y: Any, wanted: Any, bound: Any) -> float:
    """Ours: 0 for exact, at most 1 for right. A tuple of tensors is as wrong as its worst."""
    import torch

    if isinstance(wanted, tuple):
        ours, bounds = _tensors(y), _tensors(bound)
        if len(ours) != len(wanted):
            return math.inf
        return _largest(_cast_error(*three) for three in itertools.zip_longest(ours, wanted, bounds))
    if wanted.dtype != torch.float64:
        return 0.0 if torch.equal(y, wanted) else math.inf
    return _over(y.double() - wanted, bound)


def relative_error(y: Any, wanted: Any) -> float:
    """A peer's: |y - wanted| / |wanted| in 2-norms, 0 only for the same values.

    Of a tuple the largest; a peer may give the first tensors alone. A cast with the same bits is 0 whatever its values.
    """
    if not isinstance(wanted, tuple):
        return _distance(y.double(), wanted.double())
    answer = _tensors(y)
    if not 0 < len(answer) <= len(wanted):
        return math.inf
    return _largest(_cast_distance(one, other) for one, other in zip(answer, wanted, strict=False))


def same_bits(y: Any, wanted: Any) -> bool:
    """Whether two tensors have one dtype, one shape and the same bytes."""
    import torch

    if y.dtype != wanted.dtype or y.shape != wanted.shape:
        return False
    return torch.equal(_bytes(y), _bytes(wanted))


def values(x: Any) -> Any:
    """A tensor's numbers in float64; of float4_e2m1fn_x2 two a byte, along the last dimension."""
    import torch

    if x.dtype != torch.float4_e2m1fn_x2:
        return x.double()
    codes = _bytes(x).reshape(x.shape).long()
    table = torch.tensor([*E2M1, *(-magnitude for magnitude in E2M1)], dtype=torch.float64)
    return torch.stack((table[codes & 15], table[codes >> 4]), -1).flatten(-2)


def _cast_error(y: Any, wanted: Any, bound: Any) -> float:
    if bound is None:
        return 0.0 if same_bits(y, wanted) else math.inf
    if y.shape != wanted.shape:
        return math.inf
    return _over(values(y) - values(wanted), bound)


def _over(difference: Any, bound: Any) -> float:
    """The largest share of the bound; 0 where there is no difference, also of a bound of 0."""
    error = difference.abs()
    return float((error / bound).where(error != 0, 0.0).max()) if error.numel() else 0.0


def _cast_distance(y: Any, wanted: Any) -> float:
    if same_bits(y, wanted):
        return 0.0
    found, right = values(y), values(wanted)
    return _distance(found, right) if found.shape == right.shape else math.inf


def _distance(found: Any, right: Any) -> float:
    return float((found - right).norm() / right.norm())


def _tensors(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _bytes(x: Any) -> Any:
    import torch

    return x.contiguous().reshape(-1).view(torch.uint8)


def _largest(errors: Any) -> float:
    """NaN if there is one: it counts as larger than any number."""
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found)
