"""Cost as n grows: local + log-strided blocks, n log n of them, from 1k to 64k tokens: time, its exponent, memory.

n log n itself, fitted over these n, has the exponent 1.12: log n grows by a factor of 1.6.
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from deepseek_fast.cli import output, timing

BLOCK, LOCAL = 32, 8  # tokens of a block, blocks of the local part
HEADS, HEAD_DIM, DTYPE = 1, 64, "bfloat16"
GOAL = 1.15  # the exponent of time over n, at most
ROUNDS, QUICK_ROUNDS, QUICK_SIZES = 9, 2, 3
CHECKED = 256  # last queries of each length, held against float64


def measure(*, quick: bool = False) -> dict[str, Any]:
    """A row for each n, and the exponents of time, blocks and memory over n."""
    import torch

    import deepseek_fast
    from deepseek_fast.kernels.block_sparse_attention.bench_cases import LOG_SIZES

    sizes = LOG_SIZES[:QUICK_SIZES] if quick else LOG_SIZES
    rows, calls = [], {}
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM, generator=generator).to(getattr(torch, DTYPE)) for _ in "qkv")
        mask = deepseek_fast.local_log_blocks(n, n, block_size=BLOCK, local=LOCAL)
        inputs = {"q": q, "k": k, "v": v, "block_mask": mask, "block_size": BLOCK, "is_causal": True}
        call = partial(deepseek_fast.block_sparse_attention, **inputs)
        row = {"n": n, "blocks": _entries(mask), "bytes": peak_bytes(call), "error_over_bound": _error(call(), inputs)}
        rows.append(row | {"tensor_bytes": q.nbytes})
        calls[str(n)] = call
    times = timing.interleave(calls, rounds=QUICK_ROUNDS if quick else ROUNDS)
    for row in rows:
        row["ms"] = times[str(row["n"])].min * 1e3
    exponents = {name: exponent(sizes, [row[name] for row in rows]) for name in ("ms", "blocks", "bytes")}
    return {"block": BLOCK, "local": LOCAL, "head_dim": HEAD_DIM, "dtype": DTYPE, "rows": rows, "exponents": exponents}


def exponent(sizes: Any, values: Any) -> float:
    """The slope of log value over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that a call has from torch's allocator at a time, its result and workspace included."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def table(data: dict[str, Any]) -> str:
    """A row for each n, the exponents last."""
    lines = []
    for row in data["rows"]:
        per = row["ms"] * 1e6 / row["n"]
        memory = f"{row['bytes'] / row['n']:.0f}"
        cells = (str(row["n"]), str(row["blocks"]), f"{row['ms']:.2f}", f"{per:.0f}", f"{row['bytes'] / 1e6:.2f}")
        lines.append((*cells, memory, f"{row['error_over_bound']:.2g}"))
    found = data["exponents"]
    blocks, ms, memory = (f"{found[name]:.2f}" for name in ("blocks", "ms", "bytes"))
    lines.append((f"exponent over n, at most {GOAL}", blocks, ms, "", memory, "", ""))
    header = ("n, local + log-strided", "blocks", "ms", "ns a token", "peak MB", "bytes a token", "err/bound")
    return output.table(header, lines)


def right(data: dict[str, Any]) -> bool:
    return all(row["error_over_bound"] <= 1 for row in data["rows"])


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """torch's profiler writes lines of its own to the file behind stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _entries(mask: Any) -> int:
    return int(mask.sum()) if not isinstance(mask, tuple) else len(mask[1])


def _error(out: Any, inputs: dict[str, Any]) -> float:
    """Of the last queries, which see the most: in float64 their scores are not n x n."""
    from deepseek_fast.bench import answers
    from deepseek_fast.kernels.block_sparse_attention import ref, ref_bounds
    from deepseek_fast.kernels.block_sparse_attention.ref_masks import block_matrix, lists_of

    rows, S = CHECKED // BLOCK, inputs["q"].shape[2]
    kept = block_matrix(inputs["block_mask"], S // BLOCK, S // BLOCK)[..., -rows:, :]
    some = inputs | {"q": inputs["q"][:, :, -CHECKED:], "block_mask": lists_of(kept), "q_offset": S - CHECKED}
    wanted, bound = ref.block_sparse_attention_ref(**some), ref_bounds.bound(**some)
    return answers.error_over_bound(out[:, :, -CHECKED:], wanted, bound)
