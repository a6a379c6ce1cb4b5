"""The indexer in ONNX: nodes without what may be left out, bodies on stock runtimes, export from torch models."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.lightning_indexer import ref
from deepseek_fast.kernels.lightning_indexer.cases import CASES, PAGED_CASES, TOPK_CASES, LogitsCase, PagedCase
from deepseek_fast.kernels.lightning_indexer.test_lightning_indexer import orders
from deepseek_fast.kernels.lightning_indexer.test_lightning_indexer_errors import good
from deepseek_fast.onnx import export
from deepseek_fast.onnx._runtime import LIBRARY, STOCK
from tests.doors import from_numpy, to_numpy
from tests.indexer_doors import SELECTED, assert_logits, prepared, prepared_topk, selecting
from tests.indexer_nodes import OP_TYPES, node_model
from tests.onnx_models import each_opset, run, run_everywhere, run_reference

NEWEST = 25
TORCH_S_OWN_WARNINGS = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its pytrees


def outputs(op: str, inputs: dict[str, Any], **how: Any) -> dict[str, Tensor]:
    model, feeds = node_model(op, inputs, **how)
    found = run_everywhere(model, feeds)
    return {runtime: from_numpy(next(iter(result.values()))) for runtime, result in found.items()}


@pytest.mark.parametrize("case", (*CASES, *PAGED_CASES), ids=lambda case: case.id)
def test_bodies_of_every_case(case: LogitsCase | PagedCase) -> None:
    op, inputs, want, bound = prepared(case)
    for runtime, got in outputs(op, inputs).items():
        assert_logits(got, want, bound, runtime)
    op, exact = selecting(inputs)
    if "max_seqlen_k" in inputs or "dtype" in inputs:
        want, bound = ref.fp8_mqa_logits_ref(**exact), ref.bound(**exact)
    for runtime, got in outputs(op, exact | {"top_k": SELECTED}).items():
        assert got.dtype == torch.int32
        assert ref.is_top_k(got.reshape(-1, SELECTED), want, bound, SELECTED), runtime
    if isinstance(case, PagedCase):
        slots = outputs(op, exact | {"top_k": SELECTED, "as_slots": True, "sorted_by": "value"})
        places = outputs(op, exact | {"top_k": SELECTED, "sorted_by": "value"})
        for runtime, got in slots.items():
            assert torch.equal(got, ref.slots_of(places[runtime], inputs["block_table"], case.page)), runtime


@pytest.mark.parametrize("case", [case for case in TOPK_CASES if case.n < 5000], ids=lambda case: case.id)
def test_topk_of_every_case(case: Any) -> None:
    inputs, want = prepared_topk(case)
    for runtime, got in outputs("topk_indices", inputs).items():
        assert got.dtype == torch.int32 and torch.equal(got, want), runtime


def test_topk_of_any_order_of_scores(generator: torch.Generator) -> None:
    for name, row in orders(300, generator).items():
        for sorted_by in ("any", "index", "value"):
            want = ref.topk_indices_ref(row, 40, sorted_by=None if sorted_by == "any" else sorted_by)
            for runtime, got in outputs("topk_indices", {"scores": row, "k": 40, "sorted_by": sorted_by}).items():
                assert torch.equal(got, want), f"{name}, {runtime}"


@pytest.mark.parametrize("opset", each_opset(range(19, NEWEST + 1)))
def test_bodies_of_every_opset(opset: int) -> None:
    cases: list[Any] = [next(case for case in CASES if case.compressed), PAGED_CASES[4]]
    for case in cases:
        op, inputs, want, bound = prepared(case)
        for runtime, got in outputs(op, inputs, opset=opset).items():
            assert_logits(got, want, bound, f"{runtime}, opset {opset}")
        op, exact = selecting(inputs)
        for got in outputs(op, exact | {"top_k": 3}, opset=opset).values():
            assert got.shape[-1] == 3
    scores, want = torch.tensor([1.0, 3.0, 3.0, 2.0]), torch.tensor([1, 2])
    for got in outputs("topk_indices", {"scores": scores, "k": 2}, opset=opset).values():
        assert torch.equal(got, want.int())


@pytest.mark.parametrize("op", OP_TYPES)
def test_the_checker_accepts_the_bodies(op: str) -> None:
    model, _ = node_model(op, good(op))
    onnx.checker.check_model(model, full_check=True)


def test_every_scale_of_a_cache_is_read_exactly() -> None:
    """f32 of every exponent from its bytes; codes of every number."""
    bits = torch.arange(0, 255 << 23, 0x5_1234, dtype=torch.int32)[: 255 * 64]
    scales = torch.cat([bits, torch.tensor([1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0])]).view(torch.float32)
    pages = -(-len(scales) // 64)
    codes = torch.full((len(scales), 8), 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)  # ones
    cache = torch.from_numpy(ref.write_cache(codes, scales, 64)).reshape(pages, 64, 1, 12)
    q = torch.zeros(1, 1, 1, 8)
    q[..., 0] = 1.0
    inputs: dict[str, Any] = {"q": q.to(torch.float8_e4m3fn), "cache": cache, "weights": torch.ones(1, 1)}
    inputs |= {"context_lens": torch.tensor([len(scales)], dtype=torch.int32)}
    inputs |= {"block_table": torch.arange(pages, dtype=torch.int32)[None], "max_context_len": len(scales)}
    for runtime, got in outputs("fp8_paged_mqa_logits", inputs).items():
        assert torch.equal(got[0], scales), runtime


class Attention(torch.nn.Module):
    """What a layer of DeepSeek-V3.2 does before its attention."""

    heads, dim = 8, 32

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = torch.nn.Linear(96, self.heads * self.dim), torch.nn.Linear(96, self.dim)
        self.weights = torch.nn.Linear(96, self.heads)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, q_scale = deepseek_fast.fp8_cast(self.q(x).reshape(-1, self.heads, self.dim), block=(1, 32))
        k, k_scale = deepseek_fast.fp8_cast(self.k(tokens), block=(1, 32))
        weights = self.weights(x) * q_scale.squeeze(-1) * (self.heads * self.dim) ** -0.5
        arguments = (q, k, k_scale.squeeze(-1), weights)
        logits = deepseek_fast.fp8_mqa_logits(*arguments)
        chosen = deepseek_fast.topk_indices(logits, 5)
        return logits, chosen, deepseek_fast.lightning_indexer(*arguments, 5, sorted_by="value")


@TORCH_S_OWN_WARNINGS
def test_a_torch_model_exports() -> None:
    torch.manual_seed(0)
    module, inputs = Attention().eval(), (torch.randn(3, 96), torch.randn(40, 96))
    with torch.no_grad():
        want = module(*inputs)
    model = export(module, inputs)
    onnx.checker.check_model(model)
    ours = {function.name for function in model.functions}
    assert {"Fp8MqaLogits", "TopkIndices", "LightningIndexer"} <= ours
    feeds = {value.name: given.numpy() for value, given in zip(model.graph.input, inputs, strict=True)}
    for runtime in (LIBRARY, STOCK, "reference"):
        found = run_reference(model, feeds) if runtime == "reference" else run(model, feeds, runtime)
        for got, wanted in zip(found.values(), want, strict=True):
            assert np.allclose(got, wanted.numpy(), atol=1e-5), runtime


@TORCH_S_OWN_WARNINGS
def test_a_paged_torch_model_exports(generator: torch.Generator) -> None:
    case = PagedCase(2, 2, 100, 4, 16, 16)
    inputs = {n: v for n, v in prepared(case)[1].items() if isinstance(v, Tensor)}

    class Decoder(torch.nn.Module):
        def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
            logits = deepseek_fast.fp8_paged_mqa_logits(*values, 103)
            return logits, deepseek_fast.lightning_indexer_paged(*values, 9, as_slots=True)

    values = tuple(inputs[n] for n in ("q", "cache", "weights", "context_lens", "block_table"))
    want = Decoder()(*values)
    model = export(Decoder().eval(), values)
    feeds = {value.name: given for value, given in zip(model.graph.input, values, strict=True)}
    found = {runtime: run(model, {n: to_numpy(v) for n, v in feeds.items()}, runtime) for runtime in (LIBRARY, STOCK)}
    for runtime, results in found.items():
        logits, slots = (from_numpy(value) for value in results.values())
        assert torch.allclose(logits, want[0], atol=1e-4), runtime
        assert torch.equal(slots, want[1]), runtime
