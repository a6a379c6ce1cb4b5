"""The ONNX Runtime door: a session in which the nodes of ai.deepseek_fast run on this package's kernels.

Another binding of ONNX Runtime loads the same file: `options.register_custom_ops_library(library_path())`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast import _load
from deepseek_fast._elf import REINSTALL, check_library

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["library_path", "session"]

NUM_THREADS_KEY = "ai.deepseek_fast.num_threads"  # read by csrc/ort/session.cc
FATAL = 4  # ONNX Runtime's log level: errors are raised, printing them too would say them twice
MAX_REASON = 300  # characters of a foreign message inside one of our sentences

# A sentence of a kernel, behind whatever ONNX Runtime puts before it.
OUR_SENTENCE = re.compile(r"(?:^|: )([a-z0-9_]+: [a-z_]+ must .+; got .+)$")
# What helps no reader: the code's number and name, and the C++ function that threw.
NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])|\w+\.cc:\d+ \w+ ")


def library_path() -> str:
    """The file of this package's ONNX Runtime library, found fit for this machine.

    returns: an absolute path, for `SessionOptions.register_custom_ops_library`.
    raises: RuntimeError where the library is missing, cut off, or built for another machine.

    >>> options = onnxruntime.SessionOptions()
    >>> options.register_custom_ops_library(deepseek_fast.ort.library_path())
    """
    path = Path(_load.library_path("_C_ort"))
    for name in (path.name, path.name.replace("_C_ort", "_C_core")):  # the first links the second
        check_library(path.with_name(name), "ort.library_path")
    return str(path)


def session(
    model: str | os.PathLike[str] | bytes,
    *,
    threads: int | None = None,
    options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> onnxruntime.InferenceSession:
    """An onnxruntime.InferenceSession that runs the nodes of ai.deepseek_fast on this package's kernels.

    model: a path, or the bytes of a model.
    threads: of the session; None leaves the choice to options or to ONNX Runtime. Results do not depend on it.
    options: taken over: the library, and threads where given, are set in it. None: errors are raised but not printed.
    raises: ValueError or TypeError for a model or an argument that is wrong, FileNotFoundError for a missing file,
        ImportError without onnxruntime, RuntimeError for a library that does not load.

    >>> session = deepseek_fast.ort.session("model.onnx", threads=1)
    >>> (y,) = session.run(None, {"x": x})        # x (8, 64) -> y (8, 384)
    """
    onnxruntime = _import_onnxruntime()
    source, name = _source(model)
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL
    _set_threads(options, threads)
    path = library_path()
    try:
        options.register_custom_ops_library(path)
    except Exception as error:
        raise RuntimeError(f"ort.session: library must load; got {_reason(error)}; {REINSTALL}") from error
    try:
        return onnxruntime.InferenceSession(source, options, providers=list(providers))
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise _refusal(error, name, onnxruntime.__version__) from error


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        rule = "ort.session: onnxruntime must be installed"
        raise ImportError(f"{rule}; got '{error}'; pip install 'deepseek-fast[onnx]'") from error
    return onnxruntime


def _source(model: object) -> tuple[str | bytes, str]:
    """What InferenceSession takes, and what to call it in a sentence."""
    if isinstance(model, bytes):
        return model, f"{len(model)} bytes"
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"ort.session: model must be a path or bytes; got {type(model).__name__}")
    path = Path(model)
    if not path.exists():
        raise FileNotFoundError(f"ort.session: model must be an existing file; got '{path}'")
    if not path.is_file():
        raise ValueError(f"ort.session: model must be a file; got '{path}', which is not one")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"ort.session: model must be readable; got '{path}'")
    return str(path), f"'{path}'"


def _set_threads(options: onnxruntime.SessionOptions, threads: int | None) -> None:
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int):
            raise TypeError(f"ort.session: threads must be an int; got {type(threads).__name__}")
        if threads < 1:
            raise ValueError(f"ort.session: threads must be at least 1; got {threads}")
        options.intra_op_num_threads = threads
    stated = str(options.intra_op_num_threads)  # "0": ONNX Runtime's choice, which a kernel cannot learn
    if stated != _config_entry(options, NUM_THREADS_KEY, default="0"):
        options.add_session_config_entry(NUM_THREADS_KEY, stated)


def _config_entry(options: onnxruntime.SessionOptions, key: str, *, default: str) -> str:
    try:
        value: str = options.get_session_config_entry(key)
    except Exception:  # ONNX Runtime's way to say that there is none
        return default
    return value


def _refusal(error: Exception, name: str, version: str) -> Exception:
    """ONNX Runtime's exception as one sentence of ours; the kernels' own sentences pass unchanged."""
    reason = _reason(error)
    if ours := OUR_SENTENCE.search(reason):
        kind = TypeError if "; got dtype " in ours[1] else ValueError
        return kind(ours[1])
    if "InvalidProtobuf" in type(error).__name__:
        return ValueError(f"ort.session: model must be a complete ONNX file; got {name}, which does not parse")
    return ValueError(f"ort.session: model must load in ONNX Runtime {version}; got {name}: {reason}")


def _reason(error: Exception) -> str:
    text = " ".join(NOISE.sub("", str(error)).split())
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
