"""AMD's ZenDNN through zentorch's operators, called directly.

Importing zentorch registers operators and inductor passes for its own backend; torch's threads and settings stay, and
our kernels are as fast after it as before (timed in one process). Version 2.13.0.2 is wrong for one row of x in bf16.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported, _attention
from deepseek_fast.bench.peers._common import ACTIVATIONS, INT8_ROW, float_peer, int4_codes, int4_peer
from deepseek_fast.cli import output

PACKAGES = ("zentorch",)
HOW_TO_INSTALL = "run `make bench-peers`, or pip install the zentorch of this torch's version"
POST_OPS = {
    "none": "none",
    "relu": "relu",
    "gelu": "gelu_erf",
    "gelu_tanh": "gelu_tanh",
    "silu": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}

# ZenDNN keeps a reordered copy of an int8 weight by its address, as long as the process lives, and would take it for
# another weight that later has the same address; zentorch_clear_weight_cache leaves wrong answers behind.
_kept: list[Tensor] = []


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    ops = _ops()
    x, bias, post_op = inputs["x"], inputs["bias"], POST_OPS.get(inputs["activation"])
    if post_op is None:
        raise Unsupported(f"zentorch_linear_unary has no {inputs['activation']}")
    if x.dtype == torch.bfloat16 and not ops.zentorch_is_bf16_supported():
        raise Unsupported("ZenDNN computes in bf16 only on CPUs that have its instructions")
    packed = ops.zentorch_weight_prepack_for_linear(inputs["weight"])
    call = ops.zentorch_linear_unary
    return {
        "ZenDNN linear": float_peer(lambda: call(x, packed, bias, is_weight_prepacked=True, post_op=post_op), x),
    }


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["activations"] == "float":
        return {}
    ops = _ops()
    x, q, scale, bias = inputs["x"], inputs["q"], inputs["scale"], inputs["bias"]
    activate = ACTIVATIONS[inputs["activation"]]
    _kept.append(q)
    # q as it is: ZenDNN reorders it in the first call. After zentorch_weight_prepack_for_dynamic_qlinear the answers of
    # 2.13.0.2 are wrong, and no faster.
    return {
        "ZenDNN dynamic_qlinear": Peer(lambda: activate(ops.zentorch_dynamic_qlinear(x, q, scale, bias)), *INT8_ROW)
    }


def _ops() -> Any:
    with output.quiet():
        import zentorch  # noqa: F401  (registers torch.ops.zentorch)
    if not torch.ops.zentorch.zentorch_is_avx512_supported():
        raise Unsupported("ZenDNN needs AVX-512")
    return torch.ops.zentorch


def int4_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    ops = _ops()
    x, scale, bias = inputs["x"], inputs["scale"].bfloat16(), inputs["bias"]
    if x.dtype != torch.bfloat16 or inputs["zeros"] is not None:
        raise Unsupported("zentorch_woq_linear is called here in bf16, without zero points")
    activate = ACTIVATIONS[inputs["activation"]]
    packed = ops.zentorch_woq_repack_weight((int4_codes(inputs).to(torch.int8) - 8).contiguous()).t()
    scales = scale.T.contiguous()
    _kept.append(packed)
    call = ops.zentorch_woq_linear
    # scales in bf16, half a unit of 2^-8 off: within the tolerance of a bf16 output
    return {"ZenDNN woq_linear": int4_peer(lambda: activate(call(x, packed, scales, None, None) + bias), inputs)}


def block_sparse_attention(inputs: dict[str, Any]) -> dict[str, Peer]:
    _attention.refuse(inputs)
    if _attention.is_token_list(inputs):
        raise Unsupported("zentorch_sdpa takes no lists")
    ops, (q, k, v) = _ops(), (inputs[name] for name in ("q", "k", "v"))
    causal, window, mask = inputs.get("is_causal", False), inputs.get("window"), inputs.get("block_mask")
    if window and mask is None:
        right = 0 if causal else window - 1

        def windowed() -> Tensor:
            out = torch.empty_like(q)
            ops.zentorch_sdpa_attn(q, k, v, out, None, causal, None, window - 1, right)
            return out

        return {"ZenDNN sdpa, window": float_peer(windowed, q)}
    dense = _attention.dense_mask(inputs)
    causal = causal and dense is None
    return {"ZenDNN sdpa": float_peer(lambda: ops.zentorch_sdpa(q, k, v, 0.0, causal, attn_mask=dense)[0], q)}
