"""The instruction set levels: asked, lowered, put back, and set from the environment."""

import os
import subprocess
import sys

import pytest

import deepseek_fast
from tests.doors import EVERY_ROOM
from tests.plugin import ISA_LEVELS, isa_cap, supported_isas


def test_levels_are_named_lowest_first() -> None:
    levels = supported_isas()
    assert levels[0] == "scalar"
    assert levels == sorted(levels, key=ISA_LEVELS.index)
    assert deepseek_fast.isa() == levels[-1]


def test_an_unknown_level_is_refused() -> None:
    before = deepseek_fast.isa()
    for name in ("avx1024", "", "AVX2", "best"):
        with pytest.raises(
            ValueError, match=rf"^set_max_isa: isa must be one of {', '.join(ISA_LEVELS)}; got '{name}'$"
        ):
            deepseek_fast.set_max_isa(name)
    assert deepseek_fast.isa() == before


def test_the_level_in_force_is_returned(isa: str) -> None:
    assert deepseek_fast.isa() == isa
    assert deepseek_fast.set_max_isa("scalar") == "scalar" == deepseek_fast.isa()


def test_a_level_above_the_cpu_is_cut_to_it() -> None:
    best = supported_isas()[-1]
    with isa_cap(best):
        assert deepseek_fast.set_max_isa(ISA_LEVELS[-1]) in supported_isas()


@pytest.mark.parametrize("level", ["scalar", "avx2"])
def test_the_environment_lowers_the_level(level: str) -> None:
    if level not in supported_isas():
        pytest.skip(f"this CPU has no {level}")
    code = "import deepseek_fast; print(deepseek_fast.isa())"
    environment = {**os.environ, "DSF_MAX_ISA": level}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == level


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_every_level_has_a_kernel_and_its_own_where_one_is_listed(room: str) -> None:
    from deepseek_fast._load import native

    levels = [level for level, _ in native().variants(room)]
    assert "scalar" in levels
    assert set(levels) <= set(ISA_LEVELS)
