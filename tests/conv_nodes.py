"""Models of one node of fused_conv's family, and every runtime that runs them."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner

OPSETS = (13, 15, 18, 20, 22, 25)
RUNTIMES = (LIBRARY, STOCK, "reference")
CLOSE = 1e-5  # float32 sums of a few dozen products of size 1, and a smooth activation of two runtimes


LAYOUTS = [(x, y) for x in ("NCHW", "NHWC") for y in ("NCHW", "NHWC")]


ONNX_TYPES: dict[Any, int] = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
}


def node_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], opset: int = 18
) -> onnx.ModelProto:
    dtype = ONNX_TYPES[inputs["x"].dtype]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, dtype, array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info("y", dtype, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [body.function_proto(opset, op_type=nodes[0].op_type)]
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], runtime: str) -> np.ndarray:
    if runtime == "reference":
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
        return outputs[0]
    return Runner(model, runtime=runtime, threads=1).run(feeds)["y"]


def pixels(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
