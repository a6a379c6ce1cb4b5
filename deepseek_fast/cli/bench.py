"""`deepseek-fast bench MODEL`: what a model costs in ONNX Runtime as it is, in its own int8, and optimized by us.

All contestants are timed in turn, in one run, on the same random inputs; every answer is compared with the model's.
"""

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast.cli import machine, output, timing
from deepseek_fast.cli.optimize import model_bytes

if TYPE_CHECKING:
    import numpy as np

STOCK, ORT_INT8, OURS_FP32 = "stock ORT", "ORT dynamic int8", "ours, optimized"
# Cosine to the model's own answer, below which an answer counts as wrong.
MIN_COSINE_FP32, MIN_COSINE_INT8 = 0.9999, 0.97
Call = Callable[[], "list[np.ndarray]"]


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("bench", help="time a model: stock ORT, ORT's int8, ours", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="an ONNX file in float32")
    parser.add_argument("--quantize", choices=("w8a8", "w8a16"), default="w8a8", help="our int8 (default: w8a8)")
    parser.add_argument("--batch", type=_positive, default=8, help="an unknown first axis (default: 8)")
    parser.add_argument("--seq", type=_positive, default=64, help="any other unknown axis (default: 64)")
    parser.add_argument("--threads", type=_positive, default=1, help="of each contestant (default: 1)")
    parser.add_argument("--rounds", type=_rounds, default=20, help="timed runs of each (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where our answers are right, 1 where one is not."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, should an operator load it
    with tempfile.TemporaryDirectory() as folder, output.Progress(4) as progress:
        calls, sizes, failed = contestants(arguments, Path(folder), progress)
        answers = {name: call() for name, call in calls.items()}
        progress.step("timing, all in turn")
        times = timing.interleave(calls, rounds=arguments.rounds, after_round=progress.tick)
    rows = []
    for name, timed in times.items():
        cosine, max_abs = distance(answers[name], answers[STOCK])
        least = MIN_COSINE_FP32 if name in (STOCK, OURS_FP32) else MIN_COSINE_INT8
        milliseconds = {"ms": timed.median * 1e3, "ms_min": timed.min * 1e3, "spread": timed.spread}
        answer = {"cosine": cosine, "max_abs": max_abs, "right": cosine >= least}
        rows.append({"name": name, **milliseconds, "bytes": sizes[name], **answer})
    result = {
        "model": str(arguments.model),
        "batch": arguments.batch,
        "seq": arguments.seq,
        "rounds": arguments.rounds,
        "rows": rows,
        "failed": failed,
        "machine": machine.describe(arguments.threads),
    }
    if arguments.json:
        output.print_json(result)
    else:
        print(text(result))
    return 0 if all(row["right"] for row in rows if row["name"] != ORT_INT8) else 1


def contestants(
    arguments: argparse.Namespace, folder: Path, progress: output.Progress
) -> tuple[dict[str, Call], dict[str, int], dict[str, str]]:
    """(calls that return all outputs, model bytes, reasons of those that could not be built), by name."""
    progress.step(f"optimizing {arguments.model.name}")
    from onnxruntime import InferenceSession

    from deepseek_fast import ort
    from deepseek_fast.onnx import optimize

    ours_int8 = f"ours, {arguments.quantize}"
    paths = {STOCK: arguments.model, ORT_INT8: folder / "ort-int8.onnx"}
    paths |= {OURS_FP32: folder / "fp32.onnx", ours_int8: folder / "int8.onnx"}
    optimize(arguments.model, output=paths[OURS_FP32])
    progress.step(f"quantizing to {arguments.quantize}")
    optimize(arguments.model, quantize=arguments.quantize, output=paths[ours_int8])
    progress.step("ONNX Runtime's own int8")
    failed = {}
    try:
        ort_dynamic_int8(arguments.model, paths[ORT_INT8])
    except Exception as error:  # their quantizer refuses models with many types of exception; the row says so
        failed[ORT_INT8] = " ".join(str(error).split())[:200]
        del paths[ORT_INT8]
    feeds = inputs(arguments.model, arguments.batch, arguments.seq)
    calls: dict[str, Call] = {}
    for name, path in paths.items():
        if name in (STOCK, ORT_INT8):
            options = session_options(arguments.threads)
            session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        else:
            session = ort.session(path, threads=arguments.threads)
        calls[name] = functools.partial(session.run, None, feeds)
    return calls, {name: model_bytes(path) for name, path in paths.items()}, failed


def inputs(path: Path, batch: int, seq: int) -> "dict[str, np.ndarray]":
    """Random inputs of the model, masks all ones: every token counts."""
    import numpy as np
    import onnx

    from deepseek_fast.onnx import _inputs

    model = onnx.load(path, load_external_data=False)
    for value in _inputs.graph_inputs(model):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = batch if axis == 0 else seq
    feeds = _inputs.make_inputs(model, batch, int.from_bytes(os.urandom(4), "little"))
    return {name: np.ones_like(value) if "mask" in name.lower() else value for name, value in feeds.items()}


def session_options(threads: int) -> Any:
    """Stock ONNX Runtime's options: `threads`, and only errors logged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def ort_dynamic_int8(source: Path, target: Path) -> None:
    """ONNX Runtime's own dynamic int8 of a model, in the form that works at opset 23 too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with output.quiet():
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def distance(values: "list[np.ndarray]", wanted: "list[np.ndarray]") -> tuple[float, float]:
    """(smallest cosine, largest absolute difference) over the outputs."""
    import numpy as np

    cosine, max_abs = 1.0, 0.0
    for value, want in zip(values, wanted, strict=True):
        a, b = np.asarray(value, np.float64).ravel(), np.asarray(want, np.float64).ravel()
        if not a.size:
            continue
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        same = np.array_equal(a, b)
        cosine = min(cosine, 1.0 if same else float(a @ b) / norms if norms > 0 else 0.0)
        max_abs = max(max_abs, float(np.abs(a - b).max()))
    return cosine, max_abs


def text(result: dict[str, Any]) -> str:
    """The table and the machine line."""
    header = ("model", "ms", "min", "spread", "x stock", "MB", "cosine", "max diff", "answer")
    stock = result["rows"][0]["ms"]
    lines = [
        (
            row["name"],
            f"{row['ms']:.2f}",
            f"{row['ms_min']:.2f}",
            f"{row['spread']:.0%}",
            f"{row['ms'] / stock:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['cosine']:.5f}",
            f"{row['max_abs']:.2g}",
            "ok" if row["right"] else "DEPARTS",
        )
        for row in result["rows"]
    ]
    notes = [f"{name}: not possible: {reason}" for name, reason in result["failed"].items()]
    what = (
        f"ms: median of {result['rounds']} interleaved runs, batch {result['batch']}, other unknown axes "
        f"{result['seq']}; spread: middle half over median; cosine and difference to stock ORT"
    )
    return "\n".join([output.table(header, lines), *notes, what, machine.line(result["machine"])])


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got '{word}'")
    return int(word)


def _rounds(word: str) -> int:
    if _positive(word) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2; got '{word}'")
    return int(word)
