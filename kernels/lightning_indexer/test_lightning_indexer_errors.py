"""The indexer refuses bad input in one sentence, the same at every door, with the right type of error."""

from typing import Any

import pytest
import torch

from tests.indexer_doors import INDEXER_DOORS, call
from tests.oracle import SENTENCE

DENSE, PAGED = ("fp8_mqa_logits", "lightning_indexer"), ("fp8_paged_mqa_logits", "lightning_indexer_paged")
Q = torch.ones(4, 64, 128).to(torch.float8_e4m3fn)
INDEX_PAST_INT32 = 2**31


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def cache(pages: int = 9, page: int = 64, dim: int = 1, width: int = 132) -> torch.Tensor:
    return torch.zeros(pages, page, dim, width, dtype=torch.uint8)


def good(op: str) -> dict[str, Any]:
    """A call with nothing wrong."""
    if op == "topk_indices":
        return {"scores": torch.ones(3, 5, 40), "k": 2}
    if op in DENSE:
        inputs = {"q": Q, "k": Q[:, :30].reshape(-1, 128), "k_scale": torch.ones(120), "weights": torch.ones(4, 64)}
        return inputs | ({} if op == "fp8_mqa_logits" else {"top_k": 3})
    inputs = {"q": Q.reshape(2, 2, 64, 128), "cache": cache(), "weights": torch.ones(4, 64)}
    inputs |= {"context_lens": ints(70, 5), "block_table": ints((3, 7), (8, -1))}
    return inputs | ({"max_context_len": 100} if op == "fp8_paged_mqa_logits" else {"top_k": 3})


E4M3, F32, I32 = "be float8_e4m3fn; got dtype ", "be float32; got dtype ", "be int32; got dtype "
Bad = tuple[str, dict[str, Any], type[Exception], str]
# (op, what changes in a good call, type of error, the sentence's beginning after "<op>: ")
OF_BOTH: list[Bad] = [
    row
    for op in (*DENSE, *PAGED)
    for row in (
        (op, {"q": good(op)["q"].bfloat16()}, TypeError, f"q must {E4M3}bfloat16"),
        (op, {"q": good(op)["q"].to(torch.float8_e5m2)}, TypeError, f"q must {E4M3}float8_e5m2"),
        (op, {"weights": torch.ones(64, 4)}, ValueError, "weights must have shape (4, 64), one a query and head; got"),
        (op, {"weights": torch.ones(4, 64).bfloat16()}, TypeError, f"weights must {F32}bfloat16"),
        (op, {"q": Q[0, 0]}, ValueError, "q must have "),
        (op, {"q": good(op)["q"][..., :0, :]}, ValueError, "q must have from 1 to 1024 heads of 1 to 1024 values; got"),
        (op, {"q": good(op)["q"][..., :0]}, ValueError, "q must have from 1 to 1024 heads of 1 to 1024 values; got"),
        (op, {"q": torch.zeros(1, 1, 1, 1025).to(Q.dtype)[op in DENSE :][-1 if op in DENSE else 0 :]}, ValueError, "q"),
    )
]
OF_DENSE: list[Bad] = [
    row
    for op in DENSE
    for row in (
        (op, {"k": torch.ones(120, 128)}, TypeError, f"k must {E4M3}float32"),
        (
            op,
            {"k": Q[0, :, :64]},
            ValueError,
            "k must have shape (s_kv, 128), as many columns as q; got shape (64, 64)",
        ),
        (op, {"k": Q}, ValueError, "k must have shape (s_kv, 128), as many columns as q; got shape (4, 64, 128)"),
        (op, {"k_scale": torch.ones(119)}, ValueError, "k_scale must have shape (120,), one a row of k; got shape"),
        (op, {"k_scale": torch.ones(120, 1)}, ValueError, "k_scale must have shape (120,), one a row of k; got shape"),
        (op, {"k_scale": torch.ones(120).double()}, TypeError, f"k_scale must {F32}float64"),
        (op, {"ks": ints(0, 1, 2)}, ValueError, "ks must have shape (4,), one a query; got shape (3,)"),
        (op, {"ke": ints(0)}, ValueError, "ke must have shape (4,), one a query; got shape (1,)"),
        (op, {"ke": torch.zeros(4, dtype=torch.int64)}, TypeError, f"ke must {I32}int64"),
    )
]
OF_PAGED: list[Bad] = [
    row
    for op in PAGED
    for row in (
        (op, {"cache": cache().to(torch.int8)}, TypeError, "cache must be uint8; got dtype int8"),
        (op, {"cache": cache(width=128)}, ValueError, "cache must have 132 bytes a token, D + 4; got shape (9, 64, 1,"),
        (op, {"cache": cache(dim=2)}, ValueError, "cache must have shape (pages, page, 1, 132); got shape (9, 64, 2,"),
        (op, {"cache": cache()[:, :, 0]}, ValueError, "cache must have shape (pages, page, 1, 132); got shape (9, 64,"),
        (op, {"cache": cache(page=0)}, ValueError, "cache must have shape (pages, page, 1, 132); got shape (9, 0,"),
        (op, {"cache": cache(pages=0)}, ValueError, "cache must have pages for the tokens of context_lens; got shape"),
        (op, {"context_lens": ints(70)}, ValueError, "context_lens must have shape (2,) or (2, 2); got shape (1,)"),
        (op, {"context_lens": ints((1, 2, 3), (4, 5, 6))}, ValueError, "context_lens must have shape (2,) or (2, 2);"),
        (op, {"context_lens": torch.tensor([70, 5])}, TypeError, f"context_lens must {I32}int64"),
        (op, {"block_table": torch.ones(2, 2)}, TypeError, f"block_table must {I32}float32"),
        (op, {"block_table": ints((3, 7))}, ValueError, "block_table must have shape (2, pages a request); got shape"),
        (
            op,
            {"block_table": ints((3,), (8,))},
            ValueError,
            "block_table must have 2 pages a request for the tokens of",
        ),
        *(
            (
                op,
                {"block_table": ints((3, page), (8, -1))},
                ValueError,
                f"block_table must have pages from 0 to 8 for the tokens of context_lens; got {page}",
            )
            for page in (9, -1, 2**31 - 1, -(2**31))
        ),
    )
]
ORDERS = "sorted_by must be one of None, index, value; got "
OTHERS: list[Bad] = [
    ("fp8_mqa_logits", {"max_seqlen_k": -1}, ValueError, "max_seqlen_k must be at least 0; got -1"),
    ("fp8_mqa_logits", {"max_seqlen_k": 2**62}, ValueError, "max_seqlen_k must leave logits of fewer than 2^62 bytes"),
    ("fp8_mqa_logits", {"dtype": torch.float16}, TypeError, "dtype must be float32 or bfloat16; got float16"),
    ("fp8_paged_mqa_logits", {"dtype": torch.int32}, TypeError, "dtype must be float32 or bfloat16; got int32"),
    ("fp8_paged_mqa_logits", {"max_context_len": -3}, ValueError, "max_context_len must be at least 0; got -3"),
    ("fp8_paged_mqa_logits", {"max_context_len": INDEX_PAST_INT32}, ValueError, "max_context_len must be at most 2147"),
    *(
        row
        for op in ("lightning_indexer", "lightning_indexer_paged")
        for row in (
            (op, {"top_k": -1}, ValueError, "top_k must be at least 0; got -1"),
            (op, {"top_k": 2**62}, ValueError, "top_k must leave indices of fewer than 2^62 bytes; got"),
            (op, {"sorted_by": "score"}, ValueError, f"{ORDERS}'score'"),
        )
    ),
    ("topk_indices", {"k": -1}, ValueError, "k must be at least 0; got -1"),
    ("topk_indices", {"k": 2**62}, ValueError, "k must leave indices of fewer than 2^62 bytes; got"),
    ("topk_indices", {"sorted_by": "score"}, ValueError, f"{ORDERS}'score'"),
    (
        "topk_indices",
        {"scores": torch.tensor(1.0)},
        ValueError,
        "scores must have at least one dimension; got shape ()",
    ),
    *(
        (
            "topk_indices",
            {"scores": torch.zeros(3, 5, 40, dtype=dtype)},
            TypeError,
            f"scores must be float32, bfloat16 or float16; got dtype {str(dtype)[6:]}",
        )
        for dtype in (torch.int64, torch.float64, torch.bool)
    ),
    *(
        (
            "topk_indices",
            {"lengths": torch.ones(shape, dtype=torch.int32)},
            ValueError,
            "lengths must have scores' shape but for its last dimension; got shape",
        )
        for shape in ((), (3,), (5, 3), (3, 5, 40))
    ),
    ("topk_indices", {"lengths": torch.ones(3, 5)}, TypeError, f"lengths must {I32}float32"),
]
BAD = [*OF_BOTH, *OF_DENSE, *OF_PAGED, *OTHERS]


@pytest.mark.parametrize("op", [*DENSE, *PAGED, "topk_indices"])
def test_good_calls_are_good(op: str) -> None:
    for door in INDEXER_DOORS:
        assert call(op, door, good(op)).numel()


@pytest.mark.parametrize("door", INDEXER_DOORS)
@pytest.mark.parametrize(("op", "change", "kind", "beginning"), BAD, ids=[f"{row[0]}-{i}" for i, row in enumerate(BAD)])
def test_bad_input(op: str, change: dict[str, Any], kind: type[Exception], beginning: str, door: str) -> None:
    with pytest.raises(Exception if door == "ort" else kind) as raised:
        call(op, door, good(op) | change)
    sentence = str(raised.value).strip().splitlines()[-1]
    if door == "ort":  # its own words come first
        assert f"{op}: {beginning}" in sentence, sentence
        return
    assert sentence.startswith(f"{op}: {beginning}"), sentence
    assert SENTENCE.match(sentence), sentence
    assert "\n" not in str(raised.value) and len(sentence) < 300


@pytest.mark.parametrize("door", ["torch", "numpy"])
def test_a_cache_whose_tokens_lie_apart_is_refused(door: str) -> None:
    wide = torch.zeros(9, 64, 1, 140, dtype=torch.uint8)[..., :132]
    for op in PAGED:
        with pytest.raises(ValueError, match=f"{op}: cache must have pages of contiguous bytes; got other strides"):
            call(op, door, good(op) | {"cache": wide})


@pytest.mark.parametrize(
    ("op", "change", "sentence"),
    [
        ("fp8_mqa_logits", {"k": None}, "k must be a tensor; got NoneType"),
        ("fp8_mqa_logits", {"ks": [0, 1, 2, 3]}, "ks must be a tensor; got list"),
        ("fp8_mqa_logits", {"dtype": "float32"}, "dtype must be float32 or bfloat16; got 'float32'"),
        ("fp8_mqa_logits", {"max_seqlen_k": 2.0}, "max_seqlen_k must be an integer of 64 bits; got 2.0"),
        ("lightning_indexer", {"top_k": None}, "top_k must be an integer of 64 bits; got None"),
        ("lightning_indexer", {"sorted_by": 3}, "sorted_by must be a name or None; got 3"),
        ("lightning_indexer_paged", {"as_slots": "no"}, "as_slots must be True or False; got 'no'"),
        ("topk_indices", {"k": 2**70}, f"k must be an integer of 64 bits; got {2**70}"),
        ("topk_indices", {"scores": 3.0}, "scores must be a tensor; got float"),
    ],
)
def test_options_of_a_wrong_type_get_one_sentence(op: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError) as raised:
        call(op, "torch", good(op) | change)
    assert str(raised.value) == f"{op}: {sentence}"


def test_a_name_that_the_schema_uses_is_refused() -> None:
    with pytest.raises(ValueError, match="topk_indices: sorted_by must be one of None, index, value; got 'any'"):
        call("topk_indices", "torch", good("topk_indices") | {"sorted_by": "any"})
