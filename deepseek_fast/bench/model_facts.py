"""What an ONNX file says about its nodes that ONNX Runtime's profiler does not: domain, attributes, weights' shapes."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepseek_fast.bench.model_cost import CONTRIB, INT8_MATMULS

if TYPE_CHECKING:
    import onnx

    from deepseek_fast.onnx import Note

REWRITTEN = ("MatMul", "Gemm")  # the products that the optimizer takes
QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear", *INT8_MATMULS)
# What ONNX Runtime puts behind the name of a node that it replaces: NCHWc and NHWC convolutions, MatMul + Add -> Gemm.
SUFFIX = re.compile(r"(?:_nchwc|_nhwc|_token_\d+|/MatMulAddFusion)+$")


@dataclass(frozen=True)
class Fact:
    """One node of the file."""

    op_type: str
    domain: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[tuple[int, ...], ...] = ()
    left_alone: str | None = None  # why the optimizer did not take it


class Facts:
    """Facts of a file's nodes, by the name under which the profiler reports them.

    refused: what the optimizer that wrote the file said; None: nobody optimized it.
    """

    def __init__(self, model: "onnx.ModelProto", refused: "Sequence[Note] | None" = None) -> None:
        # The last rule that looked at a node is the one that could have taken it whole.
        reasons = {note.node: f"{note.rule}: {note.sentence}" for note in refused or ()}
        self._is_optimized = refused is not None
        self._facts: dict[tuple[bool, str], Fact] = {}
        self._domains: dict[str, str] = {}
        for node, name, shapes, is_inside in _nodes(model.graph, {}):
            weights = tuple(shapes[value] for value in node.input if len(shapes.get(value, ())) > 1)
            reason = next((reasons[value] for value in (*node.output, node.name) if value in reasons), None)
            fact = Fact(node.op_type, node.domain, _attributes(node), weights, reason)
            self._facts.setdefault((is_inside, name), fact)
            self._domains.setdefault(node.op_type, node.domain)

    def of(self, name: str, op_type: str, inside: str = "") -> Fact:
        """The fact of a profiled node; ONNX Runtime's own nodes, which the file does not have, get a guessed domain.

        inside: names of the Loop, If or Scan around it, each with a / behind it.
        """
        stem = SUFFIX.sub("", name)
        found = self._facts.get((bool(inside), name)) or self._facts.get((bool(inside), stem))
        same = found if found is not None and found.op_type == op_type else None
        fact = same or Fact(op_type, self._domains.get(op_type, _home(op_type)))
        return dataclasses.replace(fact, left_alone=self._why(found, op_type, inside))

    def is_quantized(self) -> bool:
        """Whether values are rounded to int8 as they come, which float sums of another order may tip over."""
        return not self._domains.keys().isdisjoint(QUANTIZING)

    def _why(self, found: Fact | None, op_type: str, inside: str) -> str | None:
        """Why the optimizer left a node of the file alone, which ONNX Runtime may have replaced since."""
        if not self._is_optimized or found is None:
            return None
        if inside and op_type in REWRITTEN:
            return f"it is inside {inside.rstrip('/')}, and only the main graph is rewritten"
        if found.op_type != op_type and not {found.op_type, op_type} <= set(REWRITTEN):
            return None
        if found.left_alone is None and found.op_type == "MatMul" and not found.domain:
            return "its second factor is computed"  # the one thing that the rule for MatMul has no word for
        return found.left_alone


def _home(op_type: str) -> str:
    """ "" for an operator of the ONNX standard."""
    from onnx import defs

    return "" if defs.has(op_type) else CONTRIB


def _nodes(
    graph: "onnx.GraphProto", outer: Mapping[str, tuple[int, ...]], is_inside: bool = False
) -> Iterator[tuple["onnx.NodeProto", str, Mapping[str, tuple[int, ...]], bool]]:
    """(node, its name in a profile, shapes of the constants in sight, whether it is in a Loop, If or Scan)."""
    shapes = {**outer, **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            shapes.update((node.output[0], tuple(a.t.dims)) for a in node.attribute if a.name == "value")
    for i, node in enumerate(graph.node):
        yield node, node.name or f"{node.op_type}_{i}", shapes, is_inside
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner, shapes, True)


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    """Those that are a number or a word."""
    from onnx import AttributeProto

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.INT:
            found[attribute.name] = attribute.i
        elif attribute.type == AttributeProto.STRING:
            found[attribute.name] = attribute.s.decode(errors="replace")
    return found
