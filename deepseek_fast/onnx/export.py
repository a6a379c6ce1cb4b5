"""export: torch.onnx.export, with the library's torch operators as nodes that carry their bodies."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx import _attention_nodes, _casts, _conv_export, _indexer, _io, _mla
from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, MAX_OPSET, MIN_OPSET
from deepseek_fast.onnx._runtime import one_line

if TYPE_CHECKING:
    import onnx
    import torch

BUILD_OPSET = 18  # the exporter writes this and later ones itself, and converts to earlier ones where it can
DEFAULT_OPSET = 23  # the first with an Attention operator
REGISTRATION_LOGGER = "torch.onnx._internal.exporter._registration"  # says that torchvision is absent


def export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """The module as an ONNX model; deepseek_fast's operators become nodes of their names, FusedMatmul, with bodies.

    model: a torch module, usually in eval mode.
    args: the positional example inputs, a tuple.
    path: where to write it as well (beside, then renamed); None: nowhere.
    dynamic_shapes, input_names, output_names: as torch.onnx.export takes them.
    opset: the ai.onnx opset, 13 to 25; below 18 the exporter converts what it can, Fp8Matmul needs 19,
        BlockSparseAttention 15, Int4Matmul 14.

    Returns the onnx.ModelProto. Raises TypeError or ValueError for a wrong argument, RuntimeError where the exporter
    did not reach the opset, and whatever torch.onnx.export raises where it cannot export the module.

        model = export(module, (torch.zeros(2, 16),), "model.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},))
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"export: model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"export: args must be a tuple of example inputs; got {type(args).__name__}")
    if isinstance(opset, bool) or not isinstance(opset, int) or not MIN_OPSET <= opset <= MAX_OPSET:
        raise ValueError(f"export: opset must be from {MIN_OPSET} to {MAX_OPSET}; got {opset!r}")
    target = _io.check_output(path, "export", "path") if path is not None else None
    rule = "export: opset must be one that torch.onnx.export reaches for this module"
    with _without_registration_warnings(), _float_scales(model), _knows_e8m0():
        try:
            program: Any = torch.onnx.export(
                model,
                args,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                custom_translation_table=_translations(),
                verbose=False,
            )
        except ValueError as error:
            if opset >= BUILD_OPSET:
                raise
            raise RuntimeError(f"{rule}; got {opset} ({one_line(error)})") from error
    reached = program.model.opset_imports.get("")
    if reached != opset:
        raise RuntimeError(f"{rule}; got {opset}, and it stayed at {reached}")
    return _with_bodies(program.model, target)


def _with_bodies(model: Any, target: Any) -> onnx.ModelProto:
    import onnx_ir as ir

    from deepseek_fast.onnx._attach import attach_bodies, complete_nodes
    from deepseek_fast.onnx._rewriter import Rewriter

    rewriter = Rewriter(model)
    complete_nodes(rewriter)
    attach_bodies(rewriter, "export: opset must be one")
    if target is not None:
        _io.write_model(model, target, "export", "path")
    return ir.to_proto(model)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes our torch operators; empty where the torch library does not load."""
    import torch

    from deepseek_fast._load import load_torch

    with contextlib.suppress(RuntimeError, OSError, ImportError):  # a module without our operators exports all the same
        load_torch()
    namespace = torch.ops.deepseek_fast
    if not hasattr(namespace, "fused_matmul"):
        return {}
    _register_schemas()
    return {
        namespace.fused_matmul.default: _fused_matmul,
        namespace.fp8_matmul.default: _fp8_matmul,
        namespace.int4_matmul.default: _int4_matmul,
        namespace.int8_matmul.default: _int8_matmul,
        **_attention_nodes.translations(namespace),
        **_casts.translations(namespace),
        **_conv_export.translations(namespace),
        **_indexer.translations(namespace),
        **_mla.translations(namespace),
    }


def _register_schemas() -> None:
    """onnxscript looks an operator's attributes up in onnx.defs."""
    from onnx import defs

    from deepseek_fast.kernels.block_sparse_attention import body as attention
    from deepseek_fast.kernels.fp8_cast import body as fp8_cast
    from deepseek_fast.kernels.fp8_matmul import body as fp8_matmul
    from deepseek_fast.kernels.fused_conv import body as fused_conv
    from deepseek_fast.kernels.fused_matmul import body as fused_matmul
    from deepseek_fast.kernels.int4_matmul import body as int4_matmul
    from deepseek_fast.kernels.int8_matmul import body as int8_matmul
    from deepseek_fast.kernels.lightning_indexer import body as lightning_indexer
    from deepseek_fast.kernels.sparse_mla import body as sparse_mla

    rooms = (fp8_matmul, fused_matmul, int4_matmul, int8_matmul)
    of_several = (attention, fp8_cast, fused_conv, lightning_indexer, sparse_mla)
    for schema in (*(room.schema() for room in rooms), *(schema for room in of_several for schema in room.schemas())):
        if not defs.has(schema.name, domain=DOMAIN):
            defs.register_schema(schema)


def _fused_matmul(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str = "none",
    residual: Any = None,
    gated: bool = False,
) -> Any:
    from onnxscript import values

    ours = values.Opset(DOMAIN, DOMAIN_VERSION)
    return ours.FusedMatmul(x, weight, bias, _residual(residual), activation=activation, gated=int(gated))


def _fp8_matmul(
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any = None,
    *,
    block_n: int = 128,
    block_k: int = 128,
    activation: str = "none",
    residual: Any = None,
    activations: str = "float",
    gated: bool = False,
) -> Any:
    from onnxscript import values

    ours = values.Opset(DOMAIN, DOMAIN_VERSION)
    return ours.Fp8Matmul(
        x,
        weight,
        scale,
        bias,
        _residual(residual),
        activation=activation,
        activations=activations,
        block=[block_n, block_k],
        gated=int(gated),
    )


def _int4_matmul(
    x: Any,
    q: Any,
    scale: Any,
    zeros: Any = None,
    bias: Any = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Any = None,
    compute: str = "int8",
    gated: bool = False,
) -> Any:
    from onnxscript import values

    ours = values.Opset(DOMAIN, DOMAIN_VERSION)
    return ours.Int4Matmul(
        x,
        q,
        scale,
        zeros,
        bias,
        _residual(residual),
        activation=activation,
        compute=compute,
        group_size=group_size,
        in_features=in_features,
        gated=int(gated),
    )


def _int8_matmul(
    x: Any,
    q: Any,
    scale: Any,
    bias: Any = None,
    *,
    activation: str = "none",
    residual: Any = None,
    activations: str = "int8",
    gated: bool = False,
) -> Any:
    from onnxscript import values

    ours = values.Opset(DOMAIN, DOMAIN_VERSION)
    return ours.Int8Matmul(
        x,
        q,
        scale,
        bias,
        _residual(residual),
        activation=activation,
        activations=activations,
        gated=int(gated),
    )


def _residual(residual: Any) -> Any:
    """A one-element residual as shape (1,), so that in the body it raises no rank."""
    from onnxscript import opset18

    standard: Any = opset18

    if residual is None or residual.shape is None or any(dim != 1 for dim in residual.shape):
        return residual
    return standard.Reshape(residual, standard.Constant(value_ints=[1]))


@contextlib.contextmanager
def _float_scales(model: torch.nn.Module) -> Iterator[None]:
    """Buffers of float8_e8m0fnu are float32 inside: the exporter of torch 2.13 does not know the former."""
    import torch

    scales = [
        (module._buffers, name, value)
        for module in model.modules()
        for name, value in module._buffers.items()
        if value is not None and value.dtype == torch.float8_e8m0fnu
    ]
    try:
        for owner, name, value in scales:
            owner[name] = value.float()
        yield
    finally:
        for owner, name, value in scales:
            owner[name] = value


@contextlib.contextmanager
def _knows_e8m0() -> Iterator[None]:
    """The scales that a module computes as float8_e8m0fnu have a type: the table of torch 2.13's exporter lacks it.

    TODO: goes when the lowest torch that we export with has the entry.
    """
    import onnx_ir as ir
    import torch
    from torch.onnx._internal.exporter import _core

    table: dict[torch.dtype, ir.DataType] = getattr(_core, "_TORCH_DTYPE_TO_ONNX", {})
    missing = torch.float8_e8m0fnu not in table
    try:
        if missing:
            table[torch.float8_e8m0fnu] = ir.DataType.FLOAT8E8M0
        yield
    finally:
        if missing:
            table.pop(torch.float8_e8m0fnu, None)


@contextlib.contextmanager
def _without_registration_warnings() -> Iterator[None]:
    logger = logging.getLogger(REGISTRATION_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
