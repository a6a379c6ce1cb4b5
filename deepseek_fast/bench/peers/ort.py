"""ONNX Runtime's own operators, each in a session of one node and its activation or cast."""

from collections.abc import Callable
from typing import Any

import torch

from deepseek_fast.bench.peers import Peer, Unsupported, _ort, _ort_convs
from deepseek_fast.bench.peers._casts import BETWEEN, EXACT, shape_of_blocks
from deepseek_fast.bench.peers._common import FLOAT, INT8_TENSOR, int4_peer

PACKAGES = ("onnx", "onnxruntime")
HOW_TO_INSTALL = "pip install 'deepseek-fast[onnx]'"
CASTS = {
    torch.float32: "FLOAT",
    torch.bfloat16: "BFLOAT16",
    torch.float16: "FLOAT16",
    torch.float8_e4m3fn: "FLOAT8E4M3FN",
    torch.float8_e5m2: "FLOAT8E5M2",
    torch.float8_e4m3fnuz: "FLOAT8E4M3FNUZ",
    torch.float8_e5m2fnuz: "FLOAT8E5M2FNUZ",
}


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["x"].dtype != torch.float32:
        raise Unsupported("ONNX Runtime has no MatMul of 16 bits on CPUs")
    values = {"B": inputs["weight"].T.contiguous().numpy(), "bias": inputs["bias"].numpy()}
    call = _session("Gemm", ["A", "B", "bias"], "", values, inputs)
    return {"ORT Gemm": Peer(call, *FLOAT["float32"])}


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["activations"] == "float":
        return {}
    import numpy as np

    q = inputs["q"]
    values = {"B": q.T.contiguous().numpy(), "S": inputs["scale"].numpy(), "bias": inputs["bias"].float().numpy()}
    values["Z"] = np.zeros(q.shape[0], np.int8)
    call = _session("DynamicQuantizeMatMul", ["A", "B", "S", "Z", "bias"], "com.microsoft", values, inputs)
    return {"ORT DynamicQuantizeMatMul": Peer(call, *INT8_TENSOR)}


def fused_conv(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _ort_convs.fused_conv(inputs)


def fused_conv_int8(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _ort_convs.fused_conv_int8(inputs)


def int4_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    import numpy as np

    q, scale, zeros, group = inputs["q"], inputs["scale"], inputs["zeros"], inputs["group_size"]
    N, K = q.shape[0], inputs["x"].shape[-1]
    if group < 0 or K % group:
        raise Unsupported("MatMulNBits is called here for whole groups")
    values = {"B": q.reshape(N, K // group, group // 2).numpy(), "S": scale.numpy()}
    names = ["A", "B", "S"]
    if zeros is not None:
        even, odd = np.pad(zeros.numpy(), ((0, 0), (0, zeros.shape[1] % 2))).reshape(N, -1, 2).transpose(2, 0, 1)
        values["Z"] = even | odd << 4
        names.append("Z")
    names += [""] * (5 - len(names)) + ["bias"]
    values["bias"] = inputs["bias"].float().numpy()
    level = 4 if inputs["compute"] == "int8" else 1  # 4: x in int8, 1: f32
    attributes = {"K": K, "N": N, "bits": 4, "block_size": group, "accuracy_level": level}
    call = _session("MatMulNBits", names, "com.microsoft", values, inputs, (K, N), **attributes)
    return {f"ORT MatMulNBits, accuracy level {level}": int4_peer(call, inputs)}


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    from onnx import helper

    if inputs.get("block", (1, 128)) is not None:
        raise Unsupported("ONNX Runtime has no node that finds FP8 scales")
    dtype, saturate = inputs.get("dtype", torch.float8_e4m3fn), inputs.get("saturate", True)
    node = helper.make_node("Cast", ["x"], ["y"], to=_type(dtype), saturate=int(saturate))
    return {"ORT Cast": Peer(_bound([node], inputs["x"], dtype, {}), *EXACT)}


def fp8_dequantize(inputs: dict[str, Any]) -> dict[str, Peer]:
    """DequantizeLinear has blocks along one axis: the scales of a taller block are repeated beforehand."""
    from onnx import helper

    codes, scale, dtype = inputs["codes"], inputs.get("scale"), inputs.get("dtype", torch.float32)
    if scale is None:
        node = helper.make_node("Cast", ["x"], ["y"], to=_type(dtype))
        return {"ORT Cast": Peer(_bound([node], codes, dtype, {}), *EXACT)}
    if inputs.get("tensor_scale") is not None:
        raise Unsupported("DequantizeLinear has one scale a block")
    _, rows, _, columns = shape_of_blocks(codes, inputs.get("block", (1, 128)))
    values = {"scale": scale.float().repeat_interleave(rows, 0).numpy()}
    nodes = [helper.make_node("DequantizeLinear", ["x", "scale"], ["z"], axis=1, block_size=columns)]
    nodes.append(helper.make_node("Cast", ["z"], ["y"], to=_type(dtype)))
    tolerance = EXACT if dtype == torch.float32 else BETWEEN
    return {"ORT DequantizeLinear": Peer(_bound(nodes, codes.flatten(0, -2), dtype, values), *tolerance)}


def _type(dtype: torch.dtype) -> int:
    """torch's dtype as ONNX numbers it."""
    from onnx import TensorProto

    if dtype not in CASTS:
        raise Unsupported(f"ONNX Runtime has no casts of {dtype}")
    return int(getattr(TensorProto, CASTS[dtype]))


def _bound(nodes: list[Any], x: torch.Tensor, dtype: torch.dtype, values: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """A call of x (M, K) -> y of its shape through `nodes`, on torch's memory: NumPy has no FP8."""
    y = torch.empty(x.shape, dtype=dtype)
    ends = {"x": (_type(x.dtype), x.shape)}, {"y": (_type(dtype), x.shape)}
    session = _ort.session(_ort.model(nodes, *ends, values, opset=21))
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, _type(x.dtype), x.shape, x.data_ptr())
    binding.bind_output("y", "cpu", 0, _type(dtype), y.shape, y.data_ptr())

    def call() -> torch.Tensor:
        session.run_with_iobinding(binding)
        return y

    return call


def _session(
    op_type: str,
    names: list[str],
    domain: str,
    values: dict[str, Any],
    inputs: dict[str, Any],
    sizes: tuple[int, int] | None = None,
    **attributes: Any,
) -> Callable[[], torch.Tensor]:
    """A call of A (M, K) -> y (M, N) in float32 through `op_type` and the activation; sizes: (K, N), or B's shape."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node(op_type, names, ["z"], domain=domain, **attributes),
        *_ort.activation_nodes(inputs["activation"]),
    ]
    K, N = sizes or values["B"].shape
    x, y = (TensorProto.FLOAT, ("M", K)), (TensorProto.FLOAT, ("M", N))
    session = _ort.session(_ort.model(nodes, {"A": x}, {"y": y}, values, opset=20))
    feed = {"A": inputs["x"].float().numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])
