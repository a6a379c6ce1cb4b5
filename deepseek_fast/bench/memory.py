"""Outputs that a cast allocates anew in each call come from memory that the process has, not from the kernel.

glibc gives large blocks back as soon as they are freed, and the kernel then clears every page again: 49 ms instead of 9
for a copy of 128 MiB (Zen 5). That is the allocator's time, the same for every contestant, and a process that casts one
large tensor after another has an allocator that keeps it.
"""

import ctypes

# mallopt's parameters: blocks of their own from the kernel, from which size, and how much free memory is kept.
MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
# glibc's own, its sizes as they are after a block of the largest size that moves them was freed.
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}
# Times a call's bytes, touched beforehand: an aligned block does not fit where one of its size was freed (glibc 2.36),
# and peers have intermediate results.
RESERVE = 4


class kept:
    """Holds on to freed memory inside a `with`, and begins with some; nothing happens where libc is not glibc."""

    def __init__(self, num_bytes: int) -> None:
        """num_bytes: of one call; 0 changes nothing."""
        self._reserve = RESERVE * num_bytes
        self._libc = ctypes.CDLL(None)
        self._possible = num_bytes > 0 and hasattr(self._libc, "mallopt")

    def __enter__(self) -> None:
        import torch

        if self._possible:
            self._set(KEPT)
            torch.empty(self._reserve, dtype=torch.uint8).fill_(1)

    def __exit__(self, *_: object) -> None:
        if self._possible:
            self._set(USUAL)
            self._libc.malloc_trim(0)

    def _set(self, values: dict[int, int]) -> None:
        for parameter, value in values.items():
            self._libc.mallopt(parameter, value)
