"""Nothing outside an argument is read: each lies against a page that the process may not touch, before or behind it."""

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest
import torch

from tests.doors import DOORS, ROOMS, call, from_numpy, mode_of, part, to_numpy
from tests.oracle import assert_equal

SHAPES = ((1, 1, 1), (3, 5, 7), (7, 33, 19), (2, 65, 66), (13, 17, 129))
NO_ACCESS = 0


class Guarded:
    """Arrays between two pages without access."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.maps: list[tuple[mmap.mmap, np.ndarray]] = []

    def place(self, array: np.ndarray, *, at_end: bool) -> np.ndarray:
        """A copy whose last byte, or first, is next to a page without access."""
        inside = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
        view = np.frombuffer(memory, np.uint8)
        for page in (view.ctypes.data, view.ctypes.data + mmap.PAGESIZE + inside):
            if self.libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.maps.append((memory, view))
        offset = mmap.PAGESIZE + (inside - array.nbytes if at_end else 0)
        placed = np.ndarray(array.shape, array.dtype, view.data, offset)
        placed[...] = array
        return placed


@pytest.mark.parametrize("at_end", [True, False], ids=["page behind", "page before"])
@pytest.mark.parametrize("room", ROOMS)
def test_no_argument_is_read_past_its_edge(room: str, at_end: bool, isa: str) -> None:
    cases = part(room, "cases")
    modes: list[dict[str, Any]] = [{mode_of(room): mode} for mode in getattr(cases, "MODES", ())] or [{}]
    guarded = Guarded()
    for shape in SHAPES:
        for dtype in cases.DTYPES:
            for mode in modes:
                inputs = cases.Case(*shape, dtype, "gelu", True, "full", **mode).inputs(torch.Generator())
                placed = {
                    name: from_numpy(guarded.place(to_numpy(v), at_end=at_end)) if isinstance(v, torch.Tensor) else v
                    for name, v in inputs.items()
                }
                for door in DOORS:
                    assert_equal(call(room, door, placed), call(room, door, inputs), f"{shape} {dtype} {mode} {door}")
