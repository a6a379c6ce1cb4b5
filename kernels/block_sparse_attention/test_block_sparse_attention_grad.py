"""Gradients of block_sparse_attention: every case against ref.py within ref_bounds.py, and in autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.block_sparse_attention import ref
from deepseek_fast.kernels.block_sparse_attention.cases import CASES, Case
from tests.attention_doors import gradients, prepared, prepared_backward
from tests.conv_tensors import TORCH_S_OWN_WARNINGS
from tests.oracle import assert_equal, assert_within

NAMES = ("dq", "dk", "dv", "dsink_logits")
OF_ALL_KINDS = tuple(CASES[4::9])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_are_within_the_bounds_and_the_same_at_every_door(case: Case, isa: str) -> None:
    inputs = prepared(case)[0]
    upstream, want, bounds = prepared_backward(case)
    got = {door: gradients(door, upstream["dout"], upstream.get("dlse"), inputs) for door in ("torch", "numpy")}
    for name, value, again, expected, bound in zip(NAMES, *got.values(), want, bounds, strict=False):
        assert value.dtype == (torch.float32 if name == "dsink_logits" else inputs["q"].dtype)
        assert_within(value, expected, bound, f"{name} on {isa}")
        assert_equal(again, value, f"{name} of the NumPy door on {isa}")


@pytest.mark.parametrize("case", OF_ALL_KINDS, ids=lambda case: case.id)
def test_the_number_of_threads_changes_no_gradient(case: Case, num_threads: Any) -> None:
    upstream = prepared_backward(case)[0]
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results.append(gradients("torch", upstream["dout"], upstream.get("dlse"), prepared(case)[0]))
    for got in results[1:]:
        for value, expected in zip(got, results[0], strict=True):
            assert_equal(value, expected, "threads")


def of(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).requires_grad_()


@pytest.mark.parametrize("part", ["out", "lse", "both"])
def test_gradients_are_autograd_s_of_the_reference(part: str, generator: torch.Generator) -> None:
    leaves = {"q": of((2, 4, 30, 12), generator), "k": of((2, 2, 40, 12), generator), "v": of((2, 2, 40, 8), generator)}
    leaves["sink_logits"] = of((4,), generator)
    options: dict[str, Any] = {"block_mask": torch.rand(2, 4, 4, 5, generator=generator) < 0.6, "block_size": 8}
    options |= {"is_causal": True, "q_offset": 9, "return_lse": True}
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}

    def loss(out: Tensor, lse: Tensor) -> Tensor:
        finite = torch.where(lse.isneginf(), 0.0, lse)
        return (part != "lse") * out.double().square().sum() + (part != "out") * finite.sin().sum()

    got = loss(*deepseek_fast.block_sparse_attention(**leaves, **options))
    want = loss(*ref.block_sparse_attention_ref(**exact, **options))
    ours = torch.autograd.grad(got, list(leaves.values()))
    theirs = torch.autograd.grad(want, list(exact.values()), allow_unused=True, materialize_grads=True)
    for name, g, w in zip(leaves, ours, theirs, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4, msg=f"d {name}")


def test_differences_of_the_op_itself_are_its_gradients(generator: torch.Generator) -> None:
    """Along random directions: the op in float32 moves as its own gradients say."""
    leaves = [of((1, 2, 20, 8), generator), of((1, 1, 25, 8), generator), of((1, 1, 25, 8), generator)]
    options: dict[str, Any] = {"window": 12, "sinks": 2, "q_offset": "end"}
    weight = torch.randn(1, 2, 20, 8, generator=generator)
    grads = torch.autograd.grad((deepseek_fast.block_sparse_attention(*leaves, **options) * weight).sum(), leaves)
    step = 2.0**-7
    for place in range(3):
        direction = torch.randn(leaves[place].shape, generator=generator)
        ends = []
        for sign in (1, -1):
            moved = [leaf.detach() + (sign * step * direction if i == place else 0) for i, leaf in enumerate(leaves)]
            ends.append((deepseek_fast.block_sparse_attention(*moved, **options).double() * weight).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(slope, (grads[place].double() * direction).sum(), rtol=1e-2, atol=1e-2)


def test_gradients_flow_only_where_asked(generator: torch.Generator) -> None:
    q, k = of((1, 2, 20, 8), generator), torch.randn(1, 2, 20, 8)
    out = deepseek_fast.block_sparse_attention(q, k, k, is_causal=True)
    assert out.requires_grad
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(grad.sum(), q)
    with torch.no_grad():
        assert not deepseek_fast.block_sparse_attention(q, k, k).requires_grad
    bias = torch.zeros(1, 1, 1, 20, requires_grad=True)
    with pytest.raises(ValueError, match="token_bias must need no gradient; got one that does"):
        deepseek_fast.block_sparse_attention(q, k, k, token_bias=bias)


@TORCH_S_OWN_WARNINGS
def test_gradients_through_compile(generator: torch.Generator) -> None:
    q, k = of((1, 2, 40, 8), generator), of((1, 1, 40, 8), generator)
    kept = torch.tensor([[True, False], [True, True]])

    def layer(q: Tensor, k: Tensor) -> Tensor:
        out, lse = deepseek_fast.block_sparse_attention(q, k, k, kept, block_size=20, is_causal=True, return_lse=True)
        return out.square().sum() + lse.sum()

    want = torch.autograd.grad(layer(q, k), [q, k])
    got = torch.autograd.grad(torch.compile(layer, fullgraph=True, backend="aot_eager")(q, k), [q, k])
    torch._dynamo.reset()
    for g, w in zip(got, want, strict=True):
        assert_equal(g, w)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, generator: torch.Generator) -> None:
    q, k = of((1, 2, 20, 8), generator), torch.randn(1, 2, 20, 8, generator=generator)
    bias, sink = torch.randn(1, 1, 1, 20), torch.randn(2)
    want = deepseek_fast.block_sparse_attention(
        q.detach().to(dtype), k.to(dtype), k.to(dtype), token_bias=bias, sink_logits=sink
    )
    for first in (q, q.detach(), q.detach().to(dtype)):
        with torch.autocast("cpu", dtype):
            got = deepseek_fast.block_sparse_attention(first, k, k, token_bias=bias, sink_logits=sink)
        assert_equal(got.detach(), want)
    with torch.autocast("cpu", dtype):
        out = deepseek_fast.block_sparse_attention(q, k, k)
    assert torch.autograd.grad(out.sum(), q)[0].dtype == torch.float32
