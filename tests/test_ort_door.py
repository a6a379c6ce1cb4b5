"""The ONNX Runtime door: the bits of the other doors, whatever is constant, left out, shared or symbolic."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from onnx import helper

from deepseek_fast import ort
from tests import ort_nodes
from tests.doors import ROOMS, ROOT, call, part, prepared
from tests.oracle import assert_equal
from tests.ort_nodes import NODES, WEIGHTS
from tests.plugin import isa_cap, supported_isas

CASES = [pytest.param(room, case, id=f"{room}-{case.id}") for room in ROOMS for case in part(room, "cases").CASES]
EVERYTHING = ("x", *WEIGHTS, "residual")
# One size with tails everywhere, in every dtype and scheme of the room.
SCHEMES = [c for c in CASES if part(c.values[0], "cases").SHAPES[-3] == (c.values[1].M, c.values[1].N, c.values[1].K)]


@pytest.mark.parametrize(("room", "case"), CASES)
def test_the_bits_of_the_numpy_door(room: str, case: Any) -> None:
    inputs, _, _ = prepared(room, case)
    want = call(room, "numpy", inputs)
    constants = (WEIGHTS, (), ("bias", "residual"), (*WEIGHTS, "residual"))
    for got, constant in zip(ort_nodes.call_each(room, inputs, constants), constants, strict=True):
        assert_equal(got, want, f"constant: {constant}")


@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_the_bits_on_every_level(room: str, case: Any, isa: str) -> None:
    inputs, _, _ = prepared(room, case)
    assert_equal(ort_nodes.call(room, inputs), call(room, "torch", inputs), isa)


@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_panels_packed_at_creation_serve_every_level(room: str, case: Any) -> None:
    inputs, _, _ = prepared(room, case)
    with isa_cap("scalar"):
        made = ort_nodes.session(room, inputs)
    for level in supported_isas():
        with isa_cap(level):
            assert_equal(ort_nodes.run(made, inputs), call(room, "numpy", inputs), level)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("sizes", [(1, 1030, 515), (70, 700, 300)], ids=str)
@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_the_number_of_threads_changes_nothing(room: str, case: Any, sizes: Any, threads: int) -> None:
    inputs, _, _ = prepared(room, type(case)(*sizes, *list(vars(case).values())[3:]))
    want = call(room, "numpy", inputs)
    for constant in (WEIGHTS, ()):
        assert_equal(ort_nodes.call(room, inputs, constant=constant, threads=threads), want, f"constant: {constant}")


@pytest.mark.parametrize(("room", "case"), SCHEMES)
def test_concurrent_runs_of_one_session(room: str, case: Any) -> None:
    inputs, _, _ = prepared(room, type(case)(40, 200, 100, *list(vars(case).values())[3:]))
    batches = [{**inputs, "x": inputs["x"] * (i + 1)} for i in range(8)]
    wanted = [call(room, "numpy", batch) for batch in batches]
    made = ort_nodes.session(room, inputs, threads=2)
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(lambda batch: ort_nodes.run(made, batch), batches * 5)):
            assert_equal(got, wanted[i % 8], f"run {i}")


@pytest.mark.parametrize("room", ROOMS)
def test_outer_dimensions_are_kept(room: str) -> None:
    inputs, _, _ = prepared(room, part(room, "cases").CASES[3])
    K = inputs["x"].shape[-1]
    for shape in ((K,), (1, 2, 3, K), (0, 2, K), (2, 0, K)):
        call_inputs = {**inputs, "x": torch.randn(shape).to(inputs["x"].dtype), "residual": None}
        assert_equal(ort_nodes.call(room, call_inputs), call(room, "numpy", call_inputs), str(shape))


@pytest.mark.parametrize(("room", "case"), SCHEMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.75])
def test_a_residual_of_one_element(room: str, case: Any, value: float) -> None:
    """Constant or not, of any rank; a constant zero is not read again."""
    inputs, _, _ = prepared(room, case)
    for shape in ((), (1,), (1, 1, 1)):
        single = {**inputs, "residual": torch.full(shape, value, dtype=inputs["x"].dtype)}
        want = call(room, "numpy", single)
        constants = (WEIGHTS, EVERYTHING[1:])
        for got, constant in zip(ort_nodes.call_each(room, single, constants), constants, strict=True):
            assert_equal(got, want, f"{shape}, constant: {constant}")


@pytest.mark.parametrize("room", ROOMS)
def test_the_residual_may_be_x(room: str) -> None:
    """The same value at two inputs, and the end of its life: its memory must not become the output's."""
    inputs, _, _ = prepared(room, type(part(room, "cases").CASES[0])(70, 96, 96, residual="full"))
    graph = ort_nodes.node_model(room, inputs).graph
    graph.node[0].input[:] = ["twice" if name in ("x", "residual") else name for name in graph.node[0].input]
    graph.node.insert(0, helper.make_node("Add", ["x", "x"], ["twice"]))
    del graph.input[1]
    twice = {**inputs, "x": inputs["x"] * 2, "residual": inputs["x"] * 2}
    made = ort.session(ort_nodes.model(graph).SerializeToString(), threads=1)
    assert_equal(ort_nodes.run(made, inputs), call(room, "numpy", twice), room)


SHAPES = [
    pytest.param(["batch", "tokens", 64], ["batch", "tokens", 8], id="names"),
    pytest.param([2, "tokens", 64], [2, "tokens", 8], id="sizes and names"),
    pytest.param([64], [8], id="one dimension"),
]


@pytest.mark.parametrize(("x_shape", "y_shape"), SHAPES)
@pytest.mark.parametrize("room", ROOMS)
def test_shapes_are_inferred(room: str, x_shape: Any, y_shape: Any) -> None:
    made = _small(room, shapes={"x": x_shape})
    (y,) = made.get_outputs()
    assert (y.shape, y.type) == (y_shape, "tensor(float)")


@pytest.mark.parametrize("room", ROOMS)
def test_the_name_of_a_weight_s_rows_is_inferred(room: str) -> None:
    made = _small(room, constant=(), shapes={"x": ["M", "K"], "weight": ["N", "K"], "q": ["N", "K"]})
    assert made.get_outputs()[0].shape == ["M", "N"]


@pytest.mark.parametrize("room", ROOMS)
def test_unknown_dimensions_stay_apart(room: str) -> None:
    """Each gets a name of its own: one name would promise equal sizes, -1 would count as a size in the next node."""
    first, second = (_small(room, shapes={"x": [None, None, 64]}).get_outputs()[0].shape for _ in range(2))
    names = {*first[:2], *second[:2]}
    assert first[2] == second[2] == 8 and len(names) == 4 and all(isinstance(name, str) for name in names)


@pytest.mark.parametrize("room", ROOMS)
def test_an_unknown_rank_runs(room: str) -> None:
    inputs = small_inputs(room)
    model = ort_nodes.node_model(room, inputs)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    for shape in ((3, 64), (2, 3, 64)):
        with_x = {**inputs, "x": torch.randn(shape)}
        made = ort.session(model.SerializeToString(), threads=1)
        assert_equal(ort_nodes.run(made, with_x), call(room, "numpy", with_x), str(shape))


def small_inputs(room: str) -> dict[str, Any]:
    """N = 8, K = 64, float32, nothing optional."""
    inputs = {"x": torch.randn(4, 64), "activation": "none"}
    if room == "int8_matmul":
        q = torch.randint(-127, 128, (8, 64), dtype=torch.int8)
        return inputs | {"q": q, "scale": torch.rand(8), "activations": "int8"}
    if room == "int4_matmul":
        q = torch.randint(0, 256, (8, 32), dtype=torch.uint8)
        return inputs | {"q": q, "scale": torch.rand(8, 2), "compute": "int8", "group_size": 32, "in_features": -1}
    if room == "fp8_matmul":
        weight = torch.randn(8, 64).to(torch.float8_e4m3fn)
        return inputs | {"weight": weight, "scale": torch.rand(1, 1) + 0.5, "activations": "float", "block": (128, 128)}
    return inputs | {"weight": torch.randn(8, 64)}


def _small(room: str, **how: Any) -> Any:
    return ort_nodes.session(room, small_inputs(room), **how)


@pytest.mark.parametrize("room", ROOMS)
def test_a_weight_from_a_constant_node_is_packed_at_creation(room: str) -> None:
    inputs = small_inputs(room)
    graph = ort_nodes.node_model(room, inputs).graph
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    del graph.initializer[:]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    made = ort.session(ort_nodes.model(graph).SerializeToString(), threads=1)
    assert_equal(ort_nodes.run(made, inputs), call(room, "numpy", inputs), room)


@pytest.mark.parametrize("room", ROOMS)
def test_attributes_have_defaults(room: str) -> None:
    inputs = small_inputs(room)
    model = ort_nodes.node_model(room, inputs)
    del model.graph.node[0].attribute[:]
    made = ort.session(model.SerializeToString(), threads=1)
    assert_equal(ort_nodes.run(made, inputs), call(room, "numpy", inputs), room)


def test_every_room_has_its_node() -> None:
    assert set(NODES) == set(ROOMS)
    for room in ROOMS:
        assert NODES[room][0] == "".join(word.capitalize() for word in room.split("_"))


GROWTH = """
import torch
from deepseek_fast import ort
from tests import ort_nodes

inputs = {"x": torch.zeros(1, 1024), "weight": torch.zeros(1024, 1024), "activation": "none"}
model = ort_nodes.node_model("fused_matmul", inputs).SerializeToString()

def resident_after(sessions):
    for _ in range(sessions):
        ort_nodes.run(ort.session(model, threads=1), inputs)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = resident_after(10)
print(resident_after(200) - before)
"""


def test_sessions_do_not_leak() -> None:
    """200 sessions of 4 MB of weights each, in a process whose heap is not yet in pieces."""
    out = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert int(out) < 40e6
