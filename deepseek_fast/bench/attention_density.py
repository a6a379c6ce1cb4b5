"""Skipped blocks cost nothing: the time at a density d over d times our own dense time, taken in turn in one run."""

from collections.abc import Callable
from functools import partial
from typing import Any

from deepseek_fast.cli import output, timing

DENSITIES = (0.1, 0.25, 0.5)
DTYPES = ("float32", "bfloat16")
GOAL = 1.15  # at most this many times the dense time's share
ROUNDS, QUICK_ROUNDS = 15, 3


def measure(*, quick: bool = False) -> dict[str, Any]:
    """ms by dtype and density; 1: without a mask."""
    import torch

    import deepseek_fast
    from deepseek_fast.kernels.block_sparse_attention.bench_cases import Bench

    S = 512 if quick else 2048
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        calls: dict[str, Callable[[], Any]] = {}
        for density in (None, *DENSITIES):
            inputs = Bench(S, S, 4, 4, 128, dtype, "density", density=density).inputs(torch.Generator().manual_seed(0))
            calls[str(density or 1)] = partial(deepseek_fast.block_sparse_attention, **inputs)
        times = timing.interleave(calls, rounds=QUICK_ROUNDS if quick else ROUNDS)
        found[dtype] = {name: time.min * 1e3 for name, time in times.items()}
    return {"tokens": S, "heads": 4, "head_dim": 128, "ms": found}


def table(data: dict[str, Any]) -> str:
    """A row for each dtype and density."""
    lines = []
    for dtype, ms in data["ms"].items():
        for name, value in ms.items():
            over = "" if name == "1" else f"{value / (float(name) * ms['1']):.2f}"
            label = "dense" if name == "1" else name
            lines.append((f"{dtype}, {label}", f"{value:.2f}", f"{value / ms['1']:.2f}", over))
    header = (f"{data['tokens']} tokens, kept share d", "ms", "of dense", f"over d, at most {GOAL}")
    return output.table(header, lines)
