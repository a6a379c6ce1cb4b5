"""torch.nn.attention.flex_attention, compiled by inductor: its sparse C++ template for CPUs, forward alone.

A kernel takes 3 to 20 seconds to compile, outside the time; a process compiles each window, dtype and shape once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from deepseek_fast.bench.peers import Peer, Unsupported, _attention
from deepseek_fast.bench.peers._common import float_peer
from deepseek_fast.cli import output

PACKAGES = ()
HOW_TO_INSTALL = "it is part of torch"
_compiled: dict[tuple[Any, ...], Callable[[Tensor, Tensor, Tensor], Tensor]] = {}


def block_sparse_attention(inputs: dict[str, Any]) -> dict[str, Peer]:
    _attention.refuse(inputs)
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    window, is_causal = inputs.get("window"), inputs.get("is_causal", False)
    if not window or inputs.get("block_mask") is not None:
        raise Unsupported("flex_attention is asked for sliding windows: it compiles for seconds for each other mask")
    key = window, is_causal, q.dtype, q.shape, k.shape, torch.get_num_threads()
    if key not in _compiled:
        _compiled[key] = _compile(_window_mask(q.shape[2], k.shape[2], window, is_causal), q, k, v)
    call = _compiled[key]
    return {"torch flex_attention": float_peer(lambda: call(q, k, v), q)}


def _window_mask(S_q: int, S_k: int, window: int, is_causal: bool) -> BlockMask:
    def near(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i - j < window) & ((j <= i) if is_causal else (j - i < window))

    return create_block_mask(near, None, None, S_q, S_k, device="cpu")


def _compile(mask: BlockMask, q: Tensor, k: Tensor, v: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A call compiled for these; a function of its own, so that none tries the guards of another.

    raises: Unsupported where torch finds no C++ compiler.
    """
    with output.quiet():  # inductor's imports warn of torch's own deprecations
        from torch._inductor import config, cpp_builder, exc
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise Unsupported("torch.compile finds no C++ compiler; install g++ or set CXX") from None

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask)  # type: ignore[return-value]

    torch._C._dynamo.eval_frame.reset_code(attention.__code__)
    call = torch.compile(attention, dynamic=False, fullgraph=True)
    # As in _compiled.py: no cached graph, one compiling thread.
    with config.patch(fx_graph_cache=False, compile_threads=1), output.quiet():
        call(q, k, v)
    return call
