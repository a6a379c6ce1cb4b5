"""FusedConv, FusedConvInt8, Pool2d and LocalResponseNorm in ONNX: the nodes, their schemas, and their bodies in plain
ai.onnx operators.

    Y = pool(act(Conv(X, W, B) (+ R)) (+ R))       in float32, rounded once to X's type
    Y = the largest value or the mean of X's windows
    Y = X / (k + alpha / size * the sum of squares of size channels around)^beta, as LRN

The meaning is in cpu.h. X is (N, C, H, W) or, with x_layout "NHWC", (N, H, W, C); Y and R follow y_layout; W is always
(F, C / groups, R, S). In the bodies NHWC is a Transpose at either end, which ONNX Runtime cancels between neighbors.
The pool of a FusedConv is four attributes, as MaxPool takes them; a kernel and stride of 1 is no pool. Otherwise the
attributes are the arguments of the Python functions.

The bodies read all inputs, so a writer passes zeros for a B or R that is not there: B of shape (F,), R (1, 1, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deepseek_fast.kernels.fused_conv import body_int8
from deepseek_fast.kernels.fused_conv.body_int8 import CONV_INT8
from deepseek_fast.onnx._body import ACTIVATIONS, DOMAIN, DOMAIN_VERSION, MIN_16_BIT_OPSET, BodyWriter

if TYPE_CHECKING:
    import onnx

CONV, POOL, LRN = "FusedConv", "Pool2d", "LocalResponseNorm"
INPUTS = {CONV: ("X", "W", "B", "R"), CONV_INT8: body_int8.INPUTS, POOL: ("X",), LRN: ("X",)}
OPTIONAL = ("B", "R", "r_scale", "r_zero_point")
FLOAT_TYPES = ["tensor(float)", "tensor(bfloat16)"]
BYTES = ["tensor(uint8)", "tensor(int8)"]
POOLED_TYPES = [*FLOAT_TYPES, *BYTES]
PLANES, PIXELS = "NCHW", "NHWC"  # layouts
TO_PLANES, TO_PIXELS = (0, 3, 1, 2), (0, 2, 3, 1)  # Transpose's perm
FLOAT, INT, FLOATS, INTS = 1, 2, 6, 7  # AttributeProto types
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
    LRN: {"size": 1, "alpha": 1e-4, "beta": 0.75, "k": 1.0, "x_layout": PLANES, "y_layout": PLANES},
}
DEFAULTS[CONV_INT8] = {name: value for name, value in DEFAULTS[CONV].items() if name != "algorithm"}
CONV_ATTRIBUTES = {"strides": ("stride", INTS), "pads": ("padding", INTS), "dilations": ("dilation", INTS)}
POOL_ATTRIBUTES = {
    "kernel_shape": ("kernel", INTS),
    "strides": ("stride", INTS),
    "pads": ("padding", INTS),
    "ceil_mode": ("ceil_mode", INT),
}

LRN_ATTRIBUTES = {"size": ("size", INT), "alpha": ("alpha", FLOAT), "beta": ("beta", FLOAT), "bias": ("k", FLOAT)}


def function_proto(opset: int, *, op_type: str = CONV) -> onnx.FunctionProto:
    """The body of an operator in the ai.onnx operators of `opset`, 13 to 25."""
    body = BodyWriter(opset)
    {CONV: _conv, CONV_INT8: body_int8.write, POOL: _pool, LRN: _lrn}[op_type](body)
    return body.function(op_type, INPUTS[op_type], list(DEFAULTS[op_type]))


def _conv(body: BodyWriter) -> None:
    attributes = CONV_ATTRIBUTES | {"group": ("groups", INT)}
    x, w, b = in_planes(body, body.to_float("X"), "x_layout"), body.to_float("W"), body.to_float("B")
    z = body.referring("Conv", x, w, b, attributes=attributes)
    _finish(body, after_sum(body, z, body.to_float("R"), CONV_ACTIVATIONS))


def after_sum(body: BodyWriter, z: str, given: str, known: Mapping[str, Callable[[BodyWriter, str], str]]) -> str:
    """The residual as given, activation and pool of a sum, all float and (N, C, H, W)."""
    residual = in_planes(body, given, "y_layout")
    is_after = body.equals(body.attribute("residual_at"), "after")
    before = body.choose(is_after, lambda: body.op("Identity", z), lambda: body.op("Add", z, residual))
    act = body.activation(before, known)
    y = body.choose(is_after, lambda: body.op("Add", act, residual), lambda: body.op("Identity", act))

    def pooled() -> str:
        renamed = {name: (f"pool_{referred}", kind) for name, (referred, kind) in POOL_ATTRIBUTES.items()}
        return body.referring("MaxPool", y, attributes=renamed)

    sizes = body.op("Concat", body.integers("pool_kernel"), body.integers("pool_stride"), axis=0)
    is_pooled = body.op("Greater", body.op("ReduceProd", sizes, keepdims=0), body.constant(1, "int64"))
    return body.choose(is_pooled, pooled, lambda: body.op("Identity", y))


def _pool(body: BodyWriter) -> None:
    x = in_planes(body, body.to_float("X"), "x_layout")
    counts = {"count_include_pad": ("count_include_pad", INT)}

    def mean() -> str:
        return body.referring("AveragePool", x, attributes=POOL_ATTRIBUTES | counts)

    def largest() -> str:
        return body.referring("MaxPool", x, attributes=POOL_ATTRIBUTES)

    _finish(body, body.choose(body.equals(body.attribute("kind"), "average"), mean, largest))


def _lrn(body: BodyWriter) -> None:
    """Of an even size, ONNX Runtime's own LRN refuses to be."""
    x = in_planes(body, body.to_float("X"), "x_layout")
    _finish(body, body.referring("LRN", x, attributes=LRN_ATTRIBUTES))


def in_planes(body: BodyWriter, value: str, layout: str, dtype: int | None = None) -> str:
    """value, which lies as the string attribute `layout` says, as (N, C, H, W). dtype: of TensorProto, or FLOAT."""
    is_pixels = body.equals(body.attribute(layout), PIXELS)
    return body.choose(
        is_pixels, lambda: body.op("Transpose", value, perm=TO_PLANES), lambda: body.op("Identity", value), dtype
    )


def in_layout(body: BodyWriter, planes: str) -> str:
    """The values as y_layout says."""
    is_pixels = body.equals(body.attribute("y_layout"), PIXELS)
    return body.choose(
        is_pixels, lambda: body.op("Transpose", planes, perm=TO_PIXELS), lambda: body.op("Identity", planes)
    )


def _finish(body: BodyWriter, planes: str) -> None:
    """Y = the values as y_layout says, in X's type."""
    from onnx import TensorProto

    y = in_layout(body, planes)
    if body.opset >= MIN_16_BIT_OPSET:
        body.op("CastLike", y, "X", output="Y")
    else:
        body.op("Cast", y, output="Y", to=TensorProto.FLOAT)


def parameter(body: BodyWriter, index: int) -> str:
    """One of activation_params, 0 where there are fewer: branches that are not taken are folded too."""
    padded = body.op("Concat", body.floats("activation_params"), body.constant([0.0, 0.0]), axis=0)
    return body.op("Gather", padded, body.constant(index, "int64"))


def _leaky_relu(body: BodyWriter, z: str) -> str:
    """Not LeakyRelu: onnx's reference gives that one no attribute of the calling node."""
    return body.op("PRelu", z, parameter(body, 0))


def _clip(body: BodyWriter, z: str) -> str:
    return body.op("Clip", z, parameter(body, 0), parameter(body, 1))


def _hardsigmoid(body: BodyWriter, z: str) -> str:
    line = body.op("Add", body.op("Mul", z, parameter(body, 0)), parameter(body, 1))
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


def conv_int8_node(inputs: Mapping[str, str], y: str, **attributes: Any) -> onnx.NodeProto:
    """A FusedConvInt8 node; inputs: names by the names of body_int8.INPUTS."""
    return _node(CONV_INT8, [inputs[name] for name in INPUTS[CONV_INT8]], [y], attributes)


def pool_node(x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """A Pool2d node between named values; attributes: those of DEFAULTS that differ."""
    return _node(POOL, [x], [y], attributes)


def lrn_node(x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """A LocalResponseNorm node between named values; attributes: those of DEFAULTS that differ."""
    return _node(LRN, [x], [y], attributes)


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
    attribute_kinds = {str: kinds.STRING, int: kinds.INT, float: kinds.FLOAT, tuple: kinds.INTS}
    docs = {
        CONV: "Y = pool(activation(Conv(X, W, B) + R))",
        CONV_INT8: "Y = quantize(pool(activation(dequantize(Conv(X, W) + B) + R)))",
        POOL: "Y = the largest or mean of X's windows",
        LRN: "Y = X / (k + alpha / size * the sum of squares of size channels around)^beta",
    }
    constraints = {
        "T": (POOLED_TYPES, "one type for all"),
        "F": (FLOAT_TYPES, "one type for all"),
        "U": (BYTES, "X's type"),
        "V": (BYTES, "Y's type"),
    }
    int8_types = dict.fromkeys(("x_scale", "w_scale", "y_scale", "r_scale"), "tensor(float)")
    int8_types |= dict.fromkeys(("X", "x_zero_point"), "U") | dict.fromkeys(
        ("Y", "y_zero_point", "R", "r_zero_point"), "V"
    )
    types = {
        CONV: dict.fromkeys((*INPUTS[CONV], "Y"), "F"),
        CONV_INT8: int8_types | {"W": "tensor(int8)", "B": "tensor(int32)"},
        POOL: dict.fromkeys(("X", "Y"), "T"),
        LRN: dict.fromkeys(("X", "Y"), "F"),
    }
    return [
        defs.OpSchema(
            op_type,
            DOMAIN,
            DOMAIN_VERSION,
            doc=docs[op_type],
            inputs=[
                defs.OpSchema.FormalParameter(
                    name, types[op_type][name], param_option=options.Optional if name in OPTIONAL else options.Single
                )
                for name in INPUTS[op_type]
            ],
            outputs=[defs.OpSchema.FormalParameter("Y", types[op_type]["Y"])],
            type_constraints=[(name, *of) for name, of in constraints.items() if name in types[op_type].values()],
            attributes=[
                defs.OpSchema.Attribute(
                    name, kinds.FLOATS if name == "activation_params" else attribute_kinds[type(value)], required=False
                )
                for name, value in DEFAULTS[op_type].items()
            ],
        )
        for op_type in INPUTS
    ]
