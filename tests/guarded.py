"""Arrays that end, or begin, where a page begins that the process may not touch: one byte further is a crash."""

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

_PROT_NONE = 0
_LIBC = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Memory for one array at a time between two pages without access."""

    def __init__(self, most_bytes: int) -> None:
        page = mmap.PAGESIZE
        self._inside = (most_bytes + page - 1) // page * page
        self._memory = mmap.mmap(-1, self._inside + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for address in (start, start + page + self._inside):
            if _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def holding(self, array: NDArray[np.generic], at_end: bool) -> NDArray[np.generic]:
        """A copy of array with its strides in order of memory, against the page behind it or the one before it.

        array is dense in some order of its dimensions.
        """
        order = np.argsort([-stride for stride in array.strides], kind="stable")
        dense = np.ascontiguousarray(array.transpose(order))
        offset = mmap.PAGESIZE + (self._inside - dense.nbytes if at_end else 0)
        placed = np.frombuffer(self._memory, dense.dtype, dense.size, offset).reshape(dense.shape)
        placed[...] = dense
        return placed.transpose(np.argsort(order))
