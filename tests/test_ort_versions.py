"""The library asks an ONNX Runtime for no newer interface than it has; a runtime that is too old gets one sentence.

The runtime here is the one of the wheel, through its C interface, behind a base that tells another version.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from deepseek_fast import ort
from tests import ort_nodes
from tests.doors import call, from_numpy
from tests.oracle import assert_equal

Pointer = ctypes.c_void_p
# Places in ONNX Runtime's table of functions.
GET_MESSAGE, CREATE_ENV, CREATE_SESSION, RUN, CREATE_OPTIONS = 2, 3, 8, 9, 10
CREATE_TENSOR, GET_DATA, CREATE_MEMORY_INFO = 49, 51, 69
RELEASE_ENV, RELEASE_STATUS, RELEASE_MEMORY_INFO = 92, 93, 94
RELEASE_SESSION, RELEASE_VALUE, RELEASE_OPTIONS = 95, 96, 100
HIGHEST_WANTED = 24
INPUTS = {"x": torch.randn(5, 64), "weight": torch.randn(70, 64), "bias": torch.randn(70), "activation": "gelu"}

GetApi = ctypes.CFUNCTYPE(Pointer, ctypes.c_uint32)
GetVersion = ctypes.CFUNCTYPE(Pointer)  # a char*: ctypes cannot return bytes from a callback without losing them


class Base(ctypes.Structure):
    """OrtApiBase."""

    _fields_ = (("get_api", GetApi), ("get_version", GetVersion))


class Runtime:
    """The wheel's ONNX Runtime, called by place."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        loaded.OrtGetApiBase.restype = ctypes.POINTER(Base)
        self.base = loaded.OrtGetApiBase().contents
        self.table = (Pointer * 440).from_address(self.base.get_api(1))

    def check(self, status: int | None) -> None:
        if status:
            message = ctypes.CFUNCTYPE(ctypes.c_char_p, Pointer)(self.table[GET_MESSAGE])(status).decode()
            self.release(RELEASE_STATUS, Pointer(status))
            raise RuntimeError(message)

    def call(self, place: int, *arguments: Any) -> None:
        self.check(ctypes.CFUNCTYPE(Pointer)(self.table[place])(*arguments))

    def make(self, place: int, *arguments: Any) -> Pointer:
        """What a function writes to its last argument."""
        made = Pointer()
        self.call(place, *arguments, ctypes.pointer(made))
        return made

    def release(self, place: int, made: Pointer) -> None:
        ctypes.CFUNCTYPE(None, Pointer)(self.table[place])(made)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("this onnxruntime wheel has no shared library of its own")
    return Runtime(found[0])


@pytest.fixture
def options(runtime: Runtime) -> Iterator[Pointer]:
    made = runtime.make(CREATE_OPTIONS)
    yield made
    runtime.release(RELEASE_OPTIONS, made)


def register(runtime: Runtime, options: Pointer, version: str) -> list[int]:
    """Registers the operators in a runtime that says it is `version`; the interface versions that were asked for."""
    asked: list[int] = []

    def get_api(wanted: int) -> int | None:
        asked.append(wanted)
        return runtime.base.get_api(1)

    text = ctypes.create_string_buffer(version.encode())
    base = Base(GetApi(get_api), GetVersion(lambda: ctypes.addressof(text)))
    function = ctypes.CDLL(ort.library_path()).RegisterCustomOps
    function.restype, function.argtypes = Pointer, (Pointer, Pointer)
    runtime.check(function(options, ctypes.byref(base)))
    return asked


@pytest.mark.parametrize("version", ["1.16.3", "1.9.0", "0.5.0", "2.0.0", "nightly", "", "1.x", "9" * 500])
def test_another_version_is_refused(runtime: Runtime, options: Pointer, version: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        register(runtime, options, version)
    assert str(raised.value) == f"deepseek_fast: onnxruntime must be 1.17 or later; got {version[:40]}"


@pytest.mark.parametrize("minor", [17, 18, 20, 22, 23, 24, 25, 31, 99])
def test_a_session_of_every_version(runtime: Runtime, options: Pointer, minor: int) -> None:
    for _ in range(2):
        asked = register(runtime, options, f"1.{minor}.0")
        assert asked == [min(minor, HIGHEST_WANTED)]
    env = runtime.make(CREATE_ENV, ctypes.c_int(4), b"test")
    model = ort_nodes.node_model("fused_matmul", INPUTS, constant=("weight",)).SerializeToString()
    session = runtime.make(CREATE_SESSION, env, ctypes.c_char_p(model), ctypes.c_size_t(len(model)), options)
    assert_equal(from_numpy(run(runtime, session)), call("fused_matmul", "numpy", INPUTS), f"1.{minor}")
    runtime.release(RELEASE_SESSION, session)
    runtime.release(RELEASE_ENV, env)


def run(runtime: Runtime, session: Pointer) -> np.ndarray:
    memory = runtime.make(CREATE_MEMORY_INFO, ctypes.c_int(1), ctypes.c_int(0))
    arrays = [INPUTS[name].numpy() for name in ("x", "bias")]
    tensors = [
        runtime.make(
            CREATE_TENSOR,
            memory,
            Pointer(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            (ctypes.c_int64 * array.ndim)(*array.shape),
            ctypes.c_size_t(array.ndim),
            ctypes.c_int(1),
        )
        for array in arrays
    ]
    names, outputs = (ctypes.c_char_p * 2)(b"x", b"bias"), (ctypes.c_char_p * 1)(b"y")
    y = runtime.make(
        RUN, session, None, names, (Pointer * 2)(*tensors), ctypes.c_size_t(2), outputs, ctypes.c_size_t(1)
    )
    data = runtime.make(GET_DATA, y)
    result = np.ctypeslib.as_array((ctypes.c_float * (5 * 70)).from_address(data.value or 0)).reshape(5, 70).copy()
    for value in (*tensors, y):
        runtime.release(RELEASE_VALUE, value)
    runtime.release(RELEASE_MEMORY_INFO, memory)
    return result
