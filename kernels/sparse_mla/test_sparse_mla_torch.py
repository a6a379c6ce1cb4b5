"""sparse_mla and its family as torch operators: Meta kernels, torch.compile, torch.export, autograd, autocast."""

from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import op, ref
from deepseek_fast.kernels.sparse_mla.cases import DecodeCase
from tests.mla_doors import arguments

OPS = torch.ops.deepseek_fast
INT = torch.int32
TORCH_S_OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


Q, KV = numbers(4, 6, 40), numbers(30, 2, 40)
INDICES = (torch.arange(4 * 2 * 9, dtype=INT).reshape(4, 2, 9) * 7) % 33 - 1
SINK, LENGTH = numbers(6), torch.tensor([9, 4, 0, 7], dtype=INT)
OUT, _, LSE = deepseek_fast.sparse_mla(Q, KV, INDICES, d_v=24)
DECODES = {
    layout: arguments(DecodeCase(2, 2, 4, 60, 20, page=8, layout=layout).inputs(torch.Generator().manual_seed(1)))
    for layout in ("plain", "v32", "v4")
}
DENSE = arguments(DecodeCase(2, 2, 4, 60, 0, page=8, is_causal=True).inputs(torch.Generator().manual_seed(1)))
NAMES = [argument.name for argument in op._DECODE_OP._schema.arguments]
DEFAULTS = {argument.name: argument.default_value for argument in op._DECODE_OP._schema.arguments}
CACHE = deepseek_fast.mla_cache_empty(2, 8, layout="v4")
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "prefill": (op._OP, (Q, KV, INDICES, None, 24)),
    "everything": (op._OP, (Q, KV, INDICES, 0.3, 40, SINK, LENGTH)),
    "backward": (OPS.sparse_mla_backward.default, (OUT, Q, KV, INDICES, OUT, LSE, None, 24, None, None)),
    "backward, sink": (OPS.sparse_mla_backward.default, (OUT, Q, KV, INDICES, OUT, LSE, 0.1, 24, SINK, LENGTH)),
    **{
        f"decode, {name}": (op._DECODE_OP, tuple((DEFAULTS | given)[argument] for argument in NAMES))
        for name, given in {**DECODES, "dense": DENSE}.items()
    },
    "write": (op._WRITE_OP, (CACHE, numbers(5, 512), torch.tensor([3, -1, 0, 15, 7]), "v4")),
    "read": (op._READ_OP, (CACHE, "v4")),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    operator, args = CALLS[name]
    torch.library.opcheck(operator, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("name", CALLS)
def test_the_meta_kernel_says_what_the_op_gives(name: str) -> None:
    operator, args = CALLS[name]
    meta = operator(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args))
    for one, other in zip(as_tuple(meta), as_tuple(operator(*args)), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else () if result is None else (result,)


@TORCH_S_OWN_WARNINGS
def test_compile_has_no_graph_break() -> None:
    def run(q: Tensor, kv: Tensor) -> Tensor:
        return deepseek_fast.sparse_mla(q * 2, kv, INDICES, d_v=24, attn_sink=SINK)[0].sum(-1)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Q, KV), run(Q, KV))
    q, kv = Q.clone().requires_grad_(), KV.clone().requires_grad_()
    got = torch.autograd.grad(compiled(q, kv).sum(), (q, kv))
    want = torch.autograd.grad(run(q, kv).sum(), (q, kv))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_compiled_decode() -> None:
    given = DECODES["v32"]

    def run(q: Tensor) -> Any:
        return deepseek_fast.sparse_mla_decode(q, **{name: x for name, x in given.items() if name != "q"})

    for one, other in zip(
        torch.compile(run, fullgraph=True, backend="aot_eager")(given["q"]), run(given["q"]), strict=True
    ):
        assert torch.equal(one, other)


def test_export_keeps_the_operator() -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, kv: Tensor, indices: Tensor) -> Tensor:
            return deepseek_fast.sparse_mla(q, kv, indices, d_v=24)[0]

    tokens = torch.export.Dim("tokens", min=2)
    with torch.no_grad():
        program = torch.export.export(
            Module(), (Q, KV, INDICES), dynamic_shapes={"q": None, "kv": {0: tokens}, "indices": None}
        )
    assert any("sparse_mla" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(Q, KV[:20], INDICES), Module()(Q, KV[:20], INDICES))


def test_autograd_gives_what_the_reference_s_does() -> None:
    leaves = [x.clone().requires_grad_() for x in (Q, KV, SINK)]
    out, top, lse = deepseek_fast.sparse_mla(*leaves[:2], INDICES, d_v=24, attn_sink=leaves[2], topk_length=LENGTH)
    assert not top.requires_grad and not lse.requires_grad
    got = torch.autograd.grad(out.square().sum(), leaves)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    kwargs = {"d_v": 24, "attn_sink": exact[2], "topk_length": LENGTH}
    want = torch.autograd.grad(ref.sparse_mla_ref(*exact[:2], INDICES, **kwargs)[0].square().sum(), exact)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_refused() -> None:
    q = Q.clone().requires_grad_()
    out = deepseek_fast.sparse_mla(q, KV, INDICES, d_v=24)[0]
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_decode_says_that_it_has_no_gradient() -> None:
    given = dict(DECODES["plain"])
    given["q"] = given["q"].clone().requires_grad_()
    out, _ = deepseek_fast.sparse_mla_decode(**given)
    with pytest.raises(RuntimeError, match=r"^sparse_mla_decode: q must be used without a backward pass; got one"):
        out.sum().backward()


def test_autocast_runs_in_its_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _, lse = deepseek_fast.sparse_mla(Q, KV, INDICES, d_v=24, attn_sink=SINK)
    want = deepseek_fast.sparse_mla(Q.bfloat16(), KV.bfloat16(), INDICES, d_v=24, attn_sink=SINK)
    assert out.dtype == torch.bfloat16 and torch.equal(out, want[0]) and torch.equal(lse, want[2])


@pytest.mark.parametrize("d_qk", [8, 64, 576])
def test_no_scale_is_the_default(d_qk: int) -> None:
    q, kv = numbers(2, 3, d_qk), numbers(9, 1, d_qk)
    indices = torch.arange(9, dtype=INT).expand(2, 1, 9)
    given = deepseek_fast.sparse_mla(q, kv, indices, d_v=8, scale=d_qk**-0.5)
    assert all(torch.equal(a, b) for a, b in zip(deepseek_fast.sparse_mla(q, kv, indices, d_v=8), given, strict=True))
