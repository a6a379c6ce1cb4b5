"""The references as a bench row asks for them: of out alone, caches as the op takes them."""

from typing import Any

import numpy as np
from torch import Tensor

from deepseek_fast.kernels.sparse_mla import caches, ref


def _arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """A cache's tensor as pages of bytes."""
    layout = inputs.get("layout", "plain")
    if layout == "plain":
        return inputs
    cache = inputs["k_cache"].numpy()
    pages, size, _, token = cache.shape
    flat = np.lib.stride_tricks.as_strided(cache, (pages, size * token), (cache.strides[0], 1))
    return inputs | {"k_cache": caches.Cache(flat, size)}


def sparse_mla_ref(**inputs: Any) -> Tensor:
    return ref.sparse_mla_ref(**inputs)[0]


def sparse_mla_decode_ref(**inputs: Any) -> Tensor:
    return ref.sparse_mla_decode_ref(**_arguments(inputs))[0]


def bound(**inputs: Any) -> Tensor:
    if "k_cache" in inputs:
        return ref.decode_bound(**_arguments(inputs))[0]
    return ref.bound(**inputs)[0]
