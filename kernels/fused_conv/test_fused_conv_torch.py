"""fused_conv and pool2d as torch operators: Meta kernels, torch.compile, torch.export, autograd, autocast, nn."""

import copy
import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast import _conv
from deepseek_fast.kernels.fused_conv import op
from deepseek_fast.kernels.fused_conv.cases import CASES, PARAMS, Case, laid_out
from deepseek_fast.kernels.fused_conv.ref import fused_conv_ref
from tests.conv_doors import assert_same
from tests.oracle import assert_equal, assert_within

OPS = torch.ops.deepseek_fast
# Dynamo and Inductor use what torch 2.13 itself has deprecated: torch.jit, an instantiated autograd.Function.
TORCH_S_OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def numbers(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "NCHW") -> Tensor:
    return laid_out(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype), layout)


X, WEIGHT, BIAS = numbers(2, 6, 9, 8), numbers(8, 3, 3, 3), numbers(8)
PIXELS = laid_out(X, "NHWC")
RESIDUAL = numbers(2, 8, 5, 4)
WINDOW = ([2, 2], [1, 1, 1, 1], [1, 1], 2)
POOL = [3, 3, 2, 2, 1, 1, 1, 1, 1]
PACKED = op.PACK_OP(WEIGHT, 2)
CODES = numbers(2, 6, 9, 8).mul(40).add(128).to(torch.uint8)
INT8_WEIGHT = WEIGHT.mul(40).to(torch.int8)
INT8_PACKED = op.PACK_OP(INT8_WEIGHT, 2)
AFTER: tuple[Any, ...] = (
    "none",
    [],
    CODES[:, :1, :5, :4].expand(-1, 8, -1, -1),
    0.5,
    3,
    "after",
    POOL,
    True,
)  # with a residual
SCALES = (0.02, 128, torch.full((8,), 0.03), 0.1, 5)  # of x, the weight and y
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "planes": (op._OP, (X, WEIGHT, BIAS, *WINDOW)),
    "pixels": (op._OP, (PIXELS, WEIGHT, None, *WINDOW, "gelu")),
    "weight in pixels": (op._OP, (X, laid_out(WEIGHT, "NHWC"), None, *WINDOW)),
    "bf16": (op._OP, (PIXELS.bfloat16(), WEIGHT.bfloat16(), None, *WINDOW, "clip", [0.0, 1.0])),
    "residual": (op._OP, (PIXELS, WEIGHT, BIAS, *WINDOW, "relu", [], RESIDUAL, "after")),
    "pool": (op._OP, (X, WEIGHT, BIAS, *WINDOW, "relu", [], None, "before", POOL)),
    "unbatched": (op._OP, (X[0], WEIGHT, BIAS, *WINDOW)),
    "unbatched pixels": (op._OP, (PIXELS[0], WEIGHT, BIAS, *WINDOW)),
    "one dimension": (op._OP, (X[:, :, 0], WEIGHT[:, :, 0], BIAS, [1, 2], [0, 1, 0, 1], [1, 1], 2)),
    "one dimension, pixels": (op._OP, (PIXELS[:, :, 0], WEIGHT[:, :, 0], BIAS, [1, 2], [0, 1, 0, 1], [1, 1], 2)),
    "one row": (op._OP, (PIXELS[:1], WEIGHT, BIAS, *WINDOW)),
    "one channel": (op._OP, (PIXELS[:, :1], numbers(4, 1, 3, 3), None, *WINDOW[:3], 1)),
    "one pixel": (op._OP, (X[:, :, :1, :1], WEIGHT, None, *WINDOW)),
    "empty": (op._OP, (X[:0], WEIGHT, BIAS, *WINDOW)),
    "columns before rows": (op._OP, (X.transpose(2, 3), WEIGHT, BIAS, *WINDOW)),
    "winograd": (
        op._OP,
        (X, numbers(8, 6, 3, 3), None, [1, 1], [1] * 4, [1, 1], 1, "none", [], None, "before", [], "winograd"),
    ),
    "packed": (op._PACKED_OP, (X, PACKED, BIAS, [8, 3, 3, 3], *WINDOW)),
    "packed to pixels": (
        op._PACKED_OP,
        (X, PACKED, BIAS, [8, 3, 3, 3], *WINDOW, "none", [], RESIDUAL, "before", POOL, True),
    ),
    "int8": (op._INT8_OP, (CODES, INT8_WEIGHT, *SCALES, None, *WINDOW, torch.int8, "relu", [])),
    "int8, packed": (op._INT8_PACKED_OP, (CODES, INT8_PACKED, *SCALES, None, [8, 3, 3, 3], *WINDOW, torch.uint8)),
    "int8, packed to pixels": (
        op._INT8_PACKED_OP,
        (CODES, INT8_PACKED, *SCALES, None, [8, 3, 3, 3], *WINDOW, torch.uint8, *AFTER),
    ),
    "max": (op._POOL_OP, (X, POOL)),
    "max of pixels": (op._POOL_OP, (PIXELS, POOL, "max")),
    "average": (op._POOL_OP, (PIXELS[0], POOL, "average", False)),
    "max of nothing": (op._POOL_OP, (X[:0], POOL)),
}
PACKS: dict[str, tuple[Any, ...]] = {
    "tiles": (WEIGHT, 1),
    "few to a group": (WEIGHT, 2),
    "panels of groups": (numbers(40, 5, 3, 3), 2),
    "stem": (numbers(20, 3, 7, 7), 1),
    "depthwise": (numbers(9, 1, 3, 3), 9),
    "pixels": (laid_out(numbers(20, 5, 3, 3), "NHWC"), 1),
    "one dimension": (numbers(20, 5, 3), 1),
    "winograd": (numbers(40, 5, 3, 3), 1, "winograd"),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(*CALLS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", PACKS)
def test_opcheck_of_packing(name: str, dtype: torch.dtype) -> None:
    weight, *how = PACKS[name]
    if dtype == torch.float32 or how[1:] != ["winograd"]:
        torch.library.opcheck(op.PACK_OP, (weight.to(dtype), *how))


@pytest.mark.parametrize("name", CALLS)
def test_the_meta_kernel_says_what_the_op_gives(name: str) -> None:
    operator, args = CALLS[name]
    meta = operator(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args))
    real = operator(*args)
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def block(x: Tensor) -> Tensor:
    y = deepseek_fast.fused_conv(x, WEIGHT, BIAS, 2, 1, groups=2, activation="relu", max_pool=(2, 1))
    return deepseek_fast.pool2d(y, 2, kind="average")


def packed_block(x: Tensor) -> Tensor:
    packed = deepseek_fast.fused_conv_pack(WEIGHT, 2)
    y = deepseek_fast.fused_conv_packed(x, packed, BIAS, 1, "same", 1, 2, weight_shape=WEIGHT.shape)
    return y + deepseek_fast.fused_conv(x[:, :, 0], WEIGHT[:, :, 0], None, 1, 1, groups=2).unsqueeze(2)


@pytest.mark.parametrize("function", [block, packed_block])
def test_compile_has_no_breaks_and_one_graph_for_all_sizes(function: Callable[[Tensor], Tensor]) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counting)
    # none of them a size of the weight's: torch takes equal ones for one
    for shape in ((5, 6, 20, 17), (4, 6, 21, 19), (7, 6, 13, 30)):
        x = numbers(*shape)
        assert_equal(compiled(x), function(x), f"{shape}")
    assert len(graphs) == 1
    torch._dynamo.reset()


@TORCH_S_OWN_WARNINGS
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_through_aot_and_inductor(backend: str) -> None:
    for x in (X, PIXELS):
        compiled = torch.compile(block, fullgraph=True, backend=backend)
        got, want = compiled(x), block(x)
        assert_same(got, want, backend)
        assert got.stride() == want.stride()
        torch._dynamo.reset()


def test_export_keeps_the_ops() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return block(x)

    dims = {"x": {0: torch.export.Dim("images"), 2: torch.export.Dim("rows", min=16)}}
    program = torch.export.export(Module(), (numbers(2, 6, 20, 17),), dynamic_shapes=dims)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(OPS.fused_conv.default) == 1
    assert targets.count(OPS.pool2d.default) == 1
    x = numbers(3, 6, 31, 17)
    assert_equal(program.module()(x), block(x))


# --- gradients --------------------------------------------------------------------------------------------------------


def check_gradients(inputs: dict[str, Any], function: Any, reference: Any) -> None:
    """Float64 autograd of ref.py is the truth; f32 gradients agree to a few times K u of their size."""
    names = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    ours = {n: v.clone().requires_grad_() if n in names else v for n, v in inputs.items()}
    exact = {n: v.double().requires_grad_() if n in names else v for n, v in inputs.items()}
    y, want_y = function(**ours), reference(**exact)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(y, [ours[n] for n in names], upstream)
    want = torch.autograd.grad(want_y, [exact[n] for n in names], upstream.double())
    for name, g, w in zip(names, got, want, strict=True):
        assert g.dtype == torch.float32
        assert_within(g.contiguous(), w, torch.full_like(w, 2e-5 * max(1.0, w.abs().max().item())), f"d {name}")


@pytest.mark.parametrize("residual", ["none", "before", "after"])
@pytest.mark.parametrize("activation", _conv.ACTIVATIONS)
def test_gradients_are_those_of_the_reference(activation: str, residual: str) -> None:
    for pool in (None, (3, 2, 1, True)):
        case = Case((2, 6, 9, 8), 8, (3, 3), 2, (1, 0, 2, 1), 1, 2, activation=activation, residual=residual)
        case = Case(**{**vars(case), "max_pool": pool, "x_layout": "NHWC" if pool else "NCHW"})
        check_gradients(case.inputs(torch.Generator().manual_seed(4)), deepseek_fast.fused_conv, fused_conv_ref)


GRADIENT_CASES = [
    case
    for case in CASES[::4]
    if case.dtype == "float32" and case.x[0] != 0 and case.activation in ("none", "silu", "tanh", "sigmoid")
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: case.id)
def test_gradients_on_every_path(case: Case) -> None:
    check_gradients(case.inputs(torch.Generator().manual_seed(4)), deepseek_fast.fused_conv, fused_conv_ref)


def average(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool) -> Tensor:
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    "window", [(3, 2, 1, True), (3, 2, 1, False), ((2, 3), (3, 2), (1, 0), True), (5, 5, 0, False)]
)
def test_gradients_of_pool2d_are_torch_s(window: Any, count_include_pad: bool) -> None:
    kernel, stride, padding, ceil_mode = window
    for x in (X, PIXELS, X[0]):
        ours, torch_s = x.clone().requires_grad_(), x.clone().requires_grad_()
        options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        for kind in ("max", "average"):
            y = deepseek_fast.pool2d(ours, kernel, stride, padding, kind=kind, **options)
            want_y = (
                F.max_pool2d(torch_s, kernel, stride, padding, 1, ceil_mode)
                if kind == "max"
                else average(torch_s, kernel, stride, padding, ceil_mode, count_include_pad)
            )
            upstream = torch.randn(y.shape)
            (got,), (want,) = torch.autograd.grad(y, ours, upstream), torch.autograd.grad(want_y, torch_s, upstream)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_gradients_flow_only_where_asked() -> None:
    weight = WEIGHT.clone().requires_grad_()
    y = deepseek_fast.fused_conv(X, weight, BIAS, 2, 1, groups=2, activation="relu", residual=RESIDUAL)
    y.sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not deepseek_fast.fused_conv(X, weight, groups=2).requires_grad
    y = deepseek_fast.fused_conv(X, weight, groups=2)
    (grad,) = torch.autograd.grad(y.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(grad.square().sum(), weight)


@TORCH_S_OWN_WARNINGS
def test_gradients_through_compile() -> None:
    weight, x = WEIGHT.clone().requires_grad_(), X.clone().requires_grad_()

    def layer(x: Tensor) -> Tensor:
        y = deepseek_fast.fused_conv(x, weight, BIAS, 1, (1, 0, 0, 2), 1, 2, activation="gelu", max_pool=(3, 2, 1))
        return deepseek_fast.pool2d(y, 2, kind="average")

    want = torch.autograd.grad(layer(x).square().sum(), [x, weight])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), [x, weight])
    torch._dynamo.reset()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_autocast() -> None:
    """To bfloat16; under float16, which no kernel has, the convolution stays in float32."""
    for dtype, computed in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        want = deepseek_fast.fused_conv(X.to(computed), WEIGHT.to(computed), BIAS.to(computed), groups=2)
        for x in (X, X.to(dtype).to(X.dtype)):
            with torch.autocast("cpu", dtype):
                got = deepseek_fast.fused_conv(x, WEIGHT, BIAS, groups=2)
            assert got.dtype == computed
            if x is X:
                assert_equal(got, want, f"{dtype}")
        weight = WEIGHT.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            y = deepseek_fast.fused_conv(X, weight, BIAS, groups=2)
        assert_equal(y.detach(), want, f"{dtype}")
        assert torch.autograd.grad(y.sum(), weight)[0].dtype == torch.float32


# --- memory -----------------------------------------------------------------------------------------------------------


def test_channels_last_is_kept_as_torch_keeps_it() -> None:
    channels_last = torch.channels_last
    for x, weight in ((PIXELS, WEIGHT), (X, WEIGHT.contiguous(memory_format=channels_last)), (X, WEIGHT)):
        got, want = deepseek_fast.fused_conv(x, weight, groups=2), F.conv2d(x, weight, groups=2)
        assert got.is_contiguous(memory_format=channels_last) == want.is_contiguous(memory_format=channels_last)
        assert got.is_contiguous() == want.is_contiguous()


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that torch's own allocations took during the call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    return sum(event.self_cpu_memory_usage for event in found.key_averages() if event.self_cpu_memory_usage > 0)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_torch_tensors_are_not_copied(layout: str) -> None:
    """What torch allocates in a call is y alone."""
    weight = numbers(8, 8, 1, 1)
    padded = torch.zeros(2, 8, 66, 66).contiguous(
        memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format
    )
    residual = numbers(2, 8, 64, 64, layout="NCHW" if layout == "NHWC" else "NHWC")
    x = padded[:, :, 1:-1, 1:-1]
    packed = deepseek_fast.fused_conv_pack(weight)
    y_bytes = 2 * 8 * 64 * 64 * 4

    def call() -> Tensor:
        return deepseek_fast.fused_conv_packed(x, packed, weight_shape=weight.shape, residual=residual)

    call()
    assert y_bytes <= peak_bytes(call) < 1.2 * y_bytes


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_numpy_arrays_are_not_copied_and_the_result_follows_x(layout: str) -> None:
    x = laid_out(torch.randn(1, 8, 128, 128), layout).numpy()
    weight = np.random.randn(8, 8, 1, 1).astype(np.float32)
    tracemalloc.start()
    y = deepseek_fast.numpy.fused_conv(x, weight)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * y.nbytes
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous == (layout == "NHWC")
    assert y.flags.c_contiguous == (layout == "NCHW")


# --- nn.FusedConv2d ---------------------------------------------------------------------------------------------------

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
