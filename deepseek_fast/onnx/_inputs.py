"""Makes inputs that a model can run on, from the names, types and uses of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

SEQUENCE_LENGTH = 16  # of an unknown dimension that is not the batch
PLAIN_INTEGERS = 8  # integers of no known use are 0 to 7
PASS_THROUGH = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def make_inputs(model: onnx.ModelProto, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs: floats normal; masks 0 and 1 with each row's first at 1; ids below the size of their table."""
    import numpy as np

    rng = np.random.default_rng([seed, batch_size])
    sizes: dict[str, int] = {}
    return {
        value.name: _make(value, _shape(value, batch_size, sizes), _table_rows(model, value.name), rng)
        for value in graph_inputs(model)
    }


def _shape(value: onnx.ValueInfoProto, batch_size: int, sizes: dict[str, int]) -> tuple[int, ...]:
    """Known sizes as they are; an unknown first one is the batch; one name has one size in all inputs."""
    shape = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        unknown = batch_size if axis == 0 else SEQUENCE_LENGTH
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        else:
            shape.append(sizes.setdefault(dim.dim_param, unknown) if dim.dim_param else unknown)
    return tuple(shape)


def _make(
    value: onnx.ValueInfoProto, shape: tuple[int, ...], table_rows: int | None, rng: np.random.Generator
) -> np.ndarray:
    import numpy as np
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if "mask" in value.name.lower():
        mask = np.zeros(shape, dtype)
        length = shape[-1] if shape else 1
        kept = rng.integers(1, max(length, 1) + 1, size=(*shape[:-1], 1))
        mask[np.broadcast_to(np.arange(length) < kept, shape) if shape else ...] = 1
        return mask
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, table_rows or PLAIN_INTEGERS, shape).astype(dtype)
    if dtype.kind in "fV" or str(dtype) == "bfloat16":
        return rng.standard_normal(shape).astype(dtype)
    raise ValueError(f"verify: inputs must be given for input '{value.name}'; got none and dtype {dtype}")


def _table_rows(model: onnx.ModelProto, name: str) -> int | None:
    """Rows of the smallest table that Gather reads at the input `name`."""
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    same, found = {name}, []
    for node in model.graph.node:
        if node.op_type in PASS_THROUGH and node.input and node.input[0] in same:
            same.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in same and node.input[0] in rows:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if axis == 0:
                found.append(rows[node.input[0]])
    return min(found) if found else None
