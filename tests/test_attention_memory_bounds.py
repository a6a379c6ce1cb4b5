"""block_sparse_attention, forward and backward, touches nothing outside its tensors, results and workspace: each lies
against a page that the process may not touch, behind it or before it (tests/native/attentions.h makes the calls). So do
lists with columns of sequences that have fewer, and keys that nobody sees are NaN in every case."""

import pytest

from deepseek_fast.kernels.block_sparse_attention.cases import CASES
from tests.attention_doors import prepared, prepared_backward
from tests.emulated import THIS, Emulated, Unavailable
from tests.emulated_attentions import attend, gradients
from tests.oracle import assert_within
from tests.plugin import each_level

PLACES = [("end", 1), ("begin", 1), ("end", 2)]  # and threads that work is cut for
OF_ALL_KINDS = CASES[1::3]


@pytest.mark.parametrize(("place", "threads"), PLACES)
@pytest.mark.parametrize("level", each_level())
def test_no_byte_outside_is_touched(level: str, place: str, threads: int) -> None:
    try:
        process = Emulated(THIS, level, place, threads)
    except Unavailable as missing:
        pytest.skip(str(missing))
    with process:
        assert process.level == level
        for case in OF_ALL_KINDS:
            inputs, want, bounds = prepared(case)
            for got, expected, bound in zip(attend(process, inputs), want, bounds, strict=True):
                assert_within(got, expected, bound, f"{case.id} on {level}")
            upstream, exact, errors = prepared_backward(case)
            found = gradients(process, upstream["dout"], upstream.get("dlse"), inputs)
            for gradient, expected, bound in zip(found, exact, errors, strict=False):
                assert_within(gradient, expected, bound, f"gradients of {case.id} on {level}")
