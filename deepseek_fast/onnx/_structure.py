"""Reads the models that verify is given, and checks a candidate's structure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _io
from deepseek_fast.onnx._body import DOMAIN
from deepseek_fast.onnx._runtime import one_line

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Source:
    """A model to run. folder: where its external data lies, which stays there; None where it has none."""

    model: onnx.ModelProto
    path: Path | None
    folder: Path | None


def read_source(given: object, argument: str) -> Source:
    import onnx

    if isinstance(given, onnx.ModelProto) or not isinstance(given, (str, os.PathLike)):
        return Source(_io.read_model(given, "verify", argument), None, None)
    path = Path(given)
    model = _io.parse(path, "verify", argument)
    _io.require_graph(model, f"'{path}'", "verify", argument)
    has_external = _io.check_external_data(model, path.parent, "verify", argument)
    return Source(model, path, path.parent.resolve() if has_external else None)


def structure_problems(candidate: Source, reference: Source | None) -> list[str]:
    """What is wrong with the candidate itself, and where its inputs or outputs are not the reference's."""
    import onnx

    problems = []
    try:
        onnx.checker.check_model(str(candidate.path) if candidate.folder else candidate.model)
    except Exception as error:  # ValidationError, and what protobuf raises beneath it
        problems.append(f"verify: candidate must pass onnx.checker; got {one_line(error)}")
    bodies = {(function.domain, function.name) for function in candidate.model.functions}
    for op_type in sorted({node.op_type for node in candidate.model.graph.node if node.domain == DOMAIN}):
        if (DOMAIN, op_type) not in bodies:
            problems.append(f"verify: candidate must carry a function body for {op_type}; got none")
    if reference is not None:
        for kind in ("input", "output"):
            got, want = _signature(candidate.model, kind), _signature(reference.model, kind)
            if got != want:
                problems.append(f"verify: candidate must have the reference's {kind}s {_text(want)}; got {_text(got)}")
    return problems


def _signature(model: onnx.ModelProto, kind: str) -> list[tuple[str, str]]:
    """(name, type) of the inputs that a caller gives, or of the outputs."""
    import onnx

    initializers = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in getattr(model.graph, kind) if kind == "output" or value.name not in initializers]
    return [(v.name, onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower()) for v in values]


def _text(signature: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in signature) or "none"
