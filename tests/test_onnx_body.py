"""The function bodies: in every opset, on stock ONNX Runtime and onnx's reference, the numbers of cpu.h."""

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deepseek_fast.kernels.fp8_matmul import body as fp8_matmul
from deepseek_fast.kernels.fp8_matmul import cases as fp8_cases
from deepseek_fast.kernels.fp8_matmul import ref as fp8_ref
from deepseek_fast.kernels.fused_matmul import body as fused_matmul
from deepseek_fast.kernels.fused_matmul import ref as fused_ref
from deepseek_fast.kernels.int8_matmul import body as int8_matmul
from deepseek_fast.onnx._body import ACTIVATION_NAMES
from tests import ort_nodes
from tests.doors import from_numpy, to_numpy
from tests.onnx_models import OPSETS, each_opset, normal, quantize_rows, run_everywhere, run_stock
from tests.oracle import assert_within

N, K = 7, 33
EXACT = ("none", "relu", "relu6", "hardswish")  # activations whose body has the kernel's bits
SMOOTH_CLOSE = 1e-5  # the runtimes' own erf, tanh and exp
X_TYPE = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.float16): TensorProto.FLOAT16,
}


def model_of(node, function, opset, dtype, constants, x_shape=("batch", "rows", K)):
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    x = helper.make_tensor_value_info("x", X_TYPE[np.dtype(dtype)], x_shape)
    y = helper.make_tensor_value_info("y", X_TYPE[np.dtype(dtype)], [*x_shape[:-1], N])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    graph = helper.make_graph([node], "test", [x], [y], tensors)
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def float_model(opset, activation, dtype=np.float32, **sizes):
    constants = {"w": normal(N, K).astype(dtype), "b": normal(N, seed=2).astype(dtype), "r": np.zeros(1, dtype)}
    node = fused_matmul.node("x", "w", "b", "r", "y", activation=activation)
    return model_of(node, fused_matmul.function_proto(opset), opset, dtype, constants, **sizes), constants


def int8_model(opset, activation, activations, dtype=np.float32, residual=None, **sizes):
    q, scale = quantize_rows(normal(N, K))
    constants = {"q": q.astype(np.int8), "s": scale, "b": normal(N, seed=2).astype(dtype)}
    constants["r"] = np.zeros(1, dtype) if residual is None else residual.astype(dtype)
    node = int8_matmul.node("x", "q", "s", "b", "r", "y", activation=activation, activations=activations)
    return model_of(node, int8_matmul.function_proto(opset), opset, dtype, constants, **sizes), constants


def activate(z, activation):
    """In float64."""
    from math import erf, sqrt

    if activation == "relu":
        return np.where(z < 0, 0, z)
    if activation == "relu6":
        return np.clip(z, 0, 6)
    if activation == "hardswish":
        return z * np.clip(z + 3, 0, 6) / 6
    if activation == "tanh":
        return np.tanh(z)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-z))
    if activation == "gelu":
        return z * 0.5 * (1 + np.vectorize(erf)(z / sqrt(2)))
    if activation == "gelu_tanh":
        return z * 0.5 * (1 + np.tanh(sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    return z / (1 + np.exp(-z)) if activation == "silu" else z


def replay_int8(x, constants, activation):
    """float32 in the order of cpu.h; exact for EXACT."""
    x_q, x_scale = quantize_rows(x)
    acc = np.einsum("...k,nk->...n", x_q.astype(np.int64), constants["q"].astype(np.int64))
    with np.errstate(all="ignore"):
        z = acc.astype(np.float32) * x_scale[..., None] * constants["s"] + constants["b"].astype(np.float32)
        zero, three, six = np.float32(0), np.float32(3), np.float32(6)
        if activation == "hardswish":
            return np.where(z <= -three, zero, z) * (np.clip(z + three, zero, six) / six)
    if activation == "relu6":
        return np.clip(z, zero, six)
    return np.where(z < 0, zero, z) if activation == "relu" else z


def rows_of_every_kind():
    x = normal(2, 6, K, seed=3)
    x[0, 1] = 0
    x[0, 2] *= 2.0**-110  # largest magnitude below 2^-100: counts as zeros
    x[0, 3] = 2.0**-100
    x[0, 4] = 1e-42  # subnormal
    x[1, 0, 3] = np.nan
    x[1, 1, 32] = np.inf
    x[1, 2, 0] = -np.inf
    x[1, 3] = np.float32(3e38) * np.sign(x[1, 3])
    x[1, 4] = np.linspace(-127, 127, K, dtype=np.float32) + 0.5  # ties
    return x


@pytest.mark.parametrize("opset", each_opset(OPSETS))
@pytest.mark.parametrize("activation", EXACT)
def test_int8_body_is_bit_equal_to_the_definition(opset, activation):
    model, constants = int8_model(opset, activation, "int8")
    x = rows_of_every_kind()
    want = replay_int8(x, constants, activation) + np.float32(0)
    assert np.isnan(want[1, :3]).all() and not np.isnan(want[0]).any()
    for runtime, got in run_everywhere(model, {"x": x}).items():
        np.testing.assert_array_equal(got["y"], want, err_msg=runtime)


@pytest.mark.parametrize("opset", each_opset([13, 18, 19, 20, 25]))
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_every_activation(opset, activation):
    x = normal(2, 5, K, seed=3)
    model, c = float_model(opset, activation)
    want = activate(x.astype(np.float64) @ c["w"].T.astype(np.float64) + c["b"], activation)
    for runtime, got in run_everywhere(model, {"x": x}).items():
        np.testing.assert_allclose(got["y"], want, rtol=SMOOTH_CLOSE, atol=SMOOTH_CLOSE, err_msg=runtime)
    for activations in ("int8", "float"):
        model, c = int8_model(opset, activation, activations)
        z = replay_int8(x, c, "none") if activations == "int8" else x @ (c["q"] * c["s"][:, None]).T + c["b"]
        want = activate(z.astype(np.float64), activation)
        for runtime, got in run_everywhere(model, {"x": x}).items():
            np.testing.assert_allclose(got["y"], want, rtol=SMOOTH_CLOSE, atol=2 * SMOOTH_CLOSE, err_msg=runtime)


@pytest.mark.parametrize("make", [float_model, lambda o, a: int8_model(o, a, "int8")], ids=["float", "int8"])
def test_no_rows_and_one_dimension(make):
    model, _ = make(18, "relu")
    for shape in ((0, 5, K), (2, 0, K), (1, 1, K)):
        for runtime, got in run_everywhere(model, {"x": np.zeros(shape, np.float32)}).items():
            assert got["y"].shape == (*shape[:-1], N), runtime


def test_vector_input():
    model, c = float_model(17, "none", x_shape=(K,))
    x = normal(K)
    np.testing.assert_allclose(run_stock(model, {"x": x})["y"], c["w"] @ x + c["b"], rtol=1e-5, atol=1e-5)


def test_residual_comes_after_the_activation():
    residual = normal(2, 5, N, seed=9)
    model, c = int8_model(17, "relu", "int8", residual=residual)
    x = normal(2, 5, K, seed=3)
    for runtime, got in run_everywhere(model, {"x": x}).items():
        np.testing.assert_array_equal(got["y"], replay_int8(x, c, "relu") + residual, err_msg=runtime)


@pytest.mark.parametrize("opset", [15, 18, 25])
@pytest.mark.parametrize(("dtype", "significant_bits"), [(ml_dtypes.bfloat16, 8), (np.float16, 11)], ids=str)
def test_16_bits(opset, dtype, significant_bits):
    """Stock ONNX Runtime has no bfloat16 MatMul: the body computes in float32 and rounds once."""
    x = normal(2, 5, K, seed=3).astype(dtype)
    model, c = int8_model(opset, "relu", "int8", dtype)
    want = replay_int8(x, c, "relu").astype(dtype)
    for runtime, got in run_everywhere(model, {"x": x}).items():
        np.testing.assert_array_equal(got["y"], want, err_msg=runtime)
    model, c = float_model(opset, "none", dtype)
    z = x.astype(np.float64) @ c["w"].T.astype(np.float64) + c["b"].astype(np.float64)
    for runtime, got in run_everywhere(model, {"x": x}).items():
        assert got["y"].dtype == dtype, runtime
        np.testing.assert_allclose(
            got["y"].astype(np.float64), z, rtol=2.0**-significant_bits, atol=1e-5, err_msg=runtime
        )


@pytest.mark.parametrize(
    ("activation", "want"),
    [
        ("none", ["MatMul", "Add"]),
        ("relu", ["MatMul", "Add", "Relu"]),
        ("gelu", ["MatMul", "BiasGelu"]),
        ("gelu_tanh", ["MatMul", "FastGelu"]),
        ("silu", ["MatMul", "Add", "QuickGelu"]),
        ("hardswish", ["MatMul", "Add", "Add", "Clip", "Div", "LessOrEqual", "Where", "Mul"]),
    ],
)
@pytest.mark.parametrize("opset", [17, 20])
def test_stock_onnx_runtime_folds_the_choice(tmp_path, opset, activation, want):
    """Nothing of the string comparison is left to run, and its own fusions find the activation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(float_model(opset, activation)[0].SerializeToString(), options)
    left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert [op_type for op_type in left if op_type != "Cast"] == want


def test_stock_onnx_runtime_knows_the_columns_of_a_plain_body():
    """Attention makes 0 columns of an unknown number, and the product behind it would be refused."""
    import onnxruntime

    opset, names, nodes = 23, ("q", "k", "v"), []
    constants = {"w": normal(K, K), "b": normal(K, seed=2), "r": np.zeros(1, np.float32)}
    for name in names:
        nodes.append(fused_matmul.node("x", "w", "b", "r", name))
    nodes.append(helper.make_node("Attention", list(names), ["z"], q_num_heads=1, kv_num_heads=1))
    nodes.append(fused_matmul.node("z", "w", "b", "r", "y"))
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", "rows", K]) for n in "xy")
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [fused_matmul.function_proto(opset)]
    graph = helper.make_graph(nodes, "test", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.run(None, {"x": normal(2, 3, K)})[0].shape == (2, 3, K)


def fp8_model(opset, inputs):
    """A call of fp8_matmul with what its body needs: zeros in place of None, scales in float32."""
    dtype = inputs["x"].dtype
    absent = {"bias": torch.zeros(inputs["weight"].shape[0], dtype=dtype), "residual": torch.zeros(1, dtype=dtype)}
    tensors = [
        ort_nodes.tensor(name, ort_nodes.of_a_file(absent[name] if inputs[name] is None else inputs[name]))
        for name in ("weight", "scale", "bias", "residual")
    ]
    options = {name: inputs[name] for name in ("activation", "activations", "block")}
    node = fp8_matmul.node("x", "weight", "scale", "bias", "residual", "y", **options)
    shape = [None] * inputs["x"].ndim
    x, y = (helper.make_tensor_value_info(name, ort_nodes.ONNX_TYPES[dtype], shape) for name in ("x", "y"))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    graph = helper.make_graph([node], "test", [x], [y], tensors)
    ir_version = helper.find_min_ir_version_for(imports[:1])
    functions = [fp8_matmul.function_proto(opset)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_fp8_everywhere(opset, inputs, what):
    want, bound = fp8_ref.fp8_matmul_ref(**inputs), fp8_ref.bound(**inputs)
    K = inputs["x"].shape[-1]
    # The body rounds x_q * x_scale and weight * scale, each by u of a product: beside the K + 2 of one long sum.
    rows, codes = inputs["x"].reshape(want.shape[:-1].numel(), K), inputs["weight"]
    if inputs["activations"] == "fp8":
        x_q, x_scale = fp8_ref.cast_rows(rows)
        rows = x_q.double() * x_scale.double().repeat_interleave(128, 1)[:, :K]
    weight = codes.float().double() * fp8_ref.expand_scale(inputs["scale"], inputs["block"], *codes.shape).double()
    magnitude = (rows.double().abs() @ weight.abs().T).reshape(want.shape)
    lipschitz = 1.5  # of hardswish
    of_the_body = bound + lipschitz * (K + 5) * 2.0**-24 * magnitude
    if inputs["activation"] in fused_ref.SMOOTH:
        of_the_body = of_the_body + SMOOTH_CLOSE * (1 + want.abs())
    for runtime, got in run_everywhere(fp8_model(opset, inputs), {"x": to_numpy(inputs["x"])}).items():
        y = from_numpy(np.ascontiguousarray(got["y"]))
        assert_within(y, want, bound if runtime == "library" else of_the_body, f"{what}, {runtime}, opset {opset}")


@pytest.mark.parametrize("opset", [fp8_matmul.MIN_OPSET, 20, 23, 25])
@pytest.mark.parametrize("mode", fp8_cases.MODES)
def test_fp8_body_is_within_the_bound(opset, mode):
    for i, block in enumerate(fp8_cases.BLOCKS):
        dtype, weight = fp8_cases.DTYPES[i % 2], fp8_cases.WEIGHTS[i // 2 % 2]
        activation, residual = fp8_cases.ACTIVATIONS[i % len(fp8_cases.ACTIVATIONS)], fp8_cases.RESIDUALS[i % 3]
        scale = fp8_cases.SCALES[i // 3 % 2]
        case = fp8_cases.Case(7, 70, 300, dtype, activation, True, residual, mode, weight, block, scale)
        check_fp8_everywhere(opset, case.inputs(torch.Generator().manual_seed(i)), case.id)


@pytest.mark.parametrize("mode", fp8_cases.MODES)
def test_fp8_body_of_any_shape(mode):
    for M, N, K in (*fp8_cases.EMPTY_SHAPES, (1, 1, 1), (3, 5, 127), (2, 130, 128), (5, 129, 257)):
        for block in ((128, 128), (-1, -1), (1, 32)):
            case = fp8_cases.Case(M, N, K, activations=mode, block=block)
            check_fp8_everywhere(21, case.inputs(torch.Generator().manual_seed(1)), case.id)
    case = fp8_cases.Case(6, 9, 200, activations=mode)
    inputs = case.inputs(torch.Generator().manual_seed(2))
    for shape in ((200,), (2, 3, 200), (2, 0, 200)):
        check_fp8_everywhere(23, inputs | {"x": torch.randn(shape)}, f"x of shape {shape}")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_body_decodes_every_code(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(256, 1)
    options = {"bias": None, "residual": None, "activation": "none", "activations": "float"}
    inputs = {"x": torch.ones(1, 1), "weight": codes, "scale": torch.ones(1, 1), "block": (-1, -1)} | options
    want = (codes.float().T + 0.0).numpy()
    for runtime, got in run_everywhere(fp8_model(19, inputs), {"x": inputs["x"].numpy()}).items():
        np.testing.assert_array_equal(got["y"], want, err_msg=runtime)


def test_fp8_body_casts_every_bf16_value_as_the_reference():
    """An identity weight leaves x_q * x_scale, rounded once; a row that is not finite is NaN."""
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    finite = codes[codes.isfinite()]
    shuffled = finite[torch.randperm(finite.numel(), generator=torch.Generator().manual_seed(0))]
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    ties = ((numbers[1:] + numbers[:-1]) / 2).float()
    near = [ties, *(torch.nextafter(ties, torch.tensor(to)) for to in (-1.0, 1e9))]
    near = [torch.cat([row, torch.tensor([448.0, 448.0])]) for row in near]  # a scale of 1
    ties = torch.stack([*near, *(-row for row in near)])
    eye = {"weight": torch.eye(128).to(torch.float8_e4m3fn), "scale": torch.ones(1, 1), "block": (-1, -1)}
    options = {"bias": None, "residual": None, "activation": "none", "activations": "fp8"}
    for x in (codes.reshape(-1, 128), shuffled.reshape(-1, 128), ties):
        x_q, x_scale = fp8_ref.cast_rows(x)
        want = torch.where(x.isfinite().all(1, keepdim=True), x_q.float() * x_scale + 0.0, torch.nan).numpy()
        for runtime, got in run_everywhere(fp8_model(19, {"x": x, **eye, **options}), {"x": x.numpy()}).items():
            np.testing.assert_array_equal(got["y"], want, err_msg=runtime)


LOWEST_OPSET = {fp8_matmul: 19, fused_matmul: 13, int8_matmul: 13}


@pytest.mark.parametrize("room", LOWEST_OPSET, ids=lambda room: room.OP_TYPE)
def test_other_opsets_are_refused(room):
    for opset in (LOWEST_OPSET[room] - 1, 26):
        rule = f"opset must be from {LOWEST_OPSET[room]} to 25"
        with pytest.raises(ValueError, match=rf"^function_proto: {rule}; got {opset}$"):
            room.function_proto(opset)


@pytest.mark.parametrize("room", LOWEST_OPSET, ids=lambda room: room.OP_TYPE)
def test_schema_and_body_agree(room):
    schema, function = room.schema(), room.function_proto(LOWEST_OPSET[room])
    assert [p.name for p in schema.inputs] == list(function.input) == list(room.INPUTS)
    assert set(schema.attributes) == set(function.attribute) == set(room.ATTRIBUTES)
    assert {imported.domain for imported in function.opset_import} == {""}
