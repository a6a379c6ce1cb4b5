"""Graphs quantized to FP8 by QuantizeLinear and DequantizeLinear, and what stock ONNX Runtime says of them."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.onnx import explain
from tests.onnx_models import Graph, normal, run_everywhere

FORMATS = {
    "e4m3fn": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    "e4m3fnuz": (TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
    "e5m2fnuz": (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
}
N, K = 24, 96
CLOSE = 2e-6  # float32 sums of a hundred values, in another order
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
REFUSES = "ONNX Runtime loads it"  # the reason to skip: a later one may have mended what we step around


class Fp8Graph(Graph):
    """A graph whose QuantizeLinear and DequantizeLinear are of one float8 format."""

    def __init__(self, dtype: str = "e4m3fn", *, zero_point: bool = True) -> None:
        super().__init__()
        self.dtype, self.zero_point = dtype, zero_point
        self.constant("s", 0.02)
        self.codes("z", np.zeros(()))

    def codes(self, name, values):
        kind, dtype = FORMATS[self.dtype]
        array = np.asarray(values, np.float32).astype(dtype)
        self.initializers.append(TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes()))
        return name

    def pair(self, x, **options):
        """x through the format and back."""
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, "s", "z", **options), "s", "z")

    def weight(self, name, shape, scale=0.01, **attributes):
        self.codes(name, self.rng.standard_normal(shape) * 20)
        inputs = [name, self.constant(f"{name}_s", scale, attributes.pop("scale_dtype", np.float32))]
        if self.zero_point:
            inputs.append(self.codes(f"{name}_z", np.zeros(np.shape(scale))))
        return self.op("DequantizeLinear", *inputs, output=f"{name}_d", **attributes)

    def linear(self, x, columns, rows, name):
        product = self.op("MatMul", self.pair(x), self.weight(name, (columns, rows)))
        return self.op("Add", product, self.random(f"{name}_b", rows))

    def last(self, y, rank=2):
        self.output(self.op("Identity", y, output="y"), rank=rank)


def with_x(dtype="e4m3fn", shape=("batch", K), **options):
    graph = Fp8Graph(dtype, **options)
    graph.input("x", *shape)
    return graph


def feeds_of(model, rows=3):
    shapes = {v.name: [d.dim_value or rows for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    return {name: normal(*shape).astype(kinds[name]) for name, shape in shapes.items()}


def stock(model, level="ORT_ENABLE_ALL", **config):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # threads of sessions that wait would spin
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def is_refused_by_stock(model):
    try:
        stock(model)
    except Exception as error:  # a type of ONNX Runtime's own
        return str(error)
    return ""


def check(graph, *, opset=21, close=CLOSE, levels=LEVELS, **options):
    """Optimizes; the numbers of the model, by onnx's evaluator, come out of every runtime at every level."""
    model = graph.model(opset)
    result = explain(model, **options)
    onnx.checker.check_model(result.model, full_check=True)
    evaluator, sessions = ReferenceEvaluator(model), {level: stock(result.model, level) for level in levels}
    for rows in (1, 3):
        feeds = feeds_of(model, rows)
        (want,) = evaluator.run(None, feeds)
        got = {name: values["y"] for name, values in run_everywhere(result.model, feeds).items()}
        got |= {level: session.run(["y"], feeds)[0] for level, session in sessions.items()}
        for runtime, array in got.items():
            assert array.shape == want.shape and array.dtype == want.dtype, runtime
            error = np.abs(array.astype(np.float64) - want.astype(np.float64)).max(initial=0)
            assert error <= close * max(np.abs(want.astype(np.float64)).max(initial=0), 1), (runtime, error)
    return result


# Weights: formats, layouts, scales


def scale_of(kind, transposed, block=32):
    """A scale of a (K, N) weight, where transposed (N, K), and the attributes of its DequantizeLinear."""
    rng = np.random.default_rng(2)
    axis_k = 1 if transposed else 0
    if kind == "tensor":
        return 0.01, {}
    if kind == "channel":
        return 0.01 + 0.01 * rng.random(N), {"axis": (1 - axis_k) - 2}
    blocks = -(-K // block)
    return 0.01 + 0.01 * rng.random((N, blocks) if transposed else (blocks, N)), {"axis": axis_k, "block_size": block}
