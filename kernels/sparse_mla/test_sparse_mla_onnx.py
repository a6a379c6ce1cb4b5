"""SparseMla and SparseMlaDecode from our library, ONNX Runtime without it and onnx's reference; export from torch."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import body
from deepseek_fast.kernels.sparse_mla.caches import Cache, read_cache
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES, Case, DecodeCase
from deepseek_fast.onnx import export
from deepseek_fast.onnx._body import BodyWriter
from deepseek_fast.onnx._runtime import LIBRARY, Runner
from tests.doors import from_numpy
from tests.mla_doors import call, prepared, prepared_decode, tensor_of
from tests.mla_nodes import node_model
from tests.onnx_models import run_everywhere
from tests.oracle import assert_equal, assert_within

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its own pytrees
SOME = [case for i, case in enumerate(CASES) if i % 5 == 0 or 0 in (case.s_q, case.s_kv, case.topk)]
SOME_DECODES = [DECODE_CASES[i] for i in (0, 1, 8, 15, 22, 25, 28, 30, 31, 33, 35, 37, 38, 40, 42, 44, 46, 47, 48, 49)]


def check_everywhere(op: str, inputs: dict[str, Any], want: Any, bound: Any, what: str, **how: Any) -> None:
    model, feeds = node_model(op, inputs, **how)
    for runtime, got in run_everywhere(model, feeds).items():
        for (name, value), w, e in zip(got.items(), want, bound, strict=True):
            assert_within(from_numpy(np.ascontiguousarray(value)).reshape(w.shape), w, e, f"{what}: {name}, {runtime}")


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_prefill_in_three_runtimes(case: Case) -> None:
    check_everywhere("sparse_mla", *prepared(case), case.id)


@pytest.mark.parametrize("case", SOME_DECODES, ids=lambda case: case.id)
def test_decode_in_three_runtimes(case: DecodeCase) -> None:
    check_everywhere("sparse_mla_decode", *prepared_decode(case), case.id)


@pytest.mark.parametrize("opset", [15, 18, 23, 25])
def test_every_opset(opset: int) -> None:
    for case in (CASES[15], CASES[20]):
        check_everywhere("sparse_mla", *prepared(case), case.id, opset=opset)
    for decode in (DECODE_CASES[8], DECODE_CASES[15], DECODE_CASES[33]):
        check_everywhere("sparse_mla_decode", *prepared_decode(decode), decode.id, opset=opset)


@pytest.mark.parametrize("op", ["sparse_mla", "sparse_mla_decode"])
def test_the_library_gives_torch_s_bits(op: str) -> None:
    cases, of = (CASES, prepared) if op == "sparse_mla" else (DECODE_CASES, prepared_decode)
    for case in cases:
        inputs = of(case)[0]  # type: ignore[operator]
        model, feeds = node_model(op, inputs, with_body=False, bare=True)
        got = Runner(model, runtime=LIBRARY, threads=2).run(feeds)
        for value, want in zip(got.values(), call(op, "torch", inputs), strict=True):
            assert_equal(from_numpy(np.ascontiguousarray(value)).reshape(want.shape), want, case.id)


@pytest.mark.parametrize("layout", ["v32", "v4"])
def test_every_byte_of_a_cache_is_decoded_exactly(layout: str) -> None:
    """All codes, scales of many sizes, all bf16."""
    d, token = (576, 656) if layout == "v32" else (512, 584)
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (3, 16, 1, token)).astype(np.uint8)
    if layout == "v32":
        scales = generator.standard_normal((48, 4)) * np.exp2(generator.integers(-60, 60, (48, 4)))
        data.reshape(48, 656)[:, 512:528] = scales.astype(np.float32).view(np.uint8).reshape(48, 16)
    cache = torch.from_numpy(data)
    numbers = deepseek_fast.mla_cache_read(cache, layout=layout).reshape(-1, d).float()
    with np.errstate(all="ignore"):
        reference = read_cache(Cache(data.reshape(3, -1), 16), layout).reshape(-1, d).astype(np.float32)
    assert np.array_equal(numbers.numpy(), reference, equal_nan=True)
    writer = BodyWriter(23)
    body._numbers(writer, "K", writer.op("Constant", value_strings=[layout]), writer.constant([d], "int64"))
    values = [helper.make_tensor_value_info("K", TensorProto.UINT8, [None] * 4)]
    made = helper.make_tensor_value_info(writer.nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(writer.nodes, "numbers", values, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    for runtime, got in run_everywhere(model, {"K": data}).items():
        assert np.array_equal(next(iter(got.values())), reference, equal_nan=True), runtime


class Prefill(torch.nn.Module):
    def forward(self, q: Tensor, kv: Tensor, indices: Tensor) -> Any:
        return deepseek_fast.sparse_mla(2 * q, kv, indices, d_v=24)[0] + 1


class Decode(torch.nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k_cache: Tensor, indices: Tensor) -> Any:
        return deepseek_fast.sparse_mla_decode(q, k_cache, indices, **self.options)


def check_export(module: torch.nn.Module, args: tuple[Tensor, ...], op_type: str) -> None:
    model = export(module.eval(), args)
    assert [node.op_type for node in model.graph.node].count(op_type) == 1
    onnx.checker.check_model(model, full_check=True)
    want = module(*args)
    want = want if isinstance(want, tuple) else (want,)
    feeds = {value.name: arg.numpy() for value, arg in zip(model.graph.input, args, strict=True)}
    for runtime, got in run_everywhere(model, feeds).items():
        for value, w in zip(got.values(), want, strict=True):
            torch.testing.assert_close(torch.from_numpy(value), w, rtol=1e-4, atol=1e-4, msg=runtime)


def test_a_torch_model_exports() -> None:
    indices = torch.randint(-5, 60, (6, 1, 20), dtype=torch.int32)
    check_export(Prefill(), (torch.randn(6, 4, 40), torch.randn(50, 1, 40), indices), body.OP_TYPE)


@pytest.mark.parametrize("layout", ["plain", "v32", "v4"])
def test_a_torch_decoder_exports(layout: str) -> None:
    inputs = DecodeCase(2, 1, 4, 60, 30, page=16, layout=layout, dtype="float32").inputs(
        torch.Generator().manual_seed(1)
    )
    cache = inputs["k_cache"] if layout == "plain" else tensor_of(inputs["k_cache"], layout).contiguous()
    check_export(Decode(layout=layout), (inputs["q"], cache, inputs["indices"]), body.DECODE)
