"""block_sparse_attention on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.cases import Call, Expect
from deepseek_fast.kernels.block_sparse_attention.gpu_bench import BENCH as BENCH

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
_LOOP_BYTES = 224 * 1024  # of a loop with several unrolled products, three of TF32 each at most, and its masks
_PRODUCTS = Expect(tensor_cores=True, async_copies=True, warpgroups=lambda c: c["BLOCK_M"] >= 64, max_bytes=_LOOP_BYTES)
EXPECTS = {
    "_attend": _PRODUCTS,
    "_dq": _PRODUCTS,
    "_dkdv": Expect(
        tensor_cores=True, async_copies=True, warpgroups=lambda c: c["BLOCK_N"] >= 64, max_bytes=_LOOP_BYTES
    ),
    "_row_terms": Expect(),
    "_sink_gradient": Expect(),
    "_lists_of_mask": Expect(),
    "_count": Expect(),
    "_running_sums": Expect(),
    "_fill": Expect(),
    "_means": Expect(),
    "_order": Expect(tensor_cores=True, max_bytes=_LOOP_BYTES),
}


def heads(H: int, H_kv: int, S_q: int, S_k: int, D: int, dtype: torch.dtype = BF16, B: int = 1) -> tuple[Tensor, ...]:
    return tuple(torch.empty(B, h, S, D, dtype=dtype) for h, S in ((H, S_q), (H_kv, S_k), (H_kv, S_k)))


def lists(rows: int, entries: int, heads: int = 1) -> tuple[Any, ...]:
    return None, torch.empty(1, heads, rows + 1, dtype=torch.int32), torch.empty(entries, dtype=torch.int32)


def _mask(H: int, rows: int, columns: int) -> Tensor:
    return torch.empty(2, H, rows, columns, dtype=torch.bool)


FORWARD, BACKWARD = "block_sparse_attention", "block_sparse_attention_backward"


def _backward(q: Tensor, k: Tensor, v: Tensor, *rest: Any, dlse: bool = False) -> tuple[Any, ...]:
    out, lse = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype), torch.empty(q.shape[:3])
    return torch.empty_like(out), torch.empty_like(lse) if dlse else None, q, k, v, out, lse, *rest


COMPILED = (
    Call("mask-128", FORWARD, lambda: (*heads(16, 16, 8192, 8192, 128, B=2), _mask(16, 64, 64))),
    Call("causal-128", FORWARD, lambda: heads(16, 16, 8192, 8192, 128), lambda: {"is_causal": True}),
    Call("window-64", FORWARD, lambda: heads(16, 4, 8192, 8192, 64, F16), lambda: {"is_causal": True, "left": 1023}),
    Call(
        "nsa",
        FORWARD,
        lambda: (*heads(64, 4, 8192, 8192, 128), *lists(8192, 131072, 4)),
        lambda: {"is_causal": True, "block_q": 1, "block_k": 64},
    ),
    Call("256", FORWARD, lambda: heads(16, 16, 1024, 1024, 256)),
    Call("wide", FORWARD, lambda: heads(16, 1, 1024, 1024, 576, F32)),
    Call("f32-128", FORWARD, lambda: heads(16, 16, 1024, 1024, 128, F32), lambda: {"is_causal": True}),
    Call("f32-64", FORWARD, lambda: heads(16, 16, 1024, 1024, 64, F32)),
    Call("f32-decode", FORWARD, lambda: heads(16, 2, 1, 1024, 64, F32)),
    Call(
        "bias",
        FORWARD,
        lambda: heads(16, 16, 1024, 1024, 64),
        lambda: {"token_bias": torch.empty(1, 16, 1024, 1024, dtype=BF16), "sink_logits": torch.empty(16)},
    ),
    Call(
        "flex",
        FORWARD,
        lambda: (*heads(16, 16, 1024, 1024, 128), *lists(8, 64)),
        lambda: {"tables": torch.empty(64, dtype=torch.int32), "bits": torch.empty(8, 128, 2, dtype=torch.int64)},
    ),
    Call("mask-128-backward", BACKWARD, lambda: _backward(*heads(16, 16, 8192, 8192, 128, B=2), _mask(16, 64, 64))),
    Call(
        "causal-128-backward", BACKWARD, lambda: _backward(*heads(16, 16, 8192, 8192, 128)), lambda: {"is_causal": True}
    ),
    Call(
        "window-64-backward",
        BACKWARD,
        lambda: _backward(*heads(16, 4, 8192, 8192, 64, F16)),
        lambda: {"is_causal": True, "left": 1023},
    ),
    Call(
        "nsa-backward",
        BACKWARD,
        lambda: _backward(*heads(64, 4, 8192, 8192, 128), *lists(8192, 131072, 4)),
        lambda: {"is_causal": True, "block_q": 1, "block_k": 64},
    ),
    Call("256-backward", BACKWARD, lambda: _backward(*heads(16, 16, 1024, 1024, 256))),
    Call("wide-backward", BACKWARD, lambda: _backward(*heads(16, 1, 1024, 1024, 576, F32))),
    Call(
        "f32-128-backward",
        BACKWARD,
        lambda: _backward(*heads(16, 16, 1024, 1024, 128, F32)),
        lambda: {"is_causal": True},
    ),
    Call("f32-64-backward", BACKWARD, lambda: _backward(*heads(16, 16, 1024, 1024, 64, F32))),
    Call("f32-decode-backward", BACKWARD, lambda: _backward(*heads(16, 2, 1, 1024, 64, F32))),
    Call(
        "flex-backward",
        BACKWARD,
        lambda: _backward(*heads(16, 16, 1024, 1024, 128), *lists(8, 64), dlse=True),
        lambda: {
            "tables": torch.empty(64, dtype=torch.int32),
            "bits": torch.empty(8, 128, 2, dtype=torch.int64),
            "sink_logits": torch.empty(16),
        },
    ),
    Call(
        "small-blocks-backward",
        BACKWARD,
        lambda: _backward(*heads(16, 16, 1024, 1024, 128), *lists(64, 640)),
        lambda: {"block_q": 16, "block_k": 16},
    ),
    Call("top-k", "top_k_blocks", lambda: (*heads(16, 4, 8192, 8192, 128)[:2], 8), lambda: {"is_causal": True}),
)
