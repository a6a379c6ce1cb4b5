"""Writes ONNX function bodies: plain ai.onnx nodes that choose by string attribute.

A FunctionProto cannot be overloaded where every runtime honours it, so one body serves every value of a string
attribute: the attribute is read by Constant(value_string=@name) and compared with each value it may have; the
comparison is Size(Unique([attribute, value])) == 1, because Equal knows strings from opset 19 only. A runtime that
folds constants, as ONNX Runtime does, keeps nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

DOMAIN = "ai.deepseek_fast"
DOMAIN_VERSION = 1
MIN_OPSET, MAX_OPSET = 13, 25  # ai.onnx opsets that the bodies are written and tested for
MIN_16_BIT_OPSET = 15  # CastLike, by which a body returns to X's type where it is no float32, comes with opset 15
FLOAT_TYPES = ["tensor(float)", "tensor(bfloat16)", "tensor(float16)"]  # of X, B, R and Y
GELU_OPSET = 20  # the first opset with a Gelu operator
REDUCE_AXES_INPUT_OPSET = 18  # ReduceMax takes its axes as an input from here on
MAX_INT64 = 2**63 - 1  # the end of any axis, for Slice
SQRT_2 = 1.4142135623730951
SQRT_2_OVER_PI = 0.7978845608028654
GELU_CUBIC = 0.044715


class BodyWriter:
    """Collects the nodes of one body; every method returns the name of the value it makes."""

    def __init__(self, opset: int, min_opset: int = MIN_OPSET, *, gated: bool = False) -> None:
        if not min_opset <= opset <= MAX_OPSET:
            raise ValueError(f"function_proto: opset must be from {min_opset} to {MAX_OPSET}; got {opset}")
        self.opset = opset
        self.gated = gated
        self.nodes: list[onnx.NodeProto] = []
        self._names = 0

    def fresh(self, stem: str) -> str:
        self._names += 1
        return f"{stem}_{self._names}"

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        output = output or self.fresh(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, value: float | Sequence[Any], dtype: str = "float32") -> str:
        import numpy as np
        from onnx import numpy_helper

        return self.op("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def attribute(self, name: str) -> str:
        """The value of the string attribute `name` of the calling node, as a tensor of shape (1,)."""
        import onnx

        scalar = self._referred(name, "value_string", onnx.AttributeProto.STRING)
        return self.op("Reshape", scalar, self.constant([1], "int64"))

    def integers(self, name: str) -> str:
        """The values of the attribute `name` of the calling node, as a tensor of one dimension."""
        import onnx

        return self._referred(name, "value_ints", onnx.AttributeProto.INTS)

    def integer(self, name: str) -> str:
        """The value of the integer attribute `name` of the calling node, as a tensor of shape (1,)."""
        return self.op("Reshape", self.scalar(name), self.constant([1], "int64"))

    def scalar(self, name: str) -> str:
        """The value of the integer attribute `name` of the calling node, of no dimensions."""
        import onnx

        return self._referred(name, "value_int", onnx.AttributeProto.INT)

    def flag(self, name: str) -> str:
        """Whether the integer attribute `name` of the calling node is not 0."""
        return self.op("Not", self.op("Equal", self.scalar(name), self.constant(0, "int64")))

    def cast_as(self, name: str, value: str, output: str | None = None, *, saturate: str | None = None) -> str:
        """Cast to the type that the attribute `name` of the calling node names, saturating as `saturate` says."""
        import onnx

        result = self.op("Cast", value, output=output)
        for field, attribute in (("to", name), ("saturate", saturate)):
            if attribute is not None:
                self.nodes[-1].attribute.add(name=field, ref_attr_name=attribute, type=onnx.AttributeProto.INT)
        return result

    def number(self, name: str) -> str:
        """The value of the float attribute `name` of the calling node, of no dimensions."""
        import onnx

        return self._referred(name, "value_float", onnx.AttributeProto.FLOAT)

    def floats(self, name: str) -> str:
        """The values of the attribute `name` of the calling node, as a tensor of one dimension."""
        import onnx

        return self._referred(name, "value_floats", onnx.AttributeProto.FLOATS)

    def referring(self, op_type: str, *inputs: str, attributes: Mapping[str, tuple[str, int]]) -> str:
        """A node some of whose attributes are the calling node's: by name, that one's name and AttributeProto type."""
        result = self.op(op_type, *inputs)
        for name, (referred, kind) in attributes.items():
            self.nodes[-1].attribute.add(name=name, ref_attr_name=referred, type=kind)
        return result

    def _referred(self, name: str, field: str, kind: Any) -> str:
        from onnx import helper

        value = self.fresh(name)
        node = helper.make_node("Constant", [], [value])
        node.attribute.add(name=field, ref_attr_name=name, type=kind)
        self.nodes.append(node)
        return value

    def reduce_last(self, op_type: str, x: str) -> str:
        """ReduceMax or ReduceSum of the last axis, to 1."""
        return self.reduce(op_type, x, [-1])

    def reduce(self, op_type: str, x: str, axes: list[int]) -> str:
        """ReduceMax or ReduceSum of some axes, each to 1."""
        if op_type == "ReduceSum" or self.opset >= REDUCE_AXES_INPUT_OPSET:
            return self.op(op_type, x, self.constant(axes, "int64"), keepdims=1)
        return self.op(op_type, x, axes=axes, keepdims=1)

    def equals(self, text: str, value: str) -> str:
        """Whether the (1,) string tensor `text` holds `value`: a boolean scalar."""
        both = self.op("Concat", text, self.op("Constant", value_strings=[value]), axis=0)
        return self.op("Equal", self.op("Size", self.op("Unique", both)), self.constant(1, "int64"))

    def choose(
        self, condition: str, then: Callable[[], str], otherwise: Callable[[], str], dtype: int | None = None
    ) -> str:
        """An If; `then` and `otherwise` write their branch and return its result. dtype: of TensorProto, or FLOAT."""
        branches = (self._branch(write, dtype) for write in (then, otherwise))
        return self.op("If", condition, **dict(zip(("then_branch", "else_branch"), branches, strict=True)))

    def _branch(self, write: Callable[[], str], dtype: int | None) -> onnx.GraphProto:
        from onnx import TensorProto, helper

        outer, self.nodes = self.nodes, []
        result = write()
        if not any(result in node.output for node in self.nodes):  # a value from outside is no output of a branch
            result = self.op("Identity", result)
        output = helper.make_tensor_value_info(result, dtype or TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, self.fresh("branch"), [], [output])
        self.nodes = outer
        return graph

    def to_float(self, name: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", name, to=TensorProto.FLOAT)

    def epilogue(self, total: str, *, apart: bool = False) -> None:
        """Y = activation(total + B) + R in float32, rounded once to X's type.

        apart: B is subtracted with its sign changed, the same bits. ONNX Runtime 1.31 makes a Gemm of a MatMul and an
        Add; a Gemm between a DequantizeLinear and a QuantizeLinear gets an int8 weight, another result, and becomes a
        QGemm, which knows no float8, so that the model does not load.

        In a body for gated nodes too, Y of those = activation(first half of the columns) * second half + R. Such a body
        leaves the number of Y's columns open; where nothing is gated it must not: ai.onnx's Attention takes an unknown
        number for 0 (ONNX 1.23), and ONNX Runtime refuses what follows.
        """
        from onnx import TensorProto

        bias = self.to_float("B")
        z = self.op("Sub", total, self.op("Neg", bias)) if apart else self.op("Add", total, bias)
        z = self._gated_activation(z) if self.gated else self.activation(z)
        y = self.op("Add", z, self.to_float("R"))
        if self.opset >= MIN_16_BIT_OPSET:
            self.op("CastLike", y, "X", output="Y")
        else:
            self.op("Cast", y, output="Y", to=TensorProto.FLOAT)

    def activation(self, z: str, known: Mapping[str, Callable[[BodyWriter, str], str]] | None = None) -> str:
        """What the attribute activation of the calling node makes of z; known: instead of ACTIVATIONS."""
        activation = self.attribute("activation")
        for value, write in (known or ACTIVATIONS).items():
            here = z
            z = self.choose(
                self.equals(activation, value),
                lambda here=here, write=write: write(self, here),  # type: ignore[misc]
                lambda here=here: self.op("Identity", here),  # type: ignore[misc]
            )
        return z

    def _gated_activation(self, whole: str) -> str:
        gated = self.flag("gated")
        first, last, axis, one = (self.constant([value], "int64") for value in (0, MAX_INT64, -1, 1))

        def half() -> str:  # within a branch: a stock runtime keeps nothing of the branch that is not taken
            return self.op("Reshape", self.op("Div", self.op("Size", "B"), self.constant(2, "int64")), one)

        def up() -> str:
            return self.op("Slice", whole, half(), last, axis)

        gate = self.choose(
            gated, lambda: self.op("Slice", whole, first, half(), axis), lambda: self.op("Identity", whole)
        )
        factor = self.activation(gate)
        return self.choose(gated, lambda: self.op("Mul", factor, up()), lambda: self.op("Identity", factor))

    def function(
        self, op_type: str, inputs: Sequence[str], attributes: Sequence[str], outputs: Sequence[str] = ("Y",)
    ) -> onnx.FunctionProto:
        from onnx import helper

        opset_imports = [helper.make_opsetid("", self.opset)]
        return helper.make_function(
            DOMAIN, op_type, list(inputs), list(outputs), self.nodes, opset_imports, attributes=list(attributes)
        )


def _relu(body: BodyWriter, z: str) -> str:
    return body.op("Relu", z)


def _relu6(body: BodyWriter, z: str) -> str:
    return body.op("Clip", z, body.constant(0.0), body.constant(6.0))


def _hardswish(body: BodyWriter, z: str) -> str:
    """In the order of activation.h, bit for bit; HardSwish itself exists from opset 14 only, and makes NaN of -inf.

    Not Max(z, -3), whose product is -0: ONNX Runtime removes an Add of zero, which would make it +0.
    """
    share = body.op("Div", _relu6(body, body.op("Add", z, body.constant(3.0))), body.constant(6.0))
    is_low = body.op("LessOrEqual", z, body.constant(-3.0))
    return body.op("Mul", body.op("Where", is_low, body.constant(0.0), z), share)


def _gelu(body: BodyWriter, z: str) -> str:
    """Below opset 20 in the order that ONNX Runtime makes one node of. Its last node is no Mul by a constant: ONNX
    Runtime 1.31.1 folds such a one into the next MatMul, and fails to load the model where there is another reader."""
    if body.opset >= GELU_OPSET:
        return body.op("Gelu", z, approximate="none")
    one_plus_erf = body.op("Add", body.op("Erf", body.op("Div", z, body.constant(SQRT_2))), body.constant(1.0))
    return body.op("Mul", body.op("Mul", z, body.constant(0.5)), one_plus_erf)


def _gelu_tanh(body: BodyWriter, z: str) -> str:
    if body.opset >= GELU_OPSET:
        return body.op("Gelu", z, approximate="tanh")
    cube = body.op("Mul", body.op("Pow", z, body.constant(3.0)), body.constant(GELU_CUBIC))
    inner = body.op("Mul", body.op("Add", z, cube), body.constant(SQRT_2_OVER_PI))
    one_plus_tanh = body.op("Add", body.op("Tanh", inner), body.constant(1.0))
    return body.op("Mul", body.op("Mul", z, body.constant(0.5)), one_plus_tanh)


def _silu(body: BodyWriter, z: str) -> str:
    return body.op("Mul", z, body.op("Sigmoid", z))


def _sigmoid(body: BodyWriter, z: str) -> str:
    return body.op("Sigmoid", z)


def _tanh(body: BodyWriter, z: str) -> str:
    return body.op("Tanh", z)


ACTIVATIONS: dict[str, Callable[[BodyWriter, str], str]] = {  # "none" is the absence of all of these
    "relu": _relu,
    "relu6": _relu6,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "hardswish": _hardswish,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
}
ACTIVATION_NAMES = ("none", *ACTIVATIONS)
