"""How the inputs lie in memory changes nothing: strided, transposed, repeated, reversed, at any address."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.doors import DOORS, ROOMS, WEIGHT, call, from_numpy, numpy_op, part, to_numpy
from tests.oracle import assert_equal

M, N, K = 10, 37, 29


def wide(value: torch.Tensor, extra: int = 3) -> torch.Tensor:
    """A larger tensor around value's shape, filled with NaN, so that a read outside shows."""
    shape = [size + 2 * extra for size in value.shape]
    return torch.full(shape, torch.nan if value.is_floating_point() else 99, dtype=value.dtype)


def sliced(value: torch.Tensor) -> torch.Tensor:
    memory = wide(value)
    return memory[tuple(slice(3, 3 + size) for size in value.shape)].copy_(value)


def transposed(value: torch.Tensor) -> torch.Tensor:
    return value.mT.contiguous().mT if value.ndim > 1 else value


def stepped(value: torch.Tensor) -> torch.Tensor:
    memory = torch.full([2 * size for size in value.shape], 77, dtype=value.dtype)
    return memory[tuple(slice(None, None, 2) for _ in value.shape)].copy_(value)


def off_by_one(value: torch.Tensor) -> torch.Tensor:
    """Aligned to one element only."""
    return torch.cat([value.new_zeros(1), value.reshape(-1)])[1:].reshape(value.shape)


LAYOUTS = {f.__name__: f for f in (sliced, transposed, stepped, off_by_one)}


def inputs_of(room: str, dtype: str) -> dict[str, Any]:
    case = part(room, "cases").Case(M, N, K, dtype, "gelu", True, "full")
    return case.inputs(torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("room", ROOMS)
def test_a_view_gives_the_bits_of_its_copy(room: str, layout: str, dtype: str, isa: str) -> None:
    inputs = inputs_of(room, dtype)
    want = call(room, "torch", inputs)
    tensors = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
    for names in ([name] for name in tensors), [tensors]:
        for chosen in names:
            moved = {n: LAYOUTS[layout](v) if n in chosen else v for n, v in inputs.items()}
            for door in DOORS:
                assert_equal(call(room, door, moved), want, f"{layout} {chosen} through {door}")


@pytest.mark.parametrize("room", ROOMS)
def test_outer_dimensions_fold_in_any_order(room: str, isa: str) -> None:
    inputs = inputs_of(room, "float32")
    x = torch.randn(3, 4, 5, K)
    rows = {**inputs, "residual": None}
    want = call(room, "torch", {**rows, "x": x.reshape(-1, K)}).reshape(3, 4, 5, N)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)):
        permuted = x.permute(*order, 3).contiguous().permute(*(order.index(d) for d in range(3)), 3)
        for door in DOORS:
            assert_equal(call(room, door, {**rows, "x": permuted}), want, f"{order} {door}")
    for kept in (x[1:2], x[:, 2:3], x[:, :, 1:2], x[::2, ::3, ::4], x[0, 0, 0]):
        for door in DOORS:
            assert_equal(call(room, door, {**rows, "x": kept}), call(room, door, {**rows, "x": kept.clone()}), door)


@pytest.mark.parametrize("room", ROOMS)
def test_repeated_memory_is_read_as_often_as_asked(room: str, isa: str) -> None:
    inputs = inputs_of(room, "float32")
    for name in ("x", "bias", "residual", "scale"):
        if name in inputs:
            repeated = inputs[name][..., :1].expand(inputs[name].shape) if name != "x" else inputs["x"][:1].expand(M, K)
            for door in DOORS:
                got = call(room, door, {**inputs, name: repeated})
                assert_equal(got, call(room, door, {**inputs, name: repeated.clone()}), f"{name} {door}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("room", ROOMS)
def test_numpy_reads_reversed_read_only_and_odd_addresses(room: str, dtype: str) -> None:
    arrays = {name: to_numpy(value) for name, value in inputs_of(room, dtype).items()}
    op = numpy_op(room)
    want = from_numpy(op(**arrays))
    for name in ("x", WEIGHT[room], "residual"):
        array = arrays[name]
        backwards = array[::-1, ::-1].copy()[::-1, ::-1]
        read_only = array.copy()
        read_only.flags.writeable = False
        memory = np.zeros(array.nbytes + 1, np.uint8)
        memory[1:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        odd = np.ndarray(array.shape, array.dtype, memory, offset=1)
        assert odd.dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float32, np.int8, np.uint8)
        for kind, value in (("backwards", backwards), ("read only", read_only), ("odd address", odd)):
            assert_equal(from_numpy(op(**{**arrays, name: value})), want, f"{kind} {name}")


@pytest.mark.parametrize("room", ROOMS)
def test_results_are_new_contiguous_memory(room: str) -> None:
    inputs = inputs_of(room, "float32")
    got = call(room, "torch", {**inputs, "x": transposed(inputs["x"])})
    assert got.is_contiguous()
    addresses = {value.data_ptr() for value in inputs.values() if isinstance(value, torch.Tensor)}
    assert got.data_ptr() not in addresses
