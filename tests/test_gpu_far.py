"""Rows so far apart that 32 bits do not count the values between them: every kernel's offsets are wider.

Nothing touches the memory between the rows. Here it exists on paper alone; where there is none, a test is skipped.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import ScalingType
from torch.utils import _pytree as pytree

import deepseek_fast
from tests import gpu
from tests.doors import EVERY_ROOM

pytestmark = gpu.gpu
ROWS = 4
DISTANCE = 1 << 30  # values: fits in 32 bits, three of it do not


def far(x: Tensor) -> Tensor:
    """x, DISTANCE values from each index of the first dimension to the next."""
    try:
        memory = torch.empty((len(x) - 1) * DISTANCE + x[0].numel(), dtype=x.dtype, device=gpu.device())
    except RuntimeError as error:  # torch's, of its allocators: of a small GPU, of a system that does not overcommit
        pytest.skip(str(error).splitlines()[0])
    return memory.as_strided(x.shape, (DISTANCE, *x.contiguous().stride()[1:])).copy_(x)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def codes(*shape: int) -> Tensor:
    return torch.randn(shape).to(torch.float8_e4m3fn)


def bytes_of(*shape: int) -> Tensor:
    """Codes that are numbers, and float32 scales from four of them."""
    return torch.randint(0x30, 0x40, shape, dtype=torch.uint8)


def cache(layout: str) -> Tensor:
    made = deepseek_fast.mla_cache_empty(ROWS, 64, layout=layout)
    deepseek_fast.mla_cache_write(made, normal(ROWS * 64, 512 if layout == "v4" else 576), layout=layout)
    return made


def bytes_in(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def mla_indices() -> Tensor:
    return torch.randperm(ROWS * 64)[: ROWS * 32].reshape(ROWS, 1, 32).int()


# Of each public function: its arguments, and which of them are far apart.
CALLS: dict[str, tuple[Callable[[], dict[str, Any]], tuple[str, ...]]] = {
    "fused_matmul": (
        lambda: {"x": normal(ROWS, 64), "weight": normal(ROWS, 64), "residual": normal(ROWS, ROWS)},
        ("x", "weight", "residual"),
    ),
    "int8_matmul": (
        lambda: {"x": normal(ROWS, 64), "q": torch.randint(-99, 99, (8, 64)).char(), "scale": torch.rand(8)},
        ("x",),
    ),
    "fp8_matmul": (
        lambda: {"x": normal(ROWS, 64), "weight": codes(8, 64), "scale": torch.rand(1, 1), "activations": "fp8"},
        ("x",),
    ),
    "fp8_scaled_mm": (
        lambda: {
            "mat_a": codes(ROWS, 64), "mat_b": codes(8, 64).t(), "scale_a": torch.rand(1), "scale_b": torch.rand(1),
            "scale_recipe_a": ScalingType.TensorWise, "scale_recipe_b": ScalingType.TensorWise,
        },
        ("mat_a",),
    ),
    "int8_quantize_weight": (lambda: {"w": normal(ROWS, 64)}, ("w",)),
    "int4_matmul": (
        lambda: {"x": normal(ROWS, 64), "q": bytes_of(8, 32), "scale": torch.rand(8, 2), "compute": "float"},
        ("x",),
    ),
    "fp8_cast": (lambda: {"x": normal(ROWS, 256)}, ("x",)),
    "fp8_amax": (lambda: {"x": normal(ROWS, 256), "block": (2, 128)}, ("x",)),
    "fp8_dequantize": (lambda: {"codes": codes(ROWS, 256), "scale": torch.rand(ROWS, 2)}, ("codes",)),
    "fp8_cast_transposed": (lambda: {"x": normal(ROWS, 128)}, ("x",)),
    "silu_mul_cast": (lambda: {"x": normal(ROWS, 256)}, ("x",)),
    "rms_norm_cast": (lambda: {"x": normal(ROWS, 256), "weight": normal(256)}, ("x",)),
    "int8_cast": (lambda: {"x": normal(ROWS, 256)}, ("x",)),
    "fused_conv": (
        lambda: {"x": normal(ROWS, 16, 5, 6), "weight": normal(16, 16, 3, 3), "residual": normal(ROWS, 16, 3, 4)},
        ("x", "residual"),
    ),
    "fused_conv_int8": (
        lambda: {
            "x": bytes_of(ROWS, 16, 5, 6), "weight": torch.randint(-99, 99, (16, 16, 3, 3)).char(), "x_scale": 0.1,
            "x_zero_point": 3, "weight_scale": torch.rand(16), "y_scale": 9.0, "y_zero_point": 4,
        },
        ("x",),
    ),
    "pool2d": (lambda: {"x": normal(ROWS, 16, 5, 6), "kernel": 3}, ("x",)),
    "local_response_norm": (lambda: {"x": normal(ROWS, 16, 5, 6), "size": 5}, ("x",)),
    "block_sparse_attention": (
        lambda: {**{name: normal(ROWS, 2, 40, 32) for name in "qkv"}, "window": 9, "is_causal": True},
        ("q", "k", "v"),
    ),
    "top_k_blocks": (
        lambda: {"q": normal(ROWS, 2, 64, 32), "k": normal(ROWS, 2, 64, 32), "num_blocks": 3, "block_size": 16},
        ("q", "k"),
    ),
    "sparse_mla": (
        lambda: {"q": normal(ROWS, 16, 576), "kv": normal(256, 1, 576)[:ROWS], "indices": mla_indices() % ROWS},
        ("q", "kv"),
    ),
    "sparse_mla_decode": (
        lambda: {"q": normal(ROWS, 1, 16, 576), "k_cache": cache("v32"), "indices": mla_indices(), "layout": "v32"},
        ("k_cache",),
    ),
    "mla_cache_read": (lambda: {"cache": cache("v4"), "layout": "v4"}, ("cache",)),
    "fp8_mqa_logits": (
        lambda: {
            "q": codes(ROWS, 4, 64), "k": codes(ROWS, 64), "k_scale": torch.rand(ROWS), "weights": torch.rand(ROWS, 4),
        },
        ("k", "weights"),
    ),
    "fp8_paged_mqa_logits": (
        lambda: {
            "q": codes(2, 1, 4, 64), "cache": bytes_of(ROWS, 64, 1, 68), "weights": torch.rand(2, 4),
            "context_lens": torch.tensor([100, 128]).int(), "block_table": torch.tensor([[3, 1], [0, 2]]).int(),
            "max_context_len": 128,
        },
        ("cache",),
    ),
    "lightning_indexer": (
        lambda: {
            "q": codes(ROWS, 4, 64), "k": codes(ROWS, 64), "k_scale": torch.rand(ROWS), "weights": torch.rand(ROWS, 4),
            "top_k": 2, "sorted_by": "value",
        },
        ("k", "weights"),
    ),
    "lightning_indexer_paged": (
        lambda: {
            "q": codes(2, 1, 4, 64), "cache": bytes_of(ROWS, 64, 1, 68), "weights": torch.rand(2, 4),
            "context_lens": torch.tensor([100, 128]).int(), "block_table": torch.tensor([[3, 1], [0, 2]]).int(),
            "top_k": 9, "sorted_by": "value",
        },
        ("cache",),
    ),
    "topk_indices": (lambda: {"scores": torch.randn(ROWS, 300), "k": 20, "sorted_by": "index"}, ("scores",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_far_rows_give_what_near_ones_give(name: str) -> None:
    make, apart = CALLS[name]
    near = pytree.tree_map_only(Tensor, lambda x: x.to(gpu.device()), make())
    with gpu.on_gpu():
        want = getattr(deepseek_fast, name)(**near)
        got = getattr(deepseek_fast, name)(**near | {one: far(near[one]) for one in apart})
    for g, w in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert torch.equal(bytes_in(g), bytes_in(w))
        assert bytes_in(w).any()


@pytest.mark.parametrize(("name", "leaves"), [("block_sparse_attention", "q k v"), ("sparse_mla", "q kv")])
def test_gradients_of_far_rows(name: str, leaves: str) -> None:
    near = pytree.tree_map_only(Tensor, lambda x: x.to(gpu.device()), CALLS[name][0]())
    apart = {one: far(near[one]) for one in leaves.split()}
    gradients = []
    for inputs in (near, near | apart):
        wanted = [inputs[one].requires_grad_() for one in leaves.split()]
        with gpu.on_gpu():
            out = pytree.tree_leaves(getattr(deepseek_fast, name)(**inputs))[0]
            gradients.append(torch.autograd.grad(out.float().square().sum(), wanted))
    for g, w in zip(*gradients, strict=True):
        assert torch.equal(g, w)
        assert w.any()


@pytest.mark.parametrize("layout", ["v32", "v4"])
def test_a_cache_of_far_pages_is_written_as_one_of_near_ones(layout: str) -> None:
    near = deepseek_fast.mla_cache_empty(ROWS, 64, layout=layout).to(gpu.device())
    kv = normal(ROWS * 64, 512 if layout == "v4" else 576).to(gpu.device())
    apart = far(near)
    with gpu.on_gpu():
        for cache in (near, apart):
            deepseek_fast.mla_cache_write(cache, kv, layout=layout)
    assert torch.equal(bytes_in(apart), bytes_in(near))
    assert bytes_in(near).any()


def test_every_launcher_is_called() -> None:
    launchers = {op for room in EVERY_ROOM for op in import_module(f"deepseek_fast.kernels.{room}.triton_kernel").OPS}
    of_their_own = {"mla_cache_write", "block_sparse_attention_backward", "sparse_mla_backward"}
    assert launchers == set(CALLS) | of_their_own
