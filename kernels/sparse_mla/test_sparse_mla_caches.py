"""mla_cache_write and mla_cache_read: caches.py's bytes and numbers, whatever the level."""

from typing import Any

import numpy as np
import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import caches
from tests.doors import from_numpy, to_numpy
from tests.mla_doors import tensor_of

LAYOUTS = ("v32", "v4")


def tokens(count: int, layout: str, generator: torch.Generator) -> torch.Tensor:
    """Rows of many sizes, zeros, values just above and below a power of two."""
    d = caches.LAYOUTS[layout].d_qk
    x = torch.randn(count, d, generator=generator) * torch.exp2(
        torch.randint(-30, 30, (count, 1), generator=generator).float()
    )
    x[0, :64], x[1, :] = 0, -0.0
    x[2, :] = 448 * 2.0**-3
    x[3, 7] = torch.nextafter(x[2, 7], torch.tensor(1e9))
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page", [1, 2, 53, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_those_of_the_reference(
    layout: str, page: int, dtype: torch.dtype, generator: torch.Generator, isa: str
) -> None:
    kv = tokens(130, layout, generator).to(dtype)
    want = caches.write_cache(to_numpy(kv).astype(np.float32), layout, page)
    cache = deepseek_fast.mla_cache_empty(len(want.pages), page, layout=layout)
    deepseek_fast.mla_cache_write(cache, kv, layout=layout)
    assert torch.equal(cache, tensor_of(want, layout))
    of_numpy = np.zeros_like(cache.contiguous().numpy())
    deepseek_fast.numpy.mla_cache_write(of_numpy, to_numpy(kv), layout=layout)
    assert np.array_equal(of_numpy, cache.numpy())
    numbers = caches.read_cache(want, layout)
    read = deepseek_fast.mla_cache_read(cache, layout=layout)
    assert torch.equal(read.view(torch.int16), from_numpy(numbers).view(torch.int16))
    again = deepseek_fast.numpy.mla_cache_read(of_numpy, layout=layout)
    assert np.array_equal(again.view(np.int16), numbers.view(np.int16))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_say_where(layout: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    kv = tokens(20, layout, generator)
    slots = torch.randperm(40, generator=generator)[:20].to(dtype)
    slots[[3, 11]] = -1
    cache = deepseek_fast.mla_cache_empty(5, 8, layout=layout)
    deepseek_fast.mla_cache_write(cache, kv, slots, layout=layout)
    one_by_one = deepseek_fast.mla_cache_empty(5, 8, layout=layout)
    for row, slot in zip(kv, slots.tolist(), strict=True):
        if slot >= 0:
            deepseek_fast.mla_cache_write(one_by_one, row[None], torch.tensor([slot]), layout=layout)
    assert torch.equal(cache, one_by_one)
    read = deepseek_fast.mla_cache_read(cache, layout=layout).reshape(40, -1)
    order = deepseek_fast.mla_cache_empty(3, 8, layout=layout)
    deepseek_fast.mla_cache_write(order, kv, layout=layout)
    kept = slots >= 0
    assert torch.equal(
        read[slots[kept].long()], deepseek_fast.mla_cache_read(order, layout=layout).reshape(24, -1)[:20][kept]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_are_nan_of_their_tile(layout: str, isa: str) -> None:
    form = caches.LAYOUTS[layout]
    kv = torch.randn(3, form.d_qk)
    kv[0, 3], kv[1, form.tile], kv[2, -1] = torch.nan, -torch.inf, torch.inf
    cache = deepseek_fast.mla_cache_empty(1, 3, layout=layout)
    deepseek_fast.mla_cache_write(cache, kv, layout=layout)
    got = deepseek_fast.mla_cache_read(cache, layout=layout)[0].float()
    assert got[0, : form.tile].isnan().all() and got[0, form.tile :].isfinite().all()
    assert got[1, form.tile : 2 * form.tile].isnan().all() and got[1, : form.tile].isfinite().all()
    assert got[2, :-1].isfinite().all() and got[2, -1] == torch.inf


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_bytes_are_read_as_the_reference_reads_them(layout: str, generator: torch.Generator, isa: str) -> None:
    """Every code beside scales that are no powers of two, subnormal, infinite and NaN."""
    token = 656 if layout == "v32" else 584
    data = torch.randint(0, 256, (4, 32, 1, token), generator=generator).byte()
    got = deepseek_fast.mla_cache_read(data, layout=layout)
    with np.errstate(all="ignore"):
        want = caches.read_cache(caches.Cache(data.reshape(4, -1).numpy(), 32), layout)
    same = to_numpy(got).view(np.int16) == want.view(np.int16)
    nan = np.isnan(want.astype(np.float32)) & np.isnan(to_numpy(got).astype(np.float32))
    assert (same | nan).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float8_tensors_are_the_same_bytes(layout: str, generator: torch.Generator) -> None:
    cache = deepseek_fast.mla_cache_empty(2, 64, layout=layout)
    as_float8 = torch.empty_strided(cache.shape, cache.stride(), dtype=torch.float8_e4m3fn)
    kv = tokens(100, layout, generator)
    deepseek_fast.mla_cache_write(cache, kv, layout=layout)
    deepseek_fast.mla_cache_write(as_float8, kv, layout=layout)
    assert torch.equal(cache[0], as_float8[0].view(torch.uint8))
    d = caches.LAYOUTS[layout].d_qk
    call: dict[str, Any] = {"q": torch.randn(1, 1, 4, d), "layout": layout}
    call["indices"] = torch.arange(100, dtype=torch.int32).reshape(1, 1, 100)
    one, other = (deepseek_fast.sparse_mla_decode(k_cache=c, **call)[0] for c in (cache, as_float8))
    assert torch.equal(one, other)
