"""The indexer's torch operators: schema, Meta kernels, torch.compile and torch.export without breaks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.lightning_indexer import op
from deepseek_fast.kernels.lightning_indexer.test_lightning_indexer_errors import good

FUNCTIONS = {
    "fp8_mqa_logits": op._LOGITS,
    "fp8_paged_mqa_logits": op._PAGED_LOGITS,
    "lightning_indexer": op._INDEXER,
    "lightning_indexer_paged": op._PAGED_INDEXER,
    "topk_indices": op._TOPK,
}
OPTIONS: dict[str, Any] = {
    "ks": None,
    "ke": torch.tensor([4, 0, 120, 7], dtype=torch.int32),
    "max_seqlen_k": 50,
    "dtype": torch.bfloat16,
    "sorted_by": "value",
    "as_slots": True,
    "lengths": None,
}
EACH = pytest.mark.parametrize("name", FUNCTIONS)


def arguments_of(name: str) -> dict[str, Any]:
    schema = FUNCTIONS[name]._schema
    return {argument.name: (good(name) | OPTIONS | good(name))[argument.name] for argument in schema.arguments}


def function_of(name: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The public function as one of its tensors alone."""
    inputs = {n: v for n, v in arguments_of(name).items() if v is not None}
    tensors = [n for n, v in inputs.items() if isinstance(v, Tensor)]
    rest = {n: v for n, v in inputs.items() if n not in tensors}

    def call(*values: Tensor) -> Tensor:
        return getattr(deepseek_fast, name)(**dict(zip(tensors, values, strict=True)), **rest)  # type: ignore[no-any-return]

    return call, [inputs[n] for n in tensors]


@EACH
def test_opcheck(name: str) -> None:
    """torch's test of a schema multiplies the inputs, but not FP8."""
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    also = ("test_schema",) if name == "topk_indices" else ()
    torch.library.opcheck(FUNCTIONS[name], (), arguments_of(name), test_utils=(*tests, *also))


@EACH
def test_the_meta_kernel_says_what_the_op_gives(name: str) -> None:
    inputs = arguments_of(name)
    real = FUNCTIONS[name](**inputs)
    meta = FUNCTIONS[name](**{n: v.to("meta") if isinstance(v, Tensor) else v for n, v in inputs.items()})
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@EACH
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_breaks(name: str, dynamic: bool) -> None:
    function, tensors = function_of(name)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(compiled(*tensors), function(*tensors))


@EACH
def test_export(name: str) -> None:
    function, tensors = function_of(name)

    class Module(torch.nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            return function(*values)

    program = torch.export.export(Module(), tuple(tensors))
    assert torch.equal(program.module()(*tensors), function(*tensors))


def test_nothing_has_a_gradient() -> None:
    inputs = good("fp8_mqa_logits")
    inputs["weights"].requires_grad_()
    assert not deepseek_fast.fp8_mqa_logits(**inputs).requires_grad
    scores = torch.randn(3, 9, requires_grad=True)
    assert not deepseek_fast.topk_indices(scores, 2).requires_grad
