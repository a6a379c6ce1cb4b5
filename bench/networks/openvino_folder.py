"""OpenVINO, where it is installed or where `make openvino` has put it: a folder that only its own processes see."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "openvino"


def version() -> str | None:
    """None where there is none."""
    if importlib.util.find_spec("openvino") is not None:
        return importlib.metadata.version("openvino")
    found = importlib.metadata.distributions(name="openvino", path=[str(FOLDER)])
    return next((one.version for one in found), None)


def environment() -> dict[str, str]:
    """Of a process that may load it; OpenMP's threads sleep between two calls."""
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(FOLDER)]
    return os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(paths)}
