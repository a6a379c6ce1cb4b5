"""Measures a room's tile choices on this GPU, and keeps the best for later calls of like sizes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_fast.gpu import tiles

MIN_GAIN = 0.02  # a choice must be faster than the table's by this share, which is more than a repeat differs by


def tune(function: Callable[..., Any], /, *args: Any, **named: Any) -> dict[str, "tiles.Config"]:
    """Tries every tile choice of the kernels that function(*args, **named) launches, and keeps the fastest.

    function: any function that calls deepseek_fast's ops with CUDA tensors, once, the same way each time.
    Returns what was kept, by kernel and sizes (rounded up to powers of two): a later call of such sizes takes it, in
    this process and others, from a file of this device, package and triton version in the folder DSF_TUNE_DIR, or
    ~/.cache/deepseek_fast. Empty where the built-in choices are within 2 % of the best.
    Takes seconds: each choice is compiled and timed for 0.1 s. Each choice gives results within the same
    bound, integer schemes the same bits.
    Raises RuntimeError without a GPU, or where function launches no kernel that has a choice.

    >>> deepseek_fast.tune(deepseek_fast.fp8_matmul, x, weight, scale)
    {'fp8_matmul M=16 N=8192 K=8192': {'BLOCK_M': 16, 'BLOCK_N': 64, 'num_warps': 4, 'num_stages': 5}}

    Source: the tables and their reasons are in kernels/<op>/triton_kernel.py.
    """
    _need_gpu()
    from triton.testing import do_bench

    return _tune(lambda: function(*args, **named), lambda call: float(do_bench(call, return_mode="median")))


def _tune(call: Callable[[], Any], seconds: Callable[[Callable[[], Any]], float]) -> dict[str, "tiles.Config"]:
    from deepseek_fast.gpu import tiles

    with tiles.asked() as asked:
        call()
    if not asked:
        raise RuntimeError("tune: function must launch a kernel that has a choice of tiles; got none")
    kept: dict[str, tiles.Config] = {}
    for key, (table, sizes) in asked.items():
        before = table.choose(**sizes)
        times = [(_seconds_with(table.name, config, call, seconds), config) for config in table.candidates(sizes)]
        usual = _seconds_with(table.name, before, call, seconds)
        best, config = min(times, key=lambda timed: timed[0])
        if best < usual * (1 - MIN_GAIN):
            kept[key] = config
    if kept:
        tiles.keep_tuned(kept)
    return kept


def _seconds_with(
    name: str, config: "tiles.Config", call: Callable[[], Any], seconds: Callable[[Callable[[], Any]], float]
) -> float:
    """Infinity for a choice that this chip refuses, for its shared memory or its registers."""
    from triton.runtime.errors import OutOfResources

    from deepseek_fast.gpu import tiles

    with tiles.forced(name, config):
        try:
            return seconds(call)
        except OutOfResources:
            return float("inf")


def _need_gpu() -> None:
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f"tune: torch must be installed; got '{error}'") from None
    if torch.version.cuda is None:
        raise RuntimeError(f"tune: torch must be built with CUDA; got {torch.__version__}")
    if not torch.cuda.is_available():
        raise RuntimeError("tune: a CUDA GPU must be there; got none")
