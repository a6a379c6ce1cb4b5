"""Bad calls: one sentence, the same from torch, NumPy and ONNX Runtime; never a read outside the tensors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.onnx._runtime import LIBRARY, Runner
from tests.doors import to_numpy
from tests.mla_nodes import node_model
from tests.oracle import SENTENCE


def prefill(**changed: Any) -> dict[str, Any]:
    given = {
        "q": torch.randn(3, 6, 40),
        "kv": torch.randn(20, 2, 40),
        "indices": torch.zeros(3, 2, 5, dtype=torch.int32),
        "d_v": 24,
        "attn_sink": torch.zeros(6),
        "topk_length": torch.full((3,), 5, dtype=torch.int32),
    }
    return given | changed


def decode(layout: str = "v32", **changed: Any) -> dict[str, Any]:
    d, token = {"v32": (576, 656), "v4": (512, 584), "plain": (48, 0)}[layout]
    cache = torch.zeros(4, 8, 1, 48) if layout == "plain" else torch.zeros(4, 8, 1, token, dtype=torch.uint8)
    given: dict[str, Any] = {"q": torch.randn(2, 1, 4, d), "k_cache": cache, "layout": layout, "d_v": 40}
    if "block_table" not in changed and "indices" not in changed:
        given["indices"] = torch.zeros(2, 1, 6, dtype=torch.int32)
    return given | changed


INT = torch.int32
TABLE: dict[str, Any] = {"block_table": torch.zeros(2, 3, dtype=INT), "cache_seqlens": torch.tensor([24, 5], dtype=INT)}
PREFILLS: dict[str, tuple[dict[str, Any], str]] = {
    "q's dtype": ({"q": torch.zeros(3, 6, 40).double()}, "q must be float32, bfloat16 or float16; got dtype float64"),
    "q's dimensions": ({"q": torch.zeros(3, 40)}, "q must have 3 dimensions; got shape (3, 40)"),
    "no numbers": ({"q": torch.zeros(3, 6, 0)}, "q must have a last dimension from 1 to 1024; got shape (3, 6, 0)"),
    "too many numbers": (
        {"q": torch.zeros(3, 6, 1025)},
        "q must have a last dimension from 1 to 1024; got shape (3, 6, 1025)",
    ),
    "kv's dtype": ({"kv": torch.zeros(20, 2, 40).half()}, "kv must have q's dtype float32; got dtype float16"),
    "kv's numbers": ({"kv": torch.zeros(20, 2, 41)}, "kv must have q's last dimension of 40; got shape (20, 2, 41)"),
    "heads": ({"kv": torch.zeros(20, 4, 40)}, "kv must have heads that divide q's 6; got shape (20, 4, 40)"),
    "no heads": ({"kv": torch.zeros(20, 0, 40)}, "kv must have heads that divide q's 6; got shape (20, 0, 40)"),
    "indices' dtype": ({"indices": torch.zeros(3, 2, 5).long()}, "indices must be int32; got dtype int64"),
    "indices": (
        {"indices": torch.zeros(3, 1, 5, dtype=INT)},
        "indices must have shape (3, 2, topk); got shape (3, 1, 5)",
    ),
    "d_v of 0": ({"d_v": 0}, "d_v must be from 1 to 40, kv's last dimension; got 0"),
    "d_v": ({"d_v": 600}, "d_v must be from 1 to 40, kv's last dimension; got 600"),
    "scale": ({"scale": float("inf")}, "scale must be finite in float32; got inf"),
    "sink's dtype": ({"attn_sink": torch.zeros(6).half()}, "attn_sink must be float32; got dtype float16"),
    "sink": ({"attn_sink": torch.zeros(5)}, "attn_sink must have shape (6,); got shape (5,)"),
    "length": (
        {"topk_length": torch.zeros(2, dtype=INT)},
        "topk_length must have shape (3,); got shape (2,)",
    ),
}
DECODES: dict[str, tuple[dict[str, Any], str]] = {
    "layout": (decode() | {"layout": "v3"}, "layout must be one of plain, v32, v4; got 'v3'"),
    "q": (
        decode(q=torch.zeros(2, 1, 4, 512)),
        "q must have a last dimension of 576 for this layout; got shape (2, 1, 4, 512)",
    ),
    "bytes": (
        decode(k_cache=torch.zeros(4, 64, 1, 584, dtype=torch.uint8)),
        "k_cache must have 656 bytes a token for layout v32; got shape (4, 64, 1, 584)",
    ),
    "bytes of v4": (
        decode("v4", k_cache=torch.zeros(4, 64, 1, 656, dtype=torch.uint8)),
        "k_cache must have 584 bytes a token for layout v4; got shape (4, 64, 1, 656)",
    ),
    "cache's dtype": (
        decode(k_cache=torch.zeros(4, 8, 1, 656)),
        "k_cache must be uint8 or float8_e4m3fn for an FP8 layout; got dtype float32",
    ),
    "a plain cache's dtype": (
        decode("plain", k_cache=torch.zeros(4, 8, 1, 48).half()),
        "k_cache must have q's dtype float32; got dtype float16",
    ),
    "heads": (
        decode("plain", k_cache=torch.zeros(4, 8, 2, 48)),
        "k_cache must have one head in its third dimension; got shape (4, 8, 2, 48)",
    ),
    "neither": (
        decode(indices=None),
        "indices must be given where there is no block_table; got None",
    ),
    "both": (
        decode(**TABLE, indices=torch.zeros(2, 1, 6, dtype=INT)),
        "block_table must be left out where indices are given; got one",
    ),
    "causal": (decode(is_causal=True), "is_causal must be False where indices are given; got True"),
    "no seqlens": (
        decode(block_table=TABLE["block_table"]),
        "cache_seqlens must be given where there is a block_table; got None",
    ),
    "length of nothing": (
        decode(**TABLE, topk_length=torch.zeros(2, dtype=INT)),
        "topk_length must be left out where there are no indices; got one",
    ),
    "a page out of range": (
        decode(**TABLE | {"block_table": torch.tensor([[0, 1, 2147480000], [0, -7, 0]], dtype=INT)}),
        "block_table must have pages from 0 to 3 for the tokens of cache_seqlens; got 2147480000",
    ),
    "a request too long": (
        decode(**TABLE | {"cache_seqlens": torch.tensor([24, 25], dtype=INT)}),
        "cache_seqlens must be from 0 to 24, block_table's tokens; got 25",
    ),
    "a request below nothing": (
        decode(**TABLE | {"cache_seqlens": torch.tensor([-1, 5], dtype=INT)}),
        "cache_seqlens must be from 0 to 24, block_table's tokens; got -1",
    ),
    "extra without indices": (
        decode(extra_k_cache=torch.zeros(1, 8, 1, 656, dtype=torch.uint8)),
        "extra_indices must be given where there is an extra_k_cache; got None",
    ),
    "extra without a cache": (
        decode(extra_indices=torch.zeros(2, 1, 6, dtype=INT)),
        "extra_indices must be left out where there is no extra_k_cache; got one",
    ),
    "extra's bytes": (
        decode(
            extra_k_cache=torch.zeros(1, 8, 1, 584, dtype=torch.uint8), extra_indices=torch.zeros(2, 1, 6, dtype=INT)
        ),
        "extra_k_cache must have 656 bytes a token for layout v32; got shape (1, 8, 1, 584)",
    ),
    "extra's lists": (
        decode(
            extra_k_cache=torch.zeros(1, 8, 1, 656, dtype=torch.uint8), extra_indices=torch.zeros(1, 1, 6, dtype=INT)
        ),
        "extra_indices must have shape (2, 1, topk); got shape (1, 1, 6)",
    ),
}
CALLS = {f"sparse_mla: {name}": ("sparse_mla", prefill(**of), text) for name, (of, text) in PREFILLS.items()}
CALLS |= {f"decode: {name}": ("sparse_mla_decode", of, text) for name, (of, text) in DECODES.items()}


@pytest.mark.parametrize("name", CALLS)
def test_every_door_says_the_same(name: str) -> None:
    op, given, text = CALLS[name]
    sentence = f"{op}: {text}"
    assert SENTENCE.match(sentence)
    kind = TypeError if "dtype" in text.split("; got")[1] else ValueError
    with pytest.raises(kind) as caught:
        getattr(deepseek_fast, op)(**given)
    assert str(caught.value) == sentence
    arrays = {key: to_numpy(value) for key, value in given.items()}
    with pytest.raises(kind) as caught:
        getattr(deepseek_fast.numpy, op)(**arrays)
    assert str(caught.value) == sentence
    if given["q"].dtype == torch.float64:
        return  # no type of the node's
    model, feeds = node_model(op, given, with_body=False, bare=True)
    with pytest.raises(Exception) as failed:
        Runner(model, runtime=LIBRARY, threads=1).run(feeds)
    assert sentence in str(failed.value)


@pytest.mark.parametrize("name", CALLS)
def test_meta_kernels_say_the_same(name: str) -> None:
    op, given, text = CALLS[name]
    if any(word in text for word in ("tokens of cache_seqlens", "block_table's tokens", "finite")):
        return  # values, which a Meta tensor has not
    meta = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in given.items()}
    with pytest.raises((TypeError, ValueError), match=f"^{op}: ") as caught:
        getattr(deepseek_fast, op)(**meta)
    assert str(caught.value) == f"{op}: {text}"


@pytest.mark.parametrize("door", ["torch", "numpy"])
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"q": None}, "q must be a {array}; got NoneType"),
        ({"kv": None}, "kv must be a {array}; got NoneType"),
        ({"indices": 3}, "indices must be a {array}; got int"),
        ({"attn_sink": 1.0}, "attn_sink must be a {array}; got float"),
    ],
)
def test_what_is_no_tensor(door: str, changed: dict[str, Any], text: str) -> None:
    given = prefill(**changed)
    library = deepseek_fast if door == "torch" else deepseek_fast.numpy
    if door == "numpy":
        given = {name: to_numpy(value) for name, value in given.items()}
    with pytest.raises(TypeError) as caught:
        library.sparse_mla(**given)
    what = "tensor" if door == "torch" else "NumPy array"
    assert str(caught.value) == "sparse_mla: " + text.format(array=what)


WRITES: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"layout": "plain"}, "layout must be one of v32, v4; got 'plain'"),
    "kv's dtype": ({"kv": torch.zeros(3, 576).half()}, "kv must be float32 or bfloat16; got dtype float16"),
    "kv's columns": ({"kv": torch.zeros(3, 512)}, "kv must have 576 columns for this layout; got shape (3, 512)"),
    "too many": ({"kv": torch.zeros(33, 576)}, "kv must have at most the cache's 32 tokens; got shape (33, 576)"),
    "slots' dtype": ({"slots": torch.zeros(3)}, "slots must be int32 or int64; got dtype float32"),
    "slots' number": ({"slots": torch.zeros(2).int()}, "slots must have shape (3,); got shape (2,)"),
    "a slot": ({"slots": torch.tensor([0, -1, 32])}, "slots must be below 32, the cache's tokens; got 32"),
    "a slot of 32 bits": (
        {"slots": torch.tensor([99, -1, 3]).int()},
        "slots must be below 32, the cache's tokens; got 99",
    ),
    "pages": (
        {"cache": torch.zeros(4, 8, 1, 1312, dtype=torch.uint8)[..., ::2]},
        "cache must have contiguous bytes in each token; got shape (4, 8, 1, 656)",
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_bad_writes(name: str) -> None:
    changed, text = WRITES[name]
    given: dict[str, Any] = {"cache": torch.zeros(4, 8, 1, 656, dtype=torch.uint8), "kv": torch.randn(3, 576)}
    given |= {"layout": "v32"} | changed
    kind = TypeError if "; got dtype" in text else ValueError
    arrays = {key: to_numpy(value) for key, value in given.items()}
    for library, arguments in ((deepseek_fast, given), (deepseek_fast.numpy, arrays)):
        with pytest.raises(kind) as caught:
            library.mla_cache_write(**arguments)
        assert str(caught.value) == f"mla_cache_write: {text}"
    assert not given["cache"].any()


def test_indices_of_any_value(isa: str) -> None:
    """Rows beside pages without access are in tests/test_mla_memory_bounds.py."""
    values = [0, 1, 19, 20, 21, -1, -20, 2**31 - 1, -(2**31), 114514, *range(-2000, 2000, 37)]
    indices = torch.tensor(values, dtype=INT)[None, None].expand(2, 1, -1)
    q, kv = torch.randn(2, 3, 24), torch.randn(20, 1, 24)
    out = deepseek_fast.sparse_mla(q, kv, indices, d_v=24)[0]
    counted = torch.tensor([v for v in values if 0 <= v < 20], dtype=INT)[None, None].expand(2, 1, -1)
    torch.testing.assert_close(out, deepseek_fast.sparse_mla(q, kv, counted, d_v=24)[0])


def test_lengths_of_any_value() -> None:
    given = prefill(attn_sink=None)
    for length in (-5, -(2**31), 0):
        out, top, lse = deepseek_fast.sparse_mla(**given | {"topk_length": torch.full((3,), length, dtype=INT)})
        assert not out.any() and lse.isposinf().all() and top.isneginf().all()
    for length in (5, 6, 2**31 - 1):
        got = deepseek_fast.sparse_mla(**given | {"topk_length": torch.full((3,), length, dtype=INT)})
        want = deepseek_fast.sparse_mla(**given | {"topk_length": None})
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_a_cache_that_may_not_be_written() -> None:
    cache = np.zeros((1, 8, 1, 656), np.uint8)
    cache.flags.writeable = False
    with pytest.raises(ValueError, match=r"^mla_cache_write: cache must be writeable; got one that is not$"):
        deepseek_fast.numpy.mla_cache_write(cache, np.zeros((1, 576), np.float32), layout="v32")
