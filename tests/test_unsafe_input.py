"""Input made to break things: packed weights that are none, forged headers, sizes beyond any memory. Never a crash."""

from typing import Any

import numpy as np
import pytest
import torch

import deepseek_fast
from tests.doors import ROOMS, WEIGHT, call_packed, good_call, numpy_op, pack, to_numpy, torch_op, unpacked
from tests.oracle import SENTENCE

PACKED_BAD = [
    (lambda p: p.float(), "packed must be uint8; got dtype float32"),
    (lambda p: p.reshape(1, -1), "packed must have 1 dimension; got shape (1, "),
    (lambda p: p[:-1], "packed must be whole; got shape ("),
    (lambda p: p[:10], "packed must be a packed weight; got shape (10,)"),
    (lambda p: p[:0], "packed must be a packed weight; got shape (0,)"),
    (lambda p: torch.zeros_like(p), "packed must be a packed weight of version 3; got other bytes"),
    (lambda p: p.repeat_interleave(2)[::2], "packed must be contiguous; got a strided tensor"),
]


@pytest.mark.parametrize("room", ROOMS)
def test_a_packed_weight_that_is_none_is_refused(room: str) -> None:
    inputs = good_call(room)
    packed = pack(room, inputs)
    for spoil, sentence in PACKED_BAD:
        with pytest.raises(RuntimeError) as raw:
            call_packed(room, spoil(packed), inputs)
        assert f"{room}_packed: {sentence}" in str(raw.value)


@pytest.mark.parametrize("room", ROOMS)
def test_a_packed_weight_of_other_sizes_is_refused(room: str) -> None:
    inputs = good_call(room)
    packed = pack(room, inputs)
    wider = {WEIGHT[room]: inputs[WEIGHT[room]].repeat(2, 1)}
    with pytest.raises(RuntimeError, match=f"{room}_packed: packed must hold out_features = 16 rows; got 8"):
        call_packed(room, packed, inputs | wider)
    with pytest.raises(RuntimeError, match=f"{room}_packed: packed must hold 32 columns, .*; got 64"):
        call_packed(room, packed, inputs | {"x": torch.zeros(4, 32)})
    for other in ROOMS:
        if other != room:
            with pytest.raises(RuntimeError, match=f"{room}_packed: packed must be packed from "):
                call_packed(room, pack(other, good_call(other)), inputs)


@pytest.mark.parametrize("room", ROOMS)
def test_a_forged_header_reads_nothing_outside(room: str) -> None:
    """N and K lie at bytes 16 and 24 of the header; larger ones than the panels hold must be refused."""
    inputs = good_call(room)
    packed = pack(room, inputs)
    for offset, value in ((16, 10**7), (16, -1), (24, 10**7), (16, 2**62), (24, 2**62)):
        forged = packed.clone()
        forged[offset : offset + 8] = torch.from_numpy(np.frombuffer(np.int64(value).tobytes(), np.uint8).copy())
        call = inputs | {"bias": None, "residual": None}
        K = value if offset == 24 else 64
        if 0 <= K <= 10**7:
            call["x"] = torch.zeros(1, K)
        with pytest.raises(RuntimeError, match=f"{room}_packed: "):
            out_features = value if offset == 16 else 8
            torch_op(f"{room}_packed")(packed=forged, out_features=out_features, **unpacked(room, call))


def test_a_forged_step_of_fp8_scales_reads_nothing_outside() -> None:
    """block_k lies at byte 12. A step that is no multiple of 4 codes would be read past its end, whatever the size."""
    K, x = 64, torch.zeros(1, 64)
    for block_k in (0, 1, 2, 4, 16, 48, 96, 256, -32, 2**30):
        steps = -(-K // block_k) if block_k else 0
        forged = torch.zeros(64 + 64 * (K + steps * 4) if steps >= 0 else 64, dtype=torch.uint8)
        packed = pack("fp8_matmul", good_call("fp8_matmul"))
        forged[:64] = packed[:64]
        for offset, value, dtype in ((12, block_k, np.int32), (32, forged.numel(), np.int64)):
            bytes_ = np.frombuffer(dtype(value).tobytes(), np.uint8).copy()
            forged[offset : offset + len(bytes_)] = torch.from_numpy(bytes_)
        with pytest.raises(RuntimeError, match="fp8_matmul_packed: packed must be whole"):
            torch_op("fp8_matmul_packed")(x, forged, out_features=8)


# No allocator can promise any of these: 2^47 bytes is all that a process can address.
HUGE = [
    pytest.param((2**45, 8), (2**45, 8), id="output of 2^90"),
    pytest.param((2**17, 2**45), (4, 2**45), id="x of 2^62"),
    pytest.param((4, 2**45), (2**17, 2**45), id="weight of 2^62"),
    pytest.param((2**31, 2**30, 2), (4, 2), id="2^61 rows"),
    pytest.param((2**60, 1), (0, 1), id="no output from 2^60 rows"),
    pytest.param((1, 2**46), (1, 2**46), id="a row that fits no memory"),
]


def huge_inputs(room: str, x_shape: Any, weight_shape: Any) -> dict[str, Any]:
    """One value repeated by strides of 0 declares any size without memory."""
    dtypes = {"int8_matmul": torch.int8, "fp8_matmul": torch.float8_e4m3fn, "int4_matmul": torch.uint8}
    weight = torch.ones(1).to(dtypes.get(room, torch.float32))
    inputs = {"x": torch.ones(1).expand(x_shape), WEIGHT[room]: weight.expand(weight_shape)}
    if room == "int8_matmul":
        inputs |= {"scale": torch.ones(1).expand(weight_shape[0]), "activations": "float"}
    if room == "int4_matmul":
        N, K = weight_shape
        inputs |= {"q": weight.expand(N, (K + 1) // 2), "scale": torch.ones(1).expand(N, 1), "in_features": K}
        inputs |= {"group_size": -1, "compute": "float"}
    if room == "fp8_matmul":  # a scale a row: as many values to check as there are rows
        inputs |= {"scale": torch.ones(1).expand(weight_shape[0], 1), "block": (1, -1)}
    return inputs


@pytest.mark.parametrize("door", ["torch", "numpy"])
@pytest.mark.parametrize(("x_shape", "weight_shape"), HUGE)
@pytest.mark.parametrize("room", ROOMS)
def test_sizes_that_no_machine_holds_end_in_a_sentence(room: str, x_shape: Any, weight_shape: Any, door: str) -> None:
    inputs = huge_inputs(room, x_shape, weight_shape)
    op = getattr(deepseek_fast, room)
    if door == "numpy":
        try:
            inputs = {name: to_numpy(value) for name, value in inputs.items()}
        except ValueError:
            pytest.skip("NumPy itself refuses an array of this size")
        op = numpy_op(room)
    if 0 in weight_shape:
        assert op(**inputs).shape == (*x_shape[:-1], 0)
        return
    with pytest.raises((ValueError, RuntimeError, MemoryError)) as raised:
        op(**inputs)
    sentence = str(raised.value)
    assert SENTENCE.match(sentence) or "memory" in sentence or isinstance(raised.value, MemoryError), sentence
