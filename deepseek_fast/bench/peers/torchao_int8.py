"""torchao's int8 linear layers through torch.compile, as its documentation advises, holding our int8 weight."""

from typing import Any

from torch import Tensor, nn

from deepseek_fast.bench.peers import Peer
from deepseek_fast.bench.peers._common import ACTIVATIONS, INT8_ROW, dequantized, float_peer
from deepseek_fast.bench.peers._compiled import compiled
from deepseek_fast.cli import output

PACKAGES = ("torchao",)
HOW_TO_INSTALL = "pip install torchao, or run `make bench-peers`"


class Layer(nn.Module):
    """A linear layer quantized by torchao, and the activation."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        with output.quiet():  # it warns of CUDA libraries that it cannot load
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
        q, scale, x = inputs["q"], inputs["scale"], inputs["x"]
        self.linear = nn.Linear(q.shape[1], q.shape[0], device="meta", dtype=x.dtype)
        self.linear.weight = nn.Parameter(dequantized(q, scale, x), requires_grad=False)
        self.linear.bias = nn.Parameter(inputs["bias"], requires_grad=False)
        config = Int8DynamicActivationInt8WeightConfig if inputs["activations"] == "int8" else Int8WeightOnlyConfig
        quantize_(self.linear, config(set_inductor_config=False))  # which would change torch for the whole process
        # It chose its own codes; ours differ from them by up to 3, and the reference has ours.
        weight: Any = self.linear.weight
        weight.qdata.copy_(q)
        weight.scale.copy_(scale[:, None])
        self.activate = ACTIVATIONS[inputs["activation"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(x))


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x = inputs["x"]
    call = compiled(Layer(inputs), x)
    if inputs["activations"] == "float":
        return {"torchao int8 weights": float_peer(call, x)}
    return {"torchao int8": Peer(call, *INT8_ROW)}
