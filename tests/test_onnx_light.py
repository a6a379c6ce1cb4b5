"""The nine architectures inside the onnx wheel: every convolution is ours, NHWC between them, and the same numbers."""

from collections import Counter

import numpy as np
import pytest

from bench.networks.weights import NAMES, images, light_model
from deepseek_fast.onnx import explain
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner, library_problem
from tests.onnx_models import attribute, counts, fused

QUICK = ("shufflenet", "squeezenet")
CLOSE = 1e-4  # of the largest value: float32 sums in another order, layer after layer, and a softmax of them
ENDS = 2  # sides of our nodes in NCHW: the image's and the result's


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_light_network(name):
    model = light_model(name)
    result = explain(model)
    left = counts(result.model)
    theirs = ("Conv", "BatchNormalization", "LRN", "MaxPool", "AveragePool", "GlobalAveragePool", "Dropout")
    assert not set(theirs) & set(left)
    assert left["Transpose"] == counts(model)["Transpose"]
    assert {note.rule for note in result.refused} <= {"ConvWinograd"}
    ours = [node for op_type in ("FusedConv", "Pool2d", "LocalResponseNorm") for node in fused(result.model, op_type)]
    layouts = Counter(attribute(node, side).decode() for node in ours for side in ("x_layout", "y_layout"))
    assert layouts["NCHW"] == ENDS

    x = images(np.random.default_rng(0), 2)
    feeds = {model.graph.input[0].name: x}
    want = Runner(model, runtime=STOCK).run(feeds)
    for runtime in (STOCK, LIBRARY) if library_problem() is None else (STOCK,):
        for output, got in Runner(result.model, runtime=runtime).run(feeds).items():
            error = np.abs(got - want[output]).max() / np.abs(want[output]).max()
            assert error <= CLOSE, (runtime, output, error)
