"""Graphs of bytes for the rules' tests, and their numbers before and after."""

from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.onnx import explain
from deepseek_fast.onnx._constants import FOLDING_OPSET
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner, library_problem
from tests.onnx_models import Graph

C, F, H, W = 4, 6, 9, 10
U8, S8 = np.uint8, np.int8
X_SCALE, W_SCALE, Y_SCALE, R_SCALE = 0.02, 0.01, 0.03, 0.04


class Qdq(Graph):
    """A graph of bytes; x is an input of it, or of floats where a QuantizeLinear comes first."""

    def quantize(self, value: str, scale: float, zero: int, dtype: Any = U8, **options: Any) -> str:
        return self.op("QuantizeLinear", value, *self.scale(scale, zero, dtype), **options)

    def dequantize(self, value: str, scale: Any, zero: Any, dtype: Any = U8, **options: Any) -> str:
        return self.op("DequantizeLinear", value, *self.scale(scale, zero, dtype), **options)

    def scale(self, scale: Any, zero: Any, dtype: Any) -> list[str]:
        count = len(self.initializers)
        return [self.constant(f"s{count}", scale), self.constant(f"z{count}", zero, dtype)]

    def byte_input(self, name: str, *shape: Any, dtype: Any = U8) -> str:
        return self.input(name, *shape, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def x(self, dtype: Any = U8, scale: float = X_SCALE, channels: int = C) -> str:
        return self.dequantize(self.byte_input("x", "batch", channels, H, W, dtype=dtype), scale, 7, dtype)

    def weight(self, dtype: Any = S8, *, per_channel: bool = True, filters: int = F, channels: int = C) -> str:
        low, high, zero = (-127, 128, 0) if dtype == S8 else (0, 256, 128)
        w = self.constant("w", self.rng.integers(low, high, (filters, channels, 3, 3)), dtype)
        if not per_channel:
            return self.dequantize(w, W_SCALE, zero, dtype)
        return self.dequantize(w, self.weight_scale(filters), np.full(filters, zero), dtype, axis=0)

    def weight_scale(self, filters: int = F) -> np.ndarray:
        return np.linspace(W_SCALE / 4, W_SCALE, filters).astype(np.float32)

    def bias(self, kind: str) -> list[str]:
        if kind == "none":
            return []
        steps = np.float32(X_SCALE) * self.weight_scale()
        numbers = self.rng.integers(-3000, 3000, F)
        if kind == "float":
            return [self.constant("b", numbers * steps)]
        if kind == "other scale":
            return [self.dequantize(self.constant("b", numbers, np.int32), steps[0], 0, np.int32)]
        return [self.dequantize(self.constant("b", numbers, np.int32), steps, np.zeros(F), np.int32, axis=0)]

    def conv(self, x: str, *more: str, **options: Any) -> str:
        options.setdefault("pads", [1, 1, 1, 1])
        return self.op("Conv", x, *more, **options)

    def bytes_out(self, name: str, dtype: Any = U8) -> None:
        self.output(name, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), rank=4)


def byte_values(dtype: Any, *shape: int, seed: int = 3) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def check(graph: Graph, feeds: dict[str, np.ndarray], *, opset: int = 21, steps: int = 0, **options: Any) -> Any:
    """The rewritten model gives QLinearConv's bytes, to `steps`, and the reference's of the original to a step more."""
    model = graph.model(opset)
    result = explain(model, **options)
    onnx.checker.check_model(result.model, full_check=True)
    names = [output.name for output in model.graph.output]
    assert [output.name for output in result.model.graph.output] == names
    want = Runner(model, runtime=STOCK, threads=1).run(feeds)
    reference: Any = want
    if opset >= FOLDING_OPSET:
        reference = dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))
    for runtime in (STOCK, LIBRARY) if library_problem() is None else (STOCK,):
        for name, got in Runner(result.model, runtime=runtime, threads=1).run(feeds).items():
            assert got.dtype == want[name].dtype and got.shape == want[name].shape, runtime
            apart = np.abs(got.astype(np.float64) - want[name].astype(np.float64)).max()
            assert apart <= steps, (runtime, name, apart)
            apart = np.abs(got.astype(np.float64) - reference[name].astype(np.float64)).max()
            assert apart <= steps + 1, (runtime, name, apart)
    return result


# Convolutions
