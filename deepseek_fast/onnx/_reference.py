"""What a candidate is compared with: another ONNX model, or a torch module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from deepseek_fast.onnx import _inputs
from deepseek_fast.onnx._compare import has_bf16
from deepseek_fast.onnx._runtime import STOCK, Runner, one_line

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

    from deepseek_fast.onnx._structure import Source


class Reference(Protocol):
    source: Source | None

    def has_bf16(self) -> bool: ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class OnnxReference:
    """A model in stock ONNX Runtime; in onnx's own evaluator where ONNX Runtime cannot load it, as in bfloat16."""

    def __init__(self, source: Source, threads: int | None) -> None:
        self.source: Source | None = source
        self._model = source.model
        self._runner = reference_runner(source.model, source, threads)

    def has_bf16(self) -> bool:
        return has_bf16(self._model)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return self._runner.run(feeds)
        except Exception as error:
            raise ValueError(f"verify: inputs must suit the reference; got {one_line(error)}") from error


def reference_runner(model: onnx.ModelProto, source: Source, threads: int | None) -> Runner | EvaluatorRunner:
    """What runs `model`, which is source.model or that with more outputs."""
    problem: Exception | None = None
    for optimized in (True, False):  # ONNX Runtime 1.31's own fusions break a few models that it loads without them
        try:
            return Runner(model, runtime=STOCK, threads=threads, external_folder=source.folder, optimized=optimized)
        except Exception as error:  # ONNX Runtime has many exception types
            problem = problem or error
    if source.folder is None and "NOT_IMPLEMENTED" in str(problem):
        return EvaluatorRunner(model)
    raise ValueError(f"verify: reference must load in ONNX Runtime; got {one_line(problem)}") from problem


class EvaluatorRunner:
    """A model in onnx.reference.ReferenceEvaluator: slow, and knows every type."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(model)
        self._outputs = [value.name for value in model.graph.output]

    def run(self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = self._outputs if names is None else list(names)
        results: Any = self._evaluator.run(names, dict(feeds))
        return dict(zip(names, results, strict=True))


class TorchReference:
    """A torch module; its outputs, flattened, are taken for the candidate's outputs in their order."""

    def __init__(self, module: torch.nn.Module, candidate: onnx.ModelProto) -> None:
        self.source: Source | None = None
        self._module = module
        self._inputs = [value.name for value in _inputs.graph_inputs(candidate)]
        self._outputs = [value.name for value in candidate.graph.output]
        parameters = inspect.signature(module.forward).parameters
        self._by_name = all(name in parameters for name in self._inputs)

    def has_bf16(self) -> bool:
        import torch

        return any(tensor.dtype == torch.bfloat16 for tensor in (*self._module.parameters(), *self._module.buffers()))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        tensors = {name: _to_torch(feeds[name]) for name in self._inputs}
        with torch.no_grad():
            result = self._module(**tensors) if self._by_name else self._module(*tensors.values())
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(_plain(result)) if isinstance(leaf, torch.Tensor)]
        if len(leaves) != len(self._outputs):
            rule = f"verify: reference must have the candidate's {len(self._outputs)} outputs"
            raise ValueError(f"{rule}; got {len(leaves)}")
        return {name: _to_numpy(leaf) for name, leaf in zip(self._outputs, leaves, strict=True)}


def is_torch_module(value: object) -> TypeGuard[torch.nn.Module]:
    """Without importing torch: a module can be given only where torch is imported already."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(value, torch_module.nn.Module)


def _plain(result: Any) -> Any:
    return tuple(result.values()) if isinstance(result, Mapping) else result


def _to_torch(array: np.ndarray) -> torch.Tensor:
    import numpy as np
    import torch

    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    import ml_dtypes
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
