"""deepseek_fast.ort: what a user gets wrong ends in one sentence, and options do what they say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import deepseek_fast
from deepseek_fast import _load, ort
from deepseek_fast._elf import HEADER
from tests import ort_nodes
from tests.doors import ROOMS, call, good_call
from tests.oracle import assert_equal
from tests.test_errors import BAD, IDS

ORT_TYPES = tuple(ort_nodes.ONNX_TYPES)
INPUTS = {"x": torch.randn(4, 64), "weight": torch.randn(8, 64), "activation": "relu"}


def bytes_of_a_model(**how: Any) -> bytes:
    return ort_nodes.node_model("fused_matmul", INPUTS, **how).SerializeToString()


@pytest.mark.parametrize("constant", [ort_nodes.WEIGHTS, ()], ids=["constant weights", "weights of a run"])
@pytest.mark.parametrize(("room", "changes", "error", "sentence"), BAD, ids=IDS)
def test_a_wrong_node_is_refused_in_the_words_of_every_door(
    room: str, changes: dict[str, Any], error: type[Exception], sentence: str, constant: Any
) -> None:
    inputs = good_call(room) | changes
    if any(isinstance(value, torch.Tensor) and value.dtype not in ORT_TYPES for value in inputs.values()):
        pytest.skip("ONNX Runtime has no such tensor")
    want = f"{room}: {sentence}"
    try:
        made = ort_nodes.session(room, inputs, constant=constant)
    except (ValueError, TypeError) as refused:
        assert (str(refused), type(refused)) == (want, error)
        return
    assert not (sentence.startswith("activation") or "dtype" in sentence), "known at creation"
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as raised:
        ort_nodes.run(made, inputs)
    assert str(raised.value).endswith(want)


def test_an_attribute_that_is_a_number_is_refused() -> None:
    model = ort_nodes.node_model("fused_matmul", INPUTS)
    model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("activation", 1))
    with pytest.raises(ValueError, match=r"^fused_matmul: activation must be one of .*; got '1'$"):
        ort.session(model.SerializeToString())


def test_a_path_a_string_and_bytes(tmp_path: Path) -> None:
    want = call("fused_matmul", "numpy", INPUTS)
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes_of_a_model())
    for model in (path, str(path), path.read_bytes()):
        assert_equal(ort_nodes.run(ort.session(model), INPUTS), want, str(type(model)))


def test_options_are_kept_and_may_be_used_again(capfd: pytest.CaptureFixture[str]) -> None:
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("x_0", 4)
    for threads in (None, 2, 2, None):
        made = ort.session(bytes_of_a_model(), options=options, threads=threads)
        assert made.get_inputs()[0].shape[0] == 4
    assert options.intra_op_num_threads == 2
    options.register_custom_ops_library(ort.library_path())  # once more, by hand
    made = onnxruntime.InferenceSession(bytes_of_a_model(), options, providers=["CPUExecutionProvider"])
    assert_equal(ort_nodes.run(made, INPUTS), call("fused_matmul", "numpy", INPUTS), "registered twice")
    assert capfd.readouterr().err == ""


BAD_ARGUMENTS = [
    ({"model": 3}, TypeError, "ort.session: model must be a path or bytes; got int"),
    ({"threads": 0}, ValueError, "ort.session: threads must be at least 1; got 0"),
    ({"threads": 2.0}, TypeError, "ort.session: threads must be an int; got float"),
    ({"threads": True}, TypeError, "ort.session: threads must be an int; got bool"),
]


@pytest.mark.parametrize(("changes", "error", "sentence"), BAD_ARGUMENTS, ids=[row[2] for row in BAD_ARGUMENTS])
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    arguments = {"model": bytes_of_a_model()} | changes
    with pytest.raises(error) as raised:
        ort.session(arguments.pop("model"), **arguments)
    assert str(raised.value) == sentence


def test_wrong_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = bytes_of_a_model()
    path, missing = tmp_path / "model.onnx", tmp_path / "missing.onnx"
    with pytest.raises(
        FileNotFoundError, match=r"^ort\.session: model must be an existing file; got '.*missing.onnx'$"
    ):
        ort.session(missing)
    with pytest.raises(ValueError, match=r"^ort\.session: model must be a file; got '.*', which is not one$"):
        ort.session(tmp_path)
    for content in (whole[: len(whole) // 2], b"\xff" * 1000):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"^ort\.session: model must be a complete ONNX file; got '.*', which does"
        ):
            ort.session(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^ort\.session: model must load in ONNX Runtime .*; got '.*': .*graph"):
        ort.session(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("location", ["../weights.bin", "missing.bin", "short.bin", "absolute"])
def test_external_data_that_is_outside_missing_or_short(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(8 * 64 * 4))
    (folder / "short.bin").write_bytes(bytes(100))
    model = ort_nodes.node_model("fused_matmul", INPUTS)
    tensor = model.graph.initializer[0]
    location = str(tmp_path / "weights.bin") if location == "absolute" else location
    external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"^ort\.session: model must load in ONNX Runtime .*; got '.*model\.onnx': ."):
        ort.session(folder / "model.onnx")


def test_external_data_inside_the_folder(tmp_path: Path) -> None:
    model = ort_nodes.node_model("fused_matmul", INPUTS)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert_equal(ort_nodes.run(ort.session(tmp_path / "m.onnx"), INPUTS), call("fused_matmul", "numpy", INPUTS), "")


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_external_data_at_an_odd_byte(tmp_path: Path, room: str, dtype: torch.dtype) -> None:
    """ONNX Runtime maps the file as it lies; kernels read aligned values only."""
    inputs = good_call(room) | {"residual": None}
    floats = [name for name in ("x", "weight", "bias") if name in inputs and inputs[name].dtype == torch.float32]
    inputs |= {name: inputs[name].to(dtype) for name in floats}
    model, content = ort_nodes.node_model(room, inputs), b"-"
    for tensor in model.graph.initializer:
        external_data_helper.set_external_data(tensor, "weights.bin", len(content), len(tensor.raw_data))
        content += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "weights.bin").write_bytes(content)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert_equal(ort_nodes.run(ort.session(tmp_path / "model.onnx"), inputs), call(room, "numpy", inputs), "")


@pytest.mark.parametrize(("opset", "ir_version"), [(99, 8), (17, 99)])
def test_a_model_that_is_too_new(opset: int, ir_version: int) -> None:
    model = ort_nodes.node_model("fused_matmul", INPUTS)
    model.opset_import[0].version, model.ir_version = opset, ir_version
    with pytest.raises(
        ValueError, match=r"^ort\.session: model must load in ONNX Runtime .*; got \d+ bytes: "
    ) as raised:
        ort.session(model.SerializeToString())
    assert "99" in str(raised.value) and "onnxruntime_src" not in str(raised.value)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the two libraries, found in place of the package's own."""
    for name in ("_C_ort", "_C_core"):
        source = Path(_load.library_path(name))
        shutil.copy(source, tmp_path / source.name)
    copy = tmp_path / Path(_load.library_path("_C_ort")).name
    monkeypatch.setattr(_load, "library_path", lambda name: str(copy))
    return copy


@pytest.mark.parametrize("which", ["_C_ort", "_C_core"])
def test_libraries_that_do_not_fit(installed: Path, which: str) -> None:
    assert ort.library_path() == str(installed)
    library = installed.with_name(installed.name.replace("_C_ort", which))
    whole = library.read_bytes()
    rule, end = r"^ort\.library_path: library must", f"got '.*{which}.*'"
    library.write_bytes(whole[:18] + b"\xb7\x00" + whole[20:])
    if os.uname().machine == "x86_64":
        with pytest.raises(RuntimeError, match=rf"{rule} be built for this machine, x86_64; {end} for aarch64; "):
            ort.session(bytes_of_a_model())
    for content in (whole[:3000], whole[: HEADER.size - 1], b""):
        library.write_bytes(content)
        with pytest.raises(RuntimeError, match=rf"{rule} be whole; {end}, cut off at {len(content)} bytes; "):
            ort.session(bytes_of_a_model())
    library.write_bytes(b"a text file, not a library " * 9)
    with pytest.raises(RuntimeError, match=rf"{rule} be built for this machine, .*; {end} for another system; "):
        ort.session(bytes_of_a_model())
    library.unlink()
    with pytest.raises(RuntimeError, match=rf"{rule} be readable; {end} \(No such file or directory\); "):
        ort.session(bytes_of_a_model())


def test_the_library_stays_loaded_after_its_last_session() -> None:
    """ONNX Runtime keeps what the library handed over; loaded anew for each session, it would grow."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    dynamic = subprocess.run([readelf, "-d", ort.library_path()], capture_output=True, text=True, check=True).stdout
    assert "NODELETE" in dynamic


def test_without_onnxruntime() -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from deepseek_fast import ort\n"
        "try: ort.session(b'')\nexcept ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.startswith("ort.session: onnxruntime must be installed; got ") and out.count("\n") == 1


def test_the_import_is_lazy() -> None:
    script = "import sys, deepseek_fast.ort as o; o.library_path(); print('onnxruntime' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"


def test_an_unknown_type_of_x_beside_a_function_body_is_refused() -> None:
    """With the library registered its kernels decide, not the body: float64 is refused in the room's words."""
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["M", 64])
    y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)
    weight = numpy_helper.from_array(np.zeros((8, 64), np.float64), "weight")
    node = helper.make_node("FusedMatmul", ["x", "weight"], ["y"], domain=ort_nodes.DOMAIN)
    model = ort_nodes.model(helper.make_graph([node], "double", [x], [y], [weight]))
    with pytest.raises(TypeError, match=r"^fused_matmul: x must be float32, bfloat16 or float16; got dtype float64$"):
        deepseek_fast.ort.session(model.SerializeToString())
