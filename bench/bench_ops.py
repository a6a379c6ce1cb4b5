"""Every room x bench case x ISA level against its peers, answers checked against float64 in the same run.

Ours and the peers are timed in turn: before each timed round of ours, which pytest-benchmark takes, every peer runs
once. The ratio of the two minima is what a row, the baseline and the CI gate compare.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch

from bench import peers
from deepseek_fast.cli.timing import Timing
from tests import doors
from tests.plugin import isa_cap, supported_isas

ROW_SECONDS = 1.0  # aimed at for one row, all contestants together
MIN_ROUNDS, MAX_ROUNDS = 3, 50
SLOW_PEER = 3  # times the fastest peer's time
SAMPLE_SECONDS = 200e-6  # a sample repeats shorter calls up to this, so that the clock and the call of Python vanish
QUICK_WORDS = "MiniLM"  # cases of --quick, by their reason
# Largest |y - ref| / |ref| (norms) of a peer that still counts as an answer; int8 peers quantize x per tensor.
PEER_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 5e-2}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    levels = supported_isas()
    quick = metafunc.config.getoption("quick")
    metafunc.parametrize(
        ("room", "case", "isa"),
        [
            pytest.param(room, case, isa, id=f"{room}-{case.id}-{isa}")
            for room in doors.ROOMS
            for case in doors.part(room, "cases").BENCH
            for isa in levels
            if not quick or (isa == levels[-1] and QUICK_WORDS in case.why)
        ],
    )


def bench_op(room: str, case: Any, isa: str, benchmark: Any, rows: list[dict[str, Any]], roofline: Any) -> None:
    """One row."""
    inputs, reference, bound = doors.prepared(room, _call_of(room, case))
    with isa_cap(isa), torch.inference_mode():
        ours = _packed_call(room, inputs)
        error = _error_over_bound(ours(), reference, bound)
        assert error <= 1, f"{room}: {case.id} at {isa} is wrong by {error:.3g} times its bound"
        others = peers.of(room, inputs)
        seconds = {name: _seconds(call) for name, call in others.items()}
        repeats = _repeats(_seconds(ours))
        times: dict[str, list[float]] = {name: [] for name in others}
        turn_seconds = {name: value * _repeats(value) for name, value in seconds.items()}
        share = SLOW_PEER * min(turn_seconds.values())  # of a round, for one peer
        rounds = int(min(max(ROW_SECONDS / (_seconds(ours) * repeats + share), MIN_ROUNDS), MAX_ROUNDS))
        # A peer far slower than the fastest would eat the row's time: it takes only every n-th turn.
        period = {name: max(1, min(math.ceil(value / share), rounds // 3)) for name, value in turn_seconds.items()}
        turn = itertools.count()

        def peers_turn() -> None:
            now = next(turn)
            for name, call in others.items():
                if now % period[name] == 0:
                    times[name].append(_timed(call, _repeats(seconds[name])))

        def ours_turn() -> None:
            for _ in range(repeats):
                ours()

        benchmark.pedantic(ours_turn, setup=peers_turn, rounds=rounds, iterations=1, warmup_rounds=1)
        least = roofline(_rate(case), case.flops, case.bytes)
    timing = Timing.of([value / repeats for value in benchmark.stats.stats.data])
    row = {
        "id": f"{room}-{case.id}-{isa}",
        "room": room,
        "case": case.id,
        "why": case.why,
        "isa": isa,
        "median_us": timing.median * 1e6,
        "min_us": timing.min * 1e6,
        "spread": timing.spread,
        "gflops": case.flops / timing.min / 1e9,
        "gbytes": case.bytes / timing.min / 1e9,
        "share_of_ceiling": least / timing.min,
        "error_over_bound": error,
        "peers": {
            name: _peer(call, reference, timing, Timing.of(times[name]), _tolerance(case))
            for name, call in others.items()
        },
    }
    benchmark.extra_info.update(row)
    rows.append(row)


def _packed_call(room: str, inputs: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """The op with its weight packed, all arguments bound: nothing but the call is left."""
    weight = doors.WEIGHT[room]
    rest = {name: value for name, value in inputs.items() if name != weight}
    op, packed = doors.torch_op(f"{room}_packed"), doors.pack(room, inputs)
    return partial(op, packed=packed, out_features=inputs[weight].shape[0], **rest)


def _call_of(room: str, case: Any) -> Any:
    """The room's Case of a bench size: the same sizes, and bias, no residual."""
    kind = doors.part(room, "cases").Case
    shared = {field.name for field in fields(kind)} & {field.name for field in fields(case)}
    return kind(**{name: getattr(case, name) for name in shared})


def _rate(case: Any) -> str:
    if getattr(case, "activations", "float") == "int8":
        return "int8_dot"
    return "bf16_dot" if case.dtype == "bfloat16" else "fma_f32"


def _tolerance(case: Any) -> float:
    return PEER_TOLERANCE["int8" if getattr(case, "activations", "") == "int8" else case.dtype]


def _error_over_bound(y: torch.Tensor, reference: torch.Tensor, bound: torch.Tensor) -> float:
    """0 for exact; where the reference is x's dtype every bit must agree."""
    if reference.dtype != torch.float64:
        return 0.0 if torch.equal(y, reference) else float("inf")
    return float(((y.double() - reference).abs() / bound).max())


def _peer(
    call: Callable[[], torch.Tensor], reference: torch.Tensor, ours: Timing, timing: Timing, tolerance: float
) -> dict[str, Any]:
    wanted = reference.double()
    error = float((call().double() - wanted).norm() / wanted.norm())
    return {
        "median_us": timing.median * 1e6,
        "min_us": timing.min * 1e6,
        "spread": timing.spread,
        "time_ratio": ours.min / timing.min,  # below 1: ours is faster
        "relative_error": error,
        "right": error <= tolerance,
    }


def _timed(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _seconds(call: Callable[[], Any]) -> float:
    """About how long a call takes, warm."""
    call()
    return max(_timed(call, 1), 1e-7)


def _repeats(seconds: float) -> int:
    return max(1, int(SAMPLE_SECONDS / seconds))
