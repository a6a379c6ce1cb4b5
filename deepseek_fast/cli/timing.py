"""Times of several calls, taken in turn in one run, so that a busy moment hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WARMUP_ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over the rounds; spread is the middle half's width over the median."""

    median: float
    min: float
    spread: float

    @staticmethod
    def of(seconds: list[float]) -> "Timing":
        """From the measured seconds of at least two rounds."""
        quarter, median, three_quarters = statistics.quantiles(seconds, n=4, method="inclusive")
        return Timing(median, min(seconds), (three_quarters - quarter) / median)


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    repeats: Mapping[str, int] | None = None,
    after_round: Callable[[], Any] | None = None,
) -> dict[str, Timing]:
    """Times A/B/C/A/B/C...: each call once (or repeats[name] times, as one sample) per round, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARMUP_ROUNDS + rounds):
        for name, call in calls.items():
            count = repeats[name] if repeats else 1
            start = time.perf_counter()
            for _ in range(count):
                call()
            elapsed = (time.perf_counter() - start) / count
            if turn >= WARMUP_ROUNDS:
                seconds[name].append(elapsed)
        if after_round:
            after_round()
    return {name: Timing.of(values) for name, values in seconds.items()}
