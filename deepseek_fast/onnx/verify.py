"""verify: says whether a candidate computes what the reference computes, and where it first departs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _inputs
from deepseek_fast.onnx._compare import compare, tolerances_for
from deepseek_fast.onnx._departure import first_departure
from deepseek_fast.onnx._reference import OnnxReference, Reference, TorchReference, is_torch_module
from deepseek_fast.onnx._runtime import LIBRARY, RUNTIMES, STOCK, Runner, library_problem, one_line
from deepseek_fast.onnx._structure import read_source, structure_problems
from deepseek_fast.onnx.report import OutputReport, Report

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

    Feeds = Mapping[str, np.ndarray]


def verify(
    reference: onnx.ModelProto | torch.nn.Module | str | os.PathLike[str],
    candidate: onnx.ModelProto | str | os.PathLike[str],
    inputs: Feeds | Sequence[Feeds] | None = None,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    min_cosine: float | None = None,
    batch_sizes: Sequence[int] = (1, 3),
    seed: int = 0,
    threads: int | None = None,
    runtimes: Sequence[str] | None = None,
) -> Report:
    """Checks the candidate's structure, runs it beside the reference, and names the first node that departs.

    reference: an ONNX model, run in stock ONNX Runtime, or a torch module, run as it is.
    candidate: an ONNX model, run in every one of `runtimes`.
    inputs: arrays by input name, or several such sets; None: made from `seed`, one set a batch size.
    atol, rtol, min_cosine: what every output must meet; of atol and rtol one is enough; rtol is relative to the
        largest value. Where none is given: a cosine of 0.97 in the worst row for int8 activations, 0.995 for int8
        weights only, 0.95 for float32 computed in bfloat16, else an rtol that follows from the candidate's operators
        (see _compare.tolerances_for).
    runtimes: of "library" (ONNX Runtime with ours) and "stock" (ONNX Runtime on the function bodies);
        None: stock, and library where it loads.

    Returns a Report: `.ok`, `.outputs`, `.problems`, `.first_departure`, `.to_dict()`; str() is one table.
    Raises ValueError, TypeError or FileNotFoundError where an argument is wrong; a wrong candidate is a Report.

        report = verify("model.onnx", "model.w8a8.onnx")
        print(report)                                        # one row a runtime, batch size and output
    """
    wanted = _check_runtimes(runtimes)
    source = read_source(candidate, "candidate")
    known = _reference(reference, source.model, threads)
    tolerances = tolerances_for(source.model, atol, rtol, min_cosine, reference_has_bf16=known.has_bf16())
    problems = structure_problems(source, known.source)
    outputs: list[OutputReport] = []
    failed: tuple[str, Feeds] | None = None
    cases = _cases(source.model, inputs, batch_sizes, seed)
    expected = [known.run(feeds) for _, feeds in cases]
    for runtime in wanted:
        try:
            runner = Runner(source.model, runtime=runtime, threads=threads, external_folder=source.folder)
            for (batch_size, feeds), want in zip(cases, expected, strict=True):
                got = runner.run(feeds)
                for name in want:
                    if name not in got:
                        continue  # said by structure_problems
                    difference = compare(got[name], want[name], tolerances)
                    outputs.append(OutputReport(runtime, batch_size, name, tuple(got[name].shape), difference))
                    if not difference.ok and failed is None:
                        failed = runtime, feeds
        except Exception as error:  # ONNX Runtime has many exception types, all of them verdicts on the candidate
            problems.append(f"verify: candidate must run in the {runtime} runtime; got {one_line(error)}")
    departure = None
    if failed is not None:
        try:
            departure = first_departure(source, known, *failed, tolerances, threads)
        except Exception as error:  # a model may not run with its inner values exposed; the verdict stands all the same
            problems.append(f"verify: candidate must run with its values exposed to be searched; got {one_line(error)}")
    return Report(tuple(outputs), tuple(problems), tolerances, departure)


def _reference(
    given: onnx.ModelProto | torch.nn.Module | str | os.PathLike[str], candidate: onnx.ModelProto, threads: int | None
) -> Reference:
    if is_torch_module(given):
        return TorchReference(given, candidate)
    return OnnxReference(read_source(given, "reference"), threads)


def _check_runtimes(runtimes: Sequence[str] | None) -> list[str]:
    if runtimes is None:
        return [LIBRARY, STOCK] if library_problem() is None else [STOCK]
    if isinstance(runtimes, str) or not runtimes or any(name not in RUNTIMES for name in runtimes):
        raise ValueError(f"verify: runtimes must be a list of {', '.join(RUNTIMES)}; got {runtimes!r}")
    problem = library_problem() if LIBRARY in runtimes else None
    if problem is not None:
        raise RuntimeError(f"verify: runtimes must be loadable; got {LIBRARY} ({problem})")
    return list(runtimes)


def _cases(
    model: onnx.ModelProto, inputs: Feeds | Sequence[Feeds] | None, batch_sizes: Sequence[int], seed: int
) -> list[tuple[int | None, Feeds]]:
    """The inputs of every run, with the batch size they were made for."""
    if inputs is not None:
        sets = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        for feeds in sets:
            _check_feeds(model, feeds)
        if not sets:
            raise ValueError("verify: inputs must hold at least one set of arrays; got none")
        return [(None, feeds) for feeds in sets]
    if not batch_sizes or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in batch_sizes):
        raise ValueError(f"verify: batch_sizes must be positive ints; got {batch_sizes!r}")
    return [(batch_size, _inputs.make_inputs(model, batch_size, seed)) for batch_size in batch_sizes]


def _check_feeds(model: onnx.ModelProto, feeds: Feeds) -> None:
    if not isinstance(feeds, Mapping):
        raise TypeError(f"verify: inputs must be a dict of arrays, or several; got {type(feeds).__name__}")
    names = [value.name for value in _inputs.graph_inputs(model)]
    if set(feeds) != set(names):
        raise ValueError(f"verify: inputs must be given for {', '.join(names)}; got {', '.join(feeds) or 'none'}")
