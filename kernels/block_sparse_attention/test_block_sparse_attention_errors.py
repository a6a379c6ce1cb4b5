"""block_sparse_attention refuses bad input in one sentence, the same at every door, with the right type of error."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import deepseek_fast
from deepseek_fast.kernels.block_sparse_attention import meta
from tests import attention_doors
from tests.attention_doors import OP, call, options, session, tensors
from tests.oracle import SENTENCE

Q, K = torch.randn(2, 4, 100, 16), torch.randn(2, 2, 150, 16)
KEPT = torch.ones(2, 4, 4, 5, dtype=torch.bool)  # blocks of 32 x 32
OFFSETS, COLUMNS = torch.tensor([[[0, 2, 3, 3, 5]]]), torch.tensor([0, 4, 2, 1, 3])
LISTS = (OFFSETS, COLUMNS)
TABLES, BITS = torch.tensor([-1, 0, -1, 1, -1]).int(), torch.zeros(2, 32, 1, dtype=torch.int64)
GOOD: dict[str, Any] = {"q": Q, "k": K, "v": K, "block_mask": KEPT, "block_size": 32}
ONE: dict[str, Any] = {"q": Q[:1], "k": K[:1], "v": K[:1], "block_mask": None}  # a batch of one
ENDS = torch.tensor([0, 60, 100])
ENDS_K = torch.tensor([0, 60, 150])
SEQUENCES = ONE | {"cu_seqlens_q": ENDS, "cu_seqlens_k": ENDS_K}
ALONE = {name: value for name, value in SEQUENCES.items() if name != "cu_seqlens_k"}
BIG = torch.ones(1).expand
WINDOW = (
    "window must be None, a positive integer, or (left, right) of integers, each None or -1 where there is no limit; "
)
SIDES = "window must have sides from 0, or -1 where there is no limit; got "
DIVIDE = "k must have heads that divide q's 4; got shape "
BIAS = "token_bias must have shape (2 or 1, 4 or 1, 100 or 1, 150); got shape "
ASCEND = "have row offsets that ascend from 0 to 5, the number of columns; got "


def offsets(*values: int) -> dict[str, Any]:
    return {"block_mask": (torch.tensor(values), COLUMNS)}


def columns(*values: int) -> dict[str, Any]:
    return {"block_mask": (OFFSETS, torch.tensor(values))}


def tables(tables: Tensor | None = TABLES, bits: Tensor | None = BITS) -> dict[str, Any]:
    return {"block_mask": (*LISTS, tables, bits)}


def ends(*values: int) -> dict[str, Any]:
    return SEQUENCES | {"cu_seqlens_q": torch.tensor(values)}


# (what changes in a good call, type of error, the sentence's beginning after "block_sparse_attention: ")
Row = tuple[dict[str, Any], type[Exception], str]
TENSORS: list[Row] = [
    *(
        ({"q": Q.to(dtype)}, TypeError, f"q must be float32, bfloat16 or float16; got dtype {str(dtype)[6:]}")
        for dtype in (torch.float64, torch.int64, torch.uint8, torch.bool)
    ),
    ({"k": K.bfloat16()}, TypeError, "k must have q's dtype float32; got dtype bfloat16"),
    ({"v": K.half()}, TypeError, "v must have q's dtype float32; got dtype float16"),
    ({"q": Q.bfloat16(), "v": K.bfloat16()}, TypeError, "k must have q's dtype bfloat16; got dtype float32"),
    ({"q": Q[0]}, ValueError, "q must have 4 dimensions; got shape (4, 100, 16)"),
    ({"k": K[None]}, ValueError, "k must have 4 dimensions; got shape (1, 2, 2, 150, 16)"),
    ({"v": K[0, 0, 0, 0]}, ValueError, "v must have 4 dimensions; got shape ()"),
    ({"q": Q[:, :0]}, ValueError, "q must have at least 1 head; got shape (2, 0, 100, 16)"),
    ({"q": Q[..., :0], "k": K[..., :0]}, ValueError, "q must have heads of 1 to 1024 values; got shape (2, 4, 100, 0)"),
    ({"q": BIG(2, 4, 100, 1025)}, ValueError, "q must have heads of 1 to 1024 values; got shape (2, 4, 100, 1025)"),
    ({"k": K[:1]}, ValueError, "k must have q's batch of 2; got shape (1, 2, 150, 16)"),
    ({"k": K[..., :8]}, ValueError, "k must have heads of q's 16 values; got shape (2, 2, 150, 8)"),
    ({"k": K[:, :0]}, ValueError, f"{DIVIDE}(2, 0, 150, 16)"),
    ({"k": BIG(2, 3, 150, 16)}, ValueError, f"{DIVIDE}(2, 3, 150, 16)"),
    ({"k": BIG(2, 8, 150, 16)}, ValueError, f"{DIVIDE}(2, 8, 150, 16)"),
    ({"enable_gqa": False}, ValueError, "k must have q's 4 heads where enable_gqa is False; got shape (2, 2, 150, 16)"),
    ({"v": K[:, :1]}, ValueError, "v must have k's batch, heads and tokens (2, 2, 150); got shape (2, 1, 150, 16)"),
    ({"v": K[:, :, 1:]}, ValueError, "v must have k's batch, heads and tokens (2, 2, 150); got shape (2, 2, 149, 16)"),
    ({"v": K[..., :0]}, ValueError, "v must have heads of 1 to 1024 values; got shape (2, 2, 150, 0)"),
    ({"token_bias": Q[0, 0]}, ValueError, f"{BIAS}(100, 16)"),
    ({"token_bias": torch.zeros(2, 4, 100, 1)}, ValueError, f"{BIAS}(2, 4, 100, 1)"),
    ({"token_bias": torch.zeros(1, 3, 1, 150)}, ValueError, f"{BIAS}(1, 3, 1, 150)"),
    ({"token_bias": torch.zeros(1, 1, 1, 150).bfloat16()}, TypeError, "token_bias must be float32; got dtype bfloat16"),
    ({"token_bias": torch.zeros(1, 1, 1, 150).bool()}, TypeError, "token_bias must be float32; got dtype bool"),
    (
        {"q": Q.half(), "k": K.half(), "v": K.half(), "token_bias": torch.zeros(1, 1, 1, 150).bfloat16()},
        TypeError,
        "token_bias must be float32 or float16; got dtype bfloat16",
    ),
    ({"sink_logits": torch.zeros(3)}, ValueError, "sink_logits must have shape (4,); got shape (3,)"),
    ({"sink_logits": torch.zeros(4, 1)}, ValueError, "sink_logits must have shape (4,); got shape (4, 1)"),
    ({"sink_logits": torch.zeros(4).half()}, TypeError, "sink_logits must be float32; got dtype float16"),
]
POSITIONS: list[Row] = [
    *(({"scale": scale}, ValueError, "scale must be finite in float32; got ") for scale in (float("inf"), 1e300)),
    *(({"window": w}, ValueError, f"{SIDES}{w}") for w in ((-2, 3), (0, -7))),
    ({"sinks": -1, "window": 5}, ValueError, "sinks must be at least 0; got -1"),
    ({"sinks": 4}, ValueError, "sinks must come with a window; got 4"),
    ({"sinks": 4, "window": (None, -1)}, ValueError, "sinks must come with a window; got 4"),
    ({"q_offset": 2**59}, ValueError, "q_offset must be from -2^58 to 2^58; got 576460752303423488"),
    ({"q_offset": -(2**63)}, ValueError, "q_offset must be from -2^58 to 2^58; got -9223372036854775808"),
    *(
        ({"block_size": size}, ValueError, f"block_size must be from 1 to 2^30; got {size}")
        for size in ((0, 32), (32, -1), (32, 2**31), (2**62, 32))
    ),
]
MASKS: list[Row] = [
    ({"block_mask": KEPT.byte()}, TypeError, "block_mask must be bool; got dtype uint8"),
    ({"block_mask": KEPT.float()}, TypeError, "block_mask must be bool; got dtype float32"),
    ({"block_mask": KEPT[0]}, ValueError, "block_mask must have 2 or 4 dimensions; got shape (4, 4, 5)"),
    (
        {"block_mask": KEPT[..., :4]},
        ValueError,
        "block_mask must have 4 rows and 5 columns of blocks of 32 x 32; got shape (2, 4, 4, 4)",
    ),
    (
        {"block_size": (64, 32)},
        ValueError,
        "block_mask must have 2 rows and 5 columns of blocks of 64 x 32; got shape (2, 4, 4, 5)",
    ),
    (
        {"block_mask": KEPT[:, :3]},
        ValueError,
        "block_mask must have a batch of 2 or 1 and 4, 2 or 1 heads; got shape (2, 3, 4, 5)",
    ),
    (
        {"block_mask": KEPT[:1].expand(3, -1, -1, -1)},
        ValueError,
        "block_mask must have a batch of 2 or 1 and 4, 2 or 1 heads; got shape (3, 4, 4, 5)",
    ),
    (
        {"block_mask": (OFFSETS.float(), COLUMNS)},
        TypeError,
        "block_mask must have row offsets of int32 or int64; got dt",
    ),
    (
        {"block_mask": (OFFSETS, COLUMNS.char())},
        TypeError,
        "block_mask must have columns of int32 or int64; got dtype",
    ),
    (
        {"block_mask": (OFFSETS[0], COLUMNS)},
        ValueError,
        "block_mask must have row offsets of 1 or 3 dimensions; got sha",
    ),
    (
        {"block_mask": (OFFSETS[..., 1:], COLUMNS)},
        ValueError,
        "block_mask must have 5 row offsets, one more than rows of blocks of 32; got shape (1, 1, 4)",
    ),
    ({"block_mask": (OFFSETS.expand(1, 3, 5), COLUMNS)}, ValueError, "block_mask must have a batch of 2 or 1 and 4, 2"),
    (
        {"block_mask": (OFFSETS, COLUMNS[None])},
        ValueError,
        "block_mask must have columns of 1 dimension; got shape (1, 5)",
    ),
]
TABLE_ROWS: list[Row] = [
    (tables(TABLES.long()), TypeError, "tables must be int32; got dtype int64"),
    (tables(TABLES[1:]), ValueError, "tables must have shape (5,), one for each column; got shape (4,)"),
    (tables(bits=BITS.int()), TypeError, "bits must be int64; got dtype int32"),
    (tables(bits=BITS[:, 1:]), ValueError, "bits must have shape (tables, 32, 1); got shape (2, 31, 1)"),
    (tables(bits=BITS[..., 0]), ValueError, "bits must have shape (tables, 32, 1); got shape (2, 32)"),
    (tables(TABLES * 2), ValueError, "tables must be from -1 to 1; got -2"),
    (tables(bits=BITS[:1]), ValueError, "tables must be from -1 to 0; got 1"),
    (tables(bits=BITS[:0]), ValueError, "tables must be from -1 to -1; got 0"),
    (
        SEQUENCES | tables(),
        ValueError,
        "block_mask must be boolean or lists where there are cu_seqlens; got a BlockMask",
    ),
]
SHAPES_OF_SEQUENCES: list[Row] = [
    ({"cu_seqlens_q": ENDS}, ValueError, "q must have a batch of 1 where there are cu_seqlens; got shape (2, 4"),
    (SEQUENCES | {"cu_seqlens_q": ENDS.float()}, TypeError, "cu_seqlens_q must be int32 or int64; got dtype float32"),
    (SEQUENCES | {"cu_seqlens_k": ENDS.char()}, TypeError, "cu_seqlens_k must be int32 or int64; got dtype int8"),
    (
        SEQUENCES | {"cu_seqlens_q": ENDS[None]},
        ValueError,
        "cu_seqlens_q must have 1 dimension and at least 1 value; g",
    ),
    (SEQUENCES | {"cu_seqlens_k": ENDS_K[1:]}, ValueError, "cu_seqlens_k must have cu_seqlens_q's 3 values; got shape"),
    (ALONE, ValueError, "k must have q's 100 tokens where there is no cu_seqlens_k; got shape (1, 2, 150, 16)"),
]
VALUES: list[Row] = [  # of what is read before any work
    (offsets(0, 2, 3, 3, 6), ValueError, f"block_mask must {ASCEND}6 after 3"),
    (offsets(0, 2, 1, 3, 5), ValueError, f"block_mask must {ASCEND}1 after 2"),
    (offsets(-1, 2, 3, 3, 5), ValueError, f"block_mask must {ASCEND}-1"),
    (offsets(9, 9, 9, 9, 9), ValueError, f"block_mask must {ASCEND}9"),
    (offsets(0, 2, 3, 3, -(2**63)), ValueError, f"block_mask must {ASCEND}-9223372036854775808 after 3"),
    (columns(0, 5, 2, 1, 3), ValueError, "block_mask must have columns from 0 to 4; got 5"),
    (columns(0, 4, -1, 1, 3), ValueError, "block_mask must have columns from 0 to 4; got -1"),
    (columns(0, 4, 2, 1, 2**40), ValueError, "block_mask must have columns from 0 to 4; got 1099511627776"),
    (columns(4, 0, 2, 1, 3), ValueError, "block_mask must have ascending columns in each row; got 0 after 4"),
    (columns(0, 4, 2, 3, 3), ValueError, "block_mask must have ascending columns in each row; got 3 after 3"),
    (ends(1, 60, 100), ValueError, "cu_seqlens_q must ascend from 0 to 100; got 1 at its beginning"),
    (ends(0, 60, 96), ValueError, "cu_seqlens_q must ascend from 0 to 100; got 96 at its end"),
    (ends(0, 110, 100), ValueError, "cu_seqlens_q must ascend from 0 to 100; got 100 after 110"),
    (ends(0, -5, 100), ValueError, "cu_seqlens_q must ascend from 0 to 100; got -5 after 0"),
    (
        SEQUENCES | {"cu_seqlens_k": torch.tensor([0, 60, 2**62])},
        ValueError,
        "cu_seqlens_k must ascend from 0 to 150; got 4611686018427387904 at its end",
    ),
    (
        SEQUENCES | {"block_mask": torch.ones(4, 2, dtype=torch.bool)},  # 2 + 2 rows, of 2 and 3 columns
        ValueError,
        "block_mask must have 4 rows and 3 columns of blocks of 32 x 32; got shape (4, 2)",
    ),
]
# Before any tensor is looked at: sentences of the Python functions, not of the node.
WORDS: list[Row] = [
    *(({"window": w}, ValueError, f"{WINDOW}got {w!r}") for w in (0, -1, 2.5, "3", (1,), (1, 2, 3), (1, 2.0), True)),
    *(
        ({"block_size": size}, ValueError, f"block_size must be an integer, or (queries, keys); got {size!r}")
        for size in (None, 2.0, "32", (32,), (32, 32, 32), (32, None), True)
    ),
    ({"q_offset": "start"}, ValueError, "q_offset must be an integer or 'end'; got 'start'"),
    ({"q_offset": 1.5}, TypeError, "q_offset must be an integer; got 1.5"),
    ({"sinks": 1.5, "window": 3}, TypeError, "sinks must be an integer; got 1.5"),
    ({"scale": "1"}, TypeError, "scale must be a number; got '1'"),
    ({"is_causal": 1}, TypeError, "is_causal must be True or False; got 1"),
    ({"enable_gqa": None}, TypeError, "enable_gqa must be True or False; got None"),
    (
        {"block_mask": LISTS[:1]},
        ValueError,
        "block_mask must be a boolean tensor, (row_offsets, columns) or a BlockMask; ",
    ),
    ({"scale": float("nan")}, ValueError, "scale must be finite in float32; got nan"),
]
META = [*TENSORS, *MASKS, *SHAPES_OF_SEQUENCES]
NODE = [*META, *POSITIONS, *TABLE_ROWS, *VALUES]
ALL = [*NODE, *WORDS]


def each_of(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[f"{i}-{row[2][:40]}" for i, row in enumerate(rows)])


@each_of(ALL)
def test_torch_and_numpy_refuse_it_in_the_same_words(row: Row) -> None:
    changes, error, sentence = row
    for door in ("torch", "numpy"):
        with pytest.raises(error) as raised:
            call(door, GOOD | changes)
        got = str(raised.value)
        assert got.startswith(f"{OP}: {sentence}"), f"{door}: {got}"
        assert SENTENCE.match(got), got


@each_of([row for row in NODE if row[0].get("q", Q).dtype != torch.bool])  # which no session of floats takes
def test_the_node_refuses_it_in_the_same_words(row: Row) -> None:
    changes, _, sentence = row
    inputs = GOOD | changes
    with pytest.raises(Exception, match="must") as raised:
        made = session(inputs)
        attention_doors.run(made, inputs)
    assert f"{OP}: {sentence}" in str(raised.value)


@each_of(META)
def test_meta_tensors_are_refused_in_the_same_words(row: Row) -> None:
    inputs = GOOD | row[0]
    given = [tensor if tensor is None else tensor.to("meta") for tensor in tensors(inputs)]
    with pytest.raises((row[1], RuntimeError)) as raised:
        meta.OP(*given, *options(inputs))
    assert f"{OP}: {row[2]}" in str(raised.value)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_no_tensor_at_all(name: str) -> None:
    for value in (None, [1.0], np.ones(3)):
        with pytest.raises(TypeError, match=f"{OP}: {name} must be a tensor; got "):
            deepseek_fast.block_sparse_attention(**(GOOD | {name: value}))
    with pytest.raises(TypeError, match=f"{OP}: {name} must be a NumPy array; got "):
        call("numpy", GOOD | {name: None})


def test_half_of_what_belongs_together() -> None:
    q = torch.randn(1, 1, 4, 4)
    for name, other in (("row_offsets", "columns"), ("columns", "row_offsets")):
        with pytest.raises(RuntimeError, match=f"{other} must come with {name}; got none"):
            meta.OP(q, q, q, **{name: torch.zeros(1).int()})
    with pytest.raises(RuntimeError, match="row_offsets must come with tables; got none"):
        meta.OP(q, q, q, tables=TABLES)
    with pytest.raises(RuntimeError, match="block_mask must be boolean or lists; got both"):
        meta.OP(q, q, q, KEPT, *LISTS)
    with pytest.raises(TypeError, match="cu_seqlens_q must come with cu_seqlens_k; got none"):
        deepseek_fast.block_sparse_attention(q, q, q, cu_seqlens_k=ENDS)
    with pytest.raises(TypeError, match="bits must come with tables; got none"):
        deepseek_fast.block_sparse_attention(**(GOOD | tables(bits=None)))
    with pytest.raises(TypeError, match="block_mask must be tensors; got NoneType"):
        deepseek_fast.block_sparse_attention(q, q, q, (None, COLUMNS))


def test_sizes_beyond_memory() -> None:
    """Expanded tensors may claim any size: no product of sizes overflows."""
    huge = torch.ones(1, 1, 1, 1)
    for sizes in ((2**40, 1, 2**20, 1), (1, 2**20, 2**40, 1), (1, 1, 2**59, 1)):
        q = huge.expand(*sizes)
        k = huge.expand(sizes[0], 1, 1, 1)
        with pytest.raises(ValueError, match=r"q must have at most 2\^58 elements; got shape"):
            deepseek_fast.block_sparse_attention(q, k, k)
    q, v = huge.expand(1, 1, 2**50, 1), huge.expand(1, 1, 1, 1024)
    with pytest.raises(ValueError, match=r"q must give at most 2\^58 elements with v's heads"):
        deepseek_fast.block_sparse_attention(q, huge, v)
    empty = huge[:0].expand(0, 2**57, 2**57, 1)
    assert deepseek_fast.block_sparse_attention(empty[:, :1], empty[:, :1], empty[:, :1]).numel() == 0


def test_block_masks_of_flex_attention() -> None:
    q = torch.randn(1, 2, 100, 8)
    mask = create_block_mask(lambda b, h, i, j: j <= i, 1, 1, 100, 100, device="cpu", BLOCK_SIZE=32)
    with pytest.raises(ValueError, match="boolean or lists where there are cu_seqlens; got a BlockMask"):
        deepseek_fast.block_sparse_attention(q, q, q, mask, cu_seqlens_q=ENDS)
    with pytest.raises(ValueError, match="must have 4 row offsets, one more than rows of blocks of 32"):
        deepseek_fast.block_sparse_attention(q[:, :, :80], q, q, mask)
    with pytest.raises(ValueError, match="must have columns from 0 to 2; got 3"):
        deepseek_fast.block_sparse_attention(q, q[:, :, :80], q[:, :, :80], mask)
    with pytest.raises(TypeError, match="flex_block_lists: block_mask must be a BlockMask; got Tensor"):
        deepseek_fast.flex_block_lists(KEPT)
    for bad in (-1, 4):
        broken = SimpleNamespace(**vars(mask))  # BlockMask itself refuses some
        broken.kv_indices = torch.full_like(mask.kv_indices, bad)
        with pytest.raises(ValueError, match=f"block_mask must have columns from 0 to 3; got {bad}"):
            deepseek_fast.flex_block_lists(broken)


BACKWARD_BAD = [
    (0, lambda x: x[:, :, 1:], "dout must have shape (2, 4, 100, 16); got shape (2, 4, 99, 16)"),
    (0, lambda x: x.bfloat16(), "dout must have q's dtype float32; got dtype bfloat16"),
    (1, lambda x: x[..., None], "dlse must have shape (2, 4, 100); got shape (2, 4, 100, 1)"),
    (1, lambda x: x.double(), "dlse must be float32; got dtype float64"),
    (5, lambda x: x[:1], "out must have shape (2, 4, 100, 16); got shape (1, 4, 100, 16)"),
    (6, lambda x: x[:, :1], "lse must have shape (2, 4, 100); got shape (2, 1, 100)"),
    (6, lambda x: x.half(), "lse must be float32; got dtype float16"),
]


@pytest.mark.parametrize(("place", "change", "sentence"), BACKWARD_BAD, ids=[row[2] for row in BACKWARD_BAD])
def test_backward_refuses_it_in_the_same_words(place: int, change: Any, sentence: str) -> None:
    out, lse = call("torch", GOOD)
    given = [torch.randn_like(out), torch.randn_like(lse), *tensors(GOOD)[:3], out, lse]
    given[place] = change(given[place])
    rest = (*tensors(GOOD)[3:], *options(GOOD))
    with pytest.raises(RuntimeError) as raised:
        meta.BACKWARD_OP(*given, *rest)
    assert str(raised.value).startswith(f"{OP}_backward: {sentence}")
