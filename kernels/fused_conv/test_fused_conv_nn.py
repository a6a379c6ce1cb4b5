"""nn.FusedConv2d: its function's bits, a plain weight in the state dict, batch norms folded."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.fused_conv.cases import PARAMS
from tests.conv_doors import assert_same
from tests.oracle import assert_equal

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...], dict[str, Any]]] = {
    "conv": (lambda: torch.nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 8), {}),
    "stem": (lambda: torch.nn.Conv2d(3, 20, 7, 2, 3, bias=False), (2, 3, 19, 21), {"max_pool": (3, 2, 1)}),
    "depthwise": (lambda: torch.nn.Conv2d(6, 6, 3, padding="same", groups=6), (2, 6, 9, 8), {"activation": "silu"}),
    "dilated": (lambda: torch.nn.Conv2d(6, 8, 3, (2, 1), (1, 2), 2, 2), (6, 12, 11), {"activation": "relu"}),
    "one dimension": (lambda: torch.nn.Conv1d(6, 10, 3, 2), (2, 6, 20), {"activation": "clip"}),
    "winograd": (lambda: torch.nn.Conv2d(6, 40, 3, padding=1), (2, 6, 9, 8), {"algorithm": "winograd"}),
}


def build(name: str) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(3)
    make, shape, options = LAYERS[name]
    conv = make()
    options = options | {"activation_params": PARAMS.get(options.get("activation", "none"), ())}
    return deepseek_fast.nn.FusedConv2d.from_torch(conv, **options), conv, torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_is_its_function_and_saves_no_packed_weight(name: str) -> None:
    module, conv, x = build(name)
    options = {key: getattr(module, key) for key in ("activation", "activation_params", "max_pool", "algorithm")}
    window = (module.stride, module.padding, module.dilation, module.groups)
    want = deepseek_fast.fused_conv(x, conv.weight, conv.bias, *window, **options).detach()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    with torch.no_grad():
        assert_equal(module(x), want, "packed")
        for parameter in other.parameters():
            parameter.zero_()
        assert not torch.equal(other(x), want), "the packed weight follows the plain one"
        other.load_state_dict(torch.load(file, weights_only=True))
        assert_equal(other(x), want, "loaded")
    assert not [key for key in module.state_dict() if "packed" in key]
    assert str(tuple(conv.weight.shape)) in repr(module)


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_compiles_and_trains(name: str) -> None:
    module, conv, x = build(name)
    module.requires_grad_(False)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_equal(compiled(x), module(x), "compiled")
        torch._dynamo.reset()
    module.requires_grad_(True)
    module(x).square().sum().backward()
    assert module.weight.grad.shape == conv.weight.shape
    assert module.weight is conv.weight


def test_a_module_follows_its_weight_to_channels_last_and_bf16() -> None:
    module, conv, x = build("conv")
    with torch.no_grad():
        module = module.to(memory_format=torch.channels_last)
        assert module(x).is_contiguous(memory_format=torch.channels_last)
        assert module(x).stride() == conv(x).stride()
        got = module.bfloat16()(x.bfloat16())
        want = deepseek_fast.fused_conv(x.bfloat16(), conv.weight.bfloat16(), conv.bias.bfloat16(), padding=1)
        assert_same(got, want, "bf16")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_norm_is_folded_in_float64(name: str, affine: bool) -> None:
    _, conv, x = build(name)
    kind = torch.nn.BatchNorm1d if name == "one dimension" else torch.nn.BatchNorm2d
    norm: Any = kind(conv.weight.shape[0], affine=affine).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    module = deepseek_fast.nn.FusedConv2d.from_torch(conv, norm)
    exact, of_conv = copy.deepcopy(norm).double(), copy.deepcopy(conv).double()
    full = x.double() if x.dim() == conv.weight.dim() else x.double()[None]
    with torch.no_grad():
        torch.testing.assert_close(
            module(x).double().reshape(exact(of_conv(full)).shape), exact(of_conv(full)), rtol=1e-5, atol=1e-5
        )
        assert not torch.equal(module.weight, conv.weight)


@pytest.mark.parametrize(
    ("conv", "bn", "error", "sentence"),
    [
        (torch.nn.Linear(3, 3), None, TypeError, "conv must be an nn.Conv2d or nn.Conv1d; got Linear"),
        (
            torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            None,
            ValueError,
            "conv must have padding_mode 'zeros'; got 'reflect'",
        ),
        (
            torch.nn.Conv2d(3, 3, 3),
            torch.nn.LayerNorm(3),
            TypeError,
            "bn must be an nn.BatchNorm2d or nn.BatchNorm1d; got LayerNorm",
        ),
        (
            torch.nn.Conv2d(3, 3, 3),
            torch.nn.BatchNorm2d(3, track_running_stats=False),
            ValueError,
            "bn must have running statistics; got track_running_stats=False",
        ),
        (
            torch.nn.Conv2d(3, 3, 3),
            torch.nn.BatchNorm2d(4),
            ValueError,
            "bn must have 3 features, conv's filters; got 4",
        ),
    ],
    ids=str,
)
def test_from_torch_refuses(conv: Any, bn: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as raised:
        deepseek_fast.nn.FusedConv2d.from_torch(conv, bn)
    assert str(raised.value) == f"FusedConv2d: {sentence}"
