"""Makes each contestant's file of a network."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.networks import reference as networks_reference
from bench.networks import weights as networks_weights
from bench.networks.contestants import BY_NAME, ORT_INT8, OURS_BF16, OURS_FP32, OURS_INT8, STOCK, Contestant, Network

CALIBRATION_IMAGES = 8  # of ONNX Runtime's static int8


def reference(network: Network, folder: Path) -> int:
    """Writes a light network's answer in float64 beside its file; returns the operations that it takes."""
    return networks_reference.store(folder / BY_NAME[STOCK].file, network.inputs(network.batch))


def prepare(network: Network, folder: Path, cache: Path) -> Iterator[tuple[Contestant, str | None]]:
    """Makes the files; yields each contestant when its file is there, or with the reason why there is none.

    cache: where MiniLM's export is kept between runs. A contestant that has another's file comes with it.
    """
    from deepseek_fast.onnx import optimize

    source = folder / BY_NAME[STOCK].file
    if network.light is None:
        _export_minilm(source, cache)
    else:
        import onnx

        onnx.save(networks_weights.light_model(network.light), source)
    steps: dict[str, Callable[[Path], Any]] = {
        OURS_FP32: lambda target: optimize(source, output=target),
        OURS_INT8: lambda target: optimize(source, quantize="w8a8", output=target),
        OURS_BF16: lambda target: optimize(source, precision="bf16", output=target),
        ORT_INT8: lambda target: _ort_int8(network, source, target),
    }
    if network.light is None:  # of MiniLM nobody runs it
        del steps[OURS_BF16]
    made = {BY_NAME[name].file: name for name in steps}
    for contestant in network.contestants():
        if contestant.file not in made:
            yield contestant, None
    for file, name in made.items():
        why = None
        try:
            steps[name](folder / file)
        except Exception as error:  # of several libraries' types; the row says what it was
            why = f"{type(error).__name__}: {error}"
        for contestant in network.contestants():
            if contestant.file == file:
                yield contestant, why


def files_bytes(contestant: Contestant, folder: Path) -> int:
    """Bytes on disk of what it loads; torch quantizes what it has loaded."""
    from deepseek_fast.cli import demo_model
    from deepseek_fast.cli.optimize import model_bytes

    if contestant.runtime == "torch":
        return (demo_model.folder() / "model.safetensors").stat().st_size
    return model_bytes(folder / contestant.file)


def count_nodes(contestant: Contestant, folder: Path) -> tuple[int | None, int | None]:
    """(nodes of ours, all nodes) of its graph; torch has none."""
    if not contestant.file:
        return None, None
    import onnx

    from deepseek_fast.onnx._body import DOMAIN

    nodes = onnx.load(folder / contestant.file, load_external_data=False).graph.node
    return sum(node.domain == DOMAIN for node in nodes), len(nodes)


def _export_minilm(target: Path, cache: Path) -> None:
    from deepseek_fast.cli import demo_model

    kept = cache / "minilm.onnx"
    demo_model.export(demo_model.load(), kept)
    target.hardlink_to(kept)


def _ort_int8(network: Network, source: Path, target: Path) -> None:
    """As ONNX Runtime's documentation says: dynamic for transformers, static QDQ with weights per channel for CNNs."""
    from deepseek_fast.bench.model import ort_dynamic_int8
    from deepseek_fast.cli import output

    if network.light is None:
        ort_dynamic_int8(source, target)
        return
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            images = network.inputs(CALIBRATION_IMAGES, "calibration")[0]
            self.left = [{name: image[None]} for image in images]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    folded = target.with_suffix(".folded.onnx")
    with output.quiet():
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        graph = onnx.load(folded).graph
        quantize_static(
            str(folded),
            str(target),
            Images(graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # A probability of one class in a thousand would be rounded to steps of 1/256.
            nodes_to_exclude=[node.name for node in graph.node if node.op_type == "Softmax"],
        )
    folded.unlink()
