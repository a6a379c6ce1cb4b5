"""FusedConvInt8 in ONNX: its body in plain ai.onnx operators, which replays the float32 steps of cpu.h.

    Y = quantize(pool(act((ConvInteger(X, W) + B) * (x_scale * w_scale / y_scale) (+ R) ) (+ R)))

Inputs are QLinearConv's, but for the weight's zero point, which is 0: X, x_scale, x_zero_point, W, w_scale, y_scale,
y_zero_point, B, and the residual R, r_scale, r_zero_point. X is uint8 or int8, W int8, B int32; Y and R have
y_zero_point's type. The body multiplies uint8 by uint8, with a zero point of 128 in place of a sign: of an int8 X stock
ONNX Runtime has no product, and that of uint8 and int8 saturates on CPUs without VNNI.
"""

from __future__ import annotations

from collections.abc import Callable

from deepseek_fast.onnx._body import ACTIVATIONS, BodyWriter

CONV_INT8 = "FusedConvInt8"
INPUTS = (
    "X",
    "x_scale",
    "x_zero_point",
    "W",
    "w_scale",
    "y_scale",
    "y_zero_point",
    "B",
    "R",
    "r_scale",
    "r_zero_point",
)
OFFSET = 128
FAR_BELOW = -1000.0  # what saturates to the least value of any type of 8 bits


def write(body: BodyWriter) -> None:
    from onnx import TensorProto

    from deepseek_fast.kernels.fused_conv import body as plain

    def to_int(value: str) -> str:
        return body.op("Cast", value, to=TensorProto.INT32)

    def to_byte(value: str) -> str:
        return body.op("Cast", value, to=TensorProto.UINT8)

    offset = body.constant(OFFSET, "int32")
    x_zero_point = body.op("Reshape", "x_zero_point", body.constant([], "int64"))
    least = body.op("QuantizeLinear", body.constant(FAR_BELOW), body.constant(1.0), x_zero_point)
    is_signed = body.op("Less", to_int(least), body.constant(0, "int32"))
    of_x = body.op("Where", is_signed, offset, body.constant(0, "int32"))
    x = plain.in_planes(body, to_byte(body.op("Add", to_int("X"), of_x)), "x_layout", TensorProto.UINT8)
    x_zero = to_byte(body.op("Add", to_int(x_zero_point), of_x))
    weight = to_byte(body.op("Add", to_int("W"), offset))
    attributes = plain.CONV_ATTRIBUTES | {"group": ("groups", plain.INT)}
    sums = body.referring("ConvInteger", x, weight, x_zero, body.constant(OFFSET, "uint8"), attributes=attributes)
    per_filter = body.constant([1, -1, 1, 1], "int64")
    sums = body.op("Add", sums, body.op("Reshape", "B", per_filter))

    y_scale = body.op("Reshape", "y_scale", body.constant([], "int64"))
    scale = body.op("Div", body.op("Mul", "x_scale", body.op("Reshape", "w_scale", per_filter)), y_scale)
    z = body.op("Mul", body.to_float(sums), scale)
    residual = body.to_float(body.op("Sub", to_int("R"), to_int("r_zero_point")))
    residual = body.op("Mul", residual, body.op("Div", "r_scale", y_scale))
    planes = plain.after_sum(body, z, residual, _activations(y_scale))

    y = plain.in_layout(body, planes)
    y_zero_point = body.op("Reshape", "y_zero_point", body.constant([], "int64"))
    body.op("QuantizeLinear", y, body.constant(1.0), y_zero_point, output="Y")


def _activations(y_scale: str) -> dict[str, Callable[[BodyWriter, str], str]]:
    """Of z in steps of y: limits over y_scale, of curves the value times y_scale and back."""
    from deepseek_fast.kernels.fused_conv import body as plain

    def curved(write: Callable[[BodyWriter, str], str]) -> Callable[[BodyWriter, str], str]:
        return lambda body, z: body.op("Div", write(body, body.op("Mul", z, y_scale)), y_scale)

    def clip(body: BodyWriter, z: str) -> str:
        low, high = (body.op("Div", plain.parameter(body, i), y_scale) for i in (0, 1))
        return body.op("Clip", z, low, high)

    def relu6(body: BodyWriter, z: str) -> str:
        return body.op("Clip", z, body.constant(0.0), body.op("Div", body.constant(6.0), y_scale))

    known = {name: curved(write) for name, write in plain.CONV_ACTIVATIONS.items()}
    straight = {"relu": ACTIVATIONS["relu"], "leaky_relu": plain.CONV_ACTIVATIONS["leaky_relu"]}
    return known | straight | {"relu6": relu6, "clip": clip}
