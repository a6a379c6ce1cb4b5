"""torch as people call it: F.linear, its int8 weights, its dynamic int8, and casts written with its operations."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F

from deepseek_fast._load import supported_isas
from deepseek_fast.bench.peers import Peer, Unsupported, _attention, _casts, _convs, _indexer, _sparse_mla
from deepseek_fast.bench.peers._common import (
    ACTIVATIONS,
    INT8_TENSOR,
    expanded_fp8,
    float_peer,
    fp8_peer,
    int4_codes,
    int4_peer,
)

PACKAGES = ()
HOW_TO_INSTALL = "it is torch itself"


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    activate = ACTIVATIONS[inputs["activation"]]
    return {"torch F.linear": float_peer(lambda: activate(F.linear(x, weight, bias)), x)}


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, q, bias, activate = inputs["x"], inputs["q"], inputs["bias"], ACTIVATIONS[inputs["activation"]]
    if inputs["activations"] == "float":
        scale = inputs["scale"].to(x.dtype)
        return {
            "torch _weight_int8pack_mm": float_peer(
                lambda: activate(torch.ops.aten._weight_int8pack_mm(x, q, scale) + bias), x
            )
        }
    x = x.float()  # it takes no bf16
    zero_points = torch.zeros(q.shape[0], dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # quantized tensors are deprecated; nothing else feeds this op
        weight = torch._make_per_channel_quantized_tensor(q, inputs["scale"].double(), zero_points, 0)
    packed = torch.ops.quantized.linear_prepack(weight, bias.float())
    reduce_range = "avx512vnni" not in supported_isas()  # seven bits of x where VPMADDUBSW would saturate
    call = torch.ops.quantized.linear_dynamic
    return {"torch linear_dynamic": Peer(lambda: activate(call(x, packed, reduce_range)), *INT8_TENSOR)}


def fp8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, bias, activate = inputs["x"], inputs["bias"], ACTIVATIONS[inputs["activation"]]

    def call() -> torch.Tensor:  # what a checkpoint in FP8 costs where its weights stay so
        return activate(F.linear(x, expanded_fp8(inputs), bias))

    return {"torch, expanded in each call": fp8_peer(call, inputs)}


def int4_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, scale, group = inputs["x"], inputs["scale"].to(inputs["x"].dtype), inputs["group_size"]
    if inputs["zeros"] is not None or group not in (32, 64, 128):
        raise Unsupported("_weight_int4pack_mm is called here for groups of 32, 64 and 128 without zero points")
    if x.dtype == torch.float32 and x.shape[0] > 1:
        raise Unsupported("_weight_int4pack_mm has a reference loop for float32: 6 s for 256 rows of 4096 x 4096")
    bias, activate = inputs["bias"], ACTIVATIONS[inputs["activation"]]
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(int4_codes(inputs).int(), 1)
    scales = torch.stack((scale.T, torch.zeros_like(scale.T)), -1).contiguous()
    call = torch.ops.aten._weight_int4pack_mm_for_cpu
    return {"torch _weight_int4pack_mm": int4_peer(lambda: activate(call(x, packed, group, scales) + bias), inputs)}


def fused_conv(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _convs.eager(inputs)


def block_sparse_attention(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _attention.eager(inputs)


def block_sparse_attention_backward(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _attention.eager_backward(inputs)


def sparse_mla(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _sparse_mla.prefill(inputs)


def sparse_mla_decode(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _sparse_mla.decode(inputs)


def fp8_mqa_logits(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _indexer.logits(inputs)


def fp8_paged_mqa_logits(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _indexer.paged_logits(inputs)


def topk_indices(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _indexer.selection(inputs)


def lightning_indexer(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _indexer.fused(inputs)


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _eager(_casts.fp8_cast(inputs))


def fp8_dequantize(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _eager(_casts.fp8_dequantize(inputs))


def int8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _eager(_casts.int8_cast(inputs))


def silu_mul_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _eager(_casts.silu_mul_cast(inputs))


def rms_norm_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _eager(_casts.rms_norm_cast(inputs))


def _eager(formula: _casts.Formula) -> dict[str, Peer]:
    return {"torch": formula.peer(lambda: formula.function(formula.x))}
