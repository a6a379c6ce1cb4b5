"""BlockSparseAttention and TopKBlocks in ONNX: within the bounds of ref_bounds.py from the kernel, and from the body in
stock ONNX Runtime and onnx's reference."""

from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import body, ref, ref_bounds, ref_builders
from deepseek_fast.kernels.block_sparse_attention.cases import CASES, Case
from tests.attention_bodies import node_model, run_body, run_top_k
from tests.onnx_models import each_opset

QUICK_STEP = 7  # of the cases `make test` runs every seventh
OPSETS = range(body.MIN_OPSET, 26)
EACH_CASE = [
    pytest.param(case, id=case.id, marks=() if i % QUICK_STEP == 0 else pytest.mark.slow)
    for i, case in enumerate(CASES)
]
# One case with every option of its kind.
OPTIONS = (
    Case(70, 90, 24, 16, B=2, H=4, H_kv=2, mask="random", form="lists", mask_shape=("1", "H_kv"), block_size=(16, 8)),
    Case(70, 90, 24, B=2, H=4, H_kv=2, dtype="bfloat16", mask="random", form="flex", block_size=(32, 80)),
    Case(100, 87, 24, lengths_q=(30, 0, 70), lengths_k=(7, 60, 20), mask="random", block_size=(16, 8), window=(20, 3)),
    Case(60, 70, 16, B=2, H=4, dtype="float16", window=9, sinks=2, q_offset="end", is_causal=True, token_bias="key"),
    Case(60, 70, 16, H=4, H_kv=1, sink_logits="infinite", mask="empty_rows", q_offset=-7, is_causal=True, scale=0.3),
)


def within(got: Tensor, want: Tensor, bound: Tensor) -> bool:
    return bool(((got.double() == want) | ((got.double() - want).abs() <= bound)).all())


def check(case: Case, seed: int, opset: int, **how: Any) -> None:
    inputs = case.inputs(torch.Generator().manual_seed(seed))
    want = ref.block_sparse_attention_ref(**inputs, return_lse=True)
    bounds = ref_bounds.bound(**inputs, return_lse=True)
    for runtime, results in run_body(inputs, opset, **how).items():
        assert results[0].dtype == inputs["q"].dtype, runtime
        assert results[1].dtype == torch.float32, runtime
        for name, got, expected, bound in zip(body.OUTPUTS[body.ATTENTION], results, want, bounds, strict=True):
            assert got.shape == expected.shape, (runtime, name)
            assert within(got, expected, bound), (runtime, name)


@pytest.mark.parametrize("case", EACH_CASE)
def test_every_case(case: Case) -> None:
    check(case, 1, 18)


@pytest.mark.parametrize("opset", each_opset(OPSETS))
@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.id)
def test_every_opset(case: Case, opset: int) -> None:
    check(case, 2, opset)


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.id)
def test_shapes_that_are_known(case: Case) -> None:
    """Where ONNX Runtime folds what depends on shapes alone."""
    check(case, 3, 23, static=True)


def test_nothing_absent_is_left_to_stock_onnx_runtime(tmp_path: Any) -> None:
    """Without masks neither a choice nor a list of blocks is in the graph that runs."""
    import onnxruntime

    inputs = Case(64, 64, is_causal=True).inputs(torch.Generator().manual_seed(1))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    for static in (False, True):
        onnxruntime.InferenceSession(node_model(inputs, static=static)[0].SerializeToString(), options)
        left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
        assert not left & {"If", "ScatterElements", "BitShift"}, static


def test_key_that_the_bias_hides_may_be_nan() -> None:
    inputs = Case(20, 30, 8, B=2, H=4, H_kv=2, token_bias="padding").inputs(torch.Generator().manual_seed(1))
    hidden = inputs["token_bias"][0, 0, 0].isneginf()
    want = run_body(inputs)
    for name in ("k", "v"):
        inputs[name][:, :, hidden] = torch.nan
    for runtime, results in run_body(inputs).items():
        for got, expected in zip(results, want[runtime], strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_other_opsets_are_refused() -> None:
    for op_type in body.INPUTS:
        for opset in (body.MIN_OPSET - 1, 26):
            with pytest.raises(ValueError, match=rf"^function_proto: opset must be from 15 to 25; got {opset}$"):
                body.function_proto(opset, op_type)


def test_schemas_and_bodies_agree() -> None:
    for schema in body.schemas():
        function = body.function_proto(18, schema.name)
        assert [p.name for p in schema.inputs] == list(function.input) == list(body.INPUTS[schema.name])
        assert [p.name for p in schema.outputs] == list(function.output) == list(body.OUTPUTS[schema.name])
        assert set(schema.attributes) == set(function.attribute) == set(body.DEFAULTS[schema.name])
        assert {imported.domain for imported in function.opset_import} == {""}


TOP_K: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 4, 2, 100, 140, 24), {"num_blocks": 3, "block_size": (16, 8)}),
    ((1, 4, 1, 64, 64, 16), {"num_blocks": 2, "block_size": (16, 16), "is_causal": 1}),
    ((1, 2, 2, 33, 90, 16), {"num_blocks": 4, "block_size": (8, 16), "is_causal": 1, "q_at_end": 1, "first": 2}),
    ((1, 2, 2, 33, 90, 16), {"num_blocks": 1, "block_size": (8, 8), "q_offset": -20, "local": 3, "is_causal": 1}),
    ((1, 2, 2, 40, 30, 16), {"num_blocks": 99, "block_size": (8, 8), "first": 0, "local": 0, "scale": 2.0}),
    ((0, 2, 2, 40, 30, 16), {"num_blocks": 2, "block_size": (8, 8)}),
    ((1, 2, 2, 0, 30, 16), {"num_blocks": 2, "block_size": (8, 8)}),
    ((1, 2, 2, 30, 0, 16), {"num_blocks": 2, "block_size": (8, 8)}),
)


@pytest.mark.parametrize("opset", [15, 18, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sizes", "attributes"), TOP_K)
def test_top_k_blocks(sizes: tuple[int, ...], attributes: dict[str, Any], dtype: torch.dtype, opset: int) -> None:
    B, H, H_kv, S_q, S_k, D = sizes
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(B, h, S, D, generator=generator).to(dtype) for h, S in ((H, S_q), (H_kv, S_k)))
    options = body.DEFAULTS[body.TOP_K] | attributes
    place = (options["first"], options["local"], bool(options["is_causal"]))
    offset = "end" if options["q_at_end"] else options["q_offset"]
    scoring = {"block_size": options["block_size"], "scale": attributes.get("scale")}
    scores, error = ref_builders.pooled_scores_ref(q, k, **scoring), ref_builders.pooled_scores_bound(q, k, **scoring)
    given = ref_builders.forced_and_candidates(S_q, S_k, options["block_size"], *place, offset)
    for runtime, kept in run_top_k(q, k, opset, **attributes).items():
        assert kept.shape == scores.shape, runtime
        assert ref_builders.is_top_k(kept, scores, error, options["num_blocks"], *given), runtime


def test_top_k_blocks_takes_the_lower_of_equal_ones() -> None:
    q, k = torch.ones(1, 1, 16, 8), torch.ones(1, 1, 80, 8)
    k[:, :, 40:48] = 2  # the sixth of ten blocks
    for runtime, kept in run_top_k(q, k, num_blocks=4, block_size=(8, 8), first=0, local=0).items():
        assert kept[0, 0, 0].nonzero().flatten().tolist() == [0, 1, 2, 5], runtime
