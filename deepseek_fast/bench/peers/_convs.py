"""What the plug-ins of convolutions share: a call's window, and the steps that a library does not fuse."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import ACTIVATIONS, float_peer

# One step of y in every tenth value, of a deviation of 60: a product of scales that is rounded otherwise.
INT8_STEP = (1e-2, "scales multiplied in another order: a tie may fall the other way")


@dataclass(frozen=True)
class Window:
    """A convolution's numbers, a pair each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pool: tuple[int, ...] | None  # kernel, stride, padding

    @staticmethod
    def of(inputs: dict[str, Any]) -> "Window":
        """raises: Unsupported for what only some libraries have."""
        pool = inputs.get("max_pool")
        if inputs.get("residual_at", "before") != "before" or inputs.get("activation_params"):
            raise Unsupported("peers are asked for residuals before an activation, and for one without numbers")
        if inputs["weight"].dim() != 4 or (pool is not None and len(pool) != 3):
            raise Unsupported("peers are asked for 2-D convolutions and pools of three numbers")
        stride, padding, dilation = (
            _pair(inputs.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        return Window(stride, padding, dilation, inputs.get("groups", 1), pool)

    def pooled(self, y: Tensor) -> Tensor:
        if self.pool is None:
            return y
        if y.dtype in (torch.uint8, torch.int8):  # F.max_pool2d counts a uint8 plane's pixels in a uint8
            return torch.ops.quantized.max_pool2d(y, *([number] * 2 for number in self.pool), [1, 1], False)
        kernel, stride, padding = self.pool
        return F.max_pool2d(y, kernel, stride, padding)

    def out(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """The shape before the pool."""
        sizes = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * pad - spread * (k - 1) - 1) // step + 1 for size, k, step, pad, spread in sizes)
        return x.shape[0], weight.shape[0], rows, columns


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if not isinstance(value, tuple) or len(value) != 2:
        raise Unsupported("peers are asked for one number, or one for rows and one for columns")
    return value


def layouts(x: Tensor) -> dict[str, torch.memory_format]:
    """Suffixes of labels: x as it is, and where it is NCHW channels_last as well, which most libraries like better."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return {"": torch.channels_last}
    return {"": torch.contiguous_format, ", channels_last": torch.channels_last}


def eager(inputs: dict[str, Any]) -> dict[str, Peer]:
    """F.conv2d and what follows, in torch."""
    window, weight, bias = Window.of(inputs), inputs["weight"], inputs["bias"]
    activate, residual = ACTIVATIONS[inputs["activation"]], inputs.get("residual")
    found = {}
    for suffix, layout in layouts(inputs["x"]).items():
        x, w = (tensor.to(memory_format=layout) for tensor in (inputs["x"], weight))
        r = None if residual is None else residual.to(memory_format=layout)

        def call(x: Tensor = x, w: Tensor = w, r: Tensor | None = r) -> Tensor:
            z = F.conv2d(x, w, bias, window.stride, window.padding, window.dilation, window.groups)
            return window.pooled(activate(z if r is None else z + r))

        found[f"torch F.conv2d{suffix}"] = float_peer(call, x)
    return found


def integer_peer(call: Callable[[], Tensor]) -> Peer:
    return Peer(call, *INT8_STEP)
