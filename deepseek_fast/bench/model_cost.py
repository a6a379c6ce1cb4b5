"""Flops and bytes of one ONNX node, from the shapes that ONNX Runtime's profiler reports.

The profiler leaves out constants that a kernel has packed for itself; their sizes follow from the other shapes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DOMAIN = "ai.deepseek_fast"
CONTRIB = "com.microsoft"
BITS = {
    **dict.fromkeys(("bool", "int8", "uint8"), 8),
    **dict.fromkeys(("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"), 8),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 16),
    **dict.fromkeys(("float", "int32", "uint32"), 32),
    **dict.fromkeys(("double", "int64", "uint64"), 64),
    **dict.fromkeys(("int4", "uint4"), 4),
}
# float16 is computed in float32; float64 has no measured ceiling
RATES = {"float": "fma_f32", "float16": "fma_f32", "bfloat16": "bf16_dot"}
INT8 = "int8_dot"

FLOAT_MATMULS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "FusedMatmul", "MatMulNBits")
INT8_MATMULS = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "Int8Matmul",
)
TRANSPOSING = ("Gemm", "FusedMatMul", "FusedGemm", "QGemm")  # these may transpose x
MATMULS = (*FLOAT_MATMULS, *INT8_MATMULS)
INT8_CONVS = ("ConvInteger", "QLinearConv")
CONVS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", *INT8_CONVS)
ATTENTIONS = ("Attention", "MultiHeadAttention")

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # the output is the input's memory
SHAPES = ("Shape", "Size")  # read no values
# Read no more of each input than they write: a row of a table, a part of a tensor.
PARTIAL = ("Gather", "GatherElements", "GatherND", "Slice", "EmbedLayerNormalization")
# Their arithmetic is not counted here, and bytes alone would be a ceiling that nothing can reach.
UNCOUNTED = (
    *("If", "Loop", "Scan", "SequenceMap"),
    *("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"),
    *("Einsum", "DeformConv", "DFT", "STFT", "Det", "NonMaxSuppression", "MatMulBnb4", "MatMulFpQ4", "GemmFloat8"),
)
UNCOUNTED_WORDS = ("Attention", "MoE")  # of ONNX Runtime's own operators, but for ATTENTIONS


@dataclass(frozen=True)
class Tensor:
    """One value: ONNX Runtime's name of its type ("float", "int8"), and its sizes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """0 for a type of no fixed size, such as string."""
        return math.ceil(self.size * BITS.get(self.dtype, 0) / 8)


@dataclass(frozen=True)
class Call:
    """A node as it ran: without the constants that its kernel has packed."""

    op_type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[tuple[int, ...], ...] = ()  # shapes of the file's constants that it takes, those of two axes or more


@dataclass(frozen=True)
class Cost:
    """What a node cannot do without. `bounded`: a least time follows from it."""

    shape: str  # "512x1536x384" for a product of M x N x K, else the output's
    flops: int | None
    bytes: int
    rate: str | None  # the ceiling of its arithmetic, a name of native().ceiling_rates()
    bounded: bool = True


def cost(call: Call) -> Cost:
    """Flops, bytes and the rate of one run of a node."""
    plain = _bytes(call)
    shape = _text(call.outputs[0].shape) if call.outputs else "?"
    known = call.domain in ("", "ai.onnx", DOMAIN) or call.domain.startswith(CONTRIB)
    if not (call.inputs or call.outputs) or not known or not _is_countable(call):
        return Cost(shape, None, plain, None, bounded=False)
    count = next((count for names, count in COUNTS if call.op_type in names), None)
    if count is None:
        return Cost(shape, None, plain, None)
    counted = count(call) if call.inputs and call.outputs and call.inputs[0].shape else None
    if counted is None:
        return Cost(shape, None, plain, None, bounded=False)
    flops, packed, shape = counted
    return Cost(shape, flops, plain + packed, _rate(call))


Counted = tuple[int, int, str]  # (flops, bytes of the constants that the profiler left out, shape)


def _matmul(call: Call) -> Counted | None:
    """2 M N K, times the batch where both factors have one."""
    y = call.outputs[0]
    K, N = _inner(call), y.shape[-1] if y.shape else 1
    others = [t.shape for t in call.inputs[1:] if len(t.shape) > 1]
    is_there = any(sorted(shape[-2:]) == sorted((K, N)) for shape in others)
    if call.op_type == "MatMulNBits":
        is_there = any(t.dtype == "uint8" and t.bytes * 8 >= K * N * _weight_bits(call) for t in call.inputs[1:])
    vector = call.op_type == "MatMul" and any(t.shape == (K,) for t in call.inputs[1:])
    packed = 0 if is_there or vector else math.ceil(K * N * _weight_bits(call) / 8)
    batched = call.op_type in ("MatMul", "FusedMatMul") and any(len(shape) > 2 for shape in others[:1])
    M = y.shape[-2] if batched and len(y.shape) > 1 else math.prod(y.shape[:-1])
    batch = f"{math.prod(y.shape[:-2])}*" if batched else ""
    return 2 * y.size * K, packed, f"{batch}{M}x{N}x{K}"


def _inner(call: Call) -> int:
    """K: the last axis of x, or the one before it where x is transposed."""
    x, y = (tensor.shape for tensor in _operands(call))
    if call.op_type in TRANSPOSING and min(len(x), len(y)) > 1 and x[-2] != y[-2] and x[-1] == y[-2]:
        return x[-2]
    return x[-1]


def _conv(call: Call) -> Counted | None:
    """2 multiply-adds for each output (transposed: input) value and each weight of its channel."""
    x, y = _operands(call)
    rank = len(x.shape)
    weight = next((t.shape for t in call.inputs[1:] if len(t.shape) == rank > 2), None)
    is_there = weight is not None
    if weight is None:
        weight = next((shape for shape in call.weights if len(shape) == rank > 2), None)
    if weight is None:
        return None
    values = x.size if call.op_type == "ConvTranspose" else y.size
    packed = 0 if is_there else math.ceil(math.prod(weight) * _weight_bits(call) / 8)
    return 2 * values * math.prod(weight[1:]), packed, f"{_text(y.shape)} k{_text(weight[2:])}"


def _attention(call: Call) -> Counted | None:
    """Scores and their sum of values: 2 + 2 flops for each pair of positions and each feature of all heads."""
    x, y = _operands(call)
    is_projecting = call.op_type == "Attention" and (len(call.inputs) < 2 or len(call.inputs[1].shape) < 3)
    if len(x.shape) not in (3, 4, 5) or len(y.shape) not in (3, 4) or (len(x.shape) > 3 and is_projecting):
        return None
    length = y.shape[-2]
    features = y.size // length if length else 0  # batch x heads x head size of the values
    is_packed = len(x.shape) == 5  # (B, S, H, 3, D): query, key and value in one
    query = features if is_projecting or is_packed or not length else x.size // length
    keys = length if is_projecting or is_packed else _keys(call)
    if len(call.outputs) > 1 and len(call.outputs[1].shape) == 4:
        keys = call.outputs[1].shape[2]  # present keys: those given and those before
    causal = call.attributes.get("is_causal", call.attributes.get("unidirectional", 0))
    pairs = length * keys - (length * (length - 1) // 2 if causal and keys >= length else 0)
    flops, packed = 2 * (query + features) * pairs, 0
    if is_projecting:  # contrib Attention makes query, key and value itself
        K, N = x.shape[-1], 3 * y.shape[-1]
        flops += 2 * math.prod(x.shape[:-1]) * K * N
        is_there = any(sorted(t.shape) == sorted((K, N)) for t in call.inputs[1:])
        packed = 0 if is_there else math.ceil(K * N * _weight_bits(call) / 8)
    return flops, packed, _text(y.shape) + (f" of {keys} keys" if keys != length else "")


def _keys(call: Call) -> int:
    key = call.inputs[1].shape if len(call.inputs) > 1 else call.inputs[0].shape
    return key[-2] if len(key) < 5 else key[1]


COUNTS: tuple[tuple[tuple[str, ...], Callable[[Call], Counted | None]], ...] = (
    (MATMULS, _matmul),
    (CONVS, _conv),
    (ATTENTIONS, _attention),
)


def _operands(call: Call) -> tuple[Tensor, Tensor]:
    """x and y, those that are always there."""
    return call.inputs[0], call.outputs[0]


def _rate(call: Call) -> str | None:
    if call.op_type in INT8_MATMULS or call.op_type in INT8_CONVS:
        if call.attributes.get("activations") != "float":
            return INT8
    elif call.op_type == "MatMulNBits" and call.attributes.get("accuracy_level") == 4:
        return INT8
    return RATES.get(call.inputs[0].dtype)


def _weight_bits(call: Call) -> int:
    if call.op_type == "MatMulNBits":
        return int(call.attributes.get("bits", 4))
    is_int8 = call.op_type in INT8_MATMULS or call.op_type in INT8_CONVS
    return 8 if is_int8 else BITS.get(call.inputs[0].dtype, 0)


def _bytes(call: Call) -> int:
    """Every input read once, every output written once, but for what is not touched."""
    written = sum(t.bytes for t in call.outputs)
    if call.op_type in VIEWS:
        return 0
    if call.op_type in SHAPES:
        return written
    limit = written if call.op_type in PARTIAL else math.inf
    return written + sum(int(min(t.bytes, limit)) for t in call.inputs)


def _is_countable(call: Call) -> bool:
    name = call.op_type
    if name in UNCOUNTED or (name not in ATTENTIONS and any(word in name for word in UNCOUNTED_WORDS)):
        return False
    return all(t.dtype in BITS for t in (*call.inputs, *call.outputs))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
