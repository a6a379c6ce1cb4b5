"""Finds the first node of a candidate whose output is not the reference's value of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deepseek_fast.onnx._compare import compare
from deepseek_fast.onnx._reference import reference_runner
from deepseek_fast.onnx._runtime import Runner
from deepseek_fast.onnx.report import Departure, Tolerances

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from deepseek_fast.onnx._reference import Reference
    from deepseek_fast.onnx._structure import Source


def first_departure(
    candidate: Source,
    reference: Reference,
    runtime: str,
    feeds: Mapping[str, np.ndarray],
    tolerances: Tolerances,
    threads: int | None,
) -> Departure | None:
    """Both models run once more with every value exposed that both have by name; a fused node keeps the name of the
    last value it replaces, so it is compared with what it stands for."""
    if reference.source is None:  # a torch module has no values by name: its outputs are all there is
        names = [value.name for value in candidate.model.graph.output]
        want = reference.run(feeds)
    else:
        outside = {name for node in reference.source.model.graph.node for name in node.output if name}
        names = [name for node in candidate.model.graph.node for name in node.output if name in outside]
        exposed = _with_outputs(reference.source.model, names)
        want = reference_runner(exposed, reference.source, threads).run(feeds, names)
    exposed = _with_outputs(candidate.model, names)
    runner = Runner(exposed, runtime=runtime, threads=threads, external_folder=candidate.folder)
    got = runner.run(feeds, names)
    for node in candidate.model.graph.node:
        for name in node.output:
            if name in got and name in want:
                difference = compare(got[name], want[name], tolerances)
                if not difference.ok:
                    return Departure(node.name or name, node.op_type, name, runtime, difference)
    return None


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    outputs = {value.name for value in copy.graph.output}
    # A name alone is enough for ONNX Runtime, which infers the type.
    copy.graph.output.extend(_untyped(name) for name in names if name not in outputs)
    return copy


def _untyped(name: str) -> onnx.ValueInfoProto:
    import onnx

    return onnx.ValueInfoProto(name=name)
