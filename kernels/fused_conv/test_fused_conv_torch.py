"""fused_conv and pool2d as torch operators: Meta kernels, torch.compile, torch.export, memory."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast.kernels.fused_conv import op
from deepseek_fast.kernels.fused_conv.cases import laid_out
from tests.conv_doors import assert_same
from tests.conv_tensors import BIAS, PIXELS, RESIDUAL, TORCH_S_OWN_WARNINGS, WEIGHT, X, numbers
from tests.oracle import assert_equal

OPS = torch.ops.deepseek_fast
WINDOW = ([2, 2], [1, 1, 1, 1], [1, 1], 2)
POOL = [3, 3, 2, 2, 1, 1, 1, 1, 1]
PACKED = op.PACK_OP(WEIGHT, 2)
CODES = numbers(2, 6, 9, 8).mul(40).add(128).to(torch.uint8)
INT8_WEIGHT = WEIGHT.mul(40).to(torch.int8)
INT8_PACKED = op.PACK_OP(INT8_WEIGHT, 2)
BYTES = CODES[:, :1, :5, :4].expand(-1, 8, -1, -1)
AFTER: tuple[Any, ...] = ("none", [], BYTES, 0.5, 3, "after", POOL, True)  # a residual, a pool, to pixels
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
