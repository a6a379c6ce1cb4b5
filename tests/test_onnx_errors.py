"""Bad input to optimize, verify and export: one sentence, the right type, and never a file half written."""

import os
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from deepseek_fast.onnx import export, optimize, verify
from tests.onnx_models import Graph, linear, mlp, normal

GRAMMAR = re.compile(r"^(optimize|verify|export): [a-z_]+ must .+; got .+$", re.DOTALL)


def refused(kind, call, *parts):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert GRAMMAR.match(message) and "\n" not in message, message
    for part in parts:
        assert part in message, message
    assert type(caught.value) is kind


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(mlp(20), path)
    return path


def both(model):
    """optimize reads its model as verify reads its candidate."""
    return [lambda: optimize(model), lambda: verify(mlp(20), model)]


def test_not_a_model():
    for call in both(7) + both(None) + both(b"bytes"):
        refused(TypeError, call, "must be an onnx.ModelProto or a path; got ")


def test_missing_file_and_folder(tmp_path):
    for call in both(tmp_path / "none.onnx"):
        refused(FileNotFoundError, call, "must be an existing file; got '", "none.onnx'")
    for call in both(tmp_path):
        refused(ValueError, call, "must be a file; got '")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
def test_truncated_file(model_file, share):
    data = model_file.read_bytes()
    model_file.write_bytes(data[: int(len(data) * share)])
    for call in both(model_file):
        refused(ValueError, call, "model.onnx")


@pytest.mark.parametrize("data", [b"not an ONNX file at all\n" * 20, b"\x00" * 64, bytes(range(256))], ids=len)
def test_another_file(tmp_path, data):
    path = tmp_path / "other.onnx"
    path.write_bytes(data)
    for call in both(path):
        refused(ValueError, call, "other.onnx")


def test_graph_that_contradicts_itself():
    dangling, twice, short, typeless, nothing, lonely = (mlp(20) for _ in range(6))
    dangling.graph.node[0].input[1] = "nobody"
    twice.graph.node[1].output[0] = twice.graph.node[0].output[0]
    short.graph.initializer[0].raw_data = short.graph.initializer[0].raw_data[:-4]
    typeless.graph.input[0].type.tensor_type.elem_type = 99
    nothing.graph.output[0].name = "nobody"
    del lonely.graph.node[0].input[1:]
    for model, sentence in (
        (lonely, "got MatMul 'node_product_up' with 1 inputs and 1 outputs"),
        (dangling, "got MatMul 'node_product_up', whose input 'nobody' nothing before it makes"),
        (twice, "got Add 'node_linear_up', whose output 'product_up' is made twice"),
        (short, "got 956 bytes of tensor 'W_up' of 960"),
        (typeless, "got type 99 of 'x', which is none"),
        (nothing, "got the output 'nobody', which nothing makes"),
    ):
        for call in both(model):
            refused(ValueError, call, "must be a valid ONNX graph; ", sentence)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_are_a_sentence_or_a_model(tmp_path, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(mlp(20).SerializeToString())
    for at in rng.integers(0, len(data), 4):
        data[at] = rng.integers(0, 256)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        optimize(path)
    except ValueError as error:
        assert GRAMMAR.match(str(error)), error


def test_model_without_graph_or_opset():
    for call in both(onnx.ModelProto()):
        refused(ValueError, call, "must be an ONNX model with a graph; got a ModelProto")
    model = mlp(20)
    del model.opset_import[:]
    refused(ValueError, lambda: optimize(model), "must import an ai.onnx opset from 13 to 25; got none")


def test_opset_too_new_or_too_old():
    model = mlp(20)
    model.opset_import[0].version = 26
    refused(ValueError, lambda: optimize(model), "must import an ai.onnx opset from 13 to 25; got 26")
    graph = Graph()
    graph.input("x", "batch", 8)
    graph.output(linear(graph, "x", 8, 8), rank=2)
    old = graph.model(13)
    old.opset_import[0].version = 3
    old.functions.append(
        helper.make_function("test", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], old.opset_import)
    )
    refused(ValueError, lambda: optimize(old), "or one that onnx.version_converter can raise; got 3")
    del old.functions[:]
    old.graph.node[0].op_type = "NoSuchOperator"
    refused(ValueError, lambda: optimize(old), "or one that onnx.version_converter can raise; got 3")


def external(path, location, **entries):
    model = mlp(20)
    tensor = next(t for t in model.graph.initializer if t.name == "W_up")
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return data


@pytest.mark.parametrize("location", ["../outside.bin", "", "link.bin", "sub/../../outside.bin"])
def test_external_data_outside_its_folder(tmp_path, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    data = external(folder / "model.onnx", location)
    (tmp_path / "outside.bin").write_bytes(data)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    for call in both(folder / "model.onnx"):
        refused(ValueError, call, "must keep its external data inside its folder; got location '", "of tensor 'W_up'")


def test_external_data_by_absolute_path(tmp_path):
    external(tmp_path / "model.onnx", "/etc/hostname")
    for call in both(tmp_path / "model.onnx"):
        refused(ValueError, call, "inside its folder; got location '/etc/hostname'")


def test_external_data_missing_or_short(tmp_path):
    path = tmp_path / "model.onnx"
    data = external(path, "weights.bin")
    for call in both(path):
        refused(FileNotFoundError, call, "must come with its external data; got location 'weights.bin'", "missing")
    (tmp_path / "weights.bin").write_bytes(data)
    optimize(path)
    for entries in ({"offset": 8, "length": len(data)}, {"offset": -1}, {"length": "many"}):
        external(path, "weights.bin", **entries)
        for call in both(path):
            refused(ValueError, call, "must come with complete external data")
    external(path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(data[:-4])
    for call in both(path):
        refused(ValueError, call, "W_up")


def test_external_data_without_a_path(tmp_path):
    external(tmp_path / "model.onnx", "weights.bin")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for call in both(model):
        refused(ValueError, call, "must hold its weights, or be a path; got a ModelProto whose tensor 'W_up'")


def test_options():
    model = mlp(20)
    refused(ValueError, lambda: optimize(model, quantize="int4"), "must be None or one of w8a8, w8a16; got 'int4'")
    refused(ValueError, lambda: optimize(model, optim_level=4), "optim_level must be from 0 to 3; got 4")
    refused(TypeError, lambda: optimize(model, optim_level="3"), "optim_level must be an int; got str")
    refused(TypeError, lambda: optimize(model, optim_level=True), "optim_level must be an int; got bool")
    refused(ValueError, lambda: optimize(model, fuse_ops=["Conv+Relu"]), "fuse_ops must be of NoOp, Fp8MatMul, Fp8Gemm")
    refused(TypeError, lambda: optimize(model, fuse_ops="Gemm"), "fuse_ops must be a list of names; got the string")


@pytest.mark.parametrize(
    ("output", "kind", "sentence"),
    [
        ("none/out.onnx", FileNotFoundError, "output must lie in an existing folder; got "),
        ("", ValueError, "output must be a file name; got the folder "),
        ("/proc/out.onnx", PermissionError, "output must be writable; got '/proc/out.onnx' ("),
        (7, TypeError, "output must be a path; got int"),
    ],
)
def test_output(tmp_path, output, kind, sentence):
    target = output if output == 7 else tmp_path / output
    refused(kind, lambda: optimize(mlp(20), output=target), sentence)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    target = tmp_path / "out.onnx"
    target.write_bytes(b"before")

    def full_disk(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    refused(PermissionError, lambda: optimize(mlp(20), output=target), "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"] and target.read_bytes() == b"before"


def test_nothing_is_written_for_a_bad_model(tmp_path, model_file):
    model_file.write_bytes(model_file.read_bytes()[:100])
    refused(ValueError, lambda: optimize(model_file, output=tmp_path / "out.onnx"), "do not parse")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_verify_arguments():
    model = mlp(20)
    refused(ValueError, lambda: verify(model, model, {}), "inputs must be given for x; got none")
    refused(ValueError, lambda: verify(model, model, []), "inputs must hold at least one set of arrays; got none")
    refused(TypeError, lambda: verify(model, model, [normal(1, 5, 12)]), "inputs must be a dict of arrays")
    refused(ValueError, lambda: verify(model, model, {"x": normal(1, 5, 11)}), "inputs must suit the reference; got ")
    refused(ValueError, lambda: verify(model, model, {"x": np.zeros((1, 5, 12))}), "inputs must suit the reference")
    refused(ValueError, lambda: verify(model, model, batch_sizes=[0]), "batch_sizes must be positive ints; got [0]")
    refused(ValueError, lambda: verify(model, model, runtimes=["gpu"]), "runtimes must be a list of library, stock")
    refused(TypeError, lambda: verify(3, model), "reference must be an onnx.ModelProto or a path; got int")
    broken = mlp(20)
    broken.graph.node[0].op_type = "NoSuchOperator"
    refused(ValueError, lambda: verify(broken, model), "reference must load in ONNX Runtime; got ")


def test_export_arguments(tmp_path):
    module, args = torch.nn.Linear(4, 4), (torch.zeros(2, 4),)
    refused(TypeError, lambda: export(3, args), "model must be a torch.nn.Module; got int")
    refused(TypeError, lambda: export(module, torch.zeros(2, 4)), "args must be a tuple of example inputs; got Tensor")
    refused(ValueError, lambda: export(module, args, opset=26), "opset must be from 13 to 25; got 26")
    refused(
        FileNotFoundError,
        lambda: export(module, args, tmp_path / "none" / "m.onnx"),
        "path must lie in an existing folder; got ",
    )
