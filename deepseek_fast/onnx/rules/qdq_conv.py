"""QdqConv: a convolution of bytes, with all that stands between its DequantizeLinear and its QuantizeLinear.

    x = DequantizeLinear(X); w = DequantizeLinear(W); b = DequantizeLinear(B) or constant
    t = Conv(x, w, b); t = act(t); t = Add(t, DequantizeLinear(R)); t = act(t); t = MaxPool(t); y = QuantizeLinear(t)
    -> y = FusedConvInt8(X, ..., W, ..., B, R, ...; activation, residual_at, pool)    each of act, Add and MaxPool may
    y = QLinearConv(X, ..., W, ..., B) -> y = FusedConvInt8(X, ..., W, ..., B)        be absent; one act only

X, R and y are uint8 or int8 of one scale, W of one a filter; a uint8 W of zero point 128 becomes int8. Sums are exact
and rounded once, as QLinearConv has it: of a chain that a runtime computes in float32 a result may differ by one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx import _convs, _qdq
from deepseek_fast.onnx._constants import is_overridable
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number, overridable_text
from deepseek_fast.onnx._shapes import shape_text, surely_equal
from deepseek_fast.onnx.rules.activation import require_closed
from deepseek_fast.onnx.rules.conv_activation import find_activation

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._qdq import Scale
    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "QdqConv"
LEVEL = 1
MOST_TAPS = 65793  # values of a filter whose products with bytes fit int32 in sum
# A bias that is not yet in steps of the sum is rounded to them: by so much of a step of y at most.
BIAS_ROUNDING = 1 / 32
SAME_SCALE = 1e-5  # relative
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators: NCHW alone, of shapes that onnx does not infer


@dataclass(frozen=True)
class _Weight:
    value: ir.Value  # int8
    array: np.ndarray
    scale: ir.Value
    steps: np.ndarray  # (F,) or one


@dataclass
class Chain:
    """What follows a Conv, up to its QuantizeLinear, the last of nodes."""

    nodes: list[ir.Node]
    attributes: dict[str, Any] = field(default_factory=dict)
    residual: ir.Node | None = None  # its DequantizeLinear


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.domain:
        return None
    if node.op_type == "QLinearConv":
        return _rewrite_qlinear(node, rewriter)
    x = node.inputs[0] if node.op_type == "Conv" else None
    reader = x.producer() if x is not None else None
    if reader is None or not _qdq.reads_bytes(reader):
        return None
    of_x = _qdq.scale_of(reader, "x", rewriter)
    chain = _chain(node, rewriter)
    of_y = _qdq.scale_of(chain.nodes[-1], "y", rewriter)
    residual: tuple[ir.Value, Scale] | None = None
    if chain.residual is not None:
        bytes_of_r = chain.residual.inputs[0]
        assert bytes_of_r is not None  # see reads_bytes
        residual = bytes_of_r, _qdq.scale_of(chain.residual, "the residual", rewriter)
    weight = _dequantized_weight(node.inputs[1], rewriter)
    b = node.inputs[2] if len(node.inputs) > 2 else None
    bias = _bias(b, weight, of_x, of_y, rewriter)
    readers = [reader, *(v.producer() for v in node.inputs[1:] if v is not None), chain.residual]
    name = _name(chain)
    if is_needless(chain.attributes.get("activation", ""), of_y) and chain.attributes.get("residual_at") != "after":
        del chain.attributes["activation"], chain.attributes["activation_params"]
    _fuse(node, chain.nodes, (reader.inputs[0], of_x), weight, bias, of_y, residual, chain.attributes, rewriter)
    _qdq.drop_unread([other for other in readers if other is not None], rewriter)
    return name


def _name(chain: Chain) -> str:
    parts = [chain.attributes["activation"]] if "activation" in chain.attributes else []
    parts += ["residual"] if chain.residual is not None else []
    parts += ["MaxPool"] if "pool_kernel" in chain.attributes else []
    return f"FusedConvInt8 with {', '.join(parts)}" if parts else "FusedConvInt8"


def _rewrite_qlinear(node: ir.Node, rewriter: Rewriter) -> str:
    others = sorted({n.op_type for n in rewriter.graph if n.domain == MICROSOFT and n.op_type.startswith("QLinear")})
    if others:
        raise Refusal(f"NCHW would have to be turned for {', '.join(others)}; quantize with QuantFormat.QDQ instead")
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    of_x = _qdq.one_scale("x", x_scale, x_zero, "UINT8", rewriter)
    of_y = _qdq.one_scale("y", y_scale, y_zero, "UINT8", rewriter)
    weight = _weight(w, w_scale, w_zero, 0, rewriter)
    bias = node.inputs[8] if len(node.inputs) > 8 else None
    if bias is not None and rewriter.constants.array(bias) is None:
        raise Refusal(f"bias must be constant{overridable_text(bias)}")
    given = bias if bias is not None else _zeros(weight, rewriter)
    _fuse(node, [node], (x, of_x), weight, given, of_y, None, {}, rewriter)
    return "FusedConvInt8"


def _fuse(
    conv: ir.Node,
    nodes: list[ir.Node],
    x: tuple[ir.Value | None, Scale],
    weight: _Weight,
    bias: ir.Value,
    of_y: Scale,
    residual: tuple[ir.Value, Scale] | None,
    attributes: dict[str, Any],
    rewriter: Rewriter,
) -> None:
    import numpy as np

    value, of_x = x
    with np.errstate(all="ignore"):
        if not np.isfinite(of_x.step * weight.steps / of_y.step).all():
            raise Refusal("the scales must leave x_scale * w_scale / y_scale finite")
    window = _convs.window(conv, weight.array.shape[2:])
    if residual is None:  # its scale is read by the body
        zero = rewriter.initializer("no_residual", np.full(_convs.NO_RESIDUAL_SHAPE, of_y.zero, of_y.dtype))
        after = [zero, of_y.scale, of_y.zero_point]
    else:
        r, of_r = residual
        if of_r.dtype != of_y.dtype:
            raise Refusal(f"the residual must have y's type {of_y.dtype}; got {of_r.dtype}")
        after = [r, of_r.scale, of_r.zero_point]
    inputs = [value, of_x.scale, of_x.zero_point, weight.value, weight.scale, of_y.scale, of_y.zero_point, bias, *after]
    groups = int(number(conv, "group", 1))
    made = _convs.attributes("FusedConvInt8", groups=groups, **window, **attributes)
    rewriter.fuse("FusedConvInt8", inputs, made, nodes)


# What follows the Conv


def _chain(conv: ir.Node, rewriter: Rewriter) -> Chain:
    """Up to the QuantizeLinear."""
    chain = Chain([conv])
    add_activation(chain, rewriter)
    _add_residual(chain, rewriter)
    if chain.residual is not None:
        add_activation(chain, rewriter)
    close(chain, rewriter)
    return chain


def close(chain: Chain, rewriter: Rewriter) -> None:
    """Adds a MaxPool and the QuantizeLinear; a Refusal where there is none, or where a value is needed elsewhere."""
    _add_pool(chain)
    last = _next(chain)
    if last is None or last.op_type != "QuantizeLinear":
        raise Refusal(f"a QuantizeLinear must follow; got {last.op_type if last is not None else 'an output'}")
    chain.nodes.append(last)
    require_closed(chain.nodes)
    if any(node.graph is not rewriter.graph for node in chain.nodes):
        raise Refusal("what follows must be in the same graph")


def is_needless(activation: str, of_y: Scale) -> bool:
    """Whether it cuts what has no byte either, and is the last before the rounding."""
    import numpy as np

    return activation == "relu" and of_y.zero == np.iinfo(of_y.dtype).min


def _next(chain: Chain) -> ir.Node | None:
    """A node that reads the chain's end; require_closed sees whether it is the only one."""
    users = [use.node for use in chain.nodes[-1].outputs[0].uses() if not use.node.domain]
    return next((node for node in users if node.op_type == "QuantizeLinear"), users[0] if users else None)


def add_activation(chain: Chain, rewriter: Rewriter) -> None:
    """One that follows."""
    found = find_activation(chain.nodes[-1].outputs[0], rewriter)
    if found is None:
        return
    activation, params, nodes = found
    if "activation" in chain.attributes:
        raise Refusal(f"one activation must be enough; got {chain.attributes['activation']} and {activation}")
    chain.attributes |= {"activation": activation, "activation_params": params}
    chain.nodes += nodes


def _add_residual(chain: Chain, rewriter: Rewriter) -> None:
    t, node = chain.nodes[-1].outputs[0], _next(chain)
    if node is None or node.op_type not in ("Add", "Sum") or len(node.inputs) != 2:
        return
    other = node.inputs[1] if node.inputs[0] is t else node.inputs[0]
    reader = other.producer() if other is not None else None
    if other is None or other is t or reader is None or not _qdq.reads_bytes(reader):
        raise Refusal("the residual must come from DequantizeLinear")
    if rewriter.constants.array(other) is not None or not surely_equal(t.shape, other.shape):
        got = f"got {shape_text(other.shape)} for {shape_text(t.shape)}"
        raise Refusal(f"the residual must be computed and surely have the output's shape; {got}")
    chain.attributes["residual_at"] = "after" if "activation" in chain.attributes else "before"
    chain.residual = reader
    chain.nodes.append(node)


def _add_pool(chain: Chain) -> None:
    """Of a pool's float values the largest becomes the largest byte: no rounding changes an order."""
    node = _next(chain)
    if node is None or node.op_type != "MaxPool":
        return
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("Indices must be unused")
    chain.attributes |= {f"pool_{name}": value for name, value in _convs.pool_window(node).items()}
    chain.nodes.append(node)


# Weight and bias


def _dequantized_weight(value: ir.Value | None, rewriter: Rewriter) -> _Weight:
    node = value.producer() if value is not None else None
    if node is None or not _qdq.reads_bytes(node):
        raise Refusal(f"weight must come from DequantizeLinear; got '{value.name if value is not None else ''}'")
    if number(node, "block_size", 0):
        raise Refusal("weight must have one scale a filter; got blocks")
    w, scale, zero_point = (*node.inputs, None)[:3]
    return _weight(w, scale, zero_point, int(number(node, "axis", 1)), rewriter)


def _weight(
    value: ir.Value | None, scale: ir.Value | None, zero_point: ir.Value | None, axis: int, rewriter: Rewriter
) -> _Weight:
    """The weight as int8 of zero point 0. axis: along which a list of scales lies."""
    import numpy as np

    array, steps = rewriter.constants.array(value), rewriter.constants.array(scale)
    quantizer = value.producer() if value is not None else None
    if array is None and quantizer is not None and quantizer.op_type == "QuantizeLinear" and not quantizer.domain:
        array = rewriter.constants.run(quantizer)  # as quantization-aware training leaves it
    zeros = rewriter.constants.array(zero_point) if zero_point is not None else np.zeros(1, np.int8)
    if value is None or scale is None or array is None or steps is None or zeros is None or is_overridable(value):
        raise Refusal(f"weight, its scale and its zero point must be constant{overridable_text(value)}")
    if str(array.dtype).upper() not in _qdq.BYTES or array.ndim != 4 or 0 in array.shape:
        raise Refusal(f"weight must be bytes of 4 dimensions, none empty; got {array.dtype} of shape {array.shape}")
    F = array.shape[0]
    if array[0].size > MOST_TAPS:
        raise Refusal(f"weight must have at most {MOST_TAPS} values a filter; got {array[0].size}")
    for numbers in (steps, zeros):
        if numbers.size != 1 and (numbers.shape != (F,) or axis % 4 != 0):
            raise Refusal(f"weight must have one scale and one zero point, or {F} along axis 0; got {numbers.shape}")
    if steps.dtype != np.float32 or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise Refusal("weight's scales must be float32, finite and above zero")
    moved = array.astype(np.int16) - zeros.astype(np.int16).reshape(-1, 1, 1, 1)
    if moved.min() < -128 or moved.max() > 127:
        raise Refusal(f"weight less its zero point must fit int8; got {moved.min()} to {moved.max()}")
    if array.dtype != np.int8 or zeros.any() or not value.is_initializer():
        value = rewriter.initializer(f"{value.name}_int8", moved.astype(np.int8))
    return _Weight(value, moved, scale, steps.reshape(-1))


def _zeros(weight: _Weight, rewriter: Rewriter) -> ir.Value:
    import numpy as np

    return rewriter.zeros(weight.array.shape[0], np.dtype(np.int32))


def _bias(value: ir.Value | None, weight: _Weight, of_x: Scale, of_y: Scale, rewriter: Rewriter) -> ir.Value:
    """The bias in steps of the sum, x_scale * w_scale."""
    import numpy as np

    if value is None:
        return _zeros(weight, rewriter)
    array, F = rewriter.constants.array(value), weight.array.shape[0]
    if array is None or array.shape != (F,):
        raise Refusal(f"bias must be constant, of shape ({F},){overridable_text(value)}")
    steps = (of_x.step * weight.steps).astype(np.float32)
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear" and not node.domain:
        given, scale = (rewriter.constants.array(v) for v in node.inputs[:2])
        zero = rewriter.constants.array(node.inputs[2]) if len(node.inputs) > 2 else None
        is_plain = given is not None and given.dtype == np.int32 and (zero is None or not zero.any())
        if is_plain and scale is not None and _same_scale(scale.reshape(-1), steps):
            source = node.inputs[0]
            assert source is not None and given is not None  # see is_plain
            return source if source.is_initializer() else rewriter.initializer(f"{source.name}_folded", given)
    if (steps > 2 * BIAS_ROUNDING * of_y.step).any():
        raise Refusal("bias must be int32 in steps of x_scale * w_scale, which are too wide to round it to")
    rounded = np.rint(array.astype(np.float64) / steps)
    if not (np.abs(rounded) < 2**31).all():
        raise Refusal("bias in steps of x_scale * w_scale must fit int32")
    return rewriter.initializer(f"{value.name}_int32", rounded.astype(np.int32))


def _same_scale(given: np.ndarray, steps: np.ndarray) -> bool:
    import numpy as np

    return given.size in (1, max(steps.size, given.size)) and bool(np.allclose(given, steps, rtol=SAME_SCALE, atol=0))
