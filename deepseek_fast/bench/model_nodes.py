"""Profiled nodes against this machine's ceilings: time, share, least time, what could be gained."""

import statistics
from dataclasses import dataclass
from typing import Any

from deepseek_fast._load import native, supported_isas
from deepseek_fast.bench import ceiling
from deepseek_fast.bench.model_cost import DOMAIN, Call, Cost, cost
from deepseek_fast.bench.model_facts import Facts
from deepseek_fast.bench.model_trace import Seen

RESOLUTION_US = 0.5  # half a tick of the profiler's clock: a node that comes out shorter has no time of its own
# Powers of two, bytes: a read probe below 4 KiB is bound by its loop, one of 256 MiB by memory.
SMALLEST_READ, LARGEST_READ = 12, 28


@dataclass(frozen=True)
class ProfilerCost:
    """What ONNX Runtime's profiler adds to a node, in us."""

    inside: float  # to its own time
    outside: float  # beside it: to the time of the Loop that it runs in


class Bounds:
    """Least times of nodes, from ceilings that are probed now, beside the model they judge.

    Several threads are granted that many times one thread's rates, as by ceiling.Roofline.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._rates = {name: rate for name, (rate, _) in native().ceiling_rates(ceiling.SECONDS).items()}
        self._reads: dict[int, float] = {}
        # Probes at a lowered level say nothing of kernels that are not held to it.
        self.only_ours = native().isa() != supported_isas()[-1]

    def us(self, needs: Cost) -> float:
        """The larger of arithmetic at its rate, and reading a working set of that size again and again."""
        rate = self._rates.get(needs.rate or "")
        compute = needs.flops / rate if needs.flops and rate else 0.0
        return max(compute, needs.bytes / self._read(needs.bytes)) / self._threads * 1e6

    def _read(self, size: int) -> float:
        """Bytes/s, of the next smaller power of two: never slower than the size itself."""
        power = min(max(size.bit_length() - 1, SMALLEST_READ), LARGEST_READ)
        if power not in self._reads:
            self._reads[power] = native().ceiling_read(1 << power, ceiling.SECONDS)
        return self._reads[power]


def nodes(seen: list[Seen], own: ProfilerCost, facts: Facts, bounds: Any) -> list[dict[str, Any]]:
    """The nodes as data, the profiler's own cost taken off."""
    found = []
    costs = [own.inside * node.calls + own.outside * node.inner for node in seen]
    times = [max(statistics.median(node.samples) - cost, RESOLUTION_US) for node, cost in zip(seen, costs, strict=True)]
    total = sum(times)
    for node, us in zip(seen, times, strict=True):
        fact = facts.of(node.name, node.op_type, node.inside)
        inputs, outputs = min(node.shapes, key=repr)
        needs = cost(Call(node.op_type, inputs, outputs, fact.domain, fact.attributes, fact.weights))
        # One call stands for all; where their shapes differ, none does.
        bounded = needs.bounded and len(node.shapes) == 1 and (fact.domain == DOMAIN or not bounds.only_ours)
        least = bounds.us(needs) * node.calls if bounded else None
        is_timed = us > RESOLUTION_US
        found.append(
            {
                "name": node.inside + node.name,
                "op_type": node.op_type,
                "domain": fact.domain,
                "ours": fact.domain == DOMAIN,
                "us": us,
                "share": us / total,
                "calls": node.calls,
                "shape": needs.shape,
                "flops": None if needs.flops is None else needs.flops * node.calls,
                "bytes": needs.bytes * node.calls,
                "rate": needs.rate,
                "roofline_us": least,
                # A ceiling is a probe's best, which a node may pass by the clock's grain, never in truth.
                "share_of_ceiling": min(least / us, 1.0) if least and is_timed else None,
                "gain_us": None if least is None else max(0.0, us - least) if is_timed else 0.0,
                "left_alone": fact.left_alone,
            }
        )
    return found
