"""Every way to call the indexer's operators, behind one signature: torch tensors in and out; and their cases."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.lightning_indexer import ref
from deepseek_fast.kernels.lightning_indexer.cases import CASES, PAGED_CASES, TOPK_CASES, LogitsCase, PagedCase
from tests import doors
from tests.indexer_nodes import node_model
from tests.onnx_models import LIBRARY, run
from tests.plugin import seed_of

INDEXER_DOORS = ("torch", "numpy", "ort")
SELECTED = 7  # of the logits of a case


def call(op: str, door: str, inputs: dict[str, Any]) -> Tensor:
    if door == "torch":
        return getattr(deepseek_fast, op)(**inputs)  # type: ignore[no-any-return]
    if door == "numpy":
        given = {name: to_numpy(value) for name, value in inputs.items()}
        return doors.from_numpy(doors.numpy_op(op)(**given))  # type: ignore[no-any-return]
    model, feeds = node_model(op, inputs, with_body=False, bare=True)
    (found,) = run(model, feeds, LIBRARY).values()
    return doors.from_numpy(found)  # type: ignore[no-any-return]


def to_numpy(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else doors.to_numpy(value)


def generator_of(case: Any) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"lightning_indexer-{case.id}"))


@functools.cache
def prepared(case: LogitsCase | PagedCase) -> tuple[str, dict[str, Any], Tensor, Tensor]:
    """The op, a case's inputs as the doors take them, its reference and its bound."""
    inputs = case.inputs(generator_of(case))
    if isinstance(case, LogitsCase):
        return "fp8_mqa_logits", inputs, ref.fp8_mqa_logits_ref(**inputs), ref.bound(**inputs)
    want, bound = ref.fp8_paged_mqa_logits_ref(**inputs), ref.paged_bound(**inputs)
    return "fp8_paged_mqa_logits", paged(inputs, case.page), want, bound


def paged(inputs: dict[str, Any], page: int) -> dict[str, Any]:
    """A PagedCase's inputs as the op takes them: the cache as a tensor of bytes."""
    cache = torch.from_numpy(inputs["cache"])
    return inputs | {"cache": cache.reshape(len(cache), page, 1, cache.shape[1] // page)}


def selecting(inputs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The fused op of a case of logits, and its inputs without top_k."""
    exact = {n: v for n, v in inputs.items() if n not in ("max_seqlen_k", "max_context_len", "dtype")}
    return "lightning_indexer_paged" if "cache" in inputs else "lightning_indexer", exact


@functools.cache
def prepared_topk(case: Any) -> tuple[dict[str, Any], Tensor]:
    inputs = case.inputs(generator_of(case))
    return inputs, ref.topk_indices_ref(**inputs)


def every_call() -> Iterator[tuple[str, dict[str, Any], str]]:
    """(op, inputs, name) of all cases, logits stored and selected from."""
    for case in (*CASES, *PAGED_CASES):
        op, inputs, *_ = prepared(case)
        yield op, inputs, case.id
        op, inputs = selecting(inputs)
        yield op, inputs | {"top_k": SELECTED}, case.id
    for case in TOPK_CASES:
        yield "topk_indices", prepared_topk(case)[0], case.id


def assert_logits(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    """-inf where the reference has it, the rest within the bound, which is 0 for a NaN."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    assert torch.equal(got.isneginf(), want.isneginf()), f"{what}: -inf at other places"
    inside = ~want.isneginf()
    error = (got.double() - want).abs()[inside]
    assert (error <= bound[inside]).all(), f"{what}: error {(error / bound[inside]).max()} of the bound"
