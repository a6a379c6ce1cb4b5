"""Times of a network's contestants, all in turn in one process, for several numbers of threads and batches."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.networks import load as networks_load
from bench.networks import reference as networks_reference
from bench.networks.contestants import STOCK, Contestant, Network
from bench.networks.remote import Remote
from deepseek_fast.cli import machine
from deepseek_fast.cli.timing import Timing

if TYPE_CHECKING:
    import numpy as np

GROUP_SECONDS = 1.5  # aimed at for one batch at one number of threads, all contestants together
MAX_GROUP_SECONDS = 11.0  # another batch that needs more is skipped, and the run says so
MIN_ROUNDS, MAX_ROUNDS = 5, 50
MIN_ROUNDS_BATCH = 3  # of batches other than the usual one: they are many and long
WARMUP_ROUNDS = 2  # the answers, and a look at the clock
MAX_REASON = 200  # characters of a foreign message
Found = Callable[..., None]  # found(kind, **data)


@dataclass
class Field:
    """Contestants that are loaded with some number of threads."""

    threads: int
    calls: dict[str, "networks_load.Call"] = field(default_factory=dict)
    remotes: dict[str, Remote] = field(default_factory=dict)
    reference: "list[np.ndarray] | None" = None  # in float64, of the usual batch

    def keep(self, contestants: list[Contestant]) -> None:
        """Ends all others."""
        for name in self.calls.keys() - {contestant.name for contestant in contestants}:
            del self.calls[name]
            if name in self.remotes:
                self.remotes.pop(name).close()

    def close(self) -> None:
        for remote in self.remotes.values():
            remote.close()
        self.calls.clear()  # memory for the next number of threads


def sweep(network: Network, folder: Path, contestants: list[Contestant], *, quick: bool, found: Found) -> None:
    """Reports rows, and in sentences what failed and what was skipped; quick: one thread and the usual batch only."""
    whole = [contestant for contestant in contestants if contestant.column]
    batches = () if quick else tuple(batch for batch in network.batches if batch != network.batch)
    for threads in [1] if quick else thread_counts(machine.usable_cpus()):
        loaded = load_all(contestants if threads == 1 else whole, folder, threads, found)
        loaded.reference = networks_reference.load(folder)
        try:
            seconds = rows(network, loaded, contestants, network.batch, found)
            loaded.keep(whole)
            for batch in batches if threads == 1 and seconds is not None else ():
                expected = (seconds or 0.0) * batch / network.batch * (WARMUP_ROUNDS + MIN_ROUNDS_BATCH)
                if expected > MAX_GROUP_SECONDS:
                    why = f"would take {expected:.0f} s, more than {MAX_GROUP_SECONDS:.0f} s"
                    found("skipped", what=f"batch {batch}", why=why)
                else:
                    rows(network, loaded, contestants, batch, found)
        finally:
            loaded.close()


def thread_counts(cpus: int) -> list[int]:
    """1, 2, 4, ... and all."""
    counts = [1 << power for power in range(cpus.bit_length()) if 1 << power < cpus]
    return [*counts, cpus]


def load_all(contestants: list[Contestant], folder: Path, threads: int, found: Found) -> Field:
    """Every contestant that loads; the others are reported."""
    loaded = Field(threads)
    for contestant in contestants:
        try:
            if contestant.runtime == "OpenVINO":
                remote = loaded.remotes[contestant.name] = Remote(contestant, folder, threads)
                loaded.calls[contestant.name] = remote.answer
            else:
                loaded.calls[contestant.name] = networks_load.load(contestant, folder, threads)
        except Exception as error:  # of many libraries
            found("failed", contestant=contestant.name, step=f"load with {threads} threads", why=short(error))
    return loaded


def rows(network: Network, loaded: Field, contestants: list[Contestant], batch: int, found: Found) -> float | None:
    """Reports a row for each contestant; returns the seconds of one round of all, None without a stock answer."""
    from deepseek_fast.bench.model import distance
    from deepseek_fast.bench.row import LONG_SECONDS, timed

    where = {"threads": loaded.threads, "batch": batch}
    step = f"run batch {batch}, {loaded.threads} threads"
    arrays = network.inputs(batch)
    answers: dict[str, list[np.ndarray]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, call in loaded.calls.items():
        try:
            answers[name] = call(arrays)
        except Exception as error:
            found("failed", contestant=name, step=step, why=short(error))
        else:
            calls[name] = loaded.remotes.get(name) or functools.partial(call, arrays)
    if not usable(answers.get(STOCK)):
        found("failed", contestant=STOCK, step=step, why="no answer that others could be compared with")
        return None
    first = {name: timed(call, 1) for name, call in calls.items()}
    # The others leave little of a small network in the caches: an untimed call brings it back.
    warm = {name for name, seconds in first.items() if seconds < LONG_SECONDS}
    round_seconds = sum(seconds * (1 + (name in warm)) for name, seconds in first.items())
    least = MIN_ROUNDS if batch == network.batch else MIN_ROUNDS_BATCH
    rounds = int(min(max(GROUP_SECONDS / round_seconds - WARMUP_ROUNDS, least), MAX_ROUNDS))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            if name in warm:
                run()
            seconds = timed(run, 1)
            samples[name].append(loaded.remotes[name].seconds[-1] if name in loaded.remotes else seconds)
    for name, remote in loaded.remotes.items():
        if name in samples and remote.dead:
            found("failed", contestant=name, step=step, why=remote.dead)
            del samples[name]
    stock = min(samples[STOCK])
    for contestant in contestants:
        if contestant.name not in samples:
            continue
        timing = Timing.of(samples[contestant.name])
        cosine, max_abs = distance(answers[contestant.name], answers[STOCK])
        off, largest = None, network.largest_error(contestant)
        if batch == network.batch and loaded.reference is not None and largest is not None:
            off = networks_reference.error(answers[contestant.name], loaded.reference)
        found(
            "rows",
            contestant=contestant.name,
            **where,
            rounds=rounds,
            ms=timing.median * 1e3,
            ms_min=timing.min * 1e3,
            spread=timing.spread,
            ratio_to_stock=timing.min / stock,
            cosine=cosine,
            max_abs=max_abs,
            least_cosine=network.least_cosine(contestant),
            error=off,
            largest_error=largest,
            # False for NaN
            right=cosine >= network.least_cosine(contestant) and (off is None or off <= (largest or 0.0)),
        )
    return round_seconds


def usable(answer: "list[np.ndarray] | None") -> bool:
    """Whether a comparison with it says something: finite, and not the same everywhere."""
    import numpy as np

    return bool(answer) and all(np.isfinite(value).all() and np.ptp(value) > 0 for value in answer or ())


def short(error: object) -> str:
    """A foreign message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
