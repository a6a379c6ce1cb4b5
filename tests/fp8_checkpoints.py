"""Checkpoints for the tests of fp8-convert, written by the safetensors package."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepseek_fast import fp8_quantize_weight

QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
INDEX = "model.safetensors.index.json"
WEIGHT = "model.layers.0.mlp.up_proj.weight"  # what the small checkpoint converts
SCALE = WEIGHT + "_scale_inv"


def fp8_weight(name: str, N: int, K: int) -> dict[str, Tensor]:
    """A weight and its scale. The scale has few bits, so that products are exact in float32."""
    codes, scale = fp8_quantize_weight(torch.randn(N, K))
    return {name: codes, f"{name}_scale_inv": scale.bfloat16().float()}


def write(folder: Path, shards: list[dict[str, Tensor]], config: dict[str, Any] | None = None) -> Path:
    """A folder with these shards, their index, config.json and a tokenizer; one shard: model.safetensors."""
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, tensors in zip(names, shards, strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        total = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    return folder


def small(folder: Path) -> Path:
    """One FP8 weight and a norm in model.safetensors."""
    norm = {"model.norm.weight": torch.randn(64, dtype=torch.bfloat16)}
    return write(folder, [fp8_weight(WEIGHT, 192, 160) | norm], {"torch_dtype": "bfloat16"})


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a folder or a file."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def bits(x: Tensor) -> Tensor:
    """Bytes, to compare NaN and FP8 too."""
    return x.contiguous().view(-1).view(torch.uint8)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """The same names, dtypes, shapes and bits."""
    return set(a) == set(b) and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and torch.equal(bits(a[name]), bits(b[name]))
        for name in a
    )


def product(codes: Tensor, scale: Tensor, block: int = 128) -> Tensor:
    """codes * scale in float64."""
    N, K = codes.shape
    scale = scale.double().repeat_interleave(block, 0)[:N].repeat_interleave(block, 1)[:, :K]
    return codes.double() * scale


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
