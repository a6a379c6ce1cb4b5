"""sparse_mla on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.cases import Call, Expect
from deepseek_fast.kernels.sparse_mla.gpu_bench import BENCH as BENCH

BF16, F16, F32, INT = torch.bfloat16, torch.float16, torch.float32, torch.int32
V32, V4 = 656, 584  # bytes a token


def _many_heads(constants: dict[str, Any]) -> bool:
    """wgmma has 64 rows; on 10.0 tcgen05 too, for which no tile without spills was found."""
    return constants.get("BLOCK_H") == 64


EXPECTS = {
    # The most: two lists of layout v4 on 8.0, where integer operations decode.
    "_attend": Expect(tensor_cores=True, async_copies=True, warpgroups=_many_heads, max_bytes=400 * 1024),
    "_combine": Expect(),
    "_shares": Expect(),
    "_query_gradient": Expect(tensor_cores=True, async_copies=True, warpgroups=_many_heads, max_bytes=256 * 1024),
    "_entry_gradient": Expect(tensor_cores=True, async_copies=True),
    "_row_gradient": Expect(),
    "_cache_write": Expect(),
    "_cache_read": Expect(),
}


def prefill(s_q: int, h_q: int, d_qk: int = 576, d_v: int = 512, dtype: torch.dtype = BF16) -> tuple[Any, ...]:
    q, kv = torch.empty(s_q, h_q, d_qk, dtype=dtype), torch.empty(4096, 1, d_qk, dtype=dtype)
    return q, kv, torch.empty(s_q, 1, 2048, dtype=INT), None, d_v


def options(s_q: int, h_q: int) -> dict[str, Tensor]:
    return {"attn_sink": torch.empty(h_q), "topk_length": torch.empty(s_q, dtype=INT)}


def decode(b: int, h_q: int, layout: str, s_q: int = 2, topk: int = 2048, dtype: torch.dtype = BF16) -> tuple[Any, ...]:
    d = 512 if layout == "v4" else 576
    indices = torch.empty(b, s_q, topk, dtype=INT) if topk else None
    return torch.empty(b, s_q, h_q, d, dtype=dtype), cache(layout, dtype), indices, None, 512, layout


def cache(layout: str, dtype: torch.dtype = BF16) -> Tensor:
    if layout == "plain":
        return torch.empty(64, 64, 1, 576, dtype=dtype)
    token = V32 if layout == "v32" else V4
    stride = -(-64 * token // 576) * 576 if layout == "v4" else 64 * token
    return torch.empty(64, stride, dtype=torch.uint8).as_strided((64, 64, 1, token), (stride, token, token, 1))


def dense(b: int) -> dict[str, Any]:
    lengths = torch.empty(b, dtype=INT)
    return {"block_table": torch.empty(b, 64, dtype=INT), "cache_seqlens": lengths, "is_causal": True}


def extra(b: int, h_q: int) -> dict[str, Any]:
    lists = {"extra_k_cache": cache("v4"), "extra_indices": torch.empty(b, 1, 512, dtype=INT)}
    lengths = {name: torch.empty(b, dtype=INT) for name in ("topk_length", "extra_topk_length")}
    return lists | lengths | {"attn_sink": torch.empty(h_q)}


def backward(s_q: int, h_q: int, dtype: torch.dtype = BF16, optional: bool = False) -> tuple[Any, ...]:
    q, kv, indices, scale, d_v = prefill(s_q, h_q, dtype=dtype)
    out, lse = torch.empty(s_q, h_q, d_v, dtype=dtype), torch.empty(s_q, h_q)
    given = options(s_q, h_q) if optional else {"attn_sink": None, "topk_length": None}
    return out, q, kv, indices, out, lse, scale, d_v, given["attn_sink"], given["topk_length"]


COMPILED = (
    Call("128-heads", "sparse_mla", lambda: prefill(4096, 128)),
    Call("64-heads-512", "sparse_mla", lambda: prefill(4096, 64, 512), lambda: options(4096, 64)),
    Call("16-heads", "sparse_mla", lambda: prefill(4096, 16)),
    Call("few-queries", "sparse_mla", lambda: prefill(2, 128)),
    Call("float16", "sparse_mla", lambda: prefill(4096, 16, 96, 64, F16)),
    Call("float32", "sparse_mla", lambda: prefill(4096, 16, dtype=F32)),
    Call("wide", "sparse_mla", lambda: prefill(4096, 16, 1024, 600)),
    Call("v32", "sparse_mla_decode", lambda: decode(128, 128, "v32")),
    Call("v32-one-request", "sparse_mla_decode", lambda: decode(1, 128, "v32")),
    Call("v32-16-heads", "sparse_mla_decode", lambda: decode(128, 16, "v32", topk=0), lambda: dense(128)),
    Call("v32-float32", "sparse_mla_decode", lambda: decode(128, 16, "v32", dtype=F32)),
    Call("v4-two-caches", "sparse_mla_decode", lambda: decode(1, 64, "v4", 1, 128), lambda: extra(1, 64)),
    Call("v4", "sparse_mla_decode", lambda: decode(128, 64, "v4")),
    Call("dense", "sparse_mla_decode", lambda: decode(8, 128, "plain", 1, 0), lambda: dense(8)),
    Call("backward", "sparse_mla_backward", lambda: backward(400, 128)),
    Call("backward-16-heads", "sparse_mla_backward", lambda: backward(64, 16, optional=True)),
    Call("backward-float32", "sparse_mla_backward", lambda: backward(64, 16, F32)),
    Call("write-v32", "mla_cache_write", lambda: (cache("v32"), torch.empty(100, 576, dtype=BF16), None, "v32")),
    Call(
        "write-v4", "mla_cache_write",
        lambda: (cache("v4"), torch.empty(100, 512), torch.empty(100, dtype=torch.int64), "v4"),
    ),
    Call("read-v32", "mla_cache_read", lambda: (cache("v32"), "v32")),
    Call("read-v4", "mla_cache_read", lambda: (cache("v4"), "v4")),
)  # fmt: skip
