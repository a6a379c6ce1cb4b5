"""Every way to call sparse_mla and sparse_mla_decode from Python, behind one signature: torch tensors in and out."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import caches, ref
from tests import doors
from tests.plugin import seed_of

MLA_DOORS = ("torch", "numpy")
TOKEN_BYTES = {"v32": 656, "v4": 584}


def tensor_of(cache: caches.Cache, layout: str) -> Tensor:
    """(pages, page, 1, bytes of a token) over the cache's own memory."""
    token, (pages, stride) = TOKEN_BYTES[layout], (len(cache.pages), cache.pages.strides[0])
    shape, strides = (pages, cache.page_size, 1, token), (stride, token, token, 1)
    return torch.from_numpy(np.lib.stride_tricks.as_strided(cache.pages, shape, strides))


def arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """A case's inputs as the doors take them: caches as tensors."""
    layout = inputs.get("layout", "plain")
    return {
        name: tensor_of(value, layout) if isinstance(value, caches.Cache) else value for name, value in inputs.items()
    }


def call(op: str, door: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """An operator through one door; inputs as a case gives them, or arguments()."""
    given = arguments(inputs)
    if door == "torch":
        return getattr(deepseek_fast, op)(**given)  # type: ignore[no-any-return]
    made = getattr(deepseek_fast.numpy, op)(**{name: doors.to_numpy(value) for name, value in given.items()})
    return tuple(doors.from_numpy(value) for value in made)


@functools.cache
def prepared(case: Any) -> tuple[dict[str, Any], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A prefill's inputs, its reference and its bound, computed once for all ISA levels."""
    inputs = case.inputs(torch.Generator().manual_seed(seed_of(f"sparse_mla-{case.id}")))
    return inputs, ref.sparse_mla_ref(**inputs), ref.bound(**inputs)


@functools.cache
def prepared_decode(case: Any) -> tuple[dict[str, Any], tuple[Tensor, ...], tuple[Tensor, ...]]:
    inputs = case.inputs(torch.Generator().manual_seed(seed_of(f"sparse_mla_decode-{case.id}")))
    return inputs, ref.sparse_mla_decode_ref(**inputs), ref.decode_bound(**inputs)


@functools.cache
def prepared_backward(case: Any) -> tuple[Tensor, Any, Any]:
    """dout, the gradients and their bound."""
    inputs = prepared(case)[0]
    dout = case.dout(torch.Generator().manual_seed(seed_of(f"sparse_mla_backward-{case.id}")))
    return dout, ref.sparse_mla_backward_ref(dout, **inputs), ref.backward_bound(dout, **inputs)


def backward(door: str, dout: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """(dq, dkv, dattn_sink); that one is empty where there is no sink."""
    out, _, lse = call("sparse_mla", door, inputs)
    if door == "torch":
        scale, sink, length = inputs.get("scale"), inputs.get("attn_sink"), inputs.get("topk_length")
        three = (inputs["q"], inputs["kv"], inputs["indices"])
        op = doors.torch_op("sparse_mla_backward")
        return op(dout, *three, out, lse, scale, inputs["d_v"], sink, length)  # type: ignore[no-any-return]
    return call("sparse_mla_backward", door, inputs | {"dout": dout, "out": out, "lse": lse})
