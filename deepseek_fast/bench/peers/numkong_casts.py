"""NumKong's astype on torch's memory: plain casts, and no scale."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported

PACKAGES = ("numkong",)
HOW_TO_INSTALL = "pip install numkong, or run `make bench-peers`"
NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
}
# Equal on finite values inside the range; beyond it NaN becomes 448, too.
EXACT = (0.0, "round half to even, saturating: every bit of finite values")


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs.get("block", (1, 128)) is not None:
        raise Unsupported("NumKong casts without a scale")
    return _astype(inputs["x"], inputs.get("dtype", torch.float8_e4m3fn))


def fp8_dequantize(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs.get("scale") is not None:
        raise Unsupported("NumKong casts without a scale")
    return _astype(inputs["codes"], inputs.get("dtype", torch.float32))


def _astype(x: Tensor, dtype: torch.dtype) -> dict[str, Peer]:
    import numkong

    if torch.get_num_threads() > 1:
        raise Unsupported("NumKong's astype runs on one thread")
    if x.dtype not in NAMES or dtype not in NAMES:
        raise Unsupported(f"NumKong has no cast of {x.dtype} to {dtype}")
    view, name, astype = numkong.from_dlpack(x), NAMES[dtype], numkong.astype
    return {"NumKong astype": Peer(lambda: astype(view, name), *EXACT, _tensor(x.shape, dtype))}


def _tensor(shape: torch.Size, dtype: torch.dtype) -> Callable[[Any], Tensor]:
    """What astype gives as a tensor of the same memory."""

    def answer(found: Any) -> Tensor:
        return torch.frombuffer(memoryview(found).cast("B"), dtype=torch.uint8).view(dtype).reshape(shape)

    return answer
