"""The gated product of every room: y = act(x W1^T + b1) * (x W3^T + b3) + residual, from one weight of 2 N rows."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch

import deepseek_fast
from deepseek_fast import nn
from deepseek_fast.onnx import explain, export
from tests import ort_nodes
from tests.doors import (
    DOORS,
    ROOMS,
    WEIGHT,
    call,
    call_packed,
    good_call,
    numpy_op,
    pack,
    part,
    raw,
    to_numpy,
    torch_op,
)
from tests.onnx_models import attribute, counts, fused, run_everywhere
from tests.oracle import SENTENCE, assert_equal, assert_within

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its own pytrees
PER_CHANNEL = ("weight", "q", "scale", "zeros", "bias")


def gated_call(room: str) -> dict[str, Any]:
    """M = 4, N = 4, K = 64."""
    return good_call(room) | {"gated": True, "residual": torch.randn(4, 4), "activation": "silu"}


def half(inputs: dict[str, Any], rows: slice, activation: str) -> dict[str, Any]:
    """The product of one half alone, without a residual."""
    cut = {name: value[rows] if name in PER_CHANNEL and value is not None else value for name, value in inputs.items()}
    return {name: value for name, value in cut.items() if name not in ("gated", "residual")} | {
        "activation": activation
    }


@pytest.mark.parametrize("activation", ["none", "hardswish", "silu"])
@pytest.mark.parametrize("room", ROOMS)
def test_it_is_two_products_multiplied(room: str, activation: str, isa: str, num_threads: Any) -> None:
    """Bit for bit: in float32 nothing is rounded between the steps. More rows than the halves take in turn."""
    M, N, K = 389, 70, 45
    block = {"block": (1, 32)} if room == "fp8_matmul" else {}  # a scale per row, which halves as the weight does
    case = part(room, "cases").Case(M, N, K, activation=activation, residual="full", gated=True, **block)
    inputs = case.inputs(torch.Generator().manual_seed(2))
    gate = call(room, "torch", half(inputs, slice(0, N), activation))
    up = call(room, "torch", half(inputs, slice(N, 2 * N), "none"))
    for threads in (1, 2):
        num_threads(threads)
        for door in DOORS:
            assert_equal(call(room, door, inputs), gate * up + inputs["residual"], f"{door}, {threads} threads")


@pytest.mark.parametrize("room", ROOMS)
def test_bad_input_is_the_same_sentence_at_every_door(room: str) -> None:
    inputs = gated_call(room)
    weight = WEIGHT[room]
    odd = {name: value[:7] if name in PER_CHANNEL and value is not None else value for name, value in inputs.items()}
    shape = tuple(odd[weight].shape)
    bad = [
        (odd, f"{weight} must have an even number of rows where gated; got shape {shape}"),
        (inputs | {"bias": torch.zeros(4)}, "bias must have shape (8,); got shape (4,)"),
        (
            inputs | {"residual": torch.zeros(4, 8)},
            "residual must have the output's shape (4, 4) or one element; got shape (4, 8)",
        ),
    ]
    for arguments, sentence in bad:
        want = f"{room}: {sentence}"
        assert SENTENCE.match(want)
        for door in (
            lambda a: getattr(deepseek_fast, room)(**a),
            lambda a: numpy_op(room)(**{n: to_numpy(v) for n, v in a.items()}),
        ):
            with pytest.raises(ValueError) as raised:
                door(arguments)
            assert str(raised.value) == want
        for device in ("cpu", "meta"):
            moved = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in raw(arguments).items()}
            with pytest.raises((ValueError, RuntimeError)) as raised:
                torch_op(room)(**moved)
            assert want in str(raised.value)
        with pytest.raises(Exception, match="must") as raised:
            ort_nodes.call(room, arguments)
        assert want in str(raised.value)
    with pytest.raises(RuntimeError) as raised:
        pack(room, odd)
    assert f"{room}_pack: {bad[0][1]}" in str(raised.value)


@pytest.mark.parametrize("room", ROOMS)
def test_a_packed_weight_remembers_that_it_is_gated(room: str) -> None:
    inputs = gated_call(room)
    plain = {**inputs, "gated": False, "residual": None}
    for made, called, was in ((inputs, plain, "True"), (plain, inputs, "False")):
        with pytest.raises(RuntimeError) as raised:
            call_packed(room, pack(room, made), called)
        got = "False" if was == "True" else "True"
        assert f"{room}_packed: gated must be {was}, as the weight was packed; got {got}" in str(raised.value)
    packed = pack(room, inputs)
    with pytest.raises(RuntimeError) as raised:
        call_packed(room, packed, inputs | {WEIGHT[room]: torch.zeros(12, 1)})  # of out_features = 6
    assert f"{room}_packed: " in str(raised.value)
    forged = packed.clone()
    forged.view(torch.int64)[6] = 2  # the header's word `gated`
    with pytest.raises(RuntimeError, match="packed must be whole"):
        call_packed(room, forged, inputs)


MODULES = {
    "Fp8Linear": {"block": (16, 32)},
    "FusedLinear": {},
    "Int4Linear": {},
    "Int8Linear": {},
}


def halves(bias: bool = True) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(3)
    return torch.nn.Linear(37, 21, bias=bias), torch.nn.Linear(37, 21, bias=bias)


@pytest.mark.parametrize("name", MODULES)
def test_modules_take_a_gate_and_an_up_projection(name: str) -> None:
    gate, up = halves()
    layer = getattr(nn, name).from_float(nn.gate_and_up(gate, up), activation="silu", gated=True, **MODULES[name])
    x, residual = torch.randn(5, 37), torch.randn(5, 21)
    with torch.no_grad():
        got = layer(x, residual)
        want = torch.nn.functional.silu(gate(x)) * up(x) + residual
        assert layer.out_features == 21 and "gated=True" in repr(layer)
        assert got.shape == (5, 21)
        close = 1e-5 if name == "FusedLinear" else 0.2  # what the weights' rounding makes of values of size 1
        assert (got - want).abs().max() < close


def test_halves_that_do_not_fit_are_refused() -> None:
    gate, _ = halves()
    rule = r"gate_and_up: up must have gate's shape \(21, 37\) and bias=True"
    with pytest.raises(ValueError, match=rf"^{rule}; got \(21, 37\) and bias=False$"):
        nn.gate_and_up(gate, halves(bias=False)[1])
    with pytest.raises(ValueError, match=rf"^{rule}; got \(20, 37\) and bias=True$"):
        nn.gate_and_up(gate, torch.nn.Linear(37, 20))


@pytest.mark.parametrize("room", ROOMS)
def test_the_body_gives_the_same_answer_in_every_runtime(room: str) -> None:
    """Bit for bit where the scheme says so; the runtimes' own sums and sigmoid elsewhere."""
    reference = part(room, "ref")
    for activation in ("hardswish", "silu", "none"):
        case = part(room, "cases").Case(7, 35, 41, activation=activation, residual="full", gated=True)
        inputs = case.inputs(torch.Generator().manual_seed(4))
        model = with_body(room, inputs)
        want, bound = getattr(reference, f"{room}_ref")(**inputs), reference.bound(**inputs)
        for runtime, got in run_everywhere(model, {"x": to_numpy(inputs["x"])}).items():
            y = torch.from_numpy(np.ascontiguousarray(got["y"]))
            if want.dtype == y.dtype:
                assert_equal(y, want, f"{runtime} {activation}")
            else:
                more = 0.0 if runtime == "library" else 1e-5 * (1 + want.abs())
                assert_within(y, want, bound + more, f"{runtime} {activation}")


def with_body(room: str, inputs: dict[str, Any]) -> onnx.ModelProto:
    """A model of one node, completed and with its body."""
    from deepseek_fast.onnx import optimize

    constant = (*ort_nodes.WEIGHTS, "residual")
    model = ort_nodes.node_model(room, inputs, constant=constant)
    model.opset_import[0].version, model.ir_version = 21, 10
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    return optimize(model)


def test_modules_export() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            both = nn.gate_and_up(*halves())
            self.first = nn.FusedLinear.from_float(both, activation="silu", gated=True)
            self.second = nn.Int8Linear.from_float(both, activation="silu", gated=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + self.second(x)

    block = Block().eval().requires_grad_(False)
    x = torch.randn(3, 37)
    model = export(block, (x,))
    assert [attribute(fused(model, op)[0], "gated") for op in ("FusedMatmul", "Int8Matmul")] == [1, 1]
    (feed,) = (value.name for value in model.graph.input)
    for runtime, got in run_everywhere(model, {feed: x.numpy()}).items():
        (y,) = got.values()
        np.testing.assert_allclose(y, block(x).numpy(), rtol=1e-5, atol=1e-5, err_msg=runtime)
    quantized = explain(model, quantize="w8a8").model
    assert counts(quantized)["Int8Matmul"] == 2
    assert [attribute(node, "gated") for node in fused(quantized, "Int8Matmul")] == [1, 1]


def test_an_activation_after_a_gated_product_is_left_alone() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.FusedLinear.from_float(nn.gate_and_up(*halves()), gated=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x))

    model = explain(export(Block().eval().requires_grad_(False), (torch.randn(3, 37),))).model
    assert counts(model) == {"FusedMatmul": 1, "Relu": 1}
