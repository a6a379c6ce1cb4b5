"""quantize_linears: which modules are swapped, what is shared, what is left alone."""

import pytest
import torch
from torch import nn

from deepseek_fast.nn import Int8Linear
from deepseek_fast.quantization import quantize_linears


class _Tied(nn.Module):
    """One linear in two places, and a subclass whose forward is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.inner = nn.Sequential(nn.Linear(16, 16, bias=False), nn.GELU())
        self.special = nn.modules.linear.NonDynamicallyQuantizableLinear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.special(self.inner(self.again(self.first(x))))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_every_linear_is_swapped(inplace: bool, activations: str) -> None:
    module, x = _Tied(), torch.randn(5, 16)
    before, wanted = {name: type(part) for name, part in module.named_modules()}, module(x).detach()
    quantized = quantize_linears(module, activations=activations, inplace=inplace)
    assert (quantized is module) == inplace
    assert isinstance(quantized.first, Int8Linear) and quantized.first is quantized.again
    assert isinstance(quantized.inner[0], Int8Linear) and quantized.inner[0].activations == activations
    assert type(quantized.special) is nn.modules.linear.NonDynamicallyQuantizableLinear
    if not inplace:
        assert {name: type(part) for name, part in module.named_modules()} == before
        torch.testing.assert_close(module(x).detach(), wanted, rtol=0, atol=0)
    # Three layers, each with weights within scale/2 = amax/254, and inputs likewise for "int8": a few percent.
    torch.testing.assert_close(quantized(x).detach(), wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
    assert not torch.equal(quantized(x), wanted)


def test_the_copy_shares_no_memory_with_the_original() -> None:
    module = _Tied()
    quantized = quantize_linears(module)
    wanted = quantized(torch.ones(2, 16)).detach().clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(quantized(torch.ones(2, 16)), wanted)


def test_a_bare_linear_is_returned_quantized() -> None:
    linear = nn.Linear(16, 8)
    for inplace in (False, True):
        assert isinstance(quantize_linears(linear, inplace=inplace), Int8Linear)
    assert type(linear) is nn.Linear


def test_the_weights_take_a_quarter_of_the_bytes() -> None:
    module = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    quantized = quantize_linears(module)

    def num_bytes(of: nn.Module) -> int:
        return sum(value.numel() * value.element_size() for value in of.state_dict().values())

    assert num_bytes(quantized) < 0.27 * num_bytes(module)


def test_wrong_activations_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="activations must be one of int8, float; got 'fp8'"):
        quantize_linears(module, activations="fp8", inplace=True)
    assert type(module[0]) is nn.Linear


def test_a_transformer_layer_in_eval_mode_runs() -> None:
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 32)
    with torch.inference_mode():
        wanted, found = layer(x), quantize_linears(layer)(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)
