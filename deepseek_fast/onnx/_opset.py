"""Brings a model to an opset and IR version that the bodies are written for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, MAX_OPSET, MIN_OPSET
from deepseek_fast.onnx._runtime import one_line
from deepseek_fast.onnx._validity import ai_onnx_opset

if TYPE_CHECKING:
    import onnx

MIN_IR_VERSION = 8  # model-local functions
INITIALIZERS_ARE_INPUTS_IR_VERSION = 3  # up to here every initializer is listed as a graph input too


def normalize(model: onnx.ModelProto, caller: str, argument: str) -> onnx.ModelProto:
    """The model at an ai.onnx opset from 13 to 25, older ones converted; the given model is left as it is."""
    opset = ai_onnx_opset(model)
    rule = f"{caller}: {argument} must import an ai.onnx opset from {MIN_OPSET} to {MAX_OPSET}"
    if opset is None:
        raise ValueError(f"{rule}; got none")
    if opset > MAX_OPSET:
        raise ValueError(f"{rule}; got {opset}")
    if opset >= MIN_OPSET and model.ir_version > INITIALIZERS_ARE_INPUTS_IR_VERSION:
        return model
    copy = type(model)()
    copy.CopyFrom(model)
    if model.ir_version <= INITIALIZERS_ARE_INPUTS_IR_VERSION:
        _drop_initializer_inputs(copy)
    if opset < MIN_OPSET:
        copy = _convert(copy, f"{rule}, or one that onnx.version_converter can raise; got {opset}")
    return copy


def _drop_initializer_inputs(model: onnx.ModelProto) -> None:
    """Until IR version 3 initializers had to be inputs, and runtimes took them for constants; now they need not."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = MIN_IR_VERSION


def _convert(model: onnx.ModelProto, sentence: str) -> onnx.ModelProto:
    from onnx import version_converter

    if model.functions:  # version_converter would drop them without a word
        raise ValueError(f"{sentence} with local functions")
    try:
        converted = version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own types
        reason = one_line(error)
        raise ValueError(f"{sentence} ({reason})") from error
    # The converter keeps the graph only.
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(converted, field, getattr(model, field))
    return converted


def ir_version_for(current: int, opset_imports: dict[str, int]) -> int:
    """The lowest valid IR version that is not below `current`."""
    from onnx import helper

    standard = [helper.make_opsetid(domain, version) for domain, version in opset_imports.items() if not domain]
    return max(current, MIN_IR_VERSION, helper.find_min_ir_version_for(standard, ignore_unknown=True))


def import_our_domain(opset_imports: dict[str, int]) -> None:
    opset_imports[DOMAIN] = DOMAIN_VERSION
