"""One row: ours and its peers timed in turn, every answer checked, the roofline measured beside it.

The ratio of two minima that were taken in turn is what a row, a baseline and the gate compare: a busy moment hits both
sides, and times of different hours or machines are never compared.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepseek_fast.bench import answers, ceiling, memory, peers, rooms
from deepseek_fast.bench.cold import COLD_BYTES
from deepseek_fast.cli.timing import Timing

ROW_SECONDS = 1.0  # aimed at for one row, all contestants together
LOWER_ROW_SECONDS = 0.3  # the same below the highest level: for the ladder, which no gate compares
MIN_ROUNDS, MAX_ROUNDS = 3, 50
SLOW_PEER = 3  # times the fastest peer's time
HOPELESS_PEER = 10  # times that: two rounds are enough to say so
# A larger working set may have left the caches while the others ran: untimed calls bring it back, as the roofline's
# probe reads its bytes again and again, too. An L3 that takes what L2 evicts keeps a peer's lines for a while: 16 MiB
# of FP8 behind a peer of 32 MiB take 380 us after one call, 226 after three, 203 after eight, 190 alone (Zen 5).
WARM_BYTES = 512 << 10
WARM_CALLS = 8
QUICK_SECONDS = 2e-3  # a longer call finds most of what it reads where it has just put it: one is enough
LONG_SECONDS = 50e-3  # beside a longer call, that and a second look at how long it takes are nothing
OPTIONAL = ("group", "id_means")  # what a room's cases may say: of which rows there are means, what an id's words are
SAMPLE_SECONDS = 200e-6  # a sample repeats shorter calls up to this, so that the clock and the call of Python vanish


@dataclass
class Contestant:
    """A call, how often a sample repeats it, and in which rounds it takes part."""

    call: Callable[[], Any]
    repeats: int
    warm: int  # untimed calls before each sample
    period: int = 1
    seconds: list[float] = field(default_factory=list)

    def sample(self) -> float:
        """Seconds of one call, from one sample."""
        for _ in range(self.warm):
            self.call()
        return timed(self.call, self.repeats)


class Measurement:
    """A row in progress: `before_round` times the peers, `round` is ours and is timed by the caller.

    measurement = Measurement(row, peer_names); for _ in range(measurement.rounds): ...; measurement.finish(seconds)
    The calls stay bound to the row's level and threads: enter `measurement.settings()` around all of it.
    """

    def __init__(
        self,
        row: rooms.Row,
        peer_names: Sequence[str],
        *,
        only_reference: bool = False,
        slowdown: Callable[..., Any] | None = None,
    ) -> None:
        self.row = row
        inputs, wanted, bound = rooms.prepared(row.room, row.case)
        ours = row.case.call(inputs)
        answer_of = getattr(row.case, "answer", _as_it_is)  # what is compared of ours; a peer brings its own
        self.error = answers.error_over_bound(answer_of(ours(), inputs), wanted, bound)
        # A peer has one copy of the weight, which its caches would hold.
        peer_names = () if is_cold(row.case) or getattr(row.case, "alone", False) else peer_names
        found, self.failed = peers.of(row.op, inputs, peer_names, only_first=only_reference or not row.best)
        self._peers = found
        large = rooms.working_set(row.case) > WARM_BYTES
        self.ours = Contestant(slowdown(ours, inputs) if slowdown else ours, 1, large)
        seconds: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        for name, peer in found.items():
            seconds[name], answer = _warm_seconds(peer.call)
            self._errors[name] = answers.relative_error(peer.answer(answer), wanted)
        ours_seconds, _ = _warm_seconds(self.ours.call)
        self.ours.repeats, self.ours.warm = _repeats(ours_seconds), _warm_calls(ours_seconds, large)
        self._others = {
            name: Contestant(peer.call, _repeats(seconds[name]), _warm_calls(seconds[name], large))
            for name, peer in found.items()
        }
        turn = {name: seconds[name] * (other.repeats + other.warm) for name, other in self._others.items()}
        share = SLOW_PEER * min(turn.values(), default=0.0)  # of a round, for one peer
        turn_of_ours = ours_seconds * (self.ours.repeats + self.ours.warm)
        budget = (ROW_SECONDS if row.best else LOWER_ROW_SECONDS) / (turn_of_ours + share)
        self.rounds = int(min(max(budget, MIN_ROUNDS), MAX_ROUNDS))
        for name, other in self._others.items():
            # A peer far slower than the fastest would eat the row's time: it takes only every n-th turn.
            least = MIN_ROUNDS if turn[name] < HOPELESS_PEER * share else 2
            other.period = max(1, min(math.ceil(turn[name] / share), self.rounds // least))
        self._turn = 0

    def before_round(self) -> None:
        """Times every peer whose turn it is, then warms ours."""
        for other in self._others.values():
            if self._turn % other.period == 0:
                other.seconds.append(other.sample())
        self._turn += 1
        for _ in range(self.ours.warm):
            self.ours.call()

    def round(self) -> None:
        """Ours, as often as a sample repeats it."""
        call = self.ours.call
        for _ in range(self.ours.repeats):
            call()

    def finish(self, samples: list[float], roofline: "ceiling.Roofline") -> dict[str, Any]:
        """The row as data, from the seconds of ours' rounds."""
        case, row = self.row.case, self.row
        timing = Timing.of([value / self.ours.repeats for value in samples])
        least = _least(case, row.threads, roofline)
        return {
            "id": row.id,
            "room": row.room,
            "case": case.id,
            "why": case.why,
            "isa": row.isa,
            "threads": row.threads,
            "best_level": row.best,
            "flops": case.flops,
            "bytes": case.bytes,
            "rate": case.rate,
            **({"op": row.op, "elements": case.elements} if rooms.is_cast(case) else {}),
            **{name: getattr(case, name) for name in OPTIONAL if hasattr(case, name)},
            **_times(timing),
            "rounds": len(samples),
            "gflops": case.flops / timing.min / 1e9,
            "gbytes": case.bytes / timing.min / 1e9,
            "roofline_us": least * 1e6,
            "share_of_ceiling": least / timing.min,
            "error_over_bound": self.error,
            "peers": {name: self._peer(name, timing) for name in self._peers},
            "failed": self.failed,
        } | ({"gelements": case.elements / timing.min / 1e9} if rooms.is_cast(case) else {})

    def _peer(self, name: str, ours: Timing) -> dict[str, Any]:
        peer, timing, error = self._peers[name], Timing.of(self._others[name].seconds), self._errors[name]
        return {
            **_times(timing),
            "time_ratio": ours.min / timing.min,  # below 1: ours is faster
            "relative_error": error,
            "tolerance": peer.tolerance,
            "right": error <= peer.tolerance,  # False for NaN
        }


def measure(
    row: rooms.Row,
    peer_names: Sequence[str],
    roofline: "ceiling.Roofline",
    *,
    only_reference: bool = False,
    slowdown: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """One row as data. slowdown(call, inputs) -> call makes ours slower: the gate's own test plants one with it."""
    with settings(row):
        measurement = Measurement(row, peer_names, only_reference=only_reference, slowdown=slowdown)
        measurement.round()  # warm
        samples = []
        for _ in range(measurement.rounds):
            measurement.before_round()
            start = time.perf_counter()
            measurement.round()
            samples.append(time.perf_counter() - start)
        return measurement.finish(samples, roofline)


class settings:
    """The row's level and torch threads inside a `with`, no autograd, and of a cast the memory that calls free."""

    def __init__(self, row: rooms.Row) -> None:
        import torch

        self._cap, self._threads, self._inference = rooms.isa_cap(row.isa), row.threads, torch.inference_mode()
        self._memory = memory.kept(row.case.bytes if rooms.is_cast(row.case) else 0)

    def __enter__(self) -> None:
        import torch

        self._cap.__enter__()
        self._memory.__enter__()
        self._inference.__enter__()
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)

    def __exit__(self, *error: Any) -> None:
        import torch

        torch.set_num_threads(self._before)
        self._inference.__exit__(*error)
        self._memory.__exit__(*error)
        self._cap.__exit__(*error)


def is_cold(case: Any) -> bool:
    """Whether the case's weights come from memory; a room without such cases need not say so."""
    return getattr(case, "cold", False)


def timed(call: Callable[[], Any], count: int) -> float:
    """Seconds of one call, the mean of `count`."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def harness_seconds() -> float:
    """What the harness itself adds to each call of a sample: the loop around a call that does nothing."""
    repeats = 1000
    return min(timed(_nothing, repeats) for _ in range(20))


def _nothing() -> None:
    pass


def _as_it_is(answer: Any, _: Any) -> Any:
    return answer


def _times(timing: Timing) -> dict[str, float]:
    return {"median_us": timing.median * 1e6, "min_us": timing.min * 1e6, "spread": timing.spread}


def _least(case: Any, threads: int, roofline: "ceiling.Roofline") -> float:
    """Seconds that the machine's ceilings grant a case."""
    if rooms.is_cast(case):
        return roofline.copy_seconds(case.bytes, threads, rooms.working_set(case))
    return roofline.seconds(case.rate, case.flops, case.bytes, threads, COLD_BYTES if is_cold(case) else case.bytes)


def _warm_calls(seconds: float, large: bool) -> int:
    """Untimed calls before a sample of a call that takes `seconds`; large: its working set may leave the caches."""
    if not large or seconds >= LONG_SECONDS:
        return 0
    return WARM_CALLS if seconds < QUICK_SECONDS else 1


def _warm_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """About how long a call takes, warm, and what it gives."""
    start = time.perf_counter()
    answer = call()
    first = time.perf_counter() - start
    return (first if first > LONG_SECONDS else max(timed(call, 1), 1e-7)), answer


def _repeats(seconds: float) -> int:
    return max(1, int(SAMPLE_SECONDS / seconds))
