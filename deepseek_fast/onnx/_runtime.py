"""Runs a model in ONNX Runtime, with our library or without it, on numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime

LIBRARY, STOCK = "library", "stock"
RUNTIMES = (LIBRARY, STOCK)
MAX_MESSAGE = 300  # characters of a foreign message inside one of our sentences
QUIET = 4  # ONNX Runtime's log level: errors are raised, printing them too would say them twice
FOLDER_KEY = "session.model_external_initializers_file_folder_path"


def library_problem() -> str | None:
    """Why our library cannot be used in ONNX Runtime here; None where it can."""
    try:
        from deepseek_fast.ort import library_path

        library_path()
    except Exception as error:  # whatever the reason, verify goes on with stock ONNX Runtime
        return str(error) or type(error).__name__
    return None


def one_line(error: Exception | None) -> str:
    """An error's message without line breaks, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


class Runner:
    """One session. external_folder: where the model's external data lies, if it has any."""

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        runtime: str,
        threads: int | None = None,
        external_folder: Path | None = None,
        optimized: bool = True,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        # Sessions that are compared take turns: threads of one that spin keep the cores from the other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if external_folder is not None:
            options.add_session_config_entry(FOLDER_KEY, str(external_folder))
        data = model.SerializeToString()
        self.session: onnxruntime.InferenceSession
        if runtime == LIBRARY:
            from deepseek_fast import ort

            self.session = ort.session(data, threads=threads, options=options)
        else:
            if threads is not None:
                options.intra_op_num_threads = threads
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The outputs by name; those that are no tensors are left out."""
        names = list(names) if names is not None else [output.name for output in self.session.get_outputs()]
        values = self.session.run_with_ort_values(names, {name: _to_ort(array) for name, array in feeds.items()})
        return {name: _to_numpy(v) for name, v in zip(names, values, strict=True) if v.has_value() and v.is_tensor()}


# Element types that NumPy has from ml_dtypes, as ONNX Runtime names them and as TensorProto does.
BORROWED = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8_e4m3fn",
    "tensor(float8e4m3fnuz)": "float8_e4m3fnuz",
    "tensor(float8e5m2)": "float8_e5m2",
    "tensor(float8e5m2fnuz)": "float8_e5m2fnuz",
}


def _to_ort(array: np.ndarray) -> onnxruntime.OrtValue:
    import numpy as np
    from onnx import helper
    from onnxruntime import OrtValue

    array = np.asarray(array, order="C")  # np.ascontiguousarray would give a scalar a dimension
    if str(array.dtype) in BORROWED.values():
        bits = array.view(f"uint{8 * array.itemsize}")
        return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, helper.np_dtype_to_tensor_dtype(array.dtype))
    return OrtValue.ortvalue_from_numpy(array)


def _to_numpy(value: onnxruntime.OrtValue) -> np.ndarray:
    import ctypes

    import ml_dtypes
    import numpy as np

    if value.data_type() not in BORROWED:
        return value.numpy()
    dtype = np.dtype(getattr(ml_dtypes, BORROWED[value.data_type()]))
    shape = tuple(value.shape())
    count = int(np.prod(shape)) * dtype.itemsize
    if count == 0:
        return np.zeros(shape, dtype)
    data = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(value.data_ptr()))
    return data.copy().view(dtype).reshape(shape)
