"""More rows, heads or lists than the second and third number of a grid may be, in each place: every launch is within
what a chip takes. Launchers run with tensors of device "meta", and nothing is compiled."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_fast.gpu import launch
from deepseek_fast.gpu.register import kernels
from tests import gpu
from tests.doors import EVERY_ROOM

pytestmark = gpu.gpu
MANY = 1 << 20  # above 65,535 blocks of up to 15
MOST_BLOCKS = (2**31 - 1, 65535, 65535)  # CUDA C++ Programming Guide, technical specifications per compute capability
BF16, F32, I8, I32, U8, BOOL = torch.bfloat16, torch.float32, torch.int8, torch.int32, torch.uint8, torch.bool
E4M3 = torch.float8_e4m3fn


def of(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def int8(op: Any, M: int, N: int, K: int) -> None:
    op(of(M, K), of(N, K, dtype=I8), of(N, dtype=F32))


def int4(op: Any, M: int, N: int, K: int, compute: str) -> None:
    scale = of(N, -(-K // 128), dtype=F32)
    op(of(M, K), of(N, K // 2, dtype=U8), scale, group_size=128, compute=compute)


def fp8(op: Any, M: int, N: int, K: int) -> None:
    """Recipes: 1x128 and 128x128."""
    scales = (of(-(-K // 128), M, dtype=F32).t(), of(-(-K // 128), -(-N // 128), dtype=F32).t())
    op(of(M, K, dtype=E4M3), of(N, K, dtype=E4M3), *scales, scale_recipe_a=4, scale_recipe_b=5, output_dtype=BF16)


def cast(op: Any, M: int, K: int, block_rows: int, block_cols: int) -> None:
    op(of(M, K), None, None, block_rows, block_cols, False, E4M3)


def fp8_weight(op: Any, M: int, N: int, K: int, activations: str) -> None:
    scale = of(-(-N // 128), -(-K // 128), dtype=F32)
    op(of(M, K), of(N, K, dtype=E4M3), scale, activations=activations)


def conv(op: Any, N: int, C: int, filters: int, groups: int = 1) -> None:
    op(of(N, C, 8, 8), of(filters, C // groups, 3, 3), None, [1, 1], [1] * 4, [1, 1], groups)


def conv_int8(op: Any, N: int, C: int, filters: int, groups: int = 1) -> None:
    x, weight = of(N, C, 8, 8, dtype=U8), of(filters, C // groups, 3, 3, dtype=I8)
    op(x, weight, 0.1, 3, of(filters, dtype=F32), 0.1, 4, None, [1, 1], [1] * 4, [1, 1], groups, U8)


def stem(op: Any, N: int) -> None:
    """A first layer with its pool, which has a kernel of its own."""
    x = of(N, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    op(x, of(64, 3, 7, 7), None, [2, 2], [3] * 4, [1, 1], 1, "relu", [], None, "before", [3, 3, 2, 2, 1, 1, 1, 1, 0])


def attention(op: Any, B: int, S: int, *, H: int = 2) -> None:
    op(*[of(B, H, S, 64)] * 3)


def attention_backward(op: Any, B: int, S: int, *, H: int = 2, blocks: int) -> None:
    x = of(B, H, S, 64)
    op(x, None, x, x, x, x, of(B, H, S, dtype=F32), of(B, H, blocks, blocks, dtype=BOOL))


def mla(op: Any, s_q: int, h_q: int, topk: int) -> None:
    op(of(s_q, h_q, 64), of(9, 1, 64), of(s_q, 1, topk, dtype=I32), None, 64)


def mla_backward(op: Any, s_q: int, h_kv: int, s_kv: int, topk: int) -> None:
    q, lse = of(s_q, h_kv, 64), of(s_q, h_kv, dtype=F32)
    op(q, q, of(s_kv, h_kv, 64), of(s_q, h_kv, topk, dtype=I32), q, lse, None, 64, None, None)


def mqa(s_q: int, s_kv: int) -> tuple[Tensor, ...]:
    scale, weights = of(s_kv, dtype=F32), of(s_q, 4, dtype=F32)
    return of(s_q, 4, 64, dtype=E4M3), of(s_kv, 64, dtype=E4M3), scale, weights


def paged_mqa(b: int) -> tuple[Tensor, ...]:
    cache, lists = of(9, 64, 1, 68, dtype=U8), (of(b, dtype=I32), of(b, 2, dtype=I32))
    return of(b, 1, 4, 64, dtype=E4M3), cache, of(b, 4, dtype=F32), *lists


# Of each op: its room, and calls of its launcher, each with a large number in another place.
LARGE: dict[str, tuple[str, tuple[Callable[[Any], Any], ...]]] = {
    "fused_matmul": (
        "fused_matmul",
        (
            lambda op: op(of(16 * MANY, 64), of(64, 64)),
            lambda op: op(of(4, 64), of(32 * MANY, 64)),
            lambda op: op(of(4, 64 * MANY), of(64, 64 * MANY)),
        ),
    ),
    "int8_matmul": (
        "int8_matmul",
        (
            lambda op: int8(op, 16 * MANY, 64, 64),
            lambda op: int8(op, 4, 32 * MANY, 64),
            lambda op: int8(op, 4, 64, 64 * MANY),
        ),
    ),
    "int8_quantize_weight": (
        "int8_matmul",
        (lambda op: op(of(16 * MANY, 64, dtype=F32)), lambda op: op(of(4, 64 * MANY, dtype=F32))),
    ),
    "fp8_matmul": (
        "fp8_matmul",
        (
            lambda op: fp8_weight(op, 16 * MANY, 128, 128, "float"),
            lambda op: fp8_weight(op, 4, 32 * MANY, 128, "float"),
            lambda op: fp8_weight(op, 4, 128, 64 * MANY, "float"),
            lambda op: fp8_weight(op, 16 * MANY, 128, 128, "fp8"),
            lambda op: fp8_weight(op, 4, 128, 64 * MANY, "fp8"),
        ),
    ),
    "fp8_scaled_mm": (
        "fp8_matmul",
        (
            lambda op: fp8(op, 16 * MANY, 128, 128),
            lambda op: fp8(op, 4, 32 * MANY, 128),
            lambda op: fp8(op, 4, 128, 64 * MANY),
        ),
    ),
    "int4_matmul": (
        "int4_matmul",
        (
            lambda op: int4(op, 16 * MANY, 128, 128, "float"),
            lambda op: int4(op, 4, 32 * MANY, 128, "float"),
            lambda op: int4(op, 4, 128, 64 * MANY, "float"),
            lambda op: int4(op, 16 * MANY, 128, 128, "int8"),
            lambda op: int4(op, 4, 32 * MANY, 128, "int8"),
            lambda op: int4(op, 4, 128, 64 * MANY, "int8"),
        ),
    ),
    "fp8_cast": (
        "fp8_cast",
        (
            lambda op: cast(op, 64 * MANY, 128, 1, 128),
            lambda op: cast(op, 4, 128 * MANY, 1, 128),
            lambda op: cast(op, 64 * MANY, 128, 1, -1),
            lambda op: cast(op, 4, 128 * MANY, 1, -1),
            lambda op: cast(op, 64 * MANY, 128, -1, -1),
        ),
    ),
    "fp8_amax": (
        "fp8_cast",
        (
            lambda op: op(of(64 * MANY, 128), 1, 128),
            lambda op: op(of(4, 128 * MANY), 1, 128),
            lambda op: op(of(64 * MANY, 128), -1, -1),
        ),
    ),
    "silu_mul_cast": (
        "fp8_cast",
        (
            lambda op: op(of(64 * MANY, 256), None, 1, 128, E4M3),
            lambda op: op(of(4, 256 * MANY), None, 1, 128, E4M3),
        ),
    ),
    "fp8_cast_transposed": (
        "fp8_cast",
        (
            lambda op: op(of(128 * MANY, 128), 1, 128, E4M3),
            lambda op: op(of(128, 128 * MANY), 1, 128, E4M3),
        ),
    ),
    "fp8_dequantize": (
        "fp8_cast",
        (lambda op: op(of(64 * MANY, 128, dtype=E4M3), of(64 * MANY, 1, dtype=F32), None, 1, 128, BF16),),
    ),
    "rms_norm_cast": (
        "fp8_cast",
        (lambda op: op(of(16 * MANY, 128), of(128), None, 1e-6, 1, 128, E4M3),),
    ),
    "int8_cast": ("fp8_cast", (lambda op: op(of(16 * MANY, 128)),)),
    "fused_conv": (
        "fused_conv",
        (
            lambda op: conv(op, MANY, 16, 16),
            lambda op: conv(op, 1, 16, 16 * MANY),
            lambda op: conv(op, 1, 2 * MANY, 2 * MANY, MANY),
            lambda op: conv(op, 1, MANY, MANY, MANY),
            lambda op: stem(op, MANY),
        ),
    ),
    "fused_conv_int8": (
        "fused_conv",
        (
            lambda op: conv_int8(op, MANY, 16, 16),
            lambda op: conv_int8(op, 1, 16, 16 * MANY),
            lambda op: conv_int8(op, 1, MANY, MANY, MANY),
        ),
    ),
    "local_response_norm": ("fused_conv", (lambda op: op(of(MANY, 16, 8, 8), 5), lambda op: op(of(1, MANY, 8, 8), 5))),
    "pool2d": ("fused_conv", (lambda op: op(of(MANY, 16, 8, 8), [2, 2, 2, 2, 0, 0, 0, 0, 0]),)),
    "block_sparse_attention": (
        "block_sparse_attention",
        (
            lambda op: attention(op, MANY, 1),
            lambda op: attention(op, 1, 8 * MANY),
            lambda op: attention(op, 1, 128, H=MANY),
        ),
    ),
    "block_sparse_attention_backward": (
        "block_sparse_attention",
        (
            lambda op: attention_backward(op, MANY, 128, blocks=1),
            lambda op: attention_backward(op, 1, 128, H=MANY, blocks=1),
            lambda op: attention_backward(op, 1, 8 * MANY, blocks=MANY // 16),
        ),
    ),
    "top_k_blocks": ("block_sparse_attention", (lambda op: op(of(MANY, 2, 256, 64), of(MANY, 2, 256, 64), 1),)),
    "sparse_mla": ("sparse_mla", (lambda op: mla(op, MANY, 2, 8), lambda op: mla(op, 1, 2, 64 * MANY))),
    "sparse_mla_backward": (
        "sparse_mla",
        (
            lambda op: mla_backward(op, MANY, 1, 9, 1),
            lambda op: mla_backward(op, 1, MANY, 9, 8),
            lambda op: mla_backward(op, 1, 1, MANY, 64 * MANY),
        ),
    ),
    "sparse_mla_decode": (
        "sparse_mla",
        (lambda op: op(of(MANY, 1, 2, 64), of(9, 64, 1, 64), of(MANY, 1, 8, dtype=I32), None, 64),),
    ),
    "mla_cache_write": (
        "sparse_mla",
        (lambda op: op(of(MANY, 64, 1, 656, dtype=U8), of(64 * MANY, 576), None, "v32"),),
    ),
    "mla_cache_read": ("sparse_mla", (lambda op: op(of(MANY, 64, 1, 656, dtype=U8), "v32"),)),
    "fp8_mqa_logits": (
        "lightning_indexer",
        (
            lambda op: op(*mqa(64 * MANY, 64), None, None, 0, F32),
            lambda op: op(*mqa(4, 64 * MANY), None, None, 0, F32),
        ),
    ),
    "fp8_paged_mqa_logits": ("lightning_indexer", (lambda op: op(*paged_mqa(MANY), 128, F32),)),
    "lightning_indexer": (
        "lightning_indexer",
        (
            lambda op: op(*mqa(MANY, 64), 8, None, None, "value"),
            lambda op: op(*mqa(4, 64 * MANY), 2048, None, None, "value"),
        ),
    ),
    "lightning_indexer_paged": (
        "lightning_indexer",
        (lambda op: op(*paged_mqa(MANY), 8, "value", True),),
    ),
    "topk_indices": (
        "lightning_indexer",
        (
            lambda op: op(of(MANY, 64, dtype=F32), 8, "value", None),
            lambda op: op(of(2, 256 * MANY, dtype=F32), 128 * MANY, "value", None),
        ),
    ),
}


def test_every_launcher_is_among_them() -> None:
    launchers = {op for room in EVERY_ROOM for op in import_module(f"deepseek_fast.kernels.{room}.triton_kernel").OPS}
    assert launchers == set(LARGE)


@pytest.mark.parametrize("arch", gpu.ARCHS)
@pytest.mark.parametrize("op", LARGE)
def test_grids_are_within_what_a_launch_takes(op: str, arch: int) -> None:
    room, calls = LARGE[op]
    launches: list[tuple[int, launch.Launch]] = []
    for number, call in enumerate(calls):

        def not_wanted(planned: launch.Launch, number: int = number) -> bool:
            launches.append((number, planned))
            return False

        with torch.device("meta"), launch.compiling(arch, not_wanted):
            call(kernels(room, op)[op])
    assert {number for number, _ in launches} == set(range(len(calls)))
    for number, one in launches:
        fits = [blocks <= most for blocks, most in zip(one.grid, MOST_BLOCKS, strict=False)]
        assert all(fits), f"call {number}: {one.kernel} has a grid of {one.grid}"
