"""Which nodes of a graph are to compute in bfloat16: those where that saves more time than the Casts around them take.

What a set of nodes saves is known, in picoseconds: at each node what bfloat16 saves, less the Casts at the borders.
From all nodes that can, those go that are better outside, one after the other; then every region that as a whole takes
longer. A size that is not known counts as 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._body import DOMAIN, MIN_16_BIT_OPSET
from deepseek_fast.onnx._notes import Note, Refusal
from deepseek_fast.onnx._rewriter import overridable_text
from deepseek_fast.onnx._shapes import known_size

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "bf16"
# op type -> inputs of the one type T. All outputs are T.
OURS = {"FusedConv": (0, 1, 2, 3), "FusedMatmul": (0, 1, 2, 3), "Pool2d": (0,)}
WEIGHT = 1
ALL_INPUTS = None
# Of ai.onnx, and run in bfloat16 by ONNX Runtime's CPU provider, 1.20 to 1.31 (all others that move values are not:
# DepthToSpace, Expand, Pad, Resize, SpaceToDepth, Tile; nor is any that computes).
CARRIERS: dict[str, tuple[int, ...] | None] = {
    "Concat": ALL_INPUTS,
    **dict.fromkeys(("Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"), (0,)),
    "Unsqueeze": (0,),
}
INDIFFERENT = ("Shape", "Size")  # read any type
VIEWS = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # which move nothing
# Picoseconds on one Zen 5 core, 2026-11: an element by ONNX Runtime's Cast (1.24 and 1.31), two bytes less of an
# element to read or write (30 GB/s), a multiplication or an addition by bf16 dots (500 GF/s) instead of FMA (250).
CAST, CAST_BACK, HALVED, OPERATION = 400, 80, 70, 2
TOO_SLOW = "the Casts around it would take longer than bfloat16 saves"


@dataclass(frozen=True)
class Region:
    """Nodes in the graph's order that share values in bfloat16."""

    nodes: tuple[ir.Node, ...]
    saved: float  # picoseconds


def float_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Those that are of the type of the node's outputs."""
    places = OURS[node.op_type] if is_ours(node) else CARRIERS[node.op_type]
    found = enumerate(node.inputs) if places is ALL_INPUTS else [(i, node.inputs[i]) for i in places]
    return [(i, value) for i, value in found if value is not None]


def is_ours(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in OURS


class Plan:
    """The regions of a graph, and a note for every node of ours that is in none."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.refused: list[Note] = []
        self._inside = self._candidates()
        self._peel()
        self.regions = [region for region in self._regions() if self._pays(region)]

    # What can

    def _candidates(self) -> set[ir.Node]:
        found: set[ir.Node] = set()
        for node in self.rewriter.graph:
            if is_ours(node):
                if not _is_float(node):
                    continue
                try:
                    self._check(node)
                except Refusal as refusal:
                    self._refuse(node, str(refusal))
                else:
                    found.add(node)
            elif not node.domain and node.op_type in CARRIERS and _is_float(node):
                found.add(node)
        return found

    def _check(self, node: ir.Node) -> None:
        """Raises Refusal where the node must stay float32."""
        if self.rewriter.opset < MIN_16_BIT_OPSET:
            rule = f"a model in bfloat16 must be at opset {MIN_16_BIT_OPSET} or later"
            raise Refusal(f"{rule}; got {self.rewriter.opset}")
        for place, value in float_inputs(node):
            array = self.rewriter.constants.array(value)
            if array is not None:
                self._check_constant(value, array)
            elif place == WEIGHT:
                raise Refusal(f"weight must be constant; got '{value.name}'{overridable_text(value)}")

    def _check_constant(self, value: ir.Value, array: np.ndarray) -> None:
        import numpy as np

        stored = self.rewriter.constants.stored_bytes(value)
        if stored < array.nbytes // 2:
            size = f"{stored} bytes that would become {array.nbytes // 2}"
            raise Refusal(f"constants must not grow; got '{value.name}', {size}")
        if (np.isfinite(array) & ~np.isfinite(rounded(array).astype(np.float32))).any():
            raise Refusal(f"constants must be finite in bfloat16; got '{value.name}'")

    def _refuse(self, node: ir.Node, sentence: str) -> None:
        self.refused.append(Note(NAME, node.outputs[0].name or node.name or node.op_type, sentence))

    # What pays

    def _peel(self) -> None:
        """Nodes that are better outside go; neighbors of one that went are asked again."""
        border = list(self._inside)
        while border:
            node = border.pop()
            if node not in self._inside or not (self._is_loose(node) or self._gain_without(node) >= 0):
                continue
            self._inside.remove(node)
            border += [other for other in _neighbors(node) if other in self._inside]
            if is_ours(node):
                self._refuse(node, TOO_SLOW)

    def _is_loose(self, node: ir.Node) -> bool:
        """Whether it carries nothing from one of the nodes to another."""
        if is_ours(node):
            return False
        makers = any(value.producer() in self._inside for _, value in float_inputs(node))
        return not makers or not any(user in self._inside for value in node.outputs for user in value.consumers())

    def _gain_without(self, node: ir.Node) -> float:
        """Picoseconds by which the graph would be faster, were this node float32."""
        values = dict.fromkeys([*(value for _, value in float_inputs(node)), *node.outputs])
        casts = sum(self._casts(value) for value in values)
        self._inside.remove(node)
        casts -= sum(self._casts(value) for value in values)
        self._inside.add(node)
        return casts - saving(node, self.rewriter)

    def _casts(self, value: ir.Value) -> float:
        """What Casts of it take."""
        if self.rewriter.constants.array(value) is not None:
            return 0
        if value.producer() in self._inside:
            leaves = value.is_graph_output() or not all(self.reads(use.node, use.idx) for use in value.uses())
            return CAST_BACK * known_size(value) if leaves else 0
        return CAST * known_size(value) if any(user in self._inside for user in value.consumers()) else 0

    def reads(self, node: ir.Node, place: int) -> bool:
        """Whether the node is to read this input in bfloat16, where it is."""
        if node.op_type in INDIFFERENT and not node.domain:
            return True
        return node in self._inside and any(place == other for other, _ in float_inputs(node))

    def _pays(self, region: Region) -> bool:
        if region.saved > 0:
            return True
        self._inside.difference_update(region.nodes)
        for node in filter(is_ours, region.nodes):
            self._refuse(node, TOO_SLOW)
        return False

    def _regions(self) -> list[Region]:
        """What is connected."""
        found: list[Region] = []
        seen: set[ir.Node] = set()
        for first in self.rewriter.graph:
            if first not in self._inside or first in seen:
                continue
            members, left = {first}, [first]
            while left:
                new = [other for other in _neighbors(left.pop()) if other in self._inside and other not in members]
                members.update(new)
                left += new
            seen |= members
            values = dict.fromkeys(
                value for node in members for value in (*(value for _, value in float_inputs(node)), *node.outputs)
            )
            saved = sum(saving(node, self.rewriter) for node in members) - sum(self._casts(value) for value in values)
            found.append(Region(tuple(node for node in self.rewriter.graph if node in members), saved))
        return found


def rounded(array: np.ndarray) -> np.ndarray:
    """In bfloat16, to nearest even."""
    import ml_dtypes
    import numpy as np

    with np.errstate(over="ignore"):
        return array.astype(ml_dtypes.bfloat16)


def saving(node: ir.Node, rewriter: Rewriter) -> float:
    """Picoseconds that the node takes less in bfloat16."""
    if node.op_type in VIEWS:
        return 0
    values = [value for _, value in float_inputs(node)]
    elements = sum(map(known_size, [*values, *node.outputs]))
    return HALVED * elements + OPERATION * _operations(node, rewriter)


def _operations(node: ir.Node, rewriter: Rewriter) -> int:
    """Multiplications and additions; of a size that is not known one."""
    weight = rewriter.constants.array(node.inputs[WEIGHT]) if is_ours(node) and node.op_type != "Pool2d" else None
    x = node.inputs[0]
    if weight is None or x is None:
        return 0
    if node.op_type == "FusedMatmul":
        return 2 * weight.size * max(known_size(x) // weight.shape[1], 1)
    return 2 * weight.size * _pixels(node, x, weight.shape[2:])


def _pixels(node: ir.Node, x: ir.Value, kernel: tuple[int, ...]) -> int:
    """Of all images, where a FusedConv's sums are; before its pool."""
    pixels = 1
    places = (0, 1, 2) if _convs.value_of(node, "x_layout") == "NHWC" else (0, 2, 3)
    sizes = [1] * 3 if x.shape is None or x.shape.rank() != 4 else [x.shape[place] for place in places]
    images, *sides = [size if isinstance(size, int) else 1 for size in sizes]
    padding = _convs.value_of(node, "padding")
    for i, size in enumerate(sides):
        window = (kernel[i] - 1) * _convs.value_of(node, "dilation")[i] + 1
        free = max(size + padding[i] + padding[i + 2] - window, 0)
        pixels *= free // _convs.value_of(node, "stride")[i] + 1
    return images * pixels


def _is_float(node: ir.Node) -> bool:
    """Whether its values are float32; an output of which nothing is said is as the inputs."""
    import onnx_ir as ir

    types = [value.dtype for value in (*(value for _, value in float_inputs(node)), *node.outputs)]
    return all(dtype in (ir.DataType.FLOAT, None) for dtype in types) and ir.DataType.FLOAT in types


def _neighbors(node: ir.Node) -> Iterable[ir.Node]:
    for _, value in float_inputs(node):
        producer = value.producer()
        if producer is not None:
            yield producer
    for value in node.outputs:
        yield from value.consumers()
