"""A model in ONNX Runtime as it is, in its own int8, and optimized by us: times in turn, answers, and every node.

All contestants run on the same random inputs; every answer is compared with the model's own.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast.bench import ceiling, model_profile
from deepseek_fast.bench.model_sessions import (
    OURS_FP32,
    STOCK,
    Contestant,
    Field,
    Options,
    bound,
    contestants,
    ort_dynamic_int8,
    reason,
    session_options,
)
from deepseek_fast.bench.row import timed
from deepseek_fast.cli import machine, output
from deepseek_fast.cli.optimize import model_bytes
from deepseek_fast.cli.timing import WARMUP_ROUNDS, Timing

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Options", "distance", "measure", "ort_dynamic_int8", "right", "session_options"]

STEPS = 9  # of a progress bar: reading, three files, timing, four profiles
# Cosine to the model's own answer, below which an answer counts as wrong.
MIN_COSINE_FLOAT, MIN_COSINE_INT8 = 0.9999, 0.97
MIN_SAMPLES = 2  # a spread needs two


def measure(options: Options, progress: output.Progress | None = None) -> dict[str, Any]:
    """The result as data; "interrupted" true where Ctrl-C ended it after the first row was there.

    raises: ValueError or FileNotFoundError where the model is none, or does not run in stock ONNX Runtime.
    """
    from deepseek_fast.bench.run import SCHEMA

    result: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "model",
        "model": str(options.model),
        "quantize": options.quantize,
        "batch": options.batch,
        "seq": options.seq,
        "rounds": options.rounds,
        "interrupted": False,
        "rows": [],
        "failed": {},
        "profiles": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        field = contestants(options, Path(folder), progress)
        result |= {"machine": machine.describe(options.threads), "ceilings": ceiling.measure()}
        try:
            _rows(options, field, result, progress)
            _profiles(options, field, result["profiles"], progress)
        except KeyboardInterrupt:
            if not result["rows"]:
                raise
            result["interrupted"] = True
    result["failed"] = field.failed
    return result


def right(result: dict[str, Any]) -> bool:
    """Whether all of ours are there with a right answer."""
    answers = {row["name"]: row["right"] for row in result["rows"]}
    return all(answers.get(name, False) for name in (OURS_FP32, f"ours, {result['quantize']}"))


def _rows(options: Options, field: Field, result: dict[str, Any], progress: output.Progress | None) -> None:
    """Times all contestants in turn; where Ctrl-C ends it, the rows are made of the rounds until then."""
    calls, answers = {}, {}
    for name in list(field.found):
        try:
            calls[name], answers[name] = _call(field.found[name], field.feeds, options)
        except ValueError as error:
            if name == STOCK:
                raise
            field.failed[name] = reason(error.__cause__ or error)
            del field.found[name]
    if progress:
        progress.step("timing, all in turn")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    try:
        for turn in range(WARMUP_ROUNDS + options.rounds):
            for name, call in calls.items():
                elapsed = timed(call, 1)
                if turn >= WARMUP_ROUNDS:
                    samples[name].append(elapsed)
            if progress:
                progress.tick()
    finally:
        result["rounds"] = min(len(seconds) for seconds in samples.values())
        if result["rounds"] >= MIN_SAMPLES:
            for name, seconds in samples.items():
                difference = distance(answers[name], answers[STOCK])
                result["rows"].append(_row(name, field.found[name], Timing.of(seconds), *difference))


def _row(name: str, contestant: Contestant, timing: Timing, cosine: float, max_abs: float) -> dict[str, Any]:
    least = MIN_COSINE_INT8 if contestant.facts.is_quantized() else MIN_COSINE_FLOAT
    return {
        "name": name,
        "ms": timing.median * 1e3,
        "ms_min": timing.min * 1e3,
        "spread": timing.spread,
        "bytes": model_bytes(contestant.path),
        "cosine": cosine,
        "max_abs": max_abs,
        "right": cosine >= least,
    }


def _profiles(options: Options, field: Field, profiles: dict[str, Any], progress: output.Progress | None) -> None:
    for name, contestant in field.found.items():
        if progress:
            progress.step(f"profiling {name}")
        try:
            profiles[name] = model_profile.profile(contestant.session, field.feeds, contestant.facts, options.threads)
        except Exception as error:  # the rows are there and right: a profile is not worth losing them
            field.failed[f"profile of {name}"] = reason(error)


def _call(
    contestant: Contestant, feeds: dict[str, Any], options: Options
) -> tuple[Callable[[], Any], "list[np.ndarray]"]:
    """(a call of its session, what it gives); ValueError for whatever a runtime raises at a model."""
    import onnxruntime

    try:
        session = contestant.session(session_options(options.threads))
    except Exception as error:
        rule = f"bench: model must load in ONNX Runtime {onnxruntime.__version__}"
        raise ValueError(f"{rule}; got '{options.model}': {reason(error)}") from error
    try:
        binding = bound(session, feeds)
        session.run_with_iobinding(binding)
    except Exception as error:
        rule = f"bench: model must run on made-up inputs of --batch {options.batch} and --seq {options.seq}"
        raise ValueError(f"{rule}; got '{options.model}': {reason(error)}") from error
    return functools.partial(session.run_with_iobinding, binding), _arrays(binding.get_outputs())


def _arrays(values: list[Any]) -> "list[np.ndarray]":
    """Outputs as NumPy arrays of their own; those that are no tensors are left out."""
    from deepseek_fast.onnx._runtime import _to_numpy

    return [_to_numpy(value).copy() for value in values if value.has_value() and value.is_tensor()]


def distance(values: "list[np.ndarray]", wanted: "list[np.ndarray]") -> tuple[float, float]:
    """(smallest cosine, largest absolute difference) over the outputs; (0, inf) where shapes, NaN or inf differ."""
    import numpy as np

    cosine, max_abs = 1.0, 0.0
    for value, want in zip(values, wanted, strict=True):
        if value.shape != want.shape or value.dtype.kind in "OSU" or want.dtype.kind in "OSU":
            if value.shape != want.shape or not np.array_equal(value, want):
                return 0.0, float("inf")
            continue
        a, b = np.asarray(value, np.float64).ravel(), np.asarray(want, np.float64).ravel()
        finite = np.isfinite(b)
        if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return 0.0, float("inf")
        a, b = a[finite], b[finite]
        if not a.size or np.array_equal(a, b):
            continue
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = min(cosine, float(a @ b) / norms if norms > 0 else 0.0)
        max_abs = max(max_abs, float(np.abs(a - b).max()))
    return cosine, max_abs
