"""The builders of block masks: ref_builders.py's blocks from every door, in memory of the blocks alone."""

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast import numpy as dsf_numpy
from deepseek_fast.kernels.block_sparse_attention import ref_builders, ref_masks
from tests.doors import to_numpy

SIZES = ((0, 0), (1, 1), (0, 50), (50, 0), (64, 64), (100, 37), (37, 200), (130, 130))
BLOCKS = (1, 16, 64, (3, 7), (16, 5))
OFFSETS = (0, 7, -30, 500, -500, "end")
WINDOWS = (None, 1, 17, 1000, (0, 0), (10, None), (None, 10), (-1, 0), (5, 70))
DOORS = (deepseek_fast, dsf_numpy)


def check_lists(lists: tuple[Any, Any], want: Tensor) -> None:
    offsets, columns = (torch.as_tensor(part) for part in lists)
    assert offsets.dtype == columns.dtype == torch.int32
    assert offsets.shape == (1, 1, want.shape[0] + 1) and columns.shape == (int(want.sum()),)
    ends, place = offsets[0, 0].tolist(), want.nonzero()
    assert ends == [0, *want.sum(1).cumsum(0).tolist()]
    assert columns.tolist() == place[:, 1].tolist()  # row by row, ascending


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_sliding_window_blocks(window: Any, is_causal: bool) -> None:
    for (S_q, S_k), block, offset, sinks in product(SIZES, BLOCKS, OFFSETS, (None, 1, 70)):
        if window in (None, (-1, -1)) and sinks:
            continue
        options: dict[str, Any] = {"is_causal": is_causal, "sinks": sinks, "q_offset": offset, "block_size": block}
        want = ref_builders.sliding_window_blocks_ref(S_q, S_k, window, **options)
        for door in DOORS:
            check_lists(door.sliding_window_blocks(S_q, S_k, window, **options), want)


@pytest.mark.parametrize("local", [0, 1, 2, 5])
@pytest.mark.parametrize("is_causal", [False, True])
def test_local_log_blocks(local: int, is_causal: bool) -> None:
    for (S_q, S_k), block, offset, first in product(SIZES, BLOCKS, OFFSETS, (0, 1, 3)):
        options: dict[str, Any] = {"is_causal": is_causal, "local": local, "first": first, "q_offset": offset}
        want = ref_builders.local_log_blocks_ref(S_q, S_k, block_size=block, **options)
        for door in DOORS:
            check_lists(door.local_log_blocks(S_q, S_k, block_size=block, **options), want)


def test_local_log_blocks_are_n_log_n() -> None:
    """A million blocks a side: a matrix of them would be 10^12."""
    n = 2**20
    tracemalloc.start()
    offsets, columns = dsf_numpy.local_log_blocks(n, n, block_size=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert offsets.shape == (1, 1, n + 1)
    assert len(columns) <= n * (2 + 1 + 20)
    assert peak < 2 * (columns.nbytes + offsets.nbytes)


@pytest.mark.parametrize("shape", [(0, 0), (5, 7), (2, 3, 4, 6), (1, 2, 0, 3), (1, 2, 3, 0), (0, 2, 3, 4)])
def test_block_lists(shape: tuple[int, ...]) -> None:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    want = ref_masks.lists_of(kept if kept.dim() == 4 else kept[None, None])
    spread = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=torch.bool)[..., ::2].copy_(kept)
    for lists in (
        deepseek_fast.block_lists(kept),
        deepseek_fast.block_lists(spread),
        dsf_numpy.block_lists(kept.numpy()),
    ):
        for got, expected in zip(lists, want, strict=True):
            np.testing.assert_array_equal(np.asarray(got), expected.numpy())


TOP_K: tuple[tuple[tuple[int, ...], int, dict[str, Any]], ...] = (
    ((2, 4, 2, 100, 140, 24), 3, {"block_size": (16, 8)}),
    ((1, 4, 1, 640, 640, 64), 4, {"block_size": 16, "is_causal": True}),
    ((1, 2, 2, 33, 90, 16), 4, {"block_size": (8, 16), "is_causal": True, "q_offset": "end", "first": 2}),
    ((1, 2, 2, 33, 90, 16), 1, {"block_size": 8, "q_offset": -20, "local": 3, "is_causal": True}),
    ((1, 2, 2, 40, 30, 1), 99, {"block_size": 8, "first": 0, "local": 0, "scale": 2.0}),
    ((1, 2, 2, 40, 130, 17), 5, {"block_size": (1, 1), "first": 0, "local": 0, "scale": -0.5}),
    ((0, 2, 2, 40, 30, 16), 2, {"block_size": 8}),
    ((1, 2, 2, 0, 30, 16), 2, {"block_size": 8}),
    ((1, 2, 2, 30, 0, 16), 2, {"block_size": 8}),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sizes", "num_blocks", "options"), TOP_K)
def test_top_k_blocks(sizes: tuple[int, ...], num_blocks: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    B, H, H_kv, S_q, S_k, D = sizes
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(B, S, h, D, generator=generator).to(dtype).transpose(1, 2) for h, S in ((H, S_q), (H_kv, S_k)))
    kept = deepseek_fast.top_k_blocks(q, k, num_blocks, **options)
    scoring = {name: options[name] for name in ("block_size", "scale") if name in options}
    scores, error = ref_builders.pooled_scores_ref(q, k, **scoring), ref_builders.pooled_scores_bound(q, k, **scoring)
    place = (options.get("first", 1), options.get("local", 1), options.get("is_causal", False))
    given = ref_builders.forced_and_candidates(S_q, S_k, options["block_size"], *place, options.get("q_offset", 0))
    assert kept.shape == scores.shape
    assert ref_builders.is_top_k(kept, scores, error, num_blocks, *given)
    same = dsf_numpy.top_k_blocks(to_numpy(q.contiguous()), to_numpy(k.contiguous()), num_blocks, **options)
    np.testing.assert_array_equal(same, kept.numpy())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 3)
        assert torch.equal(deepseek_fast.top_k_blocks(q, k, num_blocks, **options), kept)
    finally:
        torch.set_num_threads(threads)


def test_top_k_blocks_takes_the_lower_of_equal_ones_and_no_nan() -> None:
    q, k = torch.ones(1, 1, 16, 8), torch.ones(1, 1, 80, 8)
    k[:, :, 40:48] = 2
    k[:, :, 8:16] = torch.nan
    kept = deepseek_fast.top_k_blocks(q, k, 4, block_size=8, first=0, local=0)
    assert kept[0, 0, 0].nonzero().flatten().tolist() == [0, 2, 3, 5]
    kept = deepseek_fast.top_k_blocks(q, k * torch.nan, 4, block_size=8, first=0, local=0)
    assert kept[0, 0, 1].nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_what_a_window_keeps_is_enough_for_it() -> None:
    q, k = torch.randn(1, 4, 200, 16), torch.randn(1, 2, 200, 16)
    options: dict[str, Any] = {"window": 30, "sinks": 3, "is_causal": True}
    lists = deepseek_fast.sliding_window_blocks(200, 200, block_size=16, **options)
    masked = deepseek_fast.block_sparse_attention(q, k, k, lists, block_size=16, **options)
    torch.testing.assert_close(masked, deepseek_fast.block_sparse_attention(q, k, k, **options), rtol=1e-5, atol=1e-5)


def test_compiled_programs_and_symbols() -> None:
    def attend(q: Tensor, k: Tensor) -> Tensor:
        lists = deepseek_fast.local_log_blocks(q.shape[2], k.shape[2], block_size=16)
        near = deepseek_fast.block_sparse_attention(q, k, k, lists, block_size=16, is_causal=True)
        kept = deepseek_fast.top_k_blocks(q, k, 2, block_size=16, is_causal=True)
        return near + deepseek_fast.block_sparse_attention(q, k, k, kept, block_size=16, is_causal=True)

    q, k = torch.randn(1, 4, 100, 16), torch.randn(1, 2, 100, 16)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k), attend(q, k))
    sizes = torch.export.Dim("S", min=33, max=4096)

    class Chosen(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return deepseek_fast.top_k_blocks(q, k, 2, block_size=16, is_causal=True)

    program = torch.export.export(Chosen(), (q, k), dynamic_shapes=({2: sizes}, {2: sizes}))
    q, k = torch.randn(1, 4, 70, 16), torch.randn(1, 2, 70, 16)
    assert torch.equal(program.module()(q, k), Chosen()(q, k))


def test_opcheck() -> None:
    ops, q = torch.ops.deepseek_fast, torch.randn(1, 2, 40, 8)
    torch.library.opcheck(ops.top_k_blocks.default, (q, q, 2, None, 1, 1, True, 0, False, 8, 8))
    torch.library.opcheck(ops.sliding_window_blocks.default, (40, 50, 9, -1, 2, True, 0, False, 8, 8))
    torch.library.opcheck(ops.local_log_blocks.default, (40, 50, 2, 1, True, 0, True, 8, 8))
    torch.library.opcheck(ops.block_lists.default, (torch.rand(1, 2, 4, 5) < 0.5,))


X = torch.zeros(1, 2, 8, 4)
BAD: tuple[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str], ...] = (
    ("sliding_window_blocks", (-1, 8, 4), {}, ValueError, "S_q must be from 0 to 2^58; got -1"),
    ("sliding_window_blocks", (8, 2.0, 4), {}, Exception, "S_k must be an integer; got 2.0"),
    (
        "sliding_window_blocks",
        (8, 8, (-2, 0)),
        {},
        ValueError,
        "window must have sides from 0, or -1 where there is no limit; got (-2, 0)",
    ),
    ("sliding_window_blocks", (8, 8, None), {"sinks": 4}, ValueError, "sinks must come with a window; got 4"),
    (
        "local_log_blocks",
        (8, 8),
        {"block_size": 0},
        ValueError,
        "block_size must be two numbers from 1 to 2^30; got (0, 0)",
    ),
    ("local_log_blocks", (8, 8), {"local": -1}, ValueError, "local must be from 0 to 2^30; got -1"),
    (
        "local_log_blocks",
        (8, 8),
        {"q_offset": "start"},
        ValueError,
        "q_offset must be an integer or 'end'; got 'start'",
    ),
    ("top_k_blocks", (X, X, 0), {}, ValueError, "num_blocks must be at least 1; got 0"),
    (
        "top_k_blocks",
        (X, X[:, :, :, :3], 1),
        {},
        ValueError,
        "k must have heads of q's 4 values; got shape (1, 2, 8, 3)",
    ),
    ("top_k_blocks", (X, X.double(), 1), {}, TypeError, "k must have q's dtype float32; got dtype float64"),
    (
        "top_k_blocks",
        (X, X, 1),
        {"block_size": -8},
        ValueError,
        "block_size must be two numbers from 1 to 2^30; got (-8, -8)",
    ),
    ("block_lists", (X,), {}, TypeError, "block_mask must be bool; got dtype float32"),
    ("block_lists", (X[0] > 0,), {}, ValueError, "block_mask must have 2 or 4 dimensions; got shape (2, 8, 4)"),
)


@pytest.mark.parametrize(("op", "args", "options", "kind", "sentence"), BAD)
def test_bad_input_is_one_sentence_at_every_door(
    op: str, args: tuple[Any, ...], options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        getattr(deepseek_fast, op)(*args, **options)
    assert str(raised.value) == f"{op}: {sentence}"
    arrays = [arg.numpy() if isinstance(arg, Tensor) else arg for arg in args]
    with pytest.raises(kind) as raised:
        getattr(dsf_numpy, op)(*arrays, **options)
    assert str(raised.value) == f"{op}: {sentence}"
