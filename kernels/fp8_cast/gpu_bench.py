"""What is measured of fp8_cast on a GPU: large casts and the way back beside a copy of as many bytes, and peers."""

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.cases import Bench, Goal, Peer

E4M3, E2M1, BF16 = torch.float8_e4m3fn, torch.float4_e2m1fn_x2, torch.bfloat16
SIZES = ((8192, 7168), (16384, 8192))  # activations of DeepSeek-V3, and a power of two: 117 and 268 MB of bfloat16
COPY = Goal(0.93, "copy")
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A cast: its options, bits of a code and bytes of a scale, and who has it too."""

    block: tuple[int, int] | None
    options: dict[str, Any]
    goal: Goal | None = COPY
    code_bits: int = 8
    scale_bytes: int = 4
    torchao: tuple[tuple[str, str], ...] = ()  # module and function of (x), by version of torchao


FORMS = {
    "1x128": Form(
        (1, 128),
        {},
        torchao=(
            ("torchao.prototype.blockwise_fp8_training.kernels", "triton_fp8_blockwise_act_quant_lhs"),
            ("torchao.kernel.blockwise_quantization", "fp8_blockwise_act_quant"),
        ),
    ),
    "128x128": Form(
        (128, 128),
        {},
        torchao=(
            ("torchao.prototype.blockwise_fp8_training.kernels", "triton_fp8_blockwise_weight_quant_rhs"),
            ("torchao.kernel.blockwise_quantization", "fp8_blockwise_weight_quant"),
        ),
    ),
    "row": Form((1, -1), {}),
    "mx": Form(
        (1, 32),
        {"scale": "ue8m0", "mode": "torchao"},
        scale_bytes=1,
        torchao=(("torchao.prototype.mx_formats.kernels", "triton_to_mxfp8_dim0"),),
    ),
    "plain": Form(None, {}),
    "nvfp4": Form((1, 16), {"scale": "e4m3", "mode": "torchao", "dtype": E2M1}, None, code_bits=4, scale_bytes=1),
    "tensor": Form((-1, -1), {}, None),  # x is read twice: two thirds of a copy's speed, and what L2 keeps
}


def rows(sizes: tuple[tuple[int, int], ...] = SIZES, device: str = "cuda") -> Iterator[Bench]:
    for name, form in FORMS.items():
        for M, K in sizes:
            yield Bench(
                f"fp8_cast-{M}x{K}-{name}",
                functools.partial(_inputs, M, K, form, device),
                _cast,
                _cast_error,
                M * K * (16 + form.code_bits) // 8 + _blocks(M, K, form) * form.scale_bytes,
                0,
                peers=tuple(_peers(form)),
                goal=form.goal,
            )
    for M, K in sizes:
        yield Bench(
            f"fp8_dequantize-{M}x{K}-128x128",
            functools.partial(_codes, M, K, device),
            _dequantize,
            _dequantize_error,
            3 * M * K + 4 * (M // 128) * (K // 128),
            0,
            peers=(Peer("torch.compile", _compiled_dequantize), Peer("torchao", _torchao_dequantize)),
            goal=COPY,
        )


def _blocks(M: int, K: int, form: Form) -> int:
    if form.block is None:
        return 0
    down, across = (1 if part < 0 else -(-size // part) for part, size in zip(form.block, (M, K), strict=True))
    return down * across


def _inputs(M: int, K: int, form: Form, device: str) -> Inputs:
    return {"x": torch.randn(M, K, device=device, dtype=BF16), "block": form.block, **form.options}


def _cast(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    import deepseek_fast

    return deepseek_fast.fp8_cast(x, **options)


def _cast_error(inputs: Inputs, result: Any) -> float:
    """0 where codes and scales have the CPU's bits: of 256 rows, or all where they share a scale."""
    block = inputs["block"]
    some = 256 if block is None or block[0] > 0 else inputs["x"].shape[0]
    want = _cast(**inputs | {"x": inputs["x"][:some].cpu()})
    same = all(
        torch.equal(_bytes(got[: len(other)].cpu()), _bytes(other)) for got, other in zip(result, want, strict=True)
    )
    return 0.0 if same else float("inf")


def _bytes(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)


def _peers(form: Form) -> Iterator[Peer]:
    if form.code_bits == 8:  # torch has no conversion to FP4
        yield Peer("torch.compile", functools.partial(_compiled, form))
    if form.torchao:
        yield Peer("torchao", functools.partial(_torchao, form))


def _compiled(form: Form, inputs: Inputs) -> Callable[[], Any]:
    """The formula as one writes it, compiled: its rounding of a power of two is OCP's floor."""
    x = inputs["x"]
    M, K = x.shape
    down, across = (
        size if part < 0 else part for part, size in zip(form.block or (-1, -1), (M, K), strict=True)
    )  # a block

    def cast(x: Tensor) -> Any:
        parts = x.float().view(M // down, down, K // across, across)
        if form.block is None:
            return parts.clamp(-448, 448).to(E4M3)
        amax = parts.abs().amax((1, 3), keepdim=True)
        if "scale" in form.options:
            scale = torch.exp2(torch.floor(torch.log2(amax.clamp_min(2.0**-100))) - 8)
        else:
            scale = amax.clamp_min(1e-4) / 448
        return (parts * (1 / scale)).clamp(-448, 448).to(E4M3), scale

    compiled = torch.compile(cast)
    return lambda: compiled(x)


def _imported(places: tuple[tuple[str, str], ...]) -> Callable[..., Any]:
    for module, name in places:
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)
            return found
        except (ImportError, AttributeError):
            continue
    raise RuntimeError(f"torchao has none of {', '.join(name for _, name in places)}")


def _torchao(form: Form, inputs: Inputs) -> Callable[[], Any]:
    function, x = _imported(form.torchao), inputs["x"]
    return lambda: function(x)


def _codes(M: int, K: int, device: str) -> Inputs:
    codes = torch.randint(0, 127, (M, K), device=device, dtype=torch.uint8)
    scale = torch.rand(M // 128, K // 128, device=device) + 0.5
    return {"codes": codes.view(E4M3), "scale": scale}


def _dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    import deepseek_fast

    return deepseek_fast.fp8_dequantize(codes, scale, block=(128, 128), dtype=BF16)


def _dequantize_error(inputs: Inputs, result: Any) -> float:
    want = _dequantize(inputs["codes"][:256].cpu(), inputs["scale"][:2].cpu())
    return 0.0 if torch.equal(_bytes(result[:256].cpu()), _bytes(want)) else float("inf")


def _compiled_dequantize(inputs: Inputs) -> Callable[[], Any]:
    codes, scale = inputs["codes"], inputs["scale"]
    M, K = codes.shape

    def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
        parts = codes.float().view(M // 128, 128, K // 128, 128) * scale[:, None, :, None]
        return parts.to(BF16).view(M, K)

    compiled = torch.compile(dequantize)
    return lambda: compiled(codes, scale)


def _torchao_dequantize(inputs: Inputs) -> Callable[[], Any]:
    """Its result has torch's default dtype: bfloat16 for the call."""
    function = _imported((("torchao.kernel.blockwise_quantization", "fp8_blockwise_weight_dequant"),))
    codes, scale = inputs["codes"], inputs["scale"]

    def dequantize() -> Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(BF16)
        try:
            return function(codes, scale)  # type: ignore[no-any-return]
        finally:
            torch.set_default_dtype(before)

    return dequantize


BENCH = tuple(rows())
