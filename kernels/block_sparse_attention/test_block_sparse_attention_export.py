"""Torch models that call block_sparse_attention and its builders, as ONNX: torch's bits in our library, and its numbers
from the bodies in stock ONNX Runtime and onnx's reference."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import deepseek_fast
from deepseek_fast.onnx import export, optimize, verify
from tests.onnx_models import counts, run_everywhere

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # torch.export about its own pytrees
    pytest.mark.filterwarnings("ignore:.*The axis name:UserWarning"),  # torch.onnx about equal dimensions
]
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-6}  # of outputs of size 1 or so
TOKENS = 96
BATCH, LENGTH = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=4096)
Attend = Callable[[Tensor, Tensor, Tensor], Any]


def every_option(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return deepseek_fast.block_sparse_attention(
        q, k, v, window=(20, 0), sinks=2, q_offset="end", return_lse=True, sink_logits=torch.ones(4), scale=0.3
    )


def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lists = deepseek_fast.sliding_window_blocks(q.shape[2], k.shape[2], 40, block_size=16, is_causal=True)
    return deepseek_fast.block_sparse_attention(q, k, v, lists, block_size=16, is_causal=True, window=40)


def local_log(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lists = deepseek_fast.local_log_blocks(q.shape[2], k.shape[2], block_size=16)
    return deepseek_fast.block_sparse_attention(q, k, v, lists, block_size=16, is_causal=True)


def top_k(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept = deepseek_fast.top_k_blocks(q, k, 3, block_size=16, is_causal=True)
    return deepseek_fast.block_sparse_attention(q, k, v, kept, block_size=16, is_causal=True)


def top_k_lists(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lists = deepseek_fast.block_lists(deepseek_fast.top_k_blocks(q, k, 3, block_size=16, is_causal=True))
    return deepseek_fast.block_sparse_attention(q, k, v, lists, block_size=16, is_causal=True)


def native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gate = torch.sigmoid(q.float().sum(-1))
    return deepseek_fast.native_sparse_attention(
        q, k, v, gate, gate, gate, block_size=16, block_counts=2, window_size=20
    )


class Flex(torch.nn.Module):
    """A BlockMask is converted once, where the model is made."""

    def __init__(self) -> None:
        super().__init__()

        def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (i >= j) & ((i - j < 40) | (j < 5))

        mask = create_block_mask(mask_mod, 1, 1, TOKENS, TOKENS, device="cpu", BLOCK_SIZE=32)
        for name, part in zip(
            ("offsets", "columns", "tables", "bits"), deepseek_fast.flex_block_lists(mask), strict=True
        ):
            self.register_buffer(name, part)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lists = (self.offsets, self.columns, self.tables, self.bits)
        return deepseek_fast.block_sparse_attention(q, k, v, lists, block_size=32)


class Model(torch.nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return self.attend(q, k, v)


def qkv(dtype: torch.dtype, B: int = 2, T: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(B, H, T, 16, generator=generator).to(dtype) for H in (4, 2, 2))
    return q, k, v


def check(module: torch.nn.Module, model: onnx.ModelProto, inputs: tuple[Tensor, ...], *, exact: bool = True) -> None:
    want = module(*inputs)
    want = want if isinstance(want, tuple) else (want,)
    dtype = inputs[0].dtype
    as_array = np.float32 if dtype == torch.float32 else ml_dtypes.bfloat16
    feeds = {value.name: x.float().numpy().astype(as_array) for value, x in zip(model.graph.input, inputs, strict=True)}
    for runtime, got in run_everywhere(model, feeds).items():
        close = 0.0 if exact and runtime == "library" else CLOSE[dtype]
        for array, tensor in zip(got.values(), want, strict=True):
            assert array.shape == tuple(tensor.shape), runtime
            assert np.abs(array.astype(np.float64) - tensor.double().numpy()).max() <= close, runtime


ANY_LENGTH: tuple[Attend, ...] = (every_option, top_k, top_k_lists, native)
OF_ONE_LENGTH: tuple[Attend, ...] = (sliding_window, local_log)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("attend", (*ANY_LENGTH, *OF_ONE_LENGTH), ids=lambda f: f.__name__)
def test_one_length(attend: Attend, dtype: torch.dtype) -> None:
    module = Model(attend).eval()
    model = export(module, qkv(dtype))
    assert counts(model)["BlockSparseAttention"] == (3 if attend is native else 1)
    check(module, model, qkv(dtype), exact=attend is not native)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("attend", [every_option, *(pytest.param(f, marks=pytest.mark.slow) for f in ANY_LENGTH[1:])])
def test_any_length(attend: Attend, dtype: torch.dtype) -> None:
    module = Model(attend).eval()
    model = export(module, qkv(dtype), dynamic_shapes=({0: BATCH, 2: LENGTH},) * 3)
    for B, T in ((1, 70), (3, 33), (2, 200)):
        check(module, model, qkv(dtype, B, T), exact=attend is not native)


@pytest.mark.parametrize("opset", [18, 25])
def test_flex_mask_converted_once(opset: int) -> None:
    module = Flex().eval()
    check(module, export(module, qkv(torch.float32), opset=opset), qkv(torch.float32))


def test_lists_of_sizes_that_are_not_known_are_refused() -> None:
    with pytest.raises(Exception, match="local_log_blocks: S_q must be a number in an exported model") as raised:
        export(Model(local_log).eval(), qkv(torch.float32), dynamic_shapes=({0: BATCH, 2: LENGTH},) * 3)
    assert raised.type is not AssertionError


def test_optimize_and_verify_know_the_nodes(tmp_path: Any) -> None:
    module = Model(top_k).eval()
    model = export(module, qkv(torch.float32), tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == model
    optimized = optimize(model)
    assert counts(optimized) == counts(model)
    assert sorted(function.name for function in optimized.functions) == ["BlockSparseAttention", "TopKBlocks"]
    check(module, optimized, qkv(torch.float32))
    assert verify(model, optimized).ok


def test_bare_nodes_get_what_their_bodies_read() -> None:
    """A node as ONNX writes it, without what it leaves out, becomes one that runs anywhere."""
    from onnx import TensorProto, helper

    node = helper.make_node("BlockSparseAttention", ["q", "k", "v"], ["out"], domain="ai.deepseek_fast", is_causal=1)
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", H, "T", 16])
        for name, H in zip("qkv", (4, 2, 2), strict=True)
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.deepseek_fast", 1)]
    graph = helper.make_graph([node], "bare", infos, [out])
    model = optimize(helper.make_model(graph, opset_imports=imports, ir_version=8))

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return deepseek_fast.block_sparse_attention(q, k, v, is_causal=True)

    check(Model(causal), model, qkv(torch.float32))


def test_opset_too_early_for_the_body() -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("TopKBlocks", ["q", "k"], ["kept"], domain="ai.deepseek_fast", num_blocks=2)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 64, 16]) for name in "qk"]
    kept = helper.make_tensor_value_info("kept", TensorProto.BOOL, None)
    imports = [helper.make_opsetid("", 14), helper.make_opsetid("ai.deepseek_fast", 1)]
    graph = helper.make_graph([node], "early", infos, [kept])
    rule = "model must import an ai.onnx opset from 15 on for TopKBlocks; got 14"
    with pytest.raises(ValueError, match=rule):
        optimize(helper.make_model(graph, opset_imports=imports, ir_version=8))
