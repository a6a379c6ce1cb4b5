"""A plain weight is packed a few panels at a time: the bits are those of the weight packed whole."""

import pytest
import torch

from tests import doors
from tests.oracle import assert_equal

# More panels than one thread packs at a time, and than two do; one whole panel; less than one.
SIZES = (("float32", 3, 130), ("bfloat16", 17, 577), ("bfloat16", 1, 64), ("float32", 7, 5))


@pytest.mark.parametrize("room", doors.ROOMS)
def test_bits_are_those_of_the_packed_weight(room: str) -> None:
    cases = doors.part(room, "cases")
    before = torch.get_num_threads()
    try:
        for dtype, M, N in SIZES:
            inputs = cases.Case(M, N, 130, dtype, "gelu", True, "full").inputs(torch.Generator().manual_seed(N))
            for mode in getattr(cases, "MODES", (None,)):
                given = inputs | ({doors.mode_of(room): mode} if mode else {})
                wanted = doors.call(room, "packed", given)
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    assert_equal(doors.call(room, "torch", given), wanted, f"{dtype} {M} x {N} {mode} {threads}")
    finally:
        torch.set_num_threads(before)
