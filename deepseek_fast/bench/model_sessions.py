"""The contestants of a model: as it is in stock ONNX Runtime, in its own int8, and optimized by us."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast.bench.model_facts import Facts
from deepseek_fast.cli import output

if TYPE_CHECKING:
    import numpy as np
    import onnx

STOCK, ORT_INT8, OURS_FP32 = "stock ORT", "ORT dynamic int8", "ours, optimized"
SCHEMES = ("w8a8", "w8a16")
SOURCE = re.compile(r"/\S+\.(?:cc|h):\d+ [^)]*\) ")  # a place in ONNX Runtime's code, in the middle of a sentence
MAX_REASON = 300  # characters of a foreign message
PROVIDERS = ["CPUExecutionProvider"]
FATAL = 4  # ONNX Runtime's log level: errors are raised, printing them too would say them twice


@dataclass(frozen=True)
class Options:
    """What is measured, and how. batch is an unknown first axis, seq any other unknown one."""

    model: Path
    quantize: str = "w8a8"
    batch: int = 8
    seq: int = 64
    threads: int = 1
    rounds: int = 20

    def __post_init__(self) -> None:
        if self.quantize not in SCHEMES:
            raise ValueError(f"bench: quantize must be one of {', '.join(SCHEMES)}; got {self.quantize!r}")
        for name, least in (("batch", 1), ("seq", 1), ("threads", 1), ("rounds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"bench: {name} must be at least {least}; got {getattr(self, name)}")

    @property
    def ours(self) -> tuple[str, str]:
        return OURS_FP32, f"ours, {self.quantize}"


@dataclass(frozen=True)
class Contestant:
    """A file, and the way to make a session of it from onnxruntime.SessionOptions."""

    path: Path
    session: Callable[[Any], Any]
    facts: Facts


@dataclass
class Field:
    """All contestants; `failed` says why one is not there."""

    feeds: dict[str, Any]  # OrtValues
    found: dict[str, Contestant] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def contestants(options: Options, folder: Path, progress: output.Progress | None = None) -> Field:
    """Makes every contestant's file in `folder`.

    raises: ValueError or FileNotFoundError where the model is none, or stock ONNX Runtime refuses it.
    """
    from deepseek_fast.onnx import _io, explain

    step = progress.step if progress else (lambda _: None)
    path = options.model
    step(f"reading {path.name}")
    model = _io.parse(path, "bench", "model")
    _io.require_graph(model, f"'{path}'", "bench", "model")
    _io.check_external_data(model, path.parent, "bench", "model")
    made = Field(feeds(model, options.batch, options.seq))
    made.found[STOCK] = Contestant(path, _stock(path), Facts(model))
    for name, scheme in zip(options.ours, (None, options.quantize), strict=True):
        step(f"optimizing to {scheme or 'float'}")
        target = folder / f"{scheme or 'float'}.onnx"
        try:
            optimized = explain(path, quantize=scheme, output=target)
        except (ValueError, TypeError) as error:
            made.failed[name] = reason(error)
        else:
            made.found[name] = Contestant(target, _ours(target), Facts(optimized.model, optimized.refused))
    step("ONNX Runtime's own int8")
    target = folder / "ort-int8.onnx"
    try:
        ort_dynamic_int8(path, target)
        made.found[ORT_INT8] = Contestant(target, _stock(target), Facts(_io.parse(target, "bench", "model")))
    except Exception as error:  # their quantizer refuses models with many types of exception; the row says so
        made.failed[ORT_INT8] = reason(error)
    made.found = {name: made.found[name] for name in (STOCK, ORT_INT8, *options.ours) if name in made.found}
    return made


def _stock(path: Path) -> Callable[[Any], Any]:
    def make(options: Any) -> Any:
        from onnxruntime import InferenceSession

        return InferenceSession(str(path), options, providers=PROVIDERS)

    return make


def _ours(path: Path) -> Callable[[Any], Any]:
    def make(options: Any) -> Any:
        from deepseek_fast import ort

        return ort.session(path, threads=options.intra_op_num_threads, options=options)

    return make


def feeds(model: "onnx.ModelProto", batch: int, seq: int) -> dict[str, Any]:
    """Random inputs of the model as OrtValues, masks all ones: every token counts."""
    import numpy as np
    import onnx

    from deepseek_fast.onnx import _inputs

    for value in _inputs.graph_inputs(model):
        if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            kind = (value.type.WhichOneof("value") or "value of no type").removesuffix("_type")
            got = "text" if kind == "tensor" else f"a {kind}"
            raise ValueError(f"bench: model must have tensors of numbers as inputs; got {got} for '{value.name}'")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value < 0:  # some exporters write -1
                dim.dim_value = batch if axis == 0 else seq
    try:
        made = _inputs.make_inputs(model, batch, int.from_bytes(os.urandom(4), "little"))
        return {name: _ort(np.ones_like(value) if "mask" in name.lower() else value) for name, value in made.items()}
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # a type that NumPy or ONNX Runtime cannot hold
        raise ValueError(f"bench: model must have inputs that can be made up; got {reason(error)}") from error


def _ort(array: "np.ndarray") -> Any:
    import numpy as np
    import onnx
    from onnxruntime import OrtValue

    if str(array.dtype) == "bfloat16":  # no type of NumPy's own
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), onnx.TensorProto.BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array)


def session_options(threads: int) -> Any:
    """Options of every session here: nothing printed that is raised anyway, no thread that spins in another's turn."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def bound(session: Any, feeds: dict[str, Any]) -> Any:
    """The IOBinding for `session.run_with_iobinding`: the call with the least work of Python's in it."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for result in session.get_outputs():
        binding.bind_output(result.name)
    return binding


def ort_dynamic_int8(source: Path, target: Path) -> None:
    """ONNX Runtime's own dynamic int8 of a model, in the form that works at opset 23 too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with output.quiet():
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def reason(error: BaseException) -> str:
    """A foreign message as one line, without ONNX Runtime's codes and file names."""
    from deepseek_fast import ort

    text = " ".join(SOURCE.sub("", ort.NOISE.sub("", str(error))).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
