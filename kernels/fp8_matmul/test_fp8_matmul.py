"""fp8_matmul: every code and every cast value, exact sums, few rows against many, scales at their ends, quantizer."""

from typing import Any

import pytest
import torch

import deepseek_fast
import deepseek_fast.nn
from deepseek_fast import ort
from deepseek_fast.kernels.fp8_matmul.ref import AMAX_MIN, LARGEST, cast_rows, fp8_quantize_weight_ref
from tests import ort_nodes
from tests.doors import DOORS, call, from_numpy, good_call, numpy_op, prepared, raw, to_numpy, torch_op
from tests.oracle import assert_equal
from tests.plugin import isa_cap, supported_isas

E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
FORMATS = pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)


def every_code(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype)


def ones(weight: torch.Tensor, block: tuple[int, int] = (-1, -1)) -> dict[str, Any]:
    """A weight whose scale is 1."""
    return {"weight": weight, "scale": torch.ones(1, 1), "block": block}


def arguments(x: torch.Tensor, **rest: Any) -> dict[str, Any]:
    return {"x": x, "bias": None, "activation": "none", "residual": None, "activations": "float"} | rest


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@FORMATS
def test_every_code_decodes_exactly_at_every_place(dtype: torch.dtype, x_dtype: torch.dtype, isa: str) -> None:
    """One code a row, at each place of a step of 128 and in the tail after it; a cast x = 1 is 1 again."""
    codes = every_code(dtype)
    want = codes.float().to(x_dtype)
    assert_equal(want.float(), codes.float(), "every number of the format is a bf16")
    want = torch.where(want == 0, 0.0, want)  # no -0: the bias that is not there is +0
    for K in (1, 128, 131):
        x = torch.ones(5, K, dtype=x_dtype)
        for first in range(0, K, 16):
            weight = torch.zeros(256, K, dtype=torch.uint8)
            weight[torch.arange(256), (first + torch.arange(256) % 16) % K] = codes.view(torch.uint8)
            for M in (1, 5):  # from registers, and from L1
                got = deepseek_fast.fp8_matmul(x[:M], **ones(weight.view(dtype)))
                assert_equal(got, want.expand(M, 256).contiguous(), f"K = {K}, from {first}, M = {M}")
    for door in DOORS:
        for activations in ("float", "fp8"):
            inputs = arguments(torch.full((1, 1), 448, dtype=x_dtype), activations=activations)
            got = call("fp8_matmul", door, inputs | ones(codes.reshape(256, 1)))
            assert_equal(got, torch.where(want == 0, 0.0, want * 448).reshape(1, 256), f"{door} {activations}")


@FORMATS
def test_a_nan_code_stays_in_its_column(dtype: torch.dtype, isa: str) -> None:
    weight = torch.randn(70, 200).to(dtype)
    clean = deepseek_fast.fp8_matmul(x := torch.randn(6, 200).bfloat16(), **ones(weight))
    weight.view(torch.uint8)[41, 130] = 0xFF
    got = deepseek_fast.fp8_matmul(x, **ones(weight))
    assert got[:, 41].isnan().all()
    others = [n for n in range(70) if n != 41]
    assert_equal(got[:, others], clean[:, others])


def test_few_rows_have_the_bits_of_many(isa: str) -> None:
    """Up to four rows the weight is decoded in registers, two steps of k side by side; above, in L1."""
    for K in (32, 128, 255, 256, 384, 517):
        for block in ((128, 128), (1, 32), (3, 96)):
            for mode in ("float", "fp8"):
                x = torch.randn(9, K).bfloat16()
                weight, scale = deepseek_fast.fp8_quantize_weight(torch.randn(67, K), block=block)
                many = deepseek_fast.fp8_matmul(x, weight, scale, block=block, activations=mode)
                for M in (1, 2, 3, 4, 5):
                    few = deepseek_fast.fp8_matmul(x[:M], weight, scale, block=block, activations=mode)
                    assert_equal(few, many[:M], f"M = {M}, K = {K}, {block}, {mode}")


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_of_small_integers_are_exact(x_dtype: torch.dtype, isa: str) -> None:
    """Sums below 2^24, scales that are powers of two: nothing rounds but the output."""
    K = 300
    x = torch.randint(-8, 9, (7, K)).to(x_dtype)
    weight = torch.randint(-16, 17, (65, K)).float()
    scale = torch.exp2(torch.randint(-3, 4, (33, 5)).float())
    inputs = arguments(x, weight=weight.to(E4M3), scale=scale, block=(2, 64))
    expanded = scale.repeat_interleave(2, 0)[:65].repeat_interleave(64, 1)[:, :K]
    want = (x.double() @ (weight * expanded).double().T).to(x_dtype)
    for door in DOORS:
        assert_equal(call("fp8_matmul", door, inputs), want + 0.0, door)


def cast_through_the_op(x: torch.Tensor) -> torch.Tensor:
    """x_q * x_scale in f32, rounded once: what an identity weight leaves of activations="fp8"."""
    K = x.shape[1]
    return deepseek_fast.fp8_matmul(x.float(), **ones(torch.eye(K).to(E4M3)), activations="fp8")


def check_cast(x: torch.Tensor, what: str) -> None:
    codes, scale = cast_rows(x)
    want = codes.float() * scale.repeat_interleave(128, 1)[:, : x.shape[1]]
    not_finite = (~x.float().isfinite()).reshape(-1, x.shape[1]).any(1, keepdim=True)  # the identity's zeros times NaN
    want = torch.where(not_finite, torch.nan, want + 0.0)
    assert_equal(cast_through_the_op(x), want, what)
    if x.dtype == torch.bfloat16:
        eye = ones(torch.eye(x.shape[1]).to(E4M3))
        got = deepseek_fast.fp8_matmul(x, **eye, activations="fp8")
        assert_equal(got, want.bfloat16(), f"{what}, bfloat16")


def test_every_bf16_value_casts_as_the_reference(isa: str) -> None:
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = codes[codes.isfinite()]
    shuffled = finite[torch.randperm(finite.numel(), generator=torch.Generator().manual_seed(0))]
    check_cast(codes.reshape(-1, 128), "in order, NaN and inf too")
    check_cast(shuffled.reshape(-1, 128), "shuffled")
    check_cast(finite.reshape(-1, 1), "alone")
    for power in (-8, -4, 0, 3):  # beside a largest value, so that every code is met at every power
        largest = 2.0**power
        rows = torch.cat([finite.clamp(-largest, largest).reshape(-1, 85), torch.full((768, 1), largest)], 1)
        check_cast(rows.bfloat16(), f"beside 2^{power}")


def test_every_tie_of_the_cast_rounds_to_even(isa: str) -> None:
    """Halfway between neighbours and one f32 to either side; a largest value of 448 makes the scale 1."""
    numbers = every_code(E4M3)[:127].double()
    ties = ((numbers[1:] + numbers[:-1]) / 2).float()
    for near in (ties, torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, torch.tensor(1e9))):
        for sign in (1, -1):
            x = torch.cat([near * sign, torch.tensor([448.0])]).unsqueeze(0)
            check_cast(x, f"{sign}")
    assert_equal(cast_rows(torch.cat([ties, torch.tensor([448.0])]).unsqueeze(0))[0].float()[0, 0], torch.tensor(0.0))


@pytest.mark.parametrize("amax", [0.0, 1e-45, 9e-5, AMAX_MIN, 1.1e-4, 1.0, 448.0, 3e38])
def test_blocks_of_any_magnitude_cast_as_the_reference(amax: float, isa: str) -> None:
    x = torch.rand(3, 300) * 2 - 1
    x[:, ::128] = 1
    check_cast(x * amax, f"{amax}")


def test_e8m0_scales_are_powers_of_two(isa: str) -> None:
    """All 255 of them, 2^-127, which float32 holds as a subnormal number, to 2^127."""
    codes = torch.arange(255, dtype=torch.uint8).reshape(-1, 1)
    want = torch.exp2(torch.arange(-127.0, 128, dtype=torch.float64)).float().reshape(1, -1)
    weight = torch.ones(255, 1).to(E4M3)
    for scale in (codes.view(E8M0), want.reshape(-1, 1)):
        inputs = arguments(torch.ones(1, 1), weight=weight, scale=scale, block=(1, -1))
        for door in DOORS:
            assert_equal(call("fp8_matmul", door, inputs), want, f"{door} {scale.dtype}")


@pytest.mark.parametrize("activations", ["float", "fp8"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_subnormal_scales_count_where_the_caller_flushes_them(x_dtype: torch.dtype, activations: str, isa: str) -> None:
    weight, scale = torch.full((3, 2), 3.0).to(E4M3), torch.zeros(1, 1, dtype=torch.uint8).view(E8M0)  # 2^-127
    x = torch.tensor([[2.0**20, 0.0], [1.0, 0.0], [0.25, 0.25]], dtype=x_dtype)
    inputs = arguments(x, weight=weight, scale=scale, block=(-1, -1), activations=activations)
    want = call("fp8_matmul", "torch", inputs)
    if activations == "float":
        exact = torch.tensor([3 * 2.0**-107, 3 * 2.0**-127, 1.5 * 2.0**-127], dtype=torch.float64)
        assert_equal(want, exact.to(x_dtype).reshape(3, 1).expand(3, 3).contiguous())
    assert (want != 0).all()
    assert torch.set_flush_denormal(True)
    try:
        results = {door: call("fp8_matmul", door, inputs) for door in DOORS}
        assert torch.tensor(2.0**-127).mul(1.0).item() == 0, "the caller flushes still"
    finally:
        torch.set_flush_denormal(False)
    for door, got in results.items():
        assert_equal(got, want, f"{door} on {isa}")


@FORMATS
def test_pack_refuses_in_the_words_of_the_op(dtype: torch.dtype) -> None:
    weight = torch.zeros(8, 64, dtype=dtype)
    for scale, block, sentence in (
        (torch.zeros(1, 1), (128, 128), "scale must be finite and above zero; got 0 at (0, 0)"),
        (torch.ones(1, 2), (128, 128), "scale must have shape (1, 1), one value a block; got shape (1, 2)"),
        (torch.ones(1, 1).double(), (128, 128), "scale must be float32 or float8_e8m0fnu; got dtype float64"),
        (torch.ones(1, 1), (128, 33), "block must be two positive numbers, the second a multiple of 32, or -1 for all"),
    ):
        with pytest.raises(RuntimeError) as raised:
            torch_op("fp8_matmul_pack")(weight, scale, block_n=block[0], block_k=block[1])
        assert f"fp8_matmul_pack: {sentence}" in str(raised.value)


def test_a_block_that_is_no_pair_of_integers() -> None:
    rule = "block must be two positive numbers, the second a multiple of 32, or -1 for all"
    inputs = good_call("fp8_matmul")
    for block in (128, None, "ab", (128,), (128, 128, 128), (128, 1.5), (128, "128")):
        for op, given in (
            (deepseek_fast.fp8_matmul, inputs),
            (numpy_op("fp8_matmul"), {name: to_numpy(value) for name, value in inputs.items()}),
        ):
            with pytest.raises(ValueError) as raised:
                op(**given | {"block": block})
            assert str(raised.value) == f"fp8_matmul: {rule}; got {block!r}"


def test_the_largest_blocks_are_blocks() -> None:
    largest = 2**63 - 128
    inputs = good_call("fp8_matmul") | {"scale": torch.ones(1, 1)}
    want = deepseek_fast.fp8_matmul(**inputs | {"block": (128, 128)})
    for block in ((largest, largest), (2**63 - 1, -1)):
        for door in DOORS:
            assert_equal(call("fp8_matmul", door, inputs | {"block": block}), want, f"{door} {block}")


@pytest.mark.parametrize(
    ("block", "got"),
    [
        ([128], "(128,)"),
        ([], "()"),
        ([1, 2, 3], "(1, 2, 3)"),
        (128, "(128,)"),
        ([1, 31], "(1, 31)"),
        ([128.0, 128.0], "(128.0, 128.0)"),
        ([1.5], "(1.5,)"),
    ],
)
@pytest.mark.parametrize("constant", [ort_nodes.WEIGHTS, ()], ids=["constant weights", "weights of a run"])
def test_a_node_s_block_must_be_two_integers(block: Any, got: str, constant: Any) -> None:
    inputs = good_call("fp8_matmul")
    model = ort_nodes.node_model("fp8_matmul", inputs | {"block": (1, 32)}, constant=constant)
    attribute = next(a for a in model.graph.node[0].attribute if a.name == "block")
    model.graph.node[0].attribute.remove(attribute)
    if isinstance(block, int):
        model.graph.node[0].attribute.add(name="block", type=2, i=block)
    elif block and isinstance(block[0], float):
        model.graph.node[0].attribute.add(name="block", type=6, floats=block)
    else:
        model.graph.node[0].attribute.add(name="block", type=7, ints=block)
    with pytest.raises(ValueError) as raised:
        ort.session(model.SerializeToString())
    rule = "block must be two positive numbers, the second a multiple of 32, or -1 for all"
    assert str(raised.value) == f"fp8_matmul: {rule}; got {got}"


def test_a_constant_weight_with_a_scale_of_a_run() -> None:
    inputs = good_call("fp8_matmul")
    made = ort_nodes.session("fp8_matmul", inputs, constant=("weight", "bias"))
    for factor in (1.0, 3.0):
        changed = inputs | {"scale": inputs["scale"] * factor}
        assert_equal(ort_nodes.run(made, changed), call("fp8_matmul", "torch", changed), f"{factor}")
    with pytest.raises(Exception, match="fp8_matmul: scale must be finite and above zero; got 0 at"):
        ort_nodes.run(made, inputs | {"scale": inputs["scale"] * 0})


def quantize_doors(w: torch.Tensor, **options: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    named = {name: str(value)[6:] if name == "dtype" else value for name, value in options.items()}
    codes, scale = numpy_op("fp8_quantize_weight")(to_numpy(w), **named)
    return {
        "torch": deepseek_fast.fp8_quantize_weight(w, **options),
        "numpy": (from_numpy(codes), from_numpy(scale)),
    }


def check_quantize(w: torch.Tensor, what: str, **options: Any) -> None:
    want, want_scale = fp8_quantize_weight_ref(w, **options)
    for door, (codes, scale) in quantize_doors(w, **options).items():
        assert_equal(scale, want_scale, f"{what}: scale through {door}")
        assert_equal(codes, want, f"{what}: codes through {door}")


@pytest.mark.slow  # the kernel is fp8_cast's, whose tests take every value
@FORMATS
def test_every_bf16_value_quantizes_as_the_reference(dtype: torch.dtype, isa: str) -> None:
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = codes[codes.isfinite()]
    shuffled = finite[torch.randperm(finite.numel(), generator=torch.Generator().manual_seed(0))]
    for what, w, block in (
        ("in order", finite.reshape(-1, 255), (1, 32)),
        ("shuffled", shuffled.reshape(-1, 255), (1, 32)),
        ("alone", finite.reshape(-1, 1), (1, -1)),
        ("below 1", finite[finite.abs() <= 1].reshape(2, -1), (-1, -1)),
    ):
        check_quantize(w, what, block=block, dtype=dtype)
        check_quantize(w.float(), f"{what}, float32", block=block, dtype=dtype)


@FORMATS
def test_every_tie_of_the_quantizer_rounds_to_even(dtype: torch.dtype, isa: str) -> None:
    numbers = every_code(dtype)[: 0x7F if dtype == E4M3 else 0x7C].double()
    ties = ((numbers[1:] + numbers[:-1]) / 2).float()
    for near in (ties, torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, torch.tensor(1e9))):
        row = torch.cat([near, -near, torch.tensor([LARGEST[dtype]])]).unsqueeze(0)
        check_quantize(row, "scale 1", block=(1, -1), dtype=dtype)
        check_quantize(row * 2.0**-20, "scale 2^-20", block=(1, -1), dtype=dtype)


@pytest.mark.parametrize("block", [(128, 128), (1, 128), (1, 32), (1, -1), (-1, -1), (64, 160), (3, 96)], ids=str)
@FORMATS
def test_quantize_shapes_and_layouts(block: tuple[int, int], dtype: torch.dtype, isa: str) -> None:
    for shape in ((0, 5), (5, 0), (0, 0), (1, 1), (3, 15), (130, 33), (64, 300)):
        w = torch.randn(shape)
        check_quantize(w, f"{shape}", block=block, dtype=dtype)
        check_quantize(w.bfloat16(), f"{shape} bf16", block=block, dtype=dtype)
        check_quantize(torch.randn(shape[1], shape[0]).T, f"{shape} transposed", block=block, dtype=dtype)
    for value in (0.0, -0.0, 1e-45, 9e-5, AMAX_MIN, torch.finfo(torch.float32).max):
        check_quantize(torch.full((3, 70), value), f"{value!r}", block=block, dtype=dtype)


def test_quantize_refuses_what_is_not_finite() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        w = torch.randn(130, 300)
        w[129, 257] = value
        for op, given in ((deepseek_fast.fp8_quantize_weight, w), (numpy_op("fp8_quantize_weight"), w.numpy())):
            with pytest.raises(ValueError) as raised:
                op(given)
            assert str(raised.value) == ("fp8_quantize_weight: w must be finite; got nan or inf in the block at (1, 2)")


def test_quantize_refuses_other_formats() -> None:
    w = torch.randn(3, 4)
    for given in (torch.int8, torch.float32, E8M0):
        with pytest.raises(TypeError, match=r"^fp8_quantize_weight: dtype must be float8_e4m3fn or float8_e5m2; got "):
            deepseek_fast.fp8_quantize_weight(w, dtype=given)
        with pytest.raises(TypeError, match=r"^fp8_quantize_weight: dtype must be float8_e4m3fn or float8_e5m2; got "):
            numpy_op("fp8_quantize_weight")(w.numpy(), dtype=str(given)[6:])


@FORMATS
def test_quantization_is_within_half_a_step_and_has_no_bias(dtype: torch.dtype) -> None:
    """Half a step is 2^-4 of the number for e4m3fn, 2^-3 for e5m2; as many values grow as shrink, within 5 sigma."""
    w = torch.rand(512, 512)
    w[::128, ::128] = 1
    codes, scale = deepseek_fast.fp8_quantize_weight(w, dtype=dtype)
    back = codes.double() * scale.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    step = 2.0**-4 if dtype == E4M3 else 2.0**-3
    smallest = (2.0**-10 if dtype == E4M3 else 2.0**-17) * scale.max().item()
    assert ((back - w.double()).abs() <= (w.double().abs() * step).clamp_min(smallest) * (1 + 2.0**-20)).all()
    moved = back.abs() != w.double().abs()
    share = (back.abs() > w.double().abs())[moved].double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / moved.sum().item() ** 0.5


def test_the_difference_to_the_exact_product_is_deepgemm_s() -> None:
    """Its test's measure, 1 - 2<x, y> / (|x|^2 + |y|^2) below 0.001, for normal x and weight."""
    x, w = torch.randn(64, 1024).bfloat16(), torch.randn(256, 1024).bfloat16()
    weight, scale = deepseek_fast.fp8_quantize_weight(w)
    want = x.double() @ w.double().T
    for activations in ("float", "fp8"):
        got = deepseek_fast.fp8_matmul(x, weight, scale, activations=activations).double()
        difference = 1 - 2 * (got * want).sum() / (got.square() + want.square()).sum()
        assert 0 < difference < 0.001, activations


def test_a_packed_weight_is_the_same_from_every_level() -> None:
    inputs = prepared("fp8_matmul", good_case())[0]
    packed = []
    for level in supported_isas():
        with isa_cap(level):
            packed.append(torch_op("fp8_matmul_pack")(**raw({n: inputs[n] for n in ("weight", "scale", "block")})))
    assert all(torch.equal(packed[0], other) for other in packed)


def good_case() -> Any:
    from deepseek_fast.kernels.fp8_matmul.cases import CASES

    return next(case for case in CASES if case.N > 64 and case.K > 128)


def test_a_layer_of_a_checkpoint(isa: str) -> None:
    """from_quantized keeps the codes and an e8m0 scale as they are; the packed weight follows both."""
    weight, x = torch.randn(70, 160).to(E4M3), torch.randn(3, 160)
    scale = torch.randint(120, 135, (70, 5), dtype=torch.uint8).view(E8M0)
    layer = deepseek_fast.nn.Fp8Linear.from_quantized(weight, scale, block=(1, 32), activation="silu")
    want = deepseek_fast.fp8_matmul(x, weight, scale, block=(1, 32), activation="silu")
    assert_equal(layer(x), want)
    for changed in (layer.half(), layer.bfloat16(), layer.to(torch.float64), layer.float()):
        assert (changed.weight.dtype, changed.scale.dtype) == (E4M3, E8M0)
        assert_equal(changed(x), want)
    assert not layer.to("meta").weight.is_cpu
    twice = (scale.view(torch.uint8) + 1).view(E8M0)
    layer = deepseek_fast.nn.Fp8Linear.from_quantized(weight, scale, block=(1, 32))
    before = layer(x)
    layer.scale = twice
    assert_equal(layer(x), before * 2)
    layer.load_state_dict({"weight": weight, "scale": scale})
    assert_equal(layer(x), before)
    layer.scale.view(torch.uint8).add_(1)
    assert_equal(layer(x), before * 2)


def test_a_layer_refuses_what_the_op_refuses() -> None:
    weight = torch.zeros(8, 64, dtype=E4M3)
    for kind, options, sentence in (
        (ValueError, {"scale": torch.zeros(1, 1)}, "fp8_matmul_pack: scale must be finite and above zero; got 0"),
        (ValueError, {"scale": torch.ones(2, 1)}, "fp8_matmul_pack: scale must have shape (1, 1)"),
        (ValueError, {"block": 128}, "Fp8Linear: block must be two positive numbers"),
        (ValueError, {"activation": "elu"}, "Fp8Linear: activation must be one of"),
        (ValueError, {"activations": "int8"}, "Fp8Linear: activations must be one of float, fp8; got 'int8'"),
        (TypeError, {"weight": torch.zeros(8, 64)}, "fp8_matmul_pack: weight must be float8_e4m3fn or float8_e5m2"),
    ):
        with pytest.raises(kind) as raised:
            deepseek_fast.nn.Fp8Linear.from_quantized(**{"weight": weight, "scale": torch.ones(1, 1)} | options)
        assert str(raised.value).startswith(sentence)
