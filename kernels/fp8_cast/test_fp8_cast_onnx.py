"""Fp8Cast, Fp8Dequantize and Int8Cast: ref.py's bits from our library, ONNX Runtime without it and onnx's reference."""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import deepseek_fast
from deepseek_fast import ort
from deepseek_fast.kernels.fp8_cast import body, cases, ref
from deepseek_fast.onnx import export, optimize
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner
from tests.cast_nodes import OP_TYPES, array, assert_bits, node_model
from tests.onnx_models import run_everywhere

OPS = tuple(OP_TYPES)
CASES = [case for case in cases.CASES if case.op in OPS and case.out_layout == "row"]
WITH_BODY = [case for case in CASES if case.rounding == "nearest"]
EVERY = 13  # of the cases, that many apart, go through all doors: no divisor of the tables' periods
OPSETS = range(body.MIN_OPSETS[body.CAST], 26)


def reference(op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    result = getattr(ref, f"{op}_ref")(**inputs)
    return result if isinstance(result, tuple) else (result,)


def check_everywhere(op: str, inputs: dict[str, Any], what: str, **how: Any) -> None:
    model, feeds = node_model(op, inputs, **how)
    want = reference(op, inputs)
    for runtime, got in run_everywhere(model, feeds).items():
        assert_bits(got, want, what, runtime=runtime)


def check_library(case: cases.Case) -> None:
    inputs = case.inputs(torch.Generator().manual_seed(1))
    model, feeds = node_model(case.op, inputs, with_body=False, bare=True)
    assert_bits(Runner(model, runtime=LIBRARY, threads=1).run(feeds), reference(case.op, inputs), case.id)


@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.id)
def test_the_library(case: cases.Case) -> None:
    check_library(case)


@pytest.mark.parametrize("case", WITH_BODY[::EVERY], ids=lambda case: case.id)
def test_three_doors(case: cases.Case) -> None:
    check_everywhere(case.op, case.inputs(torch.Generator().manual_seed(2)), case.id)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case(case: cases.Case) -> None:
    check_library(case)
    if case in WITH_BODY:
        check_everywhere(case.op, case.inputs(torch.Generator().manual_seed(3)), case.id)


@pytest.mark.parametrize(
    "opset",
    [pytest.param(opset, marks=[pytest.mark.slow] * (opset not in (OPSETS[0], 23, OPSETS[-1]))) for opset in OPSETS],
)
def test_every_opset(opset: int) -> None:
    for case in WITH_BODY[opset :: 9 * EVERY]:
        check_everywhere(case.op, case.inputs(torch.Generator().manual_seed(opset)), case.id, opset=opset)


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_int8_cast_needs_no_float8(opset: int) -> None:
    for shape in ((5, 33), (2, 3, 16), (7,), (0, 4)):
        check_everywhere("int8_cast", {"x": torch.randn(shape)}, str(shape), opset=opset)


def rows_of_every_kind() -> Tensor:
    """Rows of 128: every exponent, the places around ties, nothing finite, subnormal numbers, both zeros."""
    power = torch.ldexp(torch.ones(277), torch.arange(-149, 128)).unsqueeze(1)
    mantissas = torch.tensor([1.0, 1 + 2.0**-23, 1.5, 1.75, 1.875, 1.9375, 2 - 2.0**-23])
    ones = torch.tensor([1.0, -1.0]).repeat(64)
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(4))
    x[0, 3], x[1, 5], x[2, 7], x[3, 9] = torch.nan, torch.inf, -torch.inf, torch.inf
    x[3, 70], x[4], x[5], x[6], x[7] = torch.nan, 0.0, -0.0, torch.nan, torch.inf
    x[8, :] = torch.linspace(-448, 448, 128)
    x[9, :] = torch.linspace(-6, 6, 128)
    x[10] = ones * torch.finfo(torch.float32).max
    x[11] *= 2.0**-135
    x[12] *= 1e38
    x[13, 64:] = 0.0
    x[14] = torch.where(ones > 0, 464.0, 480.0)
    x[15] = torch.where(ones > 0, 61440.0, 248.0)
    return torch.cat([x, (power * mantissas).reshape(-1, 1) * ones])


KINDS = (
    *((mode, scale, fmt) for (mode, scale), fmt in product(cases.KINDS, cases.FORMATS)),
    ("torchao", "e4m3", cases.E2M1),
)


# Every other one, the rest with the slow tests.
@pytest.mark.parametrize(
    "i", [pytest.param(i, marks=[pytest.mark.slow] * (i % 2), id="-".join(KINDS[i])) for i in range(len(KINDS))]
)
def test_values_that_are_hard(i: int) -> None:
    (mode, scale, fmt), dtype = KINDS[i], getattr(torch, cases.DTYPES[i % 3])
    x = rows_of_every_kind().to(dtype)
    x = x.where(~x.isnan(), torch.nan) if fmt == cases.E2M1 else x  # FP4's body sees no sign of a NaN in x
    options = {"mode": mode, "scale": scale, "dtype": getattr(torch, fmt), "block": ((1, 32), (1, 128))[i // 3 % 2]}
    check_everywhere("fp8_cast", {"x": x, **options, "saturate": i % 2 == 0}, "-".join(KINDS[i]))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("fmt", cases.FORMATS)
def test_plain_casts_of_every_bf16(fmt: str, saturate: bool) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(-1, 128)
    x = x.where(~x.isnan(), torch.nan) if fmt == cases.E2M1 else x
    inputs = {"x": x, "block": None, "dtype": getattr(torch, fmt), "saturate": saturate, "scale": "f32"}
    check_everywhere("fp8_cast", inputs, fmt)


@pytest.mark.parametrize("y_dtype", cases.DTYPES)
@pytest.mark.parametrize("fmt", cases.FORMATS)
def test_dequantize_rounds_once(fmt: str, y_dtype: str) -> None:
    """Every code by scales of all sizes; some products lie beside a tie of bfloat16 or float16 by less than float32."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(40, 1).view(getattr(torch, fmt))
    scale = torch.ldexp(
        torch.rand(40, 1, generator=torch.Generator().manual_seed(5)) + 1, torch.arange(-136, 24, 4).unsqueeze(1)
    )
    scale[:20] = torch.ldexp(1 + torch.arange(20) * 2.0**-8 + 2.0**-23, torch.arange(-20, 20, 2)).unsqueeze(1)
    inputs = {"codes": codes, "scale": scale, "block": (1, -1), "dtype": getattr(torch, y_dtype)}
    check_everywhere("fp8_dequantize", inputs, f"{fmt} to {y_dtype}")


def test_int8_rows_that_are_hard() -> None:
    for dtype in cases.DTYPES:
        check_everywhere("int8_cast", {"x": rows_of_every_kind().to(getattr(torch, dtype))}, dtype)


def test_what_is_left_out_is_empty() -> None:
    """A node without its optional inputs and attributes, and one with the tensors of no values that a body reads."""
    x = torch.randn(6, 64)
    for options in ({}, {"dtype": torch.float4_e2m1fn_x2, "scale": "e4m3", "mode": "torchao", "block": (1, 16)}):
        inputs = {"x": x, **options}
        for tensor_scale in ({}, {"tensor_scale": torch.tensor([0.25])} if options else {}):
            for bare in (True, False):
                model, feeds = node_model("fp8_cast", inputs | tensor_scale, with_body=False, bare=bare)
                want = reference("fp8_cast", inputs | tensor_scale)
                assert_bits(Runner(model, runtime=LIBRARY, threads=1).run(feeds), want, f"bare: {bare}")


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    for block in ((1, 128), (128, 128), (-1, -1)):
        inputs = {"x": torch.randn(150, 1100), "block": block}
        model, feeds = node_model("fp8_cast", inputs, with_body=False)
        assert_bits(
            Runner(model, runtime=LIBRARY, threads=threads).run(feeds), reference("fp8_cast", inputs), str(block)
        )


def test_concurrent_runs_of_one_session() -> None:
    batches = [{"x": torch.randn(40 + i, 300), "block": (16, 64), "scale": "ue8m0"} for i in range(6)]
    runner = Runner(node_model("fp8_cast", batches[0], with_body=False)[0], runtime=LIBRARY, threads=2)
    wanted = [reference("fp8_cast", batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda batch: runner.run({"x": batch["x"].numpy()}), batches * 4)
        for i, got in enumerate(results):
            assert_bits(got, wanted[i % len(batches)], f"run {i}")


SHAPES = [
    ("fp8_cast", {"block": (1, 128)}, ["n", 300], [["n", 300], ["n", 3]]),
    ("fp8_cast", {"block": (1, 32)}, ["b", 4, 64], [["b", 4, 64], ["b", 4, 2]]),
    ("fp8_cast", {"block": (2, -1)}, [3, 4, 64], [[3, 4, 64], [6, 1]]),
    ("fp8_cast", {"block": (-1, -1)}, [64], [[64], [1, 1]]),
    ("fp8_cast", {"block": None}, ["n", 64], [["n", 64], [1, 1]]),
    ("fp8_cast", {"dtype": torch.float4_e2m1fn_x2}, ["n", 64], [["n", 32], ["n", 1]]),
    ("int8_cast", {}, ["b", "s", 8], [["b", "s", 8], ["b", "s", 1]]),
]


@pytest.mark.parametrize(("op", "options", "shape", "want"), SHAPES)
def test_shapes_are_inferred(op: str, options: Any, shape: Any, want: Any) -> None:
    x = torch.zeros([8 if isinstance(size, str) else size for size in shape])
    model, feeds = node_model(op, {"x": x, **options}, with_body=False, bare=True, shape=shape)
    made = ort.session(model.SerializeToString(), threads=1)
    assert [output.shape for output in made.get_outputs()] == want
    Runner(model, runtime=LIBRARY, threads=1).run(feeds)


def test_x_of_a_rank_that_is_not_known() -> None:
    inputs = {"x": torch.randn(3, 200), "dtype": torch.float8_e5m2}
    model, feeds = node_model("fp8_cast", inputs, with_body=False)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert_bits(Runner(model, runtime=LIBRARY, threads=1).run(feeds), reference("fp8_cast", inputs), "no shape")


def bare_node(op_type: str, outputs: list[int], **attributes: Any) -> bytes:
    """A model of one node whose x is (2, 64) float, or of Fp8Dequantize float8e4m3fn."""
    x_type = TensorProto.FLOAT8E4M3FN if op_type == body.DEQUANTIZE else TensorProto.FLOAT
    names = [f"y{i}" for i in range(len(outputs))]
    node = helper.make_node(op_type, ["x"], names, domain="ai.deepseek_fast", **attributes)
    graph = helper.make_graph(
        [node],
        "wrong",
        [helper.make_tensor_value_info("x", x_type, [2, 64])],
        [helper.make_tensor_value_info(name, kind, [2, None]) for name, kind in zip(names, outputs, strict=True)],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("ai.deepseek_fast", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=11).SerializeToString()


E4M3, FLOAT, UINT8 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT, TensorProto.UINT8
NOT_A_FORMAT = "float8_e4m3fn, float8_e5m2, float8_e4m3fnuz, float8_e5m2fnuz or float4_e2m1fn_x2"
TORCHAO_RULE = "go with scale='ue8m0' where it is 'torchao_ceil', 'torchao_even' or 'torchao_rceil'"
WRONG = [
    (body.CAST, [E4M3, FLOAT], {"block": [1]}, "fp8_cast: block must be two positive numbers, or -1 for all; got (1,)"),
    (
        body.CAST,
        [E4M3, FLOAT],
        {"block": [0, 128]},
        "fp8_cast: block must be two positive numbers, or -1 for all; got (0, 128)",
    ),
    (
        body.CAST,
        [E4M3, FLOAT],
        {"block": [1.5, 2.0]},
        "fp8_cast: block must be two positive numbers, or -1 for all; got (1.5, 2.0)",
    ),
    (body.CAST, [E4M3, FLOAT], {"scale": "f64"}, "fp8_cast: scale must be one of f32, ue8m0, e4m3; got 'f64'"),
    (body.CAST, [E4M3, FLOAT], {"rounding": "up"}, "fp8_cast: rounding must be one of nearest, stochastic; got 'up'"),
    (body.CAST, [E4M3, FLOAT], {"mode": "torchao_ceil"}, f"fp8_cast: mode must {TORCHAO_RULE}; got 'torchao_ceil'"),
    (body.CAST, [FLOAT, FLOAT], {"dtype": FLOAT}, f"fp8_cast: dtype must be {NOT_A_FORMAT}; got float32"),
    (
        body.CAST,
        [TensorProto.FLOAT4E2M1, FLOAT],
        {"dtype": TensorProto.FLOAT4E2M1},
        f"fp8_cast: dtype must be {NOT_A_FORMAT}; got float4_e2m1fn",
    ),
    (
        body.CAST,
        [E4M3, E4M3],
        {"scale": "e4m3"},
        "fp8_cast: scale must go with dtype float4_e2m1fn_x2 and mode='torchao' where it is 'e4m3'; got float8_e4m3fn",
    ),
    (
        body.DEQUANTIZE,
        [UINT8],
        {"dtype": UINT8},
        "fp8_dequantize: dtype must be float32, bfloat16 or float16; got uint8",
    ),
    (
        body.DEQUANTIZE,
        [FLOAT],
        {"block": [1, 2, 3]},
        "fp8_dequantize: block must be two positive numbers, or -1 for all; got (1, 2, 3)",
    ),
]


@pytest.mark.parametrize(("op_type", "outputs", "attributes", "sentence"), WRONG, ids=lambda value: str(value)[-40:])
def test_what_is_wrong_is_said_when_the_session_is_made(
    op_type: str, outputs: Any, attributes: Any, sentence: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(sentence)}$"):
        ort.session(bare_node(op_type, outputs, **attributes), threads=1)


def test_shapes_are_checked_in_a_run() -> None:
    x = torch.randn(4, 64)
    inputs = {"x": x, "scale": torch.ones(4, 2), "block": (1, 32)}
    model, _ = node_model("fp8_cast", inputs, with_body=False)
    runner = Runner(model, runtime=LIBRARY, threads=1)
    sentence = "fp8_cast: scale must have shape (5, 2), one value a block; got shape (4, 2)"
    with pytest.raises(Exception, match=re.escape(sentence)):
        runner.run({"x": np.zeros((5, 64), np.float32)})
    model, _ = node_model("fp8_cast", inputs | {"scale": torch.tensor([[1.0, -2.0]] * 4)}, with_body=False)
    sentence = "fp8_cast: scale must be finite and above zero; got -2 in row 0, column 1"
    with pytest.raises(Exception, match=re.escape(sentence)):
        Runner(model, runtime=LIBRARY, threads=1).run({"x": x.numpy()})


def test_an_empty_scale_has_the_type_of_the_scales() -> None:
    x = torch.randn(4, 64)
    for kind, wrong, sentence in (
        ("f32", torch.float8_e8m0fnu, "fp8_cast: scale must be float32 where it is empty; got dtype uint8"),
        ("ue8m0", torch.float32, "fp8_cast: scale must be uint8 where it is empty; got dtype float32"),
    ):
        model, _ = node_model("fp8_cast", {"x": x, "scale": kind}, with_body=False)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array(torch.empty(0, dtype=wrong)), "S"))
        model.graph.output[1].type.tensor_type.elem_type = model.graph.initializer[0].data_type
        with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
            ort.session(model.SerializeToString(), threads=1)


def test_optimize_completes_and_attaches() -> None:
    """Bare nodes with scales of e8m0 run on stock ONNX Runtime once they have passed."""
    x = torch.randn(5, 64)
    scale = torch.tensor([[120, 130]] * 5, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    for inputs in ({"x": x}, {"x": x, "scale": scale, "block": (1, 32)}, {"x": x, "dtype": torch.float4_e2m1fn_x2}):
        model, feeds = node_model("fp8_cast", inputs, with_body=False, bare=True)
        if "scale" in inputs:
            model.graph.initializer[0].data_type = TensorProto.FLOAT8E8M0
        complete = optimize(model)
        assert [function.name for function in complete.functions] == [body.CAST]
        assert_bits(Runner(complete, runtime=STOCK, threads=1).run(feeds), reference("fp8_cast", inputs), "stock")


def test_a_node_that_rounds_stochastically_has_no_body() -> None:
    inputs = {"x": torch.randn(5, 64), "rounding": "stochastic", "seed": 7}
    model, feeds = node_model("fp8_cast", inputs, with_body=False, bare=True)
    complete = optimize(model)
    assert not complete.functions
    assert_bits(Runner(complete, runtime=LIBRARY, threads=1).run(feeds), reference("fp8_cast", inputs), "library")
    said = "Fp8Cast: rounding must be 'nearest' for a body in ai.onnx; got 'stochastic'"
    assert body.problem(body.CAST, {"rounding": "stochastic"}) == said


class Calls(torch.nn.Module):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


def every_cast(x: Tensor) -> tuple[Tensor, ...]:
    """The results of all of EXPORTED: an export takes most of a second, however much it holds."""
    results = [call(x) for call in EXPORTED.values()]
    return tuple(part for result in results for part in (result if isinstance(result, tuple) else (result,)))


NVFP4: dict[str, Any] = {"dtype": torch.float4_e2m1fn_x2, "scale": "e4m3", "mode": "torchao", "block": (1, 16)}
EXPORTED = {
    "fp8_cast": lambda x: deepseek_fast.fp8_cast(x, mode="vllm"),
    "of a tensor": lambda x: deepseek_fast.fp8_cast(x, block=(-1, -1), dtype=torch.float8_e5m2),
    "plain": lambda x: deepseek_fast.fp8_cast(x, block=None),
    "given": lambda x: deepseek_fast.fp8_cast(x, block=(-1, -1), scale=torch.full((1, 1), 0.5)),
    "ue8m0": lambda x: deepseek_fast.fp8_cast(x, block=(1, 32), scale="ue8m0"),
    "there and back": lambda x: deepseek_fast.fp8_dequantize(*deepseek_fast.fp8_cast(x), dtype=torch.bfloat16).float(),
    "NVFP4": lambda x: deepseek_fast.fp8_dequantize(*deepseek_fast.fp8_cast(x, **NVFP4), block=(1, 16)),
    "int8_cast": deepseek_fast.int8_cast,
}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its own pytrees
def test_export() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    model = export(Calls(every_cast).eval(), (torch.randn(5, 200),), dynamic_shapes=({0: batch},), input_names=["x"])
    onnx.checker.check_model(model)
    x = torch.randn(7, 200)
    for runtime, got in run_everywhere(model, {"x": array(x)}).items():
        assert_bits(got, every_cast(x), ", ".join(EXPORTED), runtime=runtime)


def test_schemas_and_bodies_agree() -> None:
    for schema in body.schemas():
        opset = body.MIN_OPSETS[schema.name]
        function = body.function_proto(opset, schema.name)
        assert [p.name for p in schema.inputs] == list(function.input) == list(body.INPUTS[schema.name])
        assert [p.name for p in schema.outputs] == list(function.output) == list(body.OUTPUTS[schema.name])
        assert set(schema.attributes) == set(function.attribute) == set(body.DEFAULTS[schema.name])
        assert {imported.domain for imported in function.opset_import} == {""}
        with pytest.raises(ValueError, match=rf"^function_proto: opset must be from {opset} to 25; got {opset - 1}$"):
            body.function_proto(opset - 1, schema.name)
