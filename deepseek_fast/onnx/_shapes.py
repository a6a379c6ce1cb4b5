"""Shapes of values, as far as they are known before a run."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def infer_shapes(model: ir.Model) -> None:
    """Fills in shapes and types that are missing; what the model states stays as stated."""
    from onnx_ir.passes.common import ShapeInferencePass

    stated = {
        value: (value.shape, value.type)
        for graph in model.graphs()
        for value in (*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs))
    }
    if all(_is_complete(shape) for shape, _ in stated.values()):
        return
    logger = logging.getLogger("onnx_ir.passes.common")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # where onnx cannot infer, the rules refuse with their own sentence
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.setLevel(level)
    for value, (shape, kind) in stated.items():
        value.shape = _completed(shape, value.shape)
        if kind is not None:
            value.type = kind


def _is_complete(shape: ir.Shape | None) -> bool:
    return shape is not None and not shape.has_unknown_dim()


def _completed(stated: ir.Shape | None, inferred: ir.Shape | None) -> ir.Shape | None:
    """The stated sizes and names, and where they leave one open, the inferred."""
    import onnx_ir as ir

    if stated is None or inferred is None or stated.rank() != inferred.rank():
        return inferred if stated is None else stated
    pairs = zip(stated, inferred, strict=True)
    return ir.Shape([b if stated.is_unknown_dim(i) else a for i, (a, b) in enumerate(pairs)])


def surely_equal(a: ir.Shape | None, b: ir.Shape | None) -> bool:
    """Whether two shapes are the same in every run: equal sizes, or equal names of unknown sizes."""
    if a is None or b is None or a.rank() != b.rank():
        return False
    return all(surely_equal_dim(x, y) for x, y in zip(a, b, strict=True))


def surely_equal_dim(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    return a.value is not None and a.value == b.value


def known_size(value: ir.Value) -> int:
    """The product of what is known of its shape."""
    return math.prod(size for size in value.shape or () if isinstance(size, int)) or 1


def shape_text(shape: ir.Shape | None) -> str:
    if shape is None:
        return "an unknown shape"
    dims = [str(d) if isinstance(d, int) else str(d.value or "?") for d in shape]
    return f"shape ({', '.join(dims)}{',' if len(dims) == 1 else ''})"
