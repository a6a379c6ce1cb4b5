"""The torch side of every room: opcheck, compile and export without breaks, autograd, autocast, odd tensors."""

from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast._activations import ACTIVATIONS
from tests.doors import ROOMS, WEIGHT, call, pack, pack_arguments, part, prepared, raw, reference, torch_op, unpacked
from tests.oracle import assert_equal, assert_within

SCHEMES = [
    ("fp8_matmul", {"dtype": "float32", "block": (1, 32)}),
    ("fp8_matmul", {"dtype": "bfloat16", "activations": "fp8", "gated": True}),
    ("fused_matmul", {"dtype": "float32"}),
    ("fused_matmul", {"dtype": "bfloat16", "gated": True}),
    ("fused_matmul", {"dtype": "float16"}),
    ("int4_matmul", {"dtype": "float32", "zeros": True}),
    ("int4_matmul", {"dtype": "bfloat16", "compute": "float", "group_size": -1, "gated": True}),
    ("int8_matmul", {"dtype": "float32", "activations": "int8"}),
    ("int8_matmul", {"dtype": "bfloat16", "activations": "float", "gated": True}),
]
M, N, K = 6, 10, 14  # K / 2, the columns of a 4-bit weight, is none of the others: torch takes equal sizes for one
# Dynamo and Inductor use what torch 2.13 itself has deprecated: torch.jit, an instantiated autograd.Function.
TORCH_S_OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def inputs_of(room: str, scheme: dict[str, str], activation: str = "gelu", residual: str = "full") -> dict[str, Any]:
    case = part(room, "cases").Case(M, N, K, activation=activation, residual=residual, **scheme)
    return case.inputs(torch.Generator().manual_seed(11))


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "contiguous": x,
        "one row": x[:1],
        "empty": x[:0],
        "transposed": x.T.contiguous().T,
        "sliced": torch.cat([x, x], dim=1)[:, K : 2 * K],
        "outer permuted": x.reshape(2, 3, K).transpose(0, 1),
        "dense permuted": x.reshape(2, 3, K).permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }


# opcheck takes 30 ms a call: `make test` asks it of the layouts that the kernels read in different ways.
QUICK_LAYOUTS = ("contiguous", "empty", "outer permuted")
LAYOUTS = [
    pytest.param(name, marks=() if name in QUICK_LAYOUTS else pytest.mark.slow) for name in layouts(torch.empty(M, K))
]


def packed_inputs(room: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return unpacked(room, inputs) | {"packed": pack(room, inputs), "out_features": N}


# opcheck's schema test compares inputs before and after by arithmetic that torch 2.13 has not for float8. That no input
# is changed is asserted in test_contract.py.
WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(op: Any, arguments: dict[str, Any]) -> None:
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    has_float8 = any(value.is_floating_point() and value.itemsize == 1 for value in tensors)
    chosen = {"test_utils": WITHOUT_SCHEMA} if has_float8 else {}
    torch.library.opcheck(op.default, (), arguments, **chosen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_opcheck_of_layouts(room: str, scheme: dict[str, str], layout: str) -> None:
    inputs = inputs_of(room, scheme, residual="none")
    x = layouts(inputs["x"])[layout]
    opcheck(torch_op(room), raw({**inputs, "x": x}))
    opcheck(torch_op(f"{room}_packed"), {**packed_inputs(room, inputs), "x": x})


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_opcheck(room: str, scheme: dict[str, str]) -> None:
    inputs = inputs_of(room, scheme, residual="none")
    with_residual = inputs_of(room, scheme)
    opcheck(torch_op(room), raw(with_residual))
    opcheck(torch_op(f"{room}_packed"), packed_inputs(room, with_residual))
    weight = inputs[WEIGHT[room]]
    for same in (weight, weight.T.contiguous().T):
        opcheck(torch_op(f"{room}_pack"), pack_arguments(room, inputs | {WEIGHT[room]: same}))
    empty = part(room, "cases").Case(0, 0, K, residual="none", **scheme).inputs(torch.Generator())
    opcheck(torch_op(f"{room}_pack"), pack_arguments(room, empty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_opcheck_quantize(dtype: torch.dtype) -> None:
    for w in (torch.randn(5, 7), torch.randn(7, 5).T, torch.randn(0, 5), torch.randn(5, 0)):
        opcheck(torch_op("int8_quantize_weight"), {"w": w.to(dtype)})
        for options in ({}, {"group_size": -1, "symmetric": False}):
            opcheck(torch_op("int4_quantize_weight"), {"w": w.to(dtype)} | options)
        for options in ({"dtype": torch.float8_e4m3fn}, {"dtype": torch.float8_e5m2, "block_n": 2, "block_k": -1}):
            opcheck(torch_op("fp8_quantize_weight"), {"w": w.to(dtype)} | options)


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_compile_has_no_breaks_and_one_graph_for_all_sizes(room: str, scheme: dict[str, str]) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    op = getattr(deepseek_fast, room)
    compiled = torch.compile(lambda x, rest: op(x, **rest), fullgraph=True, dynamic=True, backend=counting)
    inputs = inputs_of(room, scheme, residual="none")
    x = inputs.pop("x")
    for rows in (6, 5, 3):
        part_of_x = x[:rows].clone()  # a view would add guards on its base
        assert_equal(compiled(part_of_x, inputs), op(part_of_x, **inputs), f"{rows} rows")
    assert len(graphs) == 1
    torch._dynamo.reset()


@TORCH_S_OWN_WARNINGS
@pytest.mark.parametrize("room", ROOMS)
def test_compile_through_aot_and_inductor(room: str) -> None:
    inputs = inputs_of(room, {"dtype": "float32"})
    op = getattr(deepseek_fast, room)

    def block(x: torch.Tensor) -> torch.Tensor:
        return op(**{**inputs, "x": x.transpose(0, 1).contiguous().transpose(0, 1)})

    want = block(inputs["x"])
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
        assert_equal(compiled(inputs["x"]), want, backend)
        torch._dynamo.reset()


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_export_keeps_one_node_of_ours(room: str, scheme: dict[str, str]) -> None:
    inputs = inputs_of(room, scheme, residual="none")
    op = getattr(deepseek_fast, room)

    class Block(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(**{**inputs, "x": x})

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Block(), (inputs["x"],), dynamic_shapes=({0: rows},))
    ours = [node for node in program.graph.nodes if str(node.target).startswith(f"deepseek_fast.{room}")]
    assert len(ours) == 1
    x = torch.randn(3, K).to(inputs["x"].dtype)
    assert_equal(program.module()(x), op(**{**inputs, "x": x}))


@pytest.mark.parametrize(("residual", "gated"), [("none", False), ("full", False), ("one", False), ("full", True)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_fused_matmul_are_those_of_the_reference(activation: str, residual: str, gated: bool) -> None:
    """Float64 autograd of ref.py is the truth; f32 gradients agree to a few times K u of their size."""
    inputs = inputs_of("fused_matmul", {"dtype": "float32", "gated": gated}, activation, residual)
    names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
    ours = {n: v.clone().requires_grad_() if n in names else v for n, v in inputs.items()}
    exact = {n: v.double().requires_grad_() if n in names else v for n, v in inputs.items()}
    upstream = torch.randn(M, N)
    got = torch.autograd.grad(deepseek_fast.fused_matmul(**ours), [ours[n] for n in names], upstream)
    want = torch.autograd.grad(
        reference("fused_matmul", exact), [exact[n] for n in names], upstream.double(), allow_unused=True
    )
    for name, g, w in zip(names, got, want, strict=True):
        assert g.dtype == torch.float32
        assert_within(g, w, torch.full_like(w, 1e-5 * max(1.0, w.abs().max().item())), f"d {name}")


def test_gradients_flow_only_where_asked() -> None:
    inputs = inputs_of("fused_matmul", {"dtype": "float32"})
    inputs["weight"].requires_grad_()
    y = deepseek_fast.fused_matmul(**inputs)
    assert y.requires_grad
    y.sum().backward()
    assert inputs["weight"].grad is not None
    assert inputs["x"].grad is None
    with torch.no_grad():
        assert not deepseek_fast.fused_matmul(**inputs).requires_grad


@TORCH_S_OWN_WARNINGS
def test_gradients_through_leading_dimensions_and_compile() -> None:
    inputs = inputs_of("fused_matmul", {"dtype": "float32"}, residual="none")
    weight = inputs["weight"].requires_grad_()
    x = torch.randn(2, 3, K, requires_grad=True)

    def block(x: torch.Tensor) -> torch.Tensor:
        return deepseek_fast.fused_matmul(x, weight, inputs["bias"], activation="gelu")

    want = torch.autograd.grad(block(x).square().sum(), [x, weight])
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), [x, weight])
    torch._dynamo.reset()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("wanted", ["x", "bias", "residual"])
@pytest.mark.parametrize("room", [room for room in ROOMS if room != "fused_matmul"])
def test_a_quantized_room_says_that_it_has_no_gradient(room: str, wanted: str) -> None:
    """Whichever tensor asks for one: a gradient that is silently not there would be worse."""
    inputs = inputs_of(room, {"dtype": "float32"})
    packed = packed_inputs(room, inputs)
    tensor = inputs[wanted].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{room}: x must .*; got "):
        getattr(deepseek_fast, room)(**inputs).sum().backward()
    with pytest.raises(RuntimeError, match=rf"{room}: x must .*; got "):
        getattr(part(room, "op"), f"{room}_packed")(**packed | {wanted: tensor}).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("room", ROOMS)
def test_autocast_computes_in_its_dtype(room: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(room, {"dtype": "float32"})
    # What a quantized weight is made of stays as it is, whatever x is.
    kept = () if room == "fused_matmul" else ("scale", WEIGHT[room])
    cast = {n: v.to(dtype) if isinstance(v, torch.Tensor) and n not in kept else v for n, v in inputs.items()}
    want = call(room, "torch", cast)
    with torch.autocast("cpu", dtype):
        got = call(room, "torch", inputs)
    assert_equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_under_autocast_are_those_of_its_dtype(dtype: torch.dtype) -> None:
    """x comes in autocast's dtype from the layer before, the parameters are float32 and get float32 gradients."""
    inputs = inputs_of("fused_matmul", {"dtype": "float32"})
    x, weight = inputs["x"].to(dtype).requires_grad_(), inputs["weight"].requires_grad_()
    with torch.autocast("cpu", dtype):
        got_y = deepseek_fast.fused_matmul(**{**inputs, "x": x})
    got = torch.autograd.grad(got_y.sum(), [x, weight])
    cast = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    want_y = deepseek_fast.fused_matmul(**{**cast, "x": x})
    want = torch.autograd.grad(want_y.sum(), [x, weight])
    assert_equal(got_y.detach(), want_y.detach())
    for g, w in zip(got, want, strict=True):
        assert_equal(g, w)


@pytest.mark.parametrize("room", ROOMS)
def test_views_that_negate_are_resolved(room: str) -> None:
    inputs = prepared(room, part(room, "cases").CASES[1])[0]
    negated = {**inputs, "x": torch._neg_view(inputs["x"])}
    assert_equal(call(room, "torch", negated), call(room, "torch", {**inputs, "x": -inputs["x"]}))


@pytest.mark.parametrize("room", ROOMS)
def test_tensors_without_plain_memory_are_refused(room: str) -> None:
    inputs = inputs_of(room, {"dtype": "float32"}, residual="none")
    with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError)):
        getattr(deepseek_fast, room)(**{**inputs, "x": inputs["x"].to_sparse()})


@pytest.mark.parametrize("room", ROOMS)
def test_meta_tensors_give_meta_tensors(room: str) -> None:
    inputs = inputs_of(room, {"dtype": "float32"})
    on_meta = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    for residual in (on_meta["residual"], torch.ones(1, device="meta"), None):
        got = getattr(deepseek_fast, room)(**{**on_meta, "residual": residual})
        assert got.device.type == "meta"
        assert got.shape == (M, N)
        assert got.dtype == torch.float32
