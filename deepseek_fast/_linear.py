"""What the torch side of the linear rooms shares: the checks, as csrc/gemm/linear.cc writes them, and the call.

The compiled operators check every call themselves, but from C++ only RuntimeError is portable. These twins run where
no compiled kernel does (Meta kernels), and after a compiled check has failed, to raise its sentence with its type.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from deepseek_fast._activations import ACTIVATIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of x, y and of weights that are not quantized
BE_FLOAT = "be float32, bfloat16 or float16"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_error(op: str, arg: str, rule: str, tensor: Tensor) -> NoReturn:
    raise ValueError(f"{op}: {arg} must {rule}; got shape {tuple(tensor.shape)}")


def dtype_error(op: str, arg: str, rule: str, tensor: Tensor) -> NoReturn:
    raise TypeError(f"{op}: {arg} must {rule}; got dtype {dtype_name(tensor.dtype)}")


def check_choice(op: str, arg: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {arg} must be one of {', '.join(choices)}; got {value!r}")


def check_tensors(op: str, **tensors: Any) -> None:
    """None passes; the compiled check refuses it where it may not be."""
    for arg, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {arg} must be a tensor; got {type(tensor).__name__}")


def check_float(op: str, arg: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        dtype_error(op, arg, BE_FLOAT, tensor)


def check_x(op: str, x: Tensor) -> None:
    if x is None:
        raise TypeError(f"{op}: x must be a tensor; got NoneType")
    check_float(op, "x", x)
    if x.dim() < 1:
        shape_error(op, "x", "have at least 1 dimension", x)


def check_matrix(op: str, arg: str, matrix: Tensor, columns: Any) -> None:
    if matrix.dim() != 2:
        shape_error(op, arg, "have 2 dimensions", matrix)
    if matrix.shape[1] != columns:
        shape_error(op, arg, f"have {columns} columns, as x's last dimension", matrix)


def out_features_of(rows: Any, gated: bool) -> Any:
    """Columns of the output, from the rows of the weight."""
    return rows // 2 if gated else rows


def check_gated(op: str, arg: str, matrix: Tensor, gated: bool) -> None:
    if gated and matrix.shape[0] % 2:
        shape_error(op, arg, "have an even number of rows where gated", matrix)


def padded_rows(rows: Any, gated: bool) -> Any:
    """Rows of a packed weight, as csrc/gemm/packed.h lays it out: whole panels of 64, in each half of a gated one."""
    return 2 * padded_rows(rows // 2, False) if gated else (rows + 63) // 64 * 64


def check_rest(
    op: str,
    x: Tensor,
    out_features: Any,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    gated: bool = False,
) -> None:
    """Bias, residual and activation, in the compiled check's order."""
    rows = 2 * out_features if gated else out_features
    same_dtype = f"have x's dtype {dtype_name(x.dtype)}"
    if bias is not None:
        if bias.dtype != x.dtype:
            dtype_error(op, "bias", same_dtype, bias)
        if bias.dim() != 1 or bias.shape[0] != rows:
            shape_error(op, "bias", f"have shape ({rows},)", bias)
    if residual is not None:
        if residual.dtype != x.dtype:
            dtype_error(op, "residual", same_dtype, residual)
        output = (*x.shape[:-1], out_features)
        if tuple(residual.shape) != output and any(size != 1 for size in residual.shape):
            shape_error(op, "residual", f"have the output's shape {output} or one element", residual)
    check_choice(op, "activation", activation, ACTIVATIONS)


def new_output(x: Tensor, out_features: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def autocast_device(x: Any) -> str:
    """Whose autocast x is under: that of a GPU, or the CPU's."""
    return "cuda" if isinstance(x, Tensor) and x.device.type == "cuda" else "cpu"


def autocast(value: Any, dtypes: tuple[torch.dtype, ...] = DTYPES, device: str = "cpu") -> Any:
    """value as autocast on the device has it: a tensor of float32, bfloat16 or float16 in autocast's dtype.

    Where that is none of dtypes it becomes float32.
    """
    is_float = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device)
    return value.to(dtype if dtype in dtypes else torch.float32) if is_float else value


def register_autocast(name: str, keep: tuple[str, ...] = (), dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """Under autocast the op runs in autocast's dtype, where that is one of dtypes, but for what is in keep.

    By hand, because torch.library.register_autocast takes no keyword-only arguments (torch 2.13).
    """
    op = getattr(torch.ops.deepseek_fast, name).default
    args = [arg.name for arg in op._schema.arguments]

    def run(device: str, *values: Any, **named: Any) -> Any:
        def cast(arg: str, value: Any) -> Any:
            return value if arg in keep else autocast(value, dtypes, device)

        in_order = [cast(arg, value) for arg, value in zip(args, values, strict=False)]
        by_name = {arg: cast(arg, value) for arg, value in named.items()}
        with torch.autocast(device, enabled=False):
            return op(*in_order, **by_name)

    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _LIBRARY.impl(name, functools.partial(run, device), key)


_LIBRARY = torch.library.Library("deepseek_fast", "IMPL")


def needs_grad(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(getattr(tensor, "requires_grad", False) for tensor in tensors)


def without_gradient(op: Any, options: dict[str, Any], *tensors: Tensor | None, name: str, arg: str = "x") -> Any:
    """op(*tensors, **options), part of autograd's graph, so that a backward pass through any of them is refused."""
    return _WithoutGradient.apply(op, name, arg, options, options.get("residual"), *tensors)  # type: ignore[no-untyped-call]


class _WithoutGradient(torch.autograd.Function):
    """Lets inference run without torch.no_grad(), and says on a backward pass why there is none."""

    @staticmethod
    def forward(ctx: Any, op: Any, name: str, arg: str, options: Any, residual: Any, *tensors: Tensor | None) -> Any:
        ctx.name, ctx.arg = name, arg
        return op(*tensors, **options)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rule = "must be used without a backward pass; got one, and the op has no gradient"
        raise RuntimeError(f"{ctx.name}: {ctx.arg} {rule}")


def call(op: Any, check: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
    """op(...), with a failed check as ValueError or TypeError."""
    if torch.compiler.is_compiling():
        return op(*args, **kwargs)
    try:
        return op(*args, **kwargs)
    except RuntimeError as error:
        check(*args, **kwargs)
        if " must " in str(error) and "; got " in str(error):  # a rule that only the compiled check knows
            raise ValueError(str(error)) from None
        raise
