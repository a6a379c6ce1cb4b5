"""block_sparse_attention as a torch operator: opcheck, Meta kernels, torch.compile, torch.export, copies."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import deepseek_fast
from deepseek_fast.kernels.block_sparse_attention import meta
from tests.attention_doors import call, options, tensors, without_flex
from tests.conv_tensors import TORCH_S_OWN_WARNINGS
from tests.oracle import assert_equal

Q, K = torch.randn(2, 4, 70, 16), torch.randn(2, 2, 90, 24)[..., :16]
V = torch.randn(2, 90, 2, 8).transpose(1, 2)
KEPT = torch.rand(2, 4, 3, 6) < 0.5
MASK = create_block_mask(lambda b, h, i, j: j <= i + 3 * h, 1, 4, 70, 90, device="cpu", BLOCK_SIZE=32)
BASE: dict[str, Any] = {"q": Q, "k": K, "v": V}
CALLS: dict[str, dict[str, Any]] = {
    "dense": BASE,
    "causal window": BASE | {"is_causal": True, "window": 9, "sinks": 2, "q_offset": "end", "scale": 0.3},
    "bool": BASE | {"block_mask": KEPT, "block_size": (32, 16)},
    "one mask": BASE | {"block_mask": KEPT[0, 0], "block_size": (32, 16), "return_lse": True},
    "lists": BASE | {"block_mask": (torch.tensor([0, 1, 3, 4]), torch.tensor([0, 1, 2, 0]).int()), "block_size": 32},
    "flex": without_flex(BASE | {"block_mask": MASK}),
    "bias and sink": BASE | {"token_bias": torch.randn(2, 1, 1, 90), "sink_logits": torch.randn(4)},
    "sequences": {
        "q": Q[:1],
        "k": K[:1],
        "v": V[:1],
        "cu_seqlens_q": torch.tensor([0, 40, 70]),
        "cu_seqlens_k": torch.tensor([0, 50, 90]).int(),
    },
    "bf16": {name: value.bfloat16() for name, value in BASE.items()},
    "f16": {name: value.half() for name, value in BASE.items()},
    "nothing": {name: value[:, :, :0] for name, value in BASE.items()},
}


def arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    return (*tensors(inputs), *options(inputs))


def backward_arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    out, lse = meta.OP(*arguments(inputs))
    q, k, v, *rest = arguments(inputs)
    return (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, *rest)


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(meta.OP, arguments(CALLS[name]))
    torch.library.opcheck(meta.BACKWARD_OP, backward_arguments(CALLS[name]))


@pytest.mark.parametrize("name", CALLS)
def test_the_meta_kernels_say_what_the_ops_give(name: str) -> None:
    for op, args in ((meta.OP, arguments(CALLS[name])), (meta.BACKWARD_OP, backward_arguments(CALLS[name]))):
        fake = op(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args))
        for given, made in zip(op(*args), fake, strict=True):
            assert (made.shape, made.dtype, made.stride()) == (given.shape, given.dtype, given.stride())


def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, lse = deepseek_fast.block_sparse_attention(q, k, v, is_causal=True, window=20, sinks=4, return_lse=True)
    return out + lse[..., None]


def masked(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    out: Tensor = deepseek_fast.block_sparse_attention(q, k, v, kept, block_size=16, q_offset="end", is_causal=True)
    return out


def test_compile_has_no_breaks_and_one_graph_for_all_sizes() -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(windowed, fullgraph=True, dynamic=True, backend=counting)
    for B, H_kv, S in ((3, 2, 70), (5, 4, 90), (4, 6, 33)):
        q, k = torch.randn(B, 2 * H_kv, S, 8), torch.randn(B, H_kv, S, 8)
        assert_equal(compiled(q, k, k), windowed(q, k, k))
    assert len(graphs) == 1
    torch._dynamo.reset()


@TORCH_S_OWN_WARNINGS
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_through_aot_and_inductor(backend: str) -> None:
    kept = torch.rand(5, 6) < 0.7
    for function, args in ((windowed, (Q, K, V)), (masked, (Q, K, V, kept))):
        assert_equal(torch.compile(function, fullgraph=True, backend=backend)(*args), function(*args), backend)
        torch._dynamo.reset()


def test_compile_takes_the_lists_of_a_block_mask() -> None:
    lists = deepseek_fast.flex_block_lists(MASK)

    def attend(q: Tensor, k: Tensor, v: Tensor, lists: Any) -> Tensor:
        return deepseek_fast.block_sparse_attention(q, k, v, lists, block_size=32)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(Q, K, V, lists), deepseek_fast.block_sparse_attention(Q, K, V, MASK))
    torch._dynamo.reset()


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        q, k = (x * self.scale).unflatten(-1, (4, 2)).transpose(1, 2), x.unflatten(-1, (4, 2)).transpose(1, 2)
        return deepseek_fast.block_sparse_attention(q, k, k, kept, block_size=16, is_causal=True)


@pytest.mark.parametrize("grad", [False, True])
def test_export_keeps_the_op_for_any_length(grad: bool) -> None:
    module = Attention().requires_grad_(grad)
    tokens, blocks = torch.export.Dim("tokens", min=17), torch.export.Dim("blocks", min=2)
    shapes = {"x": {1: tokens}, "kept": {0: blocks, 1: blocks}}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, (torch.randn(2, 80, 8), torch.ones(5, 5).bool()), dynamic_shapes=shapes)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(meta.OP) == 1
    x, kept = torch.randn(2, 100, 8), torch.rand(7, 7) < 0.6
    assert_equal(program.module()(x, kept), module(x, kept))


def peak_bytes(call: Any) -> int:
    """The most memory that torch's own allocations took during the call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    return sum(event.self_cpu_memory_usage for event in found.key_averages() if event.self_cpu_memory_usage > 0)


def test_heads_side_by_side_are_not_copied() -> None:
    q, k = torch.randn(1, 200, 8, 32).transpose(1, 2), torch.randn(1, 300, 2, 32).transpose(1, 2)
    want = call("torch", {"q": q.contiguous(), "k": k.contiguous(), "v": k.contiguous()})[0]
    result = 4 * (q.numel() + q.numel() // 32)

    def attend() -> Tensor:
        return call("torch", {"q": q, "k": k, "v": k})[0]

    assert_equal(attend(), want)
    assert result <= peak_bytes(attend) < 1.2 * result
