"""FusedConv, Pool2d and LocalResponseNorm in a model: what their bodies read, and what the rules ask about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import DOMAIN
from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

OP_TYPES = ("FusedConv", "FusedConvInt8", "Pool2d", "LocalResponseNorm")
X, WEIGHT, BIAS, RESIDUAL = range(4)  # inputs of FusedConv
RESIDUAL_INPUTS = {"FusedConv": RESIDUAL, "FusedConvInt8": 8}
NO_RESIDUAL_SHAPE = (1, 1, 1, 1)
# Parameters of an activation that gives none, as the Python functions have them.
DEFAULT_PARAMS = {"leaky_relu": (0.01,), "hardsigmoid": (1 / 6, 0.5)}
EXPLICIT_PADDING, NO_PADDING, EXTRA_AT_END = "NOTSET", "VALID", "SAME_UPPER"  # auto_pad


def complete_conv(node: ir.Node, rewriter: Rewriter) -> None:
    """The node gets all its inputs and attributes."""
    from deepseek_fast.kernels.fused_conv.body import INPUTS

    _complete_attributes(node)
    names = INPUTS[node.op_type]
    lowest = names.index("B") if "B" in names else len(names)  # what follows may be left out
    if not lowest <= len(node.inputs) <= len(names) or None in node.inputs[:lowest]:
        rule = f"optimize: model must give {node.op_type} from {lowest} to {len(names)} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if len(node.inputs) < len(names):
        node.resize_inputs(len(names))
    if "B" in names:
        _give_zeros(node, dict(zip(names, node.inputs, strict=True)), rewriter)


def _complete_attributes(node: ir.Node) -> None:
    given = dict(node.attributes)
    for name, attribute in attributes(node.op_type).items():
        node.attributes.setdefault(name, attribute)
    for stem in ("", "pool_"):
        kernel = given.get(f"{stem}kernel")
        if kernel is not None and f"{stem}stride" not in given:  # as torch has it
            node.attributes[f"{stem}stride"] = _attribute(f"{stem}stride", tuple(kernel.as_ints()))
    if "activation" in node.attributes and not node.attributes["activation_params"].value:
        params = DEFAULT_PARAMS.get(node.attributes["activation"].as_string(), ())
        node.attributes["activation_params"] = _attribute("activation_params", params)


def _give_zeros(node: ir.Node, inputs: dict[str, ir.Value | None], rewriter: Rewriter) -> None:
    """A bias and a residual that are not there are zeros; of a FusedConvInt8 the residual's scale is 1."""
    import numpy as np

    from deepseek_fast.onnx._attach import zero_bias

    y_zero_point, weight = inputs.get("y_zero_point"), inputs["W"]
    assert weight is not None  # see complete_conv
    is_int8 = "y_zero_point" in inputs
    dtype = y_zero_point.dtype.numpy() if y_zero_point is not None and y_zero_point.dtype else _dtype(node)
    zeros: dict[str, Callable[[], ir.Value]] = {
        "B": lambda: zero_bias(weight, np.dtype(np.int32) if is_int8 else dtype, node, rewriter),
        "R": lambda: rewriter.zeros(NO_RESIDUAL_SHAPE, dtype),
        "r_scale": lambda: rewriter.initializer("one", np.array(1, np.float32)),
        "r_zero_point": lambda: rewriter.zeros((), dtype),
    }
    for place, (name, value) in enumerate(inputs.items()):
        if value is None:
            node.replace_input_with(place, zeros[name]())


def attributes(op_type: str, **given: Any) -> dict[str, ir.Attr]:
    """All attributes of a new node: those given, and for the others the defaults."""
    from deepseek_fast.kernels.fused_conv.body import DEFAULTS

    return {name: _attribute(name, value) for name, value in (DEFAULTS[op_type] | given).items()}


def changed(node: ir.Node, **given: Any) -> dict[str, ir.Attr]:
    """All attributes of a node, but for those given."""
    return dict(node.attributes) | {name: _attribute(name, value) for name, value in given.items()}


def _attribute(name: str, value: Any) -> ir.Attr:
    import onnx_ir as ir

    if name == "activation_params":  # an empty list tells no type
        return ir.AttrFloat32s(name, tuple(value))
    return ir.convenience.convert_attribute(name, value)


def is_conv(node: ir.Node | None) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type == "FusedConv"


def is_ours(node: ir.Node | None) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type in OP_TYPES


def is_conv_int8(node: ir.Node | None) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type == "FusedConvInt8"


def made_by_conv(value: ir.Value | None, rewriter: Rewriter, *, or_int8: bool = False) -> ir.Node | None:
    """The FusedConv, or FusedConvInt8, of this graph that makes `value`."""
    node = value.producer() if value is not None else None
    is_made = is_conv(node) or (or_int8 and is_conv_int8(node))
    return node if node is not None and is_made and node.graph is rewriter.graph else None


def value_of(node: ir.Node, name: str) -> Any:
    """An attribute of a node of ours, all of which are complete; lists as tuples."""
    value = node.attributes[name].value
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def in_planes(node: ir.Node) -> bool:
    """Whether X and Y are (N, C, H, W)."""
    return value_of(node, "x_layout") == value_of(node, "y_layout") == "NCHW"


def has_pool(node: ir.Node) -> bool:
    return (*value_of(node, "pool_kernel"), *value_of(node, "pool_stride")) != (1, 1, 1, 1)


def has_residual(node: ir.Node, rewriter: Rewriter) -> bool:
    array = rewriter.constants.array(node.inputs[RESIDUAL])
    return array is None or array.size != 1 or bool(array.any())


def is_bare(node: ir.Node, rewriter: Rewriter) -> bool:
    """Whether nothing follows the sum and its bias."""
    return value_of(node, "activation") == "none" and not has_pool(node) and not has_residual(node, rewriter)


def window(node: ir.Node, kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """stride, padding and dilation of a Conv or pool of ai.onnx in 2 dimensions, auto_pad resolved."""
    found = {
        name: tuple(node.attributes[onnx_name].as_ints()) if onnx_name in node.attributes else default
        for name, onnx_name, default in (
            ("stride", "strides", (1, 1)),
            ("padding", "pads", (0, 0, 0, 0)),
            ("dilation", "dilations", (1, 1)),
        )
    }
    auto_pad = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else EXPLICIT_PADDING
    if [len(kernel), *(len(sizes) for sizes in found.values())] != [2, 2, 4, 2]:
        raise Refusal(f"the window must have 2 dimensions; got a kernel of {len(kernel)}")
    if auto_pad != EXPLICIT_PADDING:
        found["padding"] = _resolved(auto_pad, node.inputs[0], kernel, found)
    if min(found["padding"]) < 0:
        raise Refusal(f"pads must not be negative; got {found['padding']}")
    return found


def _resolved(
    auto_pad: str, x: ir.Value | None, kernel: tuple[int, ...], found: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """top, left, bottom, right that auto_pad stands for."""
    if auto_pad == NO_PADDING:
        return (0, 0, 0, 0)
    sizes = [size for size in (x.shape[2:] if x is not None and x.shape is not None else ()) if isinstance(size, int)]
    if len(sizes) != 2:
        raise Refusal(f"auto_pad {auto_pad} needs known rows and columns")
    totals = [
        max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        for size, k, stride, dilation in zip(sizes, kernel, found["stride"], found["dilation"], strict=True)
    ]
    less = [total // 2 for total in totals]
    more = [total - part for total, part in zip(totals, less, strict=True)]
    return (*less, *more) if auto_pad == EXTRA_AT_END else (*more, *less)


def pool_window(node: ir.Node) -> dict[str, Any]:
    """kernel, stride, padding and ceil_mode of a MaxPool or AveragePool of ai.onnx, where ours can do it."""
    kernel = tuple(node.attributes["kernel_shape"].as_ints())
    found = window(node, kernel)
    if found.pop("dilation") != (1, 1):
        raise Refusal("dilations must be 1")
    if any(2 * pad > kernel[i % 2] for i, pad in enumerate(found["padding"])):
        raise Refusal(f"pads must be at most half of kernel_shape {kernel}; got {found['padding']}")
    ceil_mode = int(node.attributes["ceil_mode"].as_int()) if "ceil_mode" in node.attributes else 0
    return {"kernel": kernel, **found, "ceil_mode": ceil_mode}


def per_channel(array: np.ndarray, channels: int, rank: int = 4) -> np.ndarray:
    """The numbers, one a channel, of a constant that meets (N, C, H, W)."""
    import numpy as np

    shape = (1,) * (rank - array.ndim) + array.shape
    if len(shape) != rank or shape[0] != 1 or shape[1] not in (1, channels) or set(shape[2:]) - {1}:
        raise Refusal(f"the constant must be one number a channel; got shape {array.shape}")
    return np.broadcast_to(array.reshape(-1), (channels,))


def fold(node: ir.Node, scale: np.ndarray, shift: np.ndarray, tail: ir.Node, rewriter: Rewriter) -> None:
    """A bare FusedConv and `tail`, which makes scale * y + shift of it, become one; constants folded in float64."""
    import numpy as np

    weight, bias = (rewriter.constants.array(node.inputs[i]) for i in (WEIGHT, BIAS))
    if weight is None or bias is None:
        raise Refusal("weight and bias must be constant")
    scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
    with np.errstate(all="ignore"):
        new_weight = (weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)).astype(weight.dtype)
        new_bias = (bias.astype(np.float64) * scale + shift).astype(bias.dtype)
    if not (np.isfinite(new_weight.astype(np.float64)).all() and np.isfinite(new_bias.astype(np.float64)).all()):
        raise Refusal("the folded weight and bias must be finite")
    inputs = list(node.inputs)
    if (scale != 1).any():
        inputs[WEIGHT] = rewriter.initializer(f"{_name(inputs[WEIGHT])}_folded", new_weight)
    inputs[BIAS] = rewriter.initializer(f"{_name(inputs[WEIGHT])}_bias", new_bias)
    rewriter.fuse("FusedConv", inputs, changed(node), [node, tail])


def _name(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


def _dtype(node: ir.Node) -> np.dtype:
    import numpy as np

    known = [v.dtype for v in (*node.inputs, node.outputs[0]) if v is not None and v.dtype]
    return known[0].numpy() if known else np.dtype(np.float32)
