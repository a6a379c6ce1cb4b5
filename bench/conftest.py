"""Options, the run's ceilings, and the rows that a run leaves as JSON: finished ones survive an interruption."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads and ORT's would fight

import pytest

THREADS = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="write the rows to this JSON file")
    parser.addoption("--quick", action="store_true", help="few cases at the highest level only: the CI gate's set")


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """The run's rows; a benchmark appends one."""
    import torch

    from bench import ceiling
    from deepseek_fast.cli import machine

    torch.set_num_threads(THREADS)
    found: list[dict[str, Any]] = []
    yield found
    where = request.config.getoption("rows")
    if where and found:
        data = {"machine": machine.describe(THREADS), "ceilings": ceiling.measure(), "rows": found}
        where.parent.mkdir(parents=True, exist_ok=True)
        beside = where.with_name(where.name + ".part")
        beside.write_text(json.dumps(data, indent=1) + "\n")
        beside.replace(where)


@pytest.fixture(scope="session")
def roofline() -> Any:
    """roofline(rate name, flops, bytes) -> seconds at the level in force, from the best probe of the run so far."""
    from bench import ceiling
    from deepseek_fast._load import native

    best: dict[tuple[str, str], float] = {}

    def seconds(name: str, flops: int, num_bytes: int) -> float:
        key = native().isa(), name
        best[key] = max(best.get(key, 0.0), native().ceiling_rates(ceiling.SECONDS)[name][0])
        return ceiling.seconds_at_least(best[key], flops, num_bytes)

    return seconds
