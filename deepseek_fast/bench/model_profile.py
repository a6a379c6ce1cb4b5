"""A model node by node: ONNX Runtime's own profiler, its cost taken off, each node against this machine's ceiling.

A node's time is the median over the runs, so that the sum is what a usual run takes. The profiler's clock counts whole
microseconds and its bookkeeping falls inside a node's time: what it adds to a node that does nothing is measured first.
"""

import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_fast.bench import model_nodes, model_trace
from deepseek_fast.bench.model_facts import Facts
from deepseek_fast.bench.model_sessions import PROVIDERS, bound, session_options
from deepseek_fast.bench.row import timed

SECONDS = 3.0  # aimed at for the runs of one model, with and without the profiler
MIN_RUNS, MAX_RUNS = 3, 30
DROPPED = 2  # first runs: memory is being allocated
EMPTY_NODES = 64  # of the model that measures the profiler

MakeSession = Callable[[Any], Any]  # from onnxruntime.SessionOptions


@dataclass(frozen=True)
class _Trace:
    nodes: list[model_trace.Seen]
    runs: int
    profiled: float  # seconds of a run, the median
    unprofiled: float  # the same without the profiler, in turn


def profile(session: MakeSession, feeds: dict[str, Any], facts: Facts, threads: int) -> dict[str, Any]:
    """A model's profile as data. feeds: OrtValues by name."""
    own = profiler_cost(threads)
    trace = _traced(session, feeds, threads)
    found = model_nodes.nodes(trace.nodes, own, facts, model_nodes.Bounds(threads))
    return {
        "ms": sum(node["us"] for node in found) / 1e3,
        "unprofiled_ms": trace.unprofiled * 1e3,
        "runs": trace.runs,
        "profiler_us": own.inside,
        "nodes": found,
    }


def profiler_cost(threads: int) -> model_nodes.ProfilerCost:
    """Measured on nodes that add single values."""
    import numpy as np
    from onnx import TensorProto, helper
    from onnxruntime import InferenceSession, OrtValue

    names = ["x", *(f"v{i}" for i in range(EMPTY_NODES))]
    steps = [helper.make_node("Sum", [a, "x", "x"], [b]) for a, b in itertools.pairwise(names)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 1)) for name in (names[0], names[-1])]
    graph = helper.make_graph(steps, "empty", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    feeds = {"x": OrtValue.ortvalue_from_numpy(np.ones((1, 1, 1), np.float32))}
    trace = _traced(lambda options: InferenceSession(model, options, providers=PROVIDERS), feeds, threads)
    times = sorted(sample for node in trace.nodes for sample in node.samples)
    within = statistics.fmean(times[len(times) // 4 : -(len(times) // 4)])  # whole us: a median would be one of them
    inside = max(within - trace.unprofiled * 1e6 / EMPTY_NODES, 0.0)
    both = (trace.profiled - trace.unprofiled) * 1e6 / EMPTY_NODES
    return model_nodes.ProfilerCost(inside, max(both - inside, 0.0))


def _traced(session: MakeSession, feeds: dict[str, Any], threads: int) -> _Trace:
    """Runs with and without the profiler in turn, so that a busy moment hits both."""
    plain = _call(session(session_options(threads)), feeds)  # a session's profiler cannot be switched on and off
    runs = int(min(max(SECONDS / 2 / timed(plain, 1), MIN_RUNS), MAX_RUNS))
    profiled, unprofiled = [], []
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        running = session(options)
        try:
            call = _call(running, feeds)
            for _ in range(DROPPED + runs):
                profiled.append(timed(call, 1))
                unprofiled.append(timed(plain, 1))
        finally:
            path = running.end_profiling()  # else it is written when the session goes, with a word on stdout
        nodes = model_trace.read(Path(path), DROPPED)
    return _Trace(nodes, runs, statistics.median(profiled[DROPPED:]), statistics.median(unprofiled[DROPPED:]))


def _call(session: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    return functools.partial(session.run_with_iobinding, bound(session, feeds))
