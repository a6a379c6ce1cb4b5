"""torchao's casts in plain torch through torch.compile, as its own layers call them: float8, MX and NVFP4."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._casts import EXACT, OTHER_SCALE, shape_of_blocks
from deepseek_fast.bench.peers._compiled import compiled
from deepseek_fast.cli import output

PACKAGES = ("torchao",)
HOW_TO_INSTALL = "pip install torchao, or run `make bench-peers`"
# DeepGEMM's rule is RCEIL for blocks whose amax is above 1e-4.
MX_RULES = {
    "torchao": "FLOOR",
    "torchao_ceil": "CEIL",
    "torchao_even": "EVEN",
    "torchao_rceil": "RCEIL",
    "deepgemm": "RCEIL",
}


class Cast(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    block, dtype = inputs.get("block", (1, 128)), inputs.get("dtype", torch.float8_e4m3fn)
    scale, mode = inputs.get("scale", "f32"), inputs.get("mode", "deepgemm")
    if block is None or inputs["x"].dtype == torch.float16:
        raise Unsupported("torchao casts float32 and bfloat16, with a scale")
    if scale == "f32" and mode == "deepgemm":
        return _float8(inputs["x"], block, dtype)
    if scale == "ue8m0" and mode in MX_RULES and block == (1, 32) and dtype == torch.float8_e4m3fn:
        return _mx(inputs["x"], dtype, mode)
    if scale == "e4m3" and block == (1, 16) and dtype == torch.float4_e2m1fn_x2:
        return _nvfp4(inputs["x"], inputs.get("tensor_scale"))
    raise Unsupported(f"torchao has no scale {scale} of mode {mode} for blocks of {block} of {dtype}")


def _float8(x: Tensor, block: tuple[int, int], dtype: torch.dtype) -> dict[str, Peer]:
    """Divides by the scale where DeepGEMM multiplies by its inverse, and has no floor of amax."""
    with output.quiet():  # it warns of CUDA libraries that it cannot load
        from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8
    _, rows, _, columns = shape_of_blocks(x, block)

    def cast(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = _choose_scale_float8(x, [rows, columns], dtype)
        return _quantize_affine_float8(x, scale, dtype), scale

    return {"torchao float8, divides": Peer(compiled(Cast(cast), x), *OTHER_SCALE)}


def _mx(x: Tensor, dtype: torch.dtype, mode: str) -> dict[str, Peer]:
    """It gives the scales before the codes; not compiled: inductor does not know float8_e8m0fnu on CPUs."""
    with output.quiet():
        from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx
    rule = ScaleCalculationMode[MX_RULES[mode]]
    return {"torchao to_mx, eager": Peer(lambda: to_mx(x, dtype, 32, rule), *EXACT, _turned)}


def _turned(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return found[1], found[0]


def _nvfp4(x: Tensor, tensor_scale: Tensor | None) -> dict[str, Peer]:
    with output.quiet():
        from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize
    call = compiled(Cast(lambda x: nvfp4_quantize(x, 16, tensor_scale)), x)
    return {"torchao nvfp4": Peer(call, *EXACT, lambda found: (found[1].view(torch.float4_e2m1fn_x2), found[0]))}
