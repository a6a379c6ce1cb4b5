"""ml_dtypes' astype on NumPy arrays, as JAX and ONNX cast on the host: plain casts."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported

PACKAGES = ("ml_dtypes",)
HOW_TO_INSTALL = "pip install 'deepseek-fast[onnx]'"
# Equal on values inside the range; beyond it they become NaN, where ours saturate.
EXACT = (0.0, "round half to even: every bit of values inside the range")


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs.get("block", (1, 128)) is not None:
        raise Unsupported("ml_dtypes casts without a scale")
    return _astype(inputs["x"], inputs.get("dtype", torch.float8_e4m3fn))


def fp8_dequantize(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs.get("scale") is not None:
        raise Unsupported("ml_dtypes casts without a scale")
    return _astype(inputs["codes"], inputs.get("dtype", torch.float32))


def _astype(x: Tensor, dtype: torch.dtype) -> dict[str, Peer]:
    import ml_dtypes
    import numpy as np

    if torch.get_num_threads() > 1:
        raise Unsupported("ml_dtypes' astype runs on one thread")
    source, target = (
        np.dtype(getattr(ml_dtypes, name, None) or name)
        for name in (str(one).removeprefix("torch.") for one in (x.dtype, dtype))
    )
    array = x.contiguous().view(torch.uint8).numpy().view(source)

    def answer(found: Any) -> Tensor:
        return torch.from_numpy(found.view(np.uint8)).view(dtype)

    return {"ml_dtypes astype": Peer(lambda: array.astype(target), *EXACT, answer)}
