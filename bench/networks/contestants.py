"""Which networks there are, who runs them, and what a right answer is."""

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.networks import openvino_folder
from bench.networks import weights as networks_weights

if TYPE_CHECKING:
    import numpy as np

STOCK, ORT_INT8, OURS_FP32, OURS_INT8 = "stock ORT", "ORT int8", "ours fp32", "ours w8a8"
TORCH, TORCH_INT8, OURS_TORCH, OPENVINO = "torch", "torch int8", "ours w8a8 in torch", "OpenVINO"
OURS_STOCK, OURS_BF16, OPENVINO_BF16 = "ours fp32 in stock ORT", "ours bf16", "OpenVINO bf16"
MINILM = "minilm"
TOKENS = 64  # of each MiniLM sentence

# Cosine to stock ORT's answer, below which an answer counts as wrong.
MIN_COSINE_FP32, MIN_COSINE_INT8 = 0.9999, 0.97
# Random weights amplify rounding errors where trained ones absorb them; the answer to another image is below 0.6.
MIN_COSINE_ALL_INT8 = 0.8
# Of a light network's answer to float64's, |y - ref| / |ref|. Stock ORT's are up to 8e-6, OpenVINO's 2e-5.
MAX_ERROR_FP32 = 1e-4
# Half an ULP of bf16 in every sum of up to 121 layers, which random weights amplify: up to 0.15, OpenVINO's too.
MAX_ERROR_BF16 = 0.2


@dataclass(frozen=True)
class Contestant:
    """A way to run a network.

    column: where the tables of all networks have it, in the row of its runtime; "": it is for the light networks'
    table of its own, on one thread and the usual batch.
    """

    name: str
    runtime: str
    column: str
    file: str  # in the network's folder; torch reads the package's weights
    ours: bool = False
    library: bool = False  # runs in ORT with our library

    @property
    def int8(self) -> bool:
        return "int8" in self.column or "w8a8" in self.column

    @property
    def bf16(self) -> bool:
        return "bf16" in self.name


CONTESTANTS = (
    Contestant(STOCK, "ORT", "fp32", "fp32.onnx"),
    Contestant(ORT_INT8, "ORT", "own int8", "ort-int8.onnx"),
    Contestant(OURS_FP32, "ORT", "ours fp32", "ours-fp32.onnx", ours=True, library=True),
    Contestant(OURS_INT8, "ORT", "ours w8a8", "ours-w8a8.onnx", ours=True, library=True),
    Contestant(OURS_STOCK, "ORT", "", "ours-fp32.onnx", ours=True),
    Contestant(OURS_BF16, "ORT", "", "ours-bf16.onnx", ours=True, library=True),
    Contestant(TORCH, "torch", "fp32", ""),
    Contestant(TORCH_INT8, "torch", "own int8", ""),
    Contestant(OURS_TORCH, "torch", "ours w8a8", "", ours=True),
    Contestant(OPENVINO, "OpenVINO", "fp32", "fp32.onnx"),
    Contestant(OPENVINO_BF16, "OpenVINO", "", "fp32.onnx"),
)
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


@dataclass(frozen=True)
class Network:
    """A model, and the batches it is measured with; `batch` where nothing else is said."""

    name: str
    batch: int
    batches: tuple[int, ...]
    light: str | None = None  # its name in the onnx package; None: MiniLM

    def contestants(self) -> list[Contestant]:
        """Those that can run here."""
        with_torch = self.light is None
        with_openvino = openvino_folder.version() is not None
        away = ({"torch"} if not with_torch else set()) | ({"OpenVINO"} if not with_openvino else set())
        there = [contestant for contestant in CONTESTANTS if contestant.runtime not in away]
        return [contestant for contestant in there if contestant.column or self.light]

    def inputs(self, batch: int, purpose: str = "timing") -> "list[np.ndarray]":
        """Random inputs, all tokens counting; the same for the same batch and purpose in every run."""
        import numpy as np

        generator = np.random.default_rng(zlib.crc32(f"{self.name} {batch} {purpose}".encode()))
        if self.light is None:
            ids = generator.integers(1000, 30000, (batch, TOKENS))
            return [ids, np.ones_like(ids)]
        return [networks_weights.images(generator, batch)]

    def least_cosine(self, contestant: Contestant) -> float:
        """Of a right answer to stock ORT's."""
        if not contestant.int8:
            return MIN_COSINE_INT8 if contestant.bf16 else MIN_COSINE_FP32
        return MIN_COSINE_ALL_INT8 if self.light and contestant.name == ORT_INT8 else MIN_COSINE_INT8

    def largest_error(self, contestant: Contestant) -> float | None:
        """Of a right answer to float64's; int8 is held against stock ORT's alone."""
        if not self.light or contestant.int8:
            return None
        return MAX_ERROR_BF16 if contestant.bf16 else MAX_ERROR_FP32


NETWORKS = {
    MINILM: Network(MINILM, 8, (1, 8, 32)),
    **{
        short: Network(short, 1, (1, 4, 16), light)
        for light in networks_weights.NAMES
        for short in [light.removeprefix("bvlc_")]
    },
}
QUICK = (MINILM, "resnet50", "squeezenet")
