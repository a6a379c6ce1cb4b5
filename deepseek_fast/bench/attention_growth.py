"""Cost as n grows: local + log-strided blocks, n log n of them, from 1k to 64k tokens: time, its exponent, memory.

n log n itself, fitted over these n, has the exponent 1.12: log n grows by a factor of 1.6.
"""

import ctypes
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
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
    rows: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], Any]] = {}
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM, generator=generator).to(getattr(torch, DTYPE)) for _ in "qkv")
        mask = deepseek_fast.local_log_blocks(n, n, block_size=BLOCK, local=LOCAL)
        inputs = {"q": q, "k": k, "v": v, "block_mask": mask, "block_size": BLOCK, "is_causal": True}
        call = partial(deepseek_fast.block_sparse_attention, **inputs)
        error = _error(call(), inputs)
        rows.append({"n": n, "blocks": _entries(mask), "bytes": peak_bytes(call), "error_over_bound": error})
        calls[str(n)] = call
    times = timing.interleave(calls, rounds=QUICK_ROUNDS if quick else ROUNDS)
    for row in rows:
        row["ms"] = times[str(row["n"])].min * 1e3
    exponents = {name: exponent(sizes, [row[name] for row in rows]) for name in ("ms", "blocks", "bytes")}
    return {"block": BLOCK, "local": LOCAL, "head_dim": HEAD_DIM, "dtype": DTYPE, "rows": rows, "exponents": exponents}


def exponent(sizes: Any, values: Any) -> float:
    """The slope of log value over log size, by least squares."""
    if not all(value > 0 for value in values):  # NaN too
        return math.nan
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def peak_bytes(call: Callable[[], Any]) -> float:
    """The most memory that a call has at a time beyond what was there, result and workspace included: pages that the
    process has touched, whoever allocated them. NaN where Linux does not tell."""
    call()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # or the call is given pages that are there
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        call()
        return float(max(_status("VmHWM") - before, 0))
    except (OSError, KeyError):
        return math.nan


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int({key: value for key, _, value in lines}[name].split()[0]) << 10


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
