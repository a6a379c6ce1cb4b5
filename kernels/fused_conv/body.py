"""FusedConv and Pool2d in ONNX: the nodes, their schemas, and their bodies in plain ai.onnx operators.

    Y = pool(act(Conv(X, W, B) (+ R)) (+ R))       in float32, rounded once to X's type
    Y = the largest value or the mean of X's windows

The meaning is in cpu.h. X is (N, C, H, W) or, with x_layout "NHWC", (N, H, W, C); Y and R follow y_layout; W is always
(F, C / groups, R, S). In the bodies NHWC is a Transpose at either end, which ONNX Runtime cancels between neighbors.
The pool of a FusedConv is four attributes, as MaxPool takes them; a kernel and stride of 1 is no pool. Otherwise the
attributes are the arguments of the Python functions.

The bodies read all inputs, so a writer passes zeros for a B or R that is not there: B of shape (F,), R (1, 1, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import ACTIVATIONS, DOMAIN, DOMAIN_VERSION, MIN_16_BIT_OPSET, BodyWriter

if TYPE_CHECKING:
    import onnx

CONV, POOL = "FusedConv", "Pool2d"
INPUTS = {CONV: ("X", "W", "B", "R"), POOL: ("X",)}
FLOAT_TYPES = ["tensor(float)", "tensor(bfloat16)"]
POOLED_TYPES = [*FLOAT_TYPES, "tensor(uint8)", "tensor(int8)"]
PLANES, PIXELS = "NCHW", "NHWC"  # layouts
TO_PLANES, TO_PIXELS = (0, 3, 1, 2), (0, 2, 3, 1)  # Transpose's perm
INT, FLOATS, INTS = 2, 6, 7  # AttributeProto types
# The attributes and their defaults; padding is top, left, bottom, right.
DEFAULTS: dict[str, dict[str, Any]] = {
    CONV: {
        "stride": (1, 1),
        "padding": (0, 0, 0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "algorithm": "direct",
        "activation": "none",
        "activation_params": (),
        "residual_at": "before",
        "pool_kernel": (1, 1),
        "pool_stride": (1, 1),
        "pool_padding": (0, 0, 0, 0),
        "pool_ceil_mode": 0,
        "x_layout": PLANES,
        "y_layout": PLANES,
    },
    POOL: {
        "kind": "max",
        "kernel": (1, 1),
        "stride": (1, 1),
        "padding": (0, 0, 0, 0),
        "ceil_mode": 0,
        "count_include_pad": 1,
        "x_layout": PLANES,
        "y_layout": PLANES,
    },
}
CONV_ATTRIBUTES = {"strides": ("stride", INTS), "pads": ("padding", INTS), "dilations": ("dilation", INTS)}
POOL_ATTRIBUTES = {
    "kernel_shape": ("kernel", INTS),
    "strides": ("stride", INTS),
    "pads": ("padding", INTS),
    "ceil_mode": ("ceil_mode", INT),
}


def function_proto(opset: int, *, op_type: str = CONV) -> onnx.FunctionProto:
    """The body of FusedConv or Pool2d in the ai.onnx operators of `opset`, 13 to 25."""
    body = BodyWriter(opset)
    {CONV: _conv, POOL: _pool}[op_type](body)
    return body.function(op_type, INPUTS[op_type], list(DEFAULTS[op_type]))


def _conv(body: BodyWriter) -> None:
    attributes = CONV_ATTRIBUTES | {"group": ("groups", INT)}
    x, w, b = _in_planes(body, body.to_float("X"), "x_layout"), body.to_float("W"), body.to_float("B")
    z = body.referring("Conv", x, w, b, attributes=attributes)
    residual = _in_planes(body, body.to_float("R"), "y_layout")
    is_after = body.equals(body.attribute("residual_at"), "after")
    here = z
    z = body.choose(is_after, lambda: body.op("Identity", here), lambda: body.op("Add", here, residual))
    act = body.activation(z, CONV_ACTIVATIONS)
    z = body.choose(is_after, lambda: body.op("Add", act, residual), lambda: body.op("Identity", act))

    def pooled() -> str:
        renamed = {name: (f"pool_{referred}", kind) for name, (referred, kind) in POOL_ATTRIBUTES.items()}
        return body.referring("MaxPool", z, attributes=renamed)

    sizes = body.op("Concat", body.integers("pool_kernel"), body.integers("pool_stride"), axis=0)
    is_pooled = body.op("Greater", body.op("ReduceProd", sizes, keepdims=0), body.constant(1, "int64"))
    _finish(body, body.choose(is_pooled, pooled, lambda: body.op("Identity", z)))


def _pool(body: BodyWriter) -> None:
    x = _in_planes(body, body.to_float("X"), "x_layout")
    counts = {"count_include_pad": ("count_include_pad", INT)}

    def mean() -> str:
        return body.referring("AveragePool", x, attributes=POOL_ATTRIBUTES | counts)

    def largest() -> str:
        return body.referring("MaxPool", x, attributes=POOL_ATTRIBUTES)

    _finish(body, body.choose(body.equals(body.attribute("kind"), "average"), mean, largest))


def _in_planes(body: BodyWriter, value: str, layout: str) -> str:
    """value, which lies as the string attribute `layout` says, as (N, C, H, W)."""
    is_pixels = body.equals(body.attribute(layout), PIXELS)
    return body.choose(
        is_pixels, lambda: body.op("Transpose", value, perm=TO_PLANES), lambda: body.op("Identity", value)
    )


def _finish(body: BodyWriter, planes: str) -> None:
    """Y = the values as y_layout says, in X's type."""
    from onnx import TensorProto

    is_pixels = body.equals(body.attribute("y_layout"), PIXELS)
    y = body.choose(
        is_pixels, lambda: body.op("Transpose", planes, perm=TO_PIXELS), lambda: body.op("Identity", planes)
    )
    if body.opset >= MIN_16_BIT_OPSET:
        body.op("CastLike", y, "X", output="Y")
    else:
        body.op("Cast", y, output="Y", to=TensorProto.FLOAT)


def _parameter(body: BodyWriter, index: int) -> str:
    """One of activation_params, 0 where there are fewer: branches that are not taken are folded too."""
    padded = body.op("Concat", body.floats("activation_params"), body.constant([0.0, 0.0]), axis=0)
    return body.op("Gather", padded, body.constant(index, "int64"))


def _leaky_relu(body: BodyWriter, z: str) -> str:
    """Not LeakyRelu: onnx's reference gives that one no attribute of the calling node."""
    return body.op("PRelu", z, _parameter(body, 0))


def _clip(body: BodyWriter, z: str) -> str:
    return body.op("Clip", z, _parameter(body, 0), _parameter(body, 1))


def _hardsigmoid(body: BodyWriter, z: str) -> str:
    line = body.op("Add", body.op("Mul", z, _parameter(body, 0)), _parameter(body, 1))
    return body.op("Clip", line, body.constant(0.0), body.constant(1.0))


CONV_ACTIVATIONS: dict[str, Callable[[BodyWriter, str], str]] = {
    **ACTIVATIONS,
    "leaky_relu": _leaky_relu,
    "clip": _clip,
    "hardsigmoid": _hardsigmoid,
}


def conv_node(x: str, weight: str, bias: str, residual: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """A FusedConv node between named values; attributes: those of DEFAULTS that differ."""
    return _node(CONV, [x, weight, bias, residual], [y], attributes)


def pool_node(x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """A Pool2d node between named values; attributes: those of DEFAULTS that differ."""
    return _node(POOL, [x], [y], attributes)


def _node(op_type: str, inputs: list[str], outputs: list[str], attributes: Mapping[str, Any]) -> onnx.NodeProto:
    from onnx import helper

    values = DEFAULTS[op_type] | dict(attributes)
    params = values.pop("activation_params", None)
    node = helper.make_node(op_type, inputs, outputs, domain=DOMAIN, **values)
    if params is not None:  # an empty list tells make_attribute no type
        node.attribute.append(helper.make_attribute("activation_params", list(params), attr_type=FLOATS))
    return node


def schemas() -> list[onnx.defs.OpSchema]:
    """The operators' schemas, for tools that look operators up in onnx.defs."""
    from onnx import defs

    kinds, options = defs.OpSchema.AttrType, defs.OpSchema.FormalParameterOption
    attribute_kinds = {str: kinds.STRING, int: kinds.INT, tuple: kinds.INTS}
    docs = {CONV: "Y = pool(activation(Conv(X, W, B) + R))", POOL: "Y = the largest or mean of X's windows"}
    types = {CONV: FLOAT_TYPES, POOL: POOLED_TYPES}
    return [
        defs.OpSchema(
            op_type,
            DOMAIN,
            DOMAIN_VERSION,
            doc=docs[op_type],
            inputs=[
                defs.OpSchema.FormalParameter(
                    name, "T", param_option=options.Optional if name in ("B", "R") else options.Single
                )
                for name in INPUTS[op_type]
            ],
            outputs=[defs.OpSchema.FormalParameter("Y", "T")],
            type_constraints=[("T", types[op_type], "one type for all")],
            attributes=[
                defs.OpSchema.Attribute(
                    name, kinds.FLOATS if name == "activation_params" else attribute_kinds[type(value)], required=False
                )
                for name, value in DEFAULTS[op_type].items()
            ],
        )
        for op_type in INPUTS
    ]
