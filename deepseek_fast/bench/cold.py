"""Calls whose weights come from memory: as many packed copies as no cache holds, taken in turn."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

COLD_BYTES = 256 << 20  # of all copies; eight times the 32 MiB of L3 of the machine the baseline is from


def in_turn(call: Callable[..., Any], packed: Any, *, cold: bool) -> Callable[[], Any]:
    """call(packed=packed) as it is, or, cold, each time with another copy of `packed`."""
    if not cold:
        return functools.partial(call, packed=packed)
    copies = [packed.clone() for _ in range(math.ceil(COLD_BYTES / packed.nbytes))]
    turn = itertools.cycle(copies)
    return lambda: call(packed=next(turn))
