"""Times of GPU calls, side by side: interleaved, with a cold L2, from events on the device."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

FLUSH_BYTES = 256 << 20  # written between two timed calls: five times an H100's L2
ROUNDS = 15
WARM_UP = 3


def captured(call: Callable[[], Any]) -> tuple[Callable[[], Any], bool]:
    """call as a CUDA graph's replay, so that Python's share is left out; itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, False
    return graph.replay, True


def side_by_side(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Microseconds of each call in each round: A, B, C, A, B, C, ..., the L2 overwritten before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            begin.record()
            call()
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: [begin.elapsed_time(end) * 1e3 for begin, end in pairs] for name, pairs in events.items()}


def eager_us(call: Callable[[], Any], times: int = 20) -> float:
    """Microseconds from call to call where the host waits for nothing: what Python and the launches cost at least."""
    import time

    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    issued = time.perf_counter() - start
    torch.cuda.synchronize()
    return issued / times * 1e6


def ceilings() -> dict[str, float]:
    """Bytes/s of a copy, read and written, of 1 GiB; flops/s of a bf16 product of 8192^3, on random numbers."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = side_by_side({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, rounds=20)
    return {
        "copy": 2 * source.numel() * 4 / (statistics.median(times["copy"]) * 1e-6),
        "product": 2 * 8192**3 / (statistics.median(times["product"]) * 1e-6),
    }
