"""Every combination of the sizes in the cases table: each result is a corner of one larger product, bit for bit.

The larger product is held to the reference, so this says three things at once: every tail is right, no row sees
another row, and no output channel sees another channel.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doors import DOORS, ROOMS, call, part, reference
from tests.oracle import assert_equal, assert_matches
from tests.plugin import seed_of

SCHEMES = {
    "fp8_matmul": [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "weight": "float8_e5m2", "block": (1, 32)},
        {"dtype": "bfloat16", "activations": "fp8"},
        {"dtype": "float32", "activations": "fp8", "block": (-1, -1)},
    ],
    "fused_matmul": [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float16"}],
    "int4_matmul": [
        {"dtype": "float32", "compute": "int8"},
        {"dtype": "bfloat16", "compute": "int8", "group_size": 128, "zeros": True},
        {"dtype": "float32", "compute": "float", "group_size": 64, "zeros": True},
        {"dtype": "bfloat16", "compute": "float", "group_size": -1},
    ],
    "int8_matmul": [
        {"dtype": dtype, "activations": mode} for dtype in ("float32", "bfloat16") for mode in ("int8", "float")
    ],
}
SWEEPS = [(room, scheme) for room in ROOMS for scheme in SCHEMES[room]]
PER_CHANNEL = ("weight", "q", "scale", "zeros", "bias")  # arguments with a row or a value per output channel


def corner(inputs: dict[str, Any], M: int, N: int) -> dict[str, Any]:
    """The call whose result is y[:M, :N]."""
    cut = dict(inputs)
    cut["x"] = inputs["x"][:M]
    cut["residual"] = inputs["residual"][:M, :N]
    for name in PER_CHANNEL:
        if cut.get(name) is not None:
            cut[name] = inputs[name][:N]
    if "block" in inputs:
        rows = inputs["block"][0]
        cut["scale"] = inputs["scale"][: 1 if rows < 0 else -(-N // rows)]
    return cut


@pytest.mark.parametrize(("room", "scheme"), SWEEPS, ids=str)
def test_every_size_is_a_corner_of_a_larger_one(room: str, scheme: dict[str, str], isa: str) -> None:
    cases = part(room, "cases")
    for i, K in enumerate(cases.SWEEP_K):
        activation = cases.ACTIVATIONS[i % len(cases.ACTIVATIONS)]
        case = cases.Case(max(cases.SWEEP_M), max(cases.SWEEP_N), K, activation=activation, residual="full", **scheme)
        inputs = case.inputs(torch.Generator().manual_seed(seed_of(case.id)))
        full = call(room, "torch", inputs)
        assert_matches(full, reference(room, inputs), part(room, "ref").bound(**inputs), case.id)
        for M in cases.SWEEP_M:
            for N in cases.SWEEP_N:
                cut = corner(inputs, M, N)
                assert_equal(call(room, "torch", cut), full[:M, :N].contiguous(), f"{case.id} cut to M={M} N={N}")


@st.composite
def layouts(draw: Any) -> dict[str, Any]:
    """Sizes, and for each of x, weight and residual how it lies in a larger memory."""
    sizes = st.integers(0, 80)
    return {
        "shape": draw(st.lists(st.integers(0, 7), min_size=0, max_size=3)),
        "N": draw(sizes),
        "K": draw(sizes),
        "step": draw(st.integers(1, 3)),
        "offset": draw(st.integers(0, 5)),
        "transposed": draw(st.booleans()),
    }


def laid_out(value: torch.Tensor, layout: dict[str, Any]) -> torch.Tensor:
    """The same values at an offset in a larger memory, with gaps, perhaps column by column."""
    shape = list(value.shape)
    if layout["transposed"]:
        shape.reverse()
    room_for = [size * layout["step"] + layout["offset"] for size in shape]
    memory = torch.zeros(room_for, dtype=value.dtype)
    cut = memory[tuple(slice(layout["offset"], None, layout["step"]) for _ in shape)]
    for dim, size in enumerate(shape):
        cut = cut.narrow(dim, 0, size)
    view = cut.permute(*reversed(range(len(shape)))) if layout["transposed"] else cut
    return view.copy_(value)


@pytest.mark.parametrize("room", ROOMS)
@settings(max_examples=120, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_any_shape_in_any_layout(room: str, data: Any) -> None:
    layout = data.draw(layouts())
    cases = part(room, "cases")
    scheme = data.draw(st.sampled_from(SCHEMES[room]))
    M = int(torch.tensor(layout["shape"]).prod())
    case = cases.Case(M, layout["N"], layout["K"], residual="full", activation="silu", **scheme)
    inputs = case.inputs(torch.Generator().manual_seed(layout["N"] + 97 * layout["K"]))
    inputs["x"] = inputs["x"].reshape(*layout["shape"], layout["K"])
    inputs["residual"] = inputs["residual"].reshape(*layout["shape"], layout["N"])
    want, bound = reference(room, inputs), part(room, "ref").bound(**inputs)
    moved = {name: laid_out(v, layout) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
    for door in DOORS:
        assert_matches(call(room, door, moved), want, bound, door)
