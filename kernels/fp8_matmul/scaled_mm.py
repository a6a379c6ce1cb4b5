"""fp8_scaled_mm: torch.nn.functional.scaled_mm on the CPU, in its block-wise, row-wise and tensor-wise forms."""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from deepseek_fast import _linear
from deepseek_fast.kernels.fp8_matmul import op as fp8_matmul_op

_OP = torch.ops.deepseek_fast.fp8_scaled_mm.default
OP = "fp8_scaled_mm"
BLOCK_OF_RECIPE = {
    ScalingType.TensorWise: (-1, -1),
    ScalingType.RowWise: (1, -1),
    ScalingType.BlockWise1x128: (1, 128),
    ScalingType.BlockWise128x128: (128, 128),
}
NUMBER_OF_RECIPE = {recipe: recipe.value for recipe in BLOCK_OF_RECIPE}
L4 = 4  # cuBLASLt wants the scales of 128x128 blocks in a multiple of so many rows; those past K are not read


def fp8_scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a: Tensor | list[Tensor],
    scale_recipe_a: Any,
    scale_b: Tensor | list[Tensor],
    scale_recipe_b: Any,
    swizzle_a: Any = None,
    swizzle_b: Any = None,
    bias: Tensor | None = None,
    output_dtype: torch.dtype | None = torch.bfloat16,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """(mat_a * scale_a) @ (mat_b * scale_b) + bias, with the arguments of torch.nn.functional.scaled_mm.

    mat_a: (M, K), mat_b: (K, N), float8_e4m3fn or float8_e5m2 each, any strides; fastest where mat_b is a transposed
    (N, K), which is read once; any other is copied first.
    scale_recipe_a, scale_recipe_b: any two of torch.nn.functional.ScalingType's
      TensorWise        one value
      RowWise           scale_a: (M, 1), scale_b: (1, N)
      BlockWise1x128    scale_a: (M, ceil(K / 128)), scale_b: (N, ceil(K / 128))
      BlockWise128x128  scale_a: (ceil(K / 128), ceil(M / 128)), scale_b: (ceil(K / 128), ceil(N / 128)), the first of
                        them perhaps rounded up to a multiple of 4, as cuBLASLt wants it
    in float32, each perhaps in a list of one, of any strides. scale_a may hold any number, scale_b only finite ones
    above zero. swizzle_a, swizzle_b: none. bias: (N,) bfloat16 or of output_dtype. output_dtype: bfloat16, float16 or
    float32.
    contraction_dim: (), or the dimensions of K: 1 or -1 of mat_a, 0 or -2 of mat_b. use_fast_accum: no difference.
    Returns (M, N) of output_dtype; has no gradient.
    Raises ValueError for shapes, recipes and values, TypeError for dtypes.
    Numerics: as fp8_matmul with activations="fp8".

    >>> a, b = (torch.randn(rows, 384).to(torch.float8_e4m3fn) for rows in (5, 256))
    >>> recipes = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
    >>> deepseek_fast.fp8_scaled_mm(a, b.t(), torch.ones(5, 3), recipes[0], torch.ones(3, 2), recipes[1]).shape
    torch.Size([5, 256])

    Source: torch.nn.functional.scaled_mm (torch 2.13).
    """
    _linear.check_tensors(OP, mat_a=mat_a, mat_b=mat_b, bias=bias)
    _check_matrices(mat_a, mat_b)
    for arg, swizzle in (("swizzle_a", swizzle_a), ("swizzle_b", swizzle_b)):
        if _only(arg, swizzle) not in (None, SwizzleType.NO_SWIZZLE):
            raise ValueError(f"{OP}: {arg} must be none or NO_SWIZZLE; got {_only(arg, swizzle).name}")
    a = _Scale.checked("a", scale_a, scale_recipe_a, mat_a)
    b = _Scale.checked("b", scale_b, scale_recipe_b, mat_b.t())
    if output_dtype not in _linear.DTYPES:
        raise TypeError(f"{OP}: output_dtype must {_linear.BE_FLOAT}; got {_dtype_text(output_dtype)}")
    _check_contraction(contraction_dim)
    if bias is not None:
        bias = _bias(bias, output_dtype)
    options = {
        "scale_recipe_a": NUMBER_OF_RECIPE[a.recipe],
        "scale_recipe_b": NUMBER_OF_RECIPE[b.recipe],
        "output_dtype": output_dtype,
    }
    tensors = mat_a, mat_b.t(), a.values, b.values, bias
    if _linear.needs_grad(a.values, b.values, bias):
        check(*tensors, **options)  # type: ignore[arg-type]
        return _linear.without_gradient(_OP, options, *tensors, name=OP, arg="mat_a")  # type: ignore[no-any-return]
    return _linear.call(_OP, check, *tensors, **options)  # type: ignore[no-any-return]


class _Scale(NamedTuple):
    """A scale with one value a block, (rows / block, K / block), and its recipe."""

    values: Tensor
    recipe: Any

    @classmethod
    def checked(cls, side: str, scale: Any, recipe: Any, matrix: Tensor) -> "_Scale":
        """From torch's layout of it; matrix is (rows, K)."""
        arg, rows, K = f"scale_{side}", matrix.shape[0], matrix.shape[1]
        recipe = _only(f"scale_recipe_{side}", recipe)
        if recipe not in BLOCK_OF_RECIPE:
            _recipe_error(f"scale_recipe_{side}", getattr(recipe, "name", repr(recipe)))
        scale = _only(arg, scale)
        if not isinstance(scale, Tensor):
            raise TypeError(f"{OP}: {arg} must be a tensor; got {type(scale).__name__}")
        if scale.dtype != torch.float32:
            _linear.dtype_error(OP, arg, "be float32", scale)
        if recipe == ScalingType.TensorWise:
            if scale.numel() != 1:
                _linear.shape_error(OP, arg, "have one element", scale)
            return cls(scale.reshape(1, 1), recipe)
        num_rows, num_columns = (
            fp8_matmul_op.num_blocks(*of) for of in zip((rows, K), BLOCK_OF_RECIPE[recipe], strict=True)
        )
        if recipe == ScalingType.BlockWise128x128:
            padded = -(-num_columns // L4) * L4
            if tuple(scale.shape) not in ((num_columns, num_rows), (padded, num_rows)):
                rule = f"have shape ({num_columns}, {num_rows}), or {padded} rows"
                _linear.shape_error(OP, arg, rule, scale)
            return cls(scale[:num_columns].t(), recipe)
        turned = recipe == ScalingType.RowWise and side == "b"
        shape = (num_columns, num_rows) if turned else (num_rows, num_columns)
        if tuple(scale.shape) != shape:
            _linear.shape_error(OP, arg, f"have shape {shape}", scale)
        return cls(scale.t() if turned else scale, recipe)


def _recipe_error(arg: str, got: Any) -> NoReturn:
    known = "TensorWise, RowWise, BlockWise1x128 or BlockWise128x128"
    raise ValueError(f"{OP}: {arg} must be {known}; got {got}")


def _block_of(arg: str, number: int) -> tuple[int, int]:
    for recipe, block in BLOCK_OF_RECIPE.items():
        if NUMBER_OF_RECIPE[recipe] == number:
            return block
    _recipe_error(arg, number)


def _only(arg: str, value: Any) -> Any:
    """torch takes each of these as one value or in a list."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != 1:
        raise ValueError(f"{OP}: {arg} must be one; got {len(value)}")
    return value[0]


def _dtype_text(dtype: Any) -> str:
    return _linear.dtype_name(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)


def _check_matrices(mat_a: Tensor, mat_b: Tensor) -> None:
    for arg, matrix in (("mat_a", mat_a), ("mat_b", mat_b)):
        if matrix is None:
            raise TypeError(f"{OP}: {arg} must be a tensor; got NoneType")
        if matrix.dtype not in fp8_matmul_op.WEIGHT_DTYPES:
            _linear.dtype_error(OP, arg, "be float8_e4m3fn or float8_e5m2", matrix)
        if matrix.dim() != 2:
            _linear.shape_error(OP, arg, "have 2 dimensions", matrix)
    if mat_b.shape[0] != mat_a.shape[1]:
        _linear.shape_error(OP, "mat_b", f"have {mat_a.shape[1]} rows, as mat_a has columns", mat_b)


def _bias(bias: Tensor, output_dtype: torch.dtype | None) -> Tensor:
    if bias.dtype == torch.bfloat16:
        return bias.to(output_dtype)
    if bias.dtype != output_dtype:
        either = "" if output_dtype == torch.bfloat16 else "bfloat16 or "
        _linear.dtype_error(OP, "bias", f"be {either}{_dtype_text(output_dtype)}, as output_dtype", bias)
    return bias


def _check_contraction(contraction_dim: Any) -> None:
    dims = tuple(contraction_dim)
    if dims and not (len(dims) == 2 and dims[0] in (1, -1) and dims[1] in (0, -2)):
        raise ValueError(f"{OP}: contraction_dim must be (1, 0), the dimensions of K; got {dims}")


def check(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    *,
    scale_recipe_a: int,
    scale_recipe_b: int,
    output_dtype: torch.dtype,
) -> None:
    """The twin of the compiled check: mat_b is (N, K), scales have one value a block."""
    block_a, block_b = _block_of("scale_recipe_a", scale_recipe_a), _block_of("scale_recipe_b", scale_recipe_b)
    (M, K), N = mat_a.shape, mat_b.shape[0]
    fp8_matmul_op.check_scale(OP, "scale_a", scale_a, M, K, block_a)
    fp8_matmul_op.check_scale(OP, "scale_b", scale_b, N, K, block_b)
    if bias is not None:
        if bias.dtype != output_dtype:
            _linear.dtype_error(OP, "bias", f"have x's dtype {_linear.dtype_name(output_dtype)}", bias)
        if bias.dim() != 1 or bias.shape[0] != N:
            _linear.shape_error(OP, "bias", f"have shape ({N},)", bias)


@torch.library.register_fake("deepseek_fast::fp8_scaled_mm")
def _(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    *,
    scale_recipe_a: int,
    scale_recipe_b: int,
    output_dtype: torch.dtype,
) -> Tensor:
    options: dict[str, Any] = {"scale_recipe_a": scale_recipe_a, "scale_recipe_b": scale_recipe_b}
    check(mat_a, mat_b, scale_a, scale_b, bias, output_dtype=output_dtype, **options)
    return mat_a.new_empty((mat_a.shape[0], mat_b.shape[0]), dtype=output_dtype)
