"""Layouts of other libraries: packed here as they pack, imported, and compared number by number."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import deepseek_fast
from deepseek_fast import importers, nn
from deepseek_fast.importers import Int4Weight
from deepseek_fast.kernels.int4_matmul import ref
from tests.oracle import SENTENCE, assert_equal

N, K = 32, 256
AWQ_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


def random_weight(rng: np.random.Generator, group_size: int, *, zeros: bool = True, K: int = K) -> dict[str, Any]:
    """Codes (N, K), and scales and zero points (N, groups)."""
    groups = -(-K // group_size)
    return {
        "codes": rng.integers(0, 16, (N, K), dtype=np.uint8),
        "scale": rng.standard_normal((N, groups)).astype(np.float16),
        "zeros": rng.integers(1, 16, (N, groups), dtype=np.uint8) if zeros else None,
        "group_size": group_size,
    }


def numbers(weight: Int4Weight) -> np.ndarray:
    """(N, K) in float64, exact."""
    q, scale = (torch.as_tensor(np.asarray(part)) for part in (weight.q, weight.scale))
    zeros = None if weight.zeros is None else torch.as_tensor(np.asarray(weight.zeros))
    blocks = ref.blocks_of(q, scale, zeros, weight.group_size, weight.in_features)
    return torch.cat([codes * step[:, None] for _, codes, step in blocks], 1).numpy()


def meant(weight: dict[str, Any]) -> np.ndarray:
    size, columns = weight["group_size"], weight["codes"].shape[1]
    zeros = np.full(weight["scale"].shape, 8) if weight["zeros"] is None else weight["zeros"].astype(np.int64)
    scale, zero = (np.repeat(v, size, 1)[:, :columns] for v in (weight["scale"].astype(np.float64), zeros))
    return (weight["codes"] - zero) * scale


def pack_nibbles(values: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """(rows, columns) -> (rows, columns / 8) int32; nibble i holds column order[i] of its eight."""
    packed = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for nibble, column in enumerate(order):
        packed |= values[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
    return packed.view(np.int32)


def as_awq(weight: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        "qweight": pack_nibbles(weight["codes"].T, AWQ_COLUMN_OF_NIBBLE),
        "qzeros": pack_nibbles(weight["zeros"].T, AWQ_COLUMN_OF_NIBBLE),
        "scales": np.ascontiguousarray(weight["scale"].T),
    }


def as_gptq(weight: dict[str, Any], stored_offset: int = 1) -> dict[str, np.ndarray]:
    return {
        "qweight": np.ascontiguousarray(pack_nibbles(weight["codes"]).T),
        "qzeros": pack_nibbles(weight["zeros"].T - np.uint8(stored_offset)),
        "scales": np.ascontiguousarray(weight["scale"].T),
    }


def as_matmul_nbits(weight: dict[str, Any]) -> dict[str, Any]:
    codes, block_size = weight["codes"], weight["group_size"]
    rows, columns = codes.shape
    blocks = -(-columns // block_size)
    full = np.pad(codes, ((0, 0), (0, blocks * block_size - columns)), constant_values=9)
    packed = (full[:, ::2] | full[:, 1::2] << 4).reshape(rows, blocks, block_size // 2)
    zeros = weight["zeros"]
    if zeros is not None:
        zeros = np.pad(zeros, ((0, 0), (0, blocks % 2)))
        zeros = zeros[:, ::2] | zeros[:, 1::2] << 4
    sizes = {"K": columns, "N": rows, "block_size": block_size}
    return {"b": packed, "scales": weight["scale"].astype(np.float32), "zero_points": zeros, **sizes}


def both_kinds(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments as arrays and as tensors."""
    return [
        arguments,
        {n: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for n, v in arguments.items()},
    ]


def check_import(importer: Any, arguments: dict[str, Any], want: np.ndarray) -> None:
    for given in both_kinds(arguments):
        weight = importer(**given)
        kind = torch.Tensor if any(isinstance(v, torch.Tensor) for v in given.values()) else np.ndarray
        assert isinstance(weight.q, kind) and isinstance(weight.scale, kind)
        np.testing.assert_array_equal(numbers(weight), want)
        assert weight.in_features == want.shape[1]


@pytest.mark.parametrize("group_size", [32, 64, 128, K, 512])
def test_awq(group_size: int) -> None:
    weight = random_weight(np.random.default_rng(group_size), group_size, K=max(K, group_size))
    check_import(importers.int4_from_awq, as_awq(weight), meant(weight))


@pytest.mark.parametrize("group_size", [32, 64, 128, K, 512])
def test_gptq(group_size: int) -> None:
    weight = random_weight(np.random.default_rng(group_size), group_size, K=max(K, group_size))
    columns = weight["codes"].shape[1]
    trivial = {"g_idx": (np.arange(columns) // group_size).astype(np.int32)}
    check_import(importers.int4_from_gptq, as_gptq(weight), meant(weight))
    check_import(importers.int4_from_gptq, as_gptq(weight) | trivial, meant(weight))
    second = as_gptq(weight, 0) | {"checkpoint_format": "gptq_v2"}
    check_import(importers.int4_from_gptq, second, meant(weight))


def test_gptq_of_a_symmetric_checkpoint_has_no_zero_points() -> None:
    """Its stored 7 is the zero point of 8 that int4_matmul takes for granted."""
    weight = random_weight(np.random.default_rng(0), 128)
    weight["zeros"][:] = 8
    packed = as_gptq(weight)
    assert (packed["qzeros"] == 0x77777777).all()
    assert importers.int4_from_gptq(**packed).zeros is None


@pytest.mark.parametrize("columns", [K, 100, 65])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
def test_matmul_nbits(block_size: int, zeros: bool, columns: int) -> None:
    weight = random_weight(np.random.default_rng(block_size), block_size, zeros=zeros, K=columns)
    arguments, want = as_matmul_nbits(weight), meant(weight)
    check_import(importers.int4_from_matmul_nbits, arguments, want)
    flat = {"b": arguments["b"].reshape(N, -1), "scales": arguments["scales"].reshape(-1)}
    check_import(importers.int4_from_matmul_nbits, arguments | flat, want)
    if zeros:
        unpacked = weight["zeros"].astype(np.float32)
        check_import(importers.int4_from_matmul_nbits, arguments | {"zero_points": unpacked}, want)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block_size", [32, 128])
def test_matmul_nbits_as_onnx_runtime_computes_it(block_size: int, zeros: bool) -> None:
    """The node itself, at float accuracy, says what its bytes mean."""
    weight = random_weight(np.random.default_rng(1), block_size, zeros=zeros, K=200)
    arguments = as_matmul_nbits(weight)
    tensors = {n: arguments[n] for n in ("b", "scales", "zero_points") if arguments[n] is not None}
    attributes = {"K": 200, "N": N, "bits": 4, "block_size": block_size, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["A", *tensors], ["Y"], domain="com.microsoft", **attributes)
    a, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ("M", s)) for n, s in (("A", 200), ("Y", N)))
    graph = helper.make_graph([node], "t", [a], [y], [numpy_helper.from_array(v, n) for n, v in tensors.items()])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.eye(200, dtype=np.float32)
    (theirs,) = session.run(None, {"A": x})
    imported = importers.int4_from_matmul_nbits(**arguments)
    np.testing.assert_array_equal(numbers(imported).T.astype(np.float32), theirs)
    options = {"group_size": imported.group_size, "in_features": 200, "compute": "float"}
    ours = deepseek_fast.numpy.int4_matmul(x, *imported[:3], **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("group_size", [32, 64, 128, K])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tinygemm(group_size: int, dtype: torch.dtype) -> None:
    weight = random_weight(np.random.default_rng(2), group_size)
    s = torch.randint(-128, 128, (N, K // group_size)).to(dtype) / 64  # 4 and 7 bits: z has a place in bf16's 8
    s[0, 0] = 0
    z = (8 - torch.from_numpy(weight["zeros"]).to(dtype)) * s
    fits = z.double() == (8 - torch.from_numpy(weight["zeros"]).double()) * s.double()
    z = torch.where(fits, z, 0)
    zeros = torch.where(fits & (s != 0), torch.from_numpy(weight["zeros"]), 8)
    pairs = torch.stack([s.T, z.T], -1)
    q = torch.from_numpy(weight["codes"]).to(torch.int32)
    imported = importers.int4_from_tinygemm(q, pairs)
    scale = s.float().numpy()
    np.testing.assert_array_equal(numbers(imported), meant(weight | {"scale": scale, "zeros": zeros.numpy()}))
    x = torch.randn(5, K).to(dtype)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    if group_size in (32, 64, 128, 256):
        theirs = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group_size, pairs).double()
        ours = nn.Int4Linear(*imported[:3], group_size=imported.group_size, in_features=K, compute="float")(x).double()
        exact = x.double() @ torch.from_numpy(numbers(imported)).T
        magnitude = x.double().abs() @ torch.from_numpy(numbers(imported)).abs().T
        unit = 2.0**-8 if dtype == torch.bfloat16 else K * 2.0**-24
        assert ((ours - exact).abs() <= unit * magnitude).all()
        assert ((theirs - exact).abs() <= 2 * unit * magnitude).all(), "what torch computes is what was imported"


def test_an_imported_layer_runs() -> None:
    weight = random_weight(np.random.default_rng(3), 128)
    packed = {name: torch.from_numpy(value.copy()) for name, value in as_awq(weight).items()}
    imported = importers.int4_from_awq(**packed)
    layer = nn.Int4Linear(*imported[:3], group_size=imported.group_size, in_features=imported.in_features)
    x = torch.randn(3, K)
    want = deepseek_fast.int4_matmul(x, *imported[:3], group_size=128)
    assert_equal(layer(x), want)
    assert ((want - x.double() @ torch.from_numpy(meant(weight)).T).abs() < 0.1 * K**0.5 * 20).all()


def awq(**changes: Any) -> dict[str, Any]:
    return as_awq(random_weight(np.random.default_rng(4), 64)) | changes


def gptq(**changes: Any) -> dict[str, Any]:
    return as_gptq(random_weight(np.random.default_rng(4), 64)) | changes


def nbits(**changes: Any) -> dict[str, Any]:
    return as_matmul_nbits(random_weight(np.random.default_rng(4), 32)) | changes


def tinygemm(**changes: Any) -> dict[str, Any]:
    return {"q": np.zeros((N, K), np.int32), "scales_and_zeros": np.ones((8, N, 2), np.float32)} | changes


def zeros(*shape: int, dtype: Any = np.int32) -> np.ndarray:
    return np.zeros(shape, dtype)


BAD = [
    ("awq", awq(qweight=zeros(K, 3, dtype=np.int64)), TypeError, "qweight must be int32; got dtype int64"),
    ("awq", awq(qweight=None), TypeError, "qweight must be an array or a tensor; got NoneType"),
    ("awq", awq(qweight=[1, 2]), TypeError, "qweight must be an array or a tensor; got list"),
    ("awq", awq(qweight=zeros(K)), ValueError, "qweight must have 2 dimensions; got shape (256,)"),
    ("awq", awq(scales=np.ones((4, 33))), ValueError, "scales must have shape (4, 32); got shape (4, 33)"),
    ("awq", awq(qzeros=zeros(4, 5)), ValueError, "qzeros must have shape (4, 4); got shape (4, 5)"),
    (
        "awq",
        awq(scales=np.ones((16, 32))),
        ValueError,
        "scales must cut 256 values of k into groups of 32, 64 or a multiple of 128, or one; got 16 groups",
    ),
    (
        "gptq",
        gptq(g_idx=np.arange(K) // 32),
        ValueError,
        "g_idx must put column k into group k / 64; got group 1 at 32",
    ),
    ("gptq", gptq(g_idx=np.arange(8) // 64), ValueError, "g_idx must have 256 values; got 8"),
    (
        "gptq",
        gptq(qzeros=np.full((4, 4), -1, np.int32)),
        ValueError,
        "qzeros must hold zero points of at most 15, each less 1; got 15 at (0, 0)",
    ),
    ("gptq", gptq(checkpoint_format="v2"), ValueError, "checkpoint_format must be one of gptq, gptq_v2; got 'v2'"),
    ("matmul_nbits", nbits(bits=8), ValueError, "bits must be 4; got 8"),
    ("matmul_nbits", nbits(block_size=16), ValueError, "block_size must be 32, 64 or a multiple of 128; got 16"),
    (
        "matmul_nbits",
        nbits(b=zeros(N, 7, 16, dtype=np.uint8)),
        ValueError,
        "b must have 4096 values; got shape (32, 7,",
    ),
    ("matmul_nbits", nbits(b=zeros(N, 8, 16)), TypeError, "b must be uint8; got dtype int32"),
    ("matmul_nbits", nbits(scales=np.ones(5)), ValueError, "scales must have 256 values; got shape (5,)"),
    (
        "matmul_nbits",
        nbits(zero_points=zeros(N, 3, dtype=np.uint8)),
        ValueError,
        "zero_points must have 128 values; got shape (32, 3)",
    ),
    (
        "matmul_nbits",
        nbits(zero_points=np.full((N, 8), 7.5, np.float32)),
        ValueError,
        "zero_points must hold integers of 0 to 15; got 7.5 at (0, 0)",
    ),
    ("tinygemm", tinygemm(q=zeros(N, K) + 16), ValueError, "q must hold codes of 0 to 15; got 16 to 16"),
    ("tinygemm", tinygemm(q=zeros(K)), ValueError, "q must have 2 dimensions and an integer dtype; got shape (256,), "),
    (
        "tinygemm",
        tinygemm(scales_and_zeros=np.ones((8, N))),
        ValueError,
        "scales_and_zeros must have shape (groups, 32, 2); got shape (8, 32)",
    ),
    *(
        (
            "tinygemm",
            tinygemm(scales_and_zeros=np.tile(np.float32([s, z]), (8, N, 1))),
            ValueError,
            "scales_and_zeros must hold pairs (s, z) with z = (8 - zero) * s for an integer zero of 0 to 15; "
            f"got ({s:g}, {z:g}) at (0, 0)",
        )
        for s, z in ((1.0, 0.5), (0.5, 5.0), (0.5, -4.0), (0.0, 1.0), (0.1, 0.30000001))
    ),
]


@pytest.mark.parametrize(("name", "arguments", "error", "sentence"), BAD, ids=[f"{b[0]}-{b[3][:40]}" for b in BAD])
def test_what_has_no_exact_form_is_refused(
    name: str, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as raised:
        getattr(importers, f"int4_from_{name}")(**arguments)
    assert SENTENCE.match(str(raised.value))
    assert str(raised.value).startswith(f"int4_from_{name}: {sentence}")
