"""The pass of precision="bf16": regions of our nodes compute in bfloat16, between one Cast and one Cast back.

    y = FusedConv(x, W, B, 0); z = Pool2d(y); s = Softmax(z)                           all float32
    -> x_bf16 = Cast(x); y_bf16 = FusedConv(x_bf16, W_bf16, B_bf16, 0); z_bf16 = Pool2d(y_bf16); z = Cast(z_bf16);
       s = Softmax(z)

Constants are rounded once, to nearest even. What is between such nodes and only moves values (_bf16_regions.CARRIERS)
is part of the region; any other node, a subgraph and an output of the graph read float32. Values keep their names where
they keep their type.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._bf16_regions import NAME, Plan, Region, float_inputs, is_ours, rounded
from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION
from deepseek_fast.onnx._notes import Note
from deepseek_fast.onnx._rewriter import Rewriter, number

if TYPE_CHECKING:
    import onnx_ir as ir

SPATIAL_AXES = [2, 3]


def to_bf16(rewriter: Rewriter, rewritten: list[Note], refused: list[Note]) -> None:
    """Before layouts and algorithms are chosen: Winograd's is for float32 alone."""
    for node in list(rewriter.graph):
        _make_pool(node, rewriter)
    plan = Plan(rewriter)
    casts = _Casts(plan)
    for region in plan.regions:
        name = region.nodes[0].outputs[0].name or ""
        rewritten.append(Note(NAME, name, casts.turn(region)))
    refused += plan.refused


def _make_pool(node: ir.Node, rewriter: Rewriter) -> None:
    """ReduceMean -> Pool2d (-> Flatten) where it is of all rows and columns that one of ours made: no exit."""
    import onnx_ir as ir

    x = node.inputs[0] if node.op_type == "ReduceMean" and not node.domain else None
    maker = x.producer() if x is not None else None
    if x is None or maker is None or not is_ours(maker) or x.dtype != ir.DataType.FLOAT or x.shape is None:
        return
    sizes = tuple(x.shape[2:])
    if x.shape.rank() != 4 or not all(isinstance(size, int) and size > 0 for size in sizes):
        return
    if _axes(node, rewriter) != SPATIAL_AXES:
        return
    attributes = _convs.attributes("Pool2d", kind="average", kernel=sizes, stride=sizes)
    if number(node, "keepdims", 1):
        rewriter.fuse("Pool2d", [x], attributes, [node])
        return
    pool = ir.Node(DOMAIN, "Pool2d", [x], attributes=attributes.values(), version=DOMAIN_VERSION)
    mean = pool.outputs[0]
    mean.name, mean.type = rewriter.unique(f"{node.outputs[0].name}_kept"), x.type
    mean.shape = ir.Shape([*x.shape[:2], 1, 1])
    rewriter.graph.insert_before(node, pool)
    rewriter.fuse("Flatten", [mean], {"axis": 1}, [node], domain="")


def _axes(node: ir.Node, rewriter: Rewriter) -> list[int] | None:
    """Of a value of 4 dimensions, in order; an input from opset 18 on."""
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        array = rewriter.constants.array(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if array is None else [int(axis) for axis in array.reshape(-1)]
    return sorted(axis % 4 for axis in axes)


class _Casts:
    """Turns regions, and knows what it has made."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rewriter = plan.rewriter
        self._inside = {node for region in plan.regions for node in region.nodes}
        self._made: dict[ir.Value, ir.Value] = {}  # of a value outside, or of a constant: in bfloat16

    def turn(self, region: Region) -> str:
        """Says what came out."""
        begins: dict[str, None] = {}
        ends: dict[str, None] = {}
        for node in region.nodes:
            for place, value in float_inputs(node):
                if value.producer() in self._inside:
                    continue
                if self._rewriter.constants.array(value) is None:
                    begins[f"'{value.name}'"] = None
                node.replace_input_with(place, self._in_bf16(value))
        for node in region.nodes:
            if node.op_type == "FusedConv":
                node.attributes["algorithm"] = _convs.changed(node, algorithm="direct")["algorithm"]
            for value in node.outputs:
                ends |= dict.fromkeys(self._leave(value))
        kinds = Counter(node.op_type for node in region.nodes if is_ours(node))
        what = ", ".join(f"{count} {op_type}" for op_type, count in kinds.items())
        return f"{what} in bfloat16, Cast at {', '.join(begins) or 'none'}, back at {', '.join(ends) or 'none'}"

    def _in_bf16(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        if value not in self._made:
            array = self._rewriter.constants.array(value)
            name = f"{value.name}_bf16"
            if array is not None:
                self._made[value] = self._rewriter.initializer(name, rounded(array))
            else:
                self._made[value] = self._cast(value, ir.DataType.BFLOAT16, self._rewriter.unique(name))
        return self._made[value]

    def _leave(self, value: ir.Value) -> list[str]:
        """Its value is bfloat16 from here on; readers outside get a Cast of its name. Says who they are."""
        import onnx_ir as ir

        uses = [use for use in value.uses() if not self._plan.reads(use.node, use.idx)]
        is_output = value.is_graph_output()
        name = value.name or ""
        value.name = self._rewriter.unique(f"{name}_bf16")
        value.dtype = ir.DataType.BFLOAT16
        if not uses and not is_output:
            return []
        wide = self._cast(value, ir.DataType.FLOAT, name)
        for use in uses:
            use.node.replace_input_with(use.idx, wide)
        outputs = self._rewriter.graph.outputs
        for i, output in enumerate(outputs):
            if output is value:
                outputs[i] = wide
        readers = dict.fromkeys(use.node.op_type for use in uses)
        return [f"'{name}'" + (f" for {', '.join(readers)}" if readers else "")]

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        import onnx_ir as ir

        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))])
        output = node.outputs[0]
        output.name, output.shape, output.type = name, value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is not None:
            self._rewriter.graph.insert_after(producer, node)
        else:
            self._rewriter.graph.insert_before(self._rewriter.graph[0], node)
        return output
