"""fp8_cast and its family through every door and on every level: the reference's bits for every case and input."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.fp8_cast import ref, ref_fused
from deepseek_fast.kernels.fp8_cast.cases import CASES, FORMATS, FP8, KINDS, Case
from deepseek_fast.kernels.fp8_cast.ref_formats import E2M1, E4M3, decode, numbers, unpack
from tests.cast_doors import CAST_DOORS, assert_same, call
from tests.doors import numpy_op
from tests.plugin import isa_cap, seed_of, supported_isas

FUSED = ("silu_mul_cast", "rms_norm_cast")
EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
EVERY_DOOR = pytest.mark.parametrize("door", CAST_DOORS)


def check(op: str, inputs: dict[str, Any], what: str = "", doors: tuple[str, ...] = CAST_DOORS) -> None:
    """Every level and door against the reference, which is computed once."""
    want = getattr(ref, f"{op}_ref")(**inputs)
    want = want if isinstance(want, tuple) else (want,)
    for level in supported_isas():
        with isa_cap(level):
            for door in doors:
                got = call(op, door, inputs)
                assert len(got) == len(want)
                for i, (one, other) in enumerate(zip(got, want, strict=True)):
                    assert_same(one, other, f"{op}, result {i} through {door} on {level}, {what}", door == "torch")


def check_fused(op: str, inputs: dict[str, Any]) -> None:
    allowed = getattr(ref_fused, f"{op}_admits")
    options = {"kind" if name == "scale" else name: value for name, value in inputs.items()}
    for level in supported_isas():
        with isa_cap(level):
            results = [call(op, door, inputs) for door in CAST_DOORS]
            for door, (codes, scale) in zip(CAST_DOORS, results, strict=True):
                right, right_scale = allowed(codes, scale, **options)
                assert right_scale.all(), f"{int((~right_scale).sum())} scales through {door} on {level}"
                assert right.all(), f"{int((~right).sum())} codes through {door} on {level}"
                for one, other in zip((codes, scale), results[0], strict=True):
                    assert_same(one, other, f"{door} against torch on {level}")


def random_generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(text))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case_has_the_bits_of_the_reference(case: Case) -> None:
    inputs = case.inputs(random_generator(case.id))
    if case.op in FUSED:
        check_fused(case.op, inputs)
    else:
        check(case.op, inputs)


# --- every input ----------------------------------------------------------------------------------------------------


@functools.cache
def every_half(dtype: torch.dtype) -> Tensor:
    """All 65,536 values of a 16-bit type, NaN and inf too: in order, so that a block has one magnitude."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(512, 128)


@EVERY_FORMAT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_input(dtype: torch.dtype, format: str) -> None:
    x = every_half(dtype)
    finite = torch.where(x.isfinite(), x, torch.zeros_like(x))
    shuffled = finite.flatten()[torch.randperm(2**16, generator=random_generator("shuffled"))].reshape(512, 128)
    options = {"dtype": getattr(torch, format)}
    for saturate in (True, False):
        check("fp8_cast", {"x": x, "block": None, "saturate": saturate, **options}, f"plain, saturate={saturate}")
    for size in (1.0, 0.37, 2.0**-9, 3e5, 1e-38):
        given = {"scale": torch.tensor([[size]]), "block": (-1, -1), **options}
        for mode in ("deepgemm", "v3"):
            check("fp8_cast", {"x": x, "mode": mode, **given}, f"scale {size}, {mode}", ("torch",))
    for i, (mode, scale) in enumerate(KINDS):
        if (i + FORMATS.index(format)) % 3:  # each mode meets some formats here, all in CASES
            continue
        arguments = {"mode": mode, "scale": scale, "block": ((1, 32), (1, 128))[i % 2], **options}
        check("fp8_cast", {"x": (x, shuffled)[i % 3 == 0], **arguments}, f"{mode} {scale}", ("torch",))


@functools.cache
def stratified(count: int) -> Tensor:
    """float32 of every exponent with random mantissas, subnormal numbers, zeros, inf and NaN of several payloads."""
    generator = random_generator("stratified")
    fields = torch.arange(256, dtype=torch.int32).repeat_interleave(count) << 23
    values = fields | torch.randint(0, 2**23, fields.shape, generator=generator, dtype=torch.int32)
    special = torch.tensor([0, 1, 2, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    values = torch.cat([values, special.int()]).view(torch.float32)
    values = torch.cat([values, -values])
    return values[torch.randperm(values.numel(), generator=generator)]


def ties(dtype: torch.dtype) -> Tensor:
    """The format's numbers and midpoints with a float32 to either side, of both signs."""
    known = numbers(dtype)
    step = known[-1] - known[-2]
    values = torch.cat([known, (known[1:] + known[:-1]) / 2, known[-1:] + step / 2, known[-1:] + step]).float()
    near = [torch.nextafter(values, torch.tensor(end)) for end in (-math.inf, math.inf)]
    values = torch.cat([values, *near])
    return torch.cat([values, -values])


@EVERY_FORMAT
def test_float32_of_every_exponent_and_every_tie(format: str) -> None:
    dtype = getattr(torch, format)
    x = stratified(1500)
    for saturate in (True, False):
        options = {"block": None, "dtype": dtype, "saturate": saturate}
        check("fp8_cast", {"x": x.reshape(2, -1), **options}, f"saturate={saturate}")
        near = ties(dtype)
        for count in (near.numel() // 2 * 2, 16, 34):  # one row, and every place of a vector
            rows = near[: near.numel() // count * count].reshape(-1, count)
            check("fp8_cast", {"x": rows, **options}, f"ties, saturate={saturate}")
    for mode, exponent in (("v3", 40), ("deepgemm", -37), ("te", 0)):
        scale = torch.full((1, 1), 2.0**exponent)
        moved = torch.ldexp(ties(dtype), torch.tensor(exponent)).reshape(1, -1)
        given = {"scale": scale, "block": (-1, -1), "dtype": dtype, "mode": mode}
        check("fp8_cast", {"x": moved, **given}, f"ties at a scale of 2^{exponent}, {mode}")


@pytest.mark.parametrize(("mode", "scale"), KINDS, ids=lambda value: value)
def test_blocks_next_to_every_power_of_two(mode: str, scale: str) -> None:
    """amax = 2^k and its neighbours, for all k of float32: where a scale's exponent steps; subnormals too."""
    powers = torch.cat([2.0 ** torch.arange(-149, -126).double(), 2.0 ** torch.arange(-126, 128).double()]).float()
    amax = torch.cat([powers, *(torch.nextafter(powers, torch.tensor(end)) for end in (0.0, math.inf))])
    x = (torch.rand(amax.numel(), 32, generator=random_generator(mode)) * 2 - 1) * amax.unsqueeze(1)
    x[:, 5] = amax
    for i, format in enumerate(FORMATS):
        options = {"dtype": getattr(torch, format), "mode": mode, "scale": scale}
        check("fp8_cast", {"x": x, "block": (1, 32), **options}, format, CAST_DOORS[: 1 + (i == 0)])
    check("fp8_cast", {"x": x.T, "block": (32, 1), "mode": mode, "scale": scale}, "columns", ("torch",))
    check("fp8_cast", {"x": x.bfloat16(), "block": (1, 16), "mode": mode, "scale": scale}, "bfloat16", ("torch",))


@pytest.mark.parametrize(("mode", "scale"), KINDS, ids=lambda value: value)
def test_nan_and_inf_at_every_place(mode: str, scale: str) -> None:
    x = torch.randn(40, 70, generator=random_generator(mode))
    for row, value in enumerate((math.nan, math.inf, -math.inf, -math.nan) * 8):
        x[row, row * 2 % 70] = value
    x[35], x[36, :] = math.nan, math.inf
    x[38, 1], x[38, 2] = math.nan, math.inf
    for i, format in enumerate(FORMATS):
        for saturate in (True, False):
            options = {"dtype": getattr(torch, format), "mode": mode, "scale": scale, "saturate": saturate}
            inputs = {"x": (x, x.bfloat16())[i % 2], "block": ((1, 32), (1, -1), (4, 10))[(i + saturate) % 3]}
            check("fp8_cast", inputs | options, f"{inputs['block']}", ("torch",))


@EVERY_FORMAT
def test_every_code_decodes(format: str) -> None:
    dtype = getattr(torch, format)
    codes = torch.arange(256, dtype=torch.uint8)
    raw = codes.repeat(3, 1).view(dtype)
    exact = decode(unpack(raw), dtype)
    for y_dtype in (torch.float32, torch.bfloat16, torch.float16):
        check("fp8_dequantize", {"codes": raw, "dtype": y_dtype}, "plain")
        got = deepseek_fast.fp8_dequantize(raw, dtype=y_dtype)
        assert torch.equal(got.nan_to_num(), exact.to(y_dtype).nan_to_num())
        for scale in (torch.rand(3, 1) + 0.5, torch.tensor([[2.0**-149], [2.0**-120], [3e38]])):
            arguments = {"codes": raw, "scale": scale, "block": (1, -1), "dtype": y_dtype}
            check("fp8_dequantize", arguments, "scale", ("torch",))
    every_scale = torch.arange(256, dtype=torch.uint8).reshape(-1, 1).view(torch.float8_e8m0fnu)
    wide = codes.repeat(256, 1).view(dtype)
    for y_dtype in (torch.float32, torch.bfloat16, torch.float16):
        check("fp8_dequantize", {"codes": wide, "scale": every_scale, "block": (1, -1), "dtype": y_dtype}, "e8m0")


def test_dequantize_rounds_a_float32_product() -> None:
    """float32 scales of 24 bits times codes of 4: rounded once, some in ten thousand would differ."""
    codes = torch.randint(0, 127, (64, 2048), generator=random_generator("codes"), dtype=torch.uint8).view(E4M3)
    scale = torch.rand(64, 2048, generator=random_generator("scale")) + 0.5
    for dtype in (torch.bfloat16, torch.float16):
        check("fp8_dequantize", {"codes": codes, "scale": scale, "block": (1, 1), "dtype": dtype}, f"{dtype}")


# --- stochastic rounding --------------------------------------------------------------------------------------------


@EVERY_FORMAT
def test_stochastic_rounding_does_not_see_threads_nor_other_rows(format: str, num_threads: Any) -> None:
    x = torch.randn(67, 2056, generator=random_generator(format))  # more than one thread takes
    options = {"dtype": getattr(torch, format), "rounding": "stochastic", "seed": -(2**40) + 12345, "block": (1, 128)}
    for threads in (1, 2):
        num_threads(threads)
        check("fp8_cast", {"x": x, **options}, f"{threads} threads")
        check("fp8_cast", {"x": x[:5], **options}, f"the first rows on {threads} threads", ("torch",))
    check("fp8_cast", {"x": torch.cat([ties(options["dtype"]), stratified(40)]).reshape(1, -1), **options})


@EVERY_FORMAT
def test_stochastic_rounding_has_no_bias(format: str, isa: str) -> None:
    dtype = getattr(torch, format)
    known = numbers(dtype)
    for place in (0, 1, known.numel() // 2, known.numel() - 2):
        low, high = known[place].item(), known[place + 1].item()
        for share in (0.125, 0.5, 0.9375):
            x = torch.full((300, 200), low + share * (high - low))
            codes = deepseek_fast.fp8_cast(x, block=None, dtype=dtype, rounding="stochastic", seed=place, mode="v3")[0]
            got = deepseek_fast.fp8_dequantize(codes)
            assert ((got == low) | (got == high)).all()
            up = (got == high).double().mean().item()
            assert abs(up - share) <= 5 * math.sqrt(share * (1 - share) / x.numel())


# --- independence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 140_001), (300, 513), (1030, 130)], ids=str)
def test_the_number_of_threads_changes_nothing(shape: tuple[int, int], num_threads: Any) -> None:
    x = torch.randn(shape, generator=random_generator(str(shape))).bfloat16()
    for block in ((1, 128), (128, 128), (-1, -1), (1, -1), (3, 7), (-1, 1), None):
        for scale in ("f32", "ue8m0"):
            results = []
            for threads in (1, 2, 3):
                num_threads(threads)
                results += [deepseek_fast.fp8_cast(x, block=block, scale=scale, mode="v32")]
            want = ref.fp8_cast_ref(x, block=block, scale=scale, mode="v32")
            for result in results:
                for got, wanted in zip(result, want, strict=True):
                    assert_same(got, wanted, f"{block} {scale}")


@pytest.mark.parametrize("mode", ["deepgemm", "torchao", "te"])
def test_a_block_does_not_see_the_others(mode: str, isa: str) -> None:
    x = torch.randn(9, 300, generator=random_generator(mode))
    for block, rows, columns in (((1, 128), slice(4, 5), slice(128, 256)), ((3, 100), slice(3, 6), slice(200, 300))):
        codes, scale = deepseek_fast.fp8_cast(x, block=block, mode=mode)
        other = torch.full_like(x, math.nan)
        other[rows, columns] = x[rows, columns]
        codes_alone, scale_alone = deepseek_fast.fp8_cast(other, block=block, mode=mode)
        assert_same(codes_alone[rows, columns].contiguous(), codes[rows, columns].contiguous(), f"{block}")
        place = rows.start // block[0], columns.start // block[1]
        assert scale_alone[place] == scale[place]


@EVERY_DOOR
def test_rows_that_lie_apart_and_begin_anywhere(door: str, isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        room = torch.randn(6, 160).to(dtype)
        for first in (0, 1, 3, 7, 15):
            x = room[:, first : first + 130]
            for block in ((1, 32), (3, 7), None):
                want = call("fp8_cast", door, {"x": x.contiguous(), "block": block})
                for got, wanted in zip(call("fp8_cast", door, {"x": x, "block": block}), want, strict=True):
                    assert_same(got, wanted, f"from {first}")
        for x in (room.T, room[::2], room[:, ::3], room[:1].expand(4, 160)):
            want = call("fp8_cast", door, {"x": x.contiguous(), "block": (2, 10)})
            for got, wanted in zip(call("fp8_cast", door, {"x": x, "block": (2, 10)}), want, strict=True):
                assert_same(got, wanted, f"strides {x.stride()}")


def test_x_is_left_as_it_was_and_may_be_read_only() -> None:
    x = torch.randn(5, 200)
    before = x.clone()
    array = x.numpy().copy()
    array.flags.writeable = False
    for scale in ("f32", "ue8m0"):
        deepseek_fast.fp8_cast(x, scale=scale)
        numpy_op("fp8_cast")(array, scale=scale)
    assert torch.equal(x, before)


def test_subnormal_numbers_count_where_the_caller_flushes_them() -> None:
    x = torch.tensor([[2.0**-127, 3 * 2.0**-140, 0.0, -(2.0**-130)]])
    scale = torch.full((1, 1), 2.0**-130)
    calls: list[tuple[str, dict[str, Any]]] = [("fp8_amax", {"x": x}), ("int8_cast", {"x": x})]
    calls += [("fp8_cast", {"x": x, "mode": mode, "scale": kind}) for mode, kind in KINDS]
    calls += [("fp8_cast", {"x": x, "scale": scale, "mode": mode}) for mode in ("v3", "deepgemm")]
    calls += [("fp8_dequantize", {"codes": torch.ones(1, 4).to(E4M3), "scale": scale})]
    for op, inputs in calls:
        want = [call(op, door, inputs) for door in CAST_DOORS]
        assert torch.set_flush_denormal(True)
        try:
            got = [call(op, door, inputs) for door in CAST_DOORS]
        finally:
            torch.set_flush_denormal(False)
        for one, other in zip(sum(got, ()), sum(want, ()), strict=True):
            assert_same(one, other, f"{op} {inputs}")
        check(op, inputs)


# --- layouts, the transposed pair, the other rooms ------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["row", "column", "tma", "packed"])
def test_a_scale_in_any_layout_takes_its_codes_back(layout: str, isa: str) -> None:
    x = torch.randn(21, 330).bfloat16()
    for block in ((1, 32), (4, 16), (1, 128), (-1, -1)):
        kinds = ("ue8m0",) if layout == "packed" else ("f32", "ue8m0")
        for kind in kinds:
            codes, scale = deepseek_fast.fp8_cast(x, block=block, scale=kind, out_layout=layout)
            row = deepseek_fast.fp8_cast(x, block=block, scale=kind)
            rows = row[1].shape[0]
            step = 4 if kind == "f32" or layout == "packed" else 16
            aligned = -(-rows // step) * step
            wanted = {"row": row[1].stride(), "column": (1, rows), "tma": (1, aligned), "packed": (1, aligned)}
            assert scale.stride() == wanted[layout]
            assert_same(codes, row[0], layout)
            want = deepseek_fast.fp8_dequantize(*row, block=block, dtype=torch.bfloat16)
            got = deepseek_fast.fp8_dequantize(codes, scale, block=block, dtype=torch.bfloat16)
            assert_same(got, want, f"{layout} {kind} {block}")


@EVERY_DOOR
@pytest.mark.parametrize("format", FP8)
def test_the_transposed_pair_is_two_casts(format: str, door: str, isa: str) -> None:
    for i, (M, K) in enumerate(((1, 1), (127, 129), (128, 256), (300, 65), (16, 576))):
        x = torch.randn(M, K).to((torch.float32, torch.bfloat16, torch.float16)[i % 3])
        for bc in (128, 32, 20):
            for scale in ("f32", "ue8m0"):
                options = {"block": (1, bc), "scale": scale, "dtype": getattr(torch, format), "mode": "deepgemm"}
                got = call("fp8_cast_transposed", door, {"x": x, **options})
                want = call("fp8_cast", door, {"x": x, **options})
                want += call("fp8_cast", door, {"x": x.T.contiguous(), **options})
                for one, other in zip(got, want, strict=True):
                    assert_same(one, other, f"{M} x {K}, {bc}, {scale}")


def test_the_quantizers_of_the_other_rooms_have_the_same_bits(isa: str) -> None:
    w = torch.randn(150, 300)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        for block in ((128, 128), (1, 128), (1, -1), (-1, -1)):
            want = deepseek_fast.fp8_quantize_weight(w, block=block, dtype=dtype)
            for got, wanted in zip(deepseek_fast.fp8_cast(w, block=block, dtype=dtype), want, strict=True):
                assert_same(got, wanted, f"{block}")
    q, scale = deepseek_fast.int8_quantize_weight(w)
    got_q, got_scale = deepseek_fast.int8_cast(w)
    assert_same(got_q, q, "int8")
    assert_same(got_scale.squeeze(1), scale, "int8's scale")


def test_int8_cast_of_rows_it_cannot_scale() -> None:
    x = torch.randn(8, 40)
    x[0], x[1, 3], x[2, 4], x[3, 39] = 0, math.nan, math.inf, -math.inf
    x[4] *= 2.0**-110
    x[5] *= 2.0**120
    check("int8_cast", {"x": x})
    check("int8_cast", {"x": x.bfloat16().reshape(2, 4, 40)})


@pytest.mark.parametrize("op", FUSED)
def test_an_activation_of_plain_numbers_casts_exactly(op: str) -> None:
    """silu and the norm of large gates are what they multiply; zeros stay zeros of their sign."""
    x = torch.zeros(3, 64)
    inputs: dict[str, Any] = {"x": x, "block": (1, 32)}
    if op == "rms_norm_cast":
        inputs |= {"weight": torch.ones(64), "eps": 1e-6}
    else:
        x[:, :32] = 200.0  # silu(200) = 200
        x[:, 32:] = torch.arange(-16, 16) / 4
    for level in supported_isas():
        with isa_cap(level):
            for door in CAST_DOORS:
                codes, scale = call(op, door, inputs)
                v = x if op == "rms_norm_cast" else x[:, :32] * x[:, 32:]
                for got, want in zip((codes, scale), ref.fp8_cast_ref(v, block=(1, 32)), strict=True):
                    assert_same(got, want, f"{op} through {door} on {level}")


def test_fp4_codes_lie_in_pairs_low_nibble_first(isa: str) -> None:
    x = torch.tensor([[1.0, -6.0, 0.5, 4.0]])
    codes = deepseek_fast.fp8_cast(x, block=None, dtype=E2M1)[0]
    assert codes.view(torch.uint8).tolist() == [[0xF2, 0x61]]
    assert torch.equal(deepseek_fast.fp8_dequantize(codes), x)
