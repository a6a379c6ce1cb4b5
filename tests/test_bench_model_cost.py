"""Flops and bytes of a node, against counts by hand; facts of a file's nodes."""

import math

import numpy as np
import pytest
from onnx import helper

from deepseek_fast.bench.model_cost import ATTENTIONS, CONVS, MATMULS, Call, Tensor, cost
from deepseek_fast.bench.model_facts import Facts
from deepseek_fast.onnx import Note
from tests.onnx_models import Graph, linear

OURS, CONTRIB = "ai.deepseek_fast", "com.microsoft"


def f(*shape: int) -> Tensor:
    return Tensor("float", shape)


def i8(*shape: int) -> Tensor:
    return Tensor("int8", shape)


def u8(*shape: int) -> Tensor:
    return Tensor("uint8", shape)


def bf(*shape: int) -> Tensor:
    return Tensor("bfloat16", shape)


def i64(*shape: int) -> Tensor:
    return Tensor("int64", shape)


SCALAR = f()
# (call, flops, bytes, rate, shape); products with their weight as ONNX Runtime reports it: packed away, or there
PRODUCTS = [
    (Call("MatMul", (f(8, 64, 384),), (f(8, 64, 100),)), 2 * 512 * 384 * 100, 4 * (512 * 484 + 384 * 100), "fma_f32"),
    (Call("MatMul", (f(6, 32), f(32, 48)), (f(6, 48),)), 2 * 6 * 32 * 48, 4 * (192 + 1536 + 288), "fma_f32"),
    (Call("MatMul", (f(32), f(32, 48)), (f(48),)), 2 * 32 * 48, 4 * (32 + 1536 + 48), "fma_f32"),
    (Call("MatMul", (f(6, 32), f(32)), (f(6),)), 2 * 6 * 32, 4 * (192 + 32 + 6), "fma_f32"),
    (Call("MatMul", (f(32), f(32)), (SCALAR,)), 2 * 32, 4 * (64 + 1), "fma_f32"),
    (
        Call("MatMul", (f(2, 4, 5, 6), f(2, 4, 6, 7)), (f(2, 4, 5, 7),)),
        2 * 8 * 5 * 6 * 7,
        4 * 8 * (30 + 42 + 35),
        "fma_f32",
    ),
    (Call("MatMul", (Tensor("double", (6, 32)),), (Tensor("double", (6, 48)),)), 2 * 6 * 32 * 48, 8 * 2016, None),
    (Call("MatMul", (f(0, 32),), (f(0, 48),)), 0, 4 * 32 * 48, "fma_f32"),
    (Call("MatMul", (f(6, 0), f(0, 48)), (f(6, 48),)), 0, 4 * 288, "fma_f32"),
    (Call("Gemm", (f(6, 32), f(48)), (f(6, 48),)), 2 * 6 * 32 * 48, 4 * (192 + 48 + 288 + 1536), "fma_f32"),
    (Call("Gemm", (f(32, 6), f(48, 32)), (f(6, 48),)), 2 * 6 * 32 * 48, 4 * 2016, "fma_f32"),  # transA, transB
    (Call("FusedGemm", (f(6, 32),), (f(6, 48),), CONTRIB), 2 * 6 * 32 * 48, 4 * 2016, "fma_f32"),
    (
        Call("FusedMatMul", (f(6, 32), f(6, 40)), (f(32, 40),), CONTRIB),
        2 * 6 * 32 * 40,
        4 * (192 + 240 + 1280),
        "fma_f32",
    ),
    (
        Call("FusedMatmul", (f(5, 12), f(20, 12), f(20), f(5, 20)), (f(5, 20),), OURS),
        2 * 5 * 12 * 20,
        4 * (60 + 240 + 20 + 100 + 100),
        "fma_f32",
    ),
    (
        Call("FusedMatmul", (bf(2, 5, 12), bf(20, 12), bf(20), bf(1)), (bf(2, 5, 20),), OURS),
        2 * 10 * 12 * 20,
        2 * (120 + 240 + 20 + 1 + 200),
        "bf16_dot",
    ),
    (
        Call("Int8Matmul", (f(5, 12), i8(20, 12), f(20), f(20), f(1)), (f(5, 20),), OURS, {"activations": "int8"}),
        2 * 5 * 12 * 20,
        4 * (60 + 20 + 20 + 1 + 100) + 240,
        "int8_dot",
    ),
    (
        Call("Int8Matmul", (f(5, 12), i8(20, 12), f(20), f(20), f(1)), (f(5, 20),), OURS, {"activations": "float"}),
        2 * 5 * 12 * 20,
        4 * (60 + 20 + 20 + 1 + 100) + 240,
        "fma_f32",
    ),
    (
        Call("MatMulInteger", (u8(6, 32), u8()), (Tensor("int32", (6, 48)),)),
        2 * 6 * 32 * 48,
        192 + 1 + 4 * 288 + 1536,
        "int8_dot",
    ),
    (
        Call("DynamicQuantizeMatMul", (f(6, 32), f(48), i8(48), f(48)), (f(6, 48),), CONTRIB),
        2 * 6 * 32 * 48,
        4 * (192 + 96 + 288) + 48 + 1536,
        "int8_dot",
    ),
    (
        Call("MatMulIntegerToFloat", (u8(6, 32), SCALAR, f(48)), (f(6, 48),), CONTRIB),
        2 * 6 * 32 * 48,
        192 + 4 + 4 * 48 + 4 * 288 + 1536,
        "int8_dot",
    ),
    (
        Call("QLinearMatMul", (u8(6, 32), SCALAR, u8(), SCALAR, i8(), SCALAR, u8()), (u8(6, 48),)),
        2 * 6 * 32 * 48,
        192 + 12 + 3 + 288 + 1536,
        "int8_dot",
    ),
    (
        Call("QGemm", (u8(6, 32), SCALAR, u8(), SCALAR, i8(), SCALAR, u8()), (u8(6, 48),), CONTRIB),
        2 * 6 * 32 * 48,
        192 + 12 + 3 + 288 + 1536,
        "int8_dot",
    ),
    (
        Call("MatMulNBits", (f(6, 32), f(48)), (f(6, 48),), CONTRIB, {"bits": 4}),
        2 * 6 * 32 * 48,
        4 * (192 + 48 + 288) + 1536 // 2,
        "fma_f32",
    ),
    (
        Call("MatMulNBits", (f(6, 32), u8(48, 1, 16), f(48)), (f(6, 48),), CONTRIB, {"accuracy_level": 4}),
        2 * 6 * 32 * 48,
        4 * (192 + 48 + 288) + 48 * 16,
        "int8_dot",
    ),
    (
        Call("Conv", (f(2, 16, 8, 8), f(32, 16, 3, 3), f(32)), (f(2, 32, 6, 6),)),
        2 * (2 * 32 * 6 * 6) * (16 * 3 * 3),
        4 * (2048 + 4608 + 32 + 2304),
        "fma_f32",
    ),
    (  # depthwise
        Call("FusedConv", (f(1, 16, 8, 8), f(16, 1, 3, 3)), (f(1, 16, 8, 8),), CONTRIB),
        2 * 1024 * 9,
        4 * (1024 + 144 + 1024),
        "fma_f32",
    ),
    (Call("Conv", (f(2, 16, 30), f(32, 16, 3)), (f(2, 32, 28),)), 2 * 1792 * 48, 4 * (960 + 1536 + 1792), "fma_f32"),
    (  # NHWC, its weight packed away: its shape is in the file
        Call("QLinearConv", (u8(2, 8, 8, 16), SCALAR, u8()), (u8(2, 6, 6, 32),), weights=((32, 16, 3, 3),)),
        2 * (2 * 36 * 32) * 144,
        2048 + 4 + 1 + 2304 + 4608,
        "int8_dot",
    ),
    (
        Call("ConvInteger", (u8(1, 4, 5, 5), i8(8, 4, 3, 3)), (Tensor("int32", (1, 8, 3, 3)),)),
        2 * 72 * 36,
        100 + 288 + 288,
        "int8_dot",
    ),
    (  # each of the input's values meets every weight of its channel
        Call("ConvTranspose", (f(2, 16, 8, 8),), (f(2, 12, 16, 16),), weights=((16, 12, 2, 2),)),
        2 * 2048 * 48,
        4 * (2048 + 6144 + 768),
        "fma_f32",
    ),
    (
        Call("Attention", (f(8, 64, 384), f(8, 64, 384), f(8, 64, 384)), (f(8, 64, 384),)),
        2 * 2 * 8 * 384 * 64 * 64,
        4 * 4 * 8 * 64 * 384,
        "fma_f32",
    ),
    (
        Call("Attention", (f(2, 3, 5, 8), f(2, 3, 7, 8), f(2, 3, 7, 4)), (f(2, 3, 5, 4),)),
        2 * (2 * 3) * 5 * 7 * (8 + 4),
        4 * (240 + 336 + 168 + 120),
        "fma_f32",
    ),
    (  # 10 + 9 + ... + 1 pairs
        Call("Attention", (f(1, 2, 10, 4),) * 3, (f(1, 2, 10, 4),), attributes={"is_causal": 1}),
        2 * 2 * 2 * 4 * 55,
        4 * 4 * 80,
        "fma_f32",
    ),
    (  # contrib: the projections too, their weight packed away
        Call("Attention", (f(2, 10, 32), f(96)), (f(2, 10, 32),), CONTRIB),
        2 * 20 * 32 * 96 + 2 * 2 * 2 * 32 * 10 * 10,
        4 * (640 + 96 + 640 + 32 * 96),
        "fma_f32",
    ),
    (
        Call("MultiHeadAttention", (f(2, 10, 32), f(2, 6, 32), f(2, 6, 32)), (f(2, 10, 32),), CONTRIB),
        2 * 2 * 2 * 32 * 10 * 6,
        4 * (640 + 384 + 384 + 640),
        "fma_f32",
    ),
    (  # packed query, key and value
        Call("MultiHeadAttention", (f(2, 10, 4, 3, 8),), (f(2, 10, 32),), CONTRIB),
        2 * 2 * 2 * 32 * 10 * 10,
        4 * (1920 + 640),
        "fma_f32",
    ),
]


@pytest.mark.parametrize(
    ("call", "flops", "num_bytes", "rate"), PRODUCTS, ids=lambda value: getattr(value, "op_type", "")
)
def test_products_are_counted_as_by_hand(call: Call, flops: int, num_bytes: int, rate: str | None) -> None:
    found = cost(call)
    assert (found.flops, found.bytes, found.rate, found.bounded) == (flops, num_bytes, rate, True)


def test_every_product_has_a_count_by_hand() -> None:
    assert {call.op_type for call, *_ in PRODUCTS} == {*MATMULS, *CONVS, *ATTENTIONS} - {"NhwcFusedConv"}


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (Call("MatMul", (f(8, 64, 384),), (f(8, 64, 100),)), "512x100x384"),
        (Call("MatMul", (f(2, 4, 5, 6), f(2, 4, 6, 7)), (f(2, 4, 5, 7),)), "8*5x7x6"),
        (Call("Conv", (f(2, 16, 8, 8), f(32, 16, 3, 3)), (f(2, 32, 6, 6),)), "2x32x6x6 k3x3"),
        (Call("Attention", (f(1, 2, 1, 8), f(1, 2, 7, 8), f(1, 2, 7, 8)), (f(1, 2, 1, 8),)), "1x2x1x8 of 7 keys"),
        (Call("Add", (f(2, 3), f(3)), (f(2, 3),)), "2x3"),
        (Call("ReduceSum", (f(2, 3),), (SCALAR,)), "scalar"),
        (Call("SequenceEmpty", (), ()), "?"),
    ],
)
def test_shapes_name_a_node(call: Call, shape: str) -> None:
    assert cost(call).shape == shape


@pytest.mark.parametrize(
    ("call", "num_bytes"),
    [
        (Call("Add", (f(2, 3), f(3)), (f(2, 3),)), 4 * (6 + 3 + 6)),
        (Call("Cast", (Tensor("bool", (5,)),), (f(5),)), 5 + 20),
        (Call("DequantizeLinear", (Tensor("uint4", (5,)), SCALAR), (f(5),)), 3 + 4 + 20),
        (Call("Reshape", (f(2, 3), i64(1)), (f(6),)), 0),
        (Call("Shape", (f(2000, 3000),), (i64(2),)), 16),
        (Call("Gather", (f(30000, 384), i64(7)), (f(7, 384),)), 4 * 7 * 384 * 2 + 56),
        (Call("Slice", (f(1000), i64(1), i64(1)), (f(10),)), 40 + 40 + 16),
        (Call("Relu", (f(0, 3),), (f(0, 3),)), 0),
    ],
)
def test_other_nodes_have_bytes_alone(call: Call, num_bytes: int) -> None:
    found = cost(call)
    assert (found.flops, found.bytes, found.rate, found.bounded) == (None, num_bytes, None, True)


@pytest.mark.parametrize(
    "call",
    [
        Call("LSTM", (f(10, 2, 32), f(1, 64)), (f(1, 2, 8),)),
        Call("Loop", (i64(),), (f(8),)),
        Call("GroupQueryAttention", (f(1, 8, 32),), (f(1, 8, 32),), CONTRIB),
        Call("Magic", (f(8),), (f(8),), "acme"),
        Call("Cast", (i64(5),), (Tensor("string", (5,)),)),
        Call("Conv", (f(1, 4, 5, 5),), (f(1, 8, 3, 3),)),  # a weight of no known shape
        Call("MatMul", (SCALAR,), (f(3),)),
        Call("Attention", (f(3, 4), f(3, 4), f(3, 4)), (f(3, 4),)),
        Call("MatMul", (), ()),
        Call("Add", (), ()),
    ],
    ids=lambda call: call.op_type,
)
def test_what_cannot_be_counted_has_no_ceiling(call: Call) -> None:
    found = cost(call)
    assert found.flops is None and not found.bounded and found.bytes >= 0


def _linear_model() -> Graph:
    graph = Graph()
    graph.input("x", "batch", 4, 12)
    graph.output(linear(graph, "x", 12, 20), rank=3)
    return graph


def test_facts_are_found_under_the_names_that_onnx_runtime_gives() -> None:
    graph = Graph()
    graph.input("x", 1, 4, 5, 5)
    graph.nodes.append(helper.make_node("Conv", ["x", graph.random("w", 8, 4, 3, 3)], ["y"], name="conv", group=1))
    graph.nodes.append(helper.make_node("Relu", ["y"], ["z"]))
    graph.output("z", rank=4)
    facts = Facts(graph.model())
    for name in ("conv", "conv_nchwc", "conv_token_3", "conv_token_3_nchwc"):
        assert facts.of(name, "Conv").weights == ((8, 4, 3, 3),) and facts.of(name, "Conv").attributes == {"group": 1}
    assert facts.of("Relu_1", "Relu").domain == ""
    assert facts.of("conv", "FusedConv").domain == CONTRIB and facts.of("conv", "FusedConv").weights == ()
    assert facts.of("Conv_0", "Conv", inside="loop/").weights == ()
    assert not facts.is_quantized()


def test_facts_say_why_a_product_was_left_alone() -> None:
    model = _linear_model().model()
    refused = [
        Note("MatMul+Add", "linear", "bias must be one row"),
        Note("MatMul", "product", "weight must be float32"),
    ]
    facts = Facts(model, refused)
    assert facts.of("node_product", "MatMul").left_alone == "MatMul: weight must be float32"
    assert facts.of("node_product/MatMulAddFusion", "Gemm").left_alone == "MatMul: weight must be float32"
    assert facts.of("node_linear", "Add").left_alone == "MatMul+Add: bias must be one row"
    assert facts.of("node_product", "Relu").left_alone is None
    assert "second factor" in str(Facts(model, []).of("node_product", "MatMul").left_alone)
    assert Facts(model).of("node_product", "MatMul").left_alone is None  # nobody tried


def test_sizes_are_exact_integers() -> None:
    big = cost(Call("MatMul", (f(2**20, 2**20),), (f(2**20, 2**20),)))
    assert big.flops == 2 * 2**60 and big.bytes == 3 * 4 * 2**40
    assert isinstance(big.bytes, int) and math.isfinite(float(np.float64(big.flops)))
