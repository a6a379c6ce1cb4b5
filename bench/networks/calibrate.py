"""Takes the mean and variance of every layer over a few images out of a random network, as training would have done.

Without that a deep random network overflows, or gives every image the same answer, and to compare answers says nothing.
Krähenbühl et al., "Data-dependent initializations of convolutional neural networks", 2016.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

Arrays = dict[str, "np.ndarray"]

EPSILON = 1e-5  # added to a variance
# Deviations by which a normalized layer lies above zero. With half of it cut off by ReLU, an error grows with each
# layer (the cosine of ResNet50's int8 to fp32 falls from 0.95 to 0.69 at 0); far above, the mean drowns the signal.
SHIFT = 0.5
# Standard deviation of the last layer over the classes: here the cosine of two softmaxes falls as their logits' does.
LOGITS_STD = 1.0


def calibrate(model: "onnx.ModelProto", weights: Arrays, constants: Arrays, images: "np.ndarray") -> None:
    """Changes weights: statistics of BatchNormalization, or, where a network has none, of each Conv and Gemm.

    model: without initializers; weights and constants by name.
    """
    import numpy as np

    logits = next((node.input[0] for node in model.graph.node if node.op_type == "Softmax"), model.graph.output[0].name)
    probe, normalized = _probe(model, constants | weights, logits)
    found = _run(probe, images)
    by_name = {node.output[0]: node for node in model.graph.node}
    for key in normalized:
        _take_out(by_name[key], found[f"{key}/mean"].ravel(), found[f"{key}/variance"].ravel(), weights)
    by_image = found[logits].reshape(len(images), -1)
    last = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")][-1]
    if last.output[0] == logits:
        weights[last.input[2]] -= by_image.mean(0)  # what all images have in common
        by_image = by_image - by_image.mean(0)
    for name in last.input[1:]:  # what follows, if anything, is ReLU and a mean: a factor passes through
        weights[name] *= np.float32(LOGITS_STD / by_image.std(1).mean())


def store(graph: "onnx.GraphProto", arrays: Arrays) -> None:
    """Adds initializers."""
    from onnx import numpy_helper

    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())


def _probe(model: "onnx.ModelProto", arrays: Arrays, logits: str) -> tuple["onnx.ModelProto", list[str]]:
    """(the model with normalizing nodes in place, which gives their statistics and the logits; their layers)."""
    import numpy as np
    from onnx import helper

    probe = type(model)()
    probe.CopyFrom(model)
    graph = probe.graph
    has_own = any(node.op_type == "BatchNormalization" for node in graph.node)
    nodes, normalized = [], []
    for node in graph.node:
        key = node.output[0]
        if node.op_type == "BatchNormalization":
            source, node.input[0] = node.input[0], f"{key}/normalized"
            nodes += [*_normalize(source, key, "axes_channel"), node]
            normalized.append(key)
        elif node.op_type in ("Conv", "Gemm") and not has_own:
            node.output[0] = f"{key}/raw"
            # A column of a Gemm has as many values as there are images, too few for a variance: all of it at once.
            nodes += [node, *_normalize(f"{key}/raw", key, "axes_channel" if node.op_type == "Conv" else "axes_all")]
            nodes.append(helper.make_node("Add", [f"{key}/normalized", "shift"], [key]))
            normalized.append(key)
        else:
            nodes.append(node)
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    names = [f"{key}/{what}" for key in normalized for what in ("mean", "variance")] + [logits]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    added = {"epsilon": np.float32(EPSILON), "shift": np.float32(SHIFT)}
    axes = {"axes_channel": np.array([0, 2, 3]), "axes_all": np.array([0, 1])}
    store(graph, arrays | {name: np.asarray(value) for name, value in (added | axes).items()})
    return probe, normalized


def _normalize(source: str, key: str, axes: str) -> list["onnx.NodeProto"]:
    """Nodes that give key/mean, key/variance, and key/normalized = (source - mean) / sqrt(variance + EPSILON)."""
    from onnx import helper

    steps: tuple[tuple[str, tuple[str, ...], str], ...] = (
        ("ReduceMean", (source, axes), f"{key}/mean"),
        ("Sub", (source, f"{key}/mean"), f"{key}/centered"),
        ("Mul", (f"{key}/centered", f"{key}/centered"), f"{key}/squared"),
        ("ReduceMean", (f"{key}/squared", axes), f"{key}/variance"),
        ("Add", (f"{key}/variance", "epsilon"), f"{key}/above_zero"),
        ("Sqrt", (f"{key}/above_zero",), f"{key}/deviation"),
        ("Div", (f"{key}/centered", f"{key}/deviation"), f"{key}/normalized"),
    )
    return [helper.make_node(op_type, list(inputs), [output]) for op_type, inputs, output in steps]


def _run(probe: "onnx.ModelProto", images: "np.ndarray") -> Arrays:
    """All outputs, by name."""
    import onnxruntime

    from deepseek_fast.bench.model import session_options

    serialized = probe.SerializeToString()
    session = onnxruntime.InferenceSession(serialized, session_options(1), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def _take_out(node: Any, mean: "np.ndarray", variance: "np.ndarray", weights: Arrays) -> None:
    """Gives a BatchNormalization its statistics, or folds them into a Conv's or Gemm's weight and bias."""
    import numpy as np

    if node.op_type == "BatchNormalization":
        weights[node.input[3]], weights[node.input[4]] = mean, variance
        return
    weight, bias = node.input[1], node.input[2]
    scale = 1 / np.sqrt(variance + np.float32(EPSILON))
    weights[weight] = weights[weight] * scale.reshape(-1, *(1,) * (weights[weight].ndim - 1))
    weights[bias] = (weights[bias] - mean) * scale + np.float32(SHIFT)
