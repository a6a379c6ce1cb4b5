"""What this machine can do at most, measured now: benchmarks divide by it.

`python -m deepseek_fast.bench.ceiling` prints it.
"""

import json
from typing import Any

from deepseek_fast._load import native

SECONDS = 0.05  # of each probe
# Bytes of a working set, one well inside each memory level of usual x86 servers: 32-48 KiB L1, 1-2 MiB L2, 16+ MiB L3.
WORKING_SETS = {"L1": 16 << 10, "L2": 512 << 10, "L3": 8 << 20, "memory": 256 << 20}
# Most bytes that a cache of the baseline's CPU holds, per core but for L3.
CACHES = {"L1": 48 << 10, "L2": 1 << 20, "L3": 32 << 20}
MIN_READ = 256  # bytes; a read probe takes no less


def measure() -> dict[str, Any]:
    """Ceilings of one thread at the level in force: operations/s by name, bytes/s by working set."""
    probe, seconds = native(), SECONDS
    return {
        "isa": probe.isa(),
        "rates": {name: {"per_second": rate, "by": by} for name, (rate, by) in probe.ceiling_rates(seconds).items()},
        "read": {level: probe.ceiling_read(size, seconds) for level, size in WORKING_SETS.items()},
        "copy": {level: probe.ceiling_copy(size // 2, seconds) for level, size in WORKING_SETS.items()},
    }


def level(num_bytes: int) -> str:
    """The memory level that holds a working set of num_bytes on the baseline's CPU."""
    return next((name for name, size in CACHES.items() if num_bytes <= size), "memory")


class Roofline:
    """Least times of calls at the level in force, from the best probe of each kind that this process has made.

    A probe runs right beside the row that it judges: a CPU that has slowed down since would make the row look bad.
    """

    def __init__(self) -> None:
        self._best: dict[tuple[str, str | int], float] = {}

    def seconds(self, rate: str, flops: int, num_bytes: int, threads: int = 1, working_set: int | None = None) -> float:
        """The larger of: `flops` at the probed `rate` ("int8_dot"), and reading num_bytes at the speed of reading
        working_set bytes, or as many as num_bytes, again and again.

        Several threads are granted that many times one thread's rates: a bound that memory may not let them reach.
        """
        isa, size = native().isa(), max(working_set or num_bytes, MIN_READ)
        compute = self._probe((isa, rate), native().ceiling_rates(SECONDS)[rate][0])
        read = self._probe((isa, size), native().ceiling_read(size, SECONDS))
        return max(flops / compute, num_bytes / read) / threads

    def copy_seconds(self, num_bytes: int, threads: int = 1, working_set: int | None = None) -> float:
        """Least time of a call that reads some bytes and writes others, num_bytes together, and computes next to none.

        The ceiling is memcpy between two buffers of half as many bytes each (or of half of working_set), in bytes read
        plus bytes written per second: the same footprint, so the same level. One rule for every cast, also where the
        two sizes differ: a call that mostly reads may beat the copy in a cache (more loads than stores a cycle); one
        that mostly writes cannot reach it.
        """
        isa, size = native().isa(), max((working_set or num_bytes) // 2, MIN_READ)
        return num_bytes / self._probe((isa, f"copy {size}"), native().ceiling_copy(size, SECONDS)) / threads

    def _probe(self, key: tuple[str, str | int], found: float) -> float:
        self._best[key] = max(self._best.get(key, 0.0), found)
        return self._best[key]


def text(ceilings: dict[str, Any]) -> str:
    """Two lines for a person."""
    rates = ", ".join(
        f"{name} {rate['per_second'] / 1e9:.0f} G/s ({rate['by']})" for name, rate in ceilings["rates"].items()
    )
    reads = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in ceilings["read"].items())
    copies = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in ceilings["copy"].items())
    return f"ceilings of one thread at {ceilings['isa']}: {rates}\nread GB/s: {reads}; copy GB/s: {copies}"


if __name__ == "__main__":
    found = measure()
    print(text(found))
    print(json.dumps(found, indent=2))
