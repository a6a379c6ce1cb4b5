"""deepseek_fast.nn: the modules hold plain weights in the state dict and a packed copy that is never saved."""

import copy
import io
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import deepseek_fast
import deepseek_fast.nn
from deepseek_fast import _packed_linear
from tests.oracle import assert_equal

IN, OUT = 37, 21
MODULES = {
    "Fp8Linear": {"activation": "gelu", "block": (16, 32)},
    "Fp8Linear fp8": {"activation": "none", "block": (128, 128), "activations": "fp8"},
    "FusedLinear": {"activation": "gelu"},
    "Int4Linear": {"activation": "silu"},
    "Int4Linear zeros": {"activation": "none", "compute": "float", "group_size": 128, "symmetric": False},
    "Int8Linear": {"activation": "silu"},
    "Int8Linear float": {"activation": "none", "activations": "float"},
}


def build(name: str, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Any, torch.nn.Linear]:
    torch.manual_seed(7)
    linear = torch.nn.Linear(IN, OUT, bias=bias, dtype=dtype)
    return getattr(deepseek_fast.nn, name.split()[0]).from_float(linear, **MODULES[name]), linear


def plain(name: str, linear: torch.nn.Linear, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """The same through the function."""
    bias = linear.bias
    if name == "FusedLinear":
        return deepseek_fast.fused_matmul(x, linear.weight, bias, residual=residual, **MODULES[name]).detach()
    return quantized(name, linear, x, bias if bias is None else bias.detach(), residual)


def quantized(
    name: str, linear: torch.nn.Linear, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None = None
) -> torch.Tensor:
    weight = linear.weight.detach()
    if name.startswith("Fp8"):
        codes, scale = deepseek_fast.fp8_quantize_weight(weight, block=MODULES[name]["block"])
        return deepseek_fast.fp8_matmul(x, codes, scale, bias, residual=residual, **MODULES[name])
    if name.startswith("Int4"):
        options = {"group_size": 32, "symmetric": True} | MODULES[name]
        how = {"group_size": options["group_size"], "symmetric": options.pop("symmetric")}
        codes, scale, *zeros = deepseek_fast.int4_quantize_weight(weight, **how)
        options |= {"in_features": IN, "residual": residual}
        return deepseek_fast.int4_matmul(x, codes, scale, zeros[0] if zeros else None, bias, **options)
    q, scale = deepseek_fast.int8_quantize_weight(weight)
    return deepseek_fast.int8_matmul(x, q, scale, bias, residual=residual, **MODULES[name])


def weight_key(name: str) -> str:
    """The buffer or parameter that, full of zeros, makes a weight of zeros."""
    return {"Int8": "q", "Int4": "scale"}.get(name[:4], "weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_its_function(name: str, bias: bool, dtype: torch.dtype) -> None:
    module, linear = build(name, bias=bias, dtype=dtype)
    for shape in ((5, IN), (2, 3, IN), (IN,), (0, IN)):
        x = torch.randn(shape).to(dtype)
        with torch.no_grad():
            assert_equal(module(x), plain(name, linear, x), f"{shape}")


@pytest.mark.parametrize("name", MODULES)
def test_the_packed_weight_is_not_saved(name: str) -> None:
    module, linear = build(name)
    state = module.state_dict()
    assert not [key for key in state if "packed" in key]
    saved = sum(value.numel() * value.element_size() for value in state.values())
    weight_bytes = {
        "Fp8Linear": OUT * IN + 4 * 4,  # blocks of 16 x 32
        "Fp8Linear fp8": OUT * IN + 4,
        "FusedLinear": OUT * IN * 4,
        "Int4Linear": OUT * ((IN + 1) // 2 + 2 * 4),
        "Int4Linear zeros": OUT * ((IN + 1) // 2 + 4 + 1),
    }
    assert saved == weight_bytes.get(name, OUT * (IN + 4)) + OUT * 4
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = build(name)[0]
    with torch.no_grad():
        for key, value in other.state_dict().items():
            value.fill_(1) if key == "scale" else value.zero_()  # a scale of FP8 may not be zero
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, IN)
    with torch.no_grad():
        assert_equal(other(x), module(x), "after load_state_dict")
        assert_equal(other(x), plain(name, linear, x))


@pytest.mark.parametrize("name", MODULES)
def test_deepcopy_and_pickle_work_and_are_independent(name: str) -> None:
    module, _ = build(name)
    x = torch.randn(4, IN)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.no_grad():
        want = module(x)
        assert_equal(copy.deepcopy(module)(x), want, "deepcopy")
        assert_equal(torch.load(file, weights_only=False)(x), want, "pickle")
        twin = copy.deepcopy(module)
        other = {key: torch.full_like(value, 2) for key, value in twin.state_dict().items()}
        twin.load_state_dict(other)
        assert not torch.equal(twin(x), want)
        assert_equal(module(x), want, "the first after its copy changed")


@pytest.mark.parametrize("name", MODULES)
def test_modules_compile_and_export_without_breaks(name: str) -> None:
    module, _ = build(name)
    module.eval()
    x = torch.randn(4, IN)
    with torch.no_grad():
        want = module(x)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        assert_equal(compiled(x), want, "compile")
        assert_equal(compiled(x[:3]), want[:3], "compile, fewer rows")
        torch._dynamo.reset()
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
        assert_equal(program.module()(x[:3]), want[:3].contiguous(), "export")


class Called(TorchDispatchMode):
    """The names of the library's ops that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "deepseek_fast":
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*MODULES, "FusedConv2d"])
def test_a_module_on_a_gpu_uses_its_plain_weight(name: str) -> None:
    """As though its weight's device were one; the plain ops have the packed ones' bits."""
    if name == "FusedConv2d":
        module, x = deepseek_fast.nn.FusedConv2d.from_torch(torch.nn.Conv2d(4, 8, 3), activation="relu"), (1, 4, 9, 9)
    else:
        module, x = build(name)[0], (5, IN)
    x = torch.randn(x)
    with torch.no_grad():
        want = module(x)
        with mock.patch.object(_packed_linear, "on_gpu", lambda tensor: True), Called() as called:
            module.to(torch.device("cpu"))
            assert module.packed is None
            assert_equal(module(x), want)
        assert called.names and not any(name.endswith(("_pack", "_packed")) for name in called.names)
        assert_equal(module.to("cpu")(x), want, "back on the CPU")
    assert module.packed is not None


def test_fused_linear_trains() -> None:
    module, linear = build("FusedLinear")
    x = torch.randn(8, IN)
    module(x).square().mean().backward()
    want = torch.nn.functional.gelu(linear(x)).square().mean()
    want.backward()
    torch.testing.assert_close(module.weight.grad, linear.weight.grad)
    torch.testing.assert_close(module.bias.grad, linear.bias.grad)
    with torch.no_grad():
        before = module(x)
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
        assert not torch.equal(module(x), before), "the packed weight must follow the trained one"


def change_in_place(module: Any, key: str, value: torch.Tensor) -> None:
    with torch.no_grad():
        getattr(module, key).copy_(value)


def change_data(module: Any, key: str, value: torch.Tensor) -> None:
    getattr(module, key).data = value


def change_by_load(module: Any, key: str, value: torch.Tensor) -> None:
    module.load_state_dict({**module.state_dict(), key: value})


def change_by_assigning_load(module: Any, key: str, value: torch.Tensor) -> None:
    module.load_state_dict({**module.state_dict(), key: value}, assign=True)


def change_tensor(module: Any, key: str, value: torch.Tensor) -> None:
    setattr(module, key, torch.nn.Parameter(value) if isinstance(getattr(module, key), torch.nn.Parameter) else value)


@pytest.mark.parametrize(
    "change", [change_in_place, change_data, change_by_load, change_by_assigning_load, change_tensor]
)
@pytest.mark.parametrize("name", MODULES)
def test_the_packed_weight_follows_the_plain_one(name: str, change: Any) -> None:
    """A stale packed weight would be wrong without a word; called before and after, inference or not."""
    module, _ = build(name)
    key = weight_key(name)
    x = torch.randn(4, IN)
    with torch.no_grad():
        module(x)
        change(module, key, torch.zeros_like(getattr(module, key)))
        bias_only = module(x)
        assert_equal(bias_only, bias_only[:1].expand(4, OUT).contiguous(), "a weight of zeros leaves the bias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_moves_to_16_bits(name: str, dtype: torch.dtype) -> None:
    module, linear = build(name)
    x = torch.randn(4, IN).to(dtype)
    with torch.no_grad():
        module(x.float())
        got = module.to(dtype)(x)
        if name == "FusedLinear":
            want = plain(name, linear.to(dtype), x)
        else:  # the weight was quantized from f32 and its scales stay f32
            want = quantized(name, linear, x, linear.bias.detach().to(dtype))
    assert_equal(got, want)


@pytest.mark.parametrize("name", MODULES)
def test_repr_names_the_sizes(name: str) -> None:
    text = repr(build(name)[0])
    assert f"in_features={IN}" in text
    assert f"out_features={OUT}" in text
    assert MODULES[name]["activation"] in text


def test_only_a_linear_is_taken() -> None:
    for name in set(deepseek_fast.nn.__all__) - {"FusedConv2d"}:
        take = getattr(deepseek_fast.nn, name)
        convolution = torch.nn.Conv2d(3, 3, 3)
        with pytest.raises(TypeError, match=f"^{name}: linear must .*; got "):
            take.from_float(convolution) if isinstance(take, type) else take(convolution, convolution)
