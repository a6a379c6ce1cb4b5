"""The indexer's operators touch nothing outside codes, scales, caches, windows, logits, indices and the workspace: each
lies against a page that the process may not touch, behind it or before it.
"""

import subprocess
import sys

import pytest
import torch

from deepseek_fast.kernels.lightning_indexer import ref
from deepseek_fast.kernels.lightning_indexer.cases import CASES, PAGED_CASES, TOPK_CASES, LogitsCase, PagedCase
from tests.doors import ROOT
from tests.emulated import THIS, Emulated, Unavailable
from tests.emulated_indexer import indexer
from tests.indexer_doors import SELECTED, assert_logits, call, prepared, prepared_topk, selecting
from tests.plugin import each_level, isa_cap

CALLS = """
import deepseek_fast
from tests.doors import numpy_op
from tests.guarded import Guarded
from tests.indexer_doors import every_call, to_numpy

memory = {}
assert deepseek_fast.set_max_isa(LEVEL) == LEVEL
for op, inputs, name in every_call():
    print(op, name, flush=True)
    given = {name: to_numpy(value) for name, value in inputs.items()}
    want = numpy_op(op)(**given).tobytes()
    for at_end in (True, False):
        placed = dict(given)
        for name, value in given.items():
            if getattr(value, "size", 0):
                if name not in memory:
                    memory[name] = Guarded(1 << 22)
                placed[name] = memory[name].holding(value, at_end)
        assert numpy_op(op)(**placed).tobytes() == want
"""


@pytest.mark.parametrize("level", each_level())
def test_no_byte_outside_an_operand_is_read(level: str) -> None:
    code = f"LEVEL = {level!r}\n{CALLS}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
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
        check_all(process)


@pytest.mark.parametrize("place", ["end", "begin"])
@pytest.mark.parametrize("level", each_level())
def test_tokens_shared_out_among_threads(level: str, place: str) -> None:
    """Of one query each thread keeps candidates of its own, which are merged in the workspace."""
    try:
        process = Emulated(THIS, level, place, threads=3)
    except Unavailable as missing:
        pytest.skip(str(missing))
    dense = LogitsCase(1, 5000, 8, 64, window="none")
    paged = PagedCase(2, 1, 5000, 8, 64)
    with process, isa_cap(level):
        for case in (dense, paged):
            op, inputs = selecting(prepared(case)[1])
            for k in (1, 300, 5001):
                got = indexer(process, op, inputs | {"top_k": k, "sorted_by": "value"})
                assert torch.equal(got, call(op, "numpy", inputs | {"top_k": k, "sorted_by": "value"})), k


def check_all(process: Emulated) -> None:
    for case in (*CASES, *PAGED_CASES):
        op, inputs, want, bound = prepared(case)
        assert_logits(indexer(process, op, inputs), want, bound, case.id)
        op, inputs = selecting(inputs)
        got = indexer(process, op, inputs | {"top_k": SELECTED}).reshape(-1, SELECTED)
        if "max_seqlen_k" not in prepared(case)[1] and want.shape[0] and "bfloat16" not in case.id:
            assert ref.is_top_k(got, want, bound, SELECTED), case.id
    for topk in TOPK_CASES:
        inputs, want = prepared_topk(topk)
        assert torch.equal(indexer(process, "topk_indices", inputs), want), topk.id
