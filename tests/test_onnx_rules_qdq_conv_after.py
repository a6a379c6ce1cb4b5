"""The rules for what follows a convolution of bytes, sums, pools and moves: what is rewritten, what is left alone."""

from typing import Any

import numpy as np
import pytest

from deepseek_fast.onnx import explain
from tests.onnx_models import attribute, counts, fused, sentences
from tests.onnx_qdq import R_SCALE, S8, U8, W_SCALE, X_SCALE, Y_SCALE, C, F, H, Qdq, W, byte_values, check

INNER_SCALE, SUM_SCALE = 0.1, 0.15  # so wide that no sum is above the bytes of its type


def summed(
    zero: int = 128, *, act: str = "", after: str = "", y_zero: int = 100, first: bool = True, r_type: Any = U8
) -> Qdq:
    """A convolution rounded to bytes of this zero point, the sum with other bytes, and what follows it."""
    graph = Qdq()
    r = graph.dequantize(graph.byte_input("r", "batch", F, H, W, dtype=r_type), R_SCALE, 20, r_type)
    y = graph.conv(graph.x(), graph.weight(), *graph.bias("int32"))
    y = graph.op(act, y) if act else y
    y = graph.dequantize(graph.quantize(y, INNER_SCALE, zero, output="inner"), INNER_SCALE, zero)
    y = graph.op("Add", y, r) if first else graph.op("Sum", r, y)
    y = graph.op(after, y) if after else y
    graph.bytes_out(graph.quantize(y, SUM_SCALE, y_zero, output="y"))
    return graph


@pytest.mark.parametrize(
    ("options", "activation", "residual_at"),
    [
        ({}, "none", "before"),
        ({"first": False}, "none", "before"),
        ({"after": "Relu"}, "relu", "before"),
        ({"after": "Relu", "y_zero": 0}, "none", "before"),
        ({"zero": 0}, "relu", "after"),
        ({"zero": 0, "act": "Relu"}, "relu", "after"),
        ({"zero": 0, "after": "Relu", "y_zero": 0}, "relu", "after"),
        ({"act": "LeakyRelu"}, "leaky_relu", "after"),
    ],
    ids=str,
)
def test_a_sum_of_bytes_is_not_rounded_on_the_way(options, activation, residual_at):
    feeds = {"x": byte_values(U8, 2, C, H, W), "r": byte_values(U8, 2, F, H, W, seed=4)}
    feeds["x"] //= 4
    result = check(summed(**options), feeds, steps=1)
    (node,) = fused(result.model, "FusedConvInt8")
    assert len(result.model.graph.node) == 1 and "'inner' not rounded" in sentences(result.rewritten)
    assert attribute(node, "activation").decode() == activation
    assert attribute(node, "residual_at").decode() == residual_at


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"zero": 0, "after": "Relu"}, "one activation must be enough; got relu and relu"),
        ({"after": "Softplus"}, "a QuantizeLinear must follow; got Softplus"),
        ({"zero": 255}, "the sum must have bytes above zero"),
        ({"r_type": S8}, "the residual must have y's type uint8; got int8"),
    ],
    ids=str,
)
def test_a_sum_left_alone(options, sentence):
    result = explain(summed(**options).model())
    (node,) = fused(result.model, "FusedConvInt8")
    assert "inner" in node.output[0] and counts(result.model)["Add"] == 1
    assert "QdqResidual: add_" in sentences(result.refused) and sentence in sentences(result.refused)


def test_a_sum_of_bytes_that_others_read_stays():
    graph = summed()
    graph.bytes_out("inner")
    result = explain(graph.model())
    assert counts(result.model)["Add"] == 1 and "'inner' is also a graph output" in sentences(result.refused)


# Pools


def test_pool_of_bytes_follows_its_convolution():
    graph = Qdq()
    y = graph.dequantize(graph.quantize(graph.conv(graph.x(), graph.weight()), Y_SCALE, 3), Y_SCALE, 3)
    y = graph.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, output="y"))
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1)
    assert counts(result.model) == {"FusedConvInt8": 1}
    assert counts(explain(graph.model(), optim_level=1).model) == {"FusedConvInt8": 1, "MaxPool": 1}


@pytest.mark.parametrize("dtype", [U8, S8])
def test_pool_of_bytes_alone(dtype):
    graph = Qdq()
    x = graph.byte_input("x", "batch", C, H, W, dtype=dtype)
    pooled = graph.op("MaxPool", graph.dequantize(x, X_SCALE, 7, dtype), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = graph.dequantize(graph.quantize(pooled, X_SCALE, 7, dtype), X_SCALE, 7, dtype)
    graph.bytes_out(graph.quantize(graph.conv(y, graph.weight()), Y_SCALE, 3, output="y"))
    result = check(graph, {"x": byte_values(dtype, 2, C, H, W)}, steps=1)
    assert counts(result.model) == {"Pool2d": 1, "FusedConvInt8": 1}
    assert "MaxPool of bytes" in sentences(result.rewritten)


@pytest.mark.parametrize("beside", [True, False])
def test_a_channel_shuffle_of_bytes_moves_along(beside):
    """Only beside a convolution of bytes."""
    graph = Qdq()
    y = graph.byte_input("x", 2, C, H, W)
    if beside:
        y = graph.quantize(graph.conv(graph.dequantize(y, X_SCALE, 7), graph.weight(filters=C)), X_SCALE, 7)
    apart = graph.constant("apart", [2, 2, C // 2, H, W], np.int64)
    joined = graph.constant("joined", [2, C, H, W], np.int64)
    moves: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Reshape", [apart], {}),
        ("Transpose", [], {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", [joined], {}),
    ]
    for op_type, more, options in moves:
        moved = graph.op(op_type, graph.dequantize(y, X_SCALE, 7), *more, **options)
        y = graph.quantize(moved, X_SCALE, 7)
    if beside:
        w = graph.dequantize(graph.constant("w2", byte_values(S8, F, C, 1, 1), S8), W_SCALE, 0, S8)
        y = graph.quantize(graph.op("Conv", graph.dequantize(y, X_SCALE, 7), w), Y_SCALE, 3)
    graph.bytes_out(y)
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1)
    assert counts(result.model)["DequantizeLinear"] == (0 if beside else 3)
    layouts = [attribute(node, "y_layout").decode() for node in fused(result.model, "FusedConvInt8")]
    assert layouts == (["NHWC", "NCHW"] if beside else [])


def test_a_pool_of_two_scales_is_left_alone():
    graph = Qdq()
    y = graph.dequantize(graph.quantize(graph.conv(graph.x(), graph.weight()), Y_SCALE, 3), Y_SCALE, 3)
    pooled = graph.op("MaxPool", y, kernel_shape=[2, 2], output="pooled")
    graph.bytes_out(graph.quantize(pooled, 2 * Y_SCALE, 7, output="y"))
    result = explain(graph.model())
    assert counts(result.model)["DequantizeLinear"] == 1
    assert "QdqMove: pooled: x and y must have one scale; got 0.03 and 0.06" in sentences(result.refused)
