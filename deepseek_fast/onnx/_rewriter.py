"""What the rewrite rules share: weights in (N, K), biases, and putting one node in the place of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, MIN_16_BIT_OPSET
from deepseek_fast.onnx._constants import Constants, is_overridable
from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

FUSED_OPS = ("Fp8Matmul", "FusedMatmul", "Int4Matmul", "Int8Matmul")
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Weight:
    """A constant that can be a weight: (K, N), or where transposed (N, K)."""

    value: ir.Value
    transposed: bool
    N: int
    dtype: np.dtype


class Rewriter:
    """One model under rewriting. Rules read the graph freely and change it through these methods only."""

    def __init__(self, model: ir.Model, *, may_expand_weights: bool = False) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = model.graph.opset_imports[""]
        self.constants = Constants(self.opset)
        self._may_expand_weights = may_expand_weights
        self._weights: dict[tuple[ir.Value, bool], ir.Value] = {}
        self._zeros: dict[tuple[tuple[int, ...], str], ir.Value] = {}
        self._names = {value.name for graph in model.graphs() for value in _values(graph)}

    # Checks: each raises Refusal where a rule must leave its node alone

    def check_only_consumer(self, value: ir.Value) -> ir.Node:
        """The one node that reads `value`, once and in this graph."""
        uses = list(value.uses())
        if value.is_graph_output():
            raise Refusal(f"'{value.name}' is also a graph output")
        if len(uses) != 1 or uses[0].node.graph is not self.graph:
            raise Refusal(f"'{value.name}' has {len(uses)} uses and must stay")
        return uses[0].node

    def check_input(self, x: ir.Value | None) -> ir.Value:
        """x, unless its producer says that integer kernels of the runtime are to serve the product; float8 has none."""
        if x is None:
            raise Refusal("x must be given")
        node = x.producer()
        if node is not None and node.op_type == "DequantizeLinear" and not is_float8(node.inputs[0]):
            raise Refusal("x comes from DequantizeLinear; the runtime's own integer operators serve such a product")
        return x

    def check_weight(self, value: ir.Value | None, *, transposed: bool) -> Weight:
        value, array = self._check_constant(value, "weight")
        dtype = str(array.dtype)
        if dtype not in WEIGHT_DTYPES:
            raise Refusal(f"weight must be float32, bfloat16 or float16; got dtype {dtype}")
        self.check_16_bit_opset(array.dtype)
        if array.ndim != 2:
            raise Refusal(f"weight must have 2 dimensions; got shape {array.shape}")
        if 0 in array.shape:
            raise Refusal(f"weight must have values; got shape {array.shape}")
        self.check_stored(value, array)
        return Weight(value, transposed, array.shape[0 if transposed else 1], array.dtype)

    def check_16_bit_opset(self, dtype: np.dtype) -> None:
        if str(dtype) != "float32" and self.opset < MIN_16_BIT_OPSET:
            raise Refusal(f"a {dtype} model must be at opset {MIN_16_BIT_OPSET} or later; got {self.opset}")

    def check_stored(self, value: ir.Value, array: np.ndarray) -> None:
        stored = self.constants.stored_bytes(value)
        if not self._may_expand_weights and stored < array.nbytes:
            size = f"{stored} bytes that would become {array.nbytes}"
            raise Refusal(f"weight must not grow unless quantize is given; got '{value.name}', {size}")

    def check_bias(self, value: ir.Value | None, N: int, output: ir.Value) -> ir.Value:
        """A constant that, added to `output` of N columns, is one row."""
        value, array = self._check_constant(value, "bias")
        if array.size not in (1, N) or array.shape[-1:] not in ((), (1,), (N,)):
            raise Refusal(f"bias must be one row of {N} values or one value; got shape {array.shape}")
        rank = output.shape.rank() if output.shape is not None else 1
        if array.ndim > rank:
            raise Refusal(f"bias of shape {array.shape} could raise the rank of '{output.name}'")
        return value

    def _check_constant(self, value: ir.Value | None, role: str) -> tuple[ir.Value, np.ndarray]:
        array = self.constants.array(value)
        if value is None or array is None:
            name = "none" if value is None else f"'{value.name}'"
            raise Refusal(f"{role} must be constant; got {name}{overridable_text(value)}")
        return value, array

    # Changes

    def weight(self, weight: Weight) -> ir.Value:
        """The weight as an (N, K) initializer, the same one for every user."""
        value, transposed = weight.value, weight.transposed
        source = _matrix_under_transpose(value)
        if source is not None and self.constants.array(source) is not None:
            return self.weight(Weight(source, not transposed, weight.N, weight.dtype))
        if transposed and value.is_initializer():
            return value
        key = (value, transposed)
        if key not in self._weights:
            import numpy as np

            _, array = self._check_constant(value, "weight")
            rows = array if transposed else array.T
            self._weights[key] = self.initializer(f"{value.name}_nk", np.ascontiguousarray(rows))
        return self._weights[key]

    def bias(self, value: ir.Value, N: int) -> ir.Value:
        """The checked bias as an (N,) initializer."""
        import numpy as np

        _, array = self._check_constant(value, "bias")
        if value.is_initializer() and array.shape == (N,):
            return value
        row = np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (N,)))
        return self.initializer(f"{value.name}_row", row)

    def zeros(self, shape: int | tuple[int, ...], dtype: np.dtype) -> ir.Value:
        """An initializer of zeros; one for all who ask."""
        import numpy as np

        sizes = (shape,) if isinstance(shape, int) else shape
        key = (sizes, str(dtype))
        if key not in self._zeros:
            stem = f"zeros_{dtype}_{'x'.join(map(str, sizes))}"
            self._zeros[key] = self.initializer(stem, np.zeros(sizes, dtype))
        return self._zeros[key]

    def initializer(self, stem: str, array: np.ndarray) -> ir.Value:
        import onnx_ir as ir

        name = self.unique(stem)
        tensor = ir.tensor(array, name=name)
        shape = ir.Shape(array.shape)
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def fuse(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, str | int | Sequence[int] | ir.Attr],
        replaced: Sequence[ir.Node],
        *,
        domain: str = DOMAIN,
    ) -> None:
        """One node in the place of `replaced`, whose last one gives it its place and its output's name."""
        import onnx_ir as ir

        last = replaced[-1]
        tail = last.outputs[0]
        node = ir.Node(
            domain,
            op_type,
            inputs,
            attributes=ir.convenience.convert_attributes(attributes),
            version=DOMAIN_VERSION if domain == DOMAIN else None,
            name=last.name,
            metadata_props=dict(last.metadata_props),
        )
        output = node.outputs[0]
        output.shape, output.type = tail.shape, tail.type
        output.metadata_props.update(tail.metadata_props)
        self.graph.insert_before(last, node)
        tail.replace_all_uses_with(output, replace_graph_outputs=True)
        name = tail.name
        self.graph.remove(list(reversed(replaced)), safe=True)
        output.name = name

    def unique(self, stem: str) -> str:
        """A name that no value of the model has."""
        name, count = stem, 0
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name


def is_float8(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name.startswith("FLOAT8E")


def is_fused(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in FUSED_OPS


def text(node: ir.Node, attribute: str, default: str) -> str:
    value = node.attributes.get(attribute)
    return default if value is None else value.as_string()


def number(node: ir.Node, attribute: str, default: float) -> float:
    value = node.attributes.get(attribute)
    return default if value is None else float(value.value)


def overridable_text(value: ir.Value | None) -> str:
    return ", an overridable graph input" if is_overridable(value) else ""


def _matrix_under_transpose(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    perm = node.attributes.get("perm")
    return node.inputs[0] if perm is None or tuple(perm.as_ints()) == (1, 0) else None


def _values(graph: ir.Graph) -> list[ir.Value]:
    outputs = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *outputs]
