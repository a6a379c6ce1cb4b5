"""pytest plugin of the whole project: seeds from the test id, one run per ISA level, threads put back.

Loaded by `-p tests.plugin`, because rooms' tests under kernels/ would not see a tests/conftest.py.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from deepseek_fast.bench.rooms import isa_cap

ARM_LEVELS = ("neon", "neon_dotprod", "neon_i8mm")
# Beside the highest that the CPU has; those between are marked slow.
QUICK_LEVELS = ("scalar", "avx2", "neon")
ISA_LEVELS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx", *ARM_LEVELS)


def seed_of(text: str) -> int:
    """A seed that depends on the text alone: a test is repeatable and no two tests share their data."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def supported_isas() -> list[str]:
    """The levels that this CPU runs and DSF_MAX_ISA allows, lowest first."""
    import deepseek_fast
    from deepseek_fast._load import native

    in_force = ISA_LEVELS.index(deepseek_fast.isa())
    return [level for level in native().supported_isas() if ISA_LEVELS.index(level) <= in_force]


def each_level() -> list[Any]:
    """To parametrize over: `make test` runs the lowest, the highest and one between, `make test-all` every one."""
    levels = supported_isas()
    quick = {*QUICK_LEVELS, levels[-1]}
    return [pytest.param(level, marks=() if level in quick else pytest.mark.slow) for level in levels]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of GPU kernels run on a GPU or in Triton's interpreter, and the interpreter runs nothing else."""
    import torch

    from deepseek_fast.gpu.register import interpreted

    if torch.cuda.is_available():
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        is_of_gpu = item.get_closest_marker("gpu") is not None
        (kept if is_of_gpu == interpreted() else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
    if interpreted():  # by NumPy, which warns where a chip gives infinity or NaN
        for item in items:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", each_level(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per level, kernels held to that level."""
    with isa_cap(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seeds every generator in use; the value itself is for generators that a test makes."""
    import numpy as np
    import torch

    value = seed_of(request.node.nodeid)
    random.seed(value)
    np.random.seed(value)
    torch.default_generator.manual_seed(value)  # torch.manual_seed formats a stack for each kind of device: 0.6 ms
    return value


@pytest.fixture
def generator(seed: int) -> Any:
    """A torch.Generator of this test's own."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture
def num_threads() -> Iterator[Any]:
    """torch.set_num_threads, put back after the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
