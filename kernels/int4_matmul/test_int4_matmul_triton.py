"""int4_matmul's kernels for CUDA: the reference's bits for "int8", its bound for "float"."""

from itertools import product
from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.int4_matmul import gpu_cases, ref
from deepseek_fast.kernels.int4_matmul.cases import CASES, Case
from tests import gpu
from tests.oracle import assert_equal, assert_matches

pytestmark = gpu.gpu
FEW = 16  # rows of x in the form for few rows
SOME = CASES[:: 3 if interpreted() else 12]  # on a chip nearly each is one more kernel to compile


def run(inputs: dict[str, Any], arch: int | None = None) -> torch.Tensor:
    result: torch.Tensor = gpu.call(deepseek_fast.int4_matmul, arch=arch, **inputs)
    return result


def check(inputs: dict[str, Any], what: str, arch: int | None = None) -> None:
    want = ref.int4_matmul_ref(**inputs)
    limit = ref.bound(**inputs, tensor_cores=not interpreted()) if want.dtype == torch.float64 else None
    assert_matches(run(inputs, arch), want, limit, what)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_cases(case: Case, generator: torch.Generator) -> None:
    check(case.inputs(generator), case.id)


@pytest.mark.parametrize(("compute", "arch"), [("int8", 90), *(("float", arch) for arch in gpu.ARCHS)])
def test_every_form_of_a_chip(compute: str, arch: int, generator: torch.Generator) -> None:
    """Few rows, one tile that splits k, and more tiles; whole blocks of k and a part of one."""
    for (M, K), (dtype, group_size) in product(
        ((3, 1024), (16, 70), (40, 256), (65, 140)), (("bfloat16", 128), ("float32", 32))
    ):
        case = Case(M, 34, K, dtype, "silu", True, "full", compute, group_size, group_size == 32, gated=M == 16)
        check(case.inputs(generator), case.id, arch)


@pytest.mark.parametrize("compute", ["int8", "float"])
def test_tensors_at_any_stride(compute: str, generator: torch.Generator) -> None:
    for M in (5, 30):
        inputs = Case(M, 35, 130, zeros=True, compute=compute).inputs(generator)
        want = run(inputs)
        wide = torch.zeros(2 * M, 263)
        wide[::2, 1::2] = torch.nn.functional.pad(inputs["x"], (0, 1))
        spread = {name: inputs[name].t().contiguous().t() for name in ("q", "scale", "zeros")}
        assert_equal(run(inputs | spread | {"x": wide[::2, 1::2][:, :130]}), want, f"{M} rows, {compute}")
        later = {name: torch.cat([value.flatten()[:1], value.flatten()])[1:].view(value.shape) for name, value in (
            ("x", inputs["x"]), ("q", inputs["q"]))}  # fmt: skip
        assert_equal(run(inputs | later), want, f"{M} rows, {compute}, not aligned")
        assert_equal(run(inputs | {"x": inputs["x"][None]}), want[None], f"{M} rows, {compute}, three dimensions")


@pytest.mark.parametrize("compute", ["int8", "float"])
def test_nan_and_infinity_stay_in_their_rows(compute: str, generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = Case(6, 33, 200, compute=compute, group_size=64, bias=False).inputs(generator)
        inputs["x"] = inputs["x"].to(dtype)
        inputs["q"] = inputs["q"] | 0x99  # no code is the zero point, whose product with an infinity is NaN
        inputs["scale"] = inputs["scale"].abs() + 0.1
        inputs["x"][0, 3], inputs["x"][1, 199], inputs["x"][2, 70] = torch.nan, torch.inf, -torch.inf
        inputs["x"][3], inputs["x"][4] = 0.0, 2.0**-120
        check(inputs, f"{compute} {dtype}")


def test_the_values_of_other_rows_and_their_number_change_nothing(generator: torch.Generator) -> None:
    """Within the form for few rows and, with "float", within the one for many; "int8" gives the same everywhere."""
    for dtype, compute in product(("float32", "bfloat16"), ("int8", "float")):
        inputs = Case(66, 20, 140, dtype, compute=compute, zeros=True).inputs(generator)
        want = run(inputs)
        many = inputs | {"x": torch.cat([torch.randn_like(inputs["x"]), inputs["x"]])}
        assert_equal(run(many)[66:], want, f"132 rows, {dtype}, {compute}")
        few = run(inputs | {"x": inputs["x"][:FEW]})
        for rows in (1, 9):
            assert_equal(run(inputs | {"x": inputs["x"][:rows]}), few[:rows], f"{rows} rows, {dtype}, {compute}")
        if compute == "int8":
            assert_equal(few, want[:FEW], f"{FEW} rows among 66, {dtype}")


def test_what_lies_behind_an_odd_k_is_not_read(generator: torch.Generator) -> None:
    for M, compute in product((3, 20), ("int8", "float")):
        inputs = Case(M, 20, 33, zeros=True, compute=compute).inputs(generator)
        other = inputs | {"q": inputs["q"].clone()}
        other["q"][:, -1] ^= 0xF0
        assert_equal(run(other), run(inputs), f"{M} rows, {compute}")


def test_values_that_a_gpu_does_not_check_stay_in_their_rows(generator: torch.Generator) -> None:
    for M, compute in product((3, 20), ("int8", "float")):
        inputs = Case(M, 20, 64, zeros=True, compute=compute).inputs(generator)
        bad = inputs | {"zeros": inputs["zeros"].clone(), "scale": inputs["scale"].clone()}
        bad["zeros"][4], bad["scale"][7] = 255, torch.nan
        rest = [n for n in range(20) if n not in (4, 7)]
        got = run(bad)
        assert got[:, 7].isnan().all()
        assert_equal(got[:, rest].contiguous(), run(inputs)[:, rest].contiguous(), f"{M} rows, {compute}")


def test_the_weight_is_quantized_as_on_the_cpu(generator: torch.Generator) -> None:
    w = torch.randn(5, 70, generator=generator)
    for symmetric in (True, False):
        got = gpu.call(deepseek_fast.int4_quantize_weight, w, symmetric=symmetric)
        for name, value, want in zip(
            ("q", "scale", "zeros"), got, ref.int4_quantize_weight_ref(w, symmetric=symmetric), strict=False
        ):
            assert_equal(value, want, name)


def test_refusals_have_the_cpu_ops_sentences() -> None:
    x, (q, scale) = torch.zeros(2, 64), deepseek_fast.int4_quantize_weight(torch.ones(3, 64))
    with pytest.raises(ValueError, match=r"int4_matmul: scale must have shape \(3, 1\), one value a group; got"):
        gpu.call(deepseek_fast.int4_matmul, x, q, scale, group_size=64)
    with pytest.raises(TypeError, match="int4_matmul: q must be uint8; got dtype int8"):
        gpu.call(deepseek_fast.int4_matmul, x, q.view(torch.int8), scale)
    ops = torch.ops.deepseek_fast
    packed = ops.int4_matmul_pack(q, scale)
    with pytest.raises(RuntimeError, match=r"int4_matmul_packed: packed must be a CPU tensor; .*use int4_matmul with"):
        gpu.call(ops.int4_matmul_packed, x, packed, out_features=3)
    with pytest.raises(RuntimeError, match=r"int4_matmul_pack: q must be a CPU tensor; .*use int4_matmul with"):
        gpu.call(ops.int4_matmul_pack, q, scale)


@pytest.mark.parametrize("compute", ["int8", "float"])
def test_a_row_of_the_benchmark_at_a_toy_size(compute: str) -> None:
    row = gpu_cases._bench(3, compute, N=64, K=256)
    inputs = row.inputs()
    dense = row.peers[0].prepare(inputs)
    with gpu.on_gpu():
        for _ in range(gpu_cases.COPIES + 1):
            result = row.ours(**inputs)
            assert row.error(inputs, result) <= 1
            x, want = inputs["x"].float().abs(), dense()
            slack = x.sum(-1, keepdim=True) * inputs["weights"][0][1].max() * 8 * 2**-7  # weights rounded to bfloat16
            assert ((result - want).float().abs() <= slack).all() or compute == "int8"
