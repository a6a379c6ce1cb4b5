"""The nine architectures inside the onnx wheel: every convolution is ours, NHWC between them, and the same numbers."""

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto

from bench.networks.weights import NAMES, images, light_model
from deepseek_fast.onnx import explain, verify
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner, library_problem
from tests.onnx_models import attribute, counts, fused

QUICK = ("shufflenet", "squeezenet")
LIGHT = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
CLOSE = 1e-4  # of the largest value: float32 sums in another order, layer after layer, and a softmax of them
ENDS = 2  # sides of our nodes in NCHW: the image's and the result's


@pytest.mark.parametrize("name", LIGHT)
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


# Casts to bfloat16 and back: of the image, and of what the softmax reads; the two sides of each LRN; and what a Relu
# that follows a Concat reads, twice, and makes.
CASTS = {"bvlc_alexnet": (3, 3), "inception_v1": (3, 3), "zfnet512": (3, 3), "shufflenet": (4, 7)}
BF16_COSINE = 0.97  # random weights amplify roundings, and the softmax of SqueezeNet most of all


@pytest.mark.parametrize("name", LIGHT)
def test_light_network_in_bf16(name):
    model = light_model(name)
    result = explain(model, precision="bf16")
    wide = counts(explain(model).model)
    left = counts(result.model)
    targets = Counter(attribute(node, "to") for node in fused(result.model, "Cast"))
    narrowed, widened = CASTS.get(name, (1, 1))
    assert targets == {TensorProto.BFLOAT16: narrowed, TensorProto.FLOAT: widened}
    assert left - Counter(Cast=left["Cast"]) == wide
    convolutions = [node for op_type in ("FusedConv", "FusedMatmul") for node in fused(result.model, op_type)]
    types = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert {types[node.input[1]] for node in convolutions} == {TensorProto.BFLOAT16}
    assert {attribute(node, "algorithm") for node in fused(result.model, "FusedConv")} == {b"direct"}
    assert not [note for note in result.refused if note.rule == "bf16" and "FusedConv" in note.sentence]
    report = verify(model, result.model, {model.graph.input[0].name: images(np.random.default_rng(0), 2)})
    assert report.ok and min(output.difference.cosine for output in report.outputs) > BF16_COSINE, str(report)
