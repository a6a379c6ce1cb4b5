"""fp8_scaled_mm: the arguments, layouts and numbers of torch.nn.functional.scaled_mm, and what torch has no CPU for."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.functional import ScalingType, SwizzleType

import deepseek_fast
from deepseek_fast.kernels.fp8_matmul.ref import _sum_bound, cast_rows, scaled_mm_steps
from deepseek_fast.kernels.fp8_matmul.scaled_mm import BLOCK_OF_RECIPE
from deepseek_fast.kernels.fused_matmul.ref import epilogue_bound
from tests.oracle import assert_equal, assert_within

TENSOR, ROW, PER_128, PER_128X128 = BLOCK_OF_RECIPE
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
RECIPES = [(a, b) for a in BLOCK_OF_RECIPE for b in BLOCK_OF_RECIPE]
SHAPES = [(1, 1, 1), (4, 16, 256), (5, 130, 299), (130, 65, 700), (0, 3, 4), (3, 0, 4), (3, 4, 0)]


def codes(rows: int, K: int, dtype: torch.dtype = E4M3) -> torch.Tensor:
    return (torch.randn(rows, K) * 100).to(dtype)


def scales_of(rows: int, K: int, recipe: Any) -> torch.Tensor:
    """One value a block: (rows / block, K / block)."""
    parts = [
        1 if block < 0 else -(-size // block) for size, block in zip((rows, K), BLOCK_OF_RECIPE[recipe], strict=True)
    ]
    return (torch.rand(parts) + 0.5) / 100


def as_torch_has_it(scale: torch.Tensor, recipe: Any, side: str, *, padded: bool = True) -> torch.Tensor:
    """The layout that torch asks for, strides of cuBLASLt included."""
    if recipe == ScalingType.TensorWise:
        return scale.reshape(())
    if recipe == ScalingType.RowWise:
        return scale if side == "a" else scale.t()
    if recipe == ScalingType.BlockWise1x128:
        return scale.t().contiguous().t()
    rows, steps = scale.shape
    memory = torch.full((rows, -(-steps // 4) * 4 if padded else steps), torch.nan)
    memory[:, :steps] = scale
    return memory.t()


def reference(call: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(y in float64, bound) of canonical scales."""
    blocks = (BLOCK_OF_RECIPE[call["recipe_a"]], BLOCK_OF_RECIPE[call["recipe_b"]])
    steps = list(scaled_mm_steps(call["a"], call["scale_a"], call["b"], call["scale_b"], *blocks))
    z = torch.zeros(call["a"].shape[0], call["b"].shape[0], dtype=torch.float64)
    for step in steps:
        z = z + (step.x @ step.weight.T) * step.factor
    bias = call.get("bias")
    error = _sum_bound(steps, False, z)
    z = z if bias is None else z + bias.double()
    return z, epilogue_bound(z, error, dtype, bias=bias is not None, activation="none", residual=None)


def made(M: int, N: int, K: int, recipe_a: Any, recipe_b: Any, dtypes: Any = (E4M3, E4M3)) -> dict[str, Any]:
    return {
        "a": codes(M, K, dtypes[0]),
        "b": codes(N, K, dtypes[1]),
        "scale_a": scales_of(M, K, recipe_a),
        "scale_b": scales_of(N, K, recipe_b),
        "recipe_a": recipe_a,
        "recipe_b": recipe_b,
    }


def arguments(call: dict[str, Any]) -> dict[str, Any]:
    return {
        "mat_a": call["a"],
        "mat_b": call["b"].t(),
        "scale_a": as_torch_has_it(call["scale_a"], call["recipe_a"], "a"),
        "scale_recipe_a": call["recipe_a"],
        "scale_b": as_torch_has_it(call["scale_b"], call["recipe_b"], "b"),
        "scale_recipe_b": call["recipe_b"],
    }


@pytest.mark.parametrize("output_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("recipe_a", "recipe_b"), RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_agrees_with_the_reference(recipe_a: Any, recipe_b: Any, output_dtype: Any, isa: str) -> None:
    for i, shape in enumerate(SHAPES):
        dtypes = ((E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (E5M2, E5M2))[i % 4]
        call = made(*shape, recipe_a, recipe_b, dtypes)
        if i % 2:
            call["bias"] = torch.randn(shape[1]).to(output_dtype)
        want, bound = reference(call, output_dtype)
        given = arguments(call) | {"bias": call.get("bias"), "output_dtype": output_dtype}
        got = deepseek_fast.fp8_scaled_mm(**given)
        assert got.dtype == output_dtype
        assert_within(got, want, bound, f"{shape}")
        row_major = given | {"mat_a": given["mat_a"].t().contiguous().t(), "mat_b": given["mat_b"].contiguous()}
        assert_equal(deepseek_fast.fp8_scaled_mm(**row_major), got, f"{shape}, other strides")
        for name in ("scale_a", "scale_b"):
            whole = given | {name: given[name].contiguous()}
            assert_equal(deepseek_fast.fp8_scaled_mm(**whole), got, f"{shape}, {name} contiguous")
        rows_of_b = as_torch_has_it(call["scale_b"], recipe_b, "b", padded=False)
        assert_equal(deepseek_fast.fp8_scaled_mm(**given | {"scale_b": rows_of_b}), got, f"{shape}, scale_b not padded")


@pytest.mark.parametrize("recipe", [TENSOR, ROW], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("dtype_a", [E4M3, E5M2], ids=str)
def test_torch_s_own_numbers(recipe: Any, dtype_a: torch.dtype) -> None:
    """Where torch has a CPU kernel, both lie within the bound; its defaults are ours."""
    call = made(5, 48, 300, recipe, recipe, (dtype_a, E4M3))
    given = arguments(call)
    for output_dtype in (torch.bfloat16, torch.float32):
        want, bound = reference(call, output_dtype)
        for scaled_mm in (F.scaled_mm, deepseek_fast.fp8_scaled_mm):
            assert_within(scaled_mm(**given, output_dtype=output_dtype), want, bound, scaled_mm.__name__)
    assert deepseek_fast.fp8_scaled_mm(**given).dtype == F.scaled_mm(**given).dtype == torch.bfloat16


def test_float16_is_float32_rounded_once(isa: str) -> None:
    given = arguments(made(5, 48, 300, ROW, ROW, (E4M3, E5M2)))
    wide = deepseek_fast.fp8_scaled_mm(**given, output_dtype=torch.float32)
    assert_equal(deepseek_fast.fp8_scaled_mm(**given, output_dtype=torch.float16), wide.half(), isa)


def test_what_torch_takes_in_a_list_or_by_place() -> None:
    call = made(5, 48, 300, PER_128, PER_128X128)
    given = arguments(call)
    want = deepseek_fast.fp8_scaled_mm(**given)
    listed = {name: [value] if name.startswith("scale") else value for name, value in given.items()}
    none = SwizzleType.NO_SWIZZLE
    assert_equal(deepseek_fast.fp8_scaled_mm(**listed, swizzle_a=[none], swizzle_b=none), want)
    by_place = deepseek_fast.fp8_scaled_mm(*given.values(), None, None, None, torch.bfloat16, (1, 0), True)
    assert_equal(by_place, want)
    assert_equal(deepseek_fast.fp8_scaled_mm(**given, contraction_dim=[-1, -2]), want)


def test_a_bfloat16_bias_is_widened() -> None:
    call = made(5, 48, 300, ROW, ROW)
    bias = torch.randn(48).bfloat16()
    got = deepseek_fast.fp8_scaled_mm(**arguments(call), bias=bias, output_dtype=torch.float32)
    assert_equal(got, deepseek_fast.fp8_scaled_mm(**arguments(call), bias=bias.float(), output_dtype=torch.float32))


def test_it_is_fp8_matmul_with_the_cast_taken_out(isa: str) -> None:
    x, w = torch.randn(7, 517), torch.randn(130, 517)
    weight, scale = deepseek_fast.fp8_quantize_weight(w)
    want = deepseek_fast.fp8_matmul(x, weight, scale, activations="fp8")
    x_q, x_scale = cast_rows(x)
    recipes = {"scale_recipe_a": PER_128, "scale_recipe_b": PER_128X128}
    got = deepseek_fast.fp8_scaled_mm(
        x_q, weight.t(), x_scale, scale_b=scale.t(), **recipes, output_dtype=torch.float32
    )
    assert_equal(got, want)


def test_scale_a_follows_ieee() -> None:
    """An activation's scale is data: zero, negative, NaN and inf give what IEEE says, and stay in their row."""
    call = made(6, 8, 140, PER_128, TENSOR)
    want = deepseek_fast.fp8_scaled_mm(**arguments(call))
    for value in (0.0, -1.0, torch.nan, torch.inf):
        spoiled = call | {"scale_a": call["scale_a"].clone()}
        spoiled["scale_a"][2, :] = value
        got = deepseek_fast.fp8_scaled_mm(**arguments(spoiled))
        others = [0, 1, 3, 4, 5]
        assert_equal(got[others], want[others], f"{value}")
        assert (got[2] == 0).all() if value == 0 else (got[2].isfinite() == (value == -1)).all()


def test_nan_codes_stay_nan() -> None:
    call = made(6, 70, 140, PER_128, PER_128X128)
    call["a"].view(torch.uint8)[3, 139] = 0x7F
    call["b"].view(torch.uint8)[64, 0] = 0xFF
    got = deepseek_fast.fp8_scaled_mm(**arguments(call))
    assert got[3].isnan().all() and got[:, 64].isnan().all() and got.isnan().sum() == 70 + 6 - 1


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mat_a": torch.zeros(4, 256)}, TypeError, "mat_a must be float8_e4m3fn or float8_e5m2; got dtype float32"),
    ({"mat_a": None}, TypeError, "mat_a must be a tensor; got NoneType"),
    ({"mat_a": codes(4, 256)[None]}, ValueError, "mat_a must have 2 dimensions; got shape (1, 4, 256)"),
    ({"mat_b": codes(16, 128).t()}, ValueError, "mat_b must have 256 rows, as mat_a has columns; got shape (128, 16)"),
    ({"scale_a": torch.ones(4, 2).double()}, TypeError, "scale_a must be float32; got dtype float64"),
    ({"scale_a": torch.ones(4)}, ValueError, "scale_a must have shape (4, 2); got shape (4,)"),
    ({"scale_a": [torch.ones(4, 2)] * 2}, ValueError, "scale_a must be one; got 2"),
    ({"scale_a": 1.0}, TypeError, "scale_a must be a tensor; got float"),
    (
        {"scale_b": torch.ones(1, 2)},
        ValueError,
        "scale_b must have shape (2, 1), or 4 rows; got shape (1, 2)",
    ),
    ({"scale_b": torch.zeros(2, 1)}, ValueError, "scale_b must be finite and above zero; got 0 at (0, 0)"),
    (
        {"scale_recipe_b": ROW, "scale_b": torch.ones(16, 1)},
        ValueError,
        "scale_b must have shape (1, 16); got shape (16, 1)",
    ),
    (
        {"scale_recipe_a": TENSOR},
        ValueError,
        "scale_a must have one element; got shape (4, 2)",
    ),
    (
        {"scale_recipe_a": ScalingType.BlockWise1x32},
        ValueError,
        "scale_recipe_a must be TensorWise, RowWise, BlockWise1x128 or BlockWise128x128; got BlockWise1x32",
    ),
    (
        {"scale_recipe_b": "row"},
        ValueError,
        "scale_recipe_b must be TensorWise, RowWise, BlockWise1x128 or BlockWise128x128; got 'row'",
    ),
    (
        {"swizzle_b": SwizzleType.SWIZZLE_32_4_4},
        ValueError,
        "swizzle_b must be none or NO_SWIZZLE; got SWIZZLE_32_4_4",
    ),
    ({"output_dtype": None}, TypeError, "output_dtype must be float32, bfloat16 or float16; got None"),
    ({"output_dtype": torch.float64}, TypeError, "output_dtype must be float32, bfloat16 or float16; got float64"),
    ({"contraction_dim": (0, 1)}, ValueError, "contraction_dim must be (1, 0), the dimensions of K; got (0, 1)"),
    ({"bias": torch.zeros(15).bfloat16()}, ValueError, "bias must have shape (16,); got shape (15,)"),
    ({"bias": torch.zeros(16)}, TypeError, "bias must be bfloat16, as output_dtype; got dtype float32"),
    (
        {"bias": torch.zeros(16).half(), "output_dtype": torch.float32},
        TypeError,
        "bias must be bfloat16 or float32, as output_dtype; got dtype float16",
    ),
]


@pytest.mark.parametrize(("changes", "error", "sentence"), BAD, ids=[row[2][:40] for row in BAD])
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    given = arguments(made(4, 16, 256, PER_128, PER_128X128)) | changes
    with pytest.raises(error) as raised:
        deepseek_fast.fp8_scaled_mm(**given)
    assert str(raised.value) == f"fp8_scaled_mm: {sentence}"


def test_the_compiled_op_checks_what_it_is_given() -> None:
    """As torch.ops sees it: mat_b (N, K), a scale with one value a block, recipes as numbers."""
    call = made(4, 16, 256, PER_128, PER_128X128)
    good = {
        "mat_a": call["a"],
        "mat_b": call["b"],
        "scale_a": call["scale_a"],
        "scale_b": call["scale_b"],
        "scale_recipe_a": int(PER_128),
        "scale_recipe_b": int(PER_128X128),
        "output_dtype": torch.bfloat16,
    }
    op = torch.ops.deepseek_fast.fp8_scaled_mm
    assert_equal(op(**good), deepseek_fast.fp8_scaled_mm(**arguments(call)))
    torch.library.opcheck(op.default, (), good, test_utils=("test_autograd_registration", "test_faketensor"))
    huge = torch.zeros(1).to(E4M3).expand(2**45, 2**10)
    for changes, sentence in (
        ({"mat_a": torch.zeros(4, 256)}, "mat_a must be float8_e4m3fn or float8_e5m2; got dtype float32"),
        ({"mat_b": codes(16, 255)}, "mat_b must have 256 columns, as mat_a; got shape (16, 255)"),
        ({"mat_b": codes(16, 256)[0]}, "mat_b must have 2 dimensions; got shape (256,)"),
        ({"scale_a": torch.ones(4, 1)}, "scale_a must have shape (4, 2), one value a block; got shape (4, 1)"),
        ({"scale_b": torch.ones(1, 2).half()}, "scale_b must be float32 or float8_e8m0fnu; got dtype float16"),
        (
            {"scale_recipe_a": 3},
            "scale_recipe_a must be TensorWise, RowWise, BlockWise1x128 or BlockWise128x128; got 3",
        ),
        ({"output_dtype": torch.int8}, "output_dtype must be float32, bfloat16 or float16; got int8"),
        ({"bias": torch.zeros(16)}, "bias must have x's dtype bfloat16; got dtype float32"),
        (
            {"mat_a": huge, "mat_b": codes(3, 2**10), "scale_a": torch.ones(1, 1), "scale_recipe_a": int(TENSOR)}
            | {"scale_b": torch.ones(1, 1), "scale_recipe_b": int(TENSOR)},
            "mat_a must fit into memory as bfloat16, and its product with mat_b, too; got shape ",
        ),
    ):
        with pytest.raises(RuntimeError) as raised:
            op(**good | changes)
        assert f"fp8_scaled_mm: {sentence}" in str(raised.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Dynamo itself uses in torch 2.13
def test_compile_has_no_breaks() -> None:
    call = made(6, 130, 300, PER_128, PER_128X128)
    given = arguments(call)
    rest = {name: value for name, value in given.items() if name not in ("mat_a", "scale_a")}

    def block(mat_a: torch.Tensor, scale_a: torch.Tensor) -> torch.Tensor:
        return deepseek_fast.fp8_scaled_mm(mat_a=mat_a, scale_a=scale_a, **rest)

    want = block(given["mat_a"], given["scale_a"])
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_equal(compiled(given["mat_a"], given["scale_a"]), want)
    torch._dynamo.reset()


def test_it_says_that_it_has_no_gradient() -> None:
    given = arguments(made(4, 16, 256, ROW, ROW))
    given["scale_a"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"fp8_scaled_mm: mat_a must .*; got "):
        deepseek_fast.fp8_scaled_mm(**given).sum().backward()
