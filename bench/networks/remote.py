"""A contestant in a process of its own that still takes its turn: OpenVINO's threads and crashes stay outside."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.networks import load as networks_load
from bench.networks import openvino_folder
from bench.networks.contestants import BY_NAME, Contestant

if TYPE_CHECKING:
    import numpy as np

EXIT_SECONDS = 5  # a process that says nothing sensible any more, and does not end either, is killed
INPUTS, OUTPUTS = "inputs.npz", "outputs.npz"  # in the network's folder


class Remote:
    """Called with nothing: one run of the inputs given last. `seconds` are the runs' own, without the pipe's."""

    def __init__(self, contestant: Contestant, folder: Path, threads: int) -> None:
        job = {"contestant": contestant.name, "folder": str(folder), "threads": threads}
        self.seconds: list[float] = []
        self.dead: str | None = None
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.networks.child", "serve", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=openvino_folder.ROOT,
            env=openvino_folder.environment(),
        )

    def answer(self, arrays: "list[np.ndarray]") -> "list[np.ndarray]":
        """The outputs for inputs that are kept for the calls that follow; RuntimeError where the process is gone."""
        import numpy as np

        np.savez(self._folder / INPUTS, *arrays)
        self._ask("answer")
        if self.dead:
            raise RuntimeError(self.dead)
        return _read(self._folder / OUTPUTS)

    def __call__(self) -> None:
        if self.dead is None:
            self._ask("run")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            self.seconds.append(float(self._process.stdout.readline()))
        except (OSError, ValueError):  # a broken pipe, or no reply
            try:
                code = self._process.wait(timeout=EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            self.dead = f"its process ended with {code}"


def serve(job: dict[str, Any]) -> None:
    """The other end: loads, then obeys lines; replies with a run's seconds. Ends with its input."""
    import numpy as np

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    contestant, folder = BY_NAME[job["contestant"]], Path(job["folder"])
    networks_load.import_packages(contestant)
    call = networks_load.load(contestant, folder, job["threads"])
    arrays: list[np.ndarray] = []
    for line in sys.stdin:
        if line.strip() == "answer":
            arrays = _read(folder / INPUTS)
            np.savez(folder / OUTPUTS, *call(arrays))
        start = time.perf_counter()
        call(arrays)
        print(time.perf_counter() - start, file=replies, flush=True)


def _read(path: Path) -> "list[np.ndarray]":
    import numpy as np

    with np.load(path) as loaded:
        return [loaded[name] for name in loaded.files]
