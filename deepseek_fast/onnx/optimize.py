"""optimize: rewrites an ONNX model to the library's operators, in a file that still runs everywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _io, _opset
from deepseek_fast.onnx._notes import Note, Refusal
from deepseek_fast.onnx._quantize import SCHEMES
from deepseek_fast.onnx._rewriter import Rewriter
from deepseek_fast.onnx._runtime import one_line
from deepseek_fast.onnx.rules import AFTER_PRECISION, BEFORE_PRECISION, QUANTIZABLE, RULE_NAMES, RULES, Rule

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MAX_LEVEL = 3
BF16 = "bf16"
PRECISIONS = ("float32", BF16)


@dataclass(frozen=True)
class Optimized:
    """An optimized model, and a sentence for everything that was rewritten and everything that was refused."""

    model: onnx.ModelProto
    rewritten: tuple[Note, ...]
    refused: tuple[Note, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.rewritten)} rewritten, {len(self.refused)} refused"]
        lines += [f"  {note}" for note in self.rewritten]
        lines += [f"  left alone: {note}" for note in self.refused]
        return "\n".join(lines)


def optimize(
    model_or_path: onnx.ModelProto | str | os.PathLike[str],
    *,
    fuse_ops: Sequence[str] | None = None,
    quantize: str | None = None,
    optim_level: int = 3,
    precision: str = "float32",
    output: str | os.PathLike[str] | None = None,
) -> onnx.ModelProto:
    """The model with its products done by FusedMatmul, Int8Matmul or Fp8Matmul and its convolutions by FusedConv or
    FusedConvInt8, each with a body in plain ai.onnx.

    model_or_path: an onnx.ModelProto with its weights, or a path; ai.onnx opset 13 to 25 (older ones are converted).
        It is not changed.
    fuse_ops: the rewrites that may run, of "NoOp", "Fp8MatMul", "Fp8Gemm", "MatMul+Add", "Gemm", "MatMul",
        "ProductReshape", "Bias", "Activation", "Residual", "AttentionLayout", "QdqConv", "QdqResidual", "QdqMove",
        "Conv", "ConvPad", "ConvBatchNorm", "BatchNorm", "ConvScale", "ConvActivation", "ConvResidual", "ConvPool",
        "Pool", "LRN", "ConvWinograd", "ConvLayout", "Fp8QuantizeLinear", "Fp8DequantizeLinear" (one a file of rules/);
        None: all that optim_level allows. A weight in FP8 stays so, with quantize too.
    quantize: None, "w8a8" (int8 weights, each activation row quantized as it comes) or "w8a16" (int8 weights only).
    optim_level: 0 only attaches bodies (with quantize: products become Int8Matmul, nothing is fused into them);
        1 products and convolutions with their bias, normalization and padding; 2 and the activation after them; 3 and
        the residual sum, the pool, and layouts (no Reshape around a product, no Transpose around Attention, NHWC
        between convolutions). A convolution between DequantizeLinear and QuantizeLinear becomes FusedConvInt8 at 1 with
        all that stands between, at 3 also with a sum after it: the convolution is then no longer rounded to bytes
        before the sum, nor cut where it is above the largest of them. From 1 on, unused nodes and initializers are
        dropped and equal initializers merged.
    precision: "float32", or "bf16": convolutions, pools, LocalResponseNorm and FusedMatmul compute in bfloat16 where
        that saves more time than the Casts around them take, weights and biases rounded once; needs opset 15. Inputs
        and outputs keep their types.
    output: a path to write to as well; written beside and renamed, weights in '<name>.data' where 2 GB are passed.

    Returns the optimized onnx.ModelProto: inputs, outputs, metadata and the names of all values that remain are kept.
    Raises ValueError, TypeError, FileNotFoundError or PermissionError, each with one sentence.
    Numerics: float rewrites reorder float32 sums; bf16 rounds every value between nodes to 8 bits; w8a8 is bit-equal in
    every runtime but for smooth activations; FusedConvInt8 rounds once, as QLinearConv does, and may be a step away
        from a float32 computation.

        model = optimize("model.onnx", quantize="w8a8", output="model.w8a8.onnx")
        session = deepseek_fast.ort.session("model.w8a8.onnx")        # (8, 64) ids -> (8, 64, 384)
    """
    return explain(
        model_or_path,
        fuse_ops=fuse_ops,
        quantize=quantize,
        optim_level=optim_level,
        precision=precision,
        output=output,
    ).model


def explain(
    model_or_path: onnx.ModelProto | str | os.PathLike[str],
    *,
    fuse_ops: Sequence[str] | None = None,
    quantize: str | None = None,
    optim_level: int = 3,
    precision: str = "float32",
    output: str | os.PathLike[str] | None = None,
) -> Optimized:
    """As `optimize`, and says what was rewritten and what was refused, node by node."""
    from deepseek_fast.onnx._attach import attach_bodies, complete_nodes
    from deepseek_fast.onnx._bf16 import to_bf16
    from deepseek_fast.onnx._cleanup import clean_up
    from deepseek_fast.onnx._quantize import quantize_weights
    from deepseek_fast.onnx._shapes import infer_shapes

    allowed = _allowed_rules(fuse_ops, quantize, optim_level)
    if precision not in PRECISIONS:
        raise ValueError(f"optimize: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    path = _io.check_output(output, "optimize", "output") if output is not None else None
    proto = _opset.normalize(_io.read_model(model_or_path, "optimize", "model"), "optimize", "model")
    model = _deserialize(proto)
    output_shapes = [value.shape for value in model.graph.outputs]
    infer_shapes(model)

    cleans = optim_level > 0 or quantize is not None or precision == BF16
    if cleans:
        clean_up(model)  # before the rules too: a reader that nobody reads would keep a value alive
    rewriter = Rewriter(model, may_expand_weights=quantize is not None)
    complete_nodes(rewriter)
    rewritten: list[Note] = []
    refused: list[Note] = []
    _run_rules(BEFORE_PRECISION, rewriter, allowed, rewritten, refused)
    if quantize is not None:
        quantize_weights(rewriter, quantize, rewritten, refused)
    if precision == BF16:
        to_bf16(rewriter, rewritten, refused)
    _run_rules(AFTER_PRECISION, rewriter, allowed, rewritten, refused)
    if cleans:
        clean_up(model)
    attach_bodies(rewriter)
    for value, shape in zip(model.graph.outputs, output_shapes, strict=True):
        value.shape = shape  # as the model stated it, without inferred names
    optimized = _serialize(model)
    if path is not None:
        _io.write_model(model, path, "optimize", "output")
    return Optimized(optimized, tuple(rewritten), tuple(refused))


def _run_rules(
    rules: Sequence[Rule], rewriter: Rewriter, allowed: set[str], rewritten: list[Note], refused: list[Note]
) -> None:
    for rule in rules:
        if rule.NAME not in allowed:
            continue
        for node in list(rewriter.graph):
            if node.graph is None or not node.outputs:
                continue  # rewritten away by this rule, or without effect
            name = node.outputs[0].name or node.name or node.op_type
            try:
                became = rule.rewrite(node, rewriter)
            except Refusal as refusal:
                refused.append(Note(rule.NAME, name, str(refusal)))
            else:
                if became is not None:
                    rewritten.append(Note(rule.NAME, name, became))


def _allowed_rules(fuse_ops: Sequence[str] | None, quantize: str | None, optim_level: int) -> set[str]:
    if isinstance(optim_level, bool) or not isinstance(optim_level, int):
        raise TypeError(f"optimize: optim_level must be an int; got {type(optim_level).__name__}")
    if not 0 <= optim_level <= MAX_LEVEL:
        raise ValueError(f"optimize: optim_level must be from 0 to {MAX_LEVEL}; got {optim_level}")
    if quantize is not None and quantize not in SCHEMES:
        raise ValueError(f"optimize: quantize must be None or one of {', '.join(SCHEMES)}; got {quantize!r}")
    if fuse_ops is not None:
        if isinstance(fuse_ops, str):
            raise TypeError(f"optimize: fuse_ops must be a list of names; got the string {fuse_ops!r}")
        for name in fuse_ops:
            if name not in RULE_NAMES:
                raise ValueError(f"optimize: fuse_ops must be of {', '.join(RULE_NAMES)}; got {name!r}")
    names = {rule.NAME for rule in RULES if optim_level >= rule.LEVEL}
    if optim_level == 0 and quantize is not None:
        names |= set(QUANTIZABLE)
    return names if fuse_ops is None else names & set(fuse_ops)


def _deserialize(proto: onnx.ModelProto) -> ir.Model:
    import onnx_ir as ir

    with _malformed():
        return ir.from_proto(proto)


def _serialize(model: ir.Model) -> onnx.ModelProto:
    import onnx_ir as ir

    with _malformed():
        return ir.to_proto(model)


@contextlib.contextmanager
def _malformed() -> Iterator[None]:
    """What onnx_ir raises, in many types, at names that are no text and attributes that contradict themselves."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"optimize: model must be a valid ONNX graph; got {one_line(error)}") from error
