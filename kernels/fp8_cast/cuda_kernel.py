"""The CUDA C++ kernel of blocks of 1x128 (cuda_sm80.cu) beside Triton's: which calls take it."""

import torch
from torch import Tensor

from deepseek_fast import _load
from deepseek_fast.gpu.tiles import Row, Table

ENGINE = Table(
    "fp8_cast_engine",
    "values",
    (
        Row(
            {"engine": "cuda"},
            values=1 << 22,
            why="derived: up to 4 us of bfloat16 at 3 TB/s, less than a launch from Python may cost; not measured",
        ),
        Row({"engine": "triton"}, why="derived: both are one pass; not measured yet, `deepseek_fast.tune` tries them"),
    ),
)


def cast_1x128(
    x: Tensor, block: tuple[int, int], dtype: torch.dtype, scale: str, mode: str, saturate: bool, layout: str
) -> tuple[Tensor, Tensor] | None:
    """Codes and scale; None for what the kernel has not, or where it was not built: then Triton's takes the call."""
    engine = ENGINE.choose(values=x.numel())["engine"]
    if (
        engine != "cuda"
        or block != (1, 128)
        or dtype not in (torch.float8_e4m3fn, torch.float8_e5m2)
        or scale not in ("f32", "ue8m0")
        or layout == "packed"
        or not x.is_cuda
        or not x.is_contiguous()
        or not _load.load_torch_cuda()
    ):
        return None
    return torch.ops.deepseek_fast._fp8_cast_1x128(x, dtype, scale, mode, saturate, layout)  # type: ignore[no-any-return]
