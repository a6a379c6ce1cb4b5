"""Options, and the run that all rows of a session go into; finished ones survive an interruption."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads and ORT's would fight

import pytest

from deepseek_fast.bench import ceiling, peers
from deepseek_fast.bench import run as runs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="write the run to this JSON file, as `deepseek-fast bench --json` does")
    parser.addoption("--quick", action="store_true", help="main sizes, highest instruction set level, one thread")
    parser.addoption("--peers", help="all that are installed, none, names or .py files, separated by commas")


@pytest.fixture(scope="session")
def peer_names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words = request.config.getoption("peers")
    return peers.chosen(tuple(words.split(",")) if words else None, quick=request.config.getoption("quick"))


@pytest.fixture(scope="session")
def bench_run(request: pytest.FixtureRequest) -> Iterator[runs.Keeper]:
    where = request.config.getoption("rows")
    if where:
        where.parent.mkdir(parents=True, exist_ok=True)
        runs.check_writable(where)
    keeper = runs.Keeper(where)
    yield keeper
    if len(keeper.data["rows"]) == len(request.session.items):
        keeper.done()


@pytest.fixture(scope="session")
def roofline() -> ceiling.Roofline:
    return ceiling.Roofline()
