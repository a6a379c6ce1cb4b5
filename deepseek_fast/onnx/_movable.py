"""Nodes of ai.onnx that can do their work in NHWC as well, and how each is told to.

A Movable says which inputs and outputs of a node, or of the few nodes of a pattern, follow one layout, all of them (N,
C, H, W) now; `move` turns attributes and constants, after which those values are (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._body import REDUCE_AXES_INPUT_OPSET
from deepseek_fast.onnx._rewriter import number
from deepseek_fast.onnx._shapes import surely_equal_dim

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

RANK = 4
TO_PIXELS, TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)  # Transpose's perm
AXIS_IN_PIXELS = {0: 0, 1: 3, 2: 1, 3: 2}
ELEMENTWISE = (
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu"),
    *("Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu"),
)
BY_SCALE = ("DequantizeLinear", "QuantizeLinear")  # elementwise where there is one scale
SPATIAL_AXES = (2, 3)


@dataclass(frozen=True)
class Movable:
    """inputs: (node, place) of each input that follows; outputs: the values that do."""

    inputs: list[tuple[ir.Node, int]]
    outputs: list[ir.Value]
    move: Callable[[], None] = field(repr=False)


def movable(node: ir.Node, rewriter: Rewriter) -> Movable | None:
    """How `node`, or the pattern of which it is the first, moves; None where it cannot."""
    if node.domain or node.graph is not rewriter.graph:
        return None
    if node.op_type in (*ELEMENTWISE, *BY_SCALE):
        return _elementwise(node, rewriter)
    if node.op_type in ("Concat", "Split"):
        return _along_axis(node, rewriter)
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        return _global_pool(node, rewriter)
    if node.op_type in ("ReduceMean", "ReduceMax"):
        return _reduce(node, rewriter)
    return _shuffle(node, rewriter) if node.op_type == "Reshape" else None


def has_rank_4(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and value.shape.rank() == RANK


def _elementwise(node: ir.Node, rewriter: Rewriter) -> Movable | None:
    """Its constants turn with the rest; numbers of rank 0 need not."""
    inputs, constants = [], []
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        array = rewriter.constants.array(value)
        if array is not None:
            constants.append((i, value, array))
        elif has_rank_4(value):
            inputs.append((node, i))
        elif value.shape is None or value.shape.rank() != 0:
            return None
    if not inputs or not has_rank_4(node.outputs[0]) or any(array.ndim > RANK for _, _, array in constants):
        return None
    if node.op_type in BY_SCALE and any(array.size > 1 for _, _, array in constants):
        return None

    def move() -> None:
        for i, value, array in constants:
            if array.size > 1:
                node.replace_input_with(i, in_pixels(value, array, rewriter))

    return Movable(inputs, [node.outputs[0]], move)


def in_pixels(value: ir.Value, array: np.ndarray, rewriter: Rewriter) -> ir.Value:
    """An initializer of the constant, turned to (N, H, W, C)."""
    import numpy as np

    planes = array.reshape((1,) * (RANK - array.ndim) + array.shape)
    return rewriter.initializer(f"{value.name}_nhwc", np.ascontiguousarray(planes.transpose(TO_PIXELS)))


def _along_axis(node: ir.Node, rewriter: Rewriter) -> Movable | None:
    """Concat, and Split, of any axis."""
    default = None if node.op_type == "Concat" else 0
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    values = [*(node.inputs if node.op_type == "Concat" else node.inputs[:1]), *node.outputs]
    constant = any(rewriter.constants.array(value) is not None for value in values)
    if axis is None or constant or not all(has_rank_4(value) for value in values):
        return None

    def move() -> None:
        _set(node, "axis", AXIS_IN_PIXELS[axis % RANK])

    count = len(values) - len(node.outputs)
    return Movable([(node, i) for i in range(count)], list(node.outputs), move)


def _global_pool(node: ir.Node, rewriter: Rewriter) -> Movable | None:
    if not all(has_rank_4(value) for value in (node.inputs[0], node.outputs[0])):
        return None

    def move() -> None:
        node.op_type = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
        _set(node, "keepdims", 1)
        _set_axes(node, rewriter)

    return Movable([(node, 0)], [node.outputs[0]], move)


def _reduce(node: ir.Node, rewriter: Rewriter) -> Movable | None:
    """Of the rows and columns, to 1."""
    axes = tuple(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
    if len(node.inputs) > 1:
        array = rewriter.constants.array(node.inputs[1])
        axes = None if array is None else tuple(int(axis) for axis in array.reshape(-1))
    if axes is None or not all(has_rank_4(value) for value in (node.inputs[0], node.outputs[0])):
        return None
    if sorted(axis % RANK for axis in axes) != list(SPATIAL_AXES) or number(node, "keepdims", 1) != 1:
        return None
    return Movable([(node, 0)], [node.outputs[0]], lambda: _set_axes(node, rewriter))


def _set_axes(node: ir.Node, rewriter: Rewriter) -> None:
    """A reduction of rows and columns in (N, H, W, C)."""
    import numpy as np

    axes = tuple(AXIS_IN_PIXELS[axis] for axis in SPATIAL_AXES)
    if rewriter.opset < REDUCE_AXES_INPUT_OPSET:
        return _set(node, "axes", axes)
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    node.replace_input_with(1, rewriter.initializer("rows_and_columns", np.array(axes, np.int64)))


def _shuffle(first: ir.Node, rewriter: Rewriter) -> Movable | None:
    """Channels of all groups taken in turn: Reshape to (N, G, C / G, H, W), Transpose, Reshape to (N, C, H, W)."""
    if not _is_only_read(first.outputs[0]):
        return None
    transpose = next(iter(first.outputs[0].uses())).node
    if transpose.op_type != "Transpose" or transpose.domain or not _is_only_read(transpose.outputs[0]):
        return None
    perm = transpose.attributes.get("perm")
    last = next(iter(transpose.outputs[0].uses())).node
    x, apart, y = first.inputs[0], first.outputs[0], last.outputs[0]
    if perm is None or tuple(perm.as_ints()) != (0, 2, 1, 3, 4) or last.op_type != "Reshape" or last.domain:
        return None
    if x is None or x.shape is None or apart.shape is None or not has_rank_4(x) or apart.shape.rank() != RANK + 1:
        return None
    groups, in_group = apart.shape[1], apart.shape[2]
    if not (isinstance(groups, int) and isinstance(in_group, int)):
        return None
    joined = [apart.shape[0], groups * in_group, apart.shape[3], apart.shape[4]]
    if y.shape is None or not _are_same(x.shape, joined) or not _are_same(x.shape, y.shape):
        return None

    def move() -> None:
        import numpy as np
        import onnx_ir as ir

        # Of Reshape 0 is the size that x has there.
        apart_sizes, sizes = np.array([0, 0, 0, groups, in_group]), np.array([0, 0, 0, groups * in_group])
        first.replace_input_with(1, rewriter.initializer("shuffle_apart", apart_sizes.astype(np.int64)))
        last.replace_input_with(1, rewriter.initializer("shuffle_joined", sizes.astype(np.int64)))
        for node in (first, last):
            node.attributes.pop("allowzero", None)
        _set(transpose, "perm", (0, 1, 2, 4, 3))
        n, _, h, w = x.shape  # type: ignore[misc, union-attr]
        first.outputs[0].shape = ir.Shape([n, h, w, groups, in_group])
        transpose.outputs[0].shape = ir.Shape([n, h, w, in_group, groups])

    return Movable([(first, 0)], [y], move)


def _are_same(given: Iterable[int | ir.SymbolicDim], other: Iterable[int | ir.SymbolicDim]) -> bool:
    """Whether two shapes of as many values are equal: the first size follows where all others are known."""
    a, b = list(given), list(other)
    if len(a) != len(b) or not all(surely_equal_dim(x, y) for x, y in zip(a[1:], b[1:], strict=True)):
        return False
    return surely_equal_dim(a[0], b[0]) or all(isinstance(size, int) and size > 0 for size in a[1:])


def _is_only_read(value: ir.Value) -> bool:
    return not value.is_graph_output() and len(list(value.uses())) == 1


def _set(node: ir.Node, name: str, value: int | tuple[int, ...]) -> None:
    import onnx_ir as ir

    node.attributes[name] = ir.convenience.convert_attribute(name, value)


def ours(node: ir.Node, rewriter: Rewriter) -> list[tuple[str, list[tuple[ir.Node, int]], list[ir.Value]]]:
    """The two independent sides of a node of ours: the attribute that names its layout, inputs and outputs."""
    after, residual = [], _convs.RESIDUAL_INPUTS.get(node.op_type)
    if residual is not None and rewriter.constants.array(node.inputs[residual]) is None:
        after.append((node, residual))
    return [("x_layout", [(node, _convs.X)], []), ("y_layout", after, [node.outputs[0]])]
