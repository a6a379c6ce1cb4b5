"""`deepseek-fast doctor`: what is installed, what this CPU can do, which doors open and why not."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from deepseek_fast.cli import machine, output

# A door must give this product, not merely load.
X = [[1.0, 2.0, 3.0]]
WEIGHT = [[1.0, 0.0, -1.0], [0.5, 0.5, 0.5]]
PRODUCT = [[-2.0, 3.0]]


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("doctor", help="versions, CPU, which doors load, and why not", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where every door whose framework is installed works, 3 otherwise."""
    report = examine()
    if arguments.json:
        output.print_json(report)
    else:
        print(text(report))
    return 0 if report["ok"] else 3


def examine() -> dict[str, Any]:
    """The report as data."""
    found = machine.versions()
    doors = [_door(name, needs, probe, found) for name, needs, probe in DOORS]
    return {
        "ok": all(door["ok"] for door in doors if door["installed"]),
        "python": machine.platform.python_version(),
        "versions": found,
        "cpu": machine.cpu_name(),
        "cpus": machine.usable_cpus(),
        "isa": _isa(),
        "doors": doors,
        "advice": advice(found),
    }


def advice(found: dict[str, str | None]) -> list[str]:
    """What the user may want to change, a sentence each."""
    lines = []
    if found["torch"] and found["onnxruntime"] and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        lines.append(
            "set OMP_WAIT_POLICY=PASSIVE before Python starts where torch and ONNX Runtime share a process: "
            "their waiting threads otherwise slow each other several times"
        )
    cap = os.environ.get("DSF_MAX_ISA")
    if cap is not None and cap not in _isa()["supported"]:
        lines.append(f"DSF_MAX_ISA={cap} is no level that this CPU has; it is ignored or cut")
    return lines


def text(report: dict[str, Any]) -> str:
    """The report as lines for a person."""
    isa = report["isa"]
    lines = [f"Python        {report['python']}"]
    lines += [f"{package:<13} {version or 'not installed'}" for package, version in report["versions"].items()]
    lines += [f"CPU           {report['cpu']}, {report['cpus']} usable"]
    lines += [f"ISA levels    {', '.join(isa['supported']) or 'unknown'}; in force: {isa['in_force'] or 'unknown'}"]
    for door in report["doors"]:
        state = "ok" if door["ok"] else "not installed" if not door["installed"] else "BROKEN"
        lines.append(f"{door['name'] + ' door':<17} {state}" + (f": {door['why']}" if door["why"] else ""))
    return "\n".join(lines + [f"advice: {line}" for line in report["advice"]])


def _isa() -> dict[str, Any]:
    try:
        from deepseek_fast._load import native

        return {"supported": list(native().supported_isas()), "in_force": native().isa()}
    except Exception:  # the NumPy door's row says why
        return {"supported": [], "in_force": None}


def _door(name: str, needs: tuple[str, ...], probe: Callable[[], Any], found: dict[str, str | None]) -> dict[str, Any]:
    missing = [package for package in needs if not found[package]]
    if missing:
        return {"name": name, "installed": False, "ok": False, "why": f"pip install {' '.join(missing)}"}
    why = ""
    try:
        result = probe()
        if result != PRODUCT:
            why = f"it computes {result} in place of {PRODUCT}"
    except Exception as error:  # whatever stops a door is what the user wants to read
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {"name": name, "installed": True, "ok": not why, "why": why}


def _numpy() -> Any:
    import numpy

    import deepseek_fast.numpy

    x, weight = numpy.array(X, numpy.float32), numpy.array(WEIGHT, numpy.float32)
    return deepseek_fast.numpy.fused_matmul(x, weight).tolist()


def _torch() -> Any:
    import torch

    import deepseek_fast

    return deepseek_fast.fused_matmul(torch.tensor(X), torch.tensor(WEIGHT)).tolist()


def _onnxruntime() -> Any:
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper

    from deepseek_fast import ort

    domain = helper.make_opsetid("ai.deepseek_fast", 1)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (None, None)) for name in "XWY"]
    node = helper.make_node("FusedMatmul", ["X", "W"], ["Y"], domain=domain.domain)
    graph = helper.make_graph([node], "doctor", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), domain], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ort.library_path()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"X": numpy.array(X, numpy.float32), "W": numpy.array(WEIGHT, numpy.float32)}
    return session.run(None, feed)[0].tolist()


DOORS = (
    ("NumPy", ("numpy",), _numpy),
    ("torch", ("torch",), _torch),
    ("ONNX Runtime", ("onnxruntime", "onnx"), _onnxruntime),
)
