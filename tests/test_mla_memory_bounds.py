"""sparse_mla and its family touch nothing outside their tensors and their workspace, each of which lies against a page
that the process may not touch (tests/native/protocol.h), whatever the indices."""

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import caches
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES
from tests.emulated import THIS, Emulated, Unavailable
from tests.emulated_mla import backward, cache_numbers, call
from tests.mla_doors import backward as of_torch
from tests.mla_doors import call as call_torch
from tests.mla_doors import prepared, prepared_backward, prepared_decode
from tests.oracle import assert_equal
from tests.plugin import each_level, isa_cap


@pytest.mark.parametrize(("place", "threads"), [("end", 1), ("begin", 1), ("end", 3)])
@pytest.mark.parametrize("level", each_level())
def test_no_byte_outside_is_touched(level: str, place: str, threads: int) -> None:
    """And the bits are those of torch's door."""
    try:
        process = Emulated(THIS, level, place, threads)
    except Unavailable as missing:
        pytest.skip(str(missing))
    with process, isa_cap(level):
        assert process.level == level
        for case in CASES:
            inputs, dout = prepared(case)[0], prepared_backward(case)[0]
            for got, want in (
                (call(process, "sparse_mla", inputs), call_torch("sparse_mla", "torch", inputs)),
                (backward(process, dout, inputs), of_torch("torch", dout, inputs)),
            ):
                for g, w in zip(got, want, strict=True):
                    assert_equal(g, w, case.id)
        for decode in DECODE_CASES:
            inputs = prepared_decode(decode)[0]
            got, want = call(process, "sparse_mla_decode", inputs), call_torch("sparse_mla_decode", "torch", inputs)
            for g, w in zip(got, want, strict=True):
                assert_equal(g, w, decode.id)
        for layout, page in (("v32", 3), ("v4", 3), ("v32", 1), ("v4", 7)):
            d_qk = caches.LAYOUTS[layout].d_qk
            cache = deepseek_fast.mla_cache_empty(4, page, layout=layout)
            for kv in (torch.randn(4 * page, d_qk), torch.randn(4 * page, d_qk).bfloat16()):
                numbers = cache_numbers(process, cache, kv, layout, d_qk)
                deepseek_fast.mla_cache_write(cache, kv, layout=layout)
                assert_equal(numbers, deepseek_fast.mla_cache_read(cache, layout=layout), layout)
