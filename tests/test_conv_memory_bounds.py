"""fused_conv, pool2d and local_response_norm read nothing outside x, the weight, plain and packed, the bias and the
residual: each lies against a page that the process may not touch, behind it or before it. So do the result and the
workspace where tests/native/convs.h makes the call.
"""

import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from deepseek_fast.kernels.fused_conv.cases import CASES, INT8_CASES, LAYOUTS, LRN_CASES, POOLS, laid_out
from tests.conv_doors import assert_close, assert_same, call, prepared, prepared_int8
from tests.emulated import THIS, Emulated, Unavailable
from tests.emulated_convs import LRN, conv, pool_arguments
from tests.plugin import each_level

CALLS = """
from itertools import product

import deepseek_fast, torch
from deepseek_fast._conv import pool as windows_of_pool
from deepseek_fast._load import native
from deepseek_fast.kernels.fused_conv.cases import CASES, LAYOUTS, POOLS, laid_out
from tests.conv_doors import prepared, to_numpy
from tests.guarded import Guarded

MOST_BYTES = 1 << 22
OPERANDS = ("x", "weight", "bias", "residual")
memory = {name: Guarded(MOST_BYTES) for name in (*OPERANDS, "packed")}
assert deepseek_fast.set_max_isa(LEVEL) == LEVEL
for case in CASES:
    print(case.id, flush=True)
    given = {name: to_numpy(value) for name, value in prepared(case)[0].items()}
    want = deepseek_fast.numpy.fused_conv(**given).tobytes()
    algorithm = {name: given[name] for name in ("algorithm",) if name in given}
    packed = deepseek_fast.numpy.fused_conv_pack(given["weight"], given["groups"], **algorithm)
    for at_end in (True, False):
        placed = dict(given)
        for name in OPERANDS:
            if placed.get(name) is not None and placed[name].size:
                placed[name] = memory[name].holding(placed[name], at_end)
        assert deepseek_fast.numpy.fused_conv(**placed).tobytes() == want
        weight = placed.pop("weight")
        placed.pop("algorithm", None)
        placed |= {"packed": memory["packed"].holding(packed, at_end), "weight_shape": weight.shape}
        assert deepseek_fast.numpy.fused_conv_packed(**placed).tobytes() == want
for layout, C, dtype in product(LAYOUTS, (1, 15, 17, 33, 70), (torch.float32, torch.bfloat16)):
    x = to_numpy(laid_out(torch.randn(2, C, 13, 15).to(dtype), layout))
    for pool, kind in product(POOLS, ("max", "average")):
        print(layout, C, dtype, pool, kind, flush=True)
        window = windows_of_pool("pool2d", 2, pool)
        want = native().pool2d(x, window, kind, True).tobytes()
        for at_end in (True, False):
            assert native().pool2d(memory["x"].holding(x, at_end), window, kind, True).tobytes() == want
    for size, beta in product((1, 3, 4, 5, 200), (0.75, 0.6)):
        print(layout, C, dtype, size, beta, flush=True)
        want = native().local_response_norm(x, size, 0.1, beta, 1.0).tobytes()
        for at_end in (True, False):
            placed = memory["x"].holding(x, at_end)
            assert native().local_response_norm(placed, size, 0.1, beta, 1.0).tobytes() == want
"""


BEYOND = """
import numpy
from tests.guarded import Guarded

placed = Guarded(64).holding(numpy.ones(16, numpy.float32), AT_END)
print(placed.sum(), flush=True)
numpy.lib.stride_tricks.as_strided(placed[15 * AT_END :], (2,), (4 if AT_END else -4,)).sum()
"""


@pytest.mark.parametrize("at_end", [True, False])
def test_a_byte_outside_is_a_crash(at_end: bool) -> None:
    done = run(f"AT_END = {at_end}\n{BEYOND}")
    assert done.stdout == "16.0\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


def run(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parent.parent
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("level", each_level())
def test_no_byte_outside_an_operand_is_read(level: str) -> None:
    done = run(f"LEVEL = {level!r}\n{CALLS}")
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{last}: {done.returncode} {done.stderr[-600:]}"


@pytest.mark.parametrize(("place", "threads"), [("end", 1), ("begin", 1), ("end", 2)])
@pytest.mark.parametrize("level", each_level())
def test_no_byte_outside_the_result_or_the_workspace_is_touched(level: str, place: str, threads: int) -> None:
    try:
        process = Emulated(THIS, level, place, threads)
    except Unavailable as missing:
        pytest.skip(str(missing))
    with process:
        assert process.level == level
        for case in CASES:
            inputs, want, bound = prepared(case)
            assert_close(conv(process, "fused_conv", inputs), want, bound, case.id)
        for int8_case in INT8_CASES:
            inputs, want, bound = prepared_int8(int8_case)
            assert_close(conv(process, "fused_conv_int8", inputs), want.double(), bound, int8_case.id)
        for (shape, size), layout in product(LRN_CASES, LAYOUTS):
            x = laid_out(torch.randn(shape), layout)
            assert_same(conv(process, LRN, {"x": x, "size": size}), call(LRN, "torch", {"x": x, "size": size}), "LRN")
        for C, layout, window in product((1, 15, 33), LAYOUTS, POOLS):
            x = laid_out(torch.randn(2, C, 13, 15), layout)
            inputs = {"x": x} | pool_arguments(window)
            assert_same(conv(process, "pool2d", inputs), call("pool2d", "torch", inputs), "pool2d")
