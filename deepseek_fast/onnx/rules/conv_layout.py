"""ConvLayout: channels side by side (NHWC) from one convolution to the next, without a Transpose between them.

    t = FusedConv(x, ...); u = Relu(t); y = FusedConv(u, ...); z = Softmax(y)
    -> t = FusedConv(x, ..., y_layout="NHWC"); u = Relu(t); y = FusedConv(u, ..., x_layout="NHWC"); z = Softmax(y)

Values that elementwise nodes, Concat, Split, global pools and channel shuffles join have one layout, whichever moves
fewer bytes: a node of ours that reads or writes NCHW turns it on the way, a Transpose is a pass of its own. Such a
Transpose stands only where NHWC meets an operator that ai.onnx defines on NCHW, a graph's input or a graph's output.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._movable import TO_PIXELS, TO_PLANES, Movable, in_pixels, movable, ours
from deepseek_fast.onnx._shapes import known_size

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvLayout"
LEVEL = 3
# Passes over a value: what a node of ours turns on the way is read once more; a Transpose reads and writes, one of them
# far apart.
TURNED, TRANSPOSED = 1, 3


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    """All of the graph, when its first node of ours comes."""
    all_ours = [other for other in rewriter.graph if _convs.is_ours(other)]
    if not all_ours or node is not all_ours[0] or not all(_convs.in_planes(other) for other in all_ours):
        return None
    plan = _Plan(rewriter, all_ours)
    return plan.carry_out()


@dataclass
class _Value:
    """What touches a value: by whom it is made, and read."""

    value: ir.Value
    maker: str = "other"  # "ours", "movable", "other"
    turns: int = 0  # nodes of ours that would turn it, were it NCHW
    followers: list[tuple[ir.Node, int]] = field(default_factory=list)  # inputs that follow its layout


class _Plan:
    def __init__(self, rewriter: Rewriter, all_ours: list[ir.Node]) -> None:
        self.rewriter = rewriter
        self.values: dict[ir.Value, _Value] = {}
        self._parent: dict[ir.Value, ir.Value] = {}
        self.movables: list[Movable] = []
        self.sides: list[tuple[ir.Node, str, ir.Value]] = []
        self.transposes: list[str] = []
        self._add_ours(all_ours)
        self._add_movables()
        self.pixels = self._chosen()

    def carry_out(self) -> str | None:
        if not self.pixels:
            return None
        for node, attribute, value in self.sides:
            if value in self.pixels:
                changes = _convs.changed(node, **{attribute: "NHWC"})
                node.attributes[attribute] = changes[attribute]
                if attribute == "y_layout":
                    self._turn_residual(node)
        for moved in self.movables:
            if moved.outputs[0] in self.pixels:
                moved.move()
        for value in list(self.pixels):
            self._turn(self.values[value])
        between = f"NHWC in {len(self.pixels)} values"
        return f"{between}, Transpose at {', '.join(self.transposes)}" if self.transposes else between

    # What there is

    def _add_ours(self, all_ours: list[ir.Node]) -> None:
        for node in all_ours:
            for attribute, inputs, outputs in ours(node, self.rewriter):
                members = self._join(inputs, outputs, "ours")
                self.sides.append((node, attribute, members[-1]))

    def _add_movables(self) -> None:
        for node in self.rewriter.graph:
            found = movable(node, self.rewriter)
            if found is not None:
                self._join(found.inputs, found.outputs, "movable")
                self.movables.append(found)

    def _join(self, inputs: list[tuple[ir.Node, int]], outputs: list[ir.Value], kind: str) -> list[ir.Value]:
        """These have one layout."""
        members = []
        for node, place in inputs:
            value = node.inputs[place]
            assert value is not None  # see movable and ours
            members.append(value)
            known = self._known(value)
            known.followers.append((node, place))
            known.turns += kind == "ours"
        for value in outputs:
            members.append(value)
            known = self._known(value)
            known.maker = kind
            known.turns += kind == "ours"
        for value in members[1:]:
            self._parent[self._root(value)] = self._root(members[0])
        return members

    def _known(self, value: ir.Value) -> _Value:
        return self.values.setdefault(value, _Value(value))

    def _root(self, value: ir.Value) -> ir.Value:
        while value in self._parent and self._parent[value] is not value:
            value = self._parent[value]
        return value

    # What is best

    def _chosen(self) -> dict[ir.Value, None]:
        """The values that become NHWC."""
        groups: dict[ir.Value, list[_Value]] = defaultdict(list)
        for value, known in self.values.items():
            groups[self._root(value)].append(known)
        chosen: dict[ir.Value, None] = {}
        for group in groups.values():
            planes = sum(TURNED * known.turns * known_size(known.value) for known in group)
            pixels = sum(TRANSPOSED * self._boundaries(known) * known_size(known.value) for known in group)
            if pixels < planes:
                chosen |= dict.fromkeys(known.value for known in group)
        return chosen

    def _boundaries(self, known: _Value) -> int:
        """Transposes that NHWC would need at this value."""
        into = known.maker == "other" and not _is_transpose(known.value.producer(), TO_PLANES)
        return int(into) + int(bool(self._others(known)) or known.value.is_graph_output())

    def _others(self, known: _Value) -> list[tuple[ir.Node, int]]:
        """The inputs that need the value in NCHW."""
        followers = [*known.followers, *((node, 0) for node in self._undone(known))]
        return [(use.node, use.idx) for use in known.value.uses() if (use.node, use.idx) not in followers]

    def _undone(self, known: _Value) -> list[ir.Node]:
        """Transposes to NHWC, which need not be where that is what they get; of those that make outputs one."""
        if known.maker == "other":
            return []
        readers = [use.node for use in known.value.uses()]
        found = [node for node in readers if _is_transpose(node, TO_PIXELS) and node.graph is self.rewriter.graph]
        outputs = [node for node in found if node.outputs[0].is_graph_output()]
        return [node for node in found if node not in outputs[1:]]

    # What is done

    def _turn(self, known: _Value) -> None:
        value, others, undone = known.value, self._others(known), self._undone(known)
        if known.maker == "other":
            self._read_in_pixels(known)
            return
        name, shape = value.name, value.shape
        value.name = self.rewriter.unique(f"{name}_nhwc")
        value.shape = _permuted(shape, TO_PIXELS)
        if others or value.is_graph_output():
            planes = self._transpose(value, TO_PLANES, name or "", shape)
            for node, place in others:
                node.replace_input_with(place, planes)
            outputs = self.rewriter.graph.outputs
            for i, output in enumerate(outputs):
                if output is value:
                    outputs[i] = planes
        for node in undone:
            self._remove(node, value)

    def _remove(self, transpose: ir.Node, value: ir.Value) -> None:
        """value, in NHWC, stands for the result of a Transpose, and has its name where that is an output."""
        turned = transpose.outputs[0]
        name, is_output = turned.name, turned.is_graph_output()
        turned.replace_all_uses_with(value, replace_graph_outputs=True)
        self.rewriter.graph.remove(transpose, safe=True)
        if is_output:
            value.name = name

    def _read_in_pixels(self, known: _Value) -> None:
        """What something else makes in NCHW."""
        producer = known.value.producer()
        if producer is not None and _is_transpose(producer, TO_PLANES):
            pixels = producer.inputs[0]
        else:
            name = self.rewriter.unique(f"{known.value.name}_nhwc")
            pixels = self._transpose(known.value, TO_PIXELS, name, _permuted(known.value.shape, TO_PIXELS))
        for node, place in known.followers:
            node.replace_input_with(place, pixels)

    def _transpose(self, value: ir.Value, perm: tuple[int, ...], name: str, shape: ir.Shape | None) -> ir.Value:
        import onnx_ir as ir

        node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", perm)])
        output = node.outputs[0]
        output.name, output.shape, output.type = name, shape, value.type
        producer = value.producer()
        if producer is not None:
            self.rewriter.graph.insert_after(producer, node)
        else:
            self.rewriter.graph.insert_before(self.rewriter.graph[0], node)
        self.transposes.append(f"'{name if perm == TO_PLANES else value.name}'")
        return output

    def _turn_residual(self, node: ir.Node) -> None:
        """A constant one; a computed one follows its own value."""
        place = _convs.RESIDUAL_INPUTS.get(node.op_type)
        residual = node.inputs[place] if place is not None else None
        array = self.rewriter.constants.array(residual)
        if place is not None and residual is not None and array is not None and array.size > 1:
            node.replace_input_with(place, in_pixels(residual, array, self.rewriter))


def _is_transpose(node: ir.Node | None, perm: tuple[int, ...]) -> bool:
    if node is None or node.op_type != "Transpose" or node.domain or "perm" not in node.attributes:
        return False
    return tuple(node.attributes["perm"].as_ints()) == perm


def _permuted(shape: ir.Shape | None, perm: tuple[int, ...]) -> ir.Shape | None:
    import onnx_ir as ir

    return None if shape is None else ir.Shape([shape[i] for i in perm])
