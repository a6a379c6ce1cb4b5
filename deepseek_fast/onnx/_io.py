"""Reads and writes ONNX files; every mistake of the user is one sentence, no half-written file is ever left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_fast.onnx._validity import ai_onnx_opset, check_graph, num_bytes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MAX_FILE_BYTES = 2**31 - 2**24  # a protobuf file ends at 2 GiB; the nodes and names get 16 MiB of it
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the .onnx file, where shape inference can read them
DATA_SUFFIX = ".data"


def read_model(source: object, caller: str, argument: str) -> onnx.ModelProto:
    """The model of a ModelProto or a path, with all its weights in memory; a ModelProto is returned as it is."""
    import onnx

    if isinstance(source, onnx.ModelProto):
        require_weights(source, caller, argument)
        require_graph(source, "a ModelProto", caller, argument)
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{caller}: {argument} must be an onnx.ModelProto or a path; got {type(source).__name__}")
    path = Path(source)
    model = parse(path, caller, argument)
    require_graph(model, f"'{path}'", caller, argument)
    check_external_data(model, path.parent, caller, argument)
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def parse(path: Path, caller: str, argument: str) -> onnx.ModelProto:
    """The model in the file, without its external data."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise FileNotFoundError(f"{caller}: {argument} must be an existing file; got '{path}'")
    if not path.is_file():
        raise ValueError(f"{caller}: {argument} must be a file; got '{path}', which is not one")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PermissionError(f"{caller}: {argument} must be readable; got '{path}' ({error.strerror})") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        rule = f"{caller}: {argument} must be a complete ONNX file"
        raise ValueError(f"{rule}; got '{path}', whose {len(data)} bytes do not parse") from error
    return model


def require_graph(model: onnx.ModelProto, what: str, caller: str, argument: str) -> None:
    if not model.HasField("graph") or not model.graph.output:
        raise ValueError(f"{caller}: {argument} must be an ONNX model with a graph; got {what}, which has none")
    check_graph(model.graph, ai_onnx_opset(model), f"{caller}: {argument}")


def require_weights(model: onnx.ModelProto, caller: str, argument: str) -> None:
    for tensor in _external_tensors(model):
        rule = f"{caller}: {argument} must hold its weights, or be a path"
        raise ValueError(f"{rule}; got a ModelProto whose tensor '{tensor.name}' is external data")


def check_external_data(model: onnx.ModelProto, folder: Path, caller: str, argument: str) -> bool:
    """Whether there is external data; refused where it is missing, too short, or outside the model's folder."""
    root, found = folder.resolve(), False
    for tensor in _external_tensors(model):
        found = True
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        where = f"got location '{location}' of tensor '{tensor.name}'"
        path = (root / location).resolve()
        if not location or not path.is_relative_to(root):
            raise ValueError(f"{caller}: {argument} must keep its external data inside its folder; {where}")
        if not path.is_file():
            raise FileNotFoundError(f"{caller}: {argument} must come with its external data; {where}, which is missing")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", num_bytes(tensor)))
        except ValueError:
            offset, length = -1, -1
        size = path.stat().st_size
        if offset < 0 or length < num_bytes(tensor) or offset + length > size:
            raise ValueError(f"{caller}: {argument} must come with complete external data; {where}, of {size} bytes")
    return found


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    import onnx

    def of_nodes(nodes: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                for graph in (attribute.g, *attribute.graphs):
                    yield from of_graph(graph)

    def of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from of_nodes(graph.node)

    tensors = [*of_graph(model.graph), *(t for function in model.functions for t in of_nodes(function.node))]
    return (tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL)


def check_output(output: object, caller: str, argument: str) -> Path:
    """The path to write to, refused before any work where nothing can be written there."""
    if not isinstance(output, (str, os.PathLike)):
        raise TypeError(f"{caller}: {argument} must be a path; got {type(output).__name__}")
    path = Path(output)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{caller}: {argument} must lie in an existing folder; got '{path}'")
    if path.is_dir():
        raise ValueError(f"{caller}: {argument} must be a file name; got the folder '{path}'")
    with _writable(path, caller, argument):
        shutil.rmtree(_folder_beside(path))
    return path


def write_model(model: ir.Model, path: Path, caller: str, argument: str) -> None:
    """Writes beside and then renames; weights go to '<name>.data' where one file would not hold them."""
    import onnx_ir as ir

    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data_name = path.name + DATA_SUFFIX if weights > MAX_FILE_BYTES else None
    with _writable(path, caller, argument):
        folder = _folder_beside(path)
        try:
            ir.save(model, folder / path.name, external_data=data_name, size_threshold_bytes=MIN_EXTERNAL_BYTES)
            for name in (data_name, path.name):  # the model last: it never names data that is not there yet
                if name is not None:
                    os.replace(folder / name, path.parent / name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _writable(path: Path, caller: str, argument: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PermissionError(f"{caller}: {argument} must be writable; got '{path}' ({error.strerror})") from error


def _folder_beside(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
