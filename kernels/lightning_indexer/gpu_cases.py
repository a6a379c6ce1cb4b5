"""The indexer on GPUs: what is compiled ahead of time, and what its code must have; gpu_bench.py: what is measured."""

from typing import Any

import torch

from deepseek_fast.gpu.cases import Call, Expect
from deepseek_fast.kernels.lightning_indexer.gpu_bench import BENCH as BENCH

FP8, F32, I32, U8 = torch.float8_e4m3fn, torch.float32, torch.int32, torch.uint8


def _products(constants: dict[str, Any]) -> bool:
    """wgmma and tcgen05 from 64 rows on: every tile."""
    return bool(constants["FP8"])


EXPECTS = {
    "_logits": Expect(tensor_cores=True, async_copies=True, warpgroups=_products, max_bytes=160 * 1024),
    "_paged_logits": Expect(tensor_cores=True, warpgroups=_products),
    # Straight code for 16 scores a thread, and three quarters of a cubin are its line numbers: 5,000 instructions.
    "_select": Expect(max_bytes=320 * 1024),
    "_by_value": Expect(max_bytes=256 * 1024),  # the steps of a sort of 2048, each its own
    "_packed_by_value": Expect(),
    "_to_slots": Expect(),
}


def _dense(s_q: int, s_kv: int, H: int = 64, D: int = 128) -> tuple[torch.Tensor, ...]:
    q, k = torch.empty(s_q, H, D, dtype=FP8), torch.empty(s_kv, D, dtype=FP8)
    return q, k, torch.empty(s_kv), torch.empty(s_q, H)


def _ends(s_q: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(s_q, dtype=I32), torch.empty(s_q, dtype=I32)


def _paged(b: int, next_n: int, context: int, H: int = 64, D: int = 128) -> tuple[torch.Tensor, ...]:
    pages = context // 64
    return (
        torch.empty(b, next_n, H, D, dtype=FP8),
        torch.empty(b * pages, 64, 1, D + 4, dtype=U8),
        torch.empty(b * next_n, H),
        torch.empty(b, dtype=I32),
        torch.empty(b, pages, dtype=I32),
    )


COMPILED = (
    Call("prefill", "lightning_indexer", lambda: (*_dense(256, 65536), 2048, *_ends(256), "any")),
    Call("prefill-32", "lightning_indexer", lambda: (*_dense(256, 65536, 32), 2048, *_ends(256), "any")),
    Call("few-queries", "lightning_indexer", lambda: (*_dense(4, 65536), 512, None, None, "value")),
    Call("logits", "fp8_mqa_logits", lambda: (*_dense(256, 8192), *_ends(256), 0, F32)),
    Call("logits-compressed", "fp8_mqa_logits", lambda: (*_dense(256, 8192), *_ends(256), 4096, torch.bfloat16)),
    Call("logits-ragged", "fp8_mqa_logits", lambda: (*_dense(20, 8192, 40, 192), None, None, 0, F32)),
    Call("decode", "lightning_indexer_paged", lambda: (*_paged(256, 1, 65536), 2048, "any", True)),
    Call("decode-2", "fp8_paged_mqa_logits", lambda: (*_paged(8, 2, 4096), 4096, F32)),
    Call("top-large", "topk_indices", lambda: (torch.empty(256, 131072), 16000, "value", None)),
    Call("top-one", "topk_indices", lambda: (torch.empty(1, 131072), 4096, "index", None)),
    Call("top-8192", "topk_indices", lambda: (torch.empty(64, 8192), 2048, "any", None)),
    Call("top-1000", "topk_indices", lambda: (torch.empty(256, 65536), 1000, "any", None)),
    Call("top-short", "topk_indices", lambda: (torch.empty(64, 1000, dtype=torch.bfloat16), 64, "any", None)),
    Call(
        "top-lengths",
        "topk_indices",
        lambda: (torch.empty(64, 4096), 2048, "value", torch.empty(64, dtype=I32)),
    ),
)
