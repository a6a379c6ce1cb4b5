"""What this machine can do at most, measured now: `python -m bench.ceiling` prints it, the benchmarks divide by it."""

import json
from typing import Any

from deepseek_fast._load import native

SECONDS = 0.05  # of each probe
# Bytes of a working set, one well inside each memory level of usual x86 servers: 32-48 KiB L1, 1-2 MiB L2, 16+ MiB L3.
WORKING_SETS = {"L1": 16 << 10, "L2": 512 << 10, "L3": 8 << 20, "memory": 256 << 20}
MIN_READ = 256  # bytes; a read probe takes no less


def measure(seconds: float = SECONDS) -> dict[str, Any]:
    """Ceilings of one thread at the level in force: operations/s by name, bytes/s by working set."""
    probe = native()
    return {
        "isa": probe.isa(),
        "rates": {name: {"per_second": rate, "by": by} for name, (rate, by) in probe.ceiling_rates(seconds).items()},
        "read": {level: probe.ceiling_read(size, seconds) for level, size in WORKING_SETS.items()},
        "copy": {level: probe.ceiling_copy(size // 2, seconds) for level, size in WORKING_SETS.items()},
    }


def seconds_at_least(rate: float, flops: int, num_bytes: int) -> float:
    """The roofline's time of a call: its operations at `rate`, or reading its working set again and again."""
    return max(flops / rate, num_bytes / native().ceiling_read(max(num_bytes, MIN_READ), SECONDS))


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
