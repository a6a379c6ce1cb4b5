"""Turns a contestant's file into a call, after its packages were imported: what is timed is the model alone."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.networks.contestants import OURS_TORCH, TORCH_INT8, Contestant

if TYPE_CHECKING:
    import numpy as np

Call = Callable[["list[np.ndarray]"], "list[np.ndarray]"]


def load(contestant: Contestant, folder: Path, threads: int) -> Call:
    """From arrays in the order of the model's inputs to its outputs. Its packages are imported by `import_packages`."""
    path = folder / contestant.file
    if contestant.runtime == "torch":
        return _load_torch(contestant.name, threads)
    if contestant.runtime == "OpenVINO":
        return _load_openvino(path, threads, "bf16" if contestant.bf16 else "f32")
    import onnxruntime

    from deepseek_fast import ort
    from deepseek_fast.bench.model import session_options

    options = session_options(threads)
    options.inter_op_num_threads = 1
    if contestant.library:
        session = ort.session(path, threads=threads, options=options)
    else:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def import_packages(contestant: Contestant) -> None:
    """What `load` needs, so that its time is the model's alone."""
    of_runtime = {
        "ORT": ("onnxruntime", "deepseek_fast.ort", "deepseek_fast.bench.model"),
        "torch": ("torch", "transformers.models.bert.modeling_bert", "deepseek_fast.quantization"),
        "OpenVINO": ("openvino",),
    }
    for module in of_runtime[contestant.runtime]:
        importlib.import_module(module)


def _load_torch(name: str, threads: int) -> Call:
    import torch

    from deepseek_fast import quantization
    from deepseek_fast.cli import demo_model

    torch.set_num_threads(threads)
    module = demo_model.load()
    if name == TORCH_INT8:
        module = demo_model.torch_dynamic_int8(module)
    elif name == OURS_TORCH:
        module = quantization.quantize_linears(module, inplace=True)

    def call(arrays: "list[np.ndarray]") -> "list[np.ndarray]":
        with torch.inference_mode():
            return [module(*map(torch.from_numpy, arrays)).numpy()]

    return call


def _load_openvino(path: Path, threads: int, precision: str) -> Call:
    import openvino

    # Its own precision would be bf16 on CPUs that have it; pinned threads would meet the others on the first core.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    settings |= {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def call(arrays: "list[np.ndarray]") -> "list[np.ndarray]":
        results = request.infer(dict(enumerate(arrays)), share_inputs=True)
        return [results[output] for output in request.model_outputs]

    return call
