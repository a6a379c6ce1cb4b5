"""Every room x case x ISA level through every Python door, against the room's reference."""

from typing import Any

import pytest
import torch

from tests.doors import DOORS, ROOMS, call, call_packed, mode_of, pack, part, prepared, reference
from tests.oracle import assert_equal, assert_matches
from tests.plugin import isa_cap, supported_isas

CASES = [pytest.param(room, case, id=f"{room}-{case.id}") for room in ROOMS for case in part(room, "cases").CASES]
# One size with tails everywhere, in every dtype and scheme of the room.
SCHEMES = [
    pytest.param(room, case, id=f"{room}-{case.id}")
    for room in ROOMS
    for case in part(room, "cases").CASES
    if part(room, "cases").SHAPES[-3] == (case.M, case.N, case.K)
]
# The schemes that promise equal bits on every level: integer sums.
INTEGER_CASES = [c for c in CASES if getattr(c.values[1], mode_of(c.values[0]), "") == "int8"]


@pytest.mark.parametrize(("room", "case"), CASES)
def test_every_door_agrees_with_the_reference(room: str, case: Any, isa: str) -> None:
    inputs, want, bound = prepared(room, case)
    results = {door: call(room, door, inputs) for door in DOORS}
    for door, got in results.items():
        assert got.dtype == inputs["x"].dtype
        assert_matches(got, want, bound, f"{door} on {isa}")
        assert_equal(got, results["torch"], f"{door} against torch on {isa}")


@pytest.mark.parametrize(("room", "case"), INTEGER_CASES)
def test_integer_schemes_have_the_same_bits_on_every_level(room: str, case: Any) -> None:
    inputs = prepared(room, case)[0]
    with isa_cap("scalar"):
        want = call(room, "torch", inputs)
    for level in supported_isas():
        with isa_cap(level):
            assert_equal(call(room, "torch", inputs), want, level)


@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_a_packed_weight_outlives_a_change_of_level(room: str, case: Any) -> None:
    inputs = prepared(room, case)[0]
    levels = supported_isas()
    for packed_at, run_at in ((levels[0], levels[-1]), (levels[-1], levels[0])):
        with isa_cap(packed_at):
            packed = pack(room, inputs)
        with isa_cap(run_at):
            assert_equal(call_packed(room, packed, inputs), call(room, "torch", inputs), f"{packed_at}, {run_at}")


@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_a_row_does_not_see_the_other_rows(room: str, case: Any, isa: str) -> None:
    inputs = prepared(room, case)[0]
    batch = call(room, "torch", inputs)
    for m in range(inputs["x"].shape[0]):
        residual = inputs["residual"]
        row_residual = residual[m] if residual is not None and residual.ndim == 2 else residual
        alone = call(room, "torch", {**inputs, "x": inputs["x"][m], "residual": row_residual})
        assert_equal(alone, batch[m], f"row {m} on {isa}")


@pytest.mark.parametrize("sizes", [(1, 1030, 515), (70, 700, 300), (515, 67, 65)], ids=str)
@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_the_number_of_threads_changes_nothing(room: str, case: Any, sizes: Any, num_threads: Any) -> None:
    big = type(case)(*sizes, *list(vars(case).values())[3:])
    inputs, want, bound = prepared(room, big)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results += [call(room, door, inputs) for door in DOORS]
    assert_matches(results[0], want, bound, "1 thread")
    for got in results[1:]:
        assert_equal(got, results[0], "threads")


@pytest.mark.parametrize("room", ROOMS)
def test_inputs_are_left_as_they_were(room: str) -> None:
    for case in part(room, "cases").CASES[:8]:
        inputs = case.inputs(torch.Generator().manual_seed(0))
        before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        for door in DOORS:
            call(room, door, inputs)
        for name, value in before.items():
            assert_equal(inputs[name], value, name)


@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_the_residual_may_be_x_or_any_single_element(room: str, case: Any, isa: str) -> None:
    square = type(case)(9, 21, 21, *list(vars(case).values())[3:])
    inputs = prepared(room, square)[0]
    bound = part(room, "ref").bound
    for residual in (
        inputs["x"],
        *(torch.full(shape, 0.75, dtype=inputs["x"].dtype) for shape in ((), (1,), (1, 1, 1))),
    ):
        with_residual = {**inputs, "residual": residual}
        for door in DOORS:
            got = call(room, door, with_residual)
            assert_matches(got, reference(room, with_residual), bound(**with_residual), f"{door} {residual.shape}")
