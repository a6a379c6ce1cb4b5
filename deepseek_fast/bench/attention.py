"""What rows of single calls cannot say of sparse attention: quality on a real model, growth with n, time by density.

attention_quality.py  MiniLM with each pattern of blocks: kept share, cosine to dense, time
attention_growth.py   local + log-strided blocks from 1k to 64k tokens: exponent of time, peak memory
attention_density.py  time at a density d over d times our own dense time
"""

from typing import Any

from deepseek_fast.bench import attention_density, attention_growth, attention_quality
from deepseek_fast.cli import machine, output

SCHEMA, KIND = 1, "attention"
PARTS = ("quality", "growth", "density")


def measure(progress: output.Progress, *, quick: bool = False) -> dict[str, Any]:
    """All three tables as data; quick: fewer texts, tokens and rounds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            progress.step("MiniLM with every pattern")
            quality = attention_quality.measure(quick=quick)
            progress.step("local + log-strided, growing")
            growth = attention_growth.measure(quick=quick)
            progress.step("time by density")
            density = attention_density.measure(quick=quick)
    finally:
        torch.set_num_threads(threads)
    parts = dict(zip(PARTS, (quality, growth, density), strict=True))
    return {"schema": SCHEMA, "kind": KIND, "machine": machine.describe(1), **parts}


def text(result: dict[str, Any]) -> str:
    """Tables for a terminal."""
    tables = [
        attention_quality.table(result["quality"]),
        attention_growth.table(result["growth"]),
        attention_density.table(result["density"]),
    ]
    return "\n\n".join([*tables, machine.line(result["machine"])])


def right(result: dict[str, Any]) -> bool:
    """Whether every answer is what the dense mask gives; times are shown, not judged."""
    return attention_quality.right(result["quality"]) and attention_growth.right(result["growth"])
